"""Reward-conditioned generation in closed form: Gaussians on a subspace, where every guided sampler is an affine map.

The law of what a deterministic affine sampler makes is known exactly from d + 1 rollouts: no Monte Carlo below, except
where regression is checked.
"""

import math

import pytest
import torch

from molsamp.engine import VP, Exponential, GaussianMixture, LinearSDE, Noise, Particles, time_grid
from molsamp.engine.guides import Guided, Uphill
from molsamp.engine.rewards import LinearReward, climb, tilts
from molsamp.engine.rollout import rollout

F64 = torch.float64
S, AMBIENT, INNER = VP(), 6, 3
IDS = torch.arange(AMBIENT)
Q = torch.linalg.qr(Noise(1).normal(0, IDS, (AMBIENT,))).Q
A, OFF = Q[:, :INNER], Q[:, INNER:]
COV = A @ torch.diag(torch.tensor([1.5, 0.7, 0.3], dtype=F64)) @ A.T
THETA = Noise(2).normal(0, torch.arange(1), (AMBIENT,))[0]
NU2, TARGET = 0.4, 2.0
MODEL = GaussianMixture(torch.zeros(1, AMBIENT, dtype=F64), COV[None]).sde(S)
ALONG = float(THETA @ COV @ THETA)


def gaussian(mean, cov):
    return GaussianMixture(mean[None], cov[None])


def affine(sde, log_h=None, steps=200):
    """x_end = b + M x_T of the second-order solver, from d + 1 rollouts, and its times."""
    times = time_grid("log-snr", S, steps)
    rule = Exponential(2) if log_h is None else Guided(Exponential(2), Uphill(log_h))
    basis = torch.cat([torch.zeros(1, AMBIENT, dtype=F64), torch.eye(AMBIENT, dtype=F64)])
    made = rollout(sde, rule, Particles.at(basis), times, noise=Noise(0), save="last").final.x
    return made[0], (made[1:] - made[0]).T, times


def off_by(sde, log_h, truth, steps=200):
    """Largest error of mean and covariance at the last time, the first having the exact law there of the truth."""
    b, M, times = affine(sde, log_h, steps)
    (m0, c0), (m1, c1) = (truth.marginal(S, t).moments() for t in (times[0], times[-1]))
    return max(float((b + M @ m0 - m1).abs().max()), float((M @ c0 @ M.T - c1).abs().max()))


def asked(target):
    """The exact conditional of N(0, S) given theta.x + nu e = target."""
    along = COV @ THETA
    return gaussian(along * target / (ALONG + NU2), COV - torch.outer(along, along) / (ALONG + NU2))


def test_conditioning_on_a_reward_is_the_exact_conditional():
    """Mean and covariance to 1e-3 at 100 steps, a quarter of that within 2 % at twice as many."""
    log_h = LinearReward(THETA, NU2).aims(MODEL, TARGET)
    errors = [off_by(MODEL, log_h, asked(TARGET), steps) for steps in (100, 200)]
    assert errors[0] < 1e-3
    assert abs(errors[0] / errors[1] / 4.0 - 1.0) < 0.02


def test_what_a_start_without_the_target_costs():
    """From N(0, sigma_T^2 I) the law is what the exact flow makes of it, to 1e-5: the survey's first term of error."""
    b, _, times = affine(MODEL, LinearReward(THETA, NU2).aims(MODEL, TARGET))
    truth = asked(TARGET)
    zero = truth.flow_map(S, times[0], times[-1], torch.zeros(1, AMBIENT, dtype=F64))[0]
    missed = float((zero - truth.marginal(S, times[-1]).moments()[0]).abs().max())
    assert float((b - zero).abs().max()) < 1e-5
    assert 1e-3 < missed < 2e-2


