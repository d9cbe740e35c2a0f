"""Switching functions and contact numbers: closed values, the removable point of the rational one, mdtraj as judge."""

import math

import numpy as np
import pytest
import torch

from molsamp.molecular.cvs import ContactDistance, CoordinationNumber, Switching

EXPONENTS = [(6, 12), (6, 10), (8, 12), (5, 9), (1, 2), (12, 24)]


def slope(f, r):
    r = r.clone().requires_grad_()
    return torch.autograd.grad(f(r).sum(), r)[0]


@pytest.mark.parametrize(("n", "m"), EXPONENTS)
def test_rational_is_its_formula(n, m):
    r = torch.tensor([0.1, 0.35, 0.41, 0.55, 0.9, 3.0], dtype=torch.float64)
    y = (r - 0.15) / 0.3
    f = Switching(0.3, 0.15, n, m)
    expected = torch.where(y > 0, (1 - y**n) / (1 - y**m), 1.0)
    torch.testing.assert_close(f(r), expected, rtol=1e-12, atol=0)
    inner = r[1:]
    numeric = (f(inner + 1e-6) - f(inner - 1e-6)) / 2e-6
    torch.testing.assert_close(slope(f, inner), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "m"), EXPONENTS)
def test_rational_where_it_is_0_over_0(n, m):
    """At r = d0 + r0 the value is n/m and the slope n (n - m) / (2 m r0), by l'Hopital; beside it, nothing jumps."""
    f = Switching(0.25, 0.5, n, m)
    r = torch.tensor([0.75], dtype=torch.float64)
    assert f(r).item() == n / m
    assert slope(f, r).item() == pytest.approx(n * (n - m) / (2 * m * 0.25), rel=1e-12)
    near = 0.75 + torch.logspace(-15, -6, 30, dtype=torch.float64)
    assert (f(near) - n / m).abs().max() < 1e-4 and (slope(f, near) / slope(f, r) - 1).abs().max() < 1e-3


def test_the_default_is_6_12():
    assert Switching(0.3) == Switching(0.3, 0.0, 6, 0)
    r = torch.tensor([0.2, 0.3, 0.6], dtype=torch.float64)
    torch.testing.assert_close(Switching(0.3)(r), 1 / (1 + (r / 0.3) ** 6))


def test_the_other_shapes():
    r = torch.tensor([0.1, 0.2, 0.35, 0.5, 0.9], dtype=torch.float64)
    y = ((r - 0.2) / 0.3).clamp(min=0)
    expected = {
        "EXP": torch.exp(-y),
        "GAUSSIAN": torch.exp(-y * y / 2),
        "COSINUS": torch.tensor([1, 1, (1 + math.cos(math.pi / 2)) / 2, 0, 0], dtype=torch.float64),
    }
    for shape, values in expected.items():
        f = Switching(0.3, 0.2, shape=shape)
        torch.testing.assert_close(f(r), values)
        assert slope(f, r).isfinite().all() and slope(f, r[:1]).item() == 0


def test_far_and_coincident_atoms_have_finite_gradients():
    x = torch.zeros(2, 2, 3, dtype=torch.float64)
    x[1, 1, 0] = 1e4
    for shape in ("RATIONAL", "EXP", "GAUSSIAN", "COSINUS"):
        cv = ContactDistance((0, 1), Switching(0.3, shape=shape))
        assert cv(x)[:, 0].tolist() == pytest.approx([1, 0]) and cv.gradient(x).isfinite().all()


def test_coordination_number_by_mdtraj():
    md = pytest.importorskip("mdtraj")
    x = 0.4 * torch.randn(6, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    topology = md.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(9):
        topology.add_atom("C", md.element.carbon, residue)
    trajectory = md.Trajectory(x.numpy().astype(np.float32), topology)
    a, b = (0, 1, 2, 3), (3, 2, 7, 8)  # 2 and 3 stand in both groups: that pair counts twice, i = j never
    cases = [
        ([(i, j) for i in a for j in b if i != j], CoordinationNumber(a, b, Switching(0.4, 0.1, 6, 10))),
        ([(i, j) for i in a for j in a if i < j], CoordinationNumber(a, None, Switching(0.4, 0.1, 6, 10))),
    ]
    for pairs, cv in cases:
        y = ((md.compute_distances(trajectory, pairs, periodic=False).astype(float) - 0.1) / 0.4).clip(0)
        expected = ((1 - y**6) / (1 - y**10)).sum(1)
        assert cv(x)[:, 0].numpy() == pytest.approx(expected, abs=1e-5)
    assert ContactDistance((1, 7), Switching(0.4))(x) == pytest.approx(
        CoordinationNumber((1,), (7,), Switching(0.4))(x)
    )


def test_errors():
    with pytest.raises(ValueError, match=r"got r0 = 0.0, d0 = 0.0; allowed are r0 > 0"):
        Switching(0.0)
    with pytest.raises(ValueError, match="got exponents 12 and 6; allowed are 0 < n < m"):
        Switching(0.3, 0.0, 12, 6)
    with pytest.raises(ValueError, match=r"CV 'cn': got atoms \(4,\) and \(4,\); allowed are groups with a pair"):
        CoordinationNumber((4,), (4,), Switching(0.3), "cn")
    with pytest.raises(ValueError, match=r"CV 'cn': needs one or more atoms, got 0"):
        CoordinationNumber((), None, Switching(0.3), "cn")
    with pytest.raises(ValueError, match=r"CV 'coordination': atom 9 does not exist; 0-based indices 0 to 3"):
        CoordinationNumber((0,), (9,), Switching(0.3))(torch.zeros(1, 4, 3))
