"""Free energies of toys, which are integrals: F(c) = -kT log of the integral of exp(-U/kT) over each cell of a grid."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from molsamp.engine.estimates import Estimate
from molsamp.molecular.cvs import Coordinate
from molsamp.molecular.energies import Energy
from molsamp.molecular.free_energy.surface import Surface
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.grids import Grid
from molsamp.molecular.potentials import GaussianMixture

ORDER = 8  # Gauss-Legendre points along each axis of a cell


def surface(task: Task, grid: Grid) -> Surface:
    """F at the nodes by quadrature over their cells, as infinitely many samples would have it; its errors are 0.

    Args:
        task: of a toy whose coordinates are all CVs; of a mixture some will do, its marginals being mixtures.
        grid: of the CVs.
    Raises:
        ValueError: a molecule, or a toy with coordinates that are no CVs.
    """
    U, k = _potential(task), len(grid.shape)
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(ORDER))
    inside = torch.tensor(list(itertools.product((0.5 * x).tolist(), repeat=k)), dtype=torch.float64)
    weights = torch.tensor([math.prod(a) for a in itertools.product((0.5 * w).tolist(), repeat=k)], dtype=torch.float64)
    at = torch.from_numpy(grid.points())[:, None] + inside * torch.tensor(grid.spacing, dtype=torch.float64)
    u = U.energy(at.view(-1, k)).view(len(at), -1) / task.kT
    F = -task.kT * torch.logsumexp(weights.log() - u, 1).numpy().reshape(grid.shape)
    none = np.zeros(grid.shape)
    return Surface(grid, F - F.min(), none, none)


def differences(task: Task, F: Surface) -> dict[str, Estimate]:
    """F_B - F_A from the first region of the task to every other one, kJ/mol, under `dF:A->B`; no errors."""
    free = {}
    for name, inside in task.regions(F.grid).items():
        free[name] = -task.kT * float(torch.logsumexp(torch.from_numpy(-F.F[inside] / task.kT), 0))
    first, *others = free
    values = {name: free[name] - free[first] for name in others}
    return {f"dF:{first}->{name}": Estimate(dF, (dF, dF), "kJ/mol") for name, dF in values.items()}


def _potential(task: Task) -> Energy:
    """U over the CVs alone."""
    U, axes = task.energy, [cv.axis for cv in task.cvs if isinstance(cv, Coordinate)]
    if isinstance(U, GaussianMixture):
        return GaussianMixture(U.weights, U.centres[:, axes], U.widths, U.kT)
    if task.system.masses is not None or (len(axes),) != U.event or axes != sorted(axes):
        raise ValueError(f"{task.system.name}: F is known of toys, along all their coordinates in order")
    return U
