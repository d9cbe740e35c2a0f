"""Unbiased dynamics: the law of free paths, heat, batches and resumption."""

import math

import pytest
import torch
from linear import line_problem

from molsamp.engine.closed_forms import oscillator
from molsamp.engine.noise import Noise
from molsamp.molecular.paths.free import UnbiasedMD
from molsamp.molecular.paths.settings import FreeSettings

N = 4000


def run(job):
    while job.k < job.total:
        job.advance()
    return job.paths()


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_free_paths_have_the_oscillators_variance(heat):
    """Var x_t = heat x closed form (linear, x_0 = 0) at 20 times: z bound 4.5, false alarm 1.4e-4."""
    problem = line_problem(above=50.0, h=0.2, mass=1.0, friction=0.7)
    form = oscillator(stiffness=1.0, mass=1.0, kT=1.0, friction=0.7, h=0.2, steps=20, x0=0.0)
    paths = run(UnbiasedMD(problem, FreeSettings(heat=heat, batch=N), Noise(1), N))
    exact = heat * form.moments()[1][1:, 0, 0]
    z = (paths.path.x.flatten(1)[1:].square().mean(1) / exact - 1.0) / (2.0 / N) ** 0.5
    assert z.abs().max() < 4.5
    cold = heat == 1.0
    assert bool((paths.log_rn == 0.0).all()) if cold else bool(paths.log_rn.isnan().all())
    assert cold or "2 times the temperature" in paths.warnings()[0]


def test_batches_do_not_change_the_paths():
    whole = run(UnbiasedMD(line_problem(), FreeSettings(batch=10), Noise(1), 10))
    parts = run(UnbiasedMD(line_problem(), FreeSettings(batch=4), Noise(1), 10))
    assert len(parts) == 10 and torch.equal(whole.path.x, parts.path.x)
    assert parts.cost.energy_evaluations == whole.cost.energy_evaluations == 10 * 21
    assert parts.path.final.ids.tolist() == list(range(10))


@pytest.mark.parametrize("mass", [None, 1.0])
def test_resumed_batches_give_the_same_bytes(mass):
    def job():
        return UnbiasedMD(line_problem(mass=mass), FreeSettings(batch=4), Noise(1), 10)

    whole, half, again = run(job()), job(), job()
    half.advance()
    again.load(half.state())
    paths = run(again)
    assert torch.equal(paths.path.x, whole.path.x) and torch.equal(paths.path.energy, whole.path.energy)
    assert paths.cost.energy_evaluations == whole.cost.energy_evaluations


def test_hit_rate_is_that_of_the_paths():
    job = UnbiasedMD(line_problem(above=0.5), FreeSettings(batch=200), Noise(1), 200)
    assert math.isclose(job.advance()["hit_rate"], job.paths().hit_rate().value)
