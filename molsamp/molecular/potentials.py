"""Toy potentials with closed-form energies and forces, in reduced units, for float32 and float64 on any device."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.energies import Energy


class DoubleWell(Energy):
    """Two wells joined by two channels of equal height.

        U(x, y) = [4 (1 - x^2 - y^2)^2 + 2 (x^2 - 2)^2 + ((x+y)^2 - 1)^2 + ((x-y)^2 - 1)^2 - 2] / 6

    Minima at (+-sqrt(5)/2, 0) with U = -1/12, saddles at (0, +-1) with U = 1. Source: arXiv 2405.19961, synthetic
    double well (also Shi et al., arXiv 2210.07237).
    """

    event = (2,)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, v = x.unbind(-1)
        ring, well, plus, minus = 1 - u**2 - v**2, u**2 - 2, (u + v) ** 2 - 1, (u - v) ** 2 - 1
        E = (4 * ring**2 + 2 * well**2 + plus**2 + minus**2 - 2) / 6
        dE_du = (-16 * u * ring + 8 * u * well + 4 * (u + v) * plus + 4 * (u - v) * minus) / 6
        dE_dv = (-16 * v * ring + 4 * (u + v) * plus - 4 * (u - v) * minus) / 6
        return E, -torch.stack([dE_du, dE_dv], dim=-1)


class MuellerBrown(Energy):
    """The Mueller-Brown surface: three minima, two saddles, a bent valley.

        U(x, y) = sum_k A_k exp[a_k (x - x_k)^2 + b_k (x - x_k)(y - y_k) + c_k (y - y_k)^2]

    Minima -146.70 at (-0.558, 1.442), -108.17 at (0.623, 0.028) and -80.77 at (-0.050, 0.467).
    Source: K. Mueller and L. D. Brown, Theoret. Chim. Acta 53, 75 (1979).
    """

    event = (2,)

    def __init__(self) -> None:
        self.A = (-200.0, -100.0, -170.0, 15.0)
        self.a = (-1.0, -1.0, -6.5, 0.7)
        self.b = (0.0, 0.0, 11.0, 0.6)
        self.c = (-10.0, -10.0, -6.5, 0.7)
        self.centre = ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0))

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        A, a, b, c = (x.new_tensor(p) for p in (self.A, self.a, self.b, self.c))
        dx, dy = (x[:, None, :] - x.new_tensor(self.centre)).unbind(-1)
        e = A * torch.exp(a * dx**2 + b * dx * dy + c * dy**2)
        dE_dx = (e * (2 * a * dx + b * dy)).sum(-1)
        dE_dy = (e * (b * dx + 2 * c * dy)).sum(-1)
        return e.sum(-1), -torch.stack([dE_dx, dE_dy], dim=-1)


class GaussianMixture(Energy):
    """A mixture of isotropic Gaussians of known weights as a Boltzmann density at one temperature.

        U(x) = -kT ln sum_k w_k N(x; c_k, sigma_k^2 1)

    so that exp(-U/kT) is normalised, and every marginal is a mixture again.

    Args:
        weights: (m,), above 0; brought to the sum 1.
        centres: (m, d).
        widths: sigma, (m,).
        kT: of the temperature.
    """

    def __init__(
        self, weights: Float[Tensor, " m"], centres: Float[Tensor, "m d"], widths: Float[Tensor, " m"], kT: float
    ):
        self.weights, self.centres, self.widths, self.kT = weights / weights.sum(), centres, widths, kT
        self.event = (centres.shape[1],)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, d = self.widths.to(x), x[:, None] - self.centres.to(x)
        log_norm = torch.log(self.weights) - self.event[0] * torch.log(self.widths * math.sqrt(2 * math.pi))
        log_p = log_norm.to(x) - 0.5 * d.square().sum(-1) / sigma**2
        share = torch.softmax(log_p, dim=-1)
        return -self.kT * torch.logsumexp(log_p, dim=-1), -self.kT * torch.einsum("nk,nkd->nd", share / sigma**2, d)


class Harmonic(Energy):
    """E = sum (k/2) (x - x0)^2 over every coordinate.

    Args:
        k: spring constant(s), kJ/mol/nm^2, a float or a tensor that broadcasts to x0.
        x0: centre, (*event), nm; its shape is the event shape.
    """

    def __init__(self, k: float | Tensor, x0: Float[Tensor, "*event"]):
        self.x0 = torch.as_tensor(x0, dtype=torch.float64)
        self.k = torch.as_tensor(k, dtype=torch.float64).expand_as(self.x0)
        self.event = tuple(self.x0.shape)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, d = self.k.to(x), x - self.x0.to(x)
        F = -k * d
        return -0.5 * (F * d).flatten(1).sum(1), F


class Quadratic(Energy):
    """E = (x - x0)^T K (x - x0) / 2 with a full stiffness matrix over the flattened coordinates.

    Its Boltzmann density is the Gaussian of mean x0 and covariance kT K^-1, so linear dynamics on it are solvable.

    Args:
        K: symmetric stiffness, (d, d), kJ/mol/nm^2, d the number of coordinates of x0.
        x0: centre, (*event), nm.
    Raises:
        ValueError: K is not a symmetric (d, d) matrix.
    """

    def __init__(self, K: Float[Tensor, "d d"], x0: Float[Tensor, "*event"]):
        self.K = torch.as_tensor(K, dtype=torch.float64)
        self.x0 = torch.as_tensor(x0, dtype=torch.float64)
        self.event = tuple(self.x0.shape)
        d = self.x0.numel()
        if self.K.shape != (d, d) or not torch.allclose(self.K, self.K.T):
            raise ValueError(f"Quadratic needs a symmetric ({d}, {d}) stiffness, got shape {tuple(self.K.shape)}")

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d = (x - self.x0.to(x)).flatten(1)
        F = -d @ self.K.to(x)
        return -0.5 * (F * d).sum(1), F.reshape(x.shape)
