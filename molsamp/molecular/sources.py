"""What a system file's energy table stands for, and the minimisers that go with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular import checks, potentials
from molsamp.molecular.ase_energy import Calculator, minimise
from molsamp.molecular.energies import Energy
from molsamp.molecular.schema import SystemFile

if TYPE_CHECKING:
    import openmm
    from openmm import app


def potential(spec: SystemFile, kT: float) -> Energy:
    """The toy of the energy table."""
    if (table := spec.energy.mixture) is None:
        return potentials.DoubleWell() if spec.energy.potential == "double-well" else potentials.MuellerBrown()
    centres = torch.stack([padded(centre, table.dimension) for centre in table.centres])
    weights, widths = (torch.tensor(a, dtype=torch.float64) for a in (table.weights, table.widths))
    return potentials.GaussianMixture(weights, centres, widths, kT)


def padded(x: tuple[float, ...], dimension: int) -> Float[Tensor, " d"]:
    """A point of a toy, coordinates that the file leaves out 0."""
    return torch.tensor([*x, *[0.0] * (dimension - len(x))], dtype=torch.float64)


def calculator(spec: SystemFile, structure: checks.Structure) -> tuple[Calculator, list[float]]:
    """The calculator of the energy table for the elements of a PDB file, and their masses in Da."""
    table, elements = spec.energy, [atom.element for atom in structure.topology.atoms()]
    if None in elements:
        raise ValueError(f"{structure.file}: {structure.atom(elements.index(None))} has no element (columns 77-78)")
    assert table.calculator is not None
    numbers = tuple(element.atomic_number for element in elements)
    made = Calculator(numbers, table.calculator, table.calculator_settings, table.charge, table.multiplicity)
    return made, [element.mass._value for element in elements]


def openmm_system(file: Path, spec: SystemFile, structure: checks.Structure) -> openmm.System:
    """The OpenMM System of the energy table, checked: no cutoff, flexible, nothing but the physics."""
    import openmm
    from openmm import app

    from molsamp.molecular.openmm_energy import deserialise

    table = spec.energy
    if table.system is not None:
        path = file.parent / table.system
        try:
            source = deserialise(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        except (openmm.OpenMMException, ValueError) as error:
            raise ValueError(f"{path}: is no serialised openmm.System: {error}") from None
        if not isinstance(source, openmm.System) or source.getNumParticles() != len(structure.lines):
            raise ValueError(f"{path}: is no openmm.System of {len(structure.lines)} atoms, as {structure.file} has")
    else:
        path = file
        forcefield = _forcefield(file, table.force_field or ())
        checks.check_templates(structure, forcefield)
        source = forcefield.createSystem(
            structure.topology,
            nonbondedMethod=app.NoCutoff,
            constraints=None,
            rigidWater=False,
            removeCMMotion=False,
        )
    checks.check_system(source, str(path))
    return source


def _forcefield(file: Path, names: tuple[str, ...]) -> app.ForceField:
    from openmm import app

    paths = [str(file.parent / name) if (file.parent / name).is_file() else name for name in names]
    try:
        return app.ForceField(*paths)
    except Exception as error:  # OpenMM raises ValueError, KeyError or an XML error
        raise ValueError(f"{file}: key 'energy.force_field': {error}") from None


def minimised(structure: checks.Structure, energy: Energy, tolerance: float) -> Float[np.ndarray, "A 3"]:
    """The minimum next to a structure, (A, 3), nm."""
    try:
        return minimise(energy, structure.x, tolerance)
    except ValueError as error:
        raise ValueError(f"{structure.file}: {error}") from None


def relax(
    system: openmm.System, positions: list[Float[np.ndarray, "A 3"]], tolerance: float
) -> list[Float[np.ndarray, "A 3"]]:
    """Minimise structures by L-BFGS on OpenMM's Reference platform (float64, deterministic).

    Args:
        system: flexible openmm.System.
        positions: structures, (A, 3), nm.
        tolerance: root mean square force at which to stop, kJ/mol/nm.
    """
    import openmm

    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    relaxed = []
    for x in positions:
        context.setPositions(x)
        openmm.LocalEnergyMinimizer.minimize(context, tolerance)
        relaxed.append(context.getState(positions=True).getPositions(asNumpy=True)._value.copy())
    return relaxed
