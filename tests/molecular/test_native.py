"""NativeEnergy against OpenMM Reference, term by term and whole; derivatives, invariances, refusals, faults."""

import math

import numpy as np
import openmm
import pytest
import torch

from molsamp.molecular.native import torch_tier as native
from molsamp.molecular.native.torch_tier import NativeEnergy, coulomb_constant
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.system import load

ATOMS = 8


def _bonds(rng):
    force = openmm.HarmonicBondForce()
    for i, j in ((0, 1), (5, 2), (1, 7), (1, 0)):
        force.addBond(i, j, rng.uniform(0.1, 0.2), rng.uniform(1e4, 3e5))
    return force


def _angles(rng):
    force = openmm.HarmonicAngleForce()
    for i, j, l in ((0, 1, 2), (4, 3, 5), (7, 0, 6), (2, 1, 3)):
        force.addAngle(i, j, l, rng.uniform(0, math.pi), rng.uniform(100, 900))
    return force


def _torsions(rng):
    """Periodicities 1 to 6, phases of any value, several terms on one quadruple and on its reverse."""
    force = openmm.PeriodicTorsionForce()
    for n in range(1, 7):
        force.addTorsion(0, 1, 2, 3, n, rng.uniform(-4, 4), rng.uniform(-20, 20))
        force.addTorsion(3, 2, 1, 0, n, rng.uniform(-4, 4), rng.uniform(-20, 20))
    force.addTorsion(4, 7, 1, 6, 3, 0.0, 7.0)
    force.addTorsion(2, 5, 6, 0, 2, math.pi, 9.0)
    return force


def _nonbonded(rng):
    """Excluded pairs, and exceptions with parameters of their own, given in either order."""
    force = openmm.NonbondedForce()
    for _ in range(ATOMS):
        force.addParticle(rng.normal(), rng.uniform(0.05, 0.12), rng.uniform(0, 2))
    force.addException(0, 1, 0.0, 0.1, 0.0)
    force.addException(4, 2, 0.0, 0.1, 0.0)
    force.addException(7, 3, 0.3, 0.11, 0.7)
    force.addException(5, 6, -0.2, 0.1, 0.0)
    force.addException(1, 6, 0.0, 0.09, 0.5)
    return force


def _lone_charges(rng):
    force = openmm.NonbondedForce()
    for _ in range(ATOMS):
        force.addParticle(rng.normal(), 1.0, 0.0)
    return force


FORCES = [_bonds, _angles, _torsions, _nonbonded, _lone_charges]


def _system(*forces, atoms=ATOMS):
    system = openmm.System()
    for _ in range(atoms):
        system.addParticle(12.0)
    for force in forces:
        system.addForce(force)
    return system


def _frames(n, atoms=ATOMS, seed=0):
    """Random frames without overlaps: a jittered cubic lattice, its sites shuffled; exact in float32."""
    rng = np.random.default_rng(seed)
    side = math.ceil(atoms ** (1 / 3))
    grid = 0.25 * np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)
    x = np.stack([rng.permutation(grid)[:atoms] for _ in range(n)]) + rng.normal(size=(n, atoms, 3)) * 0.04
    return torch.tensor(x, dtype=torch.float32).double()


def _error(F, reference):
    return float(torch.linalg.vector_norm(F - reference) / torch.linalg.vector_norm(reference))


@pytest.fixture(scope="module")
def peptide():
    """System of alanine dipeptide in vacuum, and 64 frames jittered by 0.005 nm about its start, float32-exact."""
    alanine = load("alanine-dipeptide")
    x = next(iter(alanine.states.values())).x
    jitter = torch.randn(64, *x.shape, generator=torch.Generator().manual_seed(0)) * 0.005
    return alanine.forcefield_system(), (x + jitter).float().double()


