"""Weighted paths of any control estimate P_0(hit) without bias (card section 12, test 10)."""

import dataclasses

import pytest
import torch

from molsamp.engine import Noise
from molsamp.molecular import LearnedPaths, Problem, UnbiasedMD, load
from molsamp.molecular.paths.steered import steered_null


@pytest.fixture(scope="module")
def hot():
    """The double well at kT = 0.5, where free paths cross by themselves; and its brute-force hit probability."""
    system = load("double-well")
    settings = system.settings.model_copy(update={"kT": 0.5, "steps": 500})
    system = dataclasses.replace(system, settings=settings)
    problem = Problem.of(system, dtype=torch.float64)
    free = UnbiasedMD(problem, noise=Noise(1), n=8192, batch=8192).fit().paths()
    return problem, free.hit_rate().value


def z_score(paths, p: float) -> float:
    """Distance in standard errors of the weighted hit probability from p, whose own error (n = 8192) is added."""
    w = torch.where(paths.hit, torch.exp(-paths.log_rn), 0.0)
    error = (w.var() / len(w) + p * (1 - p) / 8192) ** 0.5
    return float((w.mean() - p) / error)


def test_pulled_paths(hot):
    """|z| < 3.5 in all but 5e-4 of seeds (ESS about 1200 of 4096); a log_rn off by the factor 0.5 gives |z| > 5."""
    problem, p = hot
    paths = steered_null(problem, 4096, Noise(2), stiffness=0.2, hold=5)
    assert abs(z_score(paths, p)) < 3.5
    assert paths.hit_rate().value > 1.2 * p
    wrong = dataclasses.replace(paths, log_rn=0.5 * paths.log_rn)
    assert abs(z_score(wrong, p)) > 5


def test_learned_paths(hot):
    """As above, with a control from two rollouts of training: |z| < 3.5 fails by chance in 5e-4 of seeds."""
    problem, p = hot
    sampler = LearnedPaths(
        problem,
        noise=Noise(3),
        rollouts=2,
        samples=256,
        gradient_steps=10,
        batch=128,
        hold=20,
        validation=2,
        target={"sigma": 0.5},
        network={"length": 1.0, "scale": 0.05},
    ).fit()
    paths = sampler.sample(4096, Noise(4))
    assert paths.hit_rate().value > 1.1 * p
    assert abs(z_score(paths, p)) < 3.5
