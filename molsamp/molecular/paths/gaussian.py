"""A Gaussian model of paths, fitted frame by frame: the only model of films whose every condition has a closed form.

    x_0 ~ N(m_0, P),    x_{k+1} = x_k + b_k + B_k x_k + sqrt(v) z,    v = 2 kT h the noise of the dynamics

Paths that are given to cross are Markov too, with another drift, of which b and B keep what is linear; the noise, and
with it all that is rough in a path, is right from the start. Every `stride`-th frame is a `FrameModel`, dense; the
frames between have the law of the chain given their neighbours (`fill`), cheap however many they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 1 / 15  # rows on either side that are fitted together, as a share of all


class Moments(NamedTuple):
    """Sums over paths: their number, the frames, and products of (x_k, 1) with itself and with x_{k+1} - x_k."""

    paths: Float[Tensor, ""]
    x: Float[Tensor, "F d"]
    first: Float[Tensor, "d d"]
    uu: Float[Tensor, "F-1 d+1 d+1"]
    yu: Float[Tensor, "F-1 d d+1"]

    @classmethod
    def of(cls, x: Float[Tensor, "F M d"]) -> Moments:
        """Those of M paths, float64."""
        x = x.double()
        u = torch.cat([x[:-1], torch.ones_like(x[:-1, :, :1])], 2)
        products = (torch.einsum("fmi,fmj->fij", a, u) for a in (u, x.diff(dim=0)))
        return cls(x.new_tensor(float(x.shape[1])), x.sum(1), x[0].T @ x[0], *products)

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of paths."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class GaussMarkov:
    """The chain above; paths are deviations from its mean, (n, F, d), float64.

    Args:
        mean: m, (F, d).
        P: covariance of the first frame.
        A: 1 + B, (F - 1, d, d).
        variance: v.
        stride: rows between two frames of the `FrameModel`; divides F - 1.
    """

    mean: Float[Tensor, "F d"]
    P: Float[Tensor, "d d"]
    A: Float[Tensor, "rows d d"]
    variance: float
    stride: int

    @classmethod
    def fit(cls, seen: Moments, variance: float, stride: int) -> GaussMarkov:
        """Regression of steps on where they begin, over a window of rows, with one path more that does not drift.

        The window (`WINDOW`) is what keeps a model of n rows from being fitted to the noise of a few hundred paths; the
        path more keeps B defined, and the first frame free to move, however few or alike the others are.
        """
        n, d, rows = seen.paths, seen.x.shape[1], len(seen.uu)
        k, w = torch.arange(rows), round(WINDOW * rows)
        near = ((k[:, None] - k).abs() <= w).to(n)
        uu, yu = (torch.einsum("kl,lij->kij", near, a) for a in (seen.uu, seen.yu))
        slope = torch.linalg.solve(uu + variance * torch.eye(d + 1, dtype=n.dtype), yu, left=False)
        A, b, m = torch.eye(d, dtype=n.dtype) + slope[..., :d], slope[..., d], [seen.x[0] / n]
        for j in range(rows):
            m.append(A[j] @ m[j] + b[j])
        spread = seen.uu[:, range(d), range(d)].sum(0) / (n * rows) - (seen.x[:-1].sum(0) / (n * rows)).square()
        P = seen.first / n - torch.outer(m[0], m[0]) + torch.diag(spread) / n
        return cls(torch.stack(m), P, A, variance, stride)

    # ---------------------------------------------------------------- stretches of `stride` rows

    @cached_property
    def _stretches(self) -> Float[Tensor, "C stride d d"]:
        return self.A.view(-1, self.stride, *self.A.shape[1:])

    @cached_property
    def _spreads(self) -> Float[Tensor, "C stride d d"]:
        """Covariance of each frame of a stretch, given the frame before the stretch: Q' = A Q A^T + v."""
        A, noise = self._stretches, self.variance * torch.eye(self.A.shape[1], dtype=self.A.dtype)
        Q = [noise.expand_as(A[:, 0])]
        for j in range(1, self.stride):
            Q.append(A[:, j] @ Q[-1] @ A[:, j].transpose(1, 2) + noise)
        return torch.stack(Q, 1)

    @cached_property
    def _onwards(self) -> Float[Tensor, "C stride d d"]:
        """What takes each frame of a stretch to its last: A_{s-1} .. A_{j+1}."""
        A = self._stretches
        to_last = [torch.eye(A.shape[-1], dtype=A.dtype).expand_as(A[:, 0])]
        for j in range(self.stride - 1, 0, -1):
            to_last.append(to_last[-1] @ A[:, j])
        return torch.stack(to_last[::-1], 1)

    @cached_property
    def _jumps(self) -> tuple[Float[Tensor, "C d d"], Float[Tensor, "C d d"]]:
        """A and Q^(-1/2) of whole stretches."""
        whiten = torch.linalg.inv(torch.linalg.cholesky(self._spreads[:, -1]))
        return self._onwards[:, 0] @ self._stretches[:, 0], whiten

    @cached_property
    def frames(self) -> FrameModel:
        """The marginal of every `stride`-th frame."""
        jumps, whiten = self._jumps
        root = torch.block_diag(torch.linalg.inv(torch.linalg.cholesky(self.P)), *whiten)
        d = len(self.P)
        for c, block in enumerate(-whiten @ jumps):
            root[(c + 1) * d : (c + 2) * d, c * d : (c + 1) * d] = block
        return FrameModel(root.T @ root, len(jumps) + 1)

    def fill(self, y: Float[Tensor, "n G d"], z: Float[Tensor, "n C stride d"]) -> Float[Tensor, "n F d"]:
        """All frames, given every `stride`-th: the free chain from each, brought to the next by regression.

        Args:
            y: the frames that are given.
            z: standard normals.
        """
        A, Q, on = self._stretches, self._spreads, self._onwards
        x, free = y[:, :-1], []
        for j in range(self.stride):
            x = torch.einsum("cij,ncj->nci", A[:, j], x) + self.variance**0.5 * z[:, :, j]
            free.append(x)
        miss = y[:, 1:] - x
        gain = torch.linalg.solve(Q[:, -1:], Q @ on.transpose(2, 3), left=False)
        whole = torch.stack(free, 2) + torch.einsum("cjik,nck->ncji", gain, miss)
        whole[:, :, -1] = y[:, 1:]
        return torch.cat([y[:, :1], whole.flatten(1, 2)], 1)

    def log_fill(self, y: Float[Tensor, "n F d"]) -> Float[Tensor, " n"]:
        """log density of the frames between, given every `stride`-th, but for a constant."""
        jumps, whiten = self._jumps
        frames = y[:, :: self.stride]
        rough = (y[:, 1:] - torch.einsum("fij,nfj->nfi", self.A, y[:, :-1])) / self.variance**0.5
        jumped = torch.einsum(
            "cij,ncj->nci", whiten, frames[:, 1:] - torch.einsum("cij,ncj->nci", jumps, frames[:, :-1])
        )
        return 0.5 * (jumped.square().sum((1, 2)) - rough.square().sum((1, 2)))


