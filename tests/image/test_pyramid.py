"""Levels on clocks of their own: the pyramid undone, one level as plain flow matching, any path to the same law."""

import pytest
import torch

from molsamp.engine import EulerMaruyama, Heun, Ito, Noise, Particles, rollout
from molsamp.image.pyramid import Along, Levels, LevelsMLP, Pyramid, batch, climb, matching, staircase, train

F64 = torch.float64
EVENT = (1, 4, 4)


class Gaussian:
    """Packed levels that are jointly N(m, S): the velocity E[N - X | x] at any times of the levels, in closed form."""

    def __init__(self, pyramid, m, S):
        self.pyramid, self.m, self.S = pyramid, m, S

    def __call__(self, x, times):
        t = self.pyramid.spread(torch.tensor(times, dtype=F64))
        A, B = torch.diag(1.0 - t), torch.diag(t)
        y = torch.linalg.solve(A @ self.S @ A + B @ B, (x - self.m @ A).T)
        return (B @ y - self.m[:, None] - self.S @ A @ y).T


@pytest.fixture(scope="module")
def pictures():
    """4 x 4 pictures with correlated pixels."""
    A = Noise(3).normal(0, torch.arange(16), (16,)) / 4.0 + 0.5 * torch.eye(16, dtype=F64)
    return Noise(1).normal(0, torch.arange(4000), (16,)) @ A.T + 0.3, A @ A.T


@pytest.fixture(scope="module")
def gaussian(pictures):
    """Two levels of them, every entry jittered: the detail of pictures alone has fewer dimensions than entries."""
    pyramid = Pyramid(EVENT, (1.0, 0.7))
    split = pyramid.split(torch.eye(16, dtype=F64).view(16, *EVENT)).T
    return Gaussian(
        pyramid,
        split @ torch.full((16,), 0.3, dtype=F64),
        split @ pictures[1] @ split.T + 0.05 * torch.eye(20, dtype=F64),
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_there_and_back(levels, dtype):
    """join(split(x)) = x; and the levels' sum, each brought up to full size, is the picture."""
    x = Noise(0).normal(0, torch.arange(5), (3, 8, 12), dtype)
    pyramid = Pyramid.of(x, levels)
    torch.testing.assert_close(pyramid.join(pyramid.split(x)), x, rtol=0.0, atol=1e-6)
    parts = [
        torch.nn.functional.interpolate(part * scale, size=(8, 12))
        for part, scale in zip(pyramid.parts(pyramid.split(x)), pyramid.scales, strict=True)
    ]
    torch.testing.assert_close(sum(parts), x, rtol=0.0, atol=1e-6)
    assert pyramid.sizes == [3 * 96 >> 2 * k for k in range(levels)][::-1]


def test_levels_have_size_one(pictures):
    pyramid = Pyramid.of(pictures[0].view(-1, *EVENT), 2)
    for part in pyramid.parts(pyramid.split(pictures[0].view(-1, *EVENT))):
        assert abs(float(part.std()) - 1.0) < 1e-12


@pytest.mark.parametrize(("method", "plain"), [("euler", EulerMaruyama()), ("heun", Heun())])
def test_one_level_is_plain_flow_matching(method, plain):
    """Sampling, bit for bit, in float32."""
    pyramid, times = Pyramid(EVENT), [1.0, 0.7, 0.45, 0.2, 0.0]
    net = LevelsMLP(pyramid, 16, Noise(2))
    torch.nn.init.normal_(net.net[-1].weight, generator=torch.Generator().manual_seed(0))
    start = Noise(4).normal(0, torch.arange(6), (16,), torch.float32)
    ours = climb(net.velocity, pyramid, [(t,) for t in times], noise=Noise(0), start=start, method=method).final.x
    flow = Ito(lambda t, x: net(x, torch.full((len(x), 1), t)).detach(), lambda t: 0.0)
    assert torch.equal(ours, rollout(flow, plain, Particles.at(start), times, noise=Noise(0)).final.x)


def test_the_loss_of_one_level_is_plain_flow_matching(pictures):
    """Bit for bit |net(x_t, t) - (N - X)|^2 with t logit-normal."""
    pyramid, X = Pyramid(EVENT), pictures[0].float()
    net = LevelsMLP(pyramid, 16, Noise(2))
    torch.nn.init.normal_(net.net[-1].weight, generator=torch.Generator().manual_seed(0))
    given = batch(pyramid, pyramid.split(X.view(-1, *EVENT)), Noise(5), 7, 32, near=0.1)
    ids = torch.arange(32)
    rows = Noise(5).child("rows").integers(7, ids, (), len(X))
    t = Noise(5).child("time").normal(7, ids, (1,), torch.float32).sigmoid()
    N = Noise(5).normal(7, ids, (16,), torch.float32)
    x = (1.0 - t) * X[rows] + t * N
    assert torch.equal(given["x"], x) and torch.equal(given["t"], t)
    plain = (net(x, t) - (N - X[rows])).square()
    assert torch.equal(matching(net, given), plain.sum() / plain.numel())


def test_batches_of_two_levels(pictures):
    """By stage: the coarse one on its way and the fine one noise, or nearly done and the fine one on its way."""
    pyramid = Pyramid.of(pictures[0].view(-1, *EVENT), 2)
    given = batch(pyramid, pyramid.split(pictures[0].view(-1, *EVENT)), Noise(5), 0, 400, near=0.1)
    coarse, fine = given["t"].T
    first = fine == 1.0
    assert 150 < int(first.sum()) < 250  # binomial(400, 1/2): false alarm below 1e-6
    assert (coarse[~first] < 0.1).all() and (coarse[first] > 0.1).any()
    assert (given["active"][first].sum(1) == 4).all() and (given["active"][~first].sum(1) == 16).all()


def linear(gaussian, path, method="heun"):
    """The map from noise to samples of a linear flow, as (matrix, image of 0)."""
    eye = torch.cat([torch.eye(20, dtype=F64), torch.zeros(1, 20, dtype=F64)])
    x = climb(gaussian, gaussian.pyramid, path, noise=Noise(0), start=eye, method=method).final.x
    return (x[:-1] - x[-1]).T, x[-1]


PATHS = {
    "together": [(1.0 - k / 400,) * 2 for k in range(401)],
    "one after the other": staircase((300, 300)),
    "overlapping": staircase((200, 400), overlap=0.5),
    "the fine one first": [times[::-1] for times in staircase((300, 300))],
}


@pytest.mark.parametrize("name", PATHS)
def test_any_path_ends_in_the_same_law(gaussian, name):
    """The terminal covariance and mean of the exact flow of correlated levels, whichever level goes first."""
    J, m = linear(gaussian, PATHS[name])
    torch.testing.assert_close(J @ J.T, gaussian.S, rtol=0.0, atol=2e-3 * float(gaussian.S.diagonal().max()))
    torch.testing.assert_close(m, gaussian.m, rtol=0.0, atol=2e-3)


def test_order_along_a_staircase(gaussian):
    """Errors of the map against a fine one: Euler's is halved with the step, Heun's quartered; both to 15 %."""
    truth = linear(gaussian, staircase((640, 640)))[0]
    for method, factor in (("euler", 2.0), ("heun", 4.0)):
        a, b = (float((linear(gaussian, staircase((n, n)), method)[0] - truth).norm()) for n in (80, 160))
        assert abs(a / b / factor - 1.0) < 0.15, (method, a, b)


def test_levels_that_are_independent_take_no_notice(gaussian):
    """With no covariance between levels the order in which they go does not change the samples themselves."""
    S = gaussian.S.clone()
    S[:4, 4:] = S[4:, :4] = 0.0
    apart = Gaussian(gaussian.pyramid, gaussian.m, S)
    a, b = (linear(apart, PATHS[name])[0] for name in ("one after the other", "the fine one first"))
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-10)


