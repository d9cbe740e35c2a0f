"""Noise schedules x_t = alpha_t x_0 + sigma_t eps of diffusion and flow models.

With lam = log(alpha / sigma), the half log-SNR, and rho = sigma / alpha = exp(-lam), every model below is the same
ordinary differential equation d(x / alpha) / d rho = eps; schedules differ in which time names which rho, and in scale.
Sampling runs from `start`, where nearly all is noise, to `end`, where nearly none is.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """alpha(t), sigma(t), half log-SNR lam(t), its inverse, the forward SDE's f and g^2, and both ends of sampling."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    def alpha(self, t: float) -> float: ...
    def sigma(self, t: float) -> float: ...
    def lam(self, t: float) -> float: ...
    def time(self, lam: float) -> float: ...
    def f(self, t: float) -> float: ...
    def g2(self, t: float) -> float: ...


class Preserving(ABC):
    """alpha^2 + sigma^2 = scale^2 of sigma alone: what schedules told by log alpha have in common."""

    scale: float = 1.0

    @abstractmethod
    def log_alpha(self, t: float) -> float:
        """log alpha, falling in t from 0."""

    @abstractmethod
    def time_of(self, minus_log_alpha: float) -> float:
        """The inverse of -`log_alpha`."""

    def alpha(self, t: float) -> float:
        """Signal coefficient."""
        return math.exp(self.log_alpha(t))

    def sigma(self, t: float) -> float:
        """Noise coefficient, scale sqrt(1 - alpha^2) without cancellation."""
        return self.scale * math.sqrt(-math.expm1(2.0 * self.log_alpha(t)))

    def lam(self, t: float) -> float:
        """Half log-SNR."""
        return self.log_alpha(t) - math.log(self.sigma(t))

    def time(self, lam: float) -> float:
        """The t at a half log-SNR: alpha^2 = sigmoid(2 (lam + log scale)), without cancellation at either end."""
        lam = lam + math.log(self.scale)
        if lam > 0:
            return self.time_of(0.5 * math.log1p(math.exp(-2.0 * lam)))
        return self.time_of(-lam + 0.5 * math.log1p(math.exp(2.0 * lam)))

    def g2(self, t: float) -> float:
        """d sigma^2/dt - 2 f sigma^2 = -2 f scale^2."""
        return -2.0 * self.scale**2 * self.f(t)

    @abstractmethod
    def f(self, t: float) -> float:
        """d log alpha / dt."""


@dataclass(frozen=True)
class VP(Preserving):
    """Variance preserving with linear beta: log alpha = -(b1 - b0) t^2 / 4 - b0 t / 2, t in (0, 1].

    Source: Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. 33.
    """

    b0: float = 0.1
    b1: float = 20.0
    start = 1.0
    end = 1e-3

    def log_alpha(self, t: float) -> float:
        """log alpha."""
        return -0.25 * (self.b1 - self.b0) * t * t - 0.5 * self.b0 * t

    def time_of(self, minus_log_alpha: float) -> float:
        """The quadratic for t in its stable form."""
        slope = self.b1 - self.b0
        return 4.0 * minus_log_alpha / (self.b0 + math.sqrt(self.b0**2 + 4.0 * slope * minus_log_alpha))

    def f(self, t: float) -> float:
        """d log alpha / dt = -beta / 2."""
        return -0.5 * (self.b0 + (self.b1 - self.b0) * t)


@dataclass(frozen=True)
class Cosine(Preserving):
    """Variance preserving with alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), t in (0, 1).

    Sampling begins at t = 0.9946, beyond which beta was capped (Nichol and Dhariwal, ICML 2021, eq. 17; continuous as
    in Lu et al. 2022).
    """

    s: float = 0.008
    start = 0.9946
    end = 1e-3

    def _angle(self, t: float) -> float:
        return 0.5 * math.pi * (t + self.s) / (1.0 + self.s)

    def log_alpha(self, t: float) -> float:
        """log alpha = log cos a - log cos a_0; near t = 0 by cos a / cos a_0 = 1 - 2 sin(..) sin(..) / cos a_0."""
        a, b = self._angle(t), self._angle(0.0)
        return math.log1p(-2.0 * math.sin(0.5 * (a + b)) * math.sin(0.5 * (a - b)) / math.cos(b))

    def time_of(self, minus_log_alpha: float) -> float:
        """From the angle whose cosine is alpha cos a_0."""
        angle = math.acos(math.exp(-minus_log_alpha) * math.cos(self._angle(0.0)))
        return 2.0 * (1.0 + self.s) * angle / math.pi - self.s

    def f(self, t: float) -> float:
        """d log alpha / dt."""
        return -0.5 * math.pi / (1.0 + self.s) * math.tan(self._angle(t))


