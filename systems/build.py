"""Makes the structures of the bundled systems from sequence and torsions; no coordinates are copied.

    python systems/build.py alanine-dipeptide        # another folder of systems/, or "all" (chignolin: 5 CPU minutes)

Heavy atoms come from PeptideBuilder's standard bond lengths and angles, hydrogens from OpenMM's Modeller, and the
structures are relaxed in the system's own force field. The script writes the PDB files that system.toml names.
Needs the extra `build` (PeptideBuilder).
"""

from __future__ import annotations

import io
import math
import random
import sys
from pathlib import Path

import numpy as np
import openmm
import PeptideBuilder
from Bio.PDB import PDBIO
from openmm import app
from PeptideBuilder import Geometry

from molsamp.molecular import schema
from molsamp.molecular.sources import relax

HERE = Path(__file__).resolve().parent
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)  # alanine dipeptide, 0-based
VACUUM = {"C5": (-147, 159), "C7eq": (-80, 70), "C7ax": (60, -41)}
SOLVENT = {"C5": (-147, 159), "alphaR": (-70, -35), "alphaL": (55, 40), "C7ax": (60, -41)}
ALANINE = {
    "alanine-dipeptide": VACUUM,
    "alanine-dipeptide-obc": SOLVENT,
    "alanine-dipeptide-obc1": SOLVENT,
    "alanine-dipeptide-gbn2": {name: at for name, at in SOLVENT.items() if name != "C7ax"},  # relaxes to alphaL
}
TETRAPEPTIDE = {"C7eq": [VACUUM["C7eq"]] * 3, "C7ax": [VACUUM["C7eq"], VACUUM["C7ax"], VACUUM["C7eq"]]}
ORDER = {  # Amber's order of atoms, which makes phi = 4 6 8 14 and psi = 6 8 14 16; names as PDBFile gives them
    "ACE": "H1 CH3 H2 H3 C O",
    "ALA": "N H CA HA CB HB1 HB2 HB3 C O",
    "NME": "N H C H1 H2 H3",
}

CHIGNOLIN = "GYDPETGTWG"
# Torsions of model 1 of PDB entry 1UAO (Honda et al., Structure 12, 1507 (2004); wwPDB data are CC0), measured on its
# coordinates and rounded to 1 degree; phi of residue 1 and psi of residue 10 do not exist.
NMR = [
    (0, -177),
    (-85, 98),
    (-72, 115),
    (-76, -13),
    (-60, -39),
    (-107, -22),
    (91, 34),
    (-161, 165),
    (-69, 107),
    (-49, 0),
]
EXTENDED = [(-70 if letter == "P" else -120, 140) for letter in CHIGNOLIN]  # our choice
CHI = {  # 1UAO's side chains, by residue (0-based) and PeptideBuilder's names
    1: {"N_CA_CB_CG_diangle": 180, "CA_CB_CG_CD1_diangle": 87, "CA_CB_CG_CD2_diangle": -93},
    2: {"N_CA_CB_CG_diangle": -175, "CA_CB_CG_OD1_diangle": 57, "CA_CB_CG_OD2_diangle": -123},
    4: {
        "N_CA_CB_CG_diangle": -156,
        "CA_CB_CG_CD_diangle": -107,
        "CB_CG_CD_OE1_diangle": 28,
        "CB_CG_CD_OE2_diangle": -152,
    },
    5: {"N_CA_CB_OG1_diangle": 75, "N_CA_CB_CG2_diangle": -45},
    7: {"N_CA_CB_OG1_diangle": 16, "N_CA_CB_CG2_diangle": -104},
    8: {"N_CA_CB_CG_diangle": -36, "CA_CB_CG_CD1_diangle": 95, "CA_CB_CG_CD2_diangle": -85},
}
BONDS = {  # N and O of 1UAO's backbone hydrogen bonds, residues from 1; the first two decide
    "Asp3 N - Thr8 O": (3, 8),
    "Gly7 N - Asp3 O": (7, 3),
    "Thr8 N - Asp3 O": (8, 3),
    "Gly10 N - Gly1 O": (10, 1),
}
BONDED, OCCUPANCY = 0.35, 0.7  # nm; fraction of the free frames that each deciding bond must be formed in


