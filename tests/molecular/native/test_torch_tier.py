"""The torch tier: every term against OpenMM Reference, derivatives, invariances, chunks, faults, autograd, compiler."""

import math
from dataclasses import replace

import builders
import checks
import numpy as np
import openmm
import pytest
import reference
import torch

from molsamp.molecular.native import torch_bonded, torch_tier
from molsamp.molecular.native.reading import read
from molsamp.molecular.native.splines import patches
from molsamp.molecular.native.terms import DISTANCE, NONE, TORSION, Born, Grids
from molsamp.molecular.native.torch_rings import partners, placement
from molsamp.molecular.native.torch_tier import TorchForces
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.system import load

SYSTEMS = [
    "alanine-dipeptide",
    "alanine-dipeptide-gbn2",
    "alanine-dipeptide-obc",
    "alanine-dipeptide-obc1",
    "chignolin",
]


def tier(terms, dtype=torch.float64):
    return TorchForces(terms, dtype).energy_force


def by_autograd(terms, dtype=torch.float64):
    """E and F of the plain energy, through autograd."""
    energy = TorchForces(terms, dtype)

    def energy_force(x):
        x = x.detach().requires_grad_()
        E = energy.differentiable(x)
        return E.detach(), -torch.autograd.grad(E.sum(), x)[0]

    return energy_force


def frames(n, **options):
    return torch.tensor(builders.frames(n, **options))


def one_force(make, seed=0):
    return builders.system(make(np.random.default_rng(seed)))


def name(make):
    return make.__name__


def molecule(system, n, state=0):
    """Terms and n shaken frames of a bundled system."""
    system = load(system)
    x = list(system.states.values())[state].x
    return read(system.forcefield_system()), torch.tensor(builders.shaken(x.numpy(), n))


@pytest.fixture(scope="module")
def vacuum():
    return molecule("alanine-dipeptide", 64)


@pytest.fixture(scope="module")
def gbn2():
    return molecule("alanine-dipeptide-gbn2", 40)


def empty(atoms):
    """Terms of nothing."""
    return read(builders.system(atoms=atoms))


# ---- against OpenMM ----


