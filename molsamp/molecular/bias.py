"""GridBias: a static bias on one or two collective variables, a smooth spline through values on a grid."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs import CV, Distance, Stack, Torsion
from molsamp.molecular.energies import Energy
from molsamp.molecular.grids import Grid
from molsamp.molecular.native import terms
from molsamp.molecular.native.splines import patches

KINDS: dict[type[CV], int] = {Torsion: terms.TORSION, Distance: terms.DISTANCE}


class GridBias(Energy):
    """E(x) = V(s(x)), V the twice continuously differentiable (bi)cubic spline through values on a grid.

    A periodic axis with N nodes has node k at lo + k (hi - lo)/N, hi being lo again; any other axis has its nodes at
    lo, ..., hi. Beyond the end of such an axis V goes on along its tangent: V + V_u du + V_v dv + V_uv du dv.

    Args:
        cvs: one or two CVs of one component each, or one of two.
        values: V at the nodes, (N1,) or (N1, N2), kJ/mol, finite, 2 or more on each axis.
        ranges: (lo, hi) of each CV in its own units (rad, nm); one whole period for a periodic one.
        event: shape of one configuration, (A, 3) for molecules.
    Raises:
        ValueError: CVs, ranges and values do not fit each other or the event; names the CV.
    """

    def __init__(
        self,
        cvs: Sequence[CV],
        values: Float[np.ndarray | Tensor, "*N"],
        ranges: Sequence[tuple[float, float]],
        event: tuple[int, ...],
    ):
        self.event, self.cvs, self.cv = event, tuple(cvs), Stack(cvs)
        self.values = np.array(torch.as_tensor(values).cpu(), dtype=np.float64)
        if len(self.cv.names) != self.values.ndim or len(ranges) != self.values.ndim:
            raise ValueError(
                f"GridBias needs a range and an axis of values for each CV, got CVs {self.cv.names}, "
                f"{len(ranges)} ranges and values of shape {self.values.shape}"
            )
        box = tuple((float(lo), float(hi)) for lo, hi in ranges)
        self.grid = Grid(self.cv.names, self.cv.period, box, self.values.shape)
        if self.cv.atoms and max(self.cv.atoms) >= event[0]:
            raise ValueError(
                f"CVs {self.cv.names}: atom {max(self.cv.atoms)} does not exist; 0 to {event[0] - 1} are allowed"
            )
        self._patches = patches(self.values, self.grid.periodic)
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def at(self, s: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """V in kJ/mol at CV values s, differentiable."""
        row, bases, grid = torch.zeros(1, dtype=torch.int64, device=s.device), [], self.grid
        for axis, n in enumerate(grid.patches):
            patch, basis = grid.place(s[:, axis], axis)
            bases.append(basis)
            row = row * n + patch
        table = self._table(s)[row]
        if len(bases) == 1:
            return (table[:, :, 0] * bases[0]).sum(1)
        return torch.einsum("na,nab,nb->n", bases[0], table, bases[1])

    def _table(self, s: Tensor) -> Tensor:
        key = s.device, s.dtype
        if key not in self._tables:
            self._tables[key] = torch.as_tensor(self._patches).to(s)
        return self._tables[key]

    @property
    def native(self) -> bool:
        """Whether the native tiers know every CV: they are Torsions and Distances, and nothing derived from these."""
        return all(type(cv) in KINDS for cv in self.cvs)

    def grids(self) -> terms.Grids:
        """The same bias for the native tiers.

        Raises:
            ValueError: a CV is neither a Torsion nor a Distance; names it.
        """
        for cv in self.cvs:
            if type(cv) not in KINDS:
                raise ValueError(
                    f"CV {cv.names[0]!r}: a native grid takes Torsion and Distance, got {type(cv).__name__}; "
                    "use GridBias itself, as one term of a Sum"
                )
        kind = [KINDS[type(cv)] for cv in self.cvs]
        atoms = [[*cv.atoms, 0, 0][:4] for cv in self.cvs]
        none, grid = 2 - len(self.cvs), self.grid
        return terms.Grids(
            kind=np.array([kind + none * [terms.NONE]]),
            atoms=np.array([atoms + none * [[0, 0, 0, 0]]]),
            origin=np.array([[lo for lo, _ in grid.ranges] + none * [0.0]]),
            spacing=np.array([grid.spacing + none * [1.0]]),
            size=np.array([grid.patches + none * [1]]),
            periodic=np.array([[int(wraps) for wraps in grid.periodic] + none * [0]]),
            offset=np.array([0]),
            patches=self._patches,
        )

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            y = x if differentiable else x.clone().detach().requires_grad_()
            E = self.at(self.cv(y))
            (slope,) = torch.autograd.grad(E.sum(), y, create_graph=differentiable)
        return (E, -slope) if differentiable else (E.detach(), -slope)
