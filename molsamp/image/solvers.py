"""Solvers of diffusion and flow models by name: what each paper's method is on the engine, and how it spends calls.

A solver turns a number of network calls into an integrator and a number of intervals; `sampling.sample` lays a grid and
makes one rollout. A new solver is a new entry: a function from calls to (integrator, intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from molsamp.engine.exponential import ALWAYS, Exponential
from molsamp.engine.integrators import EulerMaruyama, Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.singlestep import DPMSolver, RungeKutta
from molsamp.schema import nearest

if TYPE_CHECKING:
    from molsamp.image.sampling import Model

Frame = Literal["data", "noise", "flow"]
SEARCHED = 10  # trajectories on which a solver is fitted to its model


@dataclass(frozen=True)
class Solver:
    """A named method.

    Args:
        plan: network calls -> (integrator, intervals of the grid).
        frame: what it integrates: the model's "data" or "noise" prediction, or the "flow" dx/dt.
        converges: order on a smooth grid.
        least: calls it needs.
        source: paper and equation.
        fit: what makes the integrator out of (model, times of the grid, noise) where it is searched on the model.
    """

    plan: Callable[[int], tuple[Integrator, int]]
    frame: Frame
    converges: float
    least: int
    source: str
    fit: Callable[[Model, Sequence[float], Noise], Integrator] | None = None


def _multistep(converges: float, source: str, least: int = 1, **settings) -> Solver:
    """One call an interval."""
    integrator = Exponential(**settings)
    return Solver(lambda calls: (integrator, calls), integrator.form, converges, least, source)


def _dpm(order: int, source: str, form: Literal["data", "noise"]) -> Solver:
    """Rows of this order, and what is left of the calls in lower ones at the end ("DPM-Solver-fast" in order 3)."""

    def plan(calls: int) -> tuple[Integrator, int]:
        orders = dpm_orders(calls, order)
        return DPMSolver(orders, form), len(orders)

    return Solver(plan, form, order, order, source)


def dpm_orders(calls: int, order: int) -> tuple[int, ...]:
    """Orders of the rows that spend exactly these calls (Lu et al. 2022, section 3.3)."""
    if order < 3 or calls < 3:
        rows, left = divmod(calls, order)
        return (order,) * rows + (1,) * left
    rows, left = divmod(calls, 3)
    return (3,) * (rows - 1) + (2, 1) if left == 0 else (3,) * rows + (left,)


def _runge_kutta(name: str, stages: int, source: str, **settings) -> Solver:
    """Rows of as many calls as the method has stages, and at the end a Heun or Euler row for what is left."""
    spare = {0: (), 1: ("euler",), 2: ("heun",), 3: ("kutta",)}

    def plan(calls: int) -> tuple[Integrator, int]:
        rows, left = divmod(calls, stages)
        names = (name,) * rows + spare[left]
        return RungeKutta(names, **settings), len(names)

    return Solver(plan, "noise", {"heun": 2, "kutta": 3, "rk4": 4}[name], 1, source)


def _unipc(p: int, rule: Literal["bh1", "midpoint"]) -> Solver:
    """Predictor and corrector of order p; near the end the order falls, as in the reference code."""
    word = "bh1" if rule == "bh1" else "bh2"
    return _multistep(
        p + 1,
        f"UniPC-{p}, {word}: Zhao et al., NeurIPS 2023, algorithms 1 and 2",
        order=p,
        corrects=p,
        rule=rule,
        short=ALWAYS,
    )


def _dc(model: Model, times: Sequence[float], noise: Noise) -> Integrator:
    """UniPC-2 with the compensation that does best on a few trajectories."""
    from molsamp.image.compensation import compensated, search

    found = search(model, len(times) - 1, noise=noise, n=SEARCHED, grid=times)
    return compensated(times, found.ratios)


_PP = "Lu et al., DPM-Solver++, 2022"
_DEIS = "Zhang and Chen, ICLR 2023"

SOLVERS: dict[str, Solver] = {
    "ddim": _multistep(1, "Song, Meng, Ermon, ICLR 2021, eq. 12"),
    "ddpm": _multistep(1, "Ho et al., NeurIPS 2020: DDIM with eta = 1 = SDE-DPM-Solver++(1)", noise=1.0),
    "euler": Solver(lambda calls: (EulerMaruyama(), calls), "flow", 1, 1, "Euler's method for dx/dt"),
    "heun": _runge_kutta("heun", 2, "Karras et al., NeurIPS 2022, algorithm 1"),
    "edm": _runge_kutta("heun", 2, "Karras et al., NeurIPS 2022, algorithm 2", churn=30.0, low=0.01, swell=1.007),
    "kutta": _runge_kutta("kutta", 3, f"{_DEIS}: rho3Kutta"),
    "rk4": _runge_kutta("rk4", 4, f"{_DEIS}: rhoRK4"),
    "dpm-1": _dpm(1, "Lu et al., NeurIPS 2022, eq. 3.7", "noise"),
    "dpm-2": _dpm(2, "Lu et al., NeurIPS 2022, algorithm 1", "noise"),
    "dpm-3": _dpm(3, "Lu et al., NeurIPS 2022, algorithm 2", "noise"),
    "dpm++2s": _dpm(2, f"{_PP}, algorithm 1", "data"),
    "dpm++3s": _dpm(3, f"{_PP}, appendix", "data"),
    "dpm++2m": _multistep(2, f"{_PP}, algorithm 2", order=2),
    "dpm++3m": _multistep(2, f"{_PP}, appendix, as published: half its second difference", order=3, rule="published"),
    "dpm++3m-exact": _multistep(3, f"{_PP}, with the whole second difference", order=3, rule="exact"),
    "sde-dpm++1": _multistep(1, f"{_PP}, eq. 18", noise=1.0),
    "sde-dpm++2m": _multistep(1, f"{_PP}, eq. 19; order 1 in law", order=2, noise=1.0),
    **{
        f"deis-t{r}": _multistep(
            r + 1, f"{_DEIS}: tAB{r}", order=r + 1, form="noise", variable="t", rule="exact", short=0
        )
        for r in (1, 2, 3)
    },
    **{
        f"deis-rho{r}": _multistep(
            r + 1, f"{_DEIS}: rhoAB{r}", order=r + 1, form="noise", variable="rho", rule="exact", short=0
        )
        for r in (1, 2, 3)
    },
    **{
        f"deis-lam{r}": _multistep(
            r + 1, f"{_DEIS}, polynomial in log rho", order=r + 1, form="noise", rule="exact", short=15
        )
        for r in (1, 2)
    },
    "ipndm": _multistep(
        2, f"{_DEIS}: iPNDM, order 4 in steps that are even", order=4, form="noise", rule="fixed", short=0
    ),
    **{f"unipc-{p}": _unipc(p, "midpoint") for p in (1, 2, 3, 4)},
    **{f"unipc-{p}-bh1": _unipc(p, "bh1") for p in (1, 2, 3, 4)},
}
SOLVERS["unipc"] = SOLVERS["unipc-2"]
SOLVERS["dc"] = replace(
    SOLVERS["unipc-2"], fit=_dc, least=3, source="Zhao et al., DC-Solver, ECCV 2024, algorithm 1, on UniPC-2"
)


def solver(name: str) -> Solver:
    """The solver of a name.

    Raises:
        ValueError: an unknown name; names the nearest and all.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown;{nearest(name, SOLVERS)} Allowed: {', '.join(sorted(SOLVERS))}")
    return SOLVERS[name]
