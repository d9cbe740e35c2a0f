"""Resampling schemes, and the evidence of a state-space model by sequential Monte Carlo."""

import math
from typing import get_args

import pytest
import torch

from molsamp.engine import VP, Controlled, EulerMaruyama, Noise, Overdamped, Particles, Status, rollout, time_grid
from molsamp.engine.exponential import DPMSolverPP2M
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.particles import Scheme, resample, smc

F64 = torch.float64
SCHEMES = get_args(Scheme)
ALWAYS = 2.0
WEIGHTS = torch.tensor([0.02, 0.3, 0.0, 0.08, 0.25, 0.05, 0.17, 0.13], dtype=F64)


def population(weights, **blocks):
    n = len(weights)
    return Particles.at(torch.arange(n, dtype=F64)[:, None]).evolve(logw=weights.log(), **blocks)


DRAWS = 400


@pytest.fixture(scope="module")
def offspring():
    """Copies of every particle in independent resamplings by each scheme, (DRAWS, n)."""

    def counts(scheme):
        p, noise = population(WEIGHTS), Noise(0).child(scheme)
        ancestors = (resample(p, noise, k, scheme=scheme, below=ALWAYS)[1] for k in range(DRAWS))
        return torch.stack([torch.bincount(a, minlength=len(WEIGHTS)) for a in ancestors]).double()

    return {scheme: counts(scheme) for scheme in SCHEMES}


# ---- one resampling ----


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_unbiased(offspring, scheme):
    """Mean offspring = n w: |z| < 4.5 for all 8 particles and 4 schemes; false alarm below 3e-4."""
    n_k, expected = offspring[scheme], len(WEIGHTS) * WEIGHTS
    error = (n_k.mean(0) - expected).abs()
    assert (error < 4.5 * n_k.std(0) / DRAWS**0.5 + 1e-12).all(), error


