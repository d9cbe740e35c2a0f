"""Collective variables: batched, differentiable functions s(x) of positions, with names and periods.

Angles are in radians and lengths in nm; atom indices are 0-based. A CV maps x (n, A, 3) to (n, k); gradients come
from autograd and are finite wherever the CV is smooth.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.geometry import rmsd


class CV(ABC):
    """A function s(x) of k components.

    Attributes:
        names: one name per component.
        period: one period per component, None where the component is not periodic.
        atoms: the atoms it reads, 0-based.
    """

    names: tuple[str, ...]
    period: tuple[float | None, ...]
    atoms: tuple[int, ...] = ()

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """Values (n, k) of a batch of configurations."""

    def _gather(self, x: Tensor) -> tuple[Tensor, ...]:
        """Positions (n, 3) of each atom of this CV, after the range check."""
        self._check(x)
        return x[:, list(self.atoms)].unbind(1)

    def _check(self, x: Tensor) -> None:
        if max(self.atoms) >= x.shape[1]:
            raise ValueError(
                f"CV {self.names[0]!r}: atom {max(self.atoms)} does not exist; "
                f"0-based indices 0 to {x.shape[1] - 1} are allowed"
            )


def _atoms(name: str, atoms: Sequence[int], count: int | None) -> tuple[int, ...]:
    """Validated atom indices of a CV: integers, non-negative, distinct, `count` of them."""
    atoms = tuple(int(a) for a in atoms)
    if count is not None and len(atoms) != count:
        raise ValueError(f"CV {name!r}: needs {count} atoms, got {len(atoms)}: {atoms}")
    if negative := [a for a in atoms if a < 0]:
        raise ValueError(f"CV {name!r}: atom {negative[0]} is negative; indices are 0-based")
    if len(set(atoms)) != len(atoms):
        raise ValueError(f"CV {name!r}: atoms must be distinct, got {atoms}")
    return atoms


class Distance(CV):
    """|x_j - x_i| in nm."""

    period = (None,)

    def __init__(self, atoms: Sequence[int], name: str = "distance"):
        self.names, self.atoms = (name,), _atoms(name, atoms, 2)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        a, b = self._gather(x)
        return torch.linalg.vector_norm(b - a, dim=-1, keepdim=True)


class Angle(CV):
    """The angle i-j-k at j in [0, pi], atan2(|u x v|, u.v): well conditioned at both ends, no acos."""

    period = (None,)

    def __init__(self, atoms: Sequence[int], name: str = "angle"):
        self.names, self.atoms = (name,), _atoms(name, atoms, 3)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        a, b, c = self._gather(x)
        u, v = a - b, c - b
        sine = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1, keepdim=True)
        return torch.atan2(sine, (u * v).sum(-1, keepdim=True))


class Torsion(CV):
    """The torsion A-B-C-D in (-pi, pi], IUPAC sign (clockwise positive, cis 0, trans pi).

    phi = atan2(|b2| b1.n, m.n) with b1 = B-A, b2 = C-B, b3 = D-C, m = b1 x b2, n = b2 x b3.
    """

    period = (2 * math.pi,)

    def __init__(self, atoms: Sequence[int], name: str = "torsion"):
        self.names, self.atoms = (name,), _atoms(name, atoms, 4)

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

    period = (None,)

    def __init__(self, reference: Float[Tensor, "A 3"], atoms: Sequence[int] | None = None, name: str = "rmsd"):
        self.names, self.reference = (name,), torch.as_tensor(reference, dtype=torch.float64)
        self.atoms = _atoms(name, range(len(self.reference)) if atoms is None else atoms, None)
        self._check(self.reference[None])

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        self._check(x)
        if x.shape[1] != len(self.reference):
            raise ValueError(f"CV {self.names[0]!r}: the reference has {len(self.reference)} atoms, x {x.shape[1]}")
        atoms = torch.tensor(self.atoms, device=x.device)
        return rmsd(x, self.reference.to(x), atoms)[:, None]


class Coordinate(CV):
    """One plain coordinate x[:, axis] of a toy system, x (n, d)."""

    period = (None,)

    def __init__(self, axis: int, name: str = "x"):
        self.names, self.axis = (name,), axis

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        if not 0 <= self.axis < x.shape[1]:
            raise ValueError(
                f"CV {self.names[0]!r}: axis {self.axis} does not exist; 0 to {x.shape[1] - 1} are allowed"
            )
        return x[:, self.axis, None]


class Stack(CV):
    """Several CVs side by side: columns, names and periods in the order given."""

    def __init__(self, cvs: Sequence[CV]):
        self.cvs = tuple(cvs)
        self.names = tuple(name for cv in self.cvs for name in cv.names)
        self.period = tuple(period for cv in self.cvs for period in cv.period)
        self.atoms = tuple(sorted({atom for cv in self.cvs for atom in cv.atoms}))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"CV names must be distinct, got {self.names}")

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        return torch.cat([cv(x) for cv in self.cvs], dim=1)


def wrap(d: Float[Tensor, "*n k"], period: Sequence[float | None]) -> Float[Tensor, "*n k"]:
    """Differences of CV values brought into [-P/2, P/2], column by column; columns without a period are unchanged.

    Args:
        d: differences, (..., k).
        period: one period P per column, or None.
    """
    if d.shape[-1] != len(period):
        raise ValueError(f"wrap needs one period per column, got {len(period)} for {d.shape[-1]} columns")
    P = d.new_tensor([math.inf if p is None else p for p in period])
    turns = torch.round(d / P)  # d / inf = 0: no turn
    return d - torch.where(P.isinf(), 0.0, turns * P)
