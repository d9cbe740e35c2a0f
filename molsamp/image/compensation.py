"""Dynamic compensation (DC-Solver) and DualFast: evaluations that are mended by earlier ones, for few calls.

With so few calls the evaluation stored at t_i belongs to a predicted x that is off the trajectory. DC-Solver replaces
it by what the polynomial through the last K + 1 evaluations says at another time,

    t' = t_(i-1) + rho_i (t_i - t_(i-1)),      m_i <- sum_k m_(i-k) L_k(t'),

with a ratio rho_i of each step that is searched once, on a few trajectories; rho = 1 changes nothing. DualFast
extrapolates the noise prediction away from the one before, eps_i <- (1 + c) eps_i - c eps_(i-1), with one c for all
steps. Both are verbs `Mix` of the solver's rows.

Sources: Zhao et al., "DC-Solver", ECCV 2024; "DualFast", ICCV 2025 (our reading: its schedule of c was not to be had).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.exponential import ALWAYS, Exponential, Rule
from molsamp.engine.integrators import Mix, Row, step
from molsamp.engine.noise import Noise
from molsamp.engine.state import Memory, Particles
from molsamp.image.sampling import Model, dynamics, grid_of, sample

REACH = 2  # K: evaluations before the newest that compensate it
LOWEST, HIGHEST = 0.0, 2.0  # ratios that are looked at


def compensated(
    times: Sequence[float], ratios: Sequence[float], order: int = 2, rule: Rule = "midpoint"
) -> Exponential:
    """UniPC of an order with compensated evaluations, for a grid of len(ratios) intervals.

    Args:
        times: of the grid.
        ratios: rho_i of each evaluation; the first K are 1.
        order: of predictor and corrector.
        rule: "midpoint" (bh2) or "bh1".

    Raises:
        ValueError: as many ratios as intervals are needed, the first K of them 1.
    """
    if len(ratios) != len(times) - 1 or any(rho != 1.0 for rho in ratios[:REACH]):
        got = ", ".join(f"{rho:g}" for rho in ratios)
        raise ValueError(f"{len(times) - 1} ratios are needed, the first {REACH} of them 1; got {got}")
    mixes = tuple(weights(times, i, rho) for i, rho in enumerate(ratios))
    return Exponential(order, corrects=order, rule=rule, short=ALWAYS, mixes=mixes)


def weights(times: Sequence[float], i: int, rho: float) -> tuple[float, ...]:
    """L_k(t') of the evaluation at times[i] and those before it, newest first."""
    if rho == 1.0:
        return (1.0,)
    nodes = [times[i - k] for k in range(min(i, REACH) + 1)]
    at = nodes[1] + rho * (nodes[0] - nodes[1])
    others = [[b for j, b in enumerate(nodes) if j != k] for k in range(len(nodes))]
    return tuple(float(np.prod([(at - b) / (a - b) for b in rest])) for a, rest in zip(nodes, others, strict=True))


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Args:
        ratios: of each evaluation.
        losses: mean squared distance to the reference after each step, with all ratios 1 up to it and with those found.
    """

    ratios: tuple[float, ...]
    losses: tuple[tuple[float, float], ...]


def search(
    model: Model,
    steps: int,
    *,
    noise: Noise,
    n: int = 10,
    order: int = 2,
    rule: Rule = "midpoint",
    grid: str | Sequence[float] | None = None,
    fine: int = 20,
    dtype: torch.dtype = torch.float32,
) -> Searched:
    """Ratios step by step: each is where the next corrected state comes nearest to the trajectory of a fine solver.

    A ratio is found by bounded scalar minimisation on n noises, one network call a trial, and kept only where it is
    better than 1. No gradient is needed.

    Args:
        model, steps, grid, dtype: as in `sample`.
        noise: keys of the n starts; not those that are to be scored.
        order, rule: of UniPC.
        fine: intervals of the reference to one of the grid.
    """
    from scipy.optimize import minimize_scalar

    times = grid_of(model.schedule, grid, steps)
    there = trajectory(model, times, fine, noise, n, dtype)
    trial = [1.0] * min(REACH, steps) + [0.5] * (steps - REACH)  # so that rows keep what any ratio needs
    rows = compensated(times, trial, order, rule).rows(dyn := dynamics(model, "data"), times)
    ratios, losses = [1.0] * steps, []
    p, memory = Particles.at(there[0]), Memory()
    for i in range(steps):
        here = partial(_carried, rows[i : i + 2], dyn, p, memory)
        if i >= REACH:

            def loss(rho: float, i: int = i, here: Callable = here) -> float:
                return float((here(weights(times, i, rho))[1] - there[i + 1]).double().square().mean())

            found = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 5e-3})
            ratios[i] = float(found.x) if found.fun < (plain := loss(1.0)) else 1.0
            losses.append((plain, min(plain, float(found.fun))))
        (p, memory), _ = here(weights(times, i, ratios[i]))
    return Searched(tuple(ratios), tuple(losses))


def _carried(
    rows: Sequence[Row], dyn: Dynamics, p: Particles, memory: Memory, mix: tuple[float, ...]
) -> tuple[tuple[Particles, Memory], Tensor]:
    """What the first row makes with a mixture, and where that is after the next row's correction."""
    program = tuple(Mix(mix) if isinstance(verb, Mix) else verb for verb in rows[0].program)
    q, after, _ = step(replace(rows[0], program=program), dyn, p, None, memory)
    if len(rows) == 1:
        return (q, after), q.x
    return (q, after), step(replace(rows[1], program=rows[1].program[:2]), dyn, q, None, after)[0].x


def trajectory(
    model: Model, times: Sequence[float], fine: int, noise: Noise, n: int, dtype: torch.dtype
) -> Float[Tensor, "F n *event"]:
    """States at `times` by UniPC of order 3 on a grid that is `fine` times as dense."""
    dense = [a + (b - a) * k / fine for a, b in pairwise(times) for k in range(fine)] + [times[-1]]
    solver = Exponential(3, corrects=3, rule="exact", short=0)
    return sample(model, solver, len(dense) - 1, n, noise=noise, grid=dense, dtype=dtype, save=fine).x


def dualfast(steps: int, c: float) -> tuple[tuple[float, ...], ...]:
    """The mixtures of DualFast, for `Exponential(form="noise", mixes=...)`; c = 0 changes nothing."""
    return ((1.0,), *((1.0 + c, -c) for _ in range(steps - 1)))


@dataclass(frozen=True)
class Cascade:
    """Ratios as a polynomial of step, calls and guidance: cascade polynomial regression for settings never searched.

    rho_j = sum c_kab T_k(j / calls) T_a(guidance / 12) T_b(calls / 50), k <= 3 and a, b <= 2, with Chebyshev
    polynomials in place of powers, whose coefficients would reach 1e4, and a ridge.

    Args:
        coefficients: c, 36 numbers.
    """

    coefficients: Float[np.ndarray, " 36"]

    @classmethod
    def fit(cls, found: dict[tuple[float, int], Sequence[float]], ridge: float = 1e-3) -> Cascade:
        """Least squares on searched ratios.

        Args:
            found: (guidance, calls) -> ratios.
            ridge: of the coefficients, in units of the mean square of a basis function.
        """
        rows, values = [], []
        for (guidance, calls), ratios in found.items():
            for j in range(REACH, len(ratios)):
                rows.append(_basis(j, calls, guidance))
                values.append(ratios[j] - 1.0)
        A = np.array(rows)
        return cls(np.linalg.solve(A.T @ A + ridge * len(A) * np.eye(A.shape[1]), A.T @ np.array(values)))

    def ratios(self, guidance: float, calls: int) -> tuple[float, ...]:
        """Of the evaluations of a run; the first K are 1."""
        later = (1.0 + float(_basis(j, calls, guidance) @ self.coefficients) for j in range(REACH, calls))
        return (*[1.0] * min(REACH, calls), *later)


def _basis(j: int, calls: int, guidance: float) -> np.ndarray:
    chebyshev = np.polynomial.chebyshev.chebvander
    along = [chebyshev(2.0 * a - 1.0, k).ravel() for a, k in ((j / calls, 3), (guidance / 12.0, 2), (calls / 50.0, 2))]
    return np.einsum("k,a,b->kab", *along).ravel()