def test_variance_order(offspring):
    """Multinomial offspring have variance n w (1 - w) within 5 standard errors (alarm 5e-6);
    the other schemes have less than 0.6 of it, far outside their sampling error.
    """
    multinomial = float((len(WEIGHTS) * WEIGHTS * (1 - WEIGHTS)).sum())
    total = {scheme: float(n_k.var(0).sum()) for scheme, n_k in offspring.items()}
    assert total["multinomial"] == pytest.approx(multinomial, rel=5 * math.sqrt(2.0 / DRAWS))
    assert max(total["systematic"], total["stratified"], total["residual"]) < 0.6 * multinomial, total
    assert total["systematic"] < total["stratified"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_weights_are_never_drawn(scheme):
    """First, last, inner, diverged, NaN and infinite ones, in 100 resamplings of 40 particles."""
    w = Noise(2).uniform(0, torch.arange(40))
    w[[0, 7, 8, 39]] = 0.0
    p = population(w)
    p.logw[20], p.logw[21], p.status[30] = torch.nan, torch.inf, Status.DIVERGED
    dead = torch.tensor([0, 7, 8, 20, 21, 30, 39])
    for k in range(100):
        q, ancestors = resample(p, Noise(3), k, scheme=scheme, below=ALWAYS)
        assert not torch.isin(ancestors, dead).any()
        assert (q.status == Status.OK).all()


class Extreme(Noise):
    """A stream whose uniforms are all the same: the largest number below 1, or 0."""

    def __init__(self, u):
        super().__init__(0)
        self.u = u

    def child(self, name):
        return self

    def uniform(self, step, ids, shape=(), dtype=F64):
        return torch.full((len(ids),), self.u, dtype=dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("u", [1.0 - 2.0**-53, 0.0])
def test_rounding_never_points_past_the_end(scheme, u):
    """(n - 1 + u) / n rounds to 1 for the largest u; the ends have no weight, the sum of 998 thirds is not exact."""
    w = torch.full((1000,), 1.0 / 3.0, dtype=F64)
    w[0] = w[-1] = 0.0
    ancestors = resample(population(w), Extreme(u), 0, scheme=scheme, below=ALWAYS)[1]
    assert ancestors.min() >= 1 and ancestors.max() <= 998


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual"])
@pytest.mark.parametrize("n", [1, 2, 49, 1000])
def test_equal_weights_change_nothing(scheme, n):
    p = population(torch.full((n,), 0.37, dtype=F64))
    q, ancestors = resample(p, Noise(0), 0, scheme=scheme, below=ALWAYS)
    assert torch.equal(ancestors, torch.arange(n))
    assert torch.equal(q.ids, p.ids) and torch.equal(q.x, p.x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_weight_and_whole_particles_are_carried(scheme):
    p = population(5.0 * WEIGHTS, v=torch.arange(8, dtype=F64)[:, None] + 100.0)
    q, ancestors = resample(p, Noise(0), 0, scheme=scheme, below=ALWAYS)
    assert log_mean_exp(q.logw)[0] == pytest.approx(log_mean_exp(p.logw)[0], abs=1e-14)
    assert float(q.logw.std()) < 1e-14
    assert torch.equal(q.x, p.x[ancestors]) and torch.equal(q.v, q.x + 100.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ids_are_unique_and_never_return(scheme):
    p, gone = population(WEIGHTS), set()
    for k in range(30):
        q, ancestors = resample(p, Noise(0), k, scheme=scheme, below=ALWAYS)
        first = torch.tensor([i for i in range(8) if i == 0 or ancestors[i] != ancestors[i - 1]])
        assert len(set(q.ids.tolist())) == 8
        assert torch.equal(q.ids[first], p.ids[ancestors[first]])
        gone |= set(p.ids.tolist()) - set(q.ids.tolist())
        assert not gone & set(q.ids.tolist())
        p = q.evolve(logw=WEIGHTS.log())


def test_the_largest_id_is_not_given_again_when_it_dies():
    q, _ = resample(population(torch.tensor([1.0, 0.0], dtype=F64)), Noise(0), 0, below=ALWAYS)
    assert q.ids.tolist() == [0, 2]


def test_only_below_the_threshold():
    """ESS of these weights is 4.86 of 8."""
    p = population(WEIGHTS)
    assert resample(p, Noise(0), 0, below=0.6)[0] is p
    assert resample(p, Noise(0), 0, below=0.62)[0] is not p


def test_an_extinct_population_comes_back_as_it_is():
    p = population(torch.zeros(4, dtype=F64))
    q, ancestors = resample(p, Noise(0), 0)
    assert q is p and torch.equal(ancestors, torch.arange(4))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_resampled_within_themselves(scheme):
    """Of three groups the second is too even and the third has no weight: both stay; the first is what it is alone.
    Ids are unique over all.
    """
    w = torch.cat([WEIGHTS, torch.full((8,), 0.3, dtype=F64), torch.zeros(8, dtype=F64)])
    q, ancestors = resample(population(w), Noise(0), 4, scheme=scheme, below=0.9, groups=3)
    alone, own = resample(population(WEIGHTS), Noise(0), 4, scheme=scheme, below=0.9)
    assert torch.equal(ancestors[:8], own) and torch.equal(ancestors[8:], torch.arange(8, 24))
    assert torch.equal(q.logw[:8], alone.logw) and torch.equal(q.logw[8:], w[8:].log())
    assert len(q.ids.unique()) == 24


def test_groups_draw_different_uniforms():
    """Forty groups of the same weights: their offspring differ, and have the mean n w within 5 standard errors."""
    _, ancestors = resample(population(WEIGHTS.repeat(40)), Noise(0), 4, below=ALWAYS, groups=40)
    n_k = torch.stack([torch.bincount(a % 8, minlength=8) for a in ancestors.view(40, 8)]).double()
    assert torch.equal(ancestors // 8, torch.arange(320) // 8)
    assert len(n_k.unique(dim=0)) > 5
    assert ((n_k.mean(0) - 8 * WEIGHTS).abs() < 5.0 * n_k.std(0) / 40**0.5 + 0.1).all()


def test_groups_are_of_equal_size():
    with pytest.raises(ValueError, match="8 particles do not make 3"):
        resample(population(WEIGHTS), Noise(0), 0, groups=3)


def test_a_potential_of_another_shape_names_its_row():
    start = Particles.at(torch.zeros(4, 1, dtype=F64))
    with pytest.raises(ValueError, match=r"after row 2 has shape \(1,\).*4 particles"):
        smc(DYN, EulerMaruyama(), start, TIMES, lambda k, p: torch.zeros(1), noise=Noise(0), every=2)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(Exception, match="bootstrap"):
        resample(population(WEIGHTS), Noise(0), 0, scheme="bootstrap")


# ---- sequential Monte Carlo ----

RATE, KT, H, ROWS, EVERY, SPREAD = 1.0, 0.5, 0.1, 10, 2, 0.4
TIMES = [k * H for k in range(ROWS + 1)]
OBSERVED = [0.3, -0.5, 0.2, 0.4, 0.1]


class Harmonic:
    def energy_force(self, x):
        return 0.5 * RATE * x.square().sum(1), -RATE * x


DYN = Overdamped(Harmonic(), KT)


def kalman_log_evidence(x0):
    """log p(y_1..y_5) of x' = (1 - rate h) x + sqrt(2 kT h) z from x0, y = x + spread e every second row."""
    m, P, log_z = x0, 0.0, 0.0
    for y in OBSERVED:
        for _ in range(EVERY):
            m, P = (1 - RATE * H) * m, (1 - RATE * H) ** 2 * P + 2 * KT * H
        S = P + SPREAD**2
        log_z += -0.5 * (math.log(2 * math.pi * S) + (y - m) ** 2 / S)
        m, P = m + P / S * (y - m), P * (1 - P / S)
    return log_z


def log_likelihood(k, p):
    y = OBSERVED[k // EVERY - 1]
    return -0.5 * ((p.x[:, 0] - y) / SPREAD) ** 2 - 0.5 * math.log(2 * math.pi * SPREAD**2)


def evidence_ratios(dyn, scheme, runs=60, n=400, below=0.7):
    start = Particles.at(torch.full((n, 1), 0.2, dtype=F64))
    exact = kalman_log_evidence(0.2)
    options = {"every": EVERY, "scheme": scheme, "below": below}
    log_z = [smc(dyn, EulerMaruyama(), start, TIMES, log_likelihood, noise=Noise(s), **options)[1] for s in range(runs)]
    return (torch.tensor(log_z, dtype=F64) - exact).exp()


@pytest.fixture(scope="module")
def systematic():
    return evidence_ratios(DYN, "systematic")


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_evidence_is_unbiased(systematic, scheme):
    """Mean of Z-hat / Z over 60 runs is 1 within 4 standard errors (alarm 1.3e-4 in all), these below 2 %."""
    r = systematic if scheme == "systematic" else evidence_ratios(DYN, scheme)
    error = float(r.std()) / len(r) ** 0.5
    assert error < 0.02
    assert abs(float(r.mean()) - 1.0) < 4.0 * error, (float(r.mean()), error)


def test_evidence_under_a_control_is_the_same():
    """The twisted proposal's weights include its log ratio: 4 standard errors, alarm 6e-5."""
    r = evidence_ratios(Controlled(DYN, lambda t, x, v: 0.3 - 0.2 * x), "systematic")
    error = float(r.std()) / len(r) ** 0.5
    assert abs(float(r.mean()) - 1.0) < 4.0 * error, (float(r.mean()), error)


def test_resampling_pays(systematic):
    """Without it the spread of log Z-hat is larger."""
    assert float(systematic.log().std()) < 0.8 * float(evidence_ratios(DYN, "systematic", below=0.0).log().std())


def test_segments_make_no_difference_to_a_multistep_scheme():
    """With no potential, segments of 3 rows are the one rollout of 7 rows, bit for bit: the history is handed on."""
    schedule = VP()
    sde = GaussianMixture(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([0.1, 0.2])).sde(schedule)
    times = time_grid("log-snr", schedule, 7, 1.0, 0.01)
    start = Particles.at(Noise(1).normal(0, torch.arange(5), (2,)))
    scheme = DPMSolverPP2M(1.0)
    p, log_z = smc(sde, scheme, start, times, lambda k, p: torch.zeros(len(p)), noise=Noise(2), every=3)
    assert torch.equal(p.x, rollout(sde, scheme, start, times, noise=Noise(2)).final.x)
    assert log_z == 0.0


def test_history_follows_its_particle():
    """A deterministic scheme after resampling: every survivor ends where its first ancestor would have ended alone."""
    schedule = VP()
    sde = GaussianMixture(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([0.1, 0.2])).sde(schedule)
    times = time_grid("log-snr", schedule, 6, 1.0, 0.01)
    start = Particles.at(Noise(1).normal(0, torch.arange(16), (2,)))
    alone = rollout(sde, DPMSolverPP2M(), start, times, noise=Noise(2)).final.x

    def potential(k, p):
        return 3.0 * p.x[:, 0]

    p, _ = smc(sde, DPMSolverPP2M(), start, times, potential, noise=Noise(2), every=2, below=ALWAYS)
    matches = (p.x[:, None] == alone).all(-1).any(1)
    assert matches.all() and len(torch.unique(p.x, dim=0)) < 16


def test_a_bad_potential_harms_only_its_particle():
    """NaN: that particle is DIVERGED and weighs nothing; the evidence is that of the others, as if it weighed zero."""
    start = Particles.at(torch.full((4, 1), 0.2, dtype=F64))

    def potential(k, p):
        return torch.where(torch.arange(4) == 2, torch.nan, 0.0)

    p, log_z = smc(DYN, EulerMaruyama(), start, TIMES, potential, noise=Noise(0), every=ROWS)
    assert p.status.tolist() == [0, 0, Status.DIVERGED, 0]
    assert log_z == pytest.approx(math.log(3 / 4))


def test_extinction_is_visible():
    start = Particles.at(torch.zeros(4, 1, dtype=F64))
    _, log_z = smc(DYN, EulerMaruyama(), start, TIMES, lambda k, p: torch.full((4,), -torch.inf), noise=Noise(0))
    assert log_z == -math.inf


def test_a_segment_has_a_row():
    start = Particles.at(torch.zeros(4, 1, dtype=F64))
    with pytest.raises(ValueError, match="every=0"):
        smc(DYN, EulerMaruyama(), start, TIMES, log_likelihood, noise=Noise(0), every=0)
