"""An underdamped harmonic oscillator: the exact law of each scheme, free, stationary and rewarded (card 12.4)."""

import math

import pytest
import torch

from molsamp.engine import (
    Controlled,
    LangevinMiddle,
    Noise,
    Particles,
    SemiImplicitEuler,
    Tape,
    Underdamped,
    log_mean_exp,
    rollout,
)
from molsamp.engine.closed_forms import Harmonic, oscillator

SETTING = {"stiffness": 4.0, "mass": 2.0, "kT": 1.3, "friction": 1.5, "h": 0.15, "x0": -0.5}
DYN = Underdamped(Harmonic(4.0), torch.tensor([2.0], dtype=torch.float64), 1.3, 1.5)
SCHEMES = [("langevin-middle", LangevinMiddle()), ("semi-implicit-euler", SemiImplicitEuler())]
every_scheme = pytest.mark.parametrize("scheme, integrator", SCHEMES, ids=[name for name, _ in SCHEMES])
TARGET, WIDTH = 0.8, 0.2


def simulate(integrator, chain, n, noise, control=None, save="all"):
    """n paths of the chain from x0, with v_0 fixed or Maxwell-Boltzmann."""
    x = torch.full((n, 1), -0.5, dtype=torch.float64)
    v = torch.full_like(x, float(chain.mean[1]))
    if chain.cov[1, 1] > 0:
        v += float(chain.cov[1, 1]) ** 0.5 * noise.child("v").normal(0, torch.arange(n), (1,))
    dyn = DYN if control is None else Controlled(DYN, control)
    return rollout(dyn, integrator, Particles.at(x, v), chain.times, noise=noise, save=save)


def scores(x, v, mean, cov):
    """z-scores of the five first and second moments of (x, v), (n,) each; the exact law is Gaussian."""
    s, n = torch.stack([x, v]) - mean[:, None], len(x)
    first = s.mean(1) / (torch.diagonal(cov) / n).sqrt()
    second, d = s @ s.T / n, torch.diagonal(cov)
    error = ((torch.outer(d, d) + cov**2) / n).sqrt()
    return torch.cat([first, ((second - cov) / error)[[0, 0, 1], [0, 1, 1]]])


@every_scheme
def test_the_stationary_law_of_the_scheme(scheme, integrator):
    """Variances of x and v and their covariance after 100 steps from a fixed state, 60 000 replicas, 4 standard errors.

    False alarm 5 x 6e-5. At h = 0.15 the two schemes differ by 14 % in var v and in cov(x, v), so neither
    passes for the other, and only LangevinMiddle has var x = kT/k.
    """
    chain = oscillator(**SETTING, steps=100, scheme=scheme)
    path = simulate(integrator, chain, 60_000, Noise(71), save="last")
    mean, cov = chain.stationary()
    assert float(scores(path.x[-1, :, 0], path.v[-1, :, 0], mean, cov).abs().max()) < 4.0
    other = oscillator(**SETTING, steps=1, scheme=SCHEMES[scheme == SCHEMES[0][0]][0]).stationary()[1]
    assert float(scores(path.x[-1, :, 0], path.v[-1, :, 0], mean, other).abs().max()) > 10.0


@every_scheme
def test_mean_and_covariance_at_every_time(scheme, integrator):
    """The linear recursion from x_0 with thermal v_0: 5 moments at 20 frames of 10 000 paths.

    z-scores below 5: false alarm at most 100 x 5.7e-7.
    """
    chain = oscillator(**SETTING, steps=20, scheme=scheme)
    path = simulate(integrator, chain, 10_000, Noise(72))
    means, covs = chain.moments()
    worst = [scores(path.x[k, :, 0], path.v[k, :, 0], means[k], covs[k]).abs().max() for k in range(1, 21)]
    assert float(max(worst)) < 5.0


