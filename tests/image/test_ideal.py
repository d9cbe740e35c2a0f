"""The ideal denoiser of a data set is a Gaussian mixture's, in chunks, by class, and in single precision."""

import math

import pytest
import torch

import molsamp.image.ideal as module
from molsamp.engine import Noise
from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.schedules import EDM, VP, Flow
from molsamp.image.ideal import ideal, mixture

EVENT, WIDTH = (1, 3, 4), 0.1
IDS = torch.arange(40)
DATA = Noise(1).uniform(0, IDS, EVENT) * 2.0 - 1.0
LABELS = IDS % 3


def truth(data, width=WIDTH):
    return GaussianMixture(data.flatten(1), torch.full((len(data),), width**2, dtype=torch.float64))


def noisy(schedule, t, n=16):
    return schedule.alpha(t) * DATA[:n] + schedule.sigma(t) * Noise(2).normal(0, IDS[:n], EVENT)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_it_is_the_mixtures_closed_form(schedule):
    """To 1e-10, from nearly all noise to nearly none."""
    d, gm = ideal(DATA, schedule, WIDTH), truth(DATA)
    for lam in (-4.0, -1.0, 0.0, 1.0, 2.0, 4.0):
        t = schedule.time(lam)
        x = noisy(schedule, t)
        expected = gm.denoise(schedule, x.flatten(1), t).view_as(x)
        assert float((d(x, t) - expected).abs().max()) < 1e-10
        assert torch.equal(mixture(gm, schedule, EVENT)(x, t), expected)


def test_with_labels_it_is_the_mixture_of_the_class():
    d, t = ideal(DATA, VP(), WIDTH, LABELS), 0.4
    x, label = noisy(VP(), t), Noise(3).integers(0, IDS[:16], (), 3)
    y = d(x, t, label)
    for k in range(3):
        of = label == k
        expected = truth(DATA[k == LABELS]).denoise(VP(), x[of].flatten(1), t).view_as(x[of])
        assert float((y[of] - expected).abs().max()) < 1e-10
    assert float((d(x, t) - ideal(DATA, VP(), WIDTH)(x, t)).abs().max()) == 0.0
    assert d.conditional == 3


def test_chunks_change_nothing_and_bound_the_memory(monkeypatch):
    """Each block of exponents holds at most CHUNK numbers, and the answer is the same."""
    d, t = ideal(DATA, VP(), WIDTH), 0.3
    x = noisy(VP(), t)
    whole, blocks = d(x, t), []
    softmax = torch.softmax

    def watched(log_r, dim):
        blocks.append(tuple(log_r.shape))
        return softmax(log_r, dim)

    monkeypatch.setattr(module, "CHUNK", 130)
    monkeypatch.setattr(torch, "softmax", watched)
    assert torch.allclose(d(x, t), whole, rtol=0, atol=1e-14)
    assert blocks == [(3, 40)] * 5 + [(1, 40)]


@pytest.mark.parametrize("width", [0.1, 1e-3])
def test_single_precision_is_as_good_as_its_inputs(width):
    """Widths down to a thousandth, pictures of norm 20 and no noise left: 1e-6 of the answer in double precision."""
    data = Noise(5).uniform(0, IDS, (1, 20, 20)) * 2.0 - 1.0
    double, single = ideal(data.float().double(), EDM(), width), ideal(data.float(), EDM(), width)
    for sigma in (1e-4, 1e-2, 0.3, 3.0):
        x = (data + sigma * Noise(6).normal(0, IDS, (1, 20, 20))).float()
        y = single(x, sigma)
        assert y.dtype == torch.float32
        assert float((y.double() - double(x.double(), sigma)).abs().max()) < 1e-6


def test_at_the_ends_it_is_the_mean_and_the_picture():
    d = ideal(DATA, EDM(), 1e-3)
    far = d(1e4 * Noise(7).normal(0, IDS, EVENT), 1e4)
    assert float((far - DATA.mean(0)).abs().max()) < 0.05
    assert float((d(DATA, 1e-2) - DATA).abs().max()) < 1e-10


def test_a_picture_that_is_not_finite_spoils_no_other():
    d = ideal(DATA, VP(), WIDTH)
    x = noisy(VP(), 0.5)
    good = d(x, 0.5)
    x[3] = math.nan
    bad = d(x, 0.5)
    assert bool(bad[3].isnan().all()) and torch.equal(bad[:3], good[:3]) and torch.equal(bad[4:], good[4:])


def test_what_makes_no_model_is_refused():
    with pytest.raises(ValueError, match=r"width of the pictures is 0\.0, it must be positive"):
        ideal(DATA, VP(), 0.0)
    with pytest.raises(ValueError, match="0 pictures with None labels"):
        ideal(DATA[:0], VP())
    with pytest.raises(ValueError, match="40 pictures with 3 labels"):
        ideal(DATA, VP(), labels=LABELS[:3])
