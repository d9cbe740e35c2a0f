"""Adjoint and corrector matching on Gaussians, where every slope is known; what is learnt scales with the unit."""

import math

import pytest
import torch
from torch import nn

from molsamp.engine.bridges import GaussianBridge, VEBase
from molsamp.engine.noise import Noise
from molsamp.learn.adjoint import Blend, BridgeSampler, clipped
from molsamp.learn.buffer import Ring
from molsamp.learn.preconditioned import FEATURES, Preconditioned

EVENT = (3, 2)  # of centred configurations: four free coordinates


class Linear(nn.Module):
    """F(x, s) = w(s) x in units of its size: holds every linear denoiser."""

    def __init__(self, unit=1.0):
        super().__init__()
        self.slope, self.unit = nn.Linear(FEATURES, 1), unit
        nn.init.zeros_(self.slope.weight)
        nn.init.zeros_(self.slope.bias)

    def forward(self, x, s, f):
        shape = (-1, *[1] * (x.dim() - 1))
        return self.slope(f).view(shape) * x / (self.unit**2 + s.view(shape) ** 2).sqrt()


class Normal:
    """N(0, a2) per coordinate, centred or not; a = 0 is a point."""

    def __init__(self, a, event=EVENT):
        self.a, self.event = a, event

    def draw(self, noise, ids, dtype):
        z = noise.normal(0, ids, self.event, dtype)
        return self.a * (z - z.mean(1, keepdim=True) if len(self.event) == 2 else z)


def trained(b2, *, corrector=True, heard=True, blend=Blend(), epochs=25, unit=1.0, a=1.0, event=EVENT, seed=5):
    """A sampler of N(0, b2 unit^2) on-policy; `heard` = whether adjoints contain h."""
    base = VEBase(0.02 * unit, 2.5 * unit)
    highest = math.sqrt(float(base.left(torch.zeros(()))))

    def net():
        return Preconditioned(Linear(unit), unit * math.sqrt(b2), 0.02 * unit, highest)

    sampler = BridgeSampler(
        Normal(a * unit, event),
        base,
        net(),
        net() if corrector else None,
        Noise(seed),
        steps=40,
        centred=len(event) == 2,
        rate=0.02,
        average=0.98,
        order=2,
    )
    ring = Ring(4096)
    for epoch in range(epochs):
        start, end = sampler.draw(512, 512 * epoch)
        h = sampler.h(end.x) if heard else torch.zeros_like(end.x)
        ring.push({"x0": start.x, "x1": end.x, "adjoint": end.x / (b2 * unit**2) + h})
        rate = 0.02 * (1.0 - epoch / epochs) + 1e-4
        sampler.match(ring, 30, 128, blend, rate)
        if corrector:
            sampler.correct(ring, 30, 128, rate)
    return sampler, sampler.total


def slopes(sampler, levels):
    """(D(x) - x) / (kappa_t x) at the given shares of kappa."""
    x = torch.tensor([[[1.0, 0.5], [-1.0, 0.0], [0.0, -0.5]]]) * math.sqrt(sampler.total)
    found = []
    with torch.no_grad():
        for share in levels:
            s = torch.tensor([math.sqrt(share * sampler.total)])
            found.append(float(((sampler.average(x, s) - x) / x)[0, 0, 0]) / (share * sampler.total))
    return found


LEVELS = (1.0, 0.3, 0.05)


@pytest.mark.parametrize("b2, blend", [(0.25, Blend()), (4.0, Blend()), (0.25, Blend(0.5)), (4.0, Blend(2.0))])
def test_matching_finds_the_schroedinger_bridge(b2, blend):
    """Card section 12.1, in the centred subspace: slopes of u/sigma and h within 6 % (seeds 1 to 5: at most 4 %).

    A blend that knows the width of the target finds them as well as adjoint matching alone.
    """
    sampler, total = trained(b2, blend=blend)
    exact = GaussianBridge(1.0, b2, total)
    for found, share in zip(slopes(sampler, LEVELS), LEVELS, strict=True):
        assert found == pytest.approx(exact.control(share * total), rel=0.06)
    x = torch.tensor([[[1.0, 0.5], [-1.0, 0.0], [0.0, -0.5]]])
    assert float(sampler.h(x)[0, 0, 0]) == pytest.approx(exact.corrector, rel=0.06)
    _, end = sampler.draw(20000, 10**6)
    free = end.x.square().sum() / (20000 * 4)  # four free coordinates; standard error 0.5 %
    assert float(free) == pytest.approx(b2, rel=0.06)


