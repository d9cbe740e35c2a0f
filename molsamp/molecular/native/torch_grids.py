"""Bicubic functions of two variables (correction maps and grid biases), as recorded operations.

E = sum_kl c_kl p_k(u) p_l(v) in the patch of (u, v), with p_k(u) = u^k inside a patch and its tangent beyond the ends
of an axis, p_k(u) = e^k + (u - e) k e^(k-1), where e is u taken into [0, 1]: so E goes on as E + E_u du + E_v dv +
E_uv du dv.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import NONE, Grids
from molsamp.molecular.native.torch_tape import Tape


class GridTables:
    """Constants of all grids on one device, (2, G, 1) for the two axes.

    Variables come in the order of their kinds, torsions | distances | none; `order` takes them to axes, `back` returns.
    """

    def __init__(self, grids: Grids, place: Callable[[np.ndarray], Tensor]):
        self.G = len(grids.kind)
        by_kind = np.argsort(grids.kind.ravel(), kind="stable")  # of axes 2 g + axis
        axes = np.arange(2 * self.G).reshape(-1, 2).T.ravel()  # all first axes, then all second axes
        position = np.argsort(by_kind)
        self.order, self.back = place(position[axes]), place(np.argsort(position[axes]))
        used = grids.kind != NONE
        size, scale = grids.size.astype(float), used / np.where(used, grids.spacing, 1)
        self.origin, self.scale = place((grids.origin * used).T), place(scale.T)
        wraps = grids.periodic.T == 1
        self.first, self.last = place(np.where(wraps, -np.inf, 0)), place(np.where(wraps, np.inf, size.T - 1))
        self.size, self.turn = place(size.T), place(wraps * size.T)  # turn: patches once round, 0 if it does not wrap
        self.most = place(size.T - 1)
        self.row, self.offset = place(grids.size[:, 1:]), place(grids.offset)[:, None]
        self.patches = place(grids.patches.reshape(-1, 16))[..., 0]

    def record(self, tape: Tape, s: Tensor) -> Tensor:
        """Adds E of the variables s (2 G, n); returns -dE/ds."""
        do, G, n = tape.do, self.G, tape.n
        slope = tape.new(2 * G)
        with tape.scratch():
            u, cell, inside = tape.new(2, G), tape.new(2, G), tape.new(2, G)
            do(torch.index_select, s, 0, self.order, out=u.view(2 * G, n))
            do(u.sub_, self.origin)
            do(u.mul_, self.scale)
            do(torch.floor, u, out=cell)
            do(torch.maximum, cell, self.first, out=cell)
            do(torch.minimum, cell, self.last, out=cell)
            do(u.sub_, cell)
            do(torch.clamp, u, 0, 1, out=inside)
            do(u.sub_, inside)  # what lies beyond the edge
            power, derivative = tape.new(4, 2, G), tape.new(4, 2, G)
            do(derivative[0].zero_)
            do(derivative[1].fill_, 1)
            do(torch.mul, inside, tape.number(2), out=derivative[2])
            do(power[0].fill_, 1)
            do(power[1].copy_, inside)
            do(torch.mul, inside, inside, out=power[2])
            do(torch.mul, power[2], inside, out=power[3])
            do(torch.mul, power[2], tape.number(3), out=derivative[3])
            do(power[1:].addcmul_, u, derivative[1:])
            c = self._coefficients(tape, cell)
            products, along = tape.new(4, 4, G), tape.new(2, 4, G)
            for p, out in ((power, along[0]), (derivative, along[1])):
                do(torch.mul, c, p[:, 1], out=products)  # c_kl p_l(v)
                do(torch.sum, products, 1, out=out)
            e, ones = tape.new(4, G), self.origin.new_ones(4 * G, 1)
            do(torch.mul, along[0], power[:, 0], out=e)
            tape.add_energy(ones, e)
            gradient = tape.new(2, G)
            for p, q, out in ((along[0], derivative[:, 0], gradient[0]), (along[1], power[:, 0], gradient[1])):
                do(torch.mul, p, q, out=e)
                do(torch.sum, e, 0, out=out)
            do(gradient.mul_, -self.scale)
            do(torch.index_select, gradient.view(2 * G, n), 0, self.back, out=slope)
        return slope

    def _coefficients(self, tape: Tape, cell: Tensor) -> Tensor:
        """c_kl (4, 4, G, n) of the patches (i, j) = cell (2, G, n)."""
        do, G, n = tape.do, self.G, tape.n
        turns = tape.new(2, G)
        do(torch.div, cell, self.size, out=turns)
        do(turns.floor_)
        do(cell.addcmul_, turns, self.turn, value=-1)
        do(cell.nan_to_num_, 0.0)  # a lost replica looks up any patch; its u is NaN
        do(cell.clamp_, min=0)
        do(torch.minimum, cell, self.most, out=cell)
        index = torch.empty(2, G, n, dtype=torch.long, device=cell.device)
        do(index.copy_, cell)
        do(index[0].mul_, self.row)
        do(index[0].add_, index[1])
        do(index[0].add_, self.offset)
        patches, c = tape.new(G, 16).view(G * n, 16), tape.new(4, 4, G)
        do(torch.index_select, self.patches, 0, index[0].view(-1), out=patches)
        do(c.copy_, patches.view(G, n, 4, 4).permute(2, 3, 0, 1))
        return c
