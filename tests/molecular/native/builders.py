"""Material for the tests of the native tiers: forces with random parameters, frames, peptides of random sequence."""

import importlib.util
import io
import math
import random
from functools import cache
from pathlib import Path

import numpy as np
import openmm
from hypothesis import strategies as st
from openmm import app
from openmm.app.internal import customgbforces as implicit

ATOMS = 8
ROOT = Path(__file__).resolve().parents[3]


# ---- forces on 8 atoms, each from a numpy generator ----


def bonds(rng):
    """One pair twice, with equal and with unequal lengths, in both directions."""
    force = openmm.HarmonicBondForce()
    for i, j in ((0, 1), (5, 2), (1, 7), (1, 0)):
        force.addBond(i, j, rng.uniform(0.1, 0.2), rng.uniform(1e4, 3e5))
    force.addBond(2, 5, force.getBondParameters(1)[2], 1e4)
    return force


def angles(rng):
    force = openmm.HarmonicAngleForce()
    for i, j, l in ((0, 1, 2), (4, 3, 5), (7, 0, 6), (2, 1, 3), (2, 1, 0)):
        force.addAngle(i, j, l, rng.uniform(0, math.pi), rng.uniform(100, 900))
    return force


def torsions(rng):
    """Periodicities 1 to 6 and 9, phases of any value, several terms on one quadruple and on its reverse."""
    force = openmm.PeriodicTorsionForce()
    for n in range(1, 7):
        force.addTorsion(0, 1, 2, 3, n, rng.uniform(-4, 4), rng.uniform(-20, 20))
        force.addTorsion(3, 2, 1, 0, n, rng.uniform(-4, 4), rng.uniform(-20, 20))
    force.addTorsion(4, 7, 1, 6, 3, 0.0, 7.0)
    force.addTorsion(2, 5, 6, 0, 2, math.pi, 9.0)
    force.addTorsion(7, 5, 3, 1, 9, rng.uniform(-4, 4), 2.0)
    return force


def rb_torsions(rng):
    force = openmm.RBTorsionForce()
    for atoms in ((0, 1, 2, 3), (3, 2, 1, 0), (6, 1, 7, 4)):
        force.addTorsion(*atoms, *rng.uniform(-20, 20, size=6))
    return force


def cmaps(rng):
    """Two maps of different size without any symmetry, one of them used twice."""
    force = openmm.CMAPTorsionForce()
    for N in (6, 11):
        force.addMap(N, rng.normal(size=N * N) * 5)
    force.addTorsion(0, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(1, 4, 5, 6, 7, 0, 5, 2, 1)
    force.addTorsion(0, 3, 2, 1, 0, 7, 5, 6, 3)
    return force


def nonbonded(rng):
    """Excluded pairs, and exceptions with parameters of their own, given in either order."""
    force = lone_charges(rng)
    for k in range(ATOMS):
        q, _, _ = force.getParticleParameters(k)
        force.setParticleParameters(k, q, rng.uniform(0.05, 0.12), rng.uniform(0, 2))
    force.addException(0, 1, 0.0, 0.1, 0.0)
    force.addException(4, 2, 0.0, 0.1, 0.0)
    force.addException(7, 3, 0.3, 0.11, 0.7)
    force.addException(5, 6, -0.2, 0.1, 0.0)
    force.addException(1, 6, 0.0, 0.09, 0.5)
    return force


def lone_charges(rng):
    force = openmm.NonbondedForce()
    for _ in range(ATOMS):
        force.addParticle(rng.normal(), 1.0, 0.0)
    return force


def springs(rng):
    """Position restraints with a global centre along z."""
    force = openmm.CustomExternalForce("0.5*k*((x-a)^2 + (y-b)^2 + (z-c)^2);")
    force.addGlobalParameter("c", rng.normal())
    for name in ("b", "k", "a"):
        force.addPerParticleParameter(name)
    for atom in (3, 0, 3):
        force.addParticle(atom, [rng.normal(), rng.uniform(1, 900), rng.normal()])
    return force


def custom_bonds(rng):
    force = openmm.CustomBondForce("K * (r - length)^2")
    for name in ("length", "K"):
        force.addPerBondParameter(name)
    for i, j in ((7, 1), (2, 6)):
        force.addBond(i, j, [rng.uniform(0.1, 0.4), rng.uniform(1, 1e4)])
    return force


def gbsa_obc(rng, atoms=ATOMS):
    """OpenMM's own OBC2, with dielectrics and a surface energy that are not the defaults."""
    force = openmm.GBSAOBCForce()
    force.setSoluteDielectric(1.5)
    force.setSolventDielectric(60.0)
    force.setSurfaceAreaEnergy(3.1)
    for _ in range(atoms):
        force.addParticle(rng.normal(), rng.uniform(0.1, 0.2), rng.uniform(0.5, 1.1))
    return force


def obc1(rng, **options):
    return _custom_gb(implicit.GBSAOBC1Force, rng, **options)


def obc2(rng, **options):
    return _custom_gb(implicit.GBSAOBC2Force, rng, **options)


def gbn(rng, **options):
    return _custom_gb(implicit.GBSAGBnForce, rng, **options)


def gbn2(rng, **options):
    return _custom_gb(implicit.GBSAGBn2Force, rng, **options)


def hct(rng, **options):
    return _custom_gb(implicit.GBSAHCTForce, rng, **options)


def _custom_gb(model, rng, atoms=ATOMS, SA="ACE", **options):
    """A model of implicit/*.xml on random particles; a few radii only, as in molecules, so that tables repeat."""
    force = model(SA=SA, **options)
    for _ in range(atoms):
        curve = [rng.uniform(0.4, 1.1), rng.uniform(0.2, 0.9), rng.uniform(0.1, 0.5)]
        more = curve if model is implicit.GBSAGBn2Force else []
        force.addParticle([rng.normal(), rng.choice([0.105, 0.12, 0.15, 0.1787, 0.19]), rng.uniform(0.5, 1.1), *more])
    force.finalize()
    return force


BONDED = [bonds, angles, torsions, rb_torsions, cmaps]
NONBONDED = [nonbonded, lone_charges]
RESTRAINTS = [springs, custom_bonds]
BORN = [gbsa_obc, obc1, obc2, gbn, gbn2]
FORCES = BONDED + NONBONDED + RESTRAINTS + BORN


def system(*forces, atoms=ATOMS):
    """A System of carbon masses with these forces, which it then owns."""
    result = openmm.System()
    for _ in range(atoms):
        result.addParticle(12.0)
    for force in forces:
        result.addForce(force)
    return result


def frames(n, atoms=ATOMS, seed=0):
    """Frames (n, atoms, 3) without overlaps: a jittered cubic lattice, its sites shuffled; exact in float32."""
    rng = np.random.default_rng(seed)
    side = math.ceil(atoms ** (1 / 3))
    grid = 0.25 * np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)
    x = np.stack([rng.permutation(grid)[:atoms] for _ in range(n)]) + rng.normal(size=(n, atoms, 3)) * 0.04
    return x.astype(np.float32).astype(float)


