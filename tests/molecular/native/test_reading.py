"""Terms against OpenMM Reference: every force alone, molecules, merging, restraints, refusals, size."""

import time

import builders
import numpy as np
import openmm
import pytest
import reference
import torch
from hypothesis import given, settings
from openmm.app.internal.customgbforces import GBSAGBn2Force

from molsamp.molecular.native.reading import coulomb_constant, read
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.system import load

SYSTEMS = [
    "alanine-dipeptide",
    "alanine-dipeptide-gbn2",
    "alanine-dipeptide-obc",
    "alanine-dipeptide-obc1",
    "chignolin",
]


def judge(system, x, rtol=1e-10):
    """The energy of Terms is OpenMM's in every frame, to rtol of the largest energy."""
    E = OpenMMEnergy(system, "Reference").energy(torch.tensor(x)).numpy()
    assert np.isfinite(E).all() and E.std() > 0
    assert abs(reference.energies(read(system), x) - E).max() <= rtol * abs(E).max()


@pytest.mark.parametrize("make", builders.FORCES, ids=lambda make: make.__name__)
def test_each_force_alone(make):
    for seed in range(5):
        judge(builders.system(make(np.random.default_rng(seed))), builders.frames(40, seed=seed))


def test_all_forces_at_once():
    rng = np.random.default_rng(0)
    makes = builders.BONDED + builders.NONBONDED + builders.RESTRAINTS + [builders.gbn2]
    judge(builders.system(*(make(rng) for make in makes)), builders.frames(40))


@pytest.mark.parametrize("name", SYSTEMS)
def test_bundled_systems(name):
    system = load(name)
    for state in system.states.values():
        judge(system.forcefield_system(), builders.shaken(state.x.numpy(), 5))


@given(builders.peptides())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_peptides_of_random_sequence(arguments):
    system, x = builders.peptide(*arguments)
    judge(system, builders.shaken(x, 3))


def test_correction_maps_of_ff19sb_are_there():
    """The middle residues carry one; only the maps in use are kept."""
    grids = read(builders.peptide("GAAG", "ff19SB")[0]).grids
    assert len(grids.offset) == 2 and (grids.size == 24).all() and len(grids.patches) == 24**2
    assert (grids.offset == 0).all()


def test_a_map_of_two_by_two():
    force = openmm.CMAPTorsionForce()
    force.addMap(2, [1.0, -3.0, 2.0, 5.0])
    force.addTorsion(0, 0, 1, 2, 3, 4, 5, 6, 7)
    judge(builders.system(force), builders.frames(40))


def test_coulombs_constant_is_openmms():
    """Measured, not remembered: 138.935456 circulates and would cost six digits."""
    assert abs(coulomb_constant() - 138.9354576444) < 1e-8


# ---- what Terms hold ----


def test_pairs_are_ordered_and_exceptions_replace_them():
    force = builders.lone_charges(np.random.default_rng(0))
    for k in range(8):
        force.setParticleParameters(k, 1.0 + k, 0.1, 2.0)
    force.addException(3, 1, 0.0, 1.0, 0.0)
    force.addException(6, 2, 0.5, 0.2, 0.25)
    pairs = read(builders.system(force)).pairs
    expected = [[i, j] for i in range(8) for j in range(i + 1, 8) if (i, j) != (1, 3)]
    assert pairs.atoms.tolist() == expected
    k = expected.index([2, 6])
    assert np.allclose([pairs.qq[k], pairs.c6[k], pairs.c12[k]], [0.5 * coulomb_constant(), 0.2**6, 0.2**12])
    k = expected.index([0, 7])
    assert np.allclose([pairs.qq[k], pairs.c6[k], pairs.c12[k]], [8 * coulomb_constant(), 8 * 0.1**6, 8 * 0.1**12])


