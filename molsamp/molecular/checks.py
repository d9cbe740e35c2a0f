"""Checks at the door of `load`: what OpenMM accepts silently and a path sampler must not.

Each check is one small function that raises a ValueError naming file, line, atom, what was got and what is allowed.
Positions are (A, 3) float64 in nm; atom indices are 0-based.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from openmm import System, app

CLOSEST = 0.05
"""Two atoms nearer than this, in nm, overlap (the shortest bond, H-H, has 0.074 nm)."""
STRETCH = 0.5
"""A bond may deviate from its force-field length by this fraction."""


@dataclass(frozen=True)
class Structure:
    """One PDB file: positions (A, 3) in nm, the topology, and for each atom the line it stands on (from 1)."""

    file: Path
    x: Float[np.ndarray, "A 3"]
    topology: app.Topology
    lines: tuple[int, ...]

    def atom(self, i: int) -> str:
        """Words for atom i: "atom CA of ALA 2 (line 12)"."""
        atom = list(self.topology.atoms())[i]
        return f"atom {atom.name} of {atom.residue.name} {atom.residue.id} (line {self.lines[i]})"


def read_pdb(file: Path) -> Structure:
    """Read the first model of a PDB file and check that it is one and that its coordinates are possible.

    Raises:
        ValueError: missing or unreadable file; no atoms; a coordinate that is no finite number; overlapping atoms;
            alternate locations.
    """
    lines, x = _atom_lines(file)
    from openmm import app

    try:
        pdb = app.PDBFile(str(file))
    except Exception as error:  # OpenMM raises anything from KeyError to IndexError on a torn file
        raise ValueError(f"{file}: OpenMM cannot read it as a PDB file: {error}") from None
    if pdb.topology.getNumAtoms() != len(lines):
        raise ValueError(
            f"{file}: {len(lines)} atom lines but {pdb.topology.getNumAtoms()} different atoms; "
            "alternate locations and repeated atoms are not allowed"
        )
    structure = Structure(file, x, pdb.topology, lines)
    check_overlaps(structure)
    return structure


def _atom_lines(file: Path) -> tuple[tuple[int, ...], Float[np.ndarray, "A 3"]]:
    """Line numbers (from 1) and coordinates in nm of the atoms of the first model."""
    try:
        text = file.read_text(encoding="ascii")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is no PDB file (it holds bytes that are not ASCII text)") from None
    numbers, x = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("ENDMDL"):
            break
        if line.startswith(("ATOM  ", "HETATM")):
            numbers.append(number)
            x.append([_coordinate(file, number, line, axis) for axis in range(3)])
    if not numbers:
        raise ValueError(f"{file}: is no PDB file (no line starts with ATOM or HETATM)")
    return tuple(numbers), np.array(x) / 10  # angstrom to nm


def _coordinate(file: Path, number: int, line: str, axis: int) -> float:
    field = line[30 + 8 * axis : 38 + 8 * axis].strip()
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        atom = f"atom {line[12:16].strip()} of {line[17:20].strip()} {line[22:26].strip()}"
        raise ValueError(f"{file}, line {number}: {atom}: {'xyz'[axis]} is {field!r}; allowed are finite numbers")
    return value


def check_overlaps(structure: Structure) -> None:
    """No two atoms nearer than `CLOSEST`."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(structure.x).query_pairs(CLOSEST, output_type="ndarray")
    if len(pairs):
        i, j = min(pairs.tolist())
        r = np.linalg.norm(structure.x[i] - structure.x[j])
        raise ValueError(
            f"{structure.file}: {structure.atom(i)} and {structure.atom(j)} overlap: "
            f"{r:.4f} nm apart; allowed is {CLOSEST} nm or more"
        )


def check_same_topology(a: Structure, b: Structure) -> None:
    """Two structures hold the same atoms in the same order."""
    for i, (p, q) in enumerate(zip(a.topology.atoms(), b.topology.atoms(), strict=False)):
        if (p.name, p.element, p.residue.name, p.residue.index) != (q.name, q.element, q.residue.name, q.residue.index):
            raise ValueError(
                f"{b.file}: {b.atom(i)} stands where {a.file} has {a.atom(i)}; "
                "all states must hold the same atoms in the same order"
            )
    counts = [s.topology.getNumAtoms() for s in (a, b)]
    if counts[0] != counts[1]:
        longer = max(a, b, key=lambda s: len(s.lines))
        raise ValueError(
            f"{b.file}: {counts[1]} atoms, but {a.file} has {counts[0]}; "
            f"the first atom in only one of them is {longer.atom(min(counts))}"
        )


