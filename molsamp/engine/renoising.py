"""Steps that draw a fixed share of their noise anew, whatever their length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Evaluate, Line, Row, Table, require


@dataclass(frozen=True)
class Renoising:
    """x' = alpha' x_0 + sigma' (sqrt(1 - eta^2) eps + eta z), of order 1 in data form; a row knows its density.

    DDIM's eta (`exponential.DDIM`) shrinks with the step, so that short steps tend to the reverse SDE; this one does
    not, and many short steps forget the noise they should keep: the variance stays too small however many there are.
    It is what DDS does as published.

    Args:
        eta: in [0, 1]; 0 is DDIM without noise, 1 keeps nothing of the noise.

    Raises:
        ValueError: for eta outside.

    Source: Chung, Lee, Ye, "Decomposed diffusion sampler", ICLR 2024, its public code.
    """

    eta: float

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta of renoising is {self.eta}, it must lie in [0, 1]")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval, with one evaluation at its beginning.

        Raises:
            ValueError: for a dynamics that stores no data prediction.
        """
        sde = require(dyn, (LinearSDE,), "Renoising")
        if sde.stores != "data":
            raise ValueError(f"renoising is in data form, the dynamics stores {sde.stores}")
        table = []
        for s, t in pairwise(times):
            a_t, s_t = sde.schedule.alpha(t), sde.schedule.sigma(t)
            keep, N = math.sqrt(1.0 - self.eta**2) * s_t / sde.schedule.sigma(s), self.eta * s_t
            line = Line("x", {"x": keep}, (a_t - keep * sde.schedule.alpha(s),), N if N > 0.0 else None)
            table.append(Row(s, t, (Evaluate(s), line), history=0))
        return table
