"""Both native tiers: every term against OpenMM Reference, derivatives, invariances, grids, faults."""

import math
from dataclasses import replace

import builders
import checks
import numpy as np
import openmm
import pytest
import reference
import torch
from material import by_autograd, empty, frames, grids, molecule, name, one_force

from molsamp.molecular.native.energy import NativeEnergy
from molsamp.molecular.native.reading import read
from molsamp.molecular.native.terms import Born
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.system import load

SYSTEMS = [
    "alanine-dipeptide",
    "alanine-dipeptide-gbn2",
    "alanine-dipeptide-obc",
    "alanine-dipeptide-obc1",
    "chignolin",
]


@pytest.fixture(params=["torch", "lanes"])
def tier(request):
    """(terms, dtype) -> energy_force."""
    return lambda terms, dtype=torch.float64: NativeEnergy(terms, dtype, request.param, threads=1).energy_force


@pytest.mark.parametrize("make", builders.FORCES, ids=name)
def test_each_force_alone_on_1000_frames(tier, make):
    for seed in range(5):
        checks.agrees_with_openmm(tier, one_force(make, seed), frames(200, seed=seed), cancelling=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_bundled_systems(tier, system):
    system = load(system)
    for state in system.states.values():
        checks.agrees_with_openmm(tier, system.forcefield_system(), torch.tensor(builders.shaken(state.x.numpy(), 8)))


@pytest.mark.parametrize("force_field", builders.FORCE_FIELDS)
def test_peptides_of_every_force_field(tier, force_field):
    system, x = builders.peptide("WGP", force_field)
    checks.agrees_with_openmm(tier, system, torch.tensor(builders.shaken(x, 8)))


@pytest.mark.parametrize("make", builders.BORN, ids=name)
def test_atoms_inside_one_another(tier, make):
    """Frames shrunk until half of the pairs lie inside each other: both branches of H, both classes of force."""
    system, x = one_force(make, 2), (0.15 * frames(40)).float().double()
    born, r = read(system).born, torch.cdist(x, x).numpy()
    assert (born.s - r > born.o[:, None]).sum() > 20
    F_ref = OpenMMEnergy(system, "Reference").force(x)
    F, F_32 = (tier(read(system), dtype)(x)[1] for dtype in (torch.float64, torch.float32))
    assert checks.frame_errors(F, F_ref).max() < checks.FLOAT64
    assert checks.frame_errors(F_32, F_ref).max() < 5e-5  # at 0.02 nm the terms of H are large and cancel
    checks.is_minus_the_gradient(tier(read(system)), x[:4])


@pytest.mark.parametrize("make", [builders.gbn, builders.gbn2], ids=name)
def test_a_transposed_neck_table_is_seen(tier, make):
    system, x = one_force(make), frames(20)
    terms = read(system)
    turned = replace(terms, born=replace(terms.born, neck=terms.born.neck.transpose(0, 2, 1)))
    F, F_turned = (tier(t)(x)[1] for t in (terms, turned))
    assert checks.frame_errors(F_turned, F).max() > 1e-4
    with pytest.raises(AssertionError):
        checks.agrees_with_openmm(lambda t, dtype: tier(turned, dtype), system, x)


@pytest.mark.parametrize("make", builders.FORCES, ids=name)
def test_each_force_is_minus_the_gradient(tier, make):
    """The smallest forces are those of grids and torsions; 1e-7 leaves room for the rounding of E / h."""
    checks.is_minus_the_gradient(tier(read(one_force(make))), frames(4))


def test_whole_molecules_are_minus_the_gradient(tier, vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        checks.is_minus_the_gradient(tier(terms), x[:2])


def test_the_neck_ends_where_openmms_does(tier):
    """At r = rho_i + rho_j + 0.68 nm E has a step, 2e-4 kJ/mol here, and the force is exact on both sides.

    Differences across the step are off by step / 2h = 10 kJ/mol/nm, so they are taken 1e-4 nm away from it.
    """
    force = builders.implicit.GBSAGBn2Force(SA="ACE")
    for _ in range(2):
        force.addParticle([1.0, 0.15, 0.8, 1.0, 0.8, 4.85])
    force.finalize()
    system = builders.system(force, atoms=2)
    terms = read(system)
    cut = 2 * terms.born.rho[0] + 0.68
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    x[:, 1, 0] = torch.tensor([cut - 1e-4, cut - 1e-6, cut + 1e-6, cut + 1e-4])
    checks.agrees_with_openmm(tier, system, x)
    checks.is_minus_the_gradient(tier(terms), x[[0, 3]])
    (below, above), (F_below, _) = (v[1:3] for v in tier(terms)(x))
    step = (below - above + 2e-6 * F_below[1, 0]).abs().item()
    assert 1e-4 < step < 3e-4


def test_almost_straight_angle_and_straight_angle(tier):
    """theta = pi - 1e-4 has an exact force; exactly pi has none, as in OpenMM."""
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, 2.0, 400.0)
    terms = read(builders.system(force, atoms=3))
    x = torch.zeros(2, 3, 3, dtype=torch.float64)
    for row, bend in enumerate((1e-4, 0.0)):
        x[row, 0, 0] = 0.1
        x[row, 2, 0], x[row, 2, 1] = -0.12 * math.cos(bend), 0.12 * math.sin(bend)
    torque = 400.0 * (math.pi - 1e-4 - 2.0)
    theta = torch.tensor([math.pi - 1e-4, math.pi], dtype=torch.float64)
    for forces in (tier(terms), by_autograd(terms)):
        E, F = forces(x)
        assert abs(F[0, 2, 1].item() * 0.12 / math.cos(1e-4) - torque) < torque * 1e-6
        assert F[1].abs().max() < 1e-7  # rounding
        assert torch.allclose(E, 200 * (theta - 2) ** 2, rtol=1e-12)


def test_no_net_force_and_no_net_torque(tier, vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            checks.has_no_net_force_and_no_net_torque(tier(terms, dtype), x, tolerance)


def test_turns_with_the_molecule(tier, vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        checks.turns_with_the_molecule(tier(terms), x)


def test_the_mirror_is_seen_through_odd_phases_and_maps_only(tier, vacuum, gbn2):
    for terms, x in (vacuum, gbn2):  # amber phases are 0 or pi
        assert torch.allclose(tier(terms)(-x)[0], tier(terms)(x)[0], rtol=1e-12)
    x = frames(20)
    for make in (builders.torsions, builders.cmaps):
        forces = tier(read(one_force(make)))
        assert (forces(-x)[0] - forces(x)[0]).abs().min() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_permuted_replicas_give_permuted_results_bitwise(tier, vacuum, gbn2, dtype):
    for terms, x in (vacuum, gbn2):
        checks.permutes_bitwise(tier(terms, dtype), x[:37])


def test_coincident_atoms_without_interaction_are_no_fault(tier):
    """Atoms 0 and 1 are excluded from each other, and nothing else acts between them."""
    terms, x = read(one_force(builders.nonbonded)), frames(2)
    x[1, 1] = x[1, 0]
    assert torch.isfinite(tier(terms)(x)[0]).all() and torch.isfinite(tier(terms)(x)[1]).all()
    assert torch.allclose(tier(terms)(x)[1], by_autograd(terms)(x)[1], rtol=1e-11)


def test_grids_of_torsions_and_distances_inside_and_outside(tier):
    terms, x = replace(empty(8), grids=grids(np.random.default_rng(0))), frames(200)
    r = torch.linalg.vector_norm(x[:, 2] - x[:, 6], dim=1)
    assert (r < 0.25).sum() > 10 and (r > 0.35).sum() > 10 and ((r > 0.25) & (r < 0.35)).sum() > 10
    E = torch.tensor(reference.energies(terms, x.numpy()))
    assert torch.allclose(tier(terms)(x)[0], E, rtol=1e-10, atol=1e-9)
    checks.is_minus_the_gradient(tier(terms), x[:10])
    F, F_32 = tier(terms)(x)[1], tier(terms, torch.float32)(x)[1]
    assert (checks.frame_errors(F_32, F) < (5 * checks.sensitivity(tier(terms), x)).clamp(min=5e-6)).all()


def test_grids_beside_torsions_and_bonds(tier):
    """The rows of grids stand between and after those of other terms."""
    system = builders.system(*(make(np.random.default_rng(0)) for make in (builders.bonds, builders.angles)))
    system.addForce(builders.torsions(np.random.default_rng(0)))
    terms, x = replace(read(system), grids=grids(np.random.default_rng(1))), frames(5)
    E = torch.tensor(reference.energies(terms, x.numpy()))
    assert torch.allclose(tier(terms)(x)[0], E, rtol=1e-11)
    checks.is_minus_the_gradient(tier(terms), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_poisoned_replica_harms_no_other(tier, vacuum, gbn2, dtype):
    for terms, x in (vacuum, gbn2, molecule("chignolin", 12)):
        forces = tier(terms, dtype)
        checks.poisons_harm_no_other(forces, x, atom=5)
        E, F = forces(x)
        coincident = x.clone()
        coincident[2, 7] = coincident[2, 18]
        E_bad, F_bad = forces(coincident)
        keep = [k for k in range(len(x)) if k != 2]
        assert torch.equal(E_bad[keep], E[keep]) and torch.equal(F_bad[keep], F[keep])
        assert not E_bad[2].isfinite()


def test_a_born_radius_that_is_not_positive_is_nan_in_its_replica(tier):
    """With rho < o, an atom in the open has B = o > 0, one deep inside others has 1/B = 1/o - 1/rho < 0."""
    one = np.ones(8)
    born = Born(one, 0.1 * one, 0.15 * one, 0.25 * one, one, 0 * one, one, 100.0, 28.0, None, False)
    terms, x = replace(empty(8), born=born), torch.cat([frames(2) * 20, frames(1)])
    for dtype in (torch.float64, torch.float32):
        for forces in (tier(terms, dtype), by_autograd(terms, dtype)):
            E, F = forces(x)
            assert E.isnan().tolist() == F.isnan().any(2).any(1).tolist() == [False, False, True]


def test_a_collinear_torsion_is_marked(tier):
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 2, 0.0, 5.0)
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[:, :, 2] = torch.arange(4) * 0.1
    x[1, 0, 0], x[1, 3, 1] = 0.1, 0.1
    terms = read(builders.system(force, atoms=4))
    for forces in (tier(terms), by_autograd(terms)):
        assert forces(x)[0].isnan().tolist() == [True, False]


def test_nothing_at_all_has_the_constant_energy(tier):
    terms = empty(8)
    terms = replace(terms, torsions=replace(terms.torsions, constant=3.5))
    for forces in (tier(terms), by_autograd(terms)):
        E, F = forces(frames(3))
        assert E.tolist() == [3.5] * 3 and F.abs().max() == 0
