"""DDS in two modes on a linear-Gaussian problem: every variant is affine, so its mean and covariance are propagated
exactly, without sampling; then on samples, on a mixture, and what is refused.
"""

import math

import pytest
import torch

from molsamp.engine import (
    VP,
    Exponential,
    GaussianMixture,
    LinearSDE,
    Noise,
    Particles,
    residuals,
    rollout,
    step,
    time_grid,
)
from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.exponential import DDIM, DPMSolverPP2M
from molsamp.engine.guides import Guided, Prediction
from molsamp.engine.integrators import Line
from molsamp.engine.operators import Downsample, Mask, Matrix, check_adjoint, normal
from molsamp.engine.renoising import Renoising
from molsamp.engine.scanners import Channels, Fourier, Radon
from molsamp.image.guidance import guided
from molsamp.image.ideal import mixture
from molsamp.image.inverse import DDS, Bayes, GaussianPrior, Isotropic, Jacobian, Measured
from molsamp.image.sampling import sample

F64 = torch.float64
D, M, SPREAD = 16, 6, 0.05
SCHEDULE, END = VP(), 1e-3


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


Q = torch.linalg.qr(draw(D, D)).Q
C = Q @ torch.diag(torch.logspace(0.0, -2.0, D, dtype=F64)) @ Q.T
A = draw(M, D, seed=1) / math.sqrt(D)
Y = A @ torch.linalg.cholesky(C) @ draw(1, D, seed=2)[0] + SPREAD * draw(1, M, seed=3)[0]
POSTERIOR = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / SPREAD**2)
MEAN = POSTERIOR @ A.T @ Y / SPREAD**2
LAW = GaussianMixture(torch.zeros(1, D, dtype=F64), C[None])
SDE = LAW.sde(SCHEDULE)
MEASURED = Measured(Matrix(A, (D,)), Y[None])
BAYES = Bayes(MEASURED, SPREAD, GaussianPrior(C), tolerance=1e-10)


def moments(integrator, steps):
    """Mean and covariance at the end of an affine scheme of one evaluation a row, from N(0, sigma^2 I), exactly."""
    times = time_grid("log-snr", SCHEDULE, steps, 1.0, END)
    m, S, eye = torch.zeros(D, dtype=F64), SCHEDULE.sigma(1.0) ** 2 * torch.eye(D, dtype=F64), torch.eye(D, dtype=F64)
    basis = torch.cat([torch.zeros_like(m)[None], eye])
    for row in integrator.rows(SDE, times):
        ends = step(row, SDE, Particles.at(basis), torch.zeros_like(basis) if row.draws else None)[0].x
        N = [v.noise for v in row.program if isinstance(v, Line) and v.noise is not None]
        J = (ends[1:] - ends[0]).T
        m, S = J @ m + ends[0], J @ S @ J.T + (N[0] ** 2 * eye if N else 0.0)
    return m, S


def errors(integrator, steps, target=POSTERIOR):
    """(relative error of the mean, trace of the covariance over the target's)."""
    m, S = moments(integrator, steps)
    return float((m - MEAN).norm() / MEAN.norm()), float(S.trace() / target.trace())


# ---- bayes ----


