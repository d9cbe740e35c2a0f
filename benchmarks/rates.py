"""Rare events: weighted ensemble, forward flux and brute force where the rate is known.

Wells: one-dimensional, barriers of 2, 5 and 10 kT, dt = 1e-3, D = 1, mean first-passage time -1 -> 1 against the exact
one of the discrete chain; per seed the estimate with its interval, over seeds how many intervals hold the truth, and
evaluations x (relative error)^2, what one estimate to 100 % would cost: the smaller, the better the method.
Appends to benchmarks/results/rates.json; what is there for the code as it stands is not repeated. Alanine dipeptide:
alanine_rates.py.

    python benchmarks/rates.py [--seeds 1,2,3,4,5,6,7,8,9,10] [--table]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time

os.environ.setdefault("MOLSAMP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from interleaved import ROOT, Results, code_version

from molsamp.engine import EulerMaruyama, Noise, Overdamped, Particles
from molsamp.engine import forward_flux as ff
from molsamp.engine import weighted_ensemble as we
from molsamp.engine.ensembles import Ensemble, Motion, Sight
from molsamp.engine.estimates import Estimate, inverse
from molsamp.engine.exact_rates import Chain, DoubleWell

FILE = ROOT / "benchmarks" / "results" / "rates.json"
ENGINE = (
    *("ensembles", "weighted_ensemble", "forward_flux", "exact_rates", "estimates", "particles"),
    *("integrators", "rollout", "dynamics", "noise", "state"),
)
CODE = (*(f"molsamp/engine/{name}.py" for name in ENGINE), "benchmarks/rates.py")
BARRIERS, DT, REPLICAS = (2, 5, 10), 1e-3, 8
LEVELS = {2: (-0.8, -0.4, 0.0), 5: (-0.85, -0.7, -0.5, -0.3, 0.0), 10: (-0.87, -0.75, -0.64, -0.53, -0.42, -0.3, -0.1)}
BASIN = {2: 300, 5: 750, 10: 3000}  # rollouts of 20 steps
TRIALS = {2: 2000, 5: 2000, 10: 4000}  # from each interface
ROUNDS = {2: (100, 350), 5: (100, 350), 10: (1000, 4000)}  # of 10 steps: those not counted, and all
BRUTE = {2: 10, 5: 40, 10: 40}  # stretches of 1000 steps of 400 walkers; two more are not counted


def look(x: torch.Tensor) -> Sight:
    return Sight(x[:, 0], x[:, 0] <= -1.0, x[:, 0] >= 1.0)


def source(ids: torch.Tensor, step: int) -> Particles:
    return Particles.at(torch.full((len(ids), 1), -1.0, dtype=torch.float64), ids=ids)


def weighted(motion: Motion, b: int) -> tuple[Estimate, int]:
    scheme = we.Scheme(10, torch.linspace(-1, 1, 19).double(), 20, source)
    e, steps = start(20), 0
    parts = []
    settled, rounds = ROUNDS[b]
    for k in range(rounds):
        steps += len(e) * 10
        e, h, _ = scheme.advance(motion, e, k, REPLICAS)
        parts.append(h)
    return inverse(we.rate(we.History.joined(parts).part(settled))), steps


def forward(motion: Motion, b: int) -> tuple[Estimate, int]:
    flux = ff.ForwardFlux(LEVELS[b], TRIALS[b], REPLICAS, looks=20, settle=20, count=BASIN[b], restart=source)
    ladder, steps = flux.begin(source(torch.arange(REPLICAS * 8), 0)), 0
    while ladder.stage <= len(LEVELS[b]):
        steps += len(ladder.walkers) * 20
        ladder = flux.advance(motion, ladder)
    return inverse(ff.rate(ladder)), steps


def brute(motion: Motion, b: int) -> tuple[Estimate, int]:
    scheme = we.Scheme(1000, torch.linspace(-1, 1, 19).double(), None, source)
    _, h = scheme.run(motion, start(400 // REPLICAS), BRUTE[b] + 2)
    return inverse(we.brute_rate(h.part(2), 400 // REPLICAS)), 400 * 1000 * (BRUTE[b] + 2)


def start(walkers: int) -> Ensemble:
    ids = torch.arange(REPLICAS * walkers)
    return Ensemble.of(source(ids, 0), ids % REPLICAS, torch.zeros_like(ids))


WAYS = {"we": weighted, "ffs": forward, "md": brute}


def wells(results: Results, seeds: list[int]) -> None:
    """Every barrier and seed, the methods in turn."""
    code = code_version(*CODE)
    for b in BARRIERS:
        exact = Chain(DoubleWell(b), DT, (-2.6, -1.0, 1.0, 2.6)).mfpt(-1.0)
        for seed in seeds:
            for method, way in WAYS.items():
                key = {"system": f"well {b} kT", "method": method, "seed": seed}
                if results.has(code, **key):
                    continue
                motion = Motion(Overdamped(DoubleWell(b), 1.0), EulerMaruyama(), DT, 1, look, Noise(seed).child(method))
                began = time.process_time()
                found, steps = way(motion, b)
                cpu = time.process_time() - began
                print(f"{b} kT, {method}, seed {seed}: {found}, exact {exact:.5g}, {cpu:.1f} CPU s", flush=True)
                results.add(code, **key, exact=exact, mfpt=found.as_dict(), evaluations=steps, cpu_seconds=cpu)


def table(results: Results) -> str:
    """A row a system and method, over its seeds."""
    lines = [f"{'system':26} {'method':6} {'seeds':>5} {'mfpt':>10} {'exact':>8} {'error of one':>12} {'held':>6} "
             f"{'evaluations':>11} {'CPU s':>6} {'evaluations x error^2':>21}"]  # fmt: skip
    groups: dict[tuple[str, str], list[dict]] = {}
    for e in results.newest():
        groups.setdefault((e["system"], e["method"]), []).append(e)
    for (system, method), runs in groups.items():
        known = [e for e in runs if e["mfpt"]["value"] is not None and e["mfpt"]["interval"][1] is not None]
        values = [e["mfpt"]["value"] for e in known]
        exact = runs[0].get("exact")
        error = statistics.stdev(map(math.log, values)) if len(values) > 1 else math.nan
        if len(values) == 1:
            error = 0.25 * math.log(known[0]["mfpt"]["interval"][1] / known[0]["mfpt"]["interval"][0])
        held = sum(e["mfpt"]["interval"][0] <= exact <= e["mfpt"]["interval"][1] for e in known) if exact else None
        cost, cpu = (statistics.mean(e[name] for e in runs) for name in ("evaluations", "cpu_seconds"))
        lines.append(
            f"{system:26} {method:6} {len(runs):5} {statistics.mean(values) if values else math.nan:10.5g} "
            f"{f'{exact:.5g}' if exact else '':>8} {error:12.1%} {f'{held}/{len(runs)}' if exact else '':>6} "
            f"{cost:11.3g} {cpu:6.0f} {cost * error**2:21.3g}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(FILE, ("system", "method", "seed"))
    if not given.table:
        wells(results, [int(s) for s in given.seeds.split(",")])
    print(table(results))


if __name__ == "__main__":
    main()
