"""Gaussian mixtures: diffusion models whose prediction, density and (for one Gaussian) flow are known exactly.

If x_0 ~ sum_k w_k N(m_k, S_k) then x_t = alpha x_0 + sigma eps is the mixture of N(alpha m_k, C_k) with
C_k = alpha^2 S_k + sigma^2 I, and the ideal denoiser follows in closed form.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.noise import Noise
from molsamp.engine.schedules import Schedule


class GaussianMixture:
    """sum_k w_k N(m_k, S_k) in d dimensions, float64.

    Args:
        means: m_k, (K, d).
        covs: S_k, (K, d, d), or the variances of isotropic components, (K,); zero makes a point mass.
        weights: w_k, (K,), normalised here; equal unless given.

    Raises:
        ValueError: for shapes that do not fit, a negative weight or a covariance that is not positive semidefinite.
    """

    def __init__(
        self,
        means: Float[Tensor, "K d"],
        covs: Float[Tensor, "K *dd"],
        weights: Float[Tensor, " K"] | None = None,
    ):
        K, d = means.shape
        self.means = means.double()
        w = torch.ones(K) if weights is None else weights
        eye = torch.eye(d, dtype=torch.float64)
        self.covs = covs.double()[:, None, None] * eye if covs.dim() == 1 else covs.double()
        if self.covs.shape != (K, d, d):
            raise ValueError(f"covs have shape {tuple(covs.shape)}, allowed are ({K},) and ({K}, {d}, {d})")
        if not bool((w >= 0).all()) or not float(w.sum()) > 0:
            raise ValueError(f"mixture weights must be non-negative with a positive sum, got {w.tolist()}")
        self.log_w = (w.double() / w.double().sum()).log()
        self._l, self._Q = torch.linalg.eigh(self.covs)  # S_k = Q_k diag(l_k) Q_k^T
        if float(self._l.min()) < -1e-12 * float(self._l.abs().max()):
            raise ValueError(f"a covariance has the negative eigenvalue {float(self._l.min()):.3g}")
        self._l = self._l.clamp(min=0.0)

    def marginal(self, schedule: Schedule, t: float) -> GaussianMixture:
        """The law of x_t: means alpha m_k, covariances alpha^2 S_k + sigma^2 I."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        eye = torch.eye(self.means.shape[1], dtype=torch.float64)
        return GaussianMixture(alpha * self.means, alpha**2 * self.covs + sigma**2 * eye, self.log_w.exp())

    def log_density(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """log of the mixture's density, nats; it does not exist for point masses."""
        return torch.logsumexp(self._log_joint(self._eigenframe(x, self.means), self._l), 1)

    def denoise(self, schedule: Schedule, x: Float[Tensor, "n d"], t: float) -> Float[Tensor, "n d"]:
        """E[x_0 | x_t] = sum_k r_k [m_k + alpha S_k C_k^-1 (x - alpha m_k)], r the responsibilities; dtype of x."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        y = self._eigenframe(x, alpha * self.means)
        c = alpha**2 * self._l + sigma**2
        r = torch.softmax(self._log_joint(y, c), 1)
        m = self.means + alpha * torch.einsum("kij,nkj->nki", self._Q, self._l / c * y)
        return torch.einsum("nk,nki->ni", r, m).to(x)

    def sde(self, schedule: Schedule) -> LinearSDE:
        """The diffusion model of this mixture with its ideal denoiser."""
        return LinearSDE(schedule, lambda x, t: self.denoise(schedule, x, t))

    def flow_map(self, schedule: Schedule, s: float, t: float, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Exact solution of the probability flow from time s to t for one Gaussian.

        x_t = alpha_t m + C_t^(1/2) C_s^(-1/2) (x_s - alpha_s m).

        Raises:
            ValueError: for more than one component.
        """
        if len(self.means) != 1:
            raise ValueError(f"the flow is known in closed form for one Gaussian, not for {len(self.means)}")
        a_s, a_t = schedule.alpha(s), schedule.alpha(t)
        c_s, c_t = (a * a * self._l + schedule.sigma(u) ** 2 for a, u in ((a_s, s), (a_t, t)))
        y = (c_t / c_s).sqrt() * self._eigenframe(x, a_s * self.means)
        return (a_t * self.means + torch.einsum("kij,nkj->nki", self._Q, y)[:, 0]).to(x)

    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Mean and covariance."""
        w = self.log_w.exp()
        mean = w @ self.means
        from_mean = self.means - mean
        return mean, torch.einsum("k,kij->ij", w, self.covs) + torch.einsum("k,ki,kj->ij", w, from_mean, from_mean)

    def sample(self, n: int, noise: Noise, step: int = 0) -> Float[Tensor, "n d"]:
        """n independent draws, keyed by (noise, step, 0..n-1)."""
        ids = torch.arange(n)
        edges, u = self.log_w.exp().cumsum(0)[:-1], noise.uniform(step, ids).contiguous()
        k = torch.searchsorted(edges, u, right=True)
        z = noise.normal(step, ids, (self.means.shape[1],))
        return self.means[k] + torch.einsum("nij,nj->ni", self._Q[k], self._l[k].sqrt() * z)

    def _eigenframe(self, x: Tensor, centres: Tensor) -> Float[Tensor, "n K d"]:
        """x - centre_k in the eigenvectors of S_k, which are those of every C_k."""
        return torch.einsum("kji,nkj->nki", self._Q, x.double()[:, None] - centres)

    def _log_joint(self, y: Float[Tensor, "n K d"], c: Float[Tensor, "K d"]) -> Float[Tensor, "n K"]:
        """log w_k N(y; 0, diag c_k)."""
        return self.log_w - 0.5 * ((y**2 / c) + c.log() + math.log(2.0 * math.pi)).sum(-1)