@every_scheme
def test_the_riccati_control_weighs_every_path_as_the_closed_form_says(scheme, integrator):
    """A shift of the noise cannot reach zero variance at a finite step; what remains is known path by path.

    log w = log Z + sum [log(1 + rho) - rho xi^2] / 2 to 1e-10. With the noise narrowed to variance 1 / (1 + rho) as
    well, which is Doob's transform, the weight is the same on every path, to 1e-8 as card 12.4 asks.
    """
    chain = oscillator(**SETTING, steps=30, scheme=scheme, v0=0.2)
    u = chain.control(TARGET, WIDTH)
    xi = Noise(73).normal(range(30), torch.arange(40), (1,))

    def log_weight(z):
        path = simulate(integrator, chain, 40, Tape(z), u, save="last")
        return -((path.x[-1, :, 0] - TARGET) ** 2) / (2 * WIDTH**2) - path.log_ratio

    logw = log_weight(xi)
    assert torch.allclose(logw, u.log_weight(xi[..., 0]), atol=1e-10) and float(logw.std()) > 0.1
    narrow = xi / (1.0 + u.rho).sqrt()[:, None, None]
    ratio = (0.5 * (narrow**2 - xi**2) + 0.5 * torch.log1p(u.rho)[:, None, None]).sum((0, 2))
    assert torch.allclose(log_weight(narrow) - ratio, torch.full_like(logw, u.log_z), atol=1e-8)


@every_scheme
def test_importance_sampling_finds_log_z(scheme, integrator):
    """From 20 000 paths: log Z within 4 standard errors, themselves below 0.004; mean and variance of log w likewise.

    False alarm 6e-5 for each of the three; log w is a weighted sum of chi-squares, whose variance
    has a relative error of at most sqrt(14 / n) (kurtosis 15), so 11 % is at least 4 of them.
    """
    chain = oscillator(**SETTING, steps=30, scheme=scheme, v0=0.2)
    u, n = chain.control(TARGET, WIDTH), 20_000
    path = simulate(integrator, chain, n, Noise(74), u, save="last")
    logw = -((path.x[-1, :, 0] - TARGET) ** 2) / (2 * WIDTH**2) - path.log_ratio
    value, error = log_mean_exp(logw)
    assert abs(value - u.log_z) < 4.0 * error < 0.016
    assert abs(float(logw.mean()) - u.lower_bound) < 4.0 * math.sqrt(u.variance / n)
    assert float(logw.var()) == pytest.approx(u.variance, rel=0.11)


def test_the_free_mean_reward_is_log_z():
    """The thermal start and no control: 60 000 free paths, log Z within 4 standard errors (false alarm 6e-5)."""
    chain = oscillator(**SETTING, steps=10)
    path = simulate(LangevinMiddle(), chain, 60_000, Noise(75), save="last")
    value, error = log_mean_exp(-((path.x[-1, :, 0] - TARGET) ** 2) / (2 * WIDTH**2))
    assert abs(value - chain.rewarded(TARGET, WIDTH).log_z) < 4.0 * error < 0.1


def test_velocities_of_the_rewarded_paths():
    """The (2, 2) conditioning: means of x and v at every frame against free paths weighted by the reward.

    60 000 paths, 40 z-scores below 5 (false alarm 2e-5).
    """
    chain = oscillator(**SETTING, steps=10)
    path = simulate(LangevinMiddle(), chain, 60_000, Noise(76))
    w = torch.softmax(-((path.x[-1, :, 0] - TARGET) ** 2) / (2 * WIDTH**2), 0)
    mean, cov = chain.conditioned(chain.rewarded(TARGET, WIDTH))
    for k in range(11):
        for d, block in enumerate((path.x[k, :, 0], path.v[k, :, 0])):
            for f, exact in ((block, mean[k, d]), ((block - mean[k, d]) ** 2, cov[k, d, d])):
                estimate = (w * f).sum()
                error = ((w * (f - estimate)) ** 2).sum().sqrt()
                assert abs(float(estimate - exact)) <= 5.0 * float(error) + 1e-12, (k, d)
