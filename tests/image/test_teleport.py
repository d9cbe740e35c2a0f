"""Teleportation: the exact flow of a Gaussian in every schedule, its fit, and the jump as a start of sampling."""

import math

import pytest
import torch

from molsamp.engine import EDM, VP, Cosine, Flow, MeanReverting, Noise, Particles, rollout
from molsamp.engine.exponential import Exponential
from molsamp.engine.grids import time_grid
from molsamp.engine.mixtures import GaussianMixture
from molsamp.image.ideal import ideal, mixture
from molsamp.image.sampling import sample
from molsamp.image.teleport import Gaussian, fit_gaussian, teleport

F64 = torch.float64
EVENT = (1, 2, 3)
SCHEDULES = [VP(), Cosine(), EDM(), Flow(), MeanReverting(scale=0.7)]


def normals(n, key=0, event=EVENT):
    return Noise(3).child(str(key)).normal(0, torch.arange(n), event)


@pytest.fixture(scope="module")
def gaussian():
    """Rank 4 of 6, with some variance in the rest."""
    Q = torch.linalg.qr(normals(6, "frame", (6,)))[0]
    return Gaussian(
        0.3 * normals(1, "mean")[0], Q[:, :4].contiguous(), torch.tensor([2.0, 0.5, 0.1, 0.02], dtype=F64), 0.01
    )


def dense(gaussian):
    """The same as a mixture of one."""
    U = gaussian.U
    S = U * gaussian.L @ U.T + gaussian.rest * (torch.eye(len(U), dtype=F64) - U @ U.T)
    return GaussianMixture(gaussian.m.view(1, -1), S[None])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_flow_and_denoiser_are_those_of_the_dense_covariance(gaussian, schedule):
    x, s, t = normals(5), schedule.start, 0.5 * (schedule.start + schedule.end)
    expected = dense(gaussian).flow_map(schedule, s, t, x.flatten(1)).view_as(x)
    torch.testing.assert_close(gaussian.flow(schedule, s, t, x), expected, rtol=1e-10, atol=1e-10)
    expected = dense(gaussian).denoise(schedule, x.flatten(1), t).view_as(x)
    torch.testing.assert_close(gaussian.denoise(schedule, x, t), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_it_solves_the_flow(gaussian, schedule):
    """Against 200 rows of UniPC of order 4, within 1e-7 of the size of x."""
    x, s = normals(8) * schedule.sigma(schedule.start), schedule.start
    t = schedule.time(0.5)
    model = mixture(dense(gaussian), schedule, EVENT)
    times = time_grid("log-snr", schedule, 200, s, t)
    solver = Exponential(order=4, corrects=4, rule="exact", short=0)
    fine = rollout(model.sde(), solver, Particles.at(x), times, noise=Noise(0), save="last").final.x
    assert (gaussian.flow(schedule, s, t, x) - fine).abs().max() < 1e-7


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_two_jumps_are_one_and_there_is_a_way_back(gaussian, schedule):
    x, (s, a, b) = normals(5), (schedule.start, schedule.time(-0.7), schedule.time(0.8))
    once, twice = gaussian.flow(schedule, s, b, x), gaussian.flow(schedule, a, b, gaussian.flow(schedule, s, a, x))
    torch.testing.assert_close(once, twice, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gaussian.flow(schedule, b, s, once), x, rtol=1e-11, atol=1e-11)


def test_it_ends_at_a_draw_of_the_gaussian(gaussian):
    """To sigma = 0 from N(alpha m, c) the map is affine: offset m, matrix M with M C_s M^T = S, to 1e-12."""
    s, schedule, d = 1.0, VP(), 6
    a, S = schedule.alpha(s), dense(gaussian).covs[0]
    basis = torch.cat([torch.zeros(1, d, dtype=F64), torch.eye(d, dtype=F64)]).view(-1, *EVENT)
    y = gaussian.flow(schedule, s, 0.0, basis + a * gaussian.m).flatten(1)
    M = (y[1:] - y[0]).T
    torch.testing.assert_close(y[0], gaussian.m.flatten(), rtol=0, atol=1e-12)
    C = a * a * S + schedule.sigma(s) ** 2 * torch.eye(d, dtype=F64)
    torch.testing.assert_close(M @ C @ M.T, S, rtol=0, atol=1e-12)


def test_from_much_noise_it_is_ddims_first_step_to_the_mean():
    """rho_s -> inf: x_t = alpha_t m + sigma_t / sigma_s (x_s - alpha_s m) up to L / rho_t^2, here 2e-6 of the noise."""
    g = fit_gaussian(normals(30))
    s, t, x = 1e5, 1e3, 1e5 * normals(4)
    ddim = g.m + t / s * (x - g.m)
    assert (g.flow(EDM(), s, t, x) - ddim).abs().max() < 1e-5 * t


def test_no_way_back_from_no_noise():
    g = fit_gaussian(normals(4))  # rank 3 of 6
    with pytest.raises(ValueError, match="no noise"):
        g.flow(EDM(), 0.0, 1.0, normals(1))
    assert torch.isfinite(g.denoise(EDM(), normals(1), 0.0)).all()


def test_fit_has_the_moments():
    data = normals(40) @ torch.diag(torch.tensor([2.0, 1.0, 0.3], dtype=F64)) + 0.5
    g, flat = fit_gaussian(data), data.flatten(1)
    torch.testing.assert_close(g.m, data.mean(0))
    torch.testing.assert_close(dense(g).covs[0], flat.T.cov())
    shrunk = fit_gaussian(data, shrinkage=0.25)
    expected = 0.75 * flat.T.cov() + 0.25 * flat.T.cov().trace() / 6 * torch.eye(6, dtype=F64)
    torch.testing.assert_close(dense(shrunk).covs[0], expected)


def test_rank_follows_what_is_explained():
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=F64)
    data = (normals(500).flatten(1) * scales).view(-1, *EVENT)
    L = fit_gaussian(data).L
    share = L.cumsum(0) / L.sum()
    assert len(L) == 6
    assert [len(fit_gaussian(data, explained=float(share[k]) - 1e-9).L) for k in range(6)] == [1, 2, 3, 4, 5, 6]
    assert len(fit_gaussian(data, rank=2).L) == 2 and fit_gaussian(data, rank=2).rest == 0.0
    assert len(fit_gaussian(normals(4)).L) == 3  # four pictures span three directions


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": torch.zeros(1, 2)}, "two pictures"),
        ({"data": torch.ones(3, 2)}, "all the same"),
        ({"rank": 0}, "rank is 1"),
        ({"explained": 0.0}, "explained"),
        ({"shrinkage": 1.5}, "shrinkage"),
    ],
)
def test_a_bad_fit_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        fit_gaussian(**{"data": normals(5), **change})