@pytest.mark.parametrize("make", FORCES)
def test_each_force_alone_against_reference(make):
    """1000 frames over 5 random parameter sets: 1e-9 in float64, 5e-6 in float32 (norm of the force)."""
    for seed in range(5):
        system, x = _system(make(np.random.default_rng(seed))), _frames(200, seed=seed)
        E_ref, F_ref = OpenMMEnergy(system, "Reference").energy_force(x)
        E, F = NativeEnergy.from_openmm(system).energy_force(x)
        assert _error(F, F_ref) < 1e-12
        assert torch.allclose(E, E_ref, rtol=1e-11, atol=1e-9)
        E, F = NativeEnergy.from_openmm(system, torch.float32).energy_force(x)
        assert _error(F, F_ref) < 5e-6
        assert torch.allclose(E, E_ref, rtol=1e-5, atol=1e-2)


def test_whole_alanine_dipeptide_against_reference(peptide):
    system, x = peptide
    E_ref, F_ref = OpenMMEnergy(system, "Reference").energy_force(x)
    E, F = NativeEnergy.from_openmm(system).energy_force(x)
    assert _error(F, F_ref) < 1e-12 and (E - E_ref).abs().max() < 1e-9
    E, F = NativeEnergy.from_openmm(system, torch.float32).energy_force(x)
    assert _error(F, F_ref) < 5e-6 and (E - E_ref).abs().max() < 5e-3
    worst = (F - F_ref).abs().max() / F_ref.square().mean().sqrt()
    assert worst < 2e-5


def test_gather_and_scatter_agree_with_the_dense_incidence(peptide, monkeypatch):
    system, x = peptide
    E, F = NativeEnergy.from_openmm(system).energy_force(x)
    monkeypatch.setattr(native, "_DENSE_ATOMS", 0)
    E_sparse, F_sparse = NativeEnergy.from_openmm(system).energy_force(x)
    assert torch.allclose(E, E_sparse, rtol=1e-12) and _error(F_sparse, F) < 1e-13


def test_force_is_minus_the_gradient_by_central_differences(peptide):
    """Relative 1e-7 with h = 1e-5 nm, second-order differences extrapolated once so that h is not the limit."""
    system, x = peptide
    energy, x = NativeEnergy.from_openmm(system), x[:2]
    F = energy.force(x)

    def slope(h):
        steps = torch.eye(66, dtype=torch.float64).view(66, 22, 3) * h
        E = energy.energy((x[:, None] + torch.stack([steps, -steps])[:, None, :]).reshape(-1, 22, 3))
        plus, minus = E.view(2, 2, 66)
        return (plus - minus).view(2, 22, 3) / (2 * h)

    extrapolated = (4 * slope(1e-4) - slope(2e-4)) / 3
    assert _error(-extrapolated, F) < 1e-7


def test_almost_straight_angle_and_straight_angle():
    """theta = pi - 1e-4 has an exact force; exactly pi has none, as in OpenMM."""
    force = openmm.HarmonicAngleForce()
    force.addAngle(0, 1, 2, 2.0, 400.0)
    system = _system(force, atoms=3)
    x = torch.zeros(2, 3, 3, dtype=torch.float64)
    for row, bend in enumerate((1e-4, 0.0)):
        x[row, 0, 0] = 0.1
        x[row, 2, 0], x[row, 2, 1] = -0.12 * math.cos(bend), 0.12 * math.sin(bend)
    E, F = NativeEnergy.from_openmm(system).energy_force(x)
    exact = -400.0 * (math.pi - 1e-4 - 2.0)  # torque of the spring
    assert abs(F[0, 2, 1].item() * 0.12 / math.cos(1e-4) + exact) < abs(exact) * 1e-6
    assert F[1].abs().max() < 1e-7  # rounding
    theta = torch.tensor([math.pi - 1e-4, math.pi], dtype=torch.float64)
    assert torch.allclose(E, 200 * (theta - 2) ** 2, rtol=1e-12)


