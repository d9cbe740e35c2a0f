"""Restraints that are flat where molecules may be: chirality, bonds that must stay, walls on CVs.

Dynamics cannot cross what these forbid, but a sampler that jumps can: mirror images, broken bonds. They are part of the
energy while it samples. A sample that feels one is outside of what is sampled, and `violated` says which do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.molecular.cvs import CV, Torsion, wrap
from molsamp.molecular.energies import Energy

TILT, SLACK = 0.6155, 0.4363  # rad: the improper torsion of a tetrahedron, and how far it may be off (25 degrees)
STIFF = 2412.0  # kJ/mol/rad^2, 25 eV


class Restraint(Energy):
    """E(x) = sum over columns of k_j / 2 (how far s_j(x) is below low_j or above high_j)^2.

    Args:
        cv: s, of k columns.
        low, high: one number a column, in its units; -inf or inf leaves a side open, where there is no period.
        stiffness: k, kJ/mol over the unit squared; one, or one a column.
        event: shape of a configuration.
    """

    def __init__(
        self,
        cv: CV,
        low: Sequence[float],
        high: Sequence[float],
        stiffness: float | Sequence[float],
        event: tuple[int, ...],
    ):
        self.cv, self.event = cv, event
        lo, hi, self.stiffness = (torch.tensor(a, dtype=torch.float64) for a in (low, high, stiffness))
        self.middle = torch.where(lo.isinf(), hi, torch.where(hi.isinf(), lo, 0.5 * (lo + hi)))
        self.low, self.high = lo - self.middle, hi - self.middle

    def beyond(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """How far each column is out, 0 inside."""
        d = wrap(self.cv(x) - self.middle.to(x), self.cv.period)
        return torch.maximum(self.low.to(x) - d, d - self.high.to(x)).clamp(min=0.0)

    def violated(self, x: Float[Tensor, "n *event"]) -> Bool[Tensor, " n"]:
        """Whether a configuration is out anywhere (or not a number)."""
        return ~(self.beyond(x) == 0.0).all(1)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            y = x.clone().detach().requires_grad_()
            E = 0.5 * (self.stiffness.to(y) * self.beyond(y).square()).sum(1)
            (slope,) = torch.autograd.grad(E.sum(), y)
        return E.detach(), -slope


def chirality(elements: Sequence[str], bonds: Sequence[tuple[int, int]], x: Float[Tensor, "A 3"]) -> Restraint | None:
    """Every carbon with three heavy neighbours and one hydrogen keeps the hand that it has in x; None without any.

    Such a carbon c with neighbours p, q, r in the order of their indices and a hydrogen h has improper torsions
    c-p-q-r and c-p-q-h of opposite sign near 35 degrees.
    """
    neighbours: dict[int, list[int]] = {i: [] for i in range(len(elements))}
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    torsions = []
    for c, around in neighbours.items():
        heavy = sorted(a for a in around if elements[a] != "H")
        light = [a for a in around if elements[a] == "H"]
        if elements[c] == "C" and len(heavy) == 3 and len(light) == 1:
            p, q, r = heavy
            torsions += [(c, p, q, r), (c, p, q, light[0])]
    if not torsions:
        return None
    cv = _Torsions(torsions)
    hand = cv(x[None].double())[0].sign() * TILT
    return Restraint(cv, (hand - SLACK).tolist(), (hand + SLACK).tolist(), STIFF, tuple(x.shape))


class _Torsions(CV):
    """Many torsions side by side."""

    def __init__(self, atoms: Sequence[tuple[int, int, int, int]]):
        self.each = [Torsion(a, name=f"improper{k}") for k, a in enumerate(atoms)]
        self.names = tuple(cv.names[0] for cv in self.each)
        self.period = (2.0 * math.pi,) * len(atoms)
        self.unit = ("rad",) * len(atoms)
        self.atoms = tuple(sorted({i for a in atoms for i in a}))

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n k"]:
        return torch.cat([cv(x) for cv in self.each], 1)
