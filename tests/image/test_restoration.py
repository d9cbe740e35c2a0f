"""Mean-reverting restoration: the shift about mu against the written-out updates, closed forms and laws."""

import math
from itertools import pairwise

import pytest
import torch

from molsamp.engine import VP, EulerMaruyama, MeanReverting, Noise, Particles, rollout
from molsamp.engine.dynamics import Ito
from molsamp.engine.exponential import Exponential
from molsamp.engine.grids import time_grid
from molsamp.engine.mixtures import GaussianMixture
from molsamp.image.denoiser import Denoiser
from molsamp.image.restoration import restore, shifted
from molsamp.image.sampling import sample

F64 = torch.float64
EVENT = (1, 2, 2)
SOLVERS = ["ddim", "dpm++2m", "dpm++3m", "unipc", "dpm-2", "ddpm", "sde-dpm++2m", "heun"]


def normals(n, key="x"):
    return Noise(7).child(key).normal(0, torch.arange(n), EVENT)


def net(x, t, mu):
    """Something nonlinear that looks at x - mu and at mu."""
    return torch.tanh(x - mu) * (1.0 + t.view(-1, 1, 1, 1)) + 0.3 * mu.flip(-1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_mean_it_is_the_plain_solver_bit_for_bit(solver):
    schedule, mu = MeanReverting(scale=1.0), torch.zeros(4, *EVENT, dtype=F64)
    plain = Denoiser.from_data(lambda x, t: net(x, t, torch.zeros_like(x)), schedule, EVENT)
    there = sample(plain, solver, 8, 4, noise=Noise(1), dtype=F64).final.x
    assert torch.equal(restore(net, mu, solver, 8, noise=Noise(1), schedule=schedule, dtype=F64).final.x, there)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "dpm++3m", "unipc", "ddpm", "sde-dpm++2m"])
def test_scale_one_is_variance_preserving(solver):
    """At the same log-SNR the clocks of `VP` and `MeanReverting` give the same steps, to 1e-10."""
    vp, mr = VP(), MeanReverting(theta="linear", scale=1.0)
    times = time_grid("log-snr", vp, 8, 0.6, 0.01)
    x, mu = normals(4), torch.zeros(4, *EVENT, dtype=F64)
    plain = Denoiser.from_data(lambda x, t: torch.tanh(x), vp, EVENT)
    there = sample(plain, solver, 8, noise=Noise(1), grid=times, start=vp.sigma(0.6) * x, dtype=F64).final.x
    also = [mr.time(vp.lam(t)) for t in times]
    path = restore(
        lambda x, t, mu: torch.tanh(x), mu, solver, 8, noise=Noise(1), schedule=mr, grid=also, start=vp.sigma(0.6) * x,
        dtype=F64,
    )  # fmt: skip
    assert (path.final.x - there).abs().max() < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["data", "noise", "velocity"])
def test_it_moves_with_the_mean(solver, prediction):
    """A network that sees everything moved by c restores to what is moved by c; eps and v do not move."""
    c, mu, x = 1.7, normals(4, "mu"), normals(4)

    def moved(x, t, mu):
        return net(x - c, t, mu - c) + (c if prediction == "data" else 0.0)

    how = {"noise": Noise(1), "prediction": prediction, "dtype": F64, "save": "all" if solver == "ddim" else "last"}
    a = restore(net, mu, solver, 6, start=x, **how)
    b = restore(moved, mu + c, solver, 6, start=x + c, **how)
    assert (b.x - a.x - c).abs().max() < 1e-10 and (b.final.x - a.final.x - c).abs().max() < 1e-10


def test_predictions_agree():
    """x_0, eps and v of the same x_0 give one denoiser."""
    schedule, mu, x0, eps = MeanReverting(), normals(3, "mu"), normals(3, "x0"), normals(3, "eps")
    t = 0.4
    alpha, sigma, scale = schedule.alpha(t), schedule.sigma(t), schedule.scale
    x = alpha * x0 + (1.0 - alpha) * mu + sigma * eps
    told = {"data": x0, "noise": eps, "velocity": alpha * scale * eps - sigma / scale * (x0 - mu)}
    for prediction, y in told.items():
        model = shifted(lambda x, t, mu, y=y: y, mu, schedule, prediction)
        torch.testing.assert_close(model(x - mu, t), x0 - mu, rtol=0, atol=1e-12)


def test_first_orders_as_the_paper_writes_them():
    """ODE-1 and SDE-1 in data form, SDE-1 in noise form, in x and mu with mu's own coefficient; 1e-12."""
    schedule, mu, x = MeanReverting(), normals(3, "mu"), normals(3)
    s, t = 0.8, 0.3
    a_s, a_t, s_s, s_t = schedule.alpha(s), schedule.alpha(t), schedule.sigma(s), schedule.sigma(t)
    h = schedule.lam(t) - schedule.lam(s)
    D = net(x, torch.full((3,), s, dtype=F64), mu)
    eps = (x - a_s * D - (1.0 - a_s) * mu) / s_s
    z = Noise(2).child("rows").normal(0, torch.arange(3), EVENT)
    e2 = math.exp(-2.0 * h)
    expected = {
        "ode": s_t / s_s * x + a_t * (1.0 - math.exp(-h)) * D + (1.0 - s_t / s_s - a_t * (1.0 - math.exp(-h))) * mu,
        "sde": a_t / a_s * e2 * x
        + a_t * (1.0 - e2) * D
        + (1.0 - a_t / a_s * e2 - a_t * (1.0 - e2)) * mu
        + s_t * math.sqrt(1.0 - e2) * z,
        "noise": mu + a_t / a_s * (x - mu) - 2.0 * s_t * math.expm1(h) * eps + s_t * math.sqrt(math.expm1(2.0 * h)) * z,
    }
    solvers = {"ode": "ddim", "sde": "sde-dpm++1", "noise": Exponential(noise=1.0, form="noise")}
    for name, solver in solvers.items():
        path = restore(net, mu, solver, 1, noise=Noise(2), grid=[s, t], start=x, dtype=F64)
        assert (path.final.x - expected[name]).abs().max() < 1e-12, name


