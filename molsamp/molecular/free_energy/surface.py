"""Free energies with errors from weighted samples: F(s) = -kT log p(s), and differences between regions.

The samples come in B independent blocks (walkers, or pieces of a trajectory longer than its memory). With H_b(c) the
weight that block b has in cell c, H = sum_b H_b and W the sum over all cells, p(c) = H(c) / W is a ratio of means, and

    var log p(c) = B / (B - 1) sum_b (H_b(c) / H(c) - W_b / W)^2

to first order (linearised ratio estimator, e.g. Cochran, Sampling Techniques, 1977, section 6): whatever correlation
there is inside a block is accounted for, and between cells too when regions are added up. Intervals are Student's, with
as many degrees of freedom as there are effective blocks in the rarer term, less one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.estimates import Estimate, student95
from molsamp.molecular.grids import Grid

RESOLVED = 8.0  # effective blocks in a cell, below which its error is not known


@dataclass(frozen=True)
class Surface:
    """F at the nodes of a grid, kJ/mol, least value 0.

    Args:
        grid: its nodes.
        F: inf where there was no sample, *shape.
        error: standard error of F against the free energy of all space; inf where it is not known.
        half: half the 95 % interval.
    """

    grid: Grid
    F: Float[np.ndarray, "*N"]
    error: Float[np.ndarray, "*N"]
    half: Float[np.ndarray, "*N"]

    def deviation(self, other: Float[np.ndarray, "*N"], below: float) -> float:
        """Mean absolute difference to another F over the cells below a free energy, after the best constant, kJ/mol."""
        with np.errstate(invalid="ignore"):
            d = (self.F - other)[below > self.F]
        d = d[np.isfinite(d)]
        return float(np.abs(d - np.median(d)).mean()) if len(d) else math.nan


@dataclass(frozen=True)
class Histogram:
    """Weights of samples in cells, block by block.

    Args:
        grid: cells around its nodes.
        kT: kJ/mol.
        weight: H_b(c), (B, M), all relative to one constant.
        square: sum of squared weights of all samples in all cells.
        count: samples.
    """

    grid: Grid
    kT: float
    weight: Float[Tensor, "B M"]
    square: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, grid: Grid, kT: float, blocks: int) -> Histogram:
        """No samples yet."""
        return cls(grid, kT, torch.zeros(blocks, math.prod(grid.shape), dtype=torch.float64))

    def add(self, s: Float[Tensor, "T B k"], logw: Float[Tensor, "T B"]) -> Histogram:
        """With T more samples in each block, of log weights in nats; samples outside the grid are left out."""
        T, B, k = s.shape
        cell = self.grid.cell(s.reshape(-1, k)).view(T, B)
        w = torch.where(cell >= 0, logw.double().exp(), 0.0)
        more = torch.zeros_like(self.weight).scatter_add_(1, cell.clamp(min=0).T, w.T)
        square, count = float((w**2).sum()), int((cell >= 0).sum())
        return Histogram(self.grid, self.kT, self.weight + more, self.square + square, self.count + count)

    def to_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"weight": self.weight, "sums": torch.tensor([self.square, self.count], dtype=torch.float64)}

    def restored(self, state: dict[str, Tensor]) -> Histogram:
        """On the same grid with the samples of a checkpoint."""
        square, count = state["sums"].tolist()
        return Histogram(self.grid, self.kT, state["weight"], square, int(count))

    @cached_property
    def ess(self) -> float:
        """Kish effective number of samples, correlations not counted."""
        return float(self.weight.sum()) ** 2 / self.square if self.square else 0.0

    def surface(self) -> Surface:
        """F(s) at the nodes."""
        shape = self.grid.shape
        F, error, half = (a.reshape(shape) for a in self._of(self.weight))
        F = F + self.kT * math.log(self.grid.volume)
        return Surface(self.grid, F - F[np.isfinite(F)].min(), error, half)

    def profile(self, axis: int) -> Surface:
        """F of one CV alone, the other summed over."""
        g = self.grid
        along = self.weight.view(-1, *g.shape)
        along = along if len(g.shape) == 1 else along.sum(2 - axis)
        F, error, half = self._of(along)
        return Surface(g.alone(axis), F - F[np.isfinite(F)].min(), error, half)

    def difference(self, a: Bool[np.ndarray, "*N"], b: Bool[np.ndarray, "*N"]) -> Estimate:
        """F_B - F_A = -kT log(P(B) / P(A)) of two sets of cells, kJ/mol; NaN where too few blocks have seen both.

        Blocks that have seen one alone know nothing of the ratio: it would be that of where they started.
        """
        inside = [self.weight[:, torch.from_numpy(m.reshape(-1))].sum(1) for m in (a, b)]
        total = [float(h.sum()) for h in inside]
        if self.crossings(a, b) < min(RESOLVED, 0.5 * len(self.weight)):
            return Estimate(math.nan, (-math.inf, math.inf), "kJ/mol", self.count, self.ess)
        value = -self.kT * math.log(total[1] / total[0])
        shares = torch.stack([h / t for h, t in zip(inside, total, strict=True)], 1)
        half = self.kT * float(_half(shares[:, 1:], shares[:, 0])[1][0])
        return Estimate(value, (value - half, value + half), "kJ/mol", self.count, self.ess)

    def crossings(self, a: Bool[np.ndarray, "*N"], b: Bool[np.ndarray, "*N"]) -> int:
        """Blocks that have samples in both sets of cells."""
        seen = [(self.weight[:, torch.from_numpy(m.reshape(-1))] > 0).any(1) for m in (a, b)]
        return int((seen[0] & seen[1]).sum())

    def _of(self, weight: Float[Tensor, "B M"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-kT log p, its standard error and half interval for columns of weights against all weight."""
        total = weight.sum(0)
        F = -self.kT * torch.log(total / total.sum())
        error, half = _half(weight / total, weight.sum(1) / total.sum())
        return F.numpy(), self.kT * error.numpy(), self.kT * half.numpy()


def _half(shares: Float[Tensor, "B M"], against: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Standard error of log(sum h / sum g) and half its interval from the blocks' shares h_b / h and g_b / g."""
    B = len(shares)
    error = ((shares - against[:, None]).square().sum(0) * (B / max(B - 1, 1))).sqrt()
    blocks = 1.0 / shares.square().sum(0)
    known = (blocks >= min(RESOLVED, 0.5 * B)) & (B > 1)
    error = torch.where(known, error, math.inf)
    freedom = torch.where(known, blocks.round() - 1, 1).clamp(min=1)
    quantile = torch.tensor([student95(int(nu)) for nu in freedom.tolist()], dtype=torch.float64)
    return error, error * quantile


def free_energy(
    s: Float[Tensor, "T B k"], logw: Float[Tensor, "T B"] | None = None, *, grid: Grid, kT: float
) -> Surface:
    """F(s) of samples from B independent walkers, with errors.

    Args:
        s: CV values at T times.
        logw: log weights in nats, 0 unless given: V(s)/kT for samples drawn under a bias V.
        grid: where F is wanted.
        kT: kJ/mol.
    """
    logw = torch.zeros(s.shape[:2], dtype=torch.float64) if logw is None else logw
    return Histogram.empty(grid, kT, s.shape[1]).add(s, logw - logw.max()).surface()
