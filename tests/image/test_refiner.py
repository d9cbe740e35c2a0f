"""FlowTurbo's blocks: Heun and its cheaper relatives, on flows that are known exactly."""

import math
from itertools import pairwise

import pytest
import torch

from molsamp.engine import Flow, GaussianMixture, Heun, LinearSDE, Noise, Particles, flow, rollout, time_grid
from molsamp.image import ideal
from molsamp.image.refiner import Blocks, Refiner, ledger, pairs, train, turbo
from molsamp.image.sampling import sample

F64 = torch.float64
SCHEDULE, NOISE = Flow(start=0.99, end=0.01), Noise(4)


def f64(values):
    return torch.tensor(values, dtype=F64)


@pytest.fixture(scope="module")
def model():
    means = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    return ideal.mixture(GaussianMixture(means, f64([0.3, 0.2, 0.25])), SCHEDULE, (2,))


@pytest.fixture(scope="module")
def starts():
    return NOISE.child("start").normal(0, torch.arange(32), (2,))


def by(model, starts, blocks):
    return sample(model, Blocks(blocks), len(blocks), noise=NOISE, start=starts).final.x


def test_h_is_heun(model, starts):
    """Of the engine, on the same grid, to the last digits; and written out by hand."""
    times = time_grid("uniform", SCHEDULE, 9)
    v = flow(LinearSDE(SCHEDULE, model))
    heun = rollout(v, Heun(), Particles.at(starts), times, noise=NOISE).final.x
    torch.testing.assert_close(by(model, starts, "H" * 9), heun, rtol=0.0, atol=1e-12)
    x = starts
    for s, t in pairwise(times):
        d = v.drift(s, x)
        x = x + (t - s) * (d + v.drift(t, x + (t - s) * d)) / 2
    torch.testing.assert_close(heun, x, rtol=0.0, atol=1e-12)


def test_p_takes_the_last_velocity(model, starts):
    """The second row of HP by hand: its first velocity is the one at the predicted, not the corrected, state."""
    a, b, c = time_grid("uniform", SCHEDULE, 2)
    v, x = flow(LinearSDE(SCHEDULE, model)), starts
    d = v.drift(a, x)
    e = v.drift(b, x + (b - a) * d)
    x = x + (b - a) * (d + e) / 2
    x = x + (c - b) * (e + v.drift(c, x + (c - b) * e)) / 2
    torch.testing.assert_close(by(model, starts, "HP"), x, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("letter", ["H", "P"])
def test_order(model, starts, letter):
    """Both of order 2, to 0.15, between 80 and 160 steps."""
    truth = sample(model, "rk4", 4 * 400, noise=NOISE, start=starts, grid="log-snr").final.x
    errors = [float((by(model, starts, "H" + letter * (n - 1)) - truth).norm()) for n in (80, 160)]
    assert abs(math.log2(errors[0] / errors[1]) - 2.0) < 0.15, errors


def test_r_with_the_truth_is_h(model, starts):
    """A refiner that knows the velocity: r = v(x, t) - v*."""
    v = flow(LinearSDE(SCHEDULE, model))
    found = turbo(model, lambda x, last, t: v.drift(t, x) - last, "HPPRRR", noise=NOISE, start=starts)
    torch.testing.assert_close(found.final.x, by(model, starts, "HPPHHH"), rtol=0.0, atol=1e-12)


def test_r_without_anything_goes_straight_on(model, starts):
    """An untrained refiner is zero: the velocity is frozen, and R blocks are Euler steps along it."""
    times = time_grid("uniform", SCHEDULE, 4)
    path = sample(model, Blocks("HP"), 2, noise=NOISE, start=starts, grid=times[:3])
    straight = path.final.x + (times[4] - times[2]) * path.memory.history[0]
    refiner = Refiner((2,), 8, Noise(0)).double()
    found = turbo(model, refiner, "HPRR", noise=NOISE, start=starts)
    torch.testing.assert_close(found.final.x, straight, rtol=0.0, atol=1e-12)


def test_ledger(model, starts):
    """Calls as counted by the model and the refiner themselves."""
    seen = []

    def refine(x, v, t):
        seen.append(t)
        return torch.zeros_like(x)

    before = model.calls
    found = turbo(model, refine, "HPPPPPRRR", noise=NOISE, start=starts)
    assert (found.calls, found.refiner_calls) == ledger("HPPPPPRRR") == (7, 6)
    assert (model.calls - before, len(seen)) == (7, 6)


def test_pairs_are_velocities_a_step_apart(model):
    known = pairs(
        model, GaussianMixture(torch.zeros(1, 2), torch.ones(1)).sample(50, Noise(1)), Noise(2), times=6, batch=5
    )
    v = flow(LinearSDE(SCHEDULE, model))
    assert known["x"].shape == known["target"].shape == (30, 2)
    for k in (0, 12, 29):
        t, x = float(known["t"][k]), known["x"][k : k + 1]
        torch.testing.assert_close(known["target"][k : k + 1], v.drift(t, x) - known["v"][k : k + 1])


def test_a_trained_refiner_helps(starts):
    """On one Gaussian: half of the steps by R, three times nearer to the flow's end than with the velocity frozen."""
    gaussian = GaussianMixture(f64([[0.5, -0.3]]), torch.diag(f64([1.0, 0.1]))[None])
    model = ideal.mixture(gaussian, SCHEDULE, (2,))
    refiner = train(model, gaussian.sample(2000, Noise(1)), Noise(3), width=32, steps=800, times=128, reach=0.15)
    truth = gaussian.flow_map(SCHEDULE, SCHEDULE.start, SCHEDULE.end, starts)
    errors = [
        float((turbo(model, r, "HPPPPRRRR", noise=NOISE, start=starts).final.x - truth).square().mean().sqrt())
        for r in (refiner, lambda x, v, t: torch.zeros_like(x))
    ]
    assert errors[0] < errors[1] / 3.0, errors


@pytest.mark.parametrize("blocks", ["PH", "HRP", "HX", "RR", ""])
def test_a_wrong_order_of_blocks_is_refused(model, starts, blocks):
    with pytest.raises(ValueError, match=r"the first an H|a grid needs one step"):
        turbo(model, lambda x, v, t: v, blocks, noise=NOISE, start=starts)