def heavy_atoms(sequence: str, torsions: list[tuple[float, float]], chi: dict[int, dict[str, float]]) -> list[str]:
    """ATOM lines of a peptide in one-letter code.

    Args:
        sequence: one letter per residue.
        torsions: (phi, psi) of each residue, degrees; peptide bonds are trans.
        chi: side-chain torsions in degrees by PeptideBuilder's names, by residue (0-based).
    """
    residues = [Geometry.geometry(letter) for letter in sequence]
    for i, residue in enumerate(residues):
        vars(residue).update(chi.get(i, {}))
        if i:
            residue.phi, residue.psi_im1, residue.omega = torsions[i][0], torsions[i - 1][1], 180.0
    structure = PeptideBuilder.initialize_res(residues[0])
    for residue in residues[1:]:
        PeptideBuilder.add_residue(structure, residue)
    text, writer = io.StringIO(), PDBIO()
    writer.set_structure(structure)
    writer.save(text)
    return [line for line in text.getvalue().splitlines() if line.startswith("ATOM")]


def capped_alanines(torsions: list[tuple[float, float]]) -> list[str]:
    """ATOM lines of ACE-ALA...-NME: the middle of Gly-Ala...-Gly, its ends cut down to the caps."""
    last = len(torsions) + 2
    caps = {1: ("ACE", {"CA": "CH3", "C": "C", "O": "O"}), last: ("NME", {"N": "N", "CA": "C"})}
    middle = ("ALA", {name: name for name in ("N", "CA", "C", "O", "CB")})
    lines = []
    for line in heavy_atoms("G" + "A" * len(torsions) + "G", [(0, 180), *torsions, (180, 0)], {}):
        residue, names = caps.get(int(line[22:26]), middle)
        if name := names.get(line[12:16].strip()):
            lines.append(f"{line[:12]} {name:<3} {residue}{line[20:]}")
    return lines


def with_hydrogens(lines: list[str], forcefield: app.ForceField) -> tuple[app.Topology, np.ndarray]:
    """Topology and positions in nm after Modeller has added hydrogens at pH 7, in Amber's order for the caps."""
    pdb = app.PDBFile(io.StringIO("\n".join([*lines, "END"])))
    random.seed(0)  # Modeller places hydrogens at random before it relaxes them
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(forcefield, pH=7.0, platform=openmm.Platform.getPlatformByName("Reference"))
    x = modeller.getPositions().value_in_unit(openmm.unit.nanometer)
    topology, order = app.Topology(), []
    chain, new = topology.addChain(), {}
    for residue in modeller.topology.residues():
        copy = topology.addResidue(residue.name, chain)
        atoms = {atom.name: atom for atom in residue.atoms()}
        for name in ORDER[residue.name].split() if residue.name in ORDER and "OXT" not in atoms else atoms:
            new[atoms[name]] = topology.addAtom(name, atoms[name].element, copy)
            order.append(atoms[name].index)
    for bond in modeller.topology.bonds():
        topology.addBond(new[bond[0]], new[bond[1]])
    return topology, np.array(x)[order]


def flexible(forcefield: app.ForceField, topology: app.Topology) -> openmm.System:
    """The system as `molsamp.molecular.load` makes it."""
    return forcefield.createSystem(
        topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
    )


def hold_torsions(system: openmm.System, targets: dict[tuple[int, ...], float], k: float = 1000.0) -> openmm.System:
    """Add k [1 - cos(theta - theta0)] in kJ/mol for torsions (0-based atoms) and their targets in degrees."""
    force = openmm.CustomTorsionForce(f"{k}*(1-cos(theta-theta0))")
    force.addPerTorsionParameter("theta0")
    for atoms, degrees in targets.items():
        force.addTorsion(*atoms, [math.radians(degrees)])
    system.addForce(force)
    return system


def torsion(x: np.ndarray, atoms: tuple[int, ...]) -> float:
    """Torsion in degrees, IUPAC sign."""
    a, b, c, d = x[list(atoms)]
    m, n = np.cross(b - a, c - b), np.cross(c - b, d - c)
    return math.degrees(math.atan2(np.linalg.norm(c - b) * (b - a) @ n, m @ n))