def shaken(x, n, seed=0, size=0.005):
    """n copies of a frame (A, 3), every coordinate moved by N(0, size^2) nm; exact in float32."""
    noise = np.random.default_rng(seed).normal(size=(n, *x.shape)) * size
    return (x + noise).astype(np.float32).astype(float)


# ---- peptides ----

FORCE_FIELDS = {
    "ff14SB": ["amber14/protein.ff14SB.xml"],
    "ff99SB-ILDN": ["amber99sbildn.xml"],
    "ff19SB": ["amber19/protein.ff19SB.xml"],  # carries CMAP
    "ff14SB obc1": ["amber14/protein.ff14SB.xml", "implicit/obc1.xml"],
    "ff14SB obc2": ["amber14/protein.ff14SB.xml", "implicit/obc2.xml"],
    "ff99SB-ILDN gbn": ["amber99sbildn.xml", "implicit/gbn.xml"],
    "ff14SB gbn2": ["amber14/protein.ff14SB.xml", "implicit/gbn2.xml"],
    "ff19SB gbn2": ["amber19/protein.ff19SB.xml", "implicit/gbn2.xml"],
    "ff96 GBSAOBC": ["amber96.xml", "amber96_obc.xml"],
}


@cache
def peptide(sequence: str, force_field: str) -> tuple[openmm.System, np.ndarray]:
    """A flexible System and extended positions (A, 3) in nm of a peptide in one-letter code, free ends.

    Args:
        sequence: 2 residues or more.
        force_field: a key of FORCE_FIELDS.
    """
    topology, x = _structure(sequence)
    return _build().flexible(_force_field(force_field), topology), x


def peptides(residues=(2, 5), force_fields=tuple(FORCE_FIELDS)):
    """Hypothesis strategy: arguments of `peptide`."""
    sequences = st.text(alphabet="ACDEFGHIKLMNPQRSTVWY", min_size=residues[0], max_size=residues[1])
    return st.tuples(sequences, st.sampled_from(force_fields))


@cache
def _structure(sequence):
    build = _build()
    torsions = [(-70 if letter == "P" else -120, 140) for letter in sequence]
    lines = build.heavy_atoms(sequence, torsions, {})
    lines.append(lines.pop(max(k for k, line in enumerate(lines) if line[12:16].strip() == "O")))  # OXT is made like it
    pdb = app.PDBFile(io.StringIO("\n".join([*build.with_oxt(lines), "END"])))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    random.seed(0)  # Modeller places hydrogens at random before it relaxes them
    platform = openmm.Platform.getPlatformByName("Reference")
    modeller.addHydrogens(_force_field("ff14SB"), pH=7.0, platform=platform)
    return modeller.topology, np.array(modeller.positions.value_in_unit(openmm.unit.nanometer))


@cache
def _force_field(name):
    return app.ForceField(*FORCE_FIELDS[name])


@cache
def _build():
    """systems/build.py, which makes the structures of the bundled systems."""
    spec = importlib.util.spec_from_file_location("systems_build", ROOT / "systems" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
