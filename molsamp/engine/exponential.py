"""Exponential multistep integrators of diffusion models: DDIM, DPM-Solver++, DEIS, iPNDM, UniPC and their SDE forms.

A row evaluates the model once, at its beginning, and carries x over its interval by the exact exponential of the linear
part and a polynomial through the newest evaluations (see `quadrature`). With a corrector that evaluation is used twice:
first the step before is mended by what the model says at its end,

    x_i <- x_i + sum_k (c_k - p_k) g_k,

c_k the weights with that evaluation among the nodes, p_k those that predicted x_i (UniC of Zhao et al. 2023); then the
next step is predicted. The evaluation stays the one at the predicted x: no call is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal, get_args

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Coefficient, Evaluate, Line, Mix, Row, Table, Verb, require
from molsamp.engine.quadrature import Form, Node, Variable, lagrange, total
from molsamp.engine.schedules import Schedule

Rule = Literal["exact", "midpoint", "bh1", "published", "fixed"]
ADAMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
ALWAYS = 1 << 30


@dataclass(frozen=True)
class Exponential:
    """The recurrence above on the grid of times, one evaluation a row.

    The first rows are of lower order, having no past; a row to sigma = 0 is of order 1. A row with noise knows its
    density; one without (the ODE, or to sigma = 0) refuses `log_prob`.

    Args:
        order: evaluations that predict a step, 1 or more.
        noise: DDIM's eta in [0, 1]; 0 draws nothing, 1 is the reverse SDE.
        short: tables of fewer than `short` rows lower their order towards the end, the last row being of order 1.
        form: "data" or "noise": what the evaluations are, see `LinearSDE.stores`.
        variable: the polynomial's, "lam", "rho" or "t".
        rule: weights. "exact" integrates the polynomial. Two shortcuts that published codes take where the order is 2
            (and 1 in a corrector): "midpoint" (DPM-Solver++ 2M, bh2 of UniPC) and "bh1". "published" is "midpoint" with
            the second difference of order 3 halved, as DPM-Solver++ 3M is written: its order is 2. "fixed": those of
            Adams and Bashforth for even steps, in noise form (iPNDM).
        corrects: order of the corrector as UniC counts it (it takes one evaluation more); 0 for none.
        mixes: of each row, weights that replace its evaluation by a mixture of itself and earlier ones, newest first,
            before it predicts (DC-Solver, DualFast); they add up to 1.

    Raises:
        ValueError: for an order, eta, rule or form outside of these.

    Sources: Song, Meng, Ermon, ICLR 2021 (DDIM, eq. 12 and 16); Lu et al., "DPM-Solver++", 2022 (algorithm 2 and
    appendix); Zhang and Chen, ICLR 2023 (DEIS, iPNDM); Zhao et al., NeurIPS 2023 (UniPC, algorithms 1 and 2).
    """

    order: int = 1
    noise: float = 0.0
    short: int = 15
    form: Form = "data"
    variable: Variable = "lam"
    rule: Rule = "midpoint"
    corrects: int = 0
    mixes: tuple[tuple[Coefficient, ...], ...] = ()

    def __post_init__(self):
        if self.order < 1 or self.corrects < 0:
            raise ValueError(f"order is 1 or more and corrects 0 or more, got {self.order} and {self.corrects}")
        if not 0.0 <= self.noise <= 1.0:
            raise ValueError(f"noise (eta) is {self.noise}, it must lie in [0, 1]")
        for name, value, kind in (
            ("form", self.form, Form),
            ("variable", self.variable, Variable),
            ("rule", self.rule, Rule),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}, allowed are {', '.join(get_args(kind))}")
        if self.rule == "fixed" and (self.form != "noise" or self.order > len(ADAMS) or self.corrects):
            raise ValueError(f"fixed weights are for noise form, order {len(ADAMS)} at most and no corrector")
        if self.form == "noise" and 0.0 < self.noise < 1.0:
            raise ValueError(f"noise form takes eta 0 or 1, got {self.noise}")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval, for times from noise to data; eta = 0 also runs the other way (inversion).

        Raises:
            ValueError: if two neighbouring times have the same log-SNR, the grid starts at sigma = 0, eta > 0
                and the log-SNR falls, or the dynamics stores another form.
        """
        sde = require(dyn, (LinearSDE,), "Exponential")
        if sde.stores != self.form:
            raise ValueError(f"this Exponential is in {self.form} form, the dynamics stores {sde.stores}")
        schedule, steps = sde.schedule, len(times) - 1
        nodes = [Node.at(schedule, t) for t in times]
        _check_log_snr(nodes, falling=self.noise == 0.0)
        table, before = [], tuple[float, ...]()
        for i, (s, t) in enumerate(pairwise(nodes)):
            program: list[Verb] = [Evaluate(s.t)]
            if self.corrects and i > 0:
                program.append(self._correction(schedule, nodes[: i + 1], steps - i, before))
            if i < len(self.mixes):
                program.append(Mix(self.mixes[i]))
            order = min(self.order, i + 1, steps - i if steps < self.short else self.order)
            c = self._share(t.lam - s.lam)
            before = self._weights(schedule, t, nodes[i + 1 - order : i + 1][::-1], c)
            program.append(self._line(s, t, c, before))
            table.append(Row(s.t, t.t, tuple(program), history=self.depth - 1))
        return table

    @property
    def depth(self) -> int:
        """Evaluations that a row looks at."""
        return max(self.order, self.corrects + 1, *(len(mix) for mix in self.mixes), 1)

    def _share(self, h: float) -> float:
        """c of `quadrature` from 1 - e^(-2 c h) = eta^2 (1 - e^(-2 h)); apart at eta = 1, where h may be infinite."""
        if self.noise in (0.0, 1.0):
            return self.noise
        return -0.5 * math.log1p(self.noise**2 * math.expm1(-2.0 * h)) / h

    def _line(self, s: Node, t: Node, c: float, weights: tuple[float, ...]) -> Line:
        """The step from s to t by what is stored."""
        h = t.lam - s.lam
        if self.form == "data":
            decay = c * h if c > 0.0 else 0.0
            keep, N = t.sigma / s.sigma * math.exp(-decay), t.sigma * math.sqrt(-math.expm1(-2.0 * decay))
        else:
            keep, N = t.alpha / s.alpha, t.sigma * math.sqrt(c * math.expm1(2.0 * h)) if c > 0.0 else 0.0
        return Line("x", {"x": keep}, weights, N if N > 0.0 else None)

    def _weights(self, schedule: Schedule, t: Node, nodes: Sequence[Node], c: float) -> tuple[float, ...]:
        """Of the evaluations at `nodes`, newest first, for a step to t from the newest."""
        order, s = len(nodes), nodes[0]
        whole, h = total(self.form, s, t, c), t.lam - s.lam
        if order == 1 or not math.isfinite(h):
            return (whole,)
        if self.rule == "fixed":
            return tuple(whole * a for a in ADAMS[order - 1])
        if order == 2 and self.rule != "exact":
            w = 0.5 * self._bend(whole, t, h, c) * h / (nodes[1].lam - s.lam)  # 0 where that node tells nothing
            return whole - w, w
        found = lagrange(self.form, schedule, s, t, nodes, c, self.variable)
        if order == 3 and self.rule == "published":
            linear = self._taylor(schedule, t, nodes, c)
            return tuple(0.5 * (a + b) for a, b in zip(found, linear, strict=True))
        return tuple(found)

    def _bend(self, whole: float, t: Node, h: float, c: float) -> float:
        """B(h) of the shortcuts: that of bh2 is the sum of all weights, that of bh1 its first order in h."""
        if self.rule != "bh1":
            return whole
        return (1.0 + c) * h * (t.alpha if self.form == "data" else -t.sigma)

    def _taylor(self, schedule: Schedule, t: Node, nodes: Sequence[Node], c: float) -> list[float]:
        """Order 3 with its second difference left out: the slope at s of the parabola, integrated along its tangent."""
        s = nodes[0]
        a, b, d = (node.lam for node in nodes)
        if not math.isfinite(d):
            return lagrange(self.form, schedule, s, t, nodes, c, self.variable)
        slope = lagrange(self.form, schedule, s, t, nodes[:2], c)[1] * (b - a)  # weight of d/dlam at s
        at_b, at_d = (d - a) / ((b - a) * (d - b)), -(b - a) / ((d - a) * (d - b))
        return [total(self.form, s, t, c) - slope * (at_b + at_d), slope * at_b, slope * at_d]

    def _correction(self, schedule: Schedule, nodes: Sequence[Node], left: int, before: tuple[float, ...]) -> Line:
        """x at the last of `nodes` mended by the evaluation there; newest first, so `before` is shifted by one."""
        s, t = nodes[-2:]
        steps = len(nodes) - 1 + left
        order = min(self.corrects, len(nodes) - 1, left + 1 if steps < self.short else self.corrects)
        c = self._share(t.lam - s.lam)
        if order == 1 and self.rule != "exact":
            whole = total(self.form, s, t, c)
            w = 0.5 * self._bend(whole, t, t.lam - s.lam, c)
            found = [w, whole - w]
        else:
            found = lagrange(self.form, schedule, s, t, nodes[-order - 1 :][::-1], c, self.variable)
        pairs = zip_longest(found, (0.0, *before), fillvalue=0.0)
        return Line("x", {"x": 1.0}, tuple(a - b for a, b in pairs))


def DDIM(eta: float = 0.0) -> Exponential:
    """Denoising diffusion implicit model: order 1; eta = 1 is DDPM's ancestral sampler = SDE-DPM-Solver++(1)."""
    return Exponential(order=1, noise=eta)


def DPMSolverPP2M(eta: float = 0.0, short: int = 15) -> Exponential:
    """DPM-Solver++(2M) in midpoint form; eta = 1 is SDE-DPM-Solver++(2M)."""
    return Exponential(order=2, noise=eta, short=short)


def _check_log_snr(nodes: Sequence[Node], falling: bool) -> None:
    """The log-SNR of a grid must change in every interval, and rise unless it may fall."""
    for i, (a, b) in enumerate(pairwise(nodes)):
        if a.lam == math.inf or a.lam == b.lam or (b.lam < a.lam and not falling):
            wanted = "differ and begin" if falling else "rise and begin"
            raise ValueError(
                f"log-SNR goes from {a.lam} to {b.lam} between times[{i}] = {a.t} and times[{i + 1}] = {b.t}; "
                f"it must {wanted} below infinity"
            )