def test_equal_terms_are_merged_and_idle_ones_dropped():
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i, j, r0, k in ((4, 2, 0.1, 3.0), (2, 4, 0.1, 5.0), (2, 4, 0.2, 7.0), (0, 1, 0.1, 0.0)):
        bonds.addBond(i, j, r0, k)
    for atoms in ((5, 0, 3), (3, 0, 5)):
        angles.addAngle(*atoms, 1.0, 2.0)
    for atoms, n, k in (((7, 1, 2, 3), 2, 1.0), ((3, 2, 1, 7), 3, 1.0), ((0, 1, 2, 3), 50, 0.0)):
        torsions.addTorsion(*atoms, n, 0.5, k)
    terms = read(builders.system(bonds, angles, torsions))
    assert terms.bonds.atoms.tolist() == [[2, 4], [2, 4]]
    assert terms.bonds.r0.tolist() == [0.1, 0.2] and terms.bonds.k.tolist() == [8.0, 7.0]
    assert terms.angles.atoms.tolist() == [[3, 0, 5]] and terms.angles.k.tolist() == [4.0]
    assert terms.torsions.atoms.tolist() == [[3, 2, 1, 7]] and terms.torsions.cosine.shape == (1, 3)
    assert terms.torsions.constant == 2.0


def test_phases_of_zero_and_pi_leave_no_sines():
    """Whether pi has 16 digits or 12, as in amber99sbildn.xml; another phase keeps its sine."""
    for name in ("ff14SB", "ff99SB-ILDN"):
        assert not read(builders.peptide("AWK", name)[0]).torsions.sine.any()
    assert read(builders.system(builders.torsions(np.random.default_rng(0)))).torsions.sine.any()


def test_an_empty_system():
    terms = read(builders.system())
    assert reference.energies(terms, builders.frames(2)).tolist() == [0.0, 0.0]
    assert terms.atoms == 8 and terms.born is None and len(terms.pairs.atoms) == 0


# ---- restraints ----


def _external(expression, parameters=("k", "x0", "y0", "z0"), values=(3.0, 0.1, -0.2, 0.3)):
    force = openmm.CustomExternalForce(expression)
    for name in parameters:
        force.addPerParticleParameter(name)
    force.addParticle(5, values)
    return force


def _bond(expression, parameters=("k", "r0"), values=(3.0, 0.1)):
    force = openmm.CustomBondForce(expression)
    for name in parameters:
        force.addPerBondParameter(name)
    force.addBond(2, 6, values)
    return force


@pytest.mark.parametrize(
    ("expression", "k"),
    [
        ("k*((x-x0)^2+(y-y0)^2+(z-z0)^2)", 6.0),
        ("k * ( (x-x0)^2 + (y-y0)^2 + (z-z0)^2 ) ; ", 6.0),
        ("0.5*k*((z-z0)^2+(y-y0)^2+(x-x0)^2)", 3.0),
        ("k/2*((x-x0)^2+(y-y0)^2+(z-z0)^2)", 3.0),
        ("(k/2)*((x-x0)^2+(y-y0)^2+(z-z0)^2)", 3.0),
        ("(0.5*k)*((x-x0)^2+(y-y0)^2+(z-z0)^2)", 3.0),
        (".5*k*(y-y0)^2", 3.0),
        ("1e1*((y-0.25)^2+(z-z0)^2)", 20.0),
    ],
)
def test_position_restraints_in_any_of_their_usual_forms(expression, k):
    system = builders.system(_external(expression))
    judge(system, builders.frames(20))
    springs = read(system).springs
    assert springs.atoms.tolist() == [5] and springs.k.max() == k


@pytest.mark.parametrize("expression", ["k*(r-r0)^2", "0.5*k*(r-r0)^2;", "k/2*(r - r0)^2", "(k/2)*(r-0.3)^2"])
def test_bond_restraints_in_any_of_their_usual_forms(expression):
    judge(builders.system(_bond(expression)), builders.frames(20))


def test_a_parameter_of_the_term_hides_a_global_of_the_same_name():
    force = _bond("k*(r-r0)^2")
    force.addGlobalParameter("k", 100.0)
    judge(builders.system(force), builders.frames(20))