class FrameModel:
    """N(0, precision^-1) over deviations of F frames of d coordinates, and what is expected of noised ones.

    A denoiser that knows no condition (`denoise`), and one that knows the first frame (`onward`): a model of how paths
    go on. `backwards` is the same of paths run in reverse, which by reversibility are paths between the other two
    states: the end is a first frame of theirs.
    """

    def __init__(self, precision: Float[Tensor, "D D"], frames: int):
        self.precision, self.F, self.d = precision, frames, len(precision) // frames
        self.posterior = cache(self._posterior)

    @cached_property
    def spread(self) -> float:
        """Root of the mean variance of a coordinate."""
        return float(torch.linalg.inv(self.precision).diagonal().mean().sqrt())

    def _posterior(self, t: float, held: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W, -P_rk W, r, k): of coordinates r, given the frames `held`, coordinates k, and y + t z.

        E[y_r] = W (y_r + t z_r) / t^2 - W P_rk y_k,    Cov = W = (P_rr + 1 / t^2)^-1.
        """
        index = torch.arange(self.F * self.d).view(self.F, self.d)
        k = index[list(held)].flatten()
        r = index.flatten()[~torch.isin(index.flatten(), k)]
        W = torch.linalg.inv(self.precision[r][:, r] + torch.eye(len(r), dtype=self.precision.dtype) / t**2)
        return W, -self.precision[k][:, r] @ W, r, k

    def expect(self, y: Float[Tensor, "n F d"], t: float, held: dict[int, Tensor]) -> Float[Tensor, "n F d"]:
        """E[path | y = path + t z, frames held], the frames held in their place."""
        W, B, r, k = self.posterior(t, tuple(held))
        flat, out = y.flatten(1), torch.empty_like(y).flatten(1)
        out[:, r] = flat[:, r] @ W / t**2
        if held:
            out[:, k] = torch.cat(list(held.values()), 1)
            out[:, r] += out[:, k] @ B
        return out.view_as(y)

    def denoise(self, y: Float[Tensor, "n F d"], t: float) -> Float[Tensor, "n F d"]:
        """E[path | y]."""
        return self.expect(y, t, {})

    def onward(self, y: Float[Tensor, "n F d"], t: float, first: Float[Tensor, "n d"]) -> Float[Tensor, "n F d"]:
        """E[path | y, its first frame]."""
        return self.expect(y, t, {0: first})

    @cached_property
    def backwards(self) -> FrameModel:
        """The model of the same paths in reverse."""
        P = self.precision.view(self.F, self.d, self.F, self.d)
        return FrameModel(P.flip(0, 2).reshape_as(self.precision), self.F)
