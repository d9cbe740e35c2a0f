"""Denoisers: conversions from every prediction, guidance, thresholding, counting, and what they refuse."""

import math

import pytest
import torch

from molsamp.engine import DPMSolverPP2M, Noise, Particles, Status, rollout
from molsamp.engine.dynamics import LinearSDE, flow
from molsamp.engine.grids import time_grid
from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.schedules import EDM, VP, Cosine, Discrete, Flow, MeanReverting
from molsamp.image.denoiser import Denoiser, data_from
from molsamp.image.ideal import mixture

EVENT = (2, 3)
SCHEDULES = [VP(), Cosine(), EDM(), Flow(), Discrete(), MeanReverting()]


def normal(step: int, n: int = 5) -> torch.Tensor:
    return Noise(3).normal(step, torch.arange(n), EVENT)


@pytest.fixture(scope="module")
def gaussian():
    """One Gaussian in six dimensions, whose denoiser is linear in x."""
    A = Noise(4).normal(0, torch.arange(6), (6,)) / 4.0
    return GaussianMixture(Noise(5).normal(0, torch.arange(1), (6,)), (A @ A.T)[None])


# ---- conversions ----


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_prediction_gives_the_data_back(schedule):
    """x_0 to 1e-12 in float64 from (x, answer) at three times, with alpha' and sigma' by the schedule's f and g^2."""
    x0, eps = normal(0), normal(1)
    for share in (0.2, 0.5, 0.8):
        t = share * schedule.start + (1.0 - share) * schedule.end
        a, s = schedule.alpha(t), schedule.sigma(t)
        da = schedule.f(t) * a
        ds = (schedule.g2(t) + 2.0 * schedule.f(t) * s * s) / (2.0 * s)
        x = a * x0 + s * eps
        answers = {
            "noise": eps,
            "data": x0,
            "velocity": a * eps - s * x0,
            "score": -eps / s,
            "flow": da * x0 + ds * eps,
        }
        for prediction, y in answers.items():
            error = float((data_from(prediction, schedule, x, t, y) - x0).abs().max())
            assert error < 1e-12 * max(1.0, s / a), (prediction, t)


