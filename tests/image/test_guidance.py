"""Guidance rules: identities, what each does to the class mean, and which law comes out (none's but the weighted)."""

import math
from itertools import pairwise

import pytest
import torch

from molsamp.engine import EDM, VP, GaussianMixture, Noise, Particles, time_grid
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Chain, Prediction
from molsamp.engine.steering import steer
from molsamp.image.denoiser import Denoiser
from molsamp.image.guidance import APG, CFG, CFGpp, Noted, Threshold, conditioned, guided, radius_of, split
from molsamp.image.ideal import ideal, mixture
from molsamp.image.sampling import sample

F64 = torch.float64
DIM, RADIUS, SPREAD = 64, 4.0, 0.5
MEANS = RADIUS * torch.linalg.qr(Noise(0).normal(0, torch.arange(4), (DIM,)).T).Q.T
CLASSES = GaussianMixture(MEANS, torch.full((4,), SPREAD**2, dtype=F64))
ONE = GaussianMixture(MEANS[:1], torch.full((1,), SPREAD**2, dtype=F64))
SCHEDULE = EDM()
UNCONDITIONAL, CONDITIONAL = mixture(CLASSES, SCHEDULE, (DIM,)), mixture(ONE, SCHEDULE, (DIM,))


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


def prediction(x, aim, t=0.5, alpha=0.8, sigma=0.6):
    return Prediction(x, t, alpha, sigma, aim, aim)


X, D_C, D_U = (draw(5, 3, 8, 8, seed=s) for s in (1, 2, 3))


def against(x, t):
    return D_U


# ---- identities ----


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_apg_with_everything_off_is_cfg(w):
    """eta = 1, no momentum, no cap: to 1e-12."""
    a, b = (rule(prediction(X, D_C), None)[0] for rule in (APG(against, w, eta=1.0), CFG(against, w)))
    torch.testing.assert_close(a.aim, b.aim, rtol=0, atol=1e-12)
    torch.testing.assert_close(b.aim, D_U + w * (D_C - D_U), rtol=0, atol=1e-12)
    assert a.origin is a.aim


@pytest.mark.parametrize("rule", [APG, CFG])
def test_weight_one_is_the_conditional_model(rule):
    """For APG bit for bit, whatever its other settings."""
    options = {"eta": 0.3, "radius": 1.0, "momentum": -0.5} if rule is APG else {}
    aim = rule(against, 1.0, **options)(prediction(X, D_C), None)[0].aim
    torch.testing.assert_close(aim, D_C, rtol=0, atol=0 if rule is APG else 1e-14)


def test_without_eta_nothing_is_added_along_the_prediction():
    added = APG(against, 7.0)(prediction(X, D_C), None)[0].aim - D_C
    cosine = (added * D_C).flatten(1).sum(1) / (added.flatten(1).norm(dim=1) * D_C.flatten(1).norm(dim=1))
    assert float(cosine.abs().max()) < 1e-14
    assert float(added.flatten(1).norm(dim=1).min()) > 1.0


def test_the_cap_is_on_every_picture():
    """|c| = radius where |m| is larger; pictures below it are left alone."""
    D = D_C.clone()
    D[0] = D_U[0] + 1e-3
    aim = APG(against, 2.0, eta=1.0, radius=2.0)(prediction(X, D), None)[0].aim
    torch.testing.assert_close((aim - D)[1:].flatten(1).norm(dim=1), torch.full((4,), 2.0, dtype=F64))
    torch.testing.assert_close(aim[0], 2.0 * D[0] - D_U[0])
    assert radius_of(0.5, (3, 8, 8)) == pytest.approx(0.5 * math.sqrt(192))


def test_momentum_is_a_running_sum_before_the_cap():
    """m_2 = d_2 + b d_1, though d_1 was capped."""
    rule = APG(against, 3.0, eta=1.0, radius=0.1, momentum=-0.5)
    _, state = rule(prediction(X, D_C), None)
    torch.testing.assert_close(state[0], D_C - D_U)
    p, state = rule(prediction(X, 2.0 * D_C), state)
    m = 2.0 * D_C - D_U - 0.5 * (D_C - D_U)
    torch.testing.assert_close(state[0], m)
    expected = 2.0 * D_C + 2.0 * 0.1 * m / m.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(p.aim, expected)


def test_a_prediction_of_zero_has_no_direction():
    zero = torch.zeros_like(D_C)
    torch.testing.assert_close(APG(against, 3.0)(prediction(X, zero), None)[0].aim, -2.0 * D_U)
    par, orth = split(D_C, zero)
    assert torch.equal(orth, D_C) and float(par.abs().max()) == 0.0


