"""A mixture in one dimension, steered by a reward, whose discrete chain is propagated on a grid, for tests."""

import math

import pytest
import torch

from molsamp.engine import (
    VP,
    GaussianMixture,
    Noise,
    Particles,
    time_grid,
)
from molsamp.engine.exponential import DDIM
from molsamp.engine.steering import foreseen, steer

F64 = torch.float64
KINDS = ("difference", "max", "sum")

SCHEDULE, STEPS, EVERY = VP(), 24, 4
LAW = GaussianMixture(
    torch.tensor([[-1.5], [1.5]], dtype=F64), torch.full((2,), 0.25, dtype=F64), torch.tensor([0.7, 0.3])
)
SDE = LAW.sde(SCHEDULE)
TIMES = time_grid("log-snr", SCHEDULE, STEPS, 1.0, 0.02)
LINEAR, SQUARE = 1.0, 0.3


def reward(x):
    return LINEAR * x[:, 0] - 0.5 * SQUARE * x[:, 0] ** 2


def starts(n):
    return Particles.at(SCHEDULE.sigma(TIMES[0]) * Noise(7).normal(0, torch.arange(n), (1,)))


def on_a_grid(times):
    """(log Z, mean of the tilted law) of the discrete chain, by the trapezoidal rule on 1801 nodes: to 1e-8."""
    x = torch.linspace(-9.0, 9.0, 1801, dtype=F64)
    dx, s0 = float(x[1] - x[0]), SCHEDULE.sigma(times[0])
    p = torch.exp(-0.5 * (x / s0) ** 2) / (s0 * math.sqrt(2.0 * math.pi))
    for row in DDIM(1.0).rows(SDE, times):
        line = row.program[1]
        centre = line.keep["x"] * x + line.weights[0] * SDE.denoise(x[:, None], row.t0)[:, 0]
        kernel = torch.exp(-0.5 * ((x[:, None] - centre) / line.noise) ** 2) / (line.noise * math.sqrt(2.0 * math.pi))
        p = dx * kernel @ p
    w = p * reward(x[:, None]).exp() * dx
    assert float((p * dx).sum()) == pytest.approx(1.0, abs=1e-9)
    return float(w.sum().log()), float((w * x).sum() / w.sum())


def closed_form():
    """The same of the exact process at times[-1]: components with variance v tilted by a x - c x^2 / 2."""
    now = LAW.marginal(SCHEDULE, TIMES[-1])
    m, v = now.means[:, 0], now.covs[:, 0, 0]
    after = v / (1.0 + SQUARE * v)
    log_z = now.log_w - 0.5 * torch.log1p(SQUARE * v) - 0.5 * m**2 / v + 0.5 * after * (m / v + LINEAR) ** 2
    return float(torch.logsumexp(log_z, 0)), float(torch.softmax(log_z, 0) @ (after * (m / v + LINEAR)))


def run(m, groups, seed=0, integrator=None, **options):
    options = {"value": foreseen(SDE, reward), "every": EVERY, **options}
    return steer(
        SDE,
        DDIM(1.0) if integrator is None else integrator,
        starts(m * groups),
        TIMES,
        reward,
        noise=Noise(seed),
        groups=groups,
        **options,
    )


def ratios(found, log_z):
    """Z-hat / Z of every population."""
    return torch.tensor([e.value for e in found.log_z()], dtype=F64).sub(log_z).exp()


def deviation(r):
    """(mean - 1) in standard errors, and the standard error."""
    error = float(r.std()) / len(r) ** 0.5
    return (float(r.mean()) - 1.0) / error, error
