"""Exponential integrators of diffusion models: DDIM, DDPM and DPM-Solver++ as one recipe for rows.

With lam = log(alpha / sigma), a model x_t = alpha_t x_0 + sigma_t eps has, from time s to t and for one constant
data prediction D in between, the exact solution

    x_t = (sigma_t / sigma_s) e^-k x_s + alpha_t (1 - e^-(h+k)) D + sigma_t sqrt(1 - e^-2k) z,    h = lam_t - lam_s.

The first factor and h alone are the probability-flow ODE; k is the further decay that the noise makes up for:
k = 0 is the ODE, k = h the time-reversed SDE. DDIM's eta lies between, by 1 - e^-2k = eta^2 (1 - e^-2h).
Order 1 takes D at s; order 2 extrapolates it in lam to the middle of the step from the evaluation before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Evaluate, Line, Row, Table, require
from molsamp.engine.schedules import Schedule


@dataclass(frozen=True)
class Exponential:
    """The recurrence above on the grid of times, one evaluation a row.

    Order 1: D = m_i. Order 2: D = m_i + h_i / (2 h_{i-1}) (m_i - m_{i-1}), with m_i the data prediction at times[i].
    The first row is of order 1, having no past; so is a row to sigma = 0, where h is infinite. A row with eta > 0 knows
    its density, a row without noise (eta = 0, or to sigma = 0) refuses `log_prob`.

    Args:
        order: 1 or 2.
        noise: DDIM's eta in [0, 1]; 0 draws nothing, 1 is the reverse SDE.
        short: the last row, too, is of order 1 in tables of fewer than `short` rows; 0 keeps order 2 everywhere.

    Raises:
        ValueError: for another order or an eta outside [0, 1].

    Sources: Song, Meng, Ermon, ICLR 2021 (DDIM, eq. 12 and 16); Lu et al., "DPM-Solver++", 2022 (2M and SDE forms,
    algorithm 2 and appendix; lower order at the end of short grids).
    """

    order: int = 1
    noise: float = 0.0
    short: int = 15

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"Exponential has order 1 or 2, not {self.order}")
        if not 0.0 <= self.noise <= 1.0:
            raise ValueError(f"noise (eta) is {self.noise}, it must lie in [0, 1]")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval, for times from noise to data; eta = 0 also runs the other way (inversion).

        Raises:
            ValueError: if two neighbouring times have the same log-SNR, the grid starts at sigma = 0, or eta > 0
                and the log-SNR falls.
        """
        schedule = require(dyn, (LinearSDE,), "Exponential").schedule
        steps = _log_snr_steps(schedule, times, falling=self.noise == 0.0)
        table = []
        for i, (s, t) in enumerate(pairwise(times)):
            h = steps[i]
            last_of_few = i == len(steps) - 1 and len(steps) < self.short
            r = h / (2.0 * steps[i - 1]) if self.order == 2 and i > 0 and math.isfinite(h) and not last_of_few else 0.0
            table.append(Row(s, t, (Evaluate(s), self._line(schedule, s, t, h, r)), history=self.order - 1))
        return table

    def _line(self, schedule: Schedule, s: float, t: float, h: float, r: float) -> Line:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        k = _noise_decay(self.noise, h)
        keep = sigma / schedule.sigma(s) * math.exp(-k)
        w = -alpha * math.expm1(-(h + k))
        N = sigma * math.sqrt(-math.expm1(-2.0 * k)) if k > 0.0 else 0.0
        weights = (w,) if r == 0.0 else (w * (1.0 + r), -w * r)
        return Line("x", {"x": keep}, weights, N if N > 0.0 else None)


def DDIM(eta: float = 0.0) -> Exponential:
    """Denoising diffusion implicit model: order 1; eta = 1 is DDPM's ancestral sampler = SDE-DPM-Solver++(1)."""
    return Exponential(order=1, noise=eta)


def DPMSolverPP2M(eta: float = 0.0, short: int = 15) -> Exponential:
    """DPM-Solver++(2M) in midpoint form; eta = 1 is SDE-DPM-Solver++(2M)."""
    return Exponential(order=2, noise=eta, short=short)


def _noise_decay(eta: float, h: float) -> float:
    """k with 1 - e^-2k = eta^2 (1 - e^-2h); apart at eta = 1, where k = h and e^-2h may be below rounding."""
    return h if eta == 1.0 else -0.5 * math.log1p(eta * eta * math.expm1(-2.0 * h)) if eta > 0.0 else 0.0


def _log_snr_steps(schedule: Schedule, times: Sequence[float], falling: bool) -> list[float]:
    """h of every interval; infinite for one that ends at sigma = 0."""
    lam = [schedule.lam(t) if schedule.sigma(t) > 0.0 else math.inf for t in times]
    for i, (a, b) in enumerate(pairwise(lam)):
        if not math.isfinite(a) or a == b or (b < a and not falling):
            wanted = "differ and begin" if falling else "rise and begin"
            raise ValueError(
                f"log-SNR goes from {a} to {b} between times[{i}] = {times[i]} and times[{i + 1}] = {times[i + 1]}; "
                f"it must {wanted} at a finite value"
            )
    return [b - a for a, b in pairwise(lam)]