@dataclass(frozen=True)
class Discrete(Preserving):
    """A DDPM of N steps: log alpha_i = sum log(1 - beta) / 2 at t = i = 0 .. N - 1, linear in between.

    The kinks between nodes cap the order of every solver near 2: measure orders on `VP`.

    Args:
        betas: "linear" from low to high, or "scaled-linear", linear in sqrt(beta) (Stable Diffusion).
        low, high: the first and last beta.
        N: steps of the model.

    Source: Ho, Jain and Abbeel, NeurIPS 2020.
    """

    betas: Literal["linear", "scaled-linear"] = "linear"
    low: float = 1e-4
    high: float = 2e-2
    N: int = 1000
    end = 0.0

    @property
    def start(self) -> float:
        """The last index."""
        return self.N - 1.0

    @cached_property
    def table(self) -> list[float]:
        """-log alpha at the nodes, rising."""
        root = self.betas == "scaled-linear"
        ends = [math.sqrt(b) if root else b for b in (self.low, self.high)]
        total, nodes = 0.0, []
        for i in range(self.N):
            beta = ends[0] + (ends[1] - ends[0]) * i / (self.N - 1)
            total -= 0.5 * math.log1p(-(beta * beta if root else beta))
            nodes.append(total)
        return nodes

    def log_alpha(self, t: float) -> float:
        """log alpha."""
        i = min(max(int(t), 0), self.N - 2)
        return -(self.table[i] + (t - i) * (self.table[i + 1] - self.table[i]))

    def time_of(self, minus_log_alpha: float) -> float:
        """By search in the table."""
        i = min(max(bisect.bisect_right(self.table, minus_log_alpha) - 1, 0), self.N - 2)
        return i + (minus_log_alpha - self.table[i]) / (self.table[i + 1] - self.table[i])

    def f(self, t: float) -> float:
        """d log alpha / dt, per index."""
        i = min(max(int(t), 0), self.N - 2)
        return self.table[i] - self.table[i + 1]


@dataclass(frozen=True)
class MeanReverting(Preserving):
    """dx = theta (mu - x) dt + scale sqrt(2 theta) dW, told for x - mu.

    alpha = exp(-int theta), sigma^2 = scale^2 (1 - alpha^2).

    Args:
        theta: "constant", "linear" (rising from 0) or "cosine" (int theta ~ 1 - cos(pi t / 2)).
        scale: the stationary standard deviation, in units of x.
        final: alpha at t = 1.

    Source: Luo et al., "Image restoration with mean-reverting SDEs", ICML 2023.
    """

    theta: Literal["constant", "linear", "cosine"] = "cosine"
    scale: float = 0.5
    final: float = 0.005
    start = 1.0
    end = 0.02

    def log_alpha(self, t: float) -> float:
        """log alpha."""
        share = {"constant": t, "linear": t * t, "cosine": 2.0 * math.sin(0.25 * math.pi * t) ** 2}[self.theta]
        return math.log(self.final) * share

    def time_of(self, minus_log_alpha: float) -> float:
        """The inverse of each."""
        share = -minus_log_alpha / math.log(self.final)
        if self.theta == "cosine":
            return 4.0 / math.pi * math.asin(math.sqrt(0.5 * share))
        return share if self.theta == "constant" else math.sqrt(share)

    def f(self, t: float) -> float:
        """-theta."""
        slope = {"constant": 1.0, "linear": 2.0 * t, "cosine": 0.5 * math.pi * math.sin(0.5 * math.pi * t)}[self.theta]
        return math.log(self.final) * slope


@dataclass(frozen=True)
class EDM:
    """Variance exploding with alpha = 1, sigma = t (Karras et al., NeurIPS 2022)."""

    start: float = 80.0
    end: float = 0.002

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


@dataclass(frozen=True)
class Flow:
    """Rectified flow on straight lines, alpha = 1 - t, sigma = t, data at t = 0 (Liu, Gong and Liu, ICLR 2023).

    At t = 1 nothing of the data is left; sampling begins a little below, where lam is finite.
    """

    start: float = 0.999
    end: float = 1e-3

    def alpha(self, t: float) -> float:
        """Signal coefficient."""
        return 1.0 - t

    def sigma(self, t: float) -> float:
        """Noise coefficient."""
        return t

    def lam(self, t: float) -> float:
        """Half log-SNR."""
        return math.log1p(-t) - math.log(t)

    def time(self, lam: float) -> float:
        """The t at a half log-SNR: sigmoid(-lam)."""
        return 1.0 / (1.0 + math.exp(lam)) if lam < 0 else math.exp(-lam) / (1.0 + math.exp(-lam))

    def f(self, t: float) -> float:
        """d log alpha / dt."""
        return -1.0 / (1.0 - t)

    def g2(self, t: float) -> float:
        """d sigma^2/dt - 2 f sigma^2 = 2 t / (1 - t)."""
        return 2.0 * t / (1.0 - t)
