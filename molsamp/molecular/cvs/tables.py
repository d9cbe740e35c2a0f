"""The CVs that a system file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from molsamp.molecular import checks, schema
from molsamp.molecular import cvs as variables
from molsamp.molecular.schema import SystemFile

if TYPE_CHECKING:
    from openmm import app


def named(
    file: Path, spec: SystemFile, event: tuple[int, ...], topology: app.Topology | None
) -> dict[str, variables.CV]:
    """The CVs by name; one of several components (PATHMSD) becomes several, named as PLUMED names them."""
    axes: dict[str, variables.CV] = {}
    for name, table in spec.cvs.items():
        cv = _cv(file, name, table, event, topology, axes)
        parts = [cv] if len(cv.names) == 1 else [variables.Component(cv, part) for part in cv.names]
        axes |= {part.names[0]: part for part in parts}
    try:
        if spec.settings.channel is not None:
            schema.check_known("settings.channel.cv", spec.settings.channel.cv, axes, "CVs")
        if spec.metric(spec.settings.start) == "cvs":
            schema.check_one_unit(unit for cv in axes.values() for unit in cv.unit)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return axes


def _cv(
    file: Path,
    name: str,
    table: schema.CVTable,
    event: tuple[int, ...],
    topology: app.Topology | None,
    known: dict[str, variables.CV],
) -> variables.CV:
    key = f"cvs.{name}.{table.kind}"
    if table.coordinate is not None:
        if table.coordinate >= event[0]:
            raise ValueError(f"{file}: key '{key}': got {table.coordinate}; allowed is 0 to {event[0] - 1}")
        return variables.Coordinate(table.coordinate, name)
    if table.plumed is not None:
        from molsamp.molecular.cvs.plumed import parse_action

        return parse_action(table.plumed, name, event[0], file.parent, known, f"{file}: key '{key}'")
    kinds: dict[str, Callable[[tuple[int, ...], str], variables.CV]]
    kinds = {"torsion": variables.Torsion, "angle": variables.Angle, "distance": variables.Distance}
    atoms = tuple(atom if isinstance(atom, int) else _selected(file, key, atom, topology) for atom in table.atoms)
    checks.check_atoms_exist(str(file), key, atoms, event[0])
    if len(set(atoms)) < len(atoms):
        raise ValueError(f"{file}: key '{key}': got atoms {list(atoms)} (0-based); the atoms must be distinct")
    return kinds[table.kind](atoms, name)


def _selected(file: Path, key: str, text: str, topology: app.Topology | None) -> int:
    """The one atom of an mdtraj selection."""
    assert topology is not None  # schema.SystemFile: a toy has coordinates only
    try:
        atoms = variables.select(topology, text)
    except ValueError as error:
        raise ValueError(f"{file}: key '{key}': {error}") from None
    if len(atoms) > 1:
        raise ValueError(
            f"{file}: key '{key}': got {text!r}; it selects {len(atoms)} atoms, 0-based {atoms[:5]}; allowed is one"
        )
    return atoms[0]