@pytest.mark.parametrize("make", builders.FORCES, ids=name)
def test_each_force_alone_on_1000_frames(make):
    for seed in range(5):
        checks.agrees_with_openmm(tier, one_force(make, seed), frames(200, seed=seed), cancelling=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_bundled_systems(system):
    system = load(system)
    for state in system.states.values():
        checks.agrees_with_openmm(tier, system.forcefield_system(), torch.tensor(builders.shaken(state.x.numpy(), 8)))


@pytest.mark.parametrize("force_field", builders.FORCE_FIELDS)
def test_peptides_of_every_force_field(force_field):
    system, x = builders.peptide("WGP", force_field)
    checks.agrees_with_openmm(tier, system, torch.tensor(builders.shaken(x, 8)))


@pytest.mark.parametrize("make", builders.BORN, ids=name)
def test_atoms_inside_one_another(make):
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
def test_a_transposed_neck_table_is_seen(make):
    system, x = one_force(make), frames(20)
    terms = read(system)
    turned = replace(terms, born=replace(terms.born, neck=terms.born.neck.transpose(0, 2, 1)))
    F, F_turned = (tier(t)(x)[1] for t in (terms, turned))
    assert checks.frame_errors(F_turned, F).max() > 1e-4
    with pytest.raises(AssertionError):
        checks.agrees_with_openmm(lambda t, dtype: tier(turned, dtype), system, x)


# ---- derivatives ----


@pytest.mark.parametrize("make", builders.FORCES, ids=name)
def test_each_force_is_minus_the_gradient(make):
    """The smallest forces are those of grids and torsions; 1e-7 leaves room for the rounding of E / h."""
    checks.is_minus_the_gradient(tier(read(one_force(make))), frames(4))


def test_whole_molecules_are_minus_the_gradient(vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        checks.is_minus_the_gradient(tier(terms), x[:2])


def test_the_neck_ends_where_openmms_does():
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


def test_almost_straight_angle_and_straight_angle():
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


# ---- invariances ----


def test_no_net_force_and_no_net_torque(vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            checks.has_no_net_force_and_no_net_torque(tier(terms, dtype), x, tolerance)


def test_turns_with_the_molecule(vacuum, gbn2):
    for terms, x in (vacuum, gbn2):
        checks.turns_with_the_molecule(tier(terms), x)


def test_the_mirror_is_seen_through_odd_phases_and_maps_only(vacuum, gbn2):
    for terms, x in (vacuum, gbn2):  # amber phases are 0 or pi
        assert torch.allclose(tier(terms)(-x)[0], tier(terms)(x)[0], rtol=1e-12)
    x = frames(20)
    for make in (builders.torsions, builders.cmaps):
        forces = tier(read(one_force(make)))
        assert (forces(-x)[0] - forces(x)[0]).abs().min() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_permuted_replicas_give_permuted_results_bitwise(vacuum, gbn2, dtype):
    for terms, x in (vacuum, gbn2):
        checks.permutes_bitwise(tier(terms, dtype), x[:37])


def test_any_batch_size_and_any_split_into_blocks(vacuum, gbn2, monkeypatch):
    for terms, x in (vacuum, gbn2):
        checks.takes_any_batch(tier(terms), x)
    energy = TorchForces(terms)
    whole = energy.energy_force(x)
    monkeypatch.setattr(energy, "block", lambda device: 16)
    for a, b in zip(energy.energy_force(x), whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9)
    for n in range(16, 16 * 12, 16):  # more sizes than tapes are kept
        energy._tape(n, x.device)
    assert torch.equal(energy.energy_force(x[:16])[0], energy.energy_force(x[:16])[0])


# ---- all pairs ----


@pytest.mark.parametrize("A", range(10))
def test_shells_meet_every_pair_once(A):
    tails, ghosts = partners(A)
    heads = np.broadcast_to(np.arange(A), tails.shape)
    pairs = [tuple(sorted(p)) for p in zip(heads[~ghosts].tolist(), tails[~ghosts].tolist(), strict=True)]
    i, j = np.triu_indices(A, 1)
    assert sorted(pairs) == list(zip(i.tolist(), j.tolist(), strict=True))
    shell, head = placement(A, i, j)
    assert not ghosts[shell, head].any()
    assert (np.sort([heads[shell, head], tails[shell, head]], 0) == [i, j]).all()


@pytest.mark.parametrize("A", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("make", [builders.gbn2, builders.gbsa_obc], ids=name)
def test_any_number_of_atoms_and_any_chunks(A, make, monkeypatch):
    """Against the definition in numpy, with all shells in one chunk and with one shell a chunk."""
    force = make(np.random.default_rng(A), atoms=A)
    pairs = openmm.NonbondedForce()
    for k in range(A):
        pairs.addParticle((-1.0) ** k, 0.2, 0.5)
    terms, x = read(builders.system(force, pairs, atoms=A)), frames(5, atoms=A)
    E = torch.tensor(reference.energies(terms, x.numpy()))
    F = by_autograd(terms)(x)[1]
    for room in (2**24, 1):
        monkeypatch.setattr(torch_tier, "_CPU_BYTES", room)
        for a, b in zip(tier(terms)(x), (E, F), strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-9)


def test_chunks_keep_the_buffers_small(monkeypatch):
    """138 atoms with Born in buffers of 1 MB, where one chunk would take 40 MB."""
    terms, x = molecule("chignolin", 16)
    whole = tier(terms)(x)
    monkeypatch.setattr(torch_tier, "_CPU_BYTES", 2**20)
    energy = TorchForces(terms)
    for a, b in zip(energy.energy_force(x), whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-9)
    tape = next(iter(energy._tapes.values()))
    kept = 3 * (138 // 2) * 138 * tape.n
    assert sum(buffer.numel() for buffer in tape._free) < kept + 2 * 2**20 / 8
    assert len(tape._steps) > 1000


def test_coincident_atoms_without_interaction_are_no_fault():
    """Atoms 0 and 1 are excluded from each other, and nothing else acts between them."""
    terms, x = read(one_force(builders.nonbonded)), frames(2)
    x[1, 1] = x[1, 0]
    assert torch.isfinite(tier(terms)(x)[0]).all() and torch.isfinite(tier(terms)(x)[1]).all()
    assert torch.allclose(tier(terms)(x)[1], by_autograd(terms)(x)[1], rtol=1e-11)


# ---- grids ----


def grid(rng, kind, periodic, atoms):
    """A grid of its own for each pair of variables."""
    size = [5 if k != NONE else 1 for k in kind]
    flags = [bool(p) for p, k in zip(periodic, kind, strict=True) if k != NONE]
    values = rng.normal(size=[s + (not p) for s, p, k in zip(size, periodic, kind, strict=True) if k != NONE]) * 10
    origin = [-math.pi if k == TORSION else 0.25 for k in kind]
    spacing = [2 * math.pi / 5 if k == TORSION else 0.02 for k in kind]
    return kind, atoms, origin, spacing, size, periodic, patches(values, tuple(flags))


def grids(rng):
    """Torsion-torsion, torsion-distance, distance alone, torsion that does not wrap; distances leave their range."""
    chain, other = [0, 1, 2, 3], [7, 5, 6, 4]
    rows = [
        grid(rng, (DISTANCE, TORSION), (0, 1), [[2, 6, 0, 0], other]),
        grid(rng, (TORSION, TORSION), (1, 1), [chain, other]),
        grid(rng, (DISTANCE, NONE), (0, 0), [[1, 4, 0, 0], [0] * 4]),
        grid(rng, (TORSION, DISTANCE), (0, 0), [[3, 0, 5, 6], [0, 7, 0, 0]]),
    ]
    *columns, coefficients = zip(*rows, strict=True)
    kind, atoms, origin, spacing, size, periodic = (np.array(c) for c in columns)
    offset = np.cumsum([0, *(len(c) for c in coefficients)])[:-1]
    return Grids(kind, atoms, origin, spacing, size, periodic, offset, np.concatenate(coefficients))


def test_grids_of_torsions_and_distances_inside_and_outside():
    terms, x = replace(empty(8), grids=grids(np.random.default_rng(0))), frames(200)
    r = torch.linalg.vector_norm(x[:, 2] - x[:, 6], dim=1)
    assert (r < 0.25).sum() > 10 and (r > 0.35).sum() > 10 and ((r > 0.25) & (r < 0.35)).sum() > 10
    E = torch.tensor(reference.energies(terms, x.numpy()))
    assert torch.allclose(tier(terms)(x)[0], E, rtol=1e-10, atol=1e-9)
    checks.is_minus_the_gradient(tier(terms), x[:10])
    F, F_32 = tier(terms)(x)[1], tier(terms, torch.float32)(x)[1]
    assert (checks.frame_errors(F_32, F) < (5 * checks.sensitivity(tier(terms), x)).clamp(min=5e-6)).all()


def test_grids_beside_torsions_and_bonds():
    """The rows of grids stand between and after those of other terms."""
    system = builders.system(*(make(np.random.default_rng(0)) for make in (builders.bonds, builders.angles)))
    system.addForce(builders.torsions(np.random.default_rng(0)))
    terms, x = replace(read(system), grids=grids(np.random.default_rng(1))), frames(5)
    E = torch.tensor(reference.energies(terms, x.numpy()))
    assert torch.allclose(tier(terms)(x)[0], E, rtol=1e-11)
    checks.is_minus_the_gradient(tier(terms), x)


# ---- gather and scatter ----


def test_gather_and_scatter_agree_with_the_dense_incidence(gbn2, monkeypatch):
    terms, x = gbn2
    everything = replace(read(one_force(builders.torsions)), grids=grids(np.random.default_rng(0)))
    dense = [tier(terms)(x), tier(everything)(frames(20))]
    monkeypatch.setattr(torch_bonded, "_DENSE_ATOMS", 0)
    for (E, F), (E_dense, F_dense) in zip([tier(terms)(x), tier(everything)(frames(20))], dense, strict=True):
        assert torch.allclose(E, E_dense, rtol=1e-12) and checks.frame_errors(F, F_dense).max() < 1e-12


# ---- autograd ----


@pytest.mark.parametrize("make", builders.FORCES, ids=name)
def test_the_plain_energy_and_its_gradient_are_the_kernels(make):
    terms, x = read(one_force(make)), frames(100)
    (E, F), (E_plain, F_plain) = tier(terms)(x), by_autograd(terms)(x)
    assert torch.allclose(E_plain, E, rtol=1e-12, atol=1e-12 * E.abs().max().item())
    assert checks.frame_errors(F_plain, F).max() < 1e-12


def test_the_plain_energy_of_molecules_and_grids(vacuum, gbn2):
    odd = replace(empty(8), grids=grids(np.random.default_rng(0))), frames(100)
    for terms, x in (vacuum, gbn2, odd):
        (E, F), (E_plain, F_plain) = tier(terms)(x), by_autograd(terms)(x)
        assert torch.allclose(E_plain, E, rtol=1e-12, atol=1e-12 * E.abs().max().item())
        assert checks.frame_errors(F_plain, F).max() < 1e-12


@pytest.mark.parametrize("make", [*builders.FORCES, None], ids=lambda make: make.__name__ if make else "grids")
def test_hessians_by_autograd_are_derivatives_of_the_force(make):
    terms = read(one_force(make)) if make else replace(empty(8), grids=grids(np.random.default_rng(0)))
    energy, x, h = TorchForces(terms), frames(1), 1e-5
    H = torch.autograd.functional.hessian(lambda y: energy.differentiable(y)[0], x).view(24, 24)
    steps = torch.eye(24, dtype=torch.float64).view(24, 8, 3) * h
    F = energy.energy_force(torch.cat([x + steps, x - steps, x + 2 * steps, x - 2 * steps]))[1].view(4, 24, 24)
    slope = (8 * (F[0] - F[1]) - (F[2] - F[3])) / (12 * h)
    assert torch.allclose(H, H.T, rtol=1e-9, atol=1e-9 * H.abs().max().item())
    assert torch.linalg.matrix_norm(-slope - H) < 1e-6 * torch.linalg.matrix_norm(H)


def test_gradients_flow_to_what_made_the_positions(vacuum):
    terms, x = vacuum
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    TorchForces(terms).differentiable(scale * x).sum().backward()
    virial = -(tier(terms)(x)[1] * x).sum()
    assert torch.allclose(scale.grad, virial, rtol=1e-10)


@pytest.mark.slow
def test_compiled_energy():
    """1e-12 of the plain one, for any batch size; about a CPU-minute under the checker of annotations."""
    terms = read(builders.system(*(make(np.random.default_rng(0)) for make in (builders.torsions, builders.gbsa_obc))))
    energy, x = TorchForces(terms, compile=True), frames(40)
    for n in (40, 16):
        y = x[:n].clone().requires_grad_()
        E = energy.differentiable(y)
        (g,) = torch.autograd.grad(E.sum(), y)
        E_plain, F_plain = by_autograd(terms)(x[:n])
        assert torch.allclose(E, E_plain, rtol=1e-12) and checks.frame_errors(-g, F_plain).max() < 1e-12
    assert torch.equal(energy.energy_force(x)[0], tier(terms)(x)[0])


def test_a_compiler_that_fails_is_reported(vacuum, monkeypatch):
    terms, x = vacuum

    def fails(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    with pytest.raises(RuntimeError, match=r"torch\.compile fails here \(no compiler\); allowed: compile=False"):
        TorchForces(terms, compile=True).differentiable(x)


# ---- buffers and faults ----


def test_results_are_fresh_tensors_in_the_callers_dtype(vacuum):
    """The buffers are reused by the next call; what was handed out must not change with it."""
    terms, x = vacuum
    energy = TorchForces(terms, torch.float32)
    E, F = energy.energy_force(x[:16])
    kept = E.clone(), F.clone()
    energy.energy_force(x[16:32])
    assert torch.equal(E, kept[0]) and torch.equal(F, kept[1])
    assert E.dtype == F.dtype == torch.float64 and F.is_contiguous()
    assert energy.energy_force(x.float())[1].dtype == torch.float32
    assert energy.differentiable(x).dtype == torch.float64


def test_tapes_survive_inference_mode_and_positions_that_require_gradients(vacuum):
    terms, x = vacuum
    energy = TorchForces(terms)
    with torch.inference_mode():
        F = energy.energy_force(x)[1].clone()
    assert torch.equal(energy.energy_force(x.clone().requires_grad_())[1], F)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_poisoned_replica_harms_no_other(vacuum, gbn2, dtype):
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


@pytest.mark.parametrize("make", [*builders.FORCES, None], ids=lambda make: make.__name__ if make else "grids")
@pytest.mark.parametrize("dense", [0, 64])
def test_poison_in_an_atom_of_each_term(make, dense, monkeypatch):
    """Also in atom 6 of systems where no term may act on it."""
    monkeypatch.setattr(torch_bonded, "_DENSE_ATOMS", dense)
    terms = read(one_force(make)) if make else replace(empty(8), grids=grids(np.random.default_rng(0)))
    for atom in (0, 6):
        for forces in (tier(terms), by_autograd(terms)):
            checks.poisons_harm_no_other(forces, frames(12), atom)


def test_a_born_radius_that_is_not_positive_is_nan_in_its_replica():
    """With rho < o, an atom in the open has B = o > 0, one deep inside others has 1/B = 1/o - 1/rho < 0."""
    one = np.ones(8)
    born = Born(one, 0.1 * one, 0.15 * one, 0.25 * one, one, 0 * one, one, 100.0, 28.0, None, False)
    terms, x = replace(empty(8), born=born), torch.cat([frames(2) * 20, frames(1)])
    for dtype in (torch.float64, torch.float32):
        for forces in (tier(terms, dtype), by_autograd(terms, dtype)):
            E, F = forces(x)
            assert E.isnan().tolist() == F.isnan().any(2).any(1).tolist() == [False, False, True]


def test_a_collinear_torsion_is_marked():
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 2, 0.0, 5.0)
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[:, :, 2] = torch.arange(4) * 0.1
    x[1, 0, 0], x[1, 3, 1] = 0.1, 0.1
    terms = read(builders.system(force, atoms=4))
    for forces in (tier(terms), by_autograd(terms)):
        assert forces(x)[0].isnan().tolist() == [True, False]


def test_nothing_at_all_has_the_constant_energy():
    terms = empty(8)
    terms = replace(terms, torsions=replace(terms.torsions, constant=3.5))
    for forces in (tier(terms), by_autograd(terms)):
        E, F = forces(frames(3))
        assert E.tolist() == [3.5] * 3 and F.abs().max() == 0
