"""The losses on a path space of eight paths, where every expectation is a sum.

A walk of three steps +-1 from 0; P_0 is fair, P_u goes up at (step, place) with probability sigmoid(theta), and the
reward looks at the end alone, so that Q is reached exactly, by Doob's transform. A batch in which each path stands in
proportion to its probability turns the loss into its expectation.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.measures import ess
from molsamp.learn.objectives import cross_entropy, log_variance, moderate, relative_entropy, trust_region_target

STEPS = torch.tensor(list(itertools.product((-1, 1), repeat=3)))  # the eight paths
PLACE = 3 + torch.cat([torch.zeros(8, 1, dtype=torch.int64), STEPS.cumsum(1)[:, :-1]], 1)  # before each step, 0..6
REWARD = {-3: -1.0, -1: 0.4, 1: -0.3, 3: 1.7}
LOG_REWARD = torch.tensor([REWARD[int(end)] for end in STEPS.sum(1)], dtype=torch.float64)
LOG_Z = float(torch.logsumexp(LOG_REWARD, 0)) - math.log(8)
Q = torch.softmax(LOG_REWARD, 0)
UP = torch.full((3, 7), math.log(3.0), dtype=torch.float64)  # up with probability 3/4 everywhere
COUNTS = torch.tensor([3 ** int((path > 0).sum()) for path in STEPS])  # its probabilities, times 64


def log_rn(theta: Tensor) -> Tensor:
    """log dP_u/dP_0 of the eight paths."""
    here = theta[torch.arange(3), PLACE]
    return (torch.nn.functional.logsigmoid(STEPS * here) + math.log(2.0)).sum(1)


def doob() -> Tensor:
    """theta*: the log odds of up against down in h(k, x) = E[reward | x_k = x]."""
    h = {(3, end): math.exp(r) for end, r in REWARD.items()}
    theta = torch.zeros(3, 7, dtype=torch.float64)
    for k in (2, 1, 0):
        for x in range(-k, k + 1, 2):
            up, down = h[k + 1, x + 1], h[k + 1, x - 1]
            h[k, x] = 0.5 * (up + down)
            theta[k, 3 + x] = math.log(up / down)
    assert math.log(h[0, 0]) == pytest.approx(LOG_Z)
    return theta


def gradient(loss, theta: Tensor) -> Tensor:
    """d loss(theta) / d theta."""
    theta = theta.clone().requires_grad_(True)
    return torch.autograd.grad(loss(theta), theta)[0]


def numeric(f, theta: Tensor) -> Tensor:
    """The same by central differences."""
    g = torch.zeros_like(theta)
    for at in itertools.product(*map(range, theta.shape)):
        e = torch.zeros_like(theta)
        e[at] = 1e-5
        g[at] = (f(theta + e) - f(theta - e)) / 2e-5
    return g


THETA = Noise(17).normal(0, torch.arange(3), (7,))  # a control that is wrong everywhere
OPTIMUM = doob()
STORED = torch.arange(8).repeat_interleave(COUNTS)  # 64 paths as the policy UP draws them


def test_the_optimum_is_q():
    assert torch.allclose(log_rn(OPTIMUM), LOG_REWARD - LOG_Z)
    assert torch.allclose(log_rn(OPTIMUM).exp() / 8, Q)


@pytest.mark.parametrize("paths", [torch.arange(8), STORED, torch.tensor([0, 0, 3])], ids=["P_0", "hot", "three"])
def test_log_variance_vanishes_at_q_whoever_drew_the_paths(paths):
    """Value and gradient are zero at the optimum, with log Z as the constant; elsewhere it is the batch variance."""
    for log_z in (None, torch.tensor(LOG_Z, dtype=torch.float64)):

        def loss(theta, c=log_z):
            return log_variance(log_rn(theta)[paths], LOG_REWARD[paths], c)

        assert float(loss(OPTIMUM)) == pytest.approx(0.0, abs=1e-20)
        assert float(gradient(loss, OPTIMUM).abs().max()) < 1e-12
    d = log_rn(THETA)[paths] - LOG_REWARD[paths]
    assert float(log_variance(log_rn(THETA)[paths], LOG_REWARD[paths])) == pytest.approx(float(d.var(correction=0)))


def test_the_constant_learns_log_z_and_is_the_batch_mean_on_the_way():
    """d/dc vanishes at c = -mean(log_rn - log_reward), log Z at the optimum; there "zero" is off by log Z^2."""
    for theta in (THETA, OPTIMUM):
        best = -(log_rn(theta) - LOG_REWARD).mean()
        c = best.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(log_variance(log_rn(theta), LOG_REWARD, c), c)
        assert abs(float(slope)) < 1e-12
    assert float(best) == pytest.approx(LOG_Z)
    assert float(log_variance(log_rn(OPTIMUM), LOG_REWARD, torch.zeros(()))) == pytest.approx(LOG_Z**2)


def test_local_is_global_in_expectation():
    """Over all 64 batches of B = 2 paths "local" is (B - 1)/B of "global" at its best constant, gradient as well."""

    def everywhere(theta):
        return log_variance(log_rn(theta), LOG_REWARD, -(log_rn(THETA) - LOG_REWARD).mean())

    def averaged(theta):
        pairs = itertools.product(range(8), repeat=2)
        return torch.stack([log_variance(log_rn(theta)[[i, j]], LOG_REWARD[[i, j]]) for i, j in pairs]).mean()

    assert float(averaged(THETA)) == pytest.approx(0.5 * float(everywhere(THETA)))
    assert torch.allclose(gradient(averaged, THETA), 0.5 * gradient(everywhere, THETA), atol=1e-12)


@pytest.mark.parametrize("paths, behaviour", [(torch.arange(8), None), (STORED, UP)], ids=["P_0", "another policy"])
def test_cross_entropy_is_that_of_q(paths, behaviour):
    """-E_Q log dP_u/dP_0 whoever drew the paths; least at Q, and convex enough that any step away costs."""
    drawn = log_rn(torch.zeros_like(UP) if behaviour is None else behaviour)[paths]

    def loss(theta):
        return cross_entropy(log_rn(theta)[paths], LOG_REWARD[paths], drawn)

    def exact(theta):
        return -(Q * log_rn(theta)).sum()

    assert float(loss(THETA)) == pytest.approx(float(exact(THETA)))
    assert torch.allclose(gradient(loss, THETA), numeric(exact, THETA), atol=1e-8)
    assert float(gradient(loss, OPTIMUM).abs().max()) < 1e-12
    for k in range(5):
        away = OPTIMUM + 0.1 * Noise(18).normal(k, torch.arange(3), (7,))
        assert float(loss(away)) > float(loss(OPTIMUM))


def test_cross_entropy_needs_to_know_who_drew_the_paths():
    """Left out, the policy's own preference leaks into the target."""
    wrong = cross_entropy(log_rn(THETA)[STORED], LOG_REWARD[STORED], torch.zeros(64))
    assert abs(float(wrong) + float((Q * log_rn(THETA)).sum())) > 0.05


