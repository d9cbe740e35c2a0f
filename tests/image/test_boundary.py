"""The optimal boundary condition: the affine map of a linear-Gaussian model, selection and its honest report."""

import pytest
import torch

from molsamp.engine import VP, Noise, Particles, rollout
from molsamp.engine.exponential import Exponential
from molsamp.engine.grids import time_grid
from molsamp.image.boundary import Pairs, choose_start, distance_in, restorer, spearman, squared_error
from molsamp.image.denoiser import Denoiser
from molsamp.image.ideal import ideal, observed_log_w

F64 = torch.float64
S_Y = 0.3  # of an observation y = A x + S_Y n


def normals(key, n, *event):
    return Noise(5).child(key).normal(0, torch.arange(n), event)


# ---- super-resolution of N(0, I) in four pixels from two means of two ----

A = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=F64)
S = torch.linalg.inv(torch.eye(4, dtype=F64) + A.T @ A / S_Y**2)  # of x given y
GAIN = S @ A.T / S_Y**2


def conditioned(y):
    """The exact denoiser of x given y: Gaussian about GAIN y."""
    schedule, (values, Q), mean = VP(), torch.linalg.eigh(S), y @ GAIN.T

    def predict(x, t, label):
        a, s = schedule.alpha(t), schedule.sigma(t)
        return mean + ((x - a * mean) @ Q * (a * values / (a * a * values + s * s))) @ Q.T

    return Denoiser(schedule, predict, (4,))


def pairs(key, n):
    x = normals(key, n, 4)
    return Pairs(x @ A.T + S_Y * normals(key + "-y", n, 2), x)


def test_the_optimum_of_the_squared_error_is_the_posterior_mean():
    """h(x_T, y) = M x_T + B y; the best x_T for all y with error d = MSE is M x_T = mean of x - B y -> 0.

    The candidate that solves the references' least squares wins among 30; on infinitely many pairs it is the one that
    gives the posterior mean, alpha_T GAIN y being below 1e-2 of sigma_T.
    """
    restore, references, held = restorer(conditioned, "unipc-3", 20), pairs("R", 200), pairs("H", 50)
    zero = restore(torch.zeros(1, 4, dtype=F64), torch.zeros(1, 2, dtype=F64))
    M = restore(torch.eye(4, dtype=F64), torch.zeros(4, 2, dtype=F64)).T
    B = restore(torch.zeros(2, 4, dtype=F64), torch.eye(2, dtype=F64)).T
    assert zero.abs().max() < 1e-12 and (B - GAIN).abs().max() < 0.02  # 20 steps, and alpha_T
    x, y = normals("x", 3, 4), normals("y", 3, 2)
    torch.testing.assert_close(restore(x, y), x @ M.T + y @ B.T, rtol=0, atol=1e-12)
    optimum = torch.linalg.solve(M, (references.x - references.y @ B.T).mean(0))
    candidates = torch.cat([normals("K", 29, 4), optimum[None]])
    choice = choose_start(restore, candidates, references, held)
    assert choice.index == 29 and torch.equal(choice.start, optimum)
    unexplained = (references.x - references.y @ B.T) - (references.x - references.y @ B.T).mean(0)
    assert float(choice.reference[29]) == pytest.approx(float(unexplained.square().mean()), rel=1e-9)
    apart = choice.reference[:29] - choice.reference[29]  # the rest is |M (x_T - x_T*)|^2 / 4
    torch.testing.assert_close(apart, ((candidates[:29] - optimum) @ M.T).square().mean(1), rtol=1e-9, atol=1e-9)
    assert choice.better <= 1 / 29 and choice.agreement > 0.8 and choice.gain > 0.0


