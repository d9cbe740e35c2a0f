"""Grid: evenly spaced nodes over the values of one or two collective variables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Nodes on each axis: N on a periodic one, node k at lo + k (hi - lo)/N; else N at lo, ..., hi.

    Args:
        names: one an axis.
        period: of each CV, None where it has none.
        ranges: (lo, hi) in the CV's units; one whole period on a periodic axis.
        shape: nodes on each axis, 2 or more.
    Raises:
        ValueError: the four do not fit each other; names the CV.
    """

    names: tuple[str, ...]
    period: tuple[float | None, ...]
    ranges: tuple[tuple[float, float], ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.period) == len(self.ranges) == len(self.shape):
            raise ValueError(f"a grid over {self.names} needs a range and a number of nodes for each CV")
        for name, period, (lo, hi), N in zip(self.names, self.period, self.ranges, self.shape, strict=True):
            if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
                raise ValueError(f"CV {name!r}: a range is (lo, hi) with lo < hi, got ({lo}, {hi})")
            if period is not None and not math.isclose(hi - lo, period, rel_tol=1e-9):
                raise ValueError(f"CV {name!r}: the range of a periodic CV is one period, {period}; got ({lo}, {hi})")
            if N < 2:
                raise ValueError(f"CV {name!r}: a grid needs at least 2 nodes on each axis, got {N}")

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis wraps."""
        return tuple(period is not None for period in self.period)

    @property
    def patches(self) -> list[int]:
        """Intervals between nodes, along each axis."""
        return [N if wraps else N - 1 for N, wraps in zip(self.shape, self.periodic, strict=True)]

    @property
    def spacing(self) -> list[float]:
        """Distance of two nodes, along each axis."""
        return [(hi - lo) / n for (lo, hi), n in zip(self.ranges, self.patches, strict=True)]

    @property
    def volume(self) -> float:
        """What one node stands for."""
        return math.prod(self.spacing)

    def nodes(self, axis: int) -> Float[np.ndarray, " N"]:
        """Where the nodes of an axis are."""
        return self.ranges[axis][0] + self.spacing[axis] * np.arange(self.shape[axis])

    def alone(self, axis: int) -> Grid:
        """The grid of one axis."""
        one = slice(axis, axis + 1)
        return Grid(self.names[one], self.period[one], self.ranges[one], self.shape[one])

    def points(self) -> Float[np.ndarray, "M k"]:
        """All nodes, the last axis running fastest."""
        mesh = np.meshgrid(*(self.nodes(axis) for axis in range(len(self.shape))), indexing="ij")
        return np.stack([a.ravel() for a in mesh], -1)

    def place(self, s: Float[Tensor, " n"], axis: int) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 4"]]:
        """Patch of each value along an axis, and 1, u, u^2, u^3 in it; beyond the ends the tangents of these."""
        n = self.patches[axis]
        t = (s - self.ranges[axis][0]) / self.spacing[axis]
        if self.periodic[axis]:
            t = t - n * torch.floor(t / n)
        edge = t.clamp(0, n)
        patch = edge.detach().floor().long().clamp(0, n - 1)  # NaN stays in u
        u, beyond = edge - patch, t - edge
        return patch, torch.stack([torch.ones_like(u), u + beyond, u * (u + 2 * beyond), u**2 * (u + 3 * beyond)], 1)

    def cell(self, s: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
        """Number of the nearest node as `points` counts them; -1 beyond half a spacing from the last, or for NaN."""
        cell, inside = torch.zeros(len(s), dtype=torch.int64), torch.ones(len(s), dtype=torch.bool)
        for axis, N in enumerate(self.shape):
            k = torch.round((s[:, axis].double() - self.ranges[axis][0]) / self.spacing[axis])
            if self.periodic[axis]:
                k = torch.remainder(k, N)
            within = (k >= 0) & (k < N)
            inside &= within
            cell = cell * N + torch.where(within, k, 0).long()
        return torch.where(inside, cell, -1)