def test_without_its_corrector_it_goes_elsewhere():
    """AM with h = 0 aims at nu times what the corrector would have taken off: the variance misses by over 25 %."""
    sampler, _ = trained(4.0, heard=False)
    _, end = sampler.draw(20000, 10**6)
    assert float(end.x.square().sum() / (20000 * 4)) < 0.75 * 4.0


def test_a_point_needs_no_corrector():
    """Card section 12.2: memoryless, h = -x / kappa, adjoint matching alone reaches b2."""
    sampler, total = trained(0.5, corrector=False, a=0.0)
    x = torch.ones(1, *EVENT)
    assert torch.allclose(sampler.h(x), -x / total)
    _, end = sampler.draw(20000, 10**6)
    assert float(end.x.square().sum() / (20000 * 4)) == pytest.approx(0.5, rel=0.06)


def test_lengths_have_no_unit():
    """The same run in another unit of length is the same run, but for rounding (card section 12.10)."""
    one, _ = trained(0.25, blend=Blend(0.5), epochs=6)
    ten, _ = trained(0.25, blend=Blend(5.0), epochs=6, unit=10.0)
    a, b = (s.draw(64, 10**6)[1].x for s in (one, ten))
    assert torch.allclose(10.0 * a, b, rtol=2e-2, atol=2e-2)


def test_configurations_stay_centred():
    sampler, _ = trained(0.25, epochs=1)
    start, end = sampler.draw(64, 0)
    assert float(start.x.mean(1).abs().max()) < 1e-6 and float(end.x.mean(1).abs().max()) < 1e-5


def test_state_and_load_go_on_with_the_same_bytes():
    sampler, _ = trained(0.25, epochs=2)
    other, _ = trained(0.25, epochs=1, seed=5)
    other.load({k: v.clone() for k, v in sampler.state().items()})
    ring = Ring(256)
    start, end = sampler.draw(256, 7)
    ring.push({"x0": start.x, "x1": end.x, "adjoint": end.x})
    for s in (sampler, other):
        s.match(ring, 3, 64, Blend(0.5), 1e-3)
        s.correct(ring, 3, 64, 1e-3)
    assert all(torch.equal(v, other.state()[k]) for k, v in sampler.state().items())


class Swirl:
    """u = (-y, x) about the origin of a plane: no divergence, (u . grad) u = -(x, y)."""

    def __call__(self, x):
        u = torch.stack([-x[:, 1], x[:, 0]], 1)
        return u[:, None], -x[:, None]


def test_moves_add_nothing_on_average():
    """E[u (u . g) + (u . grad) u | x] = 0 for X_1 ~ N(m, b2) of a plane and x = X_1 + s z; 4 standard errors, n = 1e6.

    The posterior of X_1 given x is Gaussian, so g is known without a sampler. Without the acceleration the mean is off
    by |X_1|, a hundred standard errors.
    """
    n, b2, s = 1_000_000, 0.5, torch.tensor([0.7])
    m, x = torch.tensor([1.0, -0.3]), torch.tensor([[0.4, 0.9]])
    v = b2 * float(s) ** 2 / (b2 + float(s) ** 2)
    mean = (m * float(s) ** 2 + x * b2) / (b2 + float(s) ** 2)
    x1 = mean + math.sqrt(v) * Noise(1).normal(0, torch.arange(n), (2,), torch.float32)
    adjoint = (x1 - m) / b2
    levels = s.expand(n)
    with_moves = Blend(1e-9, Swirl(), 0.5).target(x.expand(n, 2), x1, adjoint, levels)
    extra = (with_moves - x1).double()
    error = extra.std(0) / math.sqrt(n)
    assert bool((extra.mean(0).abs() < 4 * error).all())
    assert float(extra.std()) > 0.1  # it is not nothing
    acceleration = Swirl()(x1)[1]
    assert float((acceleration[:, 0].double().mean(0).abs() / error).max()) > 50


def test_clipping_shortens_atoms_one_by_one():
    a = torch.tensor([[[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]]])
    assert torch.allclose(clipped(a, 1.0), torch.tensor([[[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]]]))