def check_templates(structure: Structure, forcefield: app.ForceField) -> None:
    """Every residue matches a template of the force field; otherwise name the atoms that are missing or extra."""
    for residue in forcefield.getUnmatchedResidues(structure.topology):
        have = Counter(atom.name for atom in residue.atoms())
        name, want = _closest_template(residue.name, have, forcefield)
        lines = [structure.lines[atom.index] for atom in residue.atoms()]
        problem = "; ".join(
            f"{word} {', '.join(sorted(difference.elements()))}"
            for word, difference in (("missing", want - have), ("unexpected", have - want))
            if difference
        )
        raise ValueError(
            f"{structure.file}: residue {residue.name} {residue.id} (lines {min(lines)} to {max(lines)}) matches no "
            f"template of the force field; against {name}: {problem or 'same atoms, other bonds'} "
            "(OpenMM's Modeller.addHydrogens adds hydrogens)"
        )


def _closest_template(residue: str, have: Counter[str], forcefield: app.ForceField) -> tuple[str, Counter[str]]:
    """Name and atom names of the template that differs in the fewest atoms, preferring those of the same residue."""
    rename = _standard_names(residue)
    names = {  # OpenMM offers templates only after a match, so there is no public list of them
        name: Counter(rename.get(atom.name, atom.name) for atom in template.atoms)
        for name, template in forcefield._templates.items()
    }
    same = {name: want for name, want in names.items() if name in (residue, f"N{residue}", f"C{residue}")}
    return min((same or names).items(), key=lambda item: ((item[1] - have) + (have - item[1])).total())


def _standard_names(residue: str) -> dict[str, str]:
    """OpenMM's table from other atom names to those that PDBFile gives, for one residue."""
    from openmm import app

    table = ElementTree.parse(Path(app.__file__).parent / "data" / "pdbNames.xml").getroot()
    atoms = [atom for entry in table if entry.get("name") == residue for atom in entry]
    return {other: atom.attrib["name"] for atom in atoms for key, other in atom.attrib.items() if key.startswith("alt")}


def check_system(system: System, source: str) -> None:
    """An openmm.System whose dynamics has a path density: no constraints, no hidden dynamics, every particle moves.

    Args:
        system: the openmm.System.
        source: what the user knows it by, for example a file name.
    """
    from molsamp.molecular.openmm_energy import refuse_constraints

    try:
        refuse_constraints(system)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    for force in system.getForces():
        if type(force).__name__ == "AndersenThermostat" or "Barostat" in type(force).__name__:
            raise ValueError(
                f"{source}: holds a {type(force).__name__}, which changes the state behind the integrator's back, so "
                "the path density is undefined; allowed are forces that only add to the energy"
            )
    for i in range(system.getNumParticles()):
        if system.getParticleMass(i)._value <= 0:
            raise ValueError(f"{source}: atom {i} (0-based) has no mass; allowed are positive masses, no virtual sites")


def check_bonds(structure: Structure, system: System) -> None:
    """Every bond within `STRETCH` of its force-field length; catches atoms that were moved and broken chains."""
    from openmm import HarmonicBondForce

    for force in system.getForces():
        for k in range(force.getNumBonds()) if isinstance(force, HarmonicBondForce) else ():
            i, j, length, _ = force.getBondParameters(k)
            r0 = length._value
            r = float(np.linalg.norm(structure.x[i] - structure.x[j]))
            if abs(r - r0) > STRETCH * r0:
                raise ValueError(
                    f"{structure.file}: the bond between {structure.atom(i)} and {structure.atom(j)} has {r:.4f} nm; "
                    f"allowed is {(1 - STRETCH) * r0:.4f} to {(1 + STRETCH) * r0:.4f} nm: an atom was moved, or the "
                    "chain is broken"
                )


def check_chirality(structure: Structure) -> None:
    """Every amino acid with a CB is L: (N - CA) x (C - CA) . (CB - CA) > 0."""
    for residue in structure.topology.residues():
        at = {atom.name: atom.index for atom in residue.atoms()}
        if not {"N", "CA", "C", "CB"} <= at.keys():
            continue
        n, c, cb = (structure.x[at[name]] - structure.x[at["CA"]] for name in ("N", "C", "CB"))
        volume = float(np.cross(n, c) @ cb)
        if volume < 0:
            raise ValueError(
                f"{structure.file}: {structure.atom(at['CA'])} is D: (N-CA) x (C-CA) . (CB-CA) = {volume:.5f} nm^3; "
                "allowed are L-amino acids (positive)"
            )


def check_atoms_exist(source: str, key: str, atoms: tuple[int, ...], count: int) -> None:
    """TOML atom indices are 0-based and below `count`."""
    if wrong := [i for i in atoms if i >= count]:
        raise ValueError(
            f"{source}: key '{key}': atom {wrong[0]} does not exist; TOML indices are 0-based, allowed 0 to {count - 1}"
        )


def check_apart(source: str, names: tuple[str, str], distance: float, radii: tuple[float, float], unit: str) -> None:
    """The discs of two states do not meet."""
    a, b = names
    if distance >= sum(radii):
        return
    what = f"the centre of '{a}' lies inside '{b}'" if distance < radii[1] else f"the discs of '{a}' and '{b}' meet"
    raise ValueError(
        f"{source}: states overlap: {what}: centres {distance:.4g} {unit} apart, radii {radii[0]:g} and {radii[1]:g}; "
        "allowed are discs that do not meet (is it twice the same structure?)"
    )
