"""Windows: harmonic biases around the points of a mesh, each as the spline that the native rollouts know.

    V_i(s) = sum_a S_ia(s_a),   S_ia the cubic spline through kT wrap(s_a - c_ia)^2 / (2 sigma_a^2) at even nodes

A spline through a sum over the axes is the sum of the splines, so energies in all windows cost one axis at a time.
Half a period away from a centre, where the harmonic has a kink, the spline is smooth; it is V wherever V is meant.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import CV, wrap
from molsamp.molecular.grids import Grid
from molsamp.molecular.native.splines import patches

NODES = 4  # of the splines in a standard deviation of a window


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
        self.which = np.arange(len(self.centres))  # numbers on the mesh, the last axis running fastest
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
        return len(self.which)

    def only(self, which: Sequence[int]) -> Windows:
        """Some of the windows, by their numbers on the mesh and in this order."""
        some = copy.copy(self)
        some.which = np.array(which)
        some.centres = self.centres[which]
        return some

    def _harmonics(self, axis: int, centres: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n N"]:
        off = torch.from_numpy(self.grid.nodes(axis) - centres[:, None])
        away = wrap(off[..., None], self.grid.period[axis : axis + 1])[..., 0].numpy()
        return 0.5 * self.kT * (away / self.sigma[axis]) ** 2

    def bias(self, window: int) -> GridBias:
        """V of the window of that number."""
        place = np.unravel_index(window, self.shape)
        V = [values[i] for values, i in zip(self._values, place, strict=True)]
        return GridBias(self.cvs, V[0] if len(V) == 1 else np.add.outer(*V), self.grid.ranges, self.event)

    def reduced(self, s: Float[Tensor, "n k"]) -> Float[Tensor, "n K"]:
        """V / kT of all windows at CV values, the same splines as `bias`."""
        along = []
        for axis, table in enumerate(self._tables):
            patch, basis = self.grid.place(s[:, axis].double(), axis)
            along.append(torch.einsum("inc,nc->ni", table[:, patch], basis) / self.kT)
        place = [torch.from_numpy(p) for p in np.unravel_index(self.which, self.shape)]
        return torch.stack([u[:, p] for u, p in zip(along, place, strict=True)]).sum(0)

    def nearest(self, s: Float[Tensor, " k"]) -> int:
        """The number of the window whose centre is nearest, in standard deviations."""
        off = wrap(torch.from_numpy(self.centres) - s, self.grid.period)
        return int(self.which[int((off / torch.tensor(self.sigma, dtype=torch.float64)).square().sum(1).argmin())])

    def beside(self, window: int) -> list[int]:
        """Numbers of the next windows of the mesh along each axis."""
        place, found = np.unravel_index(window, self.shape), []
        for axis, step in itertools.product(range(len(self.shape)), (-1, 1)):
            there = [int(i) + step * (a == axis) for a, i in enumerate(place)]
            if self.grid.periodic[axis]:
                there[axis] %= self.shape[axis]
            if 0 <= there[axis] < self.shape[axis]:
                found.append(int(np.ravel_multi_index(there, self.shape)))
        return found

    def name(self, place: int) -> str:
        """The centre of the window at this place of the list, in words."""
        return "(" + ", ".join(f"{a:.3g}" for a in self.centres[place]) + ")"