def test_no_net_force_and_no_net_torque(peptide):
    system, x = peptide
    F = NativeEnergy.from_openmm(system).force(x)
    size = F.abs().sum((1, 2)).max()
    assert F.sum(1).abs().max() < 1e-12 * size
    assert torch.linalg.cross(x, F).sum(1).abs().max() < 1e-12 * size


def test_rotates_with_the_molecule_and_sees_the_mirror_only_through_odd_phases(peptide):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    G = q * torch.linalg.det(q)
    system, x = peptide
    energy = NativeEnergy.from_openmm(system)
    E, F = energy.energy_force(x)
    E_turned, F_turned = energy.energy_force(x @ G.T + 1.0)
    assert torch.allclose(E_turned, E, rtol=1e-10) and _error(F_turned, F @ G.T) < 1e-10
    assert torch.allclose(energy.energy(-x), E, rtol=1e-12)  # amber phases are 0 or pi
    odd = NativeEnergy.from_openmm(_system(_torsions(np.random.default_rng(0))))
    y = _frames(20)
    assert (odd.energy(-y) - odd.energy(y)).abs().min() > 1e-6


def test_permuted_replicas_give_permuted_results_bitwise(peptide):
    system, x = peptide
    for dtype in (torch.float32, torch.float64):
        energy = NativeEnergy.from_openmm(system, dtype)
        order = torch.randperm(37, generator=torch.Generator().manual_seed(2))
        E, F = energy.energy_force(x[:37])
        E_p, F_p = energy.energy_force(x[:37][order])
        assert torch.equal(E_p, E[order]) and torch.equal(F_p, F[order])


def test_any_batch_size_and_any_split_into_blocks(peptide):
    system, x = peptide
    energy = NativeEnergy.from_openmm(system)
    E, F = energy.energy_force(x)
    energy.block = 16
    for n in (0, 1, 15, 16, 17, 37, 64):
        E_n, F_n = energy.energy_force(x[:n])
        assert E_n.shape == (n,) and torch.allclose(E_n, E[:n], rtol=1e-12)
        assert F_n.shape == (n, 22, 3) and torch.allclose(F_n, F[:n], rtol=1e-10, atol=1e-9)
    assert energy.evaluations == 64 + 150
    for n in range(16, 16 * 12, 16):  # more sizes than kernels are kept
        energy._kernel(n, x.device)
    assert torch.equal(energy.energy(x[:16]), energy.energy(x[:16]))


def test_results_are_fresh_tensors_in_the_callers_dtype(peptide):
    """The buffers are reused by the next call; what was handed out must not change with it."""
    system, x = peptide
    energy = NativeEnergy.from_openmm(system, torch.float32)
    E, F = energy.energy_force(x[:16])
    kept = E.clone(), F.clone()
    energy.energy_force(x[16:32])
    assert torch.equal(E, kept[0]) and torch.equal(F, kept[1])
    assert E.dtype == F.dtype == torch.float64 and F.is_contiguous()
    assert energy.tier == "torch-float32"
    assert energy.force(x.float()).dtype == torch.float32


def test_kernels_survive_inference_mode_and_positions_that_require_gradients(peptide):
    system, x = peptide
    energy = NativeEnergy.from_openmm(system)
    with torch.inference_mode():
        F = energy.force(x).clone()
    assert torch.equal(energy.force(x.clone().requires_grad_()), F)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_poisoned_replica_harms_no_other(peptide, dtype):
    """NaN, inf, coincident atoms, 1e6 nm apart: non-finite or far, each in its own row only."""
    system, x = peptide
    energy = NativeEnergy.from_openmm(system, dtype)
    E, F = energy.energy_force(x)
    bad = x.clone()
    bad[3, 5, 1] = torch.nan
    bad[9, 0] = torch.inf
    bad[20, 7] = bad[20, 18]
    bad[33, 2] += 1e6
    E_bad, F_bad = energy.energy_force(bad)
    keep = [k for k in range(64) if k not in (3, 9, 20, 33)]
    assert torch.equal(E_bad[keep], E[keep]) and torch.equal(F_bad[keep], F[keep])
    assert not E_bad[[3, 9, 20]].isfinite().any()
    assert F_bad[33].isfinite().all() and E_bad[33] > 1e6