def test_the_guided_prediction_is_the_posteriors():
    """E[x_0 | x, y] from the joint Gaussian, and the covariance V from (C^-1 + alpha^2 / sigma^2)^-1, to 1e-9."""
    t = 0.4
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    x = draw(5, D, seed=4)
    V = torch.linalg.inv(torch.linalg.inv(C) + alpha**2 / sigma**2 * torch.eye(D, dtype=F64))
    exact = torch.linalg.inv(torch.linalg.inv(V) + A.T @ A / SPREAD**2) @ (
        (alpha / sigma**2 * x).T + (A.T @ Y / SPREAD**2)[:, None]
    )
    D_x = SDE.denoise(x, t)
    p = Prediction(x, t, alpha, sigma, D_x, D_x)
    torch.testing.assert_close(GaussianPrior(C)(p, x), x @ V, rtol=0, atol=1e-12)
    found = BAYES(p, None)[0]
    torch.testing.assert_close(found.aim, exact.T, rtol=0, atol=1e-9)
    assert found.origin is found.aim
    through = Bayes(MEASURED, SPREAD, Jacobian(SDE.denoise), tolerance=1e-12)(p, None)[0].aim
    torch.testing.assert_close(through, exact.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_bayes_tends_to_the_posterior(eta):
    """In 500 steps of order 1 the mean is right within 1 % and the variance within 2 %; in 125 the variance is four
    times as far off: an error of the solver, of order 1, less the noise left at the end.
    """
    few, many = errors(Guided(DDIM(eta), BAYES), 125), errors(Guided(DDIM(eta), BAYES), 500)
    assert many[0] < 0.01 and abs(many[1] - 1.0) < 0.02, many
    assert (few[1] - 1.0) / (many[1] - 1.0) == pytest.approx(4.0, rel=0.3)


def ends(integrator, steps, sde=SDE):
    """The affine map of a scheme without noise, (J, c), in any order."""
    times = time_grid("log-snr", SCHEDULE, steps, 1.0, END)
    basis = torch.cat([torch.zeros(1, D, dtype=F64), torch.eye(D, dtype=F64)])
    x = rollout(sde, integrator, Particles.at(basis), times, noise=Noise(0), save="last").final.x
    return (x[1:] - x[0]).T, x[0]


def test_bayes_in_solvers_of_higher_order():
    """DPM-Solver++(2M) in 100 steps and UniPC-3 in 40 have mean and variance within 1 % and 2 %: the guide composes
    with every table.
    """
    unipc = Exponential(order=3, corrects=3, rule="exact", short=0)
    for integrator, steps in ((DPMSolverPP2M(short=0), 100), (unipc, 40)):
        J, c = ends(Guided(integrator, BAYES), steps)
        variance = SCHEDULE.sigma(1.0) ** 2 * float((J @ J.T).trace() / POSTERIOR.trace())
        assert float((c - MEAN).norm() / MEAN.norm()) < 0.01
        assert abs(variance - 1.0) < 0.02, (type(integrator).__name__, variance)


def test_samples_have_the_posteriors_moments():
    """2000 samples by the reverse SDE in 50 steps: every coordinate's mean within 5 standard errors of what this
    scheme has exactly (alarm 2e-5), the covariance's trace within 4 of 2 % (alarm 6e-5).
    """
    model = mixture(LAW, SCHEDULE, (D,))
    x = sample(
        model,
        Guided(DDIM(1.0), BAYES),
        50,
        2000,
        noise=Noise(5),
        grid=time_grid("log-snr", SCHEDULE, 50, 1.0, END),
        dtype=F64,
    ).final.x
    m, S = moments(Guided(DDIM(1.0), BAYES), 50)
    z = (x.mean(0) - m) / (S.diag() / 2000).sqrt()
    assert float(z.abs().max()) < 5.0
    error = math.sqrt(2.0 * float((S @ S).trace()) / 2000) / float(S.trace())
    assert abs(float(torch.cov(x.T).trace() / S.trace()) - 1.0) < 4.0 * error


# ---- as published ----


def test_the_published_noise_loses_a_quarter_of_the_variance():
    """Without any data: 0.70, 0.75, 0.76 of the prior's trace in 50, 200, 1000 steps of eta = 0.85, where DDIM's eta
    tends to 1.
    """
    published = [errors(Renoising(0.85), steps, C)[1] for steps in (50, 200, 1000)]
    assert published == pytest.approx([0.70, 0.75, 0.76], abs=0.01)
    assert errors(DDIM(1.0), 1000, C)[1] == pytest.approx(0.99, abs=0.01)


def test_as_published_it_is_not_the_posterior():
    """Its mean is off by more than 2 % and its variance by more than 15 % in 500 steps, with a weight of 1 and of
    1 / spread^2, where bayes keeps within 1 % and 2 %.
    """
    for weight in (1.0, 1.0 / SPREAD**2):
        m, v = errors(Guided(Renoising(0.85), DDS(MEASURED, weight)), 500)
        assert m > 0.02 and v < 0.85, (m, v)


@pytest.mark.parametrize("weight", [None, 2.5])
def test_published_step_by_hand(weight):
    """One row against dense algebra: to convergence the aim solves its equations; re-noised along the raw eps."""
    s, t, eta, x = 0.5, 0.3, 0.85, draw(4, D, seed=6)
    D_x = SDE.denoise(x, s)
    eps = (x - SCHEDULE.alpha(s) * D_x) / SCHEDULE.sigma(s)
    if weight is None:
        aim = D_x + (Y - D_x @ A.T) @ torch.linalg.pinv(A).T  # the nearest to D of all that fit y
    else:
        system = torch.eye(D, dtype=F64) + weight * A.T @ A
        aim = torch.linalg.solve(system, (D_x + weight * Y @ A).T).T
    z = Noise(1).normal(0, torch.arange(4), (D,))
    expected = SCHEDULE.alpha(t) * aim + SCHEDULE.sigma(t) * (eta * z + math.sqrt(1.0 - eta**2) * eps)
    guide = DDS(MEASURED, weight, steps=60)
    found = rollout(SDE, Guided(Renoising(eta), guide), Particles.at(x), [s, t], noise=Noise(1)).final.x
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_few_steps_stay_in_the_krylov_space():
    """aim - D in span{A^T r, (A^T A) A^T r, .., 5 of them} of each picture, r = y - A D."""
    x = draw(3, D, seed=7)
    p = Prediction(x, 0.5, 0.8, 0.6, x, x)
    moved = DDS(MEASURED, steps=5)(p, None)[0].aim - x
    for i in range(3):
        v = [A.T @ (Y - A @ x[i])]
        for _ in range(4):
            v.append(A.T @ (A @ (v[-1] / v[-1].norm())))
        basis = torch.linalg.qr(torch.stack(v, 1)).Q
        assert float((moved[i] - basis @ (basis.T @ moved[i])).norm() / moved[i].norm()) < 1e-9


def test_renoised_rows_know_their_density():
    """Residuals are the normals that were drawn."""
    times = time_grid("log-snr", SCHEDULE, 6, 1.0, END)
    integrator = Guided(Renoising(0.85), DDS(MEASURED, 1.0))
    path = rollout(SDE, integrator, Particles.at(draw(4, D)), times, noise=Noise(1))
    torch.testing.assert_close(residuals(path, SDE, integrator)[0], path.z, rtol=0, atol=1e-8)


# ---- operators on pictures ----


def test_a_mask_is_filled_in_exactly():
    """Without noise, the measured pixels of the aim are y after one step, the others are the model's."""
    mask = Noise(5).uniform(0, torch.arange(1), (8, 8))[0] < 0.5
    y, x = draw(1, 8, 8), draw(3, 1, 8, 8, seed=8)
    aim = DDS(Measured(Mask(mask.double()), mask * y), steps=1)(Prediction(x, 0.5, 0.8, 0.6, x, x), None)[0].aim
    torch.testing.assert_close(aim, torch.where(mask, y[:, None], x))


@pytest.mark.parametrize(
    "operator",
    [
        Radon(8, torch.linspace(0.0, math.pi, 6)[:-1]),
        Downsample(2, (8, 8)),
        Fourier(torch.ones(8, 8), torch.complex(draw(2, 8, 8), draw(2, 8, 8, seed=1)), real=True),
        Channels(Fourier(torch.ones(8, 8), torch.complex(draw(2, 8, 8), draw(2, 8, 8, seed=1)))),
    ],
    ids=["ct", "super-resolution", "mri-real", "mri-channels"],
)
def test_both_modes_fit_the_data(operator):
    """In float32: the misfit falls below a tenth, as V of a wide prior lets it; the batch has one y each."""
    assert check_adjoint(operator, Noise(2)) < 1e-12
    shape = (2, 8, 8) if isinstance(operator, Channels) else (1, 8, 8)
    truth, x = draw(3, *shape, seed=9), draw(3, *shape, seed=10).float()
    measured = Measured(operator, operator(truth.reshape(3, *operator.domain)))
    p = Prediction(x, 0.5, 0.8, 0.6, x, x)

    def misfit(x):
        return (operator(measured.of(x)) - measured.seen(x)).abs().square().sum() ** 0.5

    for guide in (DDS(measured, steps=30), DDS(measured, 100.0, 30), Bayes(measured, 0.02, Isotropic(1.0))):
        aim = guide(p, None)[0].aim
        assert aim.dtype == torch.float32 and aim.shape == x.shape
        assert float(misfit(aim)) < 0.1 * float(misfit(x)), guide


def coils(size):
    """Four sensitivities, Gaussian about the corners with a phase each, of unit sum of squares."""
    g = torch.arange(size, dtype=F64)
    near = torch.stack([torch.exp(-((g - c) ** 2) / (1.28 * size**2)) for c in (-0.5, size - 0.5)])
    maps = torch.einsum("ai,bj->abij", near, near).flatten(0, 1)
    phase = torch.exp(1j * torch.arange(4, dtype=F64))[:, None, None]
    return phase * maps / maps.square().sum(0).sqrt()


def psnr(x, truth):
    return float((10.0 * torch.log10(4.0 / (x.double() - truth).square().flatten(1).mean(1))).mean())


@pytest.mark.parametrize("what", ["ct", "mri"])
def test_a_trained_model_beats_reconstruction_without_one(what):
    """Eight digits that no model saw, 16 x 16, 5 projections or a third of the frequencies with 4 coils, noise added:
    in 20 network calls by at least 2 dB above the best of 1 .. 14 steps of conjugate gradients (chosen with the truth).
    """
    from molsamp.image import data, load

    size, truth = 16, data.mnist().split()[1].x[:8].double()
    if what == "ct":
        operator, spread = Radon(size, torch.linspace(0.0, math.pi, 6)[:-1], size + 8), 0.3
    else:
        mask = torch.zeros(size, size)
        mask[:, ::4] = mask[:, :2] = mask[:, -1:] = 1.0
        operator, spread = Fourier(mask, coils(size), real=True), 0.05
    z = [Noise(1).normal(k, torch.arange(8), operator.image) for k in (0, 1)]
    clean, ones = operator(truth[:, 0]), operator(torch.ones(8, size, size, dtype=F64))
    y = clean + spread * (torch.complex(*z) if operator.image_complex else z[0])
    back = operator.adjoint(y + ones)  # of the picture less its background, -1
    alone = max(
        psnr(conjugate_gradients(lambda v: normal(operator, v), back, steps=k)[0][:, None] - 1.0, truth)
        for k in range(1, 15)
    )
    model, measured = load("mnist"), Measured(operator, y)
    if what == "ct":
        solver = Guided(Renoising(0.85), DDS(measured, 1.0))
    else:
        solver = guided("dpm++2m", Bayes(measured, spread, Isotropic(0.5)))
    found = psnr(sample(model, solver, 20, 8, noise=Noise(2)).final.x, truth)
    assert model.calls == 20
    assert found > alone + 2.0, (found, alone)


class Wrong(Matrix):
    def adjoint(self, y):
        return super().adjoint(y) * 1.001


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: Measured(Matrix(A, (D,)), Y), "wanted is"),
        (lambda: Measured(Matrix(A, (D,)), Y[None].to(torch.complex128)), "real"),
        (lambda: Measured(Wrong(A, (D,)), Y[None]), "adjoint is wrong"),
        (lambda: DDS(MEASURED, -1.0), "positive"),
        (lambda: DDS(MEASURED, steps=0), "1 or more"),
        (lambda: Bayes(MEASURED, 0.0, Isotropic(1.0)), "positive"),
        (lambda: Renoising(1.2), r"\[0, 1\]"),
        (lambda: Renoising(0.5).rows(LinearSDE(SCHEDULE, SDE.denoise, "noise"), [0.5, 0.1]), "data form"),
        (lambda: MEASURED.of(torch.zeros(2, D + 1)), "do not fit"),
        (lambda: Channels(Downsample(2, (8, 8))), "imaginary"),
    ],
)
def test_bad_problems_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()


def test_normal_is_a_hermitian_map():
    assert torch.allclose(normal(Matrix(A, (D,)), torch.eye(D, dtype=F64)), A.T @ A)