def test_on_straight_lines_the_flow_is_noise_less_data():
    x0, eps = normal(0), normal(1)
    assert torch.allclose(data_from("flow", Flow(), 0.7 * x0 + 0.3 * eps, 0.3, eps - x0), x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_wrapped_networks_agree_with_the_model_they_are_made_from(schedule, gaussian):
    """A denoiser of a Gaussian told as noise, score, velocity or flow is the Gaussian's; times reach it as (n,)."""
    sde = gaussian.sde(schedule)
    u = flow(sde)
    t = schedule.time(0.3)
    x = normal(2)
    seen = []

    def flat(f):
        def net(x, time):
            seen.append(time)
            return f(x.flatten(1), float(time[0])).view_as(x)

        return net

    def noise(x, t):
        return -schedule.sigma(t) * sde.score(x, t)

    def velocity(x, t):
        return schedule.alpha(t) * noise(x, t) - schedule.sigma(t) * sde.denoise(x, t)

    made = [
        Denoiser.from_eps(flat(noise), schedule, EVENT),
        Denoiser.from_data(flat(sde.denoise), schedule, EVENT),
        Denoiser.from_velocity(flat(velocity), schedule, EVENT),
        Denoiser.from_score(flat(sde.score), schedule, EVENT),
        Denoiser.from_flow(flat(lambda x, t: u.evaluate(t, x)[0]), schedule, EVENT),
    ]
    truth = mixture(gaussian, schedule, EVENT)(x, t)
    for denoiser in made:
        assert torch.allclose(denoiser(x, t), truth, rtol=0, atol=1e-12)
    assert all(time.shape == (5,) and time.dtype == x.dtype and float(time[0]) == t for time in seen)


def test_no_signal_and_unknown_predictions_are_refused():
    x = normal(0)
    with pytest.raises(ValueError, match=r"alpha is 0 at t = 1\.0, where noise"):
        data_from("noise", Flow(), x, 1.0, x)
    with pytest.raises(ValueError, match="'mu' is unknown, allowed are noise, data"):
        data_from("mu", VP(), x, 0.5, x)


# ---- guidance ----


def conditional() -> Denoiser:
    """Class k pulls to the constant k, no class to 10; three classes."""

    def net(x, t, label):
        return torch.where(label == 3, 10, label).to(x.dtype).view(-1, 1, 1).expand_as(x) + 0.0 * x

    return Denoiser.from_data(net, VP(), EVENT, conditional=3)


def test_guidance_is_linear_in_its_weight():
    d, x, label = conditional(), normal(0, 3), torch.tensor([0, 1, 2])
    c = label.double().view(-1, 1, 1).expand_as(x)
    assert torch.equal(d(x, 0.5), torch.full_like(x, 10.0))
    assert torch.equal(d(x, 0.5, label), c)
    for weight in (0.0, 0.5, 1.0, 3.0):
        assert torch.allclose(d.guided(label, weight)(x, 0.5), 10.0 + weight * (c - 10.0), rtol=0, atol=1e-13)
    assert torch.equal(d.guided(label, 1.0)(x, 0.5), d(x, 0.5, label))
    assert torch.equal(d.guided(1, 1.0)(x, 0.5), torch.ones_like(x))


def test_calls_and_forwards_are_counted():
    """A call is one evaluation of a batch; guidance costs two passes, except where one of them is not needed."""
    d, x = conditional(), normal(0, 2)
    d(x, 0.5)
    d(x, 0.4, 1)
    assert (d.calls, d.forwards) == (2, 2)
    for weight, passes in ((0.0, 1), (1.0, 1), (2.0, 2)):
        guided = d.guided(0, weight, 0.9)
        guided(x, 0.5)
        assert (guided.calls, guided.forwards) == (1, passes)


def test_labels_that_do_not_fit_are_refused():
    d, x = conditional(), normal(0, 2)
    with pytest.raises(ValueError, match=r"label 3 is not in 0 \.\. 2"):
        d(x, 0.5, 3)
    with pytest.raises(ValueError, match=r"label \[0, -1\] is not in"):
        d.guided(torch.tensor([0, -1]), 2.0)
    with pytest.raises(ValueError, match="3 labels were given for 2 pictures"):
        d(x, 0.5, torch.tensor([0, 1, 2]))
    plain = Denoiser(VP(), lambda x, t, label: x, EVENT)
    with pytest.raises(ValueError, match="label 1 was given to a model without labels"):
        plain(x, 0.5, 1)
    with pytest.raises(ValueError, match="guidance needs a model with classes and a label; got None and 1"):
        plain.guided(1, 2.0)


# ---- thresholding ----


@pytest.mark.parametrize("quantile", [0.3, 0.9, 0.995])
def test_thresholding_is_the_formula(quantile):
    """clip(x_0, -s, s) / s with s = max(1, quantile of |x_0| of the picture), against torch.quantile."""
    x0 = 3.0 * Noise(6).normal(0, torch.arange(4), (3, 20, 20)) * torch.tensor([0.01, 0.3, 1.0, 5.0]).view(4, 1, 1, 1)
    d = Denoiser(VP(), lambda x, t, label: x, (3, 20, 20)).thresholded(quantile)
    s = x0.abs().flatten(1).quantile(quantile, 1).clamp(min=1.0).view(4, 1, 1, 1)
    y = d(x0, 0.5)
    assert torch.allclose(y, x0.clamp(-s, s) / s, rtol=0, atol=1e-14)
    assert torch.equal(y[0], x0[0]) and float(y.abs().max()) == 1.0


def test_guided_predictions_are_thresholded_after_guidance():
    d, x = conditional(), normal(0, 2)
    assert torch.equal(d.guided(0, 3.0, 0.9)(x, 0.5), torch.full_like(x, -1.0))
    with pytest.raises(ValueError, match=r"quantile of thresholding is 1\.0, it must lie in \(0, 1\)"):
        d.guided(0, 3.0, 1.0)


# ---- as a function ----


def test_shapes_that_do_not_fit_are_refused():
    d = Denoiser.from_eps(lambda x, t: x[:, :1], VP(), EVENT)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3, 3\), the model is for \('n', 2, 3\)"):
        d(torch.zeros(4, 3, 3), 0.5)
    with pytest.raises(ValueError, match=r"answers with shape \(4, 1, 3\) to x of shape \(4, 2, 3\)"):
        d(torch.zeros(4, 2, 3), 0.5)


def test_gradients_flow_where_x_asks_for_them_only():
    w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    d, x = Denoiser.from_data(lambda x, t: w * x, VP(), EVENT), normal(0)
    assert not d(x, 0.5).requires_grad
    x.requires_grad_()
    d(x, 0.5).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0)) and float(w.grad) == pytest.approx(float(x.detach().sum()))
    with torch.no_grad():
        assert not d(x, 0.5).requires_grad


def test_a_network_that_answers_nan_makes_its_particle_diverge():
    def net(x, t):
        return torch.where((x[:, :1, :1] > 0.5) & (t.view(-1, 1, 1) < 0.5), math.nan, x)

    d = Denoiser.from_data(net, VP(), EVENT)
    x = torch.zeros(3, *EVENT)
    x[1] = 1.0
    path = rollout(
        d.sde(), DPMSolverPP2M(), Particles.at(x), time_grid("uniform", VP(), 8), noise=Noise(0), save="last"
    )
    assert path.final.status.tolist() == [Status.OK, Status.DIVERGED, Status.OK]
    assert bool(path.final.x.isfinite().all())


def test_the_dynamics_is_the_engines():
    d, x = Denoiser.from_data(lambda x, t: 0.5 * x, VP(), EVENT), normal(0)
    data, noise = d.sde(), d.sde("noise")
    assert isinstance(data, LinearSDE)
    assert torch.equal(data.evaluate(0.5, x)[0], 0.5 * x)
    a, s = VP().alpha(0.5), VP().sigma(0.5)
    assert torch.allclose(noise.evaluate(0.5, x)[0], (x - a * 0.5 * x) / s, rtol=0, atol=1e-14)