def test_collinear_torsion_is_marked():
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 2, 0.0, 5.0)
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[:, :, 2] = torch.arange(4) * 0.1
    x[1, 0, 0], x[1, 3, 1] = 0.1, 0.1
    E, _ = NativeEnergy.from_openmm(_system(force, atoms=4)).energy_force(x)
    assert E.isnan().tolist() == [True, False]


def test_empty_system_and_constant_torsion_energy():
    system = _system(_lone_charges(np.random.default_rng(0)))
    for k in range(ATOMS):
        system.getForce(0).setParticleParameters(k, 0.0, 1.0, 0.0)
    E, F = NativeEnergy.from_openmm(system).energy_force(_frames(3))
    assert E.abs().max() == 0 and F.abs().max() == 0


def test_coulombs_constant_is_openmms():
    """Measured, not remembered: 138.935456 circulates and would cost six digits."""
    assert abs(coulomb_constant() - 138.9354576444) < 1e-8


def _custom():
    force = openmm.CustomBondForce("r")
    force.addBond(0, 1)
    return force


def _periodic(force):
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def _cutoff():
    force = _nonbonded(np.random.default_rng(0))
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    return force


def _offsets(kind):
    force = _nonbonded(np.random.default_rng(0))
    force.addGlobalParameter("scale", 1.0)
    if kind == "particle":
        force.addParticleParameterOffset("scale", 0, 1.0, 0.0, 0.0)
    else:
        force.addExceptionParameterOffset("scale", 0, 1.0, 0.0, 0.0)
    return force


REFUSED = [
    (_custom(), "CustomBondForce"),
    (openmm.GBSAOBCForce(), "GBSAOBCForce"),
    (openmm.CustomGBForce(), "CustomGBForce"),
    (openmm.CMAPTorsionForce(), "CMAPTorsionForce"),
    (openmm.RBTorsionForce(), "RBTorsionForce"),
    (openmm.MonteCarloBarostat(1.0, 300.0), "MonteCarloBarostat"),
    (openmm.AndersenThermostat(300.0, 1.0), "AndersenThermostat"),
    (openmm.CMMotionRemover(), "CMMotionRemover"),
    (_periodic(openmm.HarmonicBondForce()), "HarmonicBondForce.*periodic boundary"),
    (_periodic(openmm.PeriodicTorsionForce()), "PeriodicTorsionForce.*periodic boundary"),
    (_cutoff(), "NonbondedForce.*NoCutoff"),
    (_offsets("particle"), "NonbondedForce.*offsets"),
    (_offsets("exception"), "NonbondedForce.*offsets"),
]


@pytest.mark.parametrize(
    ("force", "words"), REFUSED, ids=[words.split(".")[0] + str(k) for k, (_, words) in enumerate(REFUSED)]
)
def test_everything_else_is_refused_by_name_and_index(force, words):
    system = _system(openmm.HarmonicAngleForce(), openmm.XmlSerializer.clone(force))
    with pytest.raises(ValueError, match=rf"force 1 \({words.split('.')[0]}\)") as error:
        NativeEnergy.from_openmm(system)
    assert "OpenMMEnergy" in str(error.value) or "CMMotionRemover" in str(error.value)


def test_constraints_and_virtual_sites_are_refused():
    system = _system()
    system.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match=r"1 constraints .*atoms 0 and 1.*path density is undefined"):
        NativeEnergy.from_openmm(system)
    system = _system()
    system.setParticleMass(4, 0.0)
    system.setVirtualSite(4, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"particle 4 is a virtual site.*OpenMMEnergy"):
        NativeEnergy.from_openmm(system)
