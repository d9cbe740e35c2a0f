"""Gradients through the sampling flow: three ways against each other, against closed forms and against differences."""

import math

import pytest
import torch
from torch import nn

from molsamp.engine import EDM, VP, GaussianMixture, Noise
from molsamp.image import ideal
from molsamp.image.denoiser import Denoiser
from molsamp.image.gradients import Live, gradient
from molsamp.image.sampling import sample
from molsamp.learn.networks import seeded

F64 = torch.float64
SCHEDULE, NOISE = VP(), Noise(5)


def f64(values):
    return torch.tensor(values, dtype=F64)


def smooth(x):
    """A loss with a gradient of its own everywhere."""
    return (x.flatten(1) * torch.linspace(0.5, 1.5, x[0].numel()).to(x)).sum(1).sin()


@pytest.fixture(scope="module")
def mixture():
    means = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    return ideal.mixture(GaussianMixture(means, f64([0.3, 0.2, 0.25])), SCHEDULE, (2,))


@pytest.fixture(scope="module")
def starts():
    return NOISE.child("start").normal(0, torch.arange(8), (2,))


@pytest.fixture(scope="module")
def truth(mixture, starts):
    """The gradient of the flow: exact for rk4 in 160 intervals, whose own error is 1e-8 of it."""
    return gradient(mixture, smooth, starts, solver="rk4", steps=640, noise=NOISE, grid="log-snr").start


class Net(nn.Module):
    """A smooth small data prediction with parameters and a condition."""

    def __init__(self, event=(2,)):
        super().__init__()
        with seeded(Noise(1)):
            self.a, self.b = nn.Linear(2, 16), nn.Linear(16, 2)
        self.condition = nn.Parameter(torch.full((16,), 0.3))
        self.double()

    def denoiser(self):
        def predict(x, t, label):
            c = SCHEDULE.alpha(t) ** 2 + SCHEDULE.sigma(t) ** 2
            return SCHEDULE.alpha(t) / c * x + self.b(torch.tanh(self.a(x) + t * self.condition))

        return Denoiser(SCHEDULE, predict, (2,))


@pytest.mark.parametrize(
    "solver", ["ddim", "dpm++2m", "unipc-3", "heun", "dpm-3", "ipndm", "euler", "sde-dpm++2m", "edm"]
)
@pytest.mark.parametrize("steps", [7, 12])
def test_checkpoint_is_autograd(solver, steps):
    """Also across stretches of a multistep scheme's history, with a corrector, and with noise that is drawn again."""
    net = Net()
    start = NOISE.normal(0, torch.arange(5), (2,))
    wrt = tuple(net.parameters())
    a, b = (
        gradient(net.denoiser(), smooth, start, wrt, solver=solver, steps=steps, noise=NOISE, mode=mode)
        for mode in ("full", "checkpoint")
    )
    samples = sample(net.denoiser(), solver, steps, noise=NOISE, start=start).final.x
    assert torch.equal(a.final.x, samples) and torch.equal(b.final.x, samples)
    torch.testing.assert_close(a.start, b.start, rtol=1e-12, atol=1e-14)
    for g, h in zip(a.wrt, b.wrt, strict=True):
        assert g.abs().max() > 0
        torch.testing.assert_close(g, h, rtol=1e-11, atol=1e-13)


def test_finite_differences():
    """Of the loss with respect to the start, the condition and a weight; step 1e-5, central."""
    net, start, h = Net(), NOISE.normal(1, torch.arange(3), (2,)), 1e-5
    wrt = (net.condition, net.a.weight)
    given = {"solver": "unipc-3", "steps": 8, "noise": NOISE}
    found = gradient(net.denoiser(), smooth, start, wrt, **given)

    def total(x):
        with torch.no_grad():
            return float(smooth(sample(net.denoiser(), start=x, **given).final.x).sum())

    for tensor, g in ((start, found.start), (net.condition.data, found.wrt[0]), (net.a.weight.data, found.wrt[1])):
        for k in range(2):
            flat, kept = tensor.view(-1), float(tensor.view(-1)[k])
            flat[k] = kept + h
            up = total(start)
            flat[k] = kept - h
            down = total(start)
            flat[k] = kept
            assert abs((up - down) / (2 * h) - float(g.flatten()[k])) < 1e-8


