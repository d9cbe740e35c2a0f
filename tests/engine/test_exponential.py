"""Exponential integrators and their truth, the Gaussian mixture: order, limits, laws, densities."""

import math
from itertools import pairwise

import pytest
import torch

from molsamp.engine import (
    EDM,
    VP,
    EulerMaruyama,
    Heun,
    Noise,
    Overdamped,
    Particles,
    Tape,
    flow,
    log_prob,
    residuals,
    reverse,
    rollout,
    step,
    time_grid,
)
from molsamp.engine.exponential import DDIM, DPMSolverPP2M, Exponential
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.engine.mixtures import GaussianMixture

F64 = torch.float64
SCHEDULE = VP()
START, END = 1.0, 1e-3


def f64(values):
    return torch.tensor(values, dtype=F64)


@pytest.fixture(scope="module")
def mixture():
    """Three full covariances in the plane."""
    means = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    A = f64([[[0.5, 0.0], [0.2, 0.3]], [[0.3, 0.0], [-0.1, 0.4]], [[0.4, 0.0], [0.0, 0.4]]])
    return GaussianMixture(means, A @ A.transpose(1, 2), f64([0.5, 0.3, 0.2]))


@pytest.fixture(scope="module")
def starts():
    return Particles.at(Noise(11).normal(0, torch.arange(64), (2,)))


def final(dyn, integrator, starts, steps, end=END):
    times = time_grid("log-snr", SCHEDULE, steps, START, end)
    return rollout(dyn, integrator, starts, times, noise=Noise(0), save="last").final.x


@pytest.fixture(scope="module")
def truth(mixture, starts):
    """The probability-flow map by 2M, Richardson-extrapolated from 1000 and 2000 rows."""
    a, b = (final(mixture.sde(SCHEDULE), DPMSolverPP2M(short=0), starts, n) for n in (1000, 2000))
    return b + (b - a) / 3.0


def slopes(dyn, integrator, starts, truth, grids=(160, 320)):
    rmse = [float((final(dyn, integrator, starts, n) - truth).square().mean().sqrt()) for n in grids]
    return math.log2(rmse[-2] / rmse[-1]), rmse


# ---- the mixture is what it says ----


def test_score_is_the_gradient_of_the_marginal(mixture):
    sde, x, t = mixture.sde(SCHEDULE), f64([[0.3, -0.2], [1.0, 0.7]]).requires_grad_(), 0.3
    (gradient,) = torch.autograd.grad(mixture.marginal(SCHEDULE, t).log_density(x).sum(), x)
    torch.testing.assert_close(sde.score(x.detach(), t), gradient, rtol=1e-11, atol=1e-12)


def test_density_of_one_gaussian():
    cov = f64([[1.0, 0.3], [0.3, 0.5]])
    g = GaussianMixture(f64([[0.2, -0.1]]), cov[None])
    x = f64([[0.5, 0.5], [-1.0, 2.0]])
    expected = torch.distributions.MultivariateNormal(g.means[0], cov).log_prob(x)
    torch.testing.assert_close(g.log_density(x), expected)


@pytest.mark.parametrize("components", [1, 3])
def test_samples_have_the_moments(mixture, components):
    """All five moments within 4.5 standard errors, twice; false alarm below 8e-5."""
    g = GaussianMixture(*(a[:components] for a in (mixture.means, mixture.covs, mixture.log_w.exp())))
    x = g.sample(20_000, Noise(3))
    mean, cov = g.moments()
    assert ((x.mean(0) - mean) / (x.std(0) / len(x) ** 0.5)).abs().max() < 4.5
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    assert ((products.mean(0) - cov) / (products.std(0) / len(x) ** 0.5)).abs().max() < 4.5