def test_staircase():
    assert staircase((2,)) == [(1.0,), (0.5,), (0.0,)]
    assert staircase((1, 2)) == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.5), (0.0, 0.0)]
    assert staircase((1, 2), overlap=0.2) == [(1.0, 1.0), (0.2, 1.0), (0.1, 0.5), (0.0, 0.0)]
    assert staircase((1, 1, 1), 0.5)[2] == (0.0, 0.5, 1.0)
    assert len(staircase((2, 3, 4))) == 10


def test_a_trained_network_has_the_law(pictures):
    """Two levels of the Gaussian pictures, 12 steps: standard deviations of pixels to 25 %, means to 0.1."""
    data = pictures[0].float().view(-1, *EVENT)
    net, pyramid = train(data, 2, Noise(1), width=64, steps=600, size=128)
    x = pyramid.join(climb(net.velocity, pyramid, staircase((6, 6)), 2000, noise=Noise(2)).final.x)
    assert ((x.std(0) / data.std(0)).log().abs() < 0.25).all()
    assert (x.mean(0) - data.mean(0)).abs().max() < 0.1


def test_errors():
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        Pyramid((1, 6, 8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="scales of levels are positive"):
        Pyramid(EVENT, (1.0, 0.0))
    with pytest.raises(ValueError, match="every level needs a step"):
        staircase((3, 0))
    with pytest.raises(ValueError, match=r"the pyramid has 2 levels, the path has \[1\]"):
        Levels(lambda x, t: x, Pyramid(EVENT, (1.0, 1.0)), ((1.0,), (0.0,)))
    with pytest.raises(ValueError, match="rises"):
        Levels(lambda x, t: x, Pyramid(EVENT, (1.0, 1.0)), ((0.5, 1.0), (0.6, 0.0)))
    with pytest.raises(ValueError, match="Along integrates Levels"):
        Along().rows(Ito(lambda t, x: x, lambda t: 0.0), [0.0, 1.0])