@pytest.mark.parametrize(
    ("solver", "order", "calls", "intervals"),
    [("ddim", 1, 1, 40), ("heun", 2, 2, 40), ("kutta", 3, 3, 40), ("deis-lam2", 3, 1, 80)],
)
def test_adjoint_converges_to_the_gradient_of_the_flow(mixture, starts, truth, solver, order, calls, intervals):
    """Its order is the solver's, to 0.3 (log-SNR grid, intervals doubled once)."""
    given = {"noise": NOISE, "grid": "log-snr"}
    errors = [
        float(
            (
                gradient(mixture, smooth, starts, solver=solver, steps=calls * n, mode="adjoint", **given).start - truth
            ).norm()
        )
        for n in (intervals, 2 * intervals)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.3, errors


def test_adjoint_of_parameters_and_condition():
    """Both go to the exact gradients of many steps, the error falling fourfold when the steps of Heun are halved."""
    net, start = Net(), NOISE.normal(2, torch.arange(4), (2,))
    wrt = (net.condition, *net.b.parameters())
    given = {"noise": NOISE, "grid": "log-snr"}
    truth = gradient(net.denoiser(), smooth, start, wrt, solver="rk4", steps=640, **given)
    coarse, fine = (
        gradient(net.denoiser(), smooth, start, wrt, solver="heun", steps=2 * n, mode="adjoint", **given)
        for n in (40, 80)
    )
    for a, b, c in zip(coarse.wrt, fine.wrt, truth.wrt, strict=True):
        assert float((b - c).norm() / c.norm()) < 5e-3
        assert 3.2 < float((a - c).norm() / (b - c).norm()) < 5.0


@pytest.mark.parametrize("schedule", [VP(), EDM(start=20.0, end=0.01)])
def test_one_gaussian_in_closed_form(schedule):
    """dx_0/dx_T = (alpha_0/alpha_T) diag(sqrt((rho_0^2 + l) / (rho_T^2 + l))) in the eigenvectors of the covariance."""
    l = f64([2.0, 0.1])
    gaussian = GaussianMixture(f64([[0.4, -0.2]]), torch.diag(l)[None])
    start = schedule.sigma(schedule.start) * NOISE.normal(3, torch.arange(6), (2,))
    rho_T, rho_0 = (schedule.sigma(t) / schedule.alpha(t) for t in (schedule.start, schedule.end))
    J = schedule.alpha(schedule.end) / schedule.alpha(schedule.start) * ((rho_0**2 + l) / (rho_T**2 + l)).sqrt()
    model, w = ideal.mixture(gaussian, schedule, (2,)), f64([1.0, -2.0])
    found = gradient(
        model, lambda x: x @ w, start, solver="rk4", steps=240, noise=NOISE, grid="log-snr", mode="adjoint"
    )
    torch.testing.assert_close(found.start, (J * w).expand(6, 2), rtol=2e-5, atol=0.0)


def test_memory(mixture, starts):
    """From 4 to 64 steps: autograd's grows as N, checkpoints' as sqrt(N), the adjoint's not at all."""

    def peak(mode, steps):
        with Live() as live:
            gradient(mixture, smooth, starts, steps=steps, noise=NOISE, mode=mode)
        return live.peak

    growth = {mode: peak(mode, 64) / peak(mode, 4) for mode in ("full", "checkpoint", "adjoint")}
    assert 10.0 < growth["full"] < 16.5
    assert 2.0 < growth["checkpoint"] < 5.0
    assert growth["adjoint"] < 1.05


def test_a_sample_that_diverges_has_no_gradient():
    """The others keep theirs; what all share has none."""
    scale = f64(1.0).requires_grad_()

    def predict(x, t, label):
        return torch.where(x[:, :1] > 50.0, torch.nan, scale * x.tanh())

    start = f64([[0.5, 0.1], [100.0, 0.0]])
    for mode in ("full", "checkpoint"):
        found = gradient(Denoiser(SCHEDULE, predict, (2,)), smooth, start, (scale,), noise=NOISE, steps=4, mode=mode)
        assert found.start[0].isfinite().all() and found.start[1].isnan().all() and found.wrt[0].isnan()


def test_errors(mixture, starts):
    for given, match in (
        ({"mode": "reversible"}, "allowed are full, checkpoint, adjoint"),
        ({"solver": "ddpm", "mode": "adjoint"}, "draws noise"),
        ({"loss": torch.sum}, "one number a sample"),
        ({"wrt": (torch.ones(2),)}, r"wrt\[0\] asks for no gradient"),
    ):
        with pytest.raises(ValueError, match=match):
            gradient(mixture, given.pop("loss", smooth), starts, noise=NOISE, **given)
    clean = ideal.mixture(GaussianMixture(f64([[0.0, 0.0]]), f64([1.0])), EDM(end=0.0), (2,))
    with pytest.raises(ValueError, match="where no noise is left"):
        gradient(clean, smooth, starts, noise=NOISE, mode="adjoint")
