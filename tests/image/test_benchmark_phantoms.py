"""What benchmarks/steered/phantoms.py measures with: the head, a prior of patches, filtered back-projection, masks."""

import math
import sys
from pathlib import Path

import pytest
import torch

from molsamp.engine import VP, GaussianMixture, Noise
from molsamp.engine.scanners import Radon

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from steered import phantoms
from steered._ellipses import SHEPP_LOGAN, head, others
from steered._patches import Patches

F64 = torch.float64


def test_the_head_is_the_tables():
    """Its mean density is sum rho pi a b / 4, to 1e-3 of it; densities at points told by hand, x to the right, y up."""
    density = 0.5 * (head(256)[0, 0] + 1.0)
    exact = sum(rho * math.pi * a * b / 4.0 for rho, a, b, *_ in SHEPP_LOGAN)
    assert float(density.mean()) == pytest.approx(exact, rel=1e-3)
    points = {
        (0.0, 0.0): 0.2, (0.0, 0.9): 1.0, (0.0, 0.4): 0.3, (0.0, -0.4): 0.2, (0.22, 0.0): 0.0, (-0.22, 0.0): 0.0,
        (0.0, 0.08): 0.3, (0.0, -0.1): 0.3, (-0.08, -0.605): 0.3, (0.06, -0.605): 0.3, (0.9, 0.9): 0.0,
    }  # fmt: skip
    for (x, y), value in points.items():
        assert float(density[int((1.0 - y) * 128), int((x + 1.0) * 128)]) == pytest.approx(value, abs=1e-9), (x, y)
    # the left ventricle leans left going up: (0.16, 0.41) turned by 18 degrees
    assert float(density[int(0.7 * 128), int((1.0 - 0.22 - 0.09) * 128)]) == pytest.approx(0.0, abs=1e-9)


def some(components=3, side=3, rank=4):
    """A mixture of patches with the constant one among its directions."""
    d = side**2
    z = Noise(1).normal(0, torch.arange(components), (d, rank))
    z[:, :, 0] = 1.0
    q = torch.linalg.qr(z).Q
    l = Noise(2).uniform(0, torch.arange(components), (rank,)) + 0.1
    log_w = torch.log_softmax(Noise(3).normal(0, torch.arange(components), ()), 0)
    return Patches(log_w, l, q, 0.03, torch.full((d,), -0.2, dtype=F64))


def test_patches_are_denoised_as_the_mixture_they_are():
    """Against the engine's Gaussian mixture with the same covariances, to 1e-10, at three noises."""
    p, schedule = some(), VP()
    eye = torch.eye(9, dtype=F64)
    covs = p.q @ torch.diag_embed(p.l - p.floor) @ p.q.transpose(1, 2) + p.floor * eye
    law = GaussianMixture(p.mean.expand(3, 9), covs, p.log_w.exp())
    x = Noise(4).normal(0, torch.arange(7), (9,))
    for t in (0.05, 0.4, 0.9):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        found = p.denoise(x / alpha, (sigma / alpha) ** 2)
        torch.testing.assert_close(found, law.denoise(schedule, x, t), rtol=0, atol=1e-10)


def test_a_pixel_is_the_mean_over_its_patches():
    model, schedule, t = some().denoiser(5), VP(), 0.3
    x = Noise(5).normal(0, torch.arange(2), (1, 5, 5))
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            z = (x[:, 0, i : i + 3, j : j + 3] / schedule.alpha(t)).flatten(1)
            D = some().denoise(z, (schedule.sigma(t) / schedule.alpha(t)) ** 2)
            total[:, 0, i : i + 3, j : j + 3] += D.view(2, 3, 3)
            count[:, 0, i : i + 3, j : j + 3] += 1.0
    torch.testing.assert_close(model(x, t), total / count, rtol=0, atol=1e-6)


def test_a_fitted_prior_knows_edges():
    """At noise of 0.2 it is 1 dB better on a phantom it has not seen than two Gaussians, one of them flat; its weights
    add up to 1 and its directions are orthonormal.
    """
    pictures, truth = others(6, 32, Noise(6)), others(1, 32, Noise(7))
    found = []
    for components in (2, 12):
        p = Patches.fit(pictures, Noise(8), side=5, components=components, rank=5)
        assert float(torch.logsumexp(p.log_w, 0)) == pytest.approx(0.0, abs=1e-4)
        eye = torch.eye(6, dtype=F64).expand(components, 6, 6)
        torch.testing.assert_close(p.q.transpose(1, 2) @ p.q, eye, rtol=0, atol=1e-9)
        schedule = VP()
        t = schedule.time(-math.log(0.2))
        x = schedule.alpha(t) * truth + schedule.sigma(t) * Noise(9).normal(0, torch.arange(1), (1, 32, 32))
        found.append(float((p.denoiser(32)(x, t) - truth).square().mean()))
    assert found[1] < 10.0**-0.1 * found[0], found


def test_filtered_back_projection_inverts():
    """A smooth disc from 90 views: within 3 % at its middle, and its mass within 2 %."""
    side = 32
    at = (torch.arange(side, dtype=F64) - 15.5) / 16.0
    truth = torch.sigmoid(20.0 * (0.5 - (at**2 + at[:, None] ** 2).sqrt()))[None]
    A = Radon(side, torch.linspace(0.0, math.pi, 91, dtype=F64)[:-1], side + 14)
    x = phantoms.filtered(A, A(truth), math.inf)
    assert float(x[0, 12:20, 12:20].mean()) == pytest.approx(float(truth[0, 12:20, 12:20].mean()), rel=0.03)
    assert float(x.sum() / truth.sum()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("side", "low"), [(64, 5), (128, 9)])
def test_a_quarter_of_the_columns_is_seen(side, low):
    """The lowest 8 % for certain, the others by the seed."""
    masks = [phantoms.columns(side, 4, Noise(seed))[0] for seed in (1, 2)]
    at = torch.arange(side)
    nearest = torch.minimum(at, side - at) <= low // 2
    for mask in masks:
        assert int(mask.sum()) == side // 4 and bool(mask[nearest].all()) and int(nearest.sum()) == low
    assert not torch.equal(*masks)