def test_relative_entropy_has_the_gradient_of_reverse_kl():
    """On paths drawn by P_u itself, here in exact proportion: the gradient of KL(P_u || Q), by differences."""

    def exact(theta):
        r = log_rn(theta)
        return (r.exp() / 8 * (r - LOG_REWARD + LOG_Z)).sum()

    def surrogate(theta):
        return relative_entropy(log_rn(theta)[STORED], LOG_REWARD[STORED])

    assert torch.allclose(gradient(surrogate, UP), numeric(exact, UP), atol=1e-8)
    assert float(numeric(exact, UP).abs().max()) > 0.1
    at_q = gradient(lambda theta: relative_entropy(log_rn(theta), LOG_REWARD), OPTIMUM)
    assert float(at_q.abs().max()) < 1e-12, "no path tells Q from P_u: nothing to learn, without any noise"


@pytest.mark.parametrize("floor", [0.2, 0.5, 0.9])
def test_the_trust_region_keeps_the_ess_it_promises(floor):
    """Weights of the step have ESS = floor n to 1e-4 n, and the target is the geometric mean it says."""
    log_old = Noise(19).normal(0, torch.arange(200), ())
    log_reward = 6.0 * Noise(19).normal(1, torch.arange(200), ())
    target, lam = trust_region_target(log_old, log_reward, floor)
    assert 0.0 < lam < 1.0
    assert ess(target - log_old) / 200 == pytest.approx(floor, abs=1e-4)
    assert torch.allclose(target, (1 - lam) * log_old + lam * log_reward)


def test_a_policy_near_the_goal_goes_all_the_way():
    log_old = Noise(19).normal(0, torch.arange(200), ())
    target, lam = trust_region_target(log_old, log_old + 3.0, 0.99)
    assert lam == 1.0 and torch.equal(target, log_old + 3.0)


def test_moderate_goals_pull_where_the_step_is_small_and_keep_their_fixed_point():
    """Unit slope and third-order error at the mean, the order of the weights, and nothing to do at the optimum."""
    log_w = torch.linspace(-80.0, 5.0, 300, dtype=torch.float64)
    far = moderate(log_w, 0.0)
    assert (far.diff() > 0).all() and float(far.min()) > -5.1
    near = torch.tensor([-0.1, 0.1], dtype=torch.float64)
    assert torch.allclose(moderate(near - 7.0, -7.0), near - near**3 / 6, atol=1e-6)
    assert (moderate(torch.full((5,), -40.0), -40.0) == 0.0).all()


def test_moderate_goals_tame_the_instability_of_the_loss():
    """Second derivative at d = 0 of the loss of paths log_rn = d R - d^2 / 2, R = +-1: 2 (1 - A), autograd, 1e-12."""
    R = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def curvature(goal: Tensor) -> float:
        def loss(d: Tensor) -> Tensor:
            return log_variance(d * R - d**2 / 2, goal.expand(2), torch.zeros(()))

        return float(torch.autograd.functional.hessian(loss, torch.zeros((), dtype=torch.float64)))

    goals = torch.tensor([-80.0, -0.5], dtype=torch.float64)
    assert curvature(goals[0]) == pytest.approx(-158.0, abs=1e-12)
    assert curvature(goals[1]) == pytest.approx(1.0, abs=1e-12)
    assert -9.0 < curvature(moderate(goals, 0.0)[0]) < 0.0 < curvature(moderate(goals, 0.0)[1])