@pytest.mark.parametrize(
    ("covs", "weights", "match"),
    [
        (torch.ones(2, 3, 3), None, "shape"),
        (-torch.ones(2), None, "negative eigenvalue"),
        (torch.ones(2), torch.tensor([1.0, -0.5]), "weights"),
    ],
)
def test_a_bad_mixture_is_refused(covs, weights, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(torch.zeros(2, 2), covs, weights)


# ---- coefficients ----


@pytest.mark.parametrize("schedule", [VP(), EDM()])
def test_data_form_is_noise_form_is_euler_in_rho(schedule):
    """(s_t/s_s) x + a_t (1 - e^-h) x0 = (a_t/a_s) x - s_t (e^h - 1) eps = a_t (y_s + (rho_t - rho_s) eps)."""
    x, x0 = f64([[0.7, -1.3]]), f64([[0.2, 0.5]])
    for s, t in [(1.0, 0.9), (0.5, 0.499), (0.3, 0.01), (0.01, 0.3)]:
        a_s, a_t, s_s, s_t = schedule.alpha(s), schedule.alpha(t), schedule.sigma(s), schedule.sigma(t)
        h, eps = schedule.lam(t) - schedule.lam(s), (x - a_s * x0) / s_s
        noise_form = a_t / a_s * x - s_t * math.expm1(h) * eps
        in_rho = a_t * (x / a_s + (s_t / a_t - s_s / a_s) * eps)
        line = line_of(DDIM(), schedule, s, t)
        data_form = line.keep["x"] * x + line.weights[0] * x0
        assert (data_form - noise_form).abs().max() < 1e-13
        assert (data_form - in_rho).abs().max() < 1e-13


def line_of(integrator, schedule, s, t):
    still = GaussianMixture(torch.zeros(1, 1), torch.ones(1)).sde(schedule)
    line = integrator.rows(still, [s, t])[0].program[-1]
    assert isinstance(line, Line)
    return line


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_eta_is_ddims(eta):
    """Eq. 12 and 16 of the paper: s_noise = eta sqrt(s_t^2/s_s^2 (1 - a_s^2/a_t^2)), eps keeps the rest of s_t^2."""
    for s, t in [(1.0, 0.8), (0.4, 0.39), (0.2, 0.001)]:
        a_s, a_t, s_s, s_t = SCHEDULE.alpha(s), SCHEDULE.alpha(t), SCHEDULE.sigma(s), SCHEDULE.sigma(t)
        s_noise = eta * math.sqrt(s_t**2 / s_s**2 * (1.0 - a_s**2 / a_t**2))
        line = line_of(DDIM(eta), SCHEDULE, s, t)
        eps = math.sqrt(s_t**2 - s_noise**2) / s_s
        assert line.noise == pytest.approx(s_noise, rel=1e-12)
        assert line.keep["x"] == pytest.approx(eps, rel=1e-11)
        assert line.weights[0] == pytest.approx(a_t - a_s * eps, rel=1e-11)


def ancestral(s, t):
    """DDPM's posterior q(x_t | x_s, x_0) by Bayes' rule on precisions: (weight of x_s, weight of x_0, deviation)."""
    a_s, a_t, s_s, s_t = SCHEDULE.alpha(s), SCHEDULE.alpha(t), SCHEDULE.sigma(s), SCHEDULE.sigma(t)
    a = a_s / a_t
    beta = s_s**2 - a**2 * s_t**2  # x_s = a x_t + sqrt(beta) xi
    variance = 1.0 / (1.0 / s_t**2 + a**2 / beta)
    return variance * a / beta, variance * a_t / s_t**2, math.sqrt(variance)


def test_eta_one_is_the_ancestral_sampler():
    for s, t in [(1.0, 0.8), (0.4, 0.39), (0.2, 0.001)]:
        line = line_of(DDIM(1.0), SCHEDULE, s, t)
        assert (line.keep["x"], *line.weights, line.noise) == pytest.approx(ancestral(s, t), rel=1e-11)


def test_extreme_steps_stay_finite():
    """lam rises by 40, where e^-2h is below rounding; and a step to sigma = 0, which ends at the prediction."""
    wide = line_of(DDIM(1.0), EDM(), math.exp(20.0), math.exp(-20.0))
    assert wide.weights[0] == 1.0
    assert wide.noise == pytest.approx(math.exp(-20.0))
    for schedule in (VP(), EDM()):
        for eta in (0.0, 0.5, 1.0):
            last = line_of(DDIM(eta), schedule, 0.1, 0.0)
            assert last.keep["x"] == 0.0 and last.weights == (schedule.alpha(0.0),) and last.noise is None


# ---- order of convergence ----


@pytest.mark.parametrize(
    ("integrator", "order", "tolerance"), [(DDIM(), 1.0, 0.06), (DPMSolverPP2M(short=0), 2.0, 0.06)]
)
def test_order_on_the_mixture(mixture, starts, truth, integrator, order, tolerance):
    """64 shared noises, log-SNR grid: the slope from 160 to 320 rows lies within 0.06 of the order."""
    measured, rmse = slopes(mixture.sde(SCHEDULE), integrator, starts, truth)
    assert measured == pytest.approx(order, abs=tolerance), (measured, rmse)


@pytest.mark.parametrize(("integrator", "order"), [(EulerMaruyama(), 1.0), (Heun(), 2.0)])
def test_probability_flow_by_general_schemes_is_the_same_map(mixture, starts, truth, integrator, order):
    """flow(sde) under schemes that know nothing of alpha and sigma converges to the map of 2M, at its own order."""
    measured, rmse = slopes(flow(mixture.sde(SCHEDULE)), integrator, starts, truth)
    assert measured == pytest.approx(order, abs=0.12), (measured, rmse)


def test_flow_of_one_gaussian_is_exact(starts):
    """The map against C_t^1/2 C_s^-1/2: 2M extrapolated from 500 and 1000 rows agrees to 1e-7."""
    g = GaussianMixture(f64([[0.4, -0.3]]), f64([[[0.6, 0.2], [0.2, 0.3]]]))
    expected = g.flow_map(SCHEDULE, START, END, starts.x)
    coarse, fine = (final(g.sde(SCHEDULE), DPMSolverPP2M(short=0), starts, n) for n in (500, 1000))
    assert (fine + (fine - coarse) / 3.0 - expected).abs().max() < 1e-7
    back = g.flow_map(SCHEDULE, END, START, expected)
    torch.testing.assert_close(back, starts.x, rtol=0, atol=1e-11)


def test_flow_map_needs_one_gaussian(mixture, starts):
    with pytest.raises(ValueError, match="one Gaussian"):
        mixture.flow_map(SCHEDULE, START, END, starts.x)


@pytest.mark.parametrize("integrator", [DDIM(), DPMSolverPP2M(), DPMSolverPP2M(short=0)])
def test_constant_prediction_is_exact_on_any_grid(starts, integrator):
    """A point mass: x_t = alpha_t m + sigma_t eps along the flow, however few and uneven the steps."""
    point = GaussianMixture(f64([[0.4, -0.3]]), f64([0.0]))
    times = [1.0, 0.93, 0.2, 0.15, 0.01]
    x = rollout(point.sde(SCHEDULE), integrator, starts, times, noise=Noise(0)).final.x
    assert (x - point.flow_map(SCHEDULE, 1.0, 0.01, starts.x)).abs().max() < 1e-13


def test_first_and_last_rows_of_short_tables_are_of_order_one(mixture):
    sde = mixture.sde(SCHEDULE)

    def orders(integrator, times):
        return [len(row.program[-1].weights) for row in integrator.rows(sde, times)]

    grid = [1.0, 0.7, 0.4, 0.1]
    assert orders(DPMSolverPP2M(), grid) == [1, 2, 1]
    assert orders(DPMSolverPP2M(short=0), grid) == [1, 2, 2]
    assert orders(DPMSolverPP2M(short=3), grid) == [1, 2, 2]
    assert orders(DPMSolverPP2M(short=0), [*grid, 0.0]) == [1, 2, 2, 1]


def test_inversion_is_within_first_order(mixture, starts):
    """Down and up the same grid: the round trip's error falls about twofold when the rows double."""
    errors = []
    for n in (100, 200):
        times = time_grid("log-snr", SCHEDULE, n, START, 0.01)
        sde = mixture.sde(SCHEDULE)
        down = rollout(sde, DDIM(), starts, times, noise=Noise(0), save="last").final
        up = rollout(sde, DDIM(), down, times[::-1], noise=Noise(0), save="last").final
        errors.append(float((up.x - starts.x).square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)


# ---- laws of the stochastic schemes ----


def chain_variance(dyn, integrator, times, variance):
    """Variance at the end of an affine chain in one dimension, exactly: its response to the start and to each z_k."""
    rows = len(times) - 1
    x, z = torch.zeros(rows + 2, 1, dtype=F64), torch.zeros(rows, rows + 2, 1, dtype=F64)
    x[0] = variance**0.5
    z[:, 1:-1, 0] = torch.eye(rows, dtype=F64)
    end = rollout(dyn, integrator, Particles.at(x), times, noise=Tape(z), save="last").final.x
    return float((end[:-1] - end[-1]).square().sum())


def test_sde_order_one_has_the_exact_law_of_a_point_mass():
    """With x_0 known, the ancestral chain reproduces N(alpha m, sigma^2) at any step size."""
    point = GaussianMixture(f64([[0.4]]), f64([0.0]))
    times = [1.0, 0.6, 0.2, 0.05]
    variance = chain_variance(point.sde(SCHEDULE), DDIM(1.0), times, SCHEDULE.sigma(1.0) ** 2)
    assert variance == pytest.approx(SCHEDULE.sigma(0.05) ** 2, rel=1e-13)


def test_sde_order_one_on_a_gaussian_matches_the_closed_form():
    """Mean and variance of 20000 paths against the recursion of DDPM's posterior; 4 standard errors, alarm 1.3e-4."""
    m, S = 0.4, 0.3
    g, times, n = GaussianMixture(f64([[m]]), f64([S])), time_grid("log-snr", SCHEDULE, 8, START, 0.01), 20_000
    mean, variance = 0.0, 1.0
    for s, t in pairwise(times):
        a_x, a_0, dev = ancestral(s, t)
        gain = SCHEDULE.alpha(s) * S / (SCHEDULE.alpha(s) ** 2 * S + SCHEDULE.sigma(s) ** 2)
        c = a_x + a_0 * gain
        mean, variance = c * mean + a_0 * m * (1.0 - gain * SCHEDULE.alpha(s)), c * c * variance + dev**2
    start = Particles.at(Noise(5).normal(0, torch.arange(n), (1,)))
    x = rollout(g.sde(SCHEDULE), DDIM(1.0), start, times, noise=Noise(6), save="last").final.x
    assert abs(float(x.mean()) - mean) < 4.0 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4.0 * variance * math.sqrt(2.0 / n)
    assert chain_variance(g.sde(SCHEDULE), DDIM(1.0), times, 1.0) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(
    ("integrator", "order"),
    [(DDIM(1.0), 1), (DDIM(0.5), 1), (DPMSolverPP2M(1.0, short=0), 2), (EulerMaruyama(), 1)],
)
def test_marginal_variance_converges(integrator, order):
    """The variance at the end tends to alpha^2 S + sigma^2 at the scheme's weak order, with and without e^-k."""
    S = 0.3
    sde = GaussianMixture(f64([[0.0]]), f64([S])).sde(SCHEDULE)
    dyn = reverse(sde) if isinstance(integrator, EulerMaruyama) else sde
    begin = SCHEDULE.alpha(START) ** 2 * S + SCHEDULE.sigma(START) ** 2
    exact = SCHEDULE.alpha(END) ** 2 * S + SCHEDULE.sigma(END) ** 2
    error = [
        chain_variance(dyn, integrator, time_grid("log-snr", SCHEDULE, n, START, END), begin) / exact - 1.0
        for n in (100, 200, 400)
    ]
    assert abs(error[-1]) < 0.03
    assert math.log2(error[1] / error[2]) == pytest.approx(order, abs=0.1), error


@pytest.mark.parametrize("general", [True, False])
def test_reverse_diffusion_samples_the_mixture(mixture, general):
    """Mean and covariance of 5000 samples within 5 standard errors of the marginal at END; alarm below 5e-6.

    At 500 rows the bias of Euler-Maruyama is below one standard error.
    """
    n, sde = 5000, mixture.sde(SCHEDULE)
    dyn, integrator = (reverse(sde), EulerMaruyama()) if general else (sde, DPMSolverPP2M(1.0))
    start = Particles.at(mixture.marginal(SCHEDULE, START).sample(n, Noise(1)))
    times = time_grid("log-snr", SCHEDULE, 500 if general else 60, START, END)
    x = rollout(dyn, integrator, start, times, noise=Noise(2), save="last").final.x
    mean, cov = mixture.marginal(SCHEDULE, END).moments()
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    assert ((x.mean(0) - mean) / (x.std(0) / n**0.5)).abs().max() < 5.0
    assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 5.0


# ---- densities ----


def test_log_prob_of_the_ancestral_row(mixture):
    """The row's density is the analytic Gaussian of DDPM's posterior at the ideal prediction."""
    s, t, sde = 0.5, 0.4, mixture.sde(SCHEDULE)
    p = Particles.at(mixture.marginal(SCHEDULE, s).sample(32, Noise(8)))
    row = DDIM(1.0).rows(sde, [s, t])[0]
    q, _, _ = step(row, sde, p, Noise(9).normal(0, p.ids, (2,)))
    a_x, a_0, dev = ancestral(s, t)
    expected = torch.distributions.Normal(a_x * p.x + a_0 * mixture.denoise(SCHEDULE, p.x, s), dev).log_prob(q.x)
    torch.testing.assert_close(log_prob(row, sde, p, q)[0], expected.sum(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("times", [[0.5, 0.4], [0.5, 0.0]])
def test_rows_without_noise_have_no_density(mixture, times):
    sde, p = mixture.sde(SCHEDULE), Particles.at(torch.zeros(3, 2, dtype=F64))
    row = DDIM(0.0 if times[1] else 1.0).rows(sde, times)[0]
    with pytest.raises(ValueError, match="no density"):
        log_prob(row, sde, p, p)


@pytest.mark.parametrize("integrator", [DDIM(1.0), DDIM(0.6), DPMSolverPP2M(1.0), DPMSolverPP2M(0.6)])
def test_residuals_of_stochastic_rows_are_standard_normal(mixture, integrator):
    """Mean square 1 within 4 standard deviations of 12 x 512 x 2 normals (alarm 6e-5), and z itself to 1e-9."""
    sde, times = mixture.sde(SCHEDULE), time_grid("log-snr", SCHEDULE, 12, START, 0.01)
    start = Particles.at(Noise(4).normal(0, torch.arange(512), (2,)))
    path = rollout(sde, integrator, start, times, noise=Noise(7))
    z, gap = residuals(path, sde, integrator)
    assert float(gap.max()) == 0.0
    assert (z - path.z).abs().max() < 1e-9
    assert abs(float(z.square().mean()) - 1.0) < 4.0 * math.sqrt(2.0 / z.numel())


def test_residuals_see_a_history_shifted_by_one(mixture):
    """Reading the two evaluations of 2M in the wrong order raises the mean square from 1 to above 1.1."""

    class Shifted(Exponential):
        def rows(self, dyn, times):
            table = super().rows(dyn, times)
            for i, row in enumerate(table):
                evaluate, line = row.program
                assert isinstance(evaluate, Evaluate) and isinstance(line, Line)
                swapped = Line(line.block, line.keep, line.weights[::-1], line.noise)
                table[i] = Row(row.t0, row.t1, (evaluate, swapped), row.history)
            return table

    sde, times = mixture.sde(SCHEDULE), time_grid("log-snr", SCHEDULE, 12, START, 0.01)
    start = Particles.at(Noise(4).normal(0, torch.arange(512), (2,)))
    path = rollout(sde, DPMSolverPP2M(1.0), start, times, noise=Noise(7))
    z, _ = residuals(path, sde, Shifted(order=2, noise=1.0))
    assert float(z.square().mean()) > 1.1


# ---- errors at the door ----


@pytest.mark.parametrize("bad", [{"order": 0}, {"noise": 1.5}, {"noise": -0.1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"order|eta"):
        Exponential(**bad)


@pytest.mark.parametrize(("eta", "times"), [(0.0, [0.5, 0.5]), (0.0, [0.0, 0.5]), (1.0, [0.2, 0.5])])
def test_bad_grids_are_refused(mixture, eta, times):
    with pytest.raises(ValueError, match=r"log-SNR goes from .*times\[0\]"):
        DDIM(eta).rows(mixture.sde(SCHEDULE), times)


def test_other_dynamics_are_refused():
    class Flat:
        def energy_force(self, x):
            return x.sum(1), torch.zeros_like(x)

    with pytest.raises(ValueError, match="Exponential integrates LinearSDE, not Overdamped"):
        DDIM().rows(Overdamped(Flat(), 1.0), [1.0, 0.5])
