"""The baselines of benchmarks/steering.py: gradient guidance by hand, and how calls are read off a curve."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from molsamp.engine import VP, Noise
from molsamp.engine.operators import Matrix
from molsamp.image.inverse import Measured
from molsamp.image.sampling import grid_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from steered import dds

F64 = torch.float64


class Half:
    """D(x, t) = x alpha / 2, whose gradient is known."""

    schedule, event = VP(), (6,)

    def __call__(self, x, t):
        return 0.5 * self.schedule.alpha(t) * x


def test_gradient_guidance_is_the_papers():
    """Ancestral steps, x' - zeta A^T r alpha / (2 |r|) with r = A D - y, from the same noise, to float32's 2e-5."""
    model, A = Half(), Noise(1).normal(0, torch.arange(3), (6,))
    measured = Measured(Matrix(A, (6,)), Noise(2).normal(0, torch.arange(1), (3,)))
    found = dds.by_gradient(model, measured, 0.7, 6, 4, Noise(3))
    times, ids = grid_of(model.schedule, None, 6), torch.arange(4)
    x = (Noise(3).child("start").normal(0, ids, (6,), torch.float32) * model.schedule.sigma(times[0])).double()
    for k, (s, t) in enumerate(pairwise(times)):
        (a, b), (a1, b1) = ((model.schedule.alpha(u), model.schedule.sigma(u)) for u in (s, t))
        D = 0.5 * a * x
        r = D @ A.T - measured.y
        g = 0.5 * a * r @ A / r.norm(dim=1, keepdim=True)
        variance = b1**2 * (1.0 - (a * b1 / (a1 * b)) ** 2)
        mean = a1 * D + math.sqrt(max(b1**2 - variance, 0.0)) * (x - a * D) / b
        x = mean + math.sqrt(variance) * Noise(3).child("rows").normal(k, ids, (6,), torch.float32) - 0.7 * g
    torch.testing.assert_close(found.double(), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("target", "calls"),
    [(5.0, 10.0), (10.0, 10.0), (15.0, math.sqrt(200.0)), (20.0, 20.0), (25.0, math.sqrt(3200.0)), (40.0, 80.0)],
)
def test_calls_are_read_off_the_running_maximum(target, calls):
    """PSNR 10, 20, 18, 30 at 10, 20, 40, 80 calls: 18 counts as 20; beyond the curve its end stands."""
    curve = {n: (0.0, value) for n, value in ((10, 10.0), (20, 20.0), (40, 18.0), (80, 30.0))}
    assert dds.needed(curve, target, 1) == pytest.approx(calls, rel=1e-4)