def write(topology: app.Topology, x: np.ndarray, file: Path) -> None:
    """Write a PDB file without the date that OpenMM puts in."""
    text = io.StringIO()
    app.PDBFile.writeFile(topology, x * 10, text)  # plain numbers are taken as angstrom
    file.write_text("".join(line for line in text.getvalue().splitlines(True) if not line.startswith("REMARK")))


def build_alanine(name: str) -> None:
    """Every state: build at its torsions, relax with these held, then relax freely."""
    forcefield = app.ForceField(*(schema.read(HERE / name / "system.toml").energy.force_field or ()))
    for state, (phi, psi) in ALANINE[name].items():
        topology, x = with_hydrogens(capped_alanines([(phi, psi)]), forcefield)
        system = flexible(forcefield, topology)
        [x] = relax(hold_torsions(flexible(forcefield, topology), {PHI: phi, PSI: psi}), [x], 1.0)
        [x] = relax(system, [x], 1e-4)
        energy = context_energy(system, x)
        print(f"{name} {state}: phi {torsion(x, PHI):.1f} psi {torsion(x, PSI):.1f} deg, {energy:.3f} kJ/mol")
        write(topology, x, HERE / name / f"{state}.pdb")


def build_tetrapeptide() -> None:
    """Both states, as those of the dipeptide; the torsions of all residues are held, then free."""
    name = "alanine-tetrapeptide"
    forcefield = app.ForceField(*(schema.read(HERE / name / "system.toml").energy.force_field or ()))
    for state, torsions in TETRAPEPTIDE.items():
        topology, x = with_hydrogens(capped_alanines(torsions), forcefield)
        atom = {(a.residue.index, a.name): a.index for a in topology.atoms()}
        targets = {}
        for r, (phi, psi) in enumerate(torsions, start=1):
            targets[atom[r - 1, "C"], atom[r, "N"], atom[r, "CA"], atom[r, "C"]] = phi
            targets[atom[r, "N"], atom[r, "CA"], atom[r, "C"], atom[r + 1, "N"]] = psi
        [x] = relax(hold_torsions(flexible(forcefield, topology), targets), [x], 1.0)
        system = flexible(forcefield, topology)
        [x] = relax(system, [x], 1e-4)
        angles = ", ".join(f"{torsion(x, atoms):.0f}" for atoms in targets)
        print(f"{name} {state}: {angles} deg, {context_energy(system, x):.3f} kJ/mol; atoms {list(targets)}")
        write(topology, x, HERE / name / f"{state}.pdb")


def build_chignolin() -> None:
    """Both states; the folded one is written only if it stays folded in free dynamics.

    Folded: built at 1UAO's torsions, 5 ps of Langevin dynamics at 300 K with backbone torsions and hydrogen bonds
    held, 50 ps free, of which the first 10 are not counted; the last frame is relaxed.
    """
    forcefield = app.ForceField(*(schema.read(HERE / "chignolin" / "system.toml").energy.force_field or ()))
    for state, torsions in (("unfolded", EXTENDED), ("folded", NMR)):
        topology, x = with_hydrogens(with_oxt(heavy_atoms(CHIGNOLIN, torsions, CHI)), forcefield)
        system = flexible(forcefield, topology)
        atom = {(a.residue.index + 1, a.name): a.index for a in topology.atoms()}
        held = hold_torsions(flexible(forcefield, topology), backbone(atom, torsions), k=200.0)
        if state == "folded":
            hold_bonds(held, atom)
        [x] = relax(held, [x], 1.0)
        if state == "folded":
            x, formed = fold(system, held, x, atom)
            for name, fraction in formed.items():
                print(f"{name}: N..O < {BONDED} nm in {fraction:.3f} of the free frames")
            if min(list(formed.values())[:2]) < OCCUPANCY:
                print("does not stay folded: no folded.pdb written")
                return
        [x] = relax(system, [x], 1e-2)
        lengths = {name: float(np.linalg.norm(x[atom[d, "N"]] - x[atom[a, "O"]])) for name, (d, a) in BONDS.items()}
        print(f"chignolin {state}: {context_energy(system, x):.3f} kJ/mol,", lengths)
        write(topology, x, HERE / "chignolin" / f"{state}.pdb")


