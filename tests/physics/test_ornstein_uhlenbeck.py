"""The Ornstein-Uhlenbeck process, free and conditioned: mean and variance at every time (card 12.5)."""

import math

import pytest
import torch

from molsamp.engine import Controlled, EulerMaruyama, Noise, Overdamped, Particles, log_mean_exp, rollout
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck

RATE, D, CENTRE, H, STEPS = 1.3, 0.7, 0.4, 0.05, 40
DYN = Overdamped(Harmonic(RATE, CENTRE), kT=D)
FIXED = ornstein_uhlenbeck(rate=RATE, D=D, centre=CENTRE, h=H, steps=STEPS, x0=-1.0)
SPREAD = ornstein_uhlenbeck(rate=RATE, D=D, centre=CENTRE, h=H, steps=STEPS, x0=-1.0, var0=0.5)
BOUND = 5.0  # z-scores; 2 x 41 of them exceed it with probability below 82 x 5.7e-7 = 5e-5 (Bonferroni)


def simulate(chain, n, noise, control=None):
    """n paths of the chain, (frames, n), and log dP_u/dP_0."""
    start = torch.full((n, 1), float(chain.mean[0]), dtype=torch.float64)
    start += float(chain.cov[0, 0]) ** 0.5 * noise.child("start").normal(0, torch.arange(n), (1,))
    dyn = DYN if control is None else Controlled(DYN, control)
    path = rollout(dyn, EulerMaruyama(), Particles.at(start), chain.times, noise=noise)
    return path.x[:, :, 0], path.log_ratio


def worst_z(x, w, mean, variance) -> float:
    """Largest z-score over frames of the weighted mean and of the weighted mean square distance to `mean`.

    Errors by the delta method for self-normalised weights: sum w^2 (f - E f)^2, w summing to 1. Frames with no
    variance at all are compared exactly.
    """
    sure = variance < 1e-12
    assert torch.allclose(x[sure], mean[sure, None].expand_as(x[sure]), atol=1e-12)
    x, mean, variance = x[~sure], mean[~sure, None], variance[~sure, None]
    scores = []
    for f, exact in ((x, mean), ((x - mean) ** 2, variance)):
        estimate = (f * w).sum(1, keepdim=True)
        error = ((w * (f - estimate)) ** 2).sum(1, keepdim=True).sqrt()
        scores.append(((estimate - exact) / error).abs().max())
    return float(max(scores))


def uniform(n):
    """Equal weights."""
    return torch.full((n,), 1.0 / n, dtype=torch.float64)


@pytest.mark.parametrize("chain", [FIXED, SPREAD], ids=["fixed start", "random start"])
def test_the_free_process_has_its_moments(chain):
    """Mean and variance at every frame of 20 000 paths; false alarm 5e-5."""
    x, _ = simulate(chain, 20_000, Noise(61))
    mean, cov = chain.moments()
    assert worst_z(x, uniform(20_000), mean[:, 0], cov[:, 0, 0]) < BOUND


def test_the_stationary_law_is_the_limit_and_the_boltzmann_law_as_the_step_vanishes():
    mean, cov = FIXED.stationary()
    long = ornstein_uhlenbeck(rate=RATE, D=D, centre=CENTRE, h=H, steps=600, x0=-1.0).moments()
    assert torch.allclose(long[0][-1], mean) and torch.allclose(long[1][-1], cov)
    fine = ornstein_uhlenbeck(rate=RATE, D=D, centre=CENTRE, h=1e-7, steps=1, x0=0.0).stationary()
    assert float(mean) == pytest.approx(CENTRE) and float(fine[1]) == pytest.approx(D / RATE, rel=1e-6)
    with pytest.raises(ValueError, match="no stationary law"):
        ornstein_uhlenbeck(rate=0.0, D=D, h=H, steps=1, x0=0.0).stationary()


@pytest.mark.parametrize("target, width", [(2.0, 0.3), (2.0, 0.1), (-1.5, 1.0)])
def test_controlled_and_reweighted_paths_are_the_conditioned_process(target, width):
    """Doob's control and the weights left over: mean and variance at every frame, and log Z to 4 standard errors.

    20 000 paths; false alarm 5e-5 for the moments, 6e-5 for log Z.
    """
    u = FIXED.control(target, width)
    x, log_ratio = simulate(FIXED, 20_000, Noise(62), u)
    logw = -((x[-1] - target) ** 2) / (2 * width**2) - log_ratio
    mean, cov = FIXED.conditioned(FIXED.rewarded(target, width))
    assert worst_z(x, torch.softmax(logw, 0), mean[:, 0], cov[:, 0, 0]) < BOUND
    value, error = log_mean_exp(logw)
    assert abs(value - u.log_z) < 4.0 * error < 0.05


def test_paths_that_end_beyond_an_edge_are_the_conditioned_process():
    """By rejection from 60 000 free paths with random starts: P, mean and variance at every frame, false alarm 1e-4."""
    edge = 1.2
    x, _ = simulate(SPREAD, 60_000, Noise(63))
    check_event(x, x[-1] > edge, SPREAD, SPREAD.beyond(edge))


def test_paths_that_cross_are_the_conditioned_process():
    """From x_0 < a to x_n > b, the ensemble of shooting moves of fixed length; false alarm 1e-4."""
    x, _ = simulate(SPREAD, 60_000, Noise(64))
    check_event(x, (x[0] < -1.1) & (x[-1] > 0.9), SPREAD, SPREAD.crossing(-1.1, 0.9))


def check_event(x, hit, chain, tilt):
    """Share of hits within 4 binomial errors, and the moments of the hits."""
    n, hits, p = x.shape[1], int(hit.sum()), math.exp(tilt.log_z)
    assert hits > 2000 and abs(hits / n - p) < 4.0 * math.sqrt(p * (1 - p) / n)
    mean, cov = chain.conditioned(tilt)
    assert worst_z(x[:, hit], uniform(hits), mean[:, 0], cov[:, 0, 0]) < BOUND


def test_crossing_without_a_first_condition_is_beyond():
    """The quadrature against the closed half, and the symmetry of time for the stationary process."""
    sure, closed = SPREAD.crossing(50.0, 1.0), SPREAD.beyond(1.0)
    assert sure.log_z == pytest.approx(closed.log_z, abs=1e-10)
    assert float(sure.mean[1]) == pytest.approx(float(closed.mean), abs=1e-9)
    assert float(sure.cov[1, 1]) == pytest.approx(float(closed.cov), abs=1e-9)
    m, C = FIXED.stationary()
    still = ornstein_uhlenbeck(rate=RATE, D=D, centre=CENTRE, h=H, steps=STEPS, x0=float(m), var0=float(C)).crossing(
        CENTRE - 0.8, CENTRE + 0.8
    )
    assert float(still.mean.sum()) == pytest.approx(2 * CENTRE, abs=1e-9)
    assert float(still.cov[0, 0]) == pytest.approx(float(still.cov[1, 1]), abs=1e-9)