def test_molecules_are_split_about_their_centre():
    """Moved as wholes, both predictions alike, what is added is the same; turned, it turns. Without the centre not."""
    D_c, D_u, Q = draw(4, 7, 3, seed=5), draw(4, 7, 3, seed=6), torch.linalg.qr(draw(3, 3, seed=7)).Q
    shift = torch.tensor([3.0, -1.0, 2.0], dtype=F64)

    def added(move, centre):
        c, u = move(D_c), move(D_u)
        return APG(lambda x, t: u, 5.0, centre=centre)(prediction(c, c), None)[0].aim - c

    still = added(lambda x: x, "mass")
    torch.testing.assert_close(added(lambda x: x + shift, "mass"), still, rtol=0, atol=1e-12)
    torch.testing.assert_close(added(lambda x: x @ Q.T, "mass"), still @ Q.T, rtol=0, atol=1e-12)
    moved, plain = added(lambda x: x + shift, 0.0), added(lambda x: x, 0.0)
    assert float((moved - plain).abs().max()) > 0.1


# ---- in rollouts ----


@pytest.fixture(scope="module")
def pictures():
    """A conditional model of 3 classes of 4 x 4 pictures."""
    return ideal(draw(30, 4, 4, seed=8), VP(), 0.3, labels=torch.arange(30) % 3)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc-2", "deis-rho2"])
def test_guides_are_the_denoisers_own_guidance(pictures, solver):
    """CFG and CFG with a threshold on top, in float64 to 1e-9."""
    options = {"steps": 8, "n": 6, "noise": Noise(0), "dtype": F64}
    rule = CFG(pictures, 3.0)
    for guides, model in (
        ((rule,), pictures.guided(1, 3.0)),
        ((rule, Threshold(0.9)), pictures.guided(1, 3.0, threshold=0.9)),
    ):
        mine = sample(conditioned(pictures, 1), guided(solver, *guides), **options).final.x
        torch.testing.assert_close(mine, sample(model, solver, **options).final.x, rtol=0, atol=1e-9)


def test_cfgpp_renoises_along_the_unconditional_direction(pictures):
    """Algorithm 2 by hand: x' = alpha' (D_u + w (D_c - D_u)) + sigma' (x - alpha D_u) / sigma."""
    schedule, w = pictures.schedule, 0.6
    times = time_grid("log-snr", schedule, 6)
    x = start = draw(6, 4, 4, seed=2)
    for s, t in pairwise(times):
        D_u, D_c = pictures(x, s), pictures(x, s, 2)
        eps = (x - schedule.alpha(s) * D_u) / schedule.sigma(s)
        x = schedule.alpha(t) * (D_u + w * (D_c - D_u)) + schedule.sigma(t) * eps
    options = {"noise": Noise(0), "grid": times, "start": start, "dtype": F64}
    found = sample(conditioned(pictures, 2), guided("ddim", CFGpp(pictures, w)), 6, **options).final.x
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)
    free = sample(conditioned(pictures, 2), guided("ddim", CFGpp(pictures, 0.0)), 6, **options).final.x
    torch.testing.assert_close(free, sample(pictures, "ddim", 6, **options).final.x, rtol=0, atol=1e-10)


def test_a_threshold_leaves_a_direction_that_is_not_the_aims():
    p = Chain((CFGpp(against, 0.5), Threshold(0.5)))(prediction(X, D_C), None)[0]
    assert p.origin is D_U and float(p.aim.abs().max()) <= 1.0


def overshoot(rule, n=1024):
    """Mean projection on the class mean over its length, less 1; in 40 steps of Euler's method in sigma."""
    x = sample(CONDITIONAL, guided("ddim", rule), 40, n, noise=Noise(1), grid="karras", dtype=F64).final.x
    return float((x @ MEANS[0]).mean()) / RADIUS**2 - 1.0, x


def test_high_guidance_does_not_overshoot_the_class():
    """w = 20 on four Gaussians in 64 dimensions. CFG overshoots by more than half, APG stays within 2 %, with a cap
    and momentum too (standard error 0.4 %: five of them); so does the norm within 3 %.
    """
    cfg, _ = overshoot(CFG(UNCONDITIONAL, 20.0))
    assert 0.48 < cfg < 0.62, cfg
    for options in ({}, {"radius": 2.5, "momentum": -0.5}):
        apg, x = overshoot(APG(UNCONDITIONAL, 20.0, **options))
        assert abs(apg) < 0.02, apg
        norm = float(x.norm(dim=1).mean()) / math.sqrt(RADIUS**2 + DIM * SPREAD**2)
        assert abs(norm - 1.0) < 0.03, norm
    assert overshoot(APG(UNCONDITIONAL, 20.0, eta=1.0))[0] > 0.48