def test_nothing_to_choose_is_reported_as_chance():
    """A metric in which candidates do not matter: agreement on other pairs is noise, |r| < 4 / sqrt(K), alarm 1e-4."""
    K = 400
    salt = iter([normals("salt", K, 1).flatten(), normals("other", K, 1).flatten()])
    drawn = []

    def metric(x, truth):
        if not drawn or not len(drawn[-1]):
            drawn.append(next(salt))
        taken, drawn[-1] = drawn[-1][: len(x)], drawn[-1][len(x) :]
        return taken + 10.0

    choice = choose_start(lambda x, y: x, normals("c", K, 4), pairs("one", 1), pairs("two", 1), metric)
    assert abs(choice.agreement) < 4.0 / K**0.5
    assert choice.reference[choice.index] == choice.reference.min()


def test_a_pair_in_both_sets_is_refused():
    both = pairs("R", 3)
    with pytest.raises(ValueError, match="held-out picture 1 is reference 0 too"):
        first, two = Pairs(both.y[:1], both.x[:1]), Pairs(both.y[:2].flip(0), both.x[:2].flip(0))
        choose_start(lambda x, y: x, normals("c", 2, 4), first, two)
    with pytest.raises(ValueError, match="got 0, 3 and 1"):
        choose_start(lambda x, y: x, torch.zeros(0, 4, dtype=F64), both, pairs("H", 1))
    with pytest.raises(ValueError, match="candidate 1 is not finite"):
        bad = torch.tensor([[0.0] * 4, [torch.nan] * 4], dtype=F64)
        choose_start(lambda x, y: x, bad, both, pairs("H", 1))


def test_spearman():
    scipy = pytest.importorskip("scipy.stats")
    a, b = normals("a", 30, 1).flatten(), normals("b", 30, 1).flatten()
    b = (b + a).mul(2.0).round()  # with ties
    assert spearman(a, b) == pytest.approx(float(scipy.spearmanr(a.numpy(), b.numpy()).statistic), abs=1e-12)
    assert spearman(a, a.exp()) == pytest.approx(1.0) and spearman(a, -a) == pytest.approx(-1.0)


def test_any_metric():
    x, truth = normals("x", 3, 1, 2, 2), normals("truth", 3, 1, 2, 2)
    torch.testing.assert_close(distance_in(lambda a: 2.0 * a)(x, truth), 4.0 * squared_error(x, truth))


# ---- the conditional ideal denoiser that the benchmark restores with ----


def test_weights_of_particles_make_the_posterior():
    """Against the joint kernel density written out: E[x_0 | x_t, y] under sum_k N(x; m_k, w^2) N(y; o_k, s^2)."""
    data, w, s, schedule, t = normals("data", 6, 1, 2, 2), 0.2, 0.3, VP(), 0.4
    observe = data.mean(-1)
    x, y = normals("x", 3, 1, 2, 2), normals("y", 3, 1, 2)
    model = ideal(data, schedule, w, log_w=observed_log_w(y, observe, s))
    a, c = schedule.alpha(t), schedule.alpha(t) ** 2 * w**2 + schedule.sigma(t) ** 2
    for i in range(3):
        away = (x[i] - a * data).square().sum((1, 2, 3)) / (2 * c)
        log_r = -away - (y[i] - observe).square().sum((1, 2)) / (2 * s * s)
        r = log_r.softmax(0).view(-1, 1, 1, 1)
        expected = (r * (data + a * w * w / c * (x[i] - a * data))).sum(0)
        torch.testing.assert_close(model(x, t)[i], expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="3 particles have weights, the batch is of 2"):
        model(x[:2], t)
    with pytest.raises(ValueError, match="do not fit 6 pictures"):
        ideal(data, schedule, w, log_w=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="spread"):
        observed_log_w(y, observe, 0.0)


def test_a_restorer_is_the_solver():
    y, x = normals("y", 3, 2), normals("x", 3, 4)
    times = time_grid("quadratic", VP(), 7)
    path = rollout(conditioned(y).sde(), Exponential(), Particles.at(x), times, noise=Noise(0))
    torch.testing.assert_close(restorer(conditioned, "ddim", 7)(x, y), path.final.x, rtol=0, atol=1e-13)