def with_oxt(lines: list[str]) -> list[str]:
    """Add the second carboxylate oxygen, trigonal at 0.125 nm, to the last residue."""
    last = lines[-1]
    at = {
        t[12:16].strip(): np.array([float(t[30 + 8 * k : 38 + 8 * k]) for k in range(3)])
        for t in lines
        if t[22:26] == last[22:26]
    }
    arms = [(at[name] - at["C"]) / np.linalg.norm(at[name] - at["C"]) for name in ("CA", "O")]
    x, y, z = at["C"] - 1.25 * sum(arms) / np.linalg.norm(sum(arms))
    return [*lines, f"{last[:12]} OXT {last[17:30]}{x:8.3f}{y:8.3f}{z:8.3f}{last[54:]}"]


def backbone(atom: dict[tuple[int, str], int], torsions: list[tuple[float, float]]) -> dict[tuple[int, ...], float]:
    """Targets of all phi and psi, by their atoms; residues count from 1 in `atom`."""
    targets = {}
    for r, (phi, psi) in enumerate(torsions, start=1):
        if r > 1:
            targets[atom[r - 1, "C"], atom[r, "N"], atom[r, "CA"], atom[r, "C"]] = phi
        if r < len(torsions):
            targets[atom[r, "N"], atom[r, "CA"], atom[r, "C"], atom[r + 1, "N"]] = psi
    return targets


def hold_bonds(system: openmm.System, atom: dict[tuple[int, str], int]) -> None:
    """Keep every N..O of `BONDS` below 0.32 nm by a half-harmonic wall, 2000 kJ/mol/nm^2."""
    force = openmm.CustomBondForce("1000*max(0, r - 0.32)^2")
    for donor, acceptor in BONDS.values():
        force.addBond(atom[donor, "N"], atom[acceptor, "O"], [])
    system.addForce(force)


def fold(
    system: openmm.System, held: openmm.System, x: np.ndarray, atom: dict[tuple[int, str], int]
) -> tuple[np.ndarray, dict[str, float]]:
    """Held, then free dynamics: the last frame, and for each bond the fraction of counted frames it is formed in."""
    platform = openmm.Platform.getPlatformByName("CPU")
    contexts = []
    for s in (held, system):
        integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.001)
        integrator.setRandomNumberSeed(1)
        contexts.append(openmm.Context(s, integrator, platform, {"Threads": "1", "DeterministicForces": "true"}))
    contexts[0].setPositions(x)
    contexts[0].setVelocitiesToTemperature(300, 2)
    contexts[0].getIntegrator().step(5000)
    state = contexts[0].getState(positions=True, velocities=True)
    contexts[1].setPositions(state.getPositions())
    contexts[1].setVelocities(state.getVelocities())
    frames = []
    for _ in range(500):
        contexts[1].getIntegrator().step(100)
        frames.append(contexts[1].getState(positions=True).getPositions(asNumpy=True)._value.copy())
    counted = np.array(frames[100:])
    formed = {}
    for name, (donor, acceptor) in BONDS.items():
        r = np.linalg.norm(counted[:, atom[donor, "N"]] - counted[:, atom[acceptor, "O"]], axis=-1)
        formed[name] = float((r < BONDED).mean())
    return frames[-1], formed


def context_energy(system: openmm.System, x: np.ndarray) -> float:
    """Potential energy, kJ/mol, on the Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(x)
    return context.getState(energy=True).getPotentialEnergy()._value


def main(names: list[str]) -> None:
    """Build the named systems."""
    others = {"alanine-tetrapeptide": build_tetrapeptide, "chignolin": build_chignolin}
    for name in [*ALANINE, *others] if names == ["all"] else names:
        others.get(name, lambda name=name: build_alanine(name))()


if __name__ == "__main__":
    main(sys.argv[1:])
