"""Moves of paths by ViBiDSampler, as Gaussian kernels whose density is known: q(x' | x) = N(x'; m + M (x - m), S).

A move noises the frames of a path up to a level, draws new ends from what the model of paths expects of them there,
alternates a few rows down between the model that starts at the one end and, run backwards, that which starts at the
other (`engine.alternating`), and draws what is below the last level given both ends. On a Gaussian model every piece
is affine, so M and S follow by carrying vectors through the rows of the engine, without sampling. The alternation is a
heuristic and leaves no law invariant; with its density a Metropolis test does.

Source: Yang et al., "ViBiDSampler", ICLR 2025; the noising of a present path, the ends and the density are ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.alternating import Alternating, Condition, Pinned, Reversal
from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.guides import Chain
from molsamp.engine.integrators import step
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Particles
from molsamp.molecular.paths.gaussian import FrameModel, GaussMarkov


def turns(model: FrameModel, first: Float[Tensor, "n d"], last: Float[Tensor, "n d"]) -> Alternating:
    """Rows between ends, of their own for every path: a step from the first, a step backwards from the last."""
    reversal, back = Reversal(), model.backwards
    ahead = Condition(lambda x, t: model.onward(x, t, first))
    behind = Condition(reversal.of(lambda x, t: back.onward(x, t, last)))
    return Alternating(Chain((ahead, Pinned(-1, last))), Chain((behind, Pinned(0, first))))


class Move:
    """One kernel on whole paths.

    Args:
        chain: the model of paths.
        level: noise in the units of the paths.
        rows: of the alternation.
        floor: share of the level at which it ends.
    """

    def __init__(self, chain: GaussMarkov, level: float, rows: int, floor: float):
        self.chain, self.model = chain, chain.frames
        self.levels = [level * floor ** (k / max(1, rows)) for k in range(rows + 1)]
        self.M, self.root = self._moments()

    def propose(self, x: Float[Tensor, "n F d"], z: Float[Tensor, "n G d"], fine: Tensor) -> Float[Tensor, "n F d"]:
        """x' of the kernel.

        Args:
            x: paths, every frame.
            z, fine: standard normals for every `stride`-th frame and, (n, C, stride, d), for those between.
        """
        y = (x - self.chain.mean)[:, :: self.chain.stride]
        new = y.flatten(1) @ self.M + z.flatten(1) @ self.root
        return self.chain.mean + self.chain.fill(new.view_as(y), fine)

    def log_prob(self, x: Float[Tensor, "n F d"], to: Float[Tensor, "n F d"]) -> Float[Tensor, " n"]:
        """log q(to | x) in nats, but for a constant."""
        old, new = x - self.chain.mean, to - self.chain.mean
        s = self.chain.stride
        miss = new[:, ::s].flatten(1) - old[:, ::s].flatten(1) @ self.M
        z = torch.linalg.solve_triangular(self.root, miss, upper=True, left=False)
        return self.chain.log_fill(new) - 0.5 * z.square().sum(1)

    # ---------------------------------------------------------------- the moments

    def _moments(self) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D D"]]:
        """(M, R), deviations as rows: y' = y M + z R with R upper triangular, S = R^T R.

        What is carried is the frames beside their new ends, D + 2 d numbers: images of unit vectors, and vectors whose
        squares add up to the covariance.
        """
        model, D, e = self.model, self.model.F * self.model.d, 2 * self.model.d
        eye, top = torch.eye(D, dtype=model.precision.dtype), self.levels[0]
        W = model.posterior(top, ())[0]
        ends = torch.cat([W[:, : model.d], W[:, D - model.d :]], 1)
        drawn = torch.linalg.cholesky(torch.cat([ends[: model.d], ends[D - model.d :]])).T
        M = torch.cat([eye, ends / top**2], 1)
        R = torch.cat([top * M, torch.cat([eye.new_zeros(e, D), drawn], 1)])
        for s, t in zip(self.levels, self.levels[1:], strict=False):
            M, R = self._row(M, R, s, t)
        W, B, r, k = model.posterior(self.levels[-1], (0, model.F - 1))
        last = eye.new_zeros(D + e, D)
        last[r[:, None], r], last[D:, r] = W / self.levels[-1] ** 2, B
        last[D:, k] = torch.eye(e, dtype=eye.dtype)
        fresh = eye.new_zeros(len(r), D)
        fresh[:, r] = torch.linalg.cholesky(W).T
        return M @ last, _triangular(torch.cat([R @ last, fresh]))

    def _row(self, M: Tensor, R: Tensor, s: float, t: float) -> tuple[Tensor, Tensor]:
        """Both through one row of the alternation, which adds its own noise to R."""
        model, D = self.model, self.model.F * self.model.d
        carried = torch.cat([M, R, M.new_zeros(D, M.shape[1])])
        z = torch.zeros_like(carried[:, :D])
        z[-D:] = torch.eye(D, dtype=M.dtype)
        first, last = carried[:, D:].chunk(2, 1)
        sde = LinearSDE(EDM(), model.denoise)
        (row,) = turns(model, first, last).rows(sde, [s, t])
        x, z = (a.view(-1, model.F, model.d) for a in (carried[:, :D], z))
        x = step(row, sde, Particles.at(x), z)[0].x.flatten(1)
        after = torch.cat([x, carried[:, D:]], 1)
        return after[: len(M)], _triangular(after[len(M) :])


def _triangular(rows: Float[Tensor, "k D"]) -> Float[Tensor, "D D"]:
    """R, upper triangular, with R^T R the sum of the squares of the rows."""
    return torch.linalg.cholesky(rows.T @ rows).T
