"""Noise schedules x_t = alpha_t x_0 + sigma_t eps of diffusion and flow models, and time grids for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """alpha(t), sigma(t), half log-SNR lam(t) = log(alpha/sigma), its inverse, and the forward SDE's f and g^2."""

    def alpha(self, t: float) -> float: ...
    def sigma(self, t: float) -> float: ...
    def lam(self, t: float) -> float: ...
    def time(self, lam: float) -> float: ...
    def f(self, t: float) -> float: ...
    def g2(self, t: float) -> float: ...


@dataclass(frozen=True)
class VP:
    """Variance preserving with linear beta: log alpha = -(b1 - b0) t^2 / 4 - b0 t / 2, t in (0, 1].

    Source: Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. 33.
    """

    b0: float = 0.1
    b1: float = 20.0

    def _log_alpha(self, t: float) -> float:
        return -0.25 * (self.b1 - self.b0) * t * t - 0.5 * self.b0 * t

    def alpha(self, t: float) -> float:
        """Signal coefficient."""
        return math.exp(self._log_alpha(t))

    def sigma(self, t: float) -> float:
        """Noise coefficient, sqrt(1 - alpha^2) without cancellation."""
        return math.sqrt(-math.expm1(2.0 * self._log_alpha(t)))

    def lam(self, t: float) -> float:
        """Half log-SNR."""
        return self._log_alpha(t) - math.log(self.sigma(t))

    def time(self, lam: float) -> float:
        """The t at a half log-SNR: alpha^2 = sigmoid(2 lam), then the quadratic for t in its stable form."""
        minus_log_alpha = 0.5 * (
            math.log1p(math.exp(-2.0 * lam)) if lam > 0 else -2.0 * lam + math.log1p(math.exp(2.0 * lam))
        )
        slope = self.b1 - self.b0
        return 4.0 * minus_log_alpha / (self.b0 + math.sqrt(self.b0**2 + 4.0 * slope * minus_log_alpha))

    def f(self, t: float) -> float:
        """d log alpha / dt."""
        return -0.5 * (self.b0 + (self.b1 - self.b0) * t)

    def g2(self, t: float) -> float:
        """d sigma^2/dt - 2 f sigma^2 = beta(t)."""
        return -2.0 * self.f(t)


@dataclass(frozen=True)
class EDM:
    """Variance exploding with alpha = 1, sigma = t (Karras et al., NeurIPS 2022)."""

    def alpha(self, t: float) -> float:
        """Signal coefficient."""
        return 1.0

    def sigma(self, t: float) -> float:
        """Noise coefficient."""
        return t

    def lam(self, t: float) -> float:
        """Half log-SNR."""
        return -math.log(t)

    def time(self, lam: float) -> float:
        """The t at a half log-SNR."""
        return math.exp(-lam)

    def f(self, t: float) -> float:
        """d log alpha / dt."""
        return 0.0

    def g2(self, t: float) -> float:
        """d sigma^2 / dt."""
        return 2.0 * t


def log_snr_grid(schedule: Schedule, start: float, end: float, steps: int) -> list[float]:
    """`steps` + 1 times from `start` to `end`, equally spaced in half log-SNR."""
    a, b = schedule.lam(start), schedule.lam(end)
    inner = [schedule.time(a + (b - a) * i / steps) for i in range(1, steps)]
    return [start, *inner, end]
