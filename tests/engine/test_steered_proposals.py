"""Guided proposals, corrected by the ratio of densities."""

import pytest
import torch
from tilted import SDE, TIMES, deviation, on_a_grid, ratios, run, starts

from molsamp.engine import (
    Noise,
    log_prob,
    rollout,
)
from molsamp.engine.exponential import DDIM, DPMSolverPP2M
from molsamp.engine.guides import Guided
from molsamp.engine.state import Memory
from molsamp.engine.steering import steer, unforeseen

F64 = torch.float64


@pytest.fixture(scope="module")
def truth():
    return on_a_grid(TIMES)


class Pushing:
    """Aims a little further than the model does, the less the less noise is left."""

    slots = 0

    def __call__(self, p, state):
        return p.towards(p.aim + 0.15 * p.sigma), ()


def test_a_guided_proposal_is_corrected(truth):
    """Steps aimed elsewhere, with the densities' ratio: unbiased within 4 standard errors (alarm 6e-5); without it off
    by more than ten.
    """
    guided = Guided(DDIM(1.0), Pushing())
    deviates, error = deviation(ratios(run(16, 750, integrator=guided, base=DDIM(1.0)), truth[0]))
    assert error < 0.05 and abs(deviates) < 4.0, (deviates, error)
    assert abs(deviation(ratios(run(16, 750, integrator=guided), truth[0]))[0]) > 10.0


def test_the_correction_is_the_ratio_of_densities():
    """sum log_prob under the base less that under the guided rows, of every path, to 1e-9."""
    integrator, start = Guided(DDIM(1.0), Pushing()), starts(8)
    found = steer(
        SDE,
        integrator,
        start,
        TIMES,
        lambda x: 0.0 * x[:, 0],
        noise=Noise(0),
        value=unforeseen,
        every=5,
        below=0.0,
        base=DDIM(1.0),
    )
    path, expected = rollout(SDE, integrator, start, TIMES, noise=Noise(0)), torch.zeros(8, dtype=F64)
    for sign, table in ((1.0, DDIM(1.0).rows(SDE, TIMES)), (-1.0, integrator.rows(SDE, TIMES))):
        memory = Memory()
        for k, row in enumerate(table):
            log_p, memory = log_prob(row, SDE, path.frame(k), path.frame(k + 1), memory)
            expected += sign * log_p
    torch.testing.assert_close(found.particles.x, path.final.x)
    torch.testing.assert_close(found.particles.logw, expected, rtol=0, atol=1e-9)
    assert float(expected.std()) > 0.1


class Nothing:
    slots = 1

    def __call__(self, p, state):
        return p, (p.aim,)


def test_the_bases_history_follows_its_particle():
    """A guide that does nothing, on a multistep scheme, resampled at every boundary: the correction is 0."""
    scheme = DPMSolverPP2M(1.0, short=0)
    options = {"below": 2.0, "every": 3}
    a = run(16, 4, integrator=Guided(scheme, Nothing()), base=scheme, **options)
    b = run(16, 4, integrator=scheme, **options)
    torch.testing.assert_close(a.particles.logw, b.particles.logw, rtol=0, atol=1e-8)
    torch.testing.assert_close(a.particles.x, b.particles.x, rtol=0, atol=1e-9)


def test_a_base_has_the_same_noise():
    with pytest.raises(ValueError, match="row 0"):
        run(4, 1, base=DDIM(0.5))
