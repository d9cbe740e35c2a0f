"""Windows: harmonic biases around the points of a mesh, each as the spline that the native rollouts know.

    V_i(s) = sum_a S_ia(s_a),   S_ia the cubic spline through kT wrap(s_a - c_ia)^2 / (2 sigma_a^2) at even nodes

A spline through a sum over the axes is the sum of the splines, so energies in all windows cost one axis at a time.
Half a period away from a centre, where the harmonic has a kink, the spline is smooth; it is V wherever V is meant.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import CV, wrap
from molsamp.molecular.grids import Grid
from molsamp.molecular.native.splines import patches

NODES = 4  # of the splines in a standard deviation of a window


class Visit(NamedTuple):
    """A window, and where its walkers come from: an earlier window, or the state of that number if there is none."""

    window: int
    parent: int | None
    source: int


class Windows:
    """n windows along each axis of a grid, evenly spaced, the last axis running fastest.

    Args:
        cvs: of the bias.
        grid: whose ranges are covered.
        n: along each axis.
        width: standard deviation sigma of a harmonic over the distance of two centres.
        kT: kJ/mol.
        event: shape of one configuration.
    """

    def __init__(self, cvs: Sequence[CV], grid: Grid, n: int, width: float, kT: float, event: tuple[int, ...]):
        self.cvs, self.kT, self.event, self.shape = tuple(cvs), kT, event, (n,) * len(grid.shape)
        between = [(hi - lo) / n for lo, hi in grid.ranges]
        axes = [lo + d * (np.arange(n) + 0.5) for (lo, _), d in zip(grid.ranges, between, strict=True)]
        self.centres = np.array(list(itertools.product(*axes)))
        wraps = grid.periodic
        ranges = [  # one more distance on both sides of an open axis, so that the harmonics at its ends are whole
            (lo, hi) if wrap else (lo - d, hi + d)
            for (lo, hi), d, wrap in zip(grid.ranges, between, wraps, strict=True)
        ]
        self.sigma = [width * d for d in between]
        cells = [math.ceil(NODES * (hi - lo) / s) for (lo, hi), s in zip(ranges, self.sigma, strict=True)]
        shape = tuple(N if wrap else N + 1 for N, wrap in zip(cells, wraps, strict=True))
        self.grid = Grid(grid.names, grid.period, tuple(ranges), shape)
        self._values = [self._harmonics(axis, centres) for axis, centres in enumerate(axes)]
        self._tables = [
            torch.from_numpy(np.stack([patches(V, (wrap,))[:, :, 0] for V in values]))
            for values, wrap in zip(self._values, wraps, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.centres)

    def _harmonics(self, axis: int, centres: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n N"]:
        off = torch.from_numpy(self.grid.nodes(axis) - centres[:, None])
        away = wrap(off[..., None], self.grid.period[axis : axis + 1])[..., 0].numpy()
        return 0.5 * self.kT * (away / self.sigma[axis]) ** 2

    def bias(self, window: int) -> GridBias:
        """V of one window."""
        place = np.unravel_index(window, self.shape)
        V = [values[i] for values, i in zip(self._values, place, strict=True)]
        return GridBias(self.cvs, V[0] if len(V) == 1 else np.add.outer(*V), self.grid.ranges, self.event)

    def reduced(self, s: Float[Tensor, "n k"]) -> Float[Tensor, "n K"]:
        """V / kT of all windows at CV values, the same splines as `bias`."""
        along = []
        for axis, table in enumerate(self._tables):
            patch, basis = self.grid.place(s[:, axis].double(), axis)
            along.append(torch.einsum("inc,nc->ni", table[:, patch], basis) / self.kT)
        return along[0] if len(along) == 1 else (along[0][:, :, None] + along[1][:, None, :]).flatten(1)

    def visits(self, sources: Sequence[Float[Tensor, " k"]]) -> list[Visit]:
        """All windows by breadth-first search from the ones nearest to the sources, in their order."""
        found: dict[int, Visit] = {}
        for number, s in enumerate(sources):
            off = wrap(torch.from_numpy(self.centres) - s, self.grid.period)
            nearest = int((off / torch.tensor(self.sigma, dtype=torch.float64)).square().sum(1).argmin())
            found.setdefault(nearest, Visit(nearest, None, number))
        queue = deque(found.values())
        while queue:
            visit = queue.popleft()
            for window in self.beside(visit.window):
                if window not in found:
                    found[window] = Visit(window, visit.window, visit.source)
                    queue.append(found[window])
        return list(found.values())

    def beside(self, window: int) -> list[int]:
        """The next windows along each axis."""
        place, found = np.unravel_index(window, self.shape), []
        for axis, step in itertools.product(range(len(self.shape)), (-1, 1)):
            there = [int(i) + step * (a == axis) for a, i in enumerate(place)]
            if self.grid.periodic[axis]:
                there[axis] %= self.shape[axis]
            if 0 <= there[axis] < self.shape[axis]:
                found.append(int(np.ravel_multi_index(there, self.shape)))
        return found

    def name(self, window: int) -> str:
        """The centre in words."""
        return "(" + ", ".join(f"{a:.3g}" for a in self.centres[window]) + ")"
