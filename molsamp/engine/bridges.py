"""Driftless base processes dX = sigma_t dW on [0, 1], their bridges, and the Schroedinger bridge of two Gaussians.

With kappa_{t|s} the integral of sigma^2 from s to t, and g = kappa_{t|0} / kappa_{1|0},

    X_t | X_0       ~ N(X_0, kappa_{t|0})
    X_t | X_0, X_1  ~ N((1 - g) X_0 + g X_1, g (1 - g) kappa_{1|0}).

A sampler steers the base by a control, dX = sigma_t^2 c dt + sigma_t dW. Its prediction of the end is
D = x + kappa_{1|t} c, and a step on which D is held is the base bridge to it: the same recurrence as that of a
variance-exploding diffusion model at noise level kappa_{1|t}^(1/2). So samplers run on `LinearSDE(EDM(), D)`, and the
base process is no more than a clock: it says at which noise levels steps are taken and losses are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Base(Protocol):
    """A driftless process on [0, 1]."""

    def sigma(self, t: float) -> float: ...
    def left(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EDMBase:
    """sigma_t = [(1 - t) smax^(1/rho) + t smin^(1/rho)]^rho, after the noise levels of Karras et al. (2022).

    Args:
        smin, smax: noise at t = 1 and t = 0, in units of x.
        rho: how early the noise falls.
    """

    smin: float
    smax: float
    rho: float = 3.0

    def sigma(self, t: float) -> float:
        """Coefficient of dW."""
        return float(self._root(torch.tensor(t, dtype=torch.float64)) ** self.rho)

    def left(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """kappa_{1|t} = (sigma_t^(2 + 1/rho) - smin^(2 + 1/rho)) / ((2 rho + 1) (smax^(1/rho) - smin^(1/rho))).

        Near t = 1 the difference of powers loses its digits; there a^p - b^p is b^p expm1(p log1p(a/b - 1)).
        """
        p, low = 2.0 * self.rho + 1.0, self.smin ** (1.0 / self.rho)
        span = self.smax ** (1.0 / self.rho) - low
        return low**p * torch.expm1(p * torch.log1p((1.0 - t.double()) * span / low)) / (p * span)

    def _root(self, t: Tensor) -> Tensor:
        return (1.0 - t) * self.smax ** (1.0 / self.rho) + t * self.smin ** (1.0 / self.rho)


@dataclass(frozen=True)
class VEBase:
    """sigma_t = smin (smax / smin)^(1 - t) (2 log(smax / smin))^(1/2), geometric (Song et al. 2021)."""

    smin: float
    smax: float

    def sigma(self, t: float) -> float:
        """Coefficient of dW."""
        ratio = self.smax / self.smin
        return self.smin * ratio ** (1.0 - t) * math.sqrt(2.0 * math.log(ratio))

    def left(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """kappa_{1|t} = smin^2 ((smax / smin)^(2 (1 - t)) - 1)."""
        return self.smin**2 * torch.expm1(2.0 * (1.0 - t.double()) * math.log(self.smax / self.smin))


def noise_levels(base: Base, steps: int) -> list[float]:
    """kappa_{1|t}^(1/2) at `steps` + 1 even times from 0 to 1; the last is 0."""
    return base.left(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)).sqrt().tolist()


def bridge(
    x0: Float[Tensor, "n *event"],
    x1: Float[Tensor, "n *event"],
    left: Float[Tensor, " n"],
    total: float,
    z: Float[Tensor, "n *event"],
) -> Float[Tensor, "n *event"]:
    """X_t given both ends: x1 + (1 - g) (x0 - x1) + (g (1 - g) kappa_{1|0})^(1/2) z, with 1 - g = left / total.

    Args:
        x0, x1: the ends.
        left: kappa_{1|t} of each.
        total: kappa_{1|0}.
        z: standard normals.
    """
    rest = (left / total).to(x1.dtype).view(-1, *[1] * (x1.dim() - 1))
    return x1 + rest * (x0 - x1) + ((1.0 - rest) * rest * total).sqrt() * z


@dataclass(frozen=True)
class GaussianBridge:
    """The Schroedinger bridge from N(0, a2) to N(0, b2) along a base of total variance kappa, per coordinate.

    The optimal coupling has Cov(X_0, X_1) = c with c^2 + kappa c = a2 b2 (Bunne et al., AISTATS 2023, in one
    dimension); the corrector is h(x) = (c / b2 - 1) x / kappa, and the control u / sigma = -q x / (1 + q kappa_{1|t})
    with q = 1 / b2 + (c / b2 - 1) / kappa.
    """

    a2: float
    b2: float
    kappa: float

    @property
    def covariance(self) -> float:
        """Cov(X_0, X_1)."""
        return 0.5 * (math.sqrt(self.kappa**2 + 4.0 * self.a2 * self.b2) - self.kappa)

    @property
    def corrector(self) -> float:
        """Slope of h."""
        return (self.covariance / self.b2 - 1.0) / self.kappa

    def control(self, left: float) -> float:
        """Slope of u / sigma where kappa_{1|t} = left."""
        q = 1.0 / self.b2 + self.corrector
        return -q / (1.0 + q * left)
