"""Rates of the double well: a weighted ensemble whose walkers are led uphill, against the same without a control.

The control is `engine.climbing.Climb` with the exact F, which a user would have from a free-energy run; its floor and
the segments of both sides are chosen on other noises. What is told is evaluations x (relative error)^2 of the rate, all
evaluations counted and the error taken from the scatter of replicas: what one rate to 100 % would cost. The worse of
the barriers counts. Both rates stand beside, in standard errors from the exact one of the discrete chain.
"""

from __future__ import annotations

import math
import time
from itertools import product
from typing import NamedTuple

import torch

from molsamp.engine import Controlled, EulerMaruyama, Noise, Overdamped, Particles
from molsamp.engine import weighted_ensemble as we
from molsamp.engine.climbing import Climb
from molsamp.engine.ensembles import Ensemble, Motion, Sight
from molsamp.engine.exact_rates import Chain, DoubleWell

CLAIM = "a control inside the weighted ensemble lowers the cost of a rate at 5 and at 10 kT (Girsanov weights)"
UNIT = "evaluations x (relative error of the rate)^2, double well; lower is better"
BELOW = 1.0
BARRIERS, DT, WALKERS, BINS = (5, 10), 1e-3, 20, 20
FREE, LED, FLOORS = (2, 5, 10, 20), (5, 10, 20), (1e-3, 1e-2, 1e-1)  # steps of a segment; floors
SETTLE, CHOOSING, SCORING = 0.6, 0.7, 1.4  # time; the exact flux is steady to 0.1 % from 0.5 on
CODE = tuple(
    f"molsamp/engine/{name}.py"
    for name in (
        *("climbing", "weighted_ensemble", "ensembles", "exact_rates", "estimates", "particles", "integrators"),
        *("rollout", "dynamics", "noise", "state"),
    )
)


class Cost(NamedTuple):
    """Of a run: evaluations x error^2, ln(rate / exact) in errors, evaluations, CPU seconds, scatter of the weight."""

    cost: float
    off: float
    evaluations: float
    cpu: float
    weight: float


def look(x: torch.Tensor) -> Sight:
    return Sight(x[:, 0], x[:, 0] <= -1.0, x[:, 0] >= 1.0)


def source(ids: torch.Tensor, step: int) -> Particles:
    return Particles.at(torch.full((len(ids), 1), -1.0, dtype=torch.float64), ids=ids)


def run(b: int, floor: float | None, looks: int, replicas: int, counted: float, noise: Noise) -> Cost:
    """One ensemble for so long; without a floor there is no control."""
    dyn: Overdamped | Controlled = Overdamped(DoubleWell(b), 1.0)
    if floor is not None:
        s = torch.linspace(-1.0, 1.0, 401, dtype=torch.float64)
        F, N = DoubleWell(b).energy_force(s[:, None])[0], math.sqrt(2.0 * DT)
        dyn = Controlled(dyn, Climb(lambda x: x[:, 0], s, F, kT=1.0, noise=N, floor=floor))
    motion = Motion(dyn, EulerMaruyama(), DT, 1, look, noise)
    scheme = we.Scheme(looks, torch.linspace(-1.0, 1.0, BINS - 1).double(), WALKERS, source)
    ids = torch.arange(replicas * WALKERS)
    e, parts, evaluations = Ensemble.of(source(ids, 0), ids % replicas, torch.zeros_like(ids)), [], 0
    settle, count = (round(t / (looks * DT)) for t in (SETTLE, counted))
    began = time.process_time()
    for k in range(settle + count):
        evaluations += len(e) * looks
        e, h, _ = scheme.advance(motion, e, k, replicas)
        parts.append(h)
    cpu = time.process_time() - began
    h = we.History.joined(parts).part(settle)
    hits, passed = (a.sum(0)[:, 0] for a in (h.hits, h.time))
    if not float(hits.sum()):  # too few walkers to say anything
        return Cost(math.inf, math.nan, evaluations, cpu, math.nan)
    rate = float(hits.sum() / passed.sum())
    scatter = hits - rate * passed
    error = math.sqrt(replicas / (replicas - 1) * float(scatter.square().sum())) / float(hits.sum())
    off = math.log(rate * Chain(DoubleWell(b), DT, (-2.6, -1.0, 1.0, 2.6)).mfpt(-1.0)) / error
    weight = float(torch.bincount(e.replica, e.weight, replicas).std())
    return Cost(evaluations * error**2, off, evaluations, cpu, weight)


def measure(seed: int, replicas: int = 32, choosing: int = 6, free=FREE, led=LED, floors=FLOORS) -> dict[str, float]:
    """About two CPU minutes."""
    noise, figures, ratios = Noise(seed).child("controlled"), {}, {}
    for b in BARRIERS:
        sides = {"method": list(product(floors, led)), "baseline": [(None, k) for k in free]}
        for side, options in sides.items():
            own = noise.child(f"{b} {side}")
            tried = {how: run(b, *how, choosing, CHOOSING, own.child("choosing")).cost for how in options}
            floor, segment = min(tried, key=tried.__getitem__)
            found = run(b, floor, segment, replicas, SCORING, own.child("scoring"))
            told = {"looks": segment, **({} if floor is None else {"floor": floor}), **found._asdict()}
            figures |= {f"{b} kT, {side}: {k}": float(v) for k, v in told.items()}
        ratios[b] = figures[f"{b} kT, method: cost"] / figures[f"{b} kT, baseline: cost"]
    worst = max(ratios, key=ratios.__getitem__)
    return {side: figures[f"{worst} kT, {side}: cost"] for side in ("method", "baseline")} | figures


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, 8, 3, (10,), (10,), (1e-2,))
