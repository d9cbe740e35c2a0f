"""Sums over pairs of atoms, the one operation that equivariant networks share.

    (Y_l * x)_i = sum_j Y_l(r_ij) (sum_k w_ck e_k(|r_ij|)) x_jc,        r_ij = y_i - y_j, j != i,

with spherical harmonics Y_l of the direction and a radial basis e_k that a cosine takes smoothly to zero at the
cutoff. The filter is linear in e_k, so the sum over all pairs of a small molecule is one matrix product a frame
(`AllPairs`); for larger ones `Neighbours` sends messages along the edges of a radius graph. Both give the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Harmonics = Callable[[int, Float[Tensor, "*n 3"]], Float[Tensor, "*n m"]]


@runtime_checkable
class Pairs(Protocol):
    """The pairs of a batch of frames."""

    def sum(self, l: int, x: Float[Tensor, "n A C"], w: Float[Tensor, "C K"]) -> Float[Tensor, "n A m C"]:
        """sum_j Y_l(r_ij) (sum_k w_ck e_k) x_jc, m = 2 l + 1."""


class Radial(nn.Module):
    """e_k(r) = exp(-(r - r_k)^2 / D^2) (1 + cos(pi r / r_c)) / 2 below the cutoff r_c; r_k = D, 2 D, .., K D = r_c.

    Args:
        cutoff: r_c, nm.
        size: K.
    """

    centres: Tensor

    def __init__(self, cutoff: float, size: int):
        super().__init__()
        self.cutoff, self.size = cutoff, size
        self.register_buffer("centres", torch.arange(1, size + 1) * (cutoff / size), persistent=False)

    def forward(self, r: Float[Tensor, "*n"]) -> Float[Tensor, "*n K"]:
        """The basis at distances r, nm."""
        gauss = torch.exp(-(((r[..., None] - self.centres) * (self.size / self.cutoff)) ** 2))
        return gauss * (0.5 + 0.5 * torch.cos(math.pi * (r / self.cutoff).clamp(max=1.0)))[..., None]


def vector_harmonics(l: int, unit: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n m"]:
    """Y_0 = 1 and Y_1 = the unit vector."""
    return unit if l == 1 else torch.ones_like(unit[..., :1])


class AllPairs:
    """Every pair of every frame, as matrices G_l (A m, A K) with one product a frame.

    Args:
        y: positions, (n, A, 3), nm.
        radial: the basis.
        harmonics: (l, unit vectors) -> Y_l.
    """

    def __init__(self, y: Float[Tensor, "n A 3"], radial: Radial, harmonics: Harmonics):
        r = y[:, :, None] - y[:, None]
        itself = torch.eye(y.shape[1]).to(y)
        length = (r.square().sum(-1) + itself).sqrt()  # 1 instead of 0 on the diagonal, which the mask takes out
        self.unit, self.harmonics = r / length[..., None], harmonics
        self.basis = radial(length) * (1.0 - itself)[..., None]
        self.matrices: dict[int, Tensor] = {}

    def sum(self, l: int, x: Float[Tensor, "n A C"], w: Float[Tensor, "C K"]) -> Float[Tensor, "n A m C"]:
        """See `Pairs`."""
        if l not in self.matrices:
            Y = self.harmonics(l, self.unit)
            G = Y.transpose(2, 3)[..., None] * self.basis[:, :, None]  # n, A, m, A, K
            self.matrices[l] = G.flatten(3).flatten(1, 2)
        spread = x[:, :, None, :] * w.T  # n, A, K, C
        return (self.matrices[l] @ spread.flatten(1, 2)).view(*x.shape[:2], 2 * l + 1, -1)


class Neighbours:
    """Pairs within the cutoff, as the edges of one graph that holds every frame (arguments as in `AllPairs`)."""

    def __init__(self, y: Float[Tensor, "n A 3"], radial: Radial, harmonics: Harmonics):
        self.edges = _edges(y.detach(), radial.cutoff)
        flat = y.flatten(0, 1)
        source, target = self.edges
        r = flat[target] - flat[source]
        length = r.square().sum(-1).sqrt()
        self.unit, self.harmonics, self.basis = r / length[:, None], harmonics, radial(length)

    def sum(self, l: int, x: Float[Tensor, "n A C"], w: Float[Tensor, "C K"]) -> Float[Tensor, "n A m C"]:
        """See `Pairs`."""
        out = _messages()(self.edges, x.flatten(0, 1), self.basis @ w.T, self.harmonics(l, self.unit))
        return out.view(*x.shape[:2], 2 * l + 1, -1)


def _edges(y: Tensor, cutoff: float) -> Tensor:
    """(2, E): source and target of every pair of atoms of one frame within the cutoff, atoms of all frames in a row."""
    atoms, found = y.shape[1], []
    for k, block in enumerate(y.split(FRAMES)):
        close = torch.cdist(block, block, compute_mode="donot_use_mm_for_euclid_dist") < cutoff
        close.diagonal(dim1=1, dim2=2).fill_(False)
        frame, i, j = close.nonzero(as_tuple=True)
        first = (frame + k * FRAMES) * atoms
        found.append(torch.stack([first + j, first + i]))
    return torch.cat(found, 1)


FRAMES = 64  # frames whose distances are searched together


@cache
def _messages() -> nn.Module:
    """Message passing of torch_geometric, which takes seconds to import."""
    from torch_geometric.nn import MessagePassing

    class Messages(MessagePassing):
        """sum over edges j -> i of harmonics (x) (filters * x_j)."""

        def forward(self, edges, x, filters, harmonics):
            return self.propagate(edges, x=x, filters=filters, harmonics=harmonics)

        def message(self, x_j, filters, harmonics):
            return harmonics[:, :, None] * (filters * x_j)[:, None]

    return Messages(aggr="add", node_dim=0)
