"""Superposition: known rotations, mirror images, special geometries, derivatives."""

import pytest
import torch

from molsamp.molecular.geometry import Superposition, aligned, kabsch, rmsd


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _rotations(n, seed=0):
    q, r = torch.linalg.qr(_random(n, 3, 3, seed=seed))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return q * torch.linalg.det(q)[:, None, None]


def _by_svd(x, ref, w):
    """Kabsch's construction, as an independent judge."""
    p, q = x - (w @ x)[:, None], ref - w @ ref
    U, _, Vh = torch.linalg.svd(p.mT @ (q * w[:, None]))
    sign = torch.ones(len(x), 3).to(x)
    sign[:, 2] = torch.linalg.det(U @ Vh)
    return (U @ (sign[:, :, None] * Vh)).mT


def _proper(R):
    eye = torch.eye(3).to(R)
    return torch.allclose(R @ R.mT, eye.expand_as(R), atol=1e-12) and bool((torch.linalg.det(R) > 0.999).all())


def test_recovers_known_rotations_and_shifts():
    ref, G, shift = _random(22, 3), _rotations(100), 5 * _random(100, 1, 3, seed=3)
    R, t = kabsch(ref @ G.mT + shift, ref)
    assert torch.allclose(R, G.mT, atol=1e-13)
    assert torch.allclose(aligned(ref @ G.mT + shift, ref), ref.expand(100, -1, -1), atol=1e-13)
    assert t.shape == (100, 3)


def test_equals_kabsch_by_svd_with_atoms_and_weights():
    ref, x, atoms = _random(12, 3), _random(200, 12, 3, seed=1), torch.tensor([0, 3, 4, 7, 11])
    weights = torch.tensor([1.0, 12.0, 14.0, 16.0, 1.0], dtype=torch.float64)
    R, t = kabsch(x, ref, atoms, weights)
    w = weights / weights.sum()
    assert torch.allclose(R, _by_svd(x[:, atoms], ref[atoms], w), atol=1e-10)
    assert torch.allclose(w @ (x[:, atoms] @ R.mT + t[:, None]), w @ ref[atoms], atol=1e-13)


def test_never_a_reflection():
    """Mirror images have a better improper superposition, which must not be taken."""
    ref = _random(10, 3)
    for x in (-ref[None], ref[None] * torch.tensor([1.0, 1.0, -1.0]), -ref + 0.1 * _random(50, 10, 3, seed=4)):
        R, _ = kabsch(x.double(), ref)
        assert _proper(R)
        assert (rmsd(x.double(), ref) > 0.1).all()


@pytest.mark.parametrize("shape", ["identical", "planar", "collinear", "coincident", "far away"])
def test_special_geometries_give_an_optimal_proper_rotation(shape):
    ref = _random(8, 3)
    if shape == "planar":
        ref[:, 2] = 0
    elif shape == "collinear":
        ref = ref[:, :1] * torch.tensor([1.0, 2.0, 3.0]).double()
    elif shape == "coincident":
        ref = torch.zeros_like(ref)
    x = ref @ _rotations(20).mT
    x[0] = ref
    if shape == "far away":
        x = x + 1e4
    assert _proper(kabsch(x, ref)[0])
    assert torch.allclose(aligned(x, ref), ref.expand_as(x), atol=1e-7)
    assert (rmsd(x, ref) < 1e-7).all()


def test_a_bad_frame_harms_only_itself():
    ref, x = _random(6, 3), _random(4, 6, 3, seed=5)
    good = kabsch(x, ref)
    x[2, 1, 0] = torch.nan
    R, t = kabsch(x, ref)
    keep = [0, 1, 3]
    assert R[2].isnan().all() and torch.equal(R[keep], good[0][keep]) and torch.equal(t[keep], good[1][keep])
    assert rmsd(x, ref).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("at_reference", [False, True])
def test_derivative_of_the_alignment_by_finite_differences(at_reference):
    """First and second order, also exactly at x = ref, where an SVD's derivative has no answer for planar atoms."""
    ref, atoms = _random(6, 3, seed=6), torch.tensor([0, 1, 2, 4])
    ref[:, 2] *= 0.0 if at_reference else 1.0
    x = ref[None].clone() if at_reference else _random(2, 6, 3, seed=7)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: aligned(y, ref, atoms), x)
    assert torch.autograd.gradgradcheck(lambda y: aligned(y, ref, atoms), x)


def test_rmsd_gradient_is_exact_and_finite_at_the_reference():
    ref, x = _random(7, 3), _random(3, 7, 3, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: rmsd(y, ref), x)
    for same in (ref, torch.zeros_like(ref)):  # the second is at distance 0 without rounding
        at = same[None].clone().requires_grad_()
        rmsd(at, same).sum().backward()
        assert at.grad.isfinite().all()


def test_rmsd_is_invariant_and_the_least():
    """Invariant under rigid motion, and no random rotation about the centroid does better."""
    ref, x, G = _random(9, 3), _random(1, 9, 3, seed=9), _rotations(300, seed=10)
    d = rmsd(x, ref)
    assert torch.allclose(rmsd(x @ G.mT + 2.0, ref), d.expand(300), rtol=1e-12)
    other = (x - x.mean(1, keepdim=True)) @ G.mT + ref.mean(0)
    assert (((other - ref) ** 2).sum(2).mean(1).sqrt() >= d).all()


def test_float32_frames_and_a_prepared_reference():
    ref, x = _random(22, 3), _random(5, 22, 3, seed=11)
    R, t = Superposition(ref)(x.float())
    R64, t64 = kabsch(x, ref)
    assert R.dtype == t.dtype == torch.float32
    assert torch.allclose(R.double(), R64, atol=1e-5) and torch.allclose(t.double(), t64, atol=1e-5)


def test_rotation_follows_the_frame():
    """If x -> G x + c then R -> R G^T: the aligned frame is unchanged. Checked with the Jacobian along rotations."""
    ref, x = _random(5, 3), _random(5, 3, seed=12)
    spin = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda y: aligned(y[None], ref)[0], x)
    assert torch.einsum("aubv,bv->au", J, x @ spin.mT).abs().max() < 1e-12


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_compiled_lanes_equal_the_differentiable_road(n):
    x = _random(n, 9, 3, seed=11)
    x[n // 2] = _random(1, 9, 3, seed=12)[0] * torch.tensor([1.0, 1.0, 0.0])  # planar
    road = Superposition(_random(9, 3, seed=13), torch.tensor([0, 2, 3, 8]), _random(4, seed=14).abs())
    R, t = road(x)
    R_2, t_2 = road(x.clone().requires_grad_(True))
    assert torch.allclose(R, R_2, atol=1e-10) and torch.allclose(t, t_2, atol=1e-10)


def test_equal_eigenvalues_do_not_stop_the_lanes():
    """All atoms of the frame in one place: N = 0, every rotation is optimal, and one is given."""
    R, t = Superposition(_random(5, 3))(torch.ones(1, 5, 3, dtype=torch.float64))
    assert _proper(R) and t.isfinite().all()
