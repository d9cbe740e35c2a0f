"""Distances, angles, torsions, RMSD, and the plain coordinates of toys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs.base import CV, checked
from molsamp.molecular.geometry import rmsd


class Distance(CV):
    """|x_j - x_i| in nm."""

    period, unit = (None,), ("nm",)

    def __init__(self, atoms: Sequence[int], name: str = "distance"):
        self.names, self.atoms = (name,), checked(name, atoms, 2)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        a, b = self._gather(x)
        return torch.linalg.vector_norm(b - a, dim=-1, keepdim=True)


class Angle(CV):
    """The angle i-j-k at j in [0, pi], atan2(|u x v|, u.v): well conditioned at both ends, no acos."""

    period, unit = (None,), ("rad",)

    def __init__(self, atoms: Sequence[int], name: str = "angle"):
        self.names, self.atoms = (name,), checked(name, atoms, 3)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        a, b, c = self._gather(x)
        u, v = a - b, c - b
        sine = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1, keepdim=True)
        return torch.atan2(sine, (u * v).sum(-1, keepdim=True))


class Torsion(CV):
    """The torsion A-B-C-D in (-pi, pi], IUPAC sign (clockwise positive, cis 0, trans pi).

    phi = atan2(|b2| b1.n, m.n) with b1 = B-A, b2 = C-B, b3 = D-C, m = b1 x b2, n = b2 x b3.
    """

    period, unit = (2 * math.pi,), ("rad",)

    def __init__(self, atoms: Sequence[int], name: str = "torsion"):
        self.names, self.atoms = (name,), checked(name, atoms, 4)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        A, B, C, D = self._gather(x)
        b1, b2, b3 = B - A, C - B, D - C
        m, n = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        sine = torch.linalg.vector_norm(b2, dim=-1) * (b1 * n).sum(-1)
        return torch.atan2(sine, (m * n).sum(-1))[:, None]


class RMSD(CV):
    """Root mean squared distance in nm of `atoms` to a reference after optimal superposition on the same atoms.

    Args:
        reference: all atoms, (A, 3), nm.
        atoms: 0-based indices, default all.
    """

    period, unit = (None,), ("nm",)

    def __init__(self, reference: Float[Tensor, "A 3"], atoms: Sequence[int] | None = None, name: str = "rmsd"):
        self.names, self.reference = (name,), torch.as_tensor(reference, dtype=torch.float64)
        self.atoms = checked(name, range(len(self.reference)) if atoms is None else atoms)
        self._check(self.reference[None])

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        self._check(x)
        if x.shape[1] != len(self.reference):
            raise ValueError(f"CV {self.names[0]!r}: the reference has {len(self.reference)} atoms, x {x.shape[1]}")
        atoms = torch.tensor(self.atoms, device=x.device)
        return rmsd(x, self.reference.to(x), atoms)[:, None]


class Coordinate(CV):
    """One plain coordinate x[:, axis] of a toy system, x (n, d)."""

    period, unit = (None,), ("reduced units",)

    def __init__(self, axis: int, name: str = "x"):
        self.names, self.axis = (name,), axis

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        if not 0 <= self.axis < x.shape[1]:
            raise ValueError(
                f"CV {self.names[0]!r}: axis {self.axis} does not exist; 0 to {x.shape[1] - 1} are allowed"
            )
        return x[:, self.axis, None]


class Distances(CV):
    """The distances |x_j - x_i| in nm of many pairs at once, one component each, named "NAME.i-j".

    Args:
        pairs: 0-based atoms (i, j) of each distance.
        name: the first part of the names.
    Raises:
        ValueError: no pairs, an atom twice in a pair, or a negative atom.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], name: str = "d"):
        self.pairs = tuple(checked(name, pair, 2) for pair in pairs)
        self.atoms = tuple(sorted({atom for pair in self.pairs for atom in pair}))
        if not self.pairs:
            raise ValueError(f"CV {name!r}: got no pairs of atoms; allowed are one or more")
        self.names = tuple(f"{name}.{i}-{j}" for i, j in self.pairs)
        self.period, self.unit = (None,) * len(self.pairs), ("nm",) * len(self.pairs)

    @classmethod
    def between(cls, atoms: Sequence[int], name: str = "d") -> Distances:
        """All distances between these 0-based atoms, for example `system.heavy`."""
        return cls(list(combinations(checked(name, atoms), 2)), name)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n k"]:
        self._check(x)
        i, j = torch.tensor(self.pairs, device=x.device).T
        return torch.linalg.vector_norm(x[:, j] - x[:, i], dim=-1)
