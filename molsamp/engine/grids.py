"""Time grids of samplers: where between noise and data a solver evaluates its model."""

from __future__ import annotations

import math
from typing import Literal, get_args

from molsamp.engine.schedules import EDM, VP, Discrete, Schedule

Kind = Literal["uniform", "quadratic", "log-snr", "karras"]
POWER = 7.0  # of rho in Karras' grid


def usual(schedule: Schedule) -> Kind:
    """The grid on which solvers err least at 5 to 20 calls: quadratic where beta is linear, Karras' for EDM, else even.

    Chosen on exact and trained models of digits (128 noises that score nothing).
    """
    if isinstance(schedule, EDM):
        return "karras"
    return "quadratic" if isinstance(schedule, VP | Discrete) else "uniform"


def time_grid(
    kind: str, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None
) -> list[float]:
    """`steps` + 1 falling times, evenly spaced in t, sqrt(t), half log-SNR, or rho^(1/7) (Karras et al. 2022, eq. 5).

    Where sigma vanishes at the end, the log-SNR and Karras grids reach the schedule's own end in one step less, and the
    last step goes all the way.

    Args:
        kind: one of `Kind`.
        schedule: gives log-SNR, and both ends unless given.
        steps: intervals, 1 or more.
        start, end: times.

    Raises:
        ValueError: an unknown kind, no step, or ends in the wrong order.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"grid {kind!r} is unknown; allowed are {', '.join(get_args(Kind))}")
    if steps < 1:
        raise ValueError(f"a grid needs one step or more, got {steps}")
    start, end = schedule.start if start is None else start, schedule.end if end is None else end
    if not start > end >= 0.0:
        raise ValueError(f"a grid runs from its start down to its end, got {start:g} to {end:g}")
    if kind in ("log-snr", "karras") and schedule.sigma(end) == 0.0:
        return [start, end] if steps == 1 else [*time_grid(kind, schedule, steps - 1, start), end]
    there, back = {
        "uniform": (lambda t: t, lambda u: u),
        "quadratic": (math.sqrt, lambda u: u * u),
        "log-snr": (schedule.lam, schedule.time),
        "karras": (lambda t: math.exp(-schedule.lam(t) / POWER), lambda u: schedule.time(-POWER * math.log(u))),
    }[kind]
    a, b = there(start), there(end)
    return [start, *(back(a + (b - a) * i / steps) for i in range(1, steps)), end]
