"""Base processes against quadrature, bridges against the base itself, the Gaussian Schroedinger bridge against both."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from molsamp.engine.bridges import Base, EDMBase, GaussianBridge, VEBase, bridge, noise_levels
from molsamp.engine.dynamics import Ito, LinearSDE
from molsamp.engine.exponential import Exponential
from molsamp.engine.integrators import EulerMaruyama
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Particles

BASES = [EDMBase(0.001, 6.0, 3.0), EDMBase(0.1, 2.0, 7.0), VEBase(0.01, 2.0)]


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.999])
def test_kappa_is_the_integral_of_sigma_squared(base: Base, t):
    """To 1e-9 of itself, near t = 1 too, where the difference of powers has lost seven digits."""
    exact = quad(lambda u: base.sigma(u) ** 2, t, 1.0, epsabs=0.0, epsrel=1e-12)[0]
    assert float(base.left(torch.tensor(t, dtype=torch.float64))) == pytest.approx(exact, rel=1e-9)


def test_kappa_of_the_published_setting():
    """5.442 A^2 for smin 0.001, smax 6, rho 3 would be the EDM formula of the card; no slack in the last digit."""
    assert float(BASES[0].left(torch.zeros(()))) == pytest.approx(5.442, abs=2e-3)


@pytest.mark.parametrize("base", BASES, ids=str)
def test_noise_levels_fall_to_zero(base):
    levels = noise_levels(base, 20)
    assert levels[-1] == 0.0 and sorted(set(levels), reverse=True) == levels and len(levels) == 21


def test_the_bridge_is_the_base_between_its_ends():
    """Base paths X_0 ~ N(0, 1), X_1 = X_0 + noise: given (X_0, X_1) the middle of the path has the bridge's law.

    Residuals of simulated X_t about the bridge's mean have mean 0 and the bridge's variance: n = 40000, tolerances of 4
    standard errors, false-alarm rate 1.3e-4 in all; seed fixed.
    """
    base, n, t = VEBase(0.05, 1.5), 40000, 0.35
    left, total = float(base.left(torch.tensor(t))), float(base.left(torch.zeros(())))
    z = Noise(3).normal(range(3), torch.arange(n), (1,))
    x0 = z[0]
    xt = x0 + math.sqrt(total - left) * z[1]
    x1 = xt + math.sqrt(left) * z[2]
    lefts = torch.full((n,), left, dtype=torch.float64)
    off = xt - bridge(x0, x1, lefts, total, torch.zeros_like(x0))
    spread = bridge(0 * x0, 0 * x1, lefts, total, torch.ones_like(x0))[0, 0] ** 2
    assert abs(float(off.mean())) < 4 * math.sqrt(float(spread) / n)
    assert float(off.var() / spread) == pytest.approx(1.0, abs=4 * math.sqrt(2 / n))
    assert abs(float((off * x1).mean())) < 4 * math.sqrt(float(spread) * float(x1.var()) / n)


@pytest.mark.parametrize("b2", [0.25, 4.0])
def test_the_gaussian_bridge_reaches_its_target(b2):
    """Euler-Maruyama, 250 steps of the card: variance within 2 % and c within 3 standard errors + 2 %; n = 40000."""
    base, n = EDMBase(0.001, 6.0, 3.0), 40000
    exact = GaussianBridge(1.0, b2, float(base.left(torch.zeros(()))))

    def drift(t, x):
        return base.sigma(t) ** 2 * exact.control(float(base.left(torch.tensor(t, dtype=torch.float64)))) * x

    start = Particles.at(Noise(1).child("source").normal(0, torch.arange(n), (1,)))
    times = np.linspace(0, 1, 251).tolist()
    end = rollout(Ito(drift, base.sigma), EulerMaruyama(), start, times, noise=Noise(1), save="last").final.x
    assert float(end.var()) == pytest.approx(b2, rel=0.02)
    error = math.sqrt((b2 + exact.covariance**2) / n)
    assert float((start.x * end).mean()) == pytest.approx(exact.covariance, abs=3 * error + 0.02 * exact.covariance)


@pytest.mark.parametrize("b2", [0.0009, 0.25, 4.0])
@pytest.mark.parametrize("order, tolerance", [(1, 0.25), (2, 0.01)])
def test_image_solvers_carry_the_bridge(b2, order, tolerance):
    """With D held (order 1) or extrapolated (2) over 50 steps of equal log noise: the variance is off by less than
    25 % and 1 % (deterministic errors 11 to 16 % and 0.0 to 0.44 %); n = 200000, standard error 0.3 %.
    """
    base, n = VEBase(0.01, 2.62), 200000
    total = float(base.left(torch.zeros(())))
    exact = GaussianBridge(1.0, b2, total)
    sde = LinearSDE(EDM(), lambda x, s: x * (1.0 + s * s * exact.control(s * s)))
    start = Particles.at(Noise(2).child("source").normal(0, torch.arange(n), (1,)))
    end = rollout(sde, Exponential(order, 1.0), start, noise_levels(base, 50), noise=Noise(2), save="last").final.x
    assert float(end.var()) == pytest.approx(b2, rel=tolerance)
    if order == 1:
        assert abs(float(end.var()) / b2 - 1.0) > 0.05  # what the second order is for