def test_variance_of_the_reward_alone_is_not():
    """v_t = nu^2, as in posterior sampling with the reward of D alone, misses the mean reward by more than 10 %."""

    def log_h(x, t):
        return -0.5 * (TARGET - MODEL.denoise(x, t) @ THETA).square() / NU2

    b, _, _ = affine(MODEL, log_h)
    assert abs(float(b @ THETA) / (TARGET * ALONG / (ALONG + NU2)) - 1.0) > 0.1


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_the_reward_that_comes_out_is_shrunk(target):
    """E[theta.x | target] = target theta'S theta / (theta'S theta + nu^2), to 1e-3 of it; the target itself is not."""
    b, M, times = affine(MODEL, LinearReward(THETA, NU2).aims(MODEL, target))
    m = (b + M @ asked(target).marginal(S, times[0]).moments()[0]) / S.alpha(times[-1])
    assert abs(float(m @ THETA) / target * (ALONG + NU2) / ALONG - 1.0) < 1e-3
    assert float(m @ THETA) < 0.5 * target


def leaky(gain):
    """The model with the share 1 - gain of its score off the subspace missing."""

    def denoise(x, t):
        return MODEL.denoise(x, t) + (1.0 - gain) / S.alpha(t) * (x @ OFF) @ OFF.T

    return LinearSDE(S, denoise)


def test_off_the_support_only_a_leaky_score_goes_and_the_further_the_more_is_asked():
    """Off-support energy grows as target^2 with a score of imperfect orthogonal gain, not at all with the right one.

    With a price on it the value E theta.x - price |off|^2 has its best target inside, where the two slopes say.
    """
    targets = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)
    reward = LinearReward(THETA, NU2)
    energy, value = {}, []
    for gain in (1.0, 0.9):
        sde = leaky(gain)
        means = torch.stack([affine(sde, reward.aims(sde, float(a)), 60)[0] for a in targets])
        energy[gain] = (means @ OFF).square().sum(1)
        value = means @ THETA
    assert float(energy[1.0].max()) < 1e-20
    torch.testing.assert_close(energy[0.9] / targets**2, (energy[0.9] / targets**2)[:1].expand(4), rtol=1e-9, atol=0)
    slope, loss = float(value[0]), float(energy[0.9][0])
    price = slope / (6.0 * loss)  # slope / (2 price loss) = 3
    worth = value - price * energy[0.9]
    assert int(worth.argmax()) in (1, 2)
    inside = torch.tensor([2.5, 3.0, 3.5], dtype=F64)
    means = torch.stack([affine(sde, reward.aims(sde, float(a)), 60)[0] for a in inside])
    assert int((means @ THETA - price * (means @ OFF).square().sum(1)).argmax()) == 1


def test_the_score_off_the_subspace_is_the_noises():
    """(alpha D - x) / sigma^2 has the part -x_off / sigma^2 there, to 1e-9; the off-support energy ends at sigma^2."""
    x, t = Noise(3).normal(0, torch.arange(5), (AMBIENT,)), 0.3
    off = (MODEL.score(x, t) + x / S.sigma(t) ** 2) @ OFF
    assert float(off.abs().max()) < 1e-9
    _, M, times = affine(MODEL)
    left = float((OFF.T @ M @ M.T @ OFF).trace()) * S.sigma(times[0]) ** 2 / (AMBIENT - INNER)
    assert abs(left / S.sigma(times[-1]) ** 2 - 1.0) < 1e-9


def test_a_tilt_moves_the_mean_by_the_covariance():
    assert off_by(MODEL, tilts(MODEL, THETA), gaussian(COV @ THETA, COV)) < 1e-3


def test_climbing_a_quadratic_ends_at_the_ridge_solution():
    """r = -|B x - c|^2 / 2: (1 + weight S B'B) x = weight S B'c, to 4e-3; at twice the weight the answer is another."""
    B, c = 0.7 * Noise(4).normal(0, torch.arange(4), (AMBIENT,)), Noise(5).normal(0, torch.arange(4), ())
    z = Noise(6).normal(0, torch.arange(4), (AMBIENT,))
    times = time_grid("log-snr", S, 100)
    start = Particles.at(S.sigma(times[0]) * torch.cat([z, -z]))
    l = float(torch.linalg.eigvals(COV @ B.T @ B).real.max())

    def reward(x):
        return -0.5 * (x @ B.T - c).square().sum(1)

    means = climb(
        MODEL,
        Exponential(2),
        start,
        times,
        reward,
        noise=Noise(7),
        weight=0.5,
        rounds=20,
        damping=1.0 / (1.0 + 0.25 * l),
    )
    exact = [
        torch.linalg.solve(torch.eye(AMBIENT, dtype=F64) + w * COV @ B.T @ B, w * COV @ B.T @ c) for w in (0.5, 1.0)
    ]
    errors = [float((means[-1] - e).abs().max()) for e in exact]
    assert errors[0] < 4e-3
    assert errors[1] > 10.0 * errors[0]