# ---- the law that comes out ----

LINE = VP()
TWO = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), torch.full((2,), 0.36, dtype=F64))
RIGHT = GaussianMixture(torch.tensor([[1.0]], dtype=F64), torch.full((1,), 0.36, dtype=F64))


def test_only_weights_sample_the_sharpened_law():
    """p(x | c)^w p(x)^(1 - w), w = 4, in one dimension: the mean of CFG, APG and CFG++ (w = 1) is off by more than ten
    standard errors; steering by (w - 1) log p(x | c) / p(x) is within four (alarm 6e-5) and 0.02 of discretisation.
    """
    w, grid = 4.0, time_grid("log-snr", LINE, 100, 1.0, 1e-3)
    x = torch.linspace(-6.0, 8.0, 4001, dtype=F64)[:, None]
    log_p = w * RIGHT.log_density(x) + (1.0 - w) * TWO.log_density(x)
    mean = float(torch.softmax(log_p, 0) @ x[:, 0])
    both, right = mixture(TWO, LINE, (1,)), mixture(RIGHT, LINE, (1,))
    options = {"noise": Noise(3), "grid": grid, "dtype": F64}
    for rule in (CFG(both, w), CFGpp(both, 1.0), APG(both, w)):
        out = sample(right, guided("ddpm", rule), 100, 4000, **options).final.x
        assert abs(float(out.mean()) - mean) > 10.0 * float(out.std()) / 4000**0.5, (rule, float(out.mean()), mean)

    def advantage(law_c, law, y):
        return (w - 1.0) * (law_c.log_density(y) - law.log_density(y))

    start = Particles.at(LINE.sigma(grid[0]) * Noise(4).normal(0, torch.arange(4096), (1,)))
    found = steer(
        right.sde(),
        DDIM(1.0),
        start,
        grid,
        lambda y: advantage(RIGHT, TWO, y),
        noise=Noise(5),
        value=lambda t, p: advantage(RIGHT.marginal(LINE, t), TWO.marginal(LINE, t), p.x),
        every=10,
        groups=32,
    )
    e = found.pooled(found.particles.x[:, 0])
    assert abs(e.value - mean) < 2.0 * (e.interval[1] - e.value) + 0.02, (e, mean)
    assert e.interval[1] - e.value < 0.05


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: APG(against, 2.0, radius=0.0), "radius"),
        (lambda: APG(against, 2.0, momentum=0.5), r"\(-1, 0\]"),
        (lambda: APG(against, 2.0, centre="geometric"), "mass"),
        (lambda: CFGpp(against, 1.5), r"\[0, 1\]"),
        (lambda: Threshold(1.0), r"\(0, 1\)"),
        (lambda: guided("heun", CFG(against, 2.0)), "one prediction a row"),
        (lambda: guided("dc", CFG(against, 2.0)), "one prediction a row"),
        (lambda: guided("euler", CFG(against, 2.0)), "one prediction a row"),
        (lambda: guided("dimm", CFG(against, 2.0)), "unknown"),
        (lambda: conditioned(Denoiser(VP(), lambda x, t, y: x, (2,)), 0), "classes"),
    ],
)
def test_bad_settings_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()


# ---- what guides add ----


def test_what_guides_add_is_noted_and_changes_nothing():
    """CFG's part is |w - 1| rms(D_c - D_u) at every x of the path, that of the guide after it beside it; to 1e-12.

    The path is the same to the last bit; momentum is handed on.
    """
    w, notes = 3.0, ([], [])
    guides = CFG(UNCONDITIONAL, w), APG(UNCONDITIONAL, 1.5, momentum=-0.5)
    noted = guided("ddim", *map(Noted, guides, notes))
    one, two = (
        sample(CONDITIONAL, s, 10, 4, noise=Noise(1), dtype=F64, save="all") for s in (guided("ddim", *guides), noted)
    )
    assert torch.equal(one.x, two.x) and len(notes[0]) == len(notes[1]) == 10
    for x, t, first in zip(two.x, two.times.tolist(), notes[0], strict=False):
        D_c, D_u = CONDITIONAL(x, t), UNCONDITIONAL(x, t)
        torch.testing.assert_close(first, (w - 1.0) * (D_c - D_u).square().mean(1).sqrt(), rtol=0, atol=1e-12)
    x, t = two.x[0], float(two.times[0])
    p = guides[0](Prediction(x, t, 1.0, SCHEDULE.sigma(t), CONDITIONAL(x, t), CONDITIONAL(x, t)), None)[0]
    second = (guides[1](p, None)[0].aim - p.aim).square().mean(1).sqrt()
    torch.testing.assert_close(notes[1][0], second, rtol=0, atol=1e-12)
