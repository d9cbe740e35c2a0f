"""DC-Solver and DualFast: identities, the search on an exact model, and its regression."""

import numpy as np
import pytest
import torch

from molsamp.engine import VP, Exponential, GaussianMixture, Noise, time_grid
from molsamp.engine.exponential import ALWAYS
from molsamp.image import compensation
from molsamp.image.compensation import Cascade, compensated, dualfast, search
from molsamp.image.sampling import sample

STEPS = 6


class Mixture:
    """Three modes in the plane."""

    schedule, event = VP(), (2,)
    law = GaussianMixture(
        torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.5, -1.0]], dtype=torch.float64),
        torch.tensor([0.05, 0.02, 0.04], dtype=torch.float64),
    )

    def __call__(self, x, t):
        return self.law.denoise(self.schedule, x, t)


MODEL, TIMES = Mixture(), time_grid("uniform", VP(), STEPS)


def draw(solver, seed=9, n=256):
    return sample(MODEL, solver, STEPS, n, noise=Noise(seed), grid=TIMES, dtype=torch.float64).final.x


def error(solver, seed=9):
    fine = compensation.trajectory(MODEL, TIMES, 30, Noise(seed), 256, torch.float64)[-1]
    return float((draw(solver, seed) - fine).square().mean().sqrt())


@pytest.fixture(scope="module")
def found():
    return search(MODEL, STEPS, noise=Noise(5), grid=TIMES, dtype=torch.float64)


def test_ratios_of_one_are_unipc():
    assert torch.equal(draw(compensated(TIMES, [1.0] * STEPS)), draw("unipc-2"))


def test_it_has_a_name():
    """ "dc" is the search on ten noises of its own, then one rollout."""
    by_hand = compensated(TIMES, search(MODEL, STEPS, noise=Noise(9).child("search"), n=10, grid=TIMES).ratios)
    assert torch.equal(draw("dc"), draw(by_hand)) and not torch.equal(draw("dc"), draw("unipc-2"))


@pytest.mark.parametrize("rho", [0.6, 1.0 + 1e-9, 1.7])
def test_weights_are_a_polynomial_in_time(rho):
    """A parabola in t is met exactly, and weights add up to 1."""
    w = compensation.weights(TIMES, 4, rho)
    at = TIMES[3] + rho * (TIMES[4] - TIMES[3])
    for k in range(3):
        assert np.isclose(sum(a * TIMES[4 - j] ** k for j, a in enumerate(w)), at**k, rtol=1e-12)


def test_search_never_loses_on_its_own_noises(found):
    assert found.ratios[:2] == (1.0, 1.0) and len(found.losses) == STEPS - 2
    assert all(after <= plain for plain, after in found.losses)
    assert any(after < 0.9 * plain for plain, after in found.losses)


def test_ratios_carry_over_to_other_noises(found):
    """On 256 noises that the search never saw the error falls by a tenth (12 % here); with ratios mirrored it grows."""
    plain = error("unipc-2")
    assert error(compensated(TIMES, found.ratios)) < 0.93 * plain
    assert error(compensated(TIMES, [2.0 - rho for rho in found.ratios])) > plain


def test_dualfast_of_nothing_is_its_solver():
    plain = Exponential(2, form="noise", corrects=2, short=ALWAYS)
    same = Exponential(2, form="noise", corrects=2, short=ALWAYS, mixes=dualfast(STEPS, 0.0))
    torch.testing.assert_close(draw(same), draw(plain), rtol=0, atol=1e-12)
    other = Exponential(2, form="noise", corrects=2, short=ALWAYS, mixes=dualfast(STEPS, 0.2))
    assert float((draw(other) - draw(plain)).abs().max()) > 1e-3


def test_regression_gives_back_a_cascade():
    """Ratios made by 36 numbers of the same form are met at settings that were left out."""
    truth = Cascade(np.random.default_rng(0).normal(scale=0.05, size=36))
    settings = [(w, calls) for w in (1.0, 3.0, 5.0, 7.0, 9.0) for calls in (5, 8, 12, 16, 24)]
    fitted = Cascade.fit({key: truth.ratios(*key) for key in settings}, ridge=1e-12)
    assert np.allclose(fitted.ratios(4.0, 10), truth.ratios(4.0, 10), atol=1e-4)
    assert fitted.ratios(4.0, 10)[:2] == (1.0, 1.0)


@pytest.mark.parametrize("ratios", [[1.0] * 3, [1.0, 0.9, 1.0, 1.0, 1.0, 1.0]])
def test_ratios_that_do_not_fit_are_refused(ratios):
    with pytest.raises(ValueError, match="the first 2 of them 1"):
        compensated(TIMES, ratios)
