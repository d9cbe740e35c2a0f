"""Ratios of path measures: three ways to the same number, and E_u[dP_0/dP_u] = 1."""

import math

import pytest
import torch

from molsamp.engine import (
    Controlled,
    EulerMaruyama,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    SemiImplicitEuler,
    Underdamped,
    centred,
    ess,
    girsanov,
    log_mean_exp,
    log_prob,
    log_ratio,
    rollout,
)
from molsamp.engine.closed_forms import Harmonic
from molsamp.engine.integrators import Memory

MASSES = torch.tensor([[1.0], [12.0]], dtype=torch.float64)
UNDERDAMPED = Underdamped(Harmonic(30.0), MASSES, 2.5, 1.5)
OVERDAMPED = Overdamped(Harmonic(5.0), 2.5)
CASES = [(EulerMaruyama(), OVERDAMPED), (SemiImplicitEuler(), UNDERDAMPED), (LangevinMiddle(), UNDERDAMPED)]
every_case = pytest.mark.parametrize("integrator, base", CASES, ids=["euler-maruyama", "semi-implicit", "middle"])
TIMES = [0.02 * k for k in range(21)]


def constant(t, x, v):
    """The same small push everywhere."""
    return torch.full_like(x, 0.09)


def wavy(t, x, v):
    """A push that depends on position and time."""
    return 0.1 * torch.cos(3.0 * x + t)


def start(base, n):
    """n particles at the origin, at rest."""
    x = torch.zeros(n, 2, 3, dtype=torch.float64)
    return Particles.at(x, torch.zeros_like(x) if "v" in base.blocks else None)


@every_case
@pytest.mark.parametrize("hold", [1, 10])
@pytest.mark.parametrize("control", [constant, wavy])
def test_the_mean_inverse_ratio_is_one(integrator, base, control, hold):
    """E_u[exp(-log dP_u/dP_0)] = 1 within 4 standard errors: false alarm 6e-5 per case, 12 cases.

    u sums to about 1 in square, so a factor 0.4 in place of 1/2 moves the logarithm by 0.1, 4 or 5 errors.
    """
    path = rollout(Controlled(base, control, hold), integrator, start(base, 4000), TIMES, noise=Noise(31), save="last")
    log_mean, error = log_mean_exp(path.final.logw)
    assert abs(log_mean) < 4.0 * error < 0.1
    assert float(path.log_ratio.mean()) > 4.0 * float(path.log_ratio.std()) / 4000**0.5


@every_case
@pytest.mark.parametrize("hold", [1, 10])
@pytest.mark.parametrize("heat", [1.0, 1.6])
def test_the_ratio_is_the_difference_of_two_absolute_densities(integrator, base, hold, heat):
    """Summed while sampling, re-evaluated from blocks of z, by `log_ratio`, and as a difference of log densities.

    Noise hotter than the target changes the paths only: every density keeps the target's N.
    """
    dyn = Controlled(base, wavy, hold)
    path = rollout(dyn, integrator, start(base, 6), TIMES, noise=Noise(32), heat=heat)
    assert torch.allclose(log_ratio(path, dyn, base, integrator), path.log_ratio, atol=1e-9)
    assert torch.allclose(log_ratio(path, base, dyn, integrator), -path.log_ratio, atol=1e-9)

    u = torch.stack([wavy(TIMES[k], path.x[k], None) for k in range(0, 20, hold)])
    assert torch.allclose(girsanov(u, path.z.unflatten(0, (-1, hold)).sum(1), hold), path.log_ratio, atol=1e-10)

    difference = torch.zeros(6, dtype=torch.float64)
    for k, row in enumerate(integrator.rows(base, TIMES)):
        ends = path.frame(k), path.frame(k + 1)
        held = Memory(held=u[k // hold])
        difference += log_prob(row, dyn, *ends, held)[0] - log_prob(row, base, *ends)[0]
    assert torch.allclose(difference, path.log_ratio, atol=1e-8)


@every_case
def test_the_ratio_of_two_forces_is_the_difference_of_two_absolute_densities(integrator, base):
    """Two models that differ in the drift, on paths of a third."""
    softer = type(base)(Harmonic(4.0), *([MASSES, 2.5, 1.5] if base is UNDERDAMPED else [2.5]))
    path = rollout(base, integrator, start(base, 6), TIMES, noise=Noise(33), heat=1.3)
    difference = torch.zeros(6, dtype=torch.float64)
    for k, (row, soft) in enumerate(zip(integrator.rows(base, TIMES), integrator.rows(softer, TIMES), strict=True)):
        ends = path.frame(k), path.frame(k + 1)
        difference += log_prob(soft, softer, *ends)[0] - log_prob(row, base, *ends)[0]
    assert torch.allclose(log_ratio(path, softer, base, integrator), difference, atol=1e-8)
    if isinstance(integrator, LangevinMiddle):  # its force moves x before the noise: two forces are singular
        assert (difference == -math.inf).all()
        assert (log_ratio(path, base, softer, integrator) == math.inf).all()
    else:
        assert float(difference.abs().min()) > 0.01


def test_effective_sample_size_counts_what_matters():
    assert ess(torch.zeros(10).double()) == pytest.approx(10.0)
    assert ess(torch.tensor([0.0, -math.inf, -math.inf]).double()) == pytest.approx(1.0)
    assert ess(torch.tensor([math.log(3.0), 0.0]).double() + 5000.0) == pytest.approx(16.0 / 10.0)
    assert ess(torch.full((3,), -math.inf).double()) == 0.0


def test_log_mean_exp_and_its_error():
    """Against the log-normal: log E[exp(s g)] = s^2 / 2, within 4 standard errors (false alarm 6e-5); the reported
    error against its exact value sqrt((exp(s^2) - 1) / n), within 5 %."""
    s, n = 0.5, 100_000
    logw = s * Noise(34).normal(0, torch.arange(n), ()) - 900.0
    value, error = log_mean_exp(logw)
    assert abs(value + 900.0 - 0.5 * s * s) < 4.0 * error
    assert error == pytest.approx(math.sqrt((math.exp(s * s) - 1.0) / n), rel=0.05)
    assert log_mean_exp(torch.full((4,), -math.inf).double()) == (-math.inf, math.inf)
    assert log_mean_exp(torch.zeros(1).double()) == (0.0, math.inf)


def test_a_centred_control_moves_no_centre_of_mass():
    """Its kick in velocity is s u with s ~ 1/sqrt(m), so the momentum given is sum m u / sqrt(m) = 0."""
    u = Noise(35).normal(0, torch.arange(7), (2, 3))
    flat = centred(u, MASSES)
    assert float((MASSES.sqrt() * flat).sum(1).abs().max()) < 1e-14
    assert torch.allclose(centred(flat, MASSES), flat) and not torch.allclose(flat, u)