def gaussian(schedule, m, S):
    """(x, t, mu) -> E[x_0 | x_t] for x_0 ~ N(m, S) a pixel, whatever mu is."""

    def predict(x, t, mu):
        a, s = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        return m + a * S / (a * a * S + s * s) * (x - a * m - (1.0 - a) * mu)

    return predict


def test_ode_of_one_gaussian_is_the_closed_form():
    schedule, m, S, mu, x = MeanReverting(), 0.3, 0.2, normals(2, "mu"), normals(2)
    times = time_grid("log-snr", schedule, 200)
    solver = Exponential(order=4, corrects=4, rule="exact", short=0)
    path = restore(gaussian(schedule, m, S), mu, solver, 200, noise=Noise(0), grid=times, start=x, dtype=F64)
    for centre, begin, end in zip(mu.flatten(), x.flatten(), path.final.x.flatten(), strict=True):
        about = GaussianMixture(torch.tensor([[m]], dtype=F64) - centre, torch.tensor([S], dtype=F64))
        expected = about.flow_map(schedule, times[0], times[-1], (begin - centre).view(1, 1)) + centre
        assert float(end - expected) == pytest.approx(0.0, abs=1e-7)


def test_sde_has_the_mean_and_variance_of_the_recursion():
    """20000 values against the affine recursion of SDE-1 with OU coefficients; 4 standard errors, alarm 1.3e-4."""
    schedule, m, S, centre, n = MeanReverting(), 0.3, 0.2, -0.4, 5000
    times = time_grid("uniform", schedule, 6)
    mean, variance = centre, schedule.sigma(times[0]) ** 2
    for s, t in pairwise(times):
        a_s, a_t, s_s, s_t = schedule.alpha(s), schedule.alpha(t), schedule.sigma(s), schedule.sigma(t)
        e2 = (a_s * s_t / (a_t * s_s)) ** 2
        gain = a_s * S / (a_s**2 * S + s_s**2)
        slope = a_t / a_s * e2 + a_t * (1.0 - e2) * gain
        D = m + gain * (mean - a_s * m - (1.0 - a_s) * centre)
        mean = centre + a_t / a_s * e2 * (mean - centre) + a_t * (1.0 - e2) * (D - centre)
        variance = slope**2 * variance + s_t**2 * (1.0 - e2)
    mu = torch.full((n, *EVENT), centre, dtype=F64)
    path = restore(gaussian(schedule, m, S), mu, "sde-dpm++1", 6, noise=Noise(5), grid=times, dtype=F64)
    x = path.final.x.flatten()
    assert abs(float(x.mean()) - mean) < 4.0 * math.sqrt(variance / len(x))
    assert abs(float(x.var()) - variance) < 4.0 * variance * math.sqrt(2.0 / len(x))


def test_the_forward_process_has_these_marginals():
    """Euler-Maruyama of the mean-reverting SDE, 200 rows, 40000 values; 4 standard errors and 0.5 % for the rows."""
    schedule, centre, x0, n = MeanReverting("cosine", 0.5), -0.4, 0.9, 40_000
    sde = Ito(lambda t, x: -schedule.f(t) * (centre - x), lambda t: schedule.g2(t) ** 0.5)
    times = torch.linspace(0.0, 0.5, 201, dtype=F64).tolist()
    x = rollout(
        sde, EulerMaruyama(), Particles.at(torch.full((n, 1), x0, dtype=F64)), times, noise=Noise(9), save="last"
    )
    alpha, sigma = schedule.alpha(0.5), schedule.sigma(0.5)
    mean, deviation = float(x.final.x.mean()), float(x.final.x.std())
    assert mean == pytest.approx(alpha * x0 + (1.0 - alpha) * centre, abs=4.0 * sigma / n**0.5 + 0.005 * sigma)
    assert deviation == pytest.approx(sigma, rel=4.0 / (2.0 * n) ** 0.5 + 0.005)


def test_bad_input_is_refused():
    mu = normals(2, "mu")
    with pytest.raises(Exception, match="flow"):
        restore(net, mu, noise=Noise(0), prediction="flow")
    with pytest.raises(ValueError, match="3 pictures were given, to be restored from 2"):
        shifted(net, mu)(normals(3), 0.5)
    with pytest.raises(ValueError, match=r"shape \(3, 1, 2, 2\)"):
        restore(lambda x, t, mu: torch.zeros(3, *EVENT), mu, noise=Noise(0), prediction="noise")