NOT_HARMONIC = [
    _external("k*((x-x0)^2+(y-y0)^2+(z-z0)^4)"),
    _external("k*((x-x0)^2+(y-y0)^2-(z-z0)^2)"),
    _external("k*((x-x0)^2+(x-y0)^2)"),
    _external("k*(x-x0)^2+(y-y0)^2"),
    _external("-k*(x-x0)^2"),
    _external("k*periodicdistance(x,y,z,x0,y0,z0)^2"),
    _external("k*((x-x0)^2+(y-y0)^2+(z-z0)^2); k=3"),
    _bond("k*(r-r0)^4"),
    _bond("k*(r-r0)"),
    _bond("0.25*k*(r-r0)^2"),
    _bond("max(0,k)*(r-r0)^2"),
    _bond("k*(r-length)^2"),
    _bond("k*(r-r)^2", ("k", "r"), (1.0, 0.5)),
]


@pytest.mark.parametrize("force", NOT_HARMONIC, ids=lambda force: force.getEnergyFunction())
def test_other_expressions_are_refused(force):
    words = "periodic" if "periodic" in force.getEnergyFunction() else "allowed"
    name = type(force).__name__
    with pytest.raises(ValueError, match=rf"force 1 \({name}\): found .*{words}.*use OpenMMEnergy"):
        read(builders.system(openmm.HarmonicAngleForce(), openmm.XmlSerializer.clone(force)))


# ---- refusals ----


def _periodic(force):
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def _nonbonded(change):
    force = builders.nonbonded(np.random.default_rng(0))
    force.addGlobalParameter("scale", 1.0)
    change(force)
    return force


def _few(force):
    force.addParticle(0.1, 0.15, 0.8)
    return force


def _badly(force, add, *arguments):
    getattr(force, add)(*arguments)
    return force


REFUSED = [
    (_periodic(openmm.HarmonicBondForce()), "periodic boundary"),
    (_periodic(openmm.HarmonicAngleForce()), "periodic boundary"),
    (_periodic(openmm.PeriodicTorsionForce()), "periodic boundary"),
    (_periodic(openmm.RBTorsionForce()), "periodic boundary"),
    (_periodic(openmm.CMAPTorsionForce()), "periodic boundary"),
    (_periodic(_bond("k*(r-r0)^2")), "periodic boundary"),
    (_nonbonded(lambda f: f.setNonbondedMethod(f.CutoffNonPeriodic)), "NoCutoff"),
    (_nonbonded(lambda f: f.setNonbondedMethod(f.PME)), "NoCutoff"),
    (_nonbonded(lambda f: f.addParticleParameterOffset("scale", 0, 1.0, 0.0, 0.0)), "offsets"),
    (_nonbonded(lambda f: f.addExceptionParameterOffset("scale", 0, 1.0, 0.0, 0.0)), "offsets"),
    (_nonbonded(lambda f: f.addParticle(1.0, 1.0, 1.0)), "9 particles; allowed: all 8"),
    (_nonbonded(lambda f: f.setParticleParameters(0, 1.0, -0.1, 1.0)), "epsilon -0.1"),
    (_nonbonded(lambda f: f.setExceptionParameters(0, 0, 1, 1.0, 0.1, -2.0)), "epsilon -2.0"),
    (_few(openmm.GBSAOBCForce()), "1 particles; allowed: all 8"),
    (_badly(openmm.HarmonicBondForce(), "addBond", 0, 8, 0.1, 1.0), "atom 8; allowed: 0 to 7"),
    (_badly(openmm.HarmonicAngleForce(), "addAngle", 0, -1, 2, 0.1, 1.0), "atom -1; allowed: 0 to 7"),
    (_badly(openmm.PeriodicTorsionForce(), "addTorsion", 0, 1, 2, 3, 0, 0.0, 1.0), "periodicity 0"),
    (_badly(openmm.CMAPTorsionForce(), "addTorsion", 0, 0, 1, 2, 3, 4, 5, 6, 7), "map 0"),
]


@pytest.mark.parametrize(("force", "words"), REFUSED, ids=[f"{type(f).__name__}: {words}" for f, words in REFUSED])
def test_refused_for_what_it_holds(force, words):
    system = builders.system(openmm.HarmonicAngleForce(), openmm.XmlSerializer.clone(force))
    with pytest.raises(ValueError, match=rf"force 1 \({type(force).__name__}\): found .*{words}.*use OpenMMEnergy"):
        read(system)


