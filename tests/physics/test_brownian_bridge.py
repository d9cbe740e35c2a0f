"""Brownian motion with a final Gaussian reward: every number of the control problem in closed form (card 12.3)."""

import math

import pytest
import torch

from molsamp.engine import Controlled, EulerMaruyama, Noise, Overdamped, Particles, Tape, log_mean_exp, rollout
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck

D, T, WIDTH, A, B = 0.5, 1.0, 0.3, -1.0, 1.0
LOG_Z = 0.5 * math.log(WIDTH**2 / (WIDTH**2 + 2 * D * T)) - (B - A) ** 2 / (2 * (WIDTH**2 + 2 * D * T))
FREE = Overdamped(Harmonic(0.0), kT=D)


def brownian(n):
    """The closed form on n steps."""
    return ornstein_uhlenbeck(rate=0.0, D=D, h=T / n, steps=n, x0=A)


def log_reward(x):
    """-(x_T - B)^2 / (2 w^2)."""
    return -((x[..., 0] - B) ** 2) / (2 * WIDTH**2)


def controlled(n, paths, noise, control):
    """A rollout under a control, and log(reward) - log dP_u/dP_0 of each path."""
    start = Particles.at(torch.full((paths, 1), A, dtype=torch.float64))
    path = rollout(Controlled(FREE, control), EulerMaruyama(), start, brownian(n).times, noise=noise, save="last")
    return path, log_reward(path.x[-1]) - path.log_ratio


@pytest.mark.parametrize("n", [25, 100, 400])
def test_the_control_is_the_textbook_one_on_any_grid(n):
    """u*(x, t) = 2 D (B - x) / (w^2 + 2 D (T - t)) as a drift, so sqrt(h / 2D) times it in units of the noise."""
    u, h = brownian(n).control(B, WIDTH), T / n
    assert u.log_z == pytest.approx(LOG_Z, abs=1e-12)
    for k in (0, n // 3, n - 1):
        x = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
        drift = 2 * D * (B - x) / (WIDTH**2 + 2 * D * (T - k * h))
        assert torch.allclose(u(k * h, x) * math.sqrt(2 * D / h), drift, rtol=1e-12)


@pytest.mark.parametrize("n, variance, bound", [(25, 0.260, -3.190), (100, 0.054, -3.108), (400, 0.013, -3.089)])
def test_importance_sampling_finds_log_z(n, variance, bound):
    """log Z to 0.01 at any step; loss variance and lower bound at their closed forms and the card's figures.

    60 000, 15 000 and 3750 paths: 0.01 is at least 4 standard errors of log Z, 15 % at least 6 of the variance, and the
    mean is asked within 4. False alarm 6e-5 for each.
    """
    u = brownian(n).control(B, WIDTH)
    assert u.variance == pytest.approx(variance, abs=6e-4) and u.lower_bound == pytest.approx(bound, abs=3e-3)
    _, logw = controlled(n, 60_000 // (n // 25), Noise(51), u)
    assert abs(log_mean_exp(logw)[0] - LOG_Z) < 0.01
    assert abs(float(logw.mean()) - u.lower_bound) < 4.0 * math.sqrt(u.variance / len(logw))
    assert float(logw.var()) == pytest.approx(u.variance, rel=0.15)


def test_the_loss_falls_linearly_with_the_step():
    """Order of the least variance, sum rho^2 / 2, in h: it tends to 1 from above (exact numbers, no sampling)."""
    orders = [
        math.log2(brownian(n).control(B, WIDTH).variance / brownian(2 * n).control(B, WIDTH).variance)
        for n in (100, 400, 1600)
    ]
    assert orders[0] > orders[1] > orders[2] > 1.0 and orders[2] < 1.01


def test_every_path_weighs_what_the_closed_form_says():
    """log w = log Z + sum [log(1 + rho) - rho xi^2] / 2, path by path."""
    u = brownian(25).control(B, WIDTH)
    _, logw = controlled(25, 50, Noise(52), u)
    xi = Noise(52).normal(range(25), torch.arange(50), (1,))[..., 0]
    assert torch.allclose(logw, u.log_weight(xi), atol=1e-12)


def test_less_noise_makes_every_weight_the_same():
    """Doob's transform at a finite step: the same control, and noise of variance 1 / (1 + rho). Constant to 1e-10."""
    u = brownian(25).control(B, WIDTH)
    xi = Noise(53).normal(range(25), torch.arange(50), (1,))
    shrunk = xi / (1.0 + u.rho).sqrt()[:, None, None]
    _, logw = controlled(25, 50, Tape(shrunk), u)
    # log N(z; u, 1/(1+rho)) in place of log N(z; u, 1)
    narrower = (0.5 * (shrunk**2 - xi**2) + 0.5 * torch.log1p(u.rho)[:, None, None]).sum((0, 2))
    assert torch.allclose(logw - narrower, torch.full_like(logw, LOG_Z), atol=1e-10)


def test_no_multiple_of_the_control_does_better():
    """The mean of log w on the same noise is largest at the control itself: a false alarm needs a 4-sigma change."""
    u = brownian(25).control(B, WIDTH)
    means = []
    for factor in (0.8, 0.9, 1.0, 1.1, 1.2):
        _, logw = controlled(25, 4000, Noise(54), lambda t, x, v, a=factor: a * u(t, x))
        means.append(float(logw.mean()))
    assert means[2] == max(means)


def test_the_bridge_is_the_textbook_bridge():
    """Pinned at both ends: mean A + (B - A) t/T, variance 2 D t (T - t)/T, log density of the end."""
    chain = brownian(40)
    tilt = chain.pinned(B)
    mean, cov = chain.conditioned(tilt)
    t = torch.tensor(chain.times, dtype=torch.float64)
    assert torch.allclose(mean[:, 0], A + (B - A) * t / T, atol=1e-12)
    assert torch.allclose(cov[:, 0, 0], 2 * D * t * (T - t) / T, atol=1e-12)
    assert tilt.log_z == pytest.approx(-0.5 * math.log(2 * math.pi * 2 * D * T) - (B - A) ** 2 / (4 * D * T), abs=1e-12)
    wide = chain.conditioned(chain.rewarded(B, 1e-6))
    assert torch.allclose(wide[0], mean, atol=1e-9) and torch.allclose(wide[1], cov, atol=1e-9)