# ---- as a start of sampling ----


@pytest.mark.parametrize("schedule", [VP(), EDM()])
def test_start_and_times(gaussian, schedule):
    x = normals(3) * schedule.sigma(schedule.start)
    rho = math.exp(-schedule.lam(time_grid("karras", schedule, 10)[3]))
    kept, times = teleport(gaussian, schedule, x, rho, 10, "karras", rest="drop")
    assert times == time_grid("karras", schedule, 10)[3:]
    torch.testing.assert_close(kept, gaussian.flow(schedule, schedule.start, times[0], x))
    _, times = teleport(gaussian, schedule, x, rho, 10, "karras")
    assert len(times) == 11 and times[0] == pytest.approx(schedule.time(-math.log(rho))) and times[-1] == schedule.end
    with pytest.raises(ValueError, match="not between"):
        teleport(gaussian, schedule, x, 1e9, 10)
    with pytest.raises(ValueError, match="begins at"):
        teleport(gaussian, schedule, x, rho, 10, time_grid("karras", schedule, 10))
    last = schedule.sigma(schedule.end) / schedule.alpha(schedule.end)
    with pytest.raises(ValueError, match="no interval"):
        teleport(gaussian, schedule, x, 1.01 * last, 10, "karras", rest="drop")


def test_error_of_the_jump_falls_with_the_noise_it_stops_at():
    """Three modes: both ends by 100 rows; RMSE to the flow without a jump falls in rho and is small at rho = 20."""
    data = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.5]], [[0.2, -1.2]]], dtype=F64)
    schedule, model, g = EDM(), ideal(data, EDM(), 0.1), fit_gaussian(data, shrinkage=0.01)
    x = normals(64, event=(1, 2)) * schedule.start

    def end(start, times):
        return sample(model, "unipc-3", len(times) - 1, noise=Noise(0), grid=times, start=start).final.x

    fine = end(x, time_grid("karras", schedule, 100))
    error = [
        float((end(*teleport(g, schedule, x, rho, 100, "karras")) - fine).square().mean().sqrt())
        for rho in (0.5, 2.0, 6.0, 20.0)
    ]
    assert error == sorted(error, reverse=True) and error[0] > 0.1 and error[-1] < 3e-3, error


def test_float32_and_batches(gaussian):
    x = normals(5).float()
    whole = gaussian.flow(VP(), 1.0, 0.3, x)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole[2:3], gaussian.flow(VP(), 1.0, 0.3, x[2:3]))