def _classes():
    """One instance of every other Force class of this OpenMM."""
    groups = {
        "CustomAngleForce": "theta",
        "CustomTorsionForce": "theta",
        "CustomNonbondedForce": "r",
        "CustomCVForce": "0",
        "CustomVolumeForce": "v",
    }
    yield from (getattr(openmm, name)(expression) for name, expression in groups.items())
    yield openmm.CustomCompoundBondForce(2, "distance(p1,p2)")
    yield openmm.CustomCentroidBondForce(2, "distance(g1,g2)")
    yield openmm.CustomHbondForce("distance(d1,a1)")
    yield openmm.CustomManyParticleForce(3, "distance(p1,p2)")
    yield openmm.MonteCarloBarostat(1.0, 300.0)
    yield openmm.MonteCarloAnisotropicBarostat((1.0, 1.0, 1.0), 300.0)
    yield openmm.MonteCarloMembraneBarostat(1.0, 0.0, 300.0, 0, 0)
    yield openmm.MonteCarloFlexibleBarostat(1.0, 300.0)
    yield openmm.AndersenThermostat(300.0, 1.0)
    yield openmm.RMSDForce(np.zeros((8, 3)))
    plain = ["GayBerneForce", "DrudeForce", "LCPOForce", "RGForce", "ATMForce", "OrientationRestraintForce"]
    plain += ["AmoebaMultipoleForce", "AmoebaVdwForce", "AmoebaTorsionTorsionForce", "HippoNonbondedForce"]
    for name in plain:
        try:
            yield getattr(openmm, name)()
        except (AttributeError, TypeError):  # not in this OpenMM, or not without arguments
            continue


@pytest.mark.parametrize("force", _classes(), ids=lambda force: type(force).__name__)
def test_every_other_class_is_refused_by_name_and_index(force):
    system = builders.system(openmm.HarmonicAngleForce(), openmm.HarmonicBondForce(), openmm.XmlSerializer.clone(force))
    with pytest.raises(ValueError, match=rf"force 2 \({type(force).__name__}\): .*HarmonicBond.*use OpenMMEnergy"):
        read(system)


def test_two_born_forces_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"force 1 \(CustomGBForce\): found a second generalised Born"):
        read(builders.system(builders.gbsa_obc(rng), builders.obc1(rng)))


def test_constraints_motion_remover_and_virtual_sites_are_refused():
    system = builders.system()
    system.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match=r"1 constraints .*atoms 0 and 1.*path density is undefined"):
        read(system)
    with pytest.raises(ValueError, match=r"force 0 \(CMMotionRemover\)"):
        read(builders.system(openmm.CMMotionRemover()))
    system = builders.system()
    system.setParticleMass(4, 0.0)
    system.setVirtualSite(4, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"particle 4 is a virtual site.*OpenMMEnergy"):
        read(system)


@pytest.mark.slow
def test_a_protein_of_4700_atoms_is_read_in_20_seconds():
    """11 million pairs, 19 thousand exceptions, neck tables; 4 s measured."""
    rng, A = np.random.default_rng(0), 4700
    nonbonded, bonds, torsions, born = (
        openmm.NonbondedForce(),
        openmm.HarmonicBondForce(),
        openmm.PeriodicTorsionForce(),
        GBSAGBn2Force(),
    )
    for _ in range(A):
        q = rng.normal()
        nonbonded.addParticle(q, 0.3, 0.4)
        born.addParticle([q, rng.choice([0.12, 0.13, 0.15, 0.17]), 0.8, 1.0, 0.8, 4.8])
    born.finalize()
    for k in range(A - 4):
        bonds.addBond(k, k + 1, 0.1, 1000.0)
        for l in range(1, 5):
            nonbonded.addException(k, k + l, 0.01 * l, 0.3, 0.1)
            torsions.addTorsion(k, k + 1, k + 2, k + 3, l, 0.1, 1.0)
    system = builders.system(nonbonded, bonds, torsions, born, atoms=A)
    start = time.perf_counter()
    terms = read(system)
    assert time.perf_counter() - start < 20
    assert len(terms.pairs.qq) == A * (A - 1) // 2 and terms.born.neck.shape == (2, A, A)
