"""The torch tier: every term against OpenMM Reference, derivatives, invariances, chunks, faults, autograd, compiler."""

from dataclasses import replace

import builders
import checks
import numpy as np
import openmm
import pytest
import reference
import torch
from material import by_autograd, empty, frames, grids, molecule, name, one_force

from molsamp.molecular.native import torch_bonded, torch_tier
from molsamp.molecular.native.reading import read
from molsamp.molecular.native.torch_rings import partners, placement
from molsamp.molecular.native.torch_tier import TorchForces

SYSTEMS = [
    "alanine-dipeptide",
    "alanine-dipeptide-gbn2",
    "alanine-dipeptide-obc",
    "alanine-dipeptide-obc1",
    "chignolin",
]


def tier(terms, dtype=torch.float64):
    return TorchForces(terms, dtype).energy_force


# ---- invariances ----


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


@pytest.mark.parametrize("make", [*builders.FORCES, None], ids=lambda make: make.__name__ if make else "grids")
@pytest.mark.parametrize("dense", [0, 64])
def test_poison_in_an_atom_of_each_term(make, dense, monkeypatch):
    """Also in atom 6 of systems where no term may act on it."""
    monkeypatch.setattr(torch_bonded, "_DENSE_ATOMS", dense)
    terms = read(one_force(make)) if make else replace(empty(8), grids=grids(np.random.default_rng(0)))
    for atom in (0, 6):
        for forces in (tier(terms), by_autograd(terms)):
            checks.poisons_harm_no_other(forces, frames(12), atom)
