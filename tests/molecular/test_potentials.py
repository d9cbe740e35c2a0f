"""Toy potentials: forces against autograd and central differences, stationary points against their published values."""

import math

import pytest
import torch

from molsamp.molecular.potentials import DoubleWell, GaussianMixture, Harmonic, MuellerBrown, Quadratic

STIFFNESS = torch.tensor([[3.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 1.0]], dtype=torch.float64)
CENTRE = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
MIXTURE = GaussianMixture(
    torch.tensor([3.0, 1.0], dtype=torch.float64),
    torch.tensor([[-0.8, 0.1], [0.9, -0.4]], dtype=torch.float64),
    torch.tensor([0.6, 0.9], dtype=torch.float64),
    kT=0.7,
)
POTENTIALS = [DoubleWell(), MuellerBrown(), MIXTURE, Harmonic(2.5, CENTRE), Quadratic(STIFFNESS, CENTRE)]


@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: type(p).__name__)
def test_force_is_minus_the_gradient(potential):
    x = torch.randn(50, *potential.event, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    E, F = potential.energy_force(x)
    (gradient,) = torch.autograd.grad(E.sum(), x)
    assert torch.allclose(F, -gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("potential", POTENTIALS, ids=lambda p: type(p).__name__)
def test_float32_in_float32_out_and_a_bad_row_stays_alone(potential):
    x = torch.randn(6, *potential.event, generator=torch.Generator().manual_seed(2))
    E, F = potential.energy_force(x)
    E64, F64 = potential.energy_force(x.double())
    assert E.dtype == F.dtype == torch.float32
    assert torch.allclose(E.double(), E64, rtol=1e-4, atol=1e-4)
    assert torch.allclose(F.double(), F64, rtol=1e-4, atol=1e-3)
    x[3] = torch.nan
    E_bad, F_bad = potential.energy_force(x)
    keep = torch.arange(6) != 3
    assert E_bad[3].isnan() and torch.equal(E_bad[keep], E[keep]) and torch.equal(F_bad[keep], F[keep])


def test_the_boltzmann_density_of_a_mixture_is_the_mixture():
    """By the trapezoid rule, which is exact to rounding for smooth functions that vanish at the ends: 1, and <x>."""
    axis = torch.linspace(-9.0, 9.0, 361, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    p = torch.exp(-MIXTURE.energy(x) / 0.7) * 0.05**2
    assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (p @ x).tolist() == pytest.approx([0.75 * -0.8 + 0.25 * 0.9, 0.75 * 0.1 + 0.25 * -0.4], abs=1e-12)


def test_double_well_minima_and_saddles():
    root = math.sqrt(5) / 2
    x = torch.tensor([[root, 0.0], [-root, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    E, F = DoubleWell().energy_force(x)
    expected = torch.tensor([-1 / 12, -1 / 12, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(E, expected, atol=1e-14)
    assert F.abs().max() < 1e-14


def test_mueller_brown_stationary_points():
    """Minima and saddles of Mueller and Brown (1979), coordinates and energies to the digits usually quoted."""
    x = torch.tensor(
        [
            [-0.558224, 1.441726],
            [0.623499, 0.028038],
            [-0.050011, 0.466694],
            [-0.822002, 0.624313],
            [0.212487, 0.292988],
        ],
        dtype=torch.float64,
    )
    E, F = MuellerBrown().energy_force(x)
    expected = torch.tensor([-146.69952, -108.16672, -80.76782, -40.66484, -72.24894], dtype=torch.float64)
    assert torch.allclose(E, expected, atol=1e-4)
    assert F.abs().max() < 2e-3


def test_quadratic_refuses_an_asymmetric_stiffness():
    with pytest.raises(ValueError, match="symmetric"):
        Quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.zeros(2))
