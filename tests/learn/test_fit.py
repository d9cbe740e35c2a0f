"""The gradient loop: it descends, clips by group, keeps moments between calls and steps over what is not finite."""

import math

import pytest
import torch
from torch import nn

from molsamp.engine import Noise
from molsamp.learn.fit import fit

GOAL = torch.tensor([1.0, -2.0])


def objective(w):
    """Squared distance to the goal, measured on a batch that scales it."""
    return lambda batch: batch["scale"].mean() * (w - GOAL).square().sum()


def keyed(step: int) -> dict[str, torch.Tensor]:
    """Batches that differ from step to step."""
    return {"scale": Noise(5).uniform(step, torch.arange(4), dtype=torch.float32) + 0.5}


def test_it_descends_to_the_minimum():
    w = nn.Parameter(torch.zeros(2))
    result = fit(objective(w), keyed, torch.optim.Adam([w], lr=0.05), steps=400)
    assert torch.allclose(w.detach(), GOAL, atol=1e-3) and result.skipped == 0


def test_two_calls_are_one():
    """Moments live in the optimiser: 3 + 5 steps are 8 steps, bit for bit."""
    ends = []
    for parts in ((8,), (3, 5)):
        w, done = nn.Parameter(torch.zeros(2)), 0
        optimiser = torch.optim.Adam([w], lr=0.05)
        for steps in parts:
            fit(objective(w), lambda k, first=done: keyed(first + k), optimiser, steps=steps)
            done += steps
        ends.append(w.detach().clone())
    assert torch.equal(*ends)


def test_each_group_is_clipped_by_itself():
    """Plain gradient descent of rate 1: a step is the clipped gradient; the norm reported is the larger, unclipped."""
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    result = fit(lambda _: 30.0 * a[0] + 40.0 * a[1] + 0.25 * b, lambda _: {}, optimiser, steps=1, clip=2.0)
    assert torch.allclose(a.detach(), torch.tensor([-1.2, -1.6]))
    assert float(b.detach()) == pytest.approx(-0.25)
    assert result.gradient == pytest.approx(50.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped(bad):
    """The same end as without the bad batches, which are counted."""
    ends = []
    for spoil in (False, True):
        w = nn.Parameter(torch.zeros(2))
        optimiser = torch.optim.Adam([w], lr=0.05)
        batches = [keyed(k) for k in range(4)]
        if spoil:
            for at in (2, 0):
                batches.insert(at, {"scale": torch.full((4,), bad)})
        result = fit(objective(w), batches.__getitem__, optimiser, steps=len(batches))
        assert result.skipped == 2 * spoil and math.isfinite(result.loss)
        ends.append(w.detach().clone())
    assert torch.equal(*ends)


def test_a_finite_loss_with_an_infinite_gradient_is_skipped():
    w = nn.Parameter(torch.zeros(1))
    result = fit(lambda _: w.sqrt().sum(), lambda _: {}, torch.optim.SGD([w], lr=1.0), steps=3)
    assert result.skipped == 3 and float(w.detach()) == 0.0


def test_no_step_taken_has_no_loss():
    w = nn.Parameter(torch.zeros(2))
    result = fit(lambda _: w.sum() * math.nan, lambda _: {}, torch.optim.SGD([w], lr=1.0), steps=2)
    assert math.isnan(result.loss) and result.skipped == 2
