"""A prior of pictures in closed form: every patch a mixture of Gaussians of low rank, predictions of patches averaged.

A patch z of p x p pixels is its mean m_0 and a draw of sum_k w_k N(0, S_k), S_k = sum_j l_kj q_kj q_kj' + floor of the
rest; q_k0 is the constant patch, so that a mixture of the differences within a patch serves at every level of grey.
From z' = z + noise of variance v, with y = q_k.(z' - m_0), c = l + v and e = floor + v,

    r_k prop. w_k exp(-1/2 sum_j [y_j^2 (1/c_j - 1/e) + log(c_j / e)]),
    E[z | z'] = m_0 + floor / e (z' - m_0) + sum_k r_k sum_j (l_j / c_j - floor / e) y_j q_kj.

A picture's prediction is the mean over all patches that a pixel lies in: differentiable, of any size of picture, and
no exact law's. Zoran, Weiss, "From learning models of natural image patches to whole image restoration", ICCV 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from molsamp.engine import VP, Noise
from molsamp.image import Denoiser


class Patches:
    """The mixture above.

    Args:
        log_w: (K,).
        l, q: variances (K, r) and orthonormal directions (K, d, r) of every component.
        floor: variance of all other directions.
        mean: m_0, (d,).
    """

    def __init__(self, log_w: Tensor, l: Tensor, q: Tensor, floor: float, mean: Tensor):
        self.log_w, self.l, self.q, self.floor, self.mean = log_w, l, q, floor, mean
        self.side = round(q.shape[1] ** 0.5)

    @classmethod
    def fit(
        cls, pictures: Tensor, noise: Noise, *, side: int, components: int, rank: int, floor: float = 4e-4
    ) -> Patches:
        """By expectation maximisation on 15000 of the pictures' patches."""
        every = F.unfold(pictures.double(), side).transpose(1, 2).flatten(0, 1)
        z = every[noise.child("patches").uniform(0, torch.arange(len(every))).argsort()[:15000]]
        level = z.mean(1, keepdim=True)
        d, u = side**2, torch.ones(side**2, 1, dtype=torch.float64) / side
        z, eye = z - level, torch.eye(side**2, dtype=torch.float64)
        seeds = z[z.square().sum(1) > z.square().sum(1).mean()][: components - 1]
        near = (z @ F.normalize(seeds, dim=1).T).abs() / z.norm(dim=1, keepdim=True).clamp(min=1e-3)
        of = torch.where(z.norm(dim=1) < 0.1, components - 1, near.argmax(1))
        r = F.one_hot(of, components).double()
        for _ in range(12):
            share = r.sum(0) + 1e-6
            S = torch.einsum("nk,ni,nj->kij", r, z, z) / share[:, None, None] + floor * eye
            l, q = torch.linalg.eigh(S)
            y = torch.einsum("ni,kij->nkj", z, q)
            r = torch.softmax((share / len(z)).log() - 0.5 * (y.square() / l + l.log()).sum(-1), 1)
        l, q = l[:, d - rank :], q[:, :, d - rank :]
        l = torch.cat([d * level.var().expand(components, 1), l], 1)
        q = torch.cat([u.expand(components, d, 1), q], 2)
        return cls((share / len(z)).log(), l, q, floor, level.mean().expand(d))

    def to(self, dtype: torch.dtype) -> Patches:
        """Another precision."""
        return Patches(self.log_w.to(dtype), self.l.to(dtype), self.q.to(dtype), self.floor, self.mean.to(dtype))

    def denoise(self, z: Tensor, v: float) -> Tensor:
        """E[z | z'] of patches (n, d)."""
        K, d, r = self.q.shape
        q, from_mean = self.q.transpose(0, 1).reshape(d, K * r), z - self.mean
        y, c, e = (from_mean @ q).view(-1, K, r), self.l + v, self.floor + v
        odds = self.log_w - 0.5 * ((c / e).log().sum(1) + y.square().flatten(1) @ _blocks(1.0 / c - 1.0 / e))
        kept = (torch.softmax(odds, 1)[:, :, None] * ((self.l / c - self.floor / e) * y)).flatten(1)
        return self.mean + (self.floor / e) * from_mean + kept @ q.T

    def denoiser(self, side: int) -> Denoiser:
        """A model of pictures (1, side, side)."""
        count = F.fold(torch.ones(1, self.side**2, (side - self.side + 1) ** 2), (side, side), self.side)
        schedule, parts = VP(), {dtype: self.to(dtype) for dtype in (torch.float32, torch.float64)}

        def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
            alpha = schedule.alpha(t)
            z = F.unfold(x / alpha, self.side).transpose(1, 2)
            found = parts[x.dtype].denoise(z.flatten(0, 1), (schedule.sigma(t) / alpha) ** 2)
            return F.fold(found.view_as(z).transpose(1, 2), (side, side), self.side) / count

        return Denoiser(schedule, predict, (1, side, side))


def _blocks(a: Tensor) -> Tensor:
    """(K, r) -> (K r, K), the sums over each component's own."""
    K, r = a.shape
    out = a.new_zeros(K, r, K)
    out[torch.arange(K), :, torch.arange(K)] = a
    return out.view(K * r, K)
