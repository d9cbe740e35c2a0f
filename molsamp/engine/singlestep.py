"""Runge-Kutta integrators of diffusion models: DPM-Solver, DPM-Solver++ 2S and 3S, Heun, Kutta and the classical one.

Stages start anew in every row, from one evaluation at its beginning:

    u_j = a_j x_s + sum_(k <= j) w_jk g_k,     g_0 the evaluation at (s, x_s), g_j that at (s_j, u_j)

A row holds one x, so that x_s is taken back out of u_(j-1), which is exact since the g are still there: in terms of
what a row has, u_j = (a_j / a_(j-1)) u_(j-1) + sum_k (w_jk - a_j / a_(j-1) w_(j-1)k) g_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Evaluate, Line, Row, Table, Verb, require
from molsamp.engine.quadrature import Form, Node, total
from molsamp.engine.schedules import Schedule

Stage = tuple[Node, tuple[float, ...]]  # where it ends, weights of g_0, g_1, ... in steps from x_s
TABLEAUS: dict[str, tuple[tuple[float, tuple[float, ...]], ...]] = {  # share of the step in rho, weights
    "euler": ((1.0, (1.0,)),),
    "heun": ((1.0, (1.0,)), (1.0, (0.5, 0.5))),
    "kutta": ((0.5, (0.5,)), (1.0, (-1.0, 2.0)), (1.0, (1 / 6, 2 / 3, 1 / 6))),
    "rk4": ((0.5, (0.5,)), (0.5, (0.0, 0.5)), (1.0, (0.0, 0.0, 1.0)), (1.0, (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
}


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver of orders 1 to 3 in noise form, DPM-Solver++ S in data form; as many evaluations a row as its order.

    Order 2 looks at the middle of the step in lam, order 3 at its thirds. A row to sigma = 0 is of order 1.

    Args:
        orders: of each row; the last one goes on for rows beyond.
        form: "noise" or "data".

    Raises:
        ValueError: an order that is not 1, 2 or 3.

    Sources: Lu et al., NeurIPS 2022, algorithms 1 and 2; Lu et al., "DPM-Solver++", 2022, algorithm 1.
    """

    orders: tuple[int, ...] = (2,)
    form: Form = "noise"

    def __post_init__(self):
        if not self.orders or not set(self.orders) <= {1, 2, 3}:
            raise ValueError(f"DPM-Solver has orders 1, 2 and 3, got {self.orders}")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval.

        Raises:
            ValueError: the dynamics stores another form.
        """
        schedule = _schedule(dyn, self.form, "DPMSolver")
        table = []
        for i, (s, t) in enumerate(pairwise(Node.at(schedule, t) for t in times)):
            order = self.orders[min(i, len(self.orders) - 1)] if t.sigma > 0.0 else 1
            table.append(_row(self.form, s, t, self._stages(schedule, order, s, t)))
        return table

    def _stages(self, schedule: Schedule, order: int, s: Node, t: Node) -> list[Stage]:
        """A constant and, in order 3, a slope in lam, each integrated against the kernel of `quadrature`."""
        if order == 1:
            return [(t, (self._constant(s, t),))]
        if order == 2:
            middle = self._between(schedule, s, t, 1 / 2)
            return [(middle, (self._constant(s, middle),)), (t, (0.0, self._constant(s, t)))]
        one, two, h = self._between(schedule, s, t, 1 / 3), self._between(schedule, s, t, 2 / 3), t.lam - s.lam
        bend, last = self._slope(s, two) / (h / 3), self._slope(s, t) / (2 * h / 3)
        return [
            (one, (self._constant(s, one),)),
            (two, (self._constant(s, two) - bend, bend)),
            (t, (self._constant(s, t) - last, 0.0, last)),
        ]

    @staticmethod
    def _between(schedule: Schedule, s: Node, t: Node, share: float) -> Node:
        return Node.at(schedule, schedule.time(s.lam + share * (t.lam - s.lam)))

    def _constant(self, s: Node, t: Node) -> float:
        return total(self.form, s, t)

    def _slope(self, s: Node, t: Node) -> float:
        """int kernel (l - lam_s) dl up to t, the weight of a slope in lam."""
        h = t.lam - s.lam
        if self.form == "noise":
            return -t.sigma * (math.expm1(h) - h)
        return t.alpha * (h + math.expm1(-h))


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method for d(x / alpha) / d rho = eps, noise added before each step if asked for.

    "heun" with `churn` is algorithm 2 of Karras et al.: the noise level is first raised by a share of itself,
    min(churn / rows, sqrt(2) - 1). A row to rho = 0 is an Euler step.

    Args:
        names: of each row, "euler" (DDIM), "heun", "kutta" (order 3) or "rk4"; the last one goes on for rows beyond.
        churn: S_churn; noise is added where rho lies between `low` and `high`, its standard deviation times `swell`.

    Source: Karras et al., NeurIPS 2022; Zhang and Chen, ICLR 2023 (rhoRK).
    """

    names: tuple[str, ...] = ("heun",)
    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    swell: float = 1.0

    def __post_init__(self):
        if not self.names or not set(self.names) <= set(TABLEAUS):
            raise ValueError(f"RungeKutta knows {', '.join(TABLEAUS)}, got {', '.join(self.names)}")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval."""
        schedule = _schedule(dyn, "noise", "RungeKutta")
        more = min(self.churn / (len(times) - 1), math.sqrt(2.0) - 1.0)
        table = []
        for i, (s, t) in enumerate(pairwise(Node.at(schedule, t) for t in times)):
            first: tuple[Verb, ...] = ()
            if more > 0.0 and self.low <= s.rho <= self.high:
                raised = Node.at(schedule, schedule.time(s.lam - math.log1p(more)))
                N = self.swell * raised.alpha * s.rho * math.sqrt((1.0 + more) ** 2 - 1.0)
                first, s = (Line("x", {"x": raised.alpha / s.alpha}, (), N),), raised
            name = self.names[min(i, len(self.names) - 1)] if t.sigma > 0.0 else "euler"
            table.append(_row("noise", s, t, self._stages(schedule, name, s, t), first))
        return table

    @staticmethod
    def _stages(schedule: Schedule, name: str, s: Node, t: Node) -> list[Stage]:
        stages, d = [], t.rho - s.rho
        for share, weights in TABLEAUS[name]:
            end = t if share == 1.0 else Node.at(schedule, schedule.time(-math.log(s.rho + share * d)))
            stages.append((end, tuple(end.alpha * d * w for w in weights)))
        return stages


def _schedule(dyn: Dynamics, form: Form, name: str) -> Schedule:
    sde = require(dyn, (LinearSDE,), name)
    if sde.stores != form:
        raise ValueError(f"this {name} is in {form} form, the dynamics stores {sde.stores}")
    return sde.schedule


def _row(form: Form, s: Node, t: Node, stages: Sequence[Stage], first: tuple[Verb, ...] = ()) -> Row:
    """The stages as verbs; the history has the newest evaluation first."""
    program: list[Verb] = [*first, Evaluate(s.t)]
    a, before = 1.0, tuple[float, ...]()
    for j, (end, weights) in enumerate(stages):
        new = end.sigma / s.sigma if form == "data" else end.alpha / s.alpha
        ratio = new / a
        pairs = zip_longest(weights, before, fillvalue=0.0)
        program.append(Line("x", {"x": ratio}, tuple(w - ratio * b for w, b in pairs)[::-1]))
        if j < len(stages) - 1:
            program.append(Evaluate(end.t))
        a, before = new, weights
    return Row(s.t, t.t, tuple(program), history=0)