@pytest.mark.parametrize("inner", [1, 4, 12])
def test_regression_on_a_subspace_costs_its_dimension_not_that_of_the_space(inner):
    """E |A'(theta' - theta)|^2 = nu^2 d / (n - d - 1) of N(0, 1) z: 400 fits, 4 standard errors (6e-5 each).

    The ambient dimension 24 in its place is refused.
    """
    n, runs, ambient = 40, 400, 24
    basis = torch.linalg.qr(Noise(8).normal(0, torch.arange(ambient), (inner,))).Q
    theta = Noise(9).normal(0, torch.arange(1), (ambient,))[0]
    z = Noise(10).normal(0, torch.arange(runs), (n, inner + 1))
    risks = []
    for draw in z:
        x = draw[:, :inner] @ basis.T
        fitted = LinearReward.fit(x, x @ theta + math.sqrt(NU2) * draw[:, -1])
        risks.append(float((basis.T @ (fitted.theta - theta)).square().sum()))
    risk = torch.tensor(risks, dtype=F64)
    error = 4.0 * float(risk.std()) / math.sqrt(runs)
    assert abs(float(risk.mean()) - NU2 * inner / (n - inner - 1)) < error
    assert abs(float(risk.mean()) - NU2 * ambient / (n - ambient - 1)) > error


def test_an_estimated_score_is_the_better_the_fewer_dimensions_its_data_have():
    """Error of the empirical denoiser at sigma = 0.2 alpha, n = 250 .. 4000: log slopes below 0, for d = 1 below d = 4.

    Only the order of the slopes is a claim (5 sets of data each, by 2 standard errors of their difference).
    """
    slopes = {}
    t, ambient, counts = S.time(math.log(5.0)), 6, (250, 1000, 4000)
    for d in (1, 4):
        basis = torch.eye(ambient, dtype=F64)[:, :d]
        exact = GaussianMixture(torch.zeros(1, ambient, dtype=F64), (basis @ basis.T)[None])
        found = []
        for seed in range(5):
            noise = Noise(seed)
            x = exact.marginal(S, t).sample(200, noise.child("x"))
            data = noise.normal(0, torch.arange(counts[-1]), (d,)) @ basis.T
            logs = []
            for n in counts:
                r = torch.softmax(-0.5 * torch.cdist(x, S.alpha(t) * data[:n]).square() / S.sigma(t) ** 2, 1)
                logs.append(float((r @ data[:n] - exact.denoise(S, x, t)).square().sum(1).mean().log()))
            found.append((logs[-1] - logs[0]) / math.log(counts[-1] / counts[0]))
        slopes[d] = torch.tensor(found)
    gap = slopes[4].mean() - slopes[1].mean()
    assert float(slopes[4].max()) < 0.0
    assert float(gap) > 2.0 * math.sqrt(float(slopes[4].var() + slopes[1].var()) / 5)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"variance of a reward is -1\.0"):
        LinearReward(THETA, -1.0)
    with pytest.raises(ValueError, match="3 points of rank 3"):
        LinearReward.fit(torch.eye(3), torch.zeros(3))
    start = Particles.at(torch.zeros(1, AMBIENT, dtype=F64))
    settings = dict(noise=Noise(0), weight=1.0)
    with pytest.raises(ValueError, match="rounds 0"):
        climb(MODEL, Exponential(), start, time_grid("log-snr", S, 5), lambda x: x.sum(1), rounds=0, **settings)
    with pytest.raises(ValueError, match="not finite in round 1"):
        climb(
            MODEL, Exponential(), start, time_grid("log-snr", S, 5), lambda x: x.sum(1) * math.nan, rounds=1, **settings
        )
