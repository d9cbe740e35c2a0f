"""Contacts: switching functions of a distance, their sums over pairs of atoms (contact, or coordination, numbers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs.base import CV, checked

Shape = Literal["RATIONAL", "EXP", "GAUSSIAN", "COSINUS"]


@dataclass(frozen=True)
class Switching:
    """A function of distance that falls from 1 at r <= d0 to 0, with y = (r - d0) / r0.

        RATIONAL (1 - y^n) / (1 - y^m)      EXP exp(-y)      GAUSSIAN exp(-y^2 / 2)
        COSINUS  (1 + cos(pi y)) / 2 up to y = 1, then 0

    The rational one is evaluated as (1 + z + ... + z^(n/g - 1)) / (1 + z + ... + z^(m/g - 1)) with z = y^g and g the
    greatest common divisor of n and m: the same polynomial ratio with its factor 1 - z divided out, so y = 1 is an
    ordinary point, with value n/m and its exact gradient.

    Args:
        r0: nm.
        d0: nm.
        n, m: exponents of the rational one, n < m; m = 0 stands for 2 n.
        shape: which one.
    Raises:
        ValueError: r0 or exponents out of range, or an unknown shape.
    Source: PLUMED 2 manual, "switchingfunction" (names and formulas).
    """

    r0: float
    d0: float = 0.0
    n: int = 6
    m: int = 0
    shape: Shape = "RATIONAL"

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"switching function {self.shape!r} is unknown; allowed are {', '.join(get_args(Shape))}")
        if not (math.isfinite(self.r0) and self.r0 > 0 and math.isfinite(self.d0)):
            raise ValueError(
                f"switching function: got r0 = {self.r0}, d0 = {self.d0}; allowed are r0 > 0 and finite d0"
            )
        if not 0 < self.n < (self.m or 2 * self.n):
            raise ValueError(f"switching function: got exponents {self.n} and {self.m}; allowed are 0 < n < m")

    def __call__(self, r: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Values at distances r in nm."""
        y = ((r - self.d0) / self.r0).clamp(min=0)
        if self.shape == "EXP":
            return torch.exp(-y)
        if self.shape == "GAUSSIAN":
            return torch.exp(-(y**2) / 2)
        if self.shape == "COSINUS":
            return (1 + torch.cos(math.pi * y.clamp(max=1))) / 2
        m = self.m or 2 * self.n
        g = math.gcd(self.n, m)
        z = y**g
        return _geometric(z, self.n // g) / _geometric(z, m // g)


def _geometric(z: Tensor, terms: int) -> Tensor:
    """1 + z + ... + z^(terms - 1), by Horner's rule."""
    total = torch.ones_like(z)
    for _ in range(terms - 1):
        total = 1 + z * total
    return total


class CoordinationNumber(CV):
    """sum_ij f(|x_j - x_i|), the number of contacts between two groups of atoms, or inside one.

    With two groups the sum is over i in a and j in b, i != j, so a pair of atoms that both stand in both groups counts
    twice; with one group every pair counts once (both as PLUMED's COORDINATION).

    Args:
        a: 0-based atoms.
        b: 0-based atoms; None for the pairs inside a.
        switching: f.
    Raises:
        ValueError: wrong atoms, or no pair.
    """

    period, unit = (None,), ("1",)

    def __init__(self, a: Sequence[int], b: Sequence[int] | None, switching: Switching, name: str = "coordination"):
        self.names, self.switching = (name,), switching
        a = checked(name, a)
        if b is None:
            pairs = [(i, j) for k, i in enumerate(a) for j in a[k + 1 :]]
        else:
            pairs = [(i, j) for i in a for j in checked(name, b) if i != j]
        if not pairs:
            raise ValueError(f"CV {name!r}: got atoms {a} and {b}; allowed are groups with a pair of different atoms")
        self.pairs = torch.tensor(pairs)
        self.atoms = tuple(sorted({atom for pair in pairs for atom in pair}))

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n 1"]:
        self._check(x)
        i, j = self.pairs.to(x.device).T
        return self.switching(torch.linalg.vector_norm(x[:, j] - x[:, i], dim=-1)).sum(1, keepdim=True)


class ContactDistance(CoordinationNumber):
    """f(|x_j - x_i|): how far one pair of atoms is in contact, from 1 to 0."""

    def __init__(self, atoms: Sequence[int], switching: Switching, name: str = "contact"):
        i, j = checked(name, atoms, 2)
        super().__init__((i,), (j,), switching, name)
