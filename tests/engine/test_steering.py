"""Steering against exact truth: a mixture on a grid, a linear chain, an enumerable process; errors; genealogies."""

import math
import warnings
from itertools import pairwise, product

import pytest
import torch

from molsamp.engine import (
    VP,
    EulerMaruyama,
    GaussianMixture,
    Ito,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    Underdamped,
    log_prob,
    particles,
    rollout,
    time_grid,
)
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck, oscillator
from molsamp.engine.exponential import DDIM, DPMSolverPP2M
from molsamp.engine.guides import Guided
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.state import Memory
from molsamp.engine.steering import Collapse, Extinct, annealed, foreseen, steer, unforeseen

F64 = torch.float64
KINDS = ("difference", "max", "sum")

# ---- a mixture in one dimension, whose discrete chain is propagated on a grid ----

SCHEDULE, STEPS, EVERY = VP(), 24, 4
LAW = GaussianMixture(
    torch.tensor([[-1.5], [1.5]], dtype=F64), torch.full((2,), 0.25, dtype=F64), torch.tensor([0.7, 0.3])
)
SDE = LAW.sde(SCHEDULE)
TIMES = time_grid("log-snr", SCHEDULE, STEPS, 1.0, 0.02)
LINEAR, SQUARE = 1.0, 0.3


def reward(x):
    return LINEAR * x[:, 0] - 0.5 * SQUARE * x[:, 0] ** 2


def starts(n):
    return Particles.at(SCHEDULE.sigma(TIMES[0]) * Noise(7).normal(0, torch.arange(n), (1,)))


@pytest.fixture(scope="module")
def truth():
    return on_a_grid(TIMES)


def on_a_grid(times):
    """(log Z, mean of the tilted law) of the discrete chain, by the trapezoidal rule on 1801 nodes: to 1e-8."""
    x = torch.linspace(-9.0, 9.0, 1801, dtype=F64)
    dx, s0 = float(x[1] - x[0]), SCHEDULE.sigma(times[0])
    p = torch.exp(-0.5 * (x / s0) ** 2) / (s0 * math.sqrt(2.0 * math.pi))
    for row in DDIM(1.0).rows(SDE, times):
        line = row.program[1]
        centre = line.keep["x"] * x + line.weights[0] * SDE.denoise(x[:, None], row.t0)[:, 0]
        kernel = torch.exp(-0.5 * ((x[:, None] - centre) / line.noise) ** 2) / (line.noise * math.sqrt(2.0 * math.pi))
        p = dx * kernel @ p
    w = p * reward(x[:, None]).exp() * dx
    assert float((p * dx).sum()) == pytest.approx(1.0, abs=1e-9)
    return float(w.sum().log()), float((w * x).sum() / w.sum())


def closed_form():
    """The same of the exact process at times[-1]: components with variance v tilted by a x - c x^2 / 2."""
    now = LAW.marginal(SCHEDULE, TIMES[-1])
    m, v = now.means[:, 0], now.covs[:, 0, 0]
    after = v / (1.0 + SQUARE * v)
    log_z = now.log_w - 0.5 * torch.log1p(SQUARE * v) - 0.5 * m**2 / v + 0.5 * after * (m / v + LINEAR) ** 2
    return float(torch.logsumexp(log_z, 0)), float(torch.softmax(log_z, 0) @ (after * (m / v + LINEAR)))


def run(m, groups, seed=0, integrator=None, **options):
    options = {"value": foreseen(SDE, reward), "every": EVERY, **options}
    return steer(
        SDE,
        DDIM(1.0) if integrator is None else integrator,
        starts(m * groups),
        TIMES,
        reward,
        noise=Noise(seed),
        groups=groups,
        **options,
    )


def ratios(found, log_z):
    """Z-hat / Z of every population."""
    return torch.tensor([e.value for e in found.log_z()], dtype=F64).sub(log_z).exp()


def deviation(r):
    """(mean - 1) in standard errors, and the standard error."""
    error = float(r.std()) / len(r) ** 0.5
    return (float(r.mean()) - 1.0) / error, error


def test_the_chain_tends_to_the_closed_form(truth):
    """Four times the steps leave a quarter of the error in log Z and the mean, within 30 % of it."""
    finer = on_a_grid(time_grid("log-snr", SCHEDULE, 4 * STEPS, 1.0, 0.02))
    for exact, coarse, fine in zip(closed_form(), truth, finer, strict=True):
        assert abs(fine - exact) == pytest.approx(0.25 * abs(coarse - exact), rel=0.3)
        assert abs(fine - exact) < 0.05


def cautious(t, p):
    """A value that potentials which add up or keep the highest do not overshoot with."""
    return 0.3 * reward(SDE.denoise(p.x, t))


CASES = [
    *((m, {"kind": "difference"}) for m in (2, 4, 16)),
    (4, {"kind": "max", "value": cautious}),
    (4, {"kind": "sum", "value": cautious}),
    (4, {"below": 2.0, "scheme": "multinomial"}),
    (4, {"below": 0.9, "scheme": "residual"}),
    (4, {"value": unforeseen}),
]


@pytest.mark.parametrize(
    ("m", "options"), CASES, ids=[f"{m}-{'-'.join(options)}-{i}" for i, (m, options) in enumerate(CASES)]
)
def test_log_z_is_unbiased(truth, m, options):
    """Mean of Z-hat / Z over 3000 / m .. 1500 populations is 1 within 4 standard errors: alarm 6e-5 each, 5e-4 in
    all; the standard error is below 5 %.
    """
    deviates, error = deviation(ratios(run(m, min(1500, 12000 // m), **options), truth[0]))
    assert error < 0.05 and abs(deviates) < 4.0, (deviates, error)


def forgetful(resample):
    """The public rule: where a population is not resampled its weights are dropped all the same."""
    kept = []

    def rule(p, noise, step, *, groups, **options):
        before = kept[-1] if kept else torch.zeros_like(p.logw)
        q, ancestors = resample(p, noise, step, groups=groups, **options)
        moved = (ancestors != torch.arange(len(p))).view(groups, -1).any(1).repeat_interleave(len(p) // groups)
        kept.append(torch.where(moved, q.logw, before))
        return q.evolve(logw=kept[-1]), ancestors

    return rule


def test_dropped_weights_are_seen(truth, monkeypatch):
    """Under the public rule the same test fails by more than ten standard errors, at 4 and at 16 particles."""
    for m in (4, 16):
        monkeypatch.setattr(particles, "resample", forgetful(particles.resample))
        deviates, _ = deviation(ratios(run(m, 1500), truth[0]))
        monkeypatch.undo()
        assert abs(deviates) > 10.0, deviates


@pytest.mark.parametrize("kind", KINDS)
def test_the_tilted_law_is_reached_like_one_over_root_n(truth, kind):
    """RMSE of the weighted mean from 64 to 1024 particles, resampled below 90 %, has slope -0.5 in log-log within 0.13:
    four standard errors of a slope from 128 populations each.
    """
    sizes, errors = (64, 256, 1024), []
    value = foreseen(SDE, reward) if kind == "difference" else cautious
    for m in sizes:
        found = run(m, 128, kind=kind, value=value, below=0.9)
        assert float((found.effective[:-1] < 0.9 * m).double().sum(0).mean()) >= 1.0
        means = torch.tensor([e.value for e in found.average(found.particles.x[:, 0])], dtype=F64)
        errors.append(float((means - truth[1]).square().mean().sqrt()))
    slope = math.log(errors[-1] / errors[0]) / math.log(sizes[-1] / sizes[0])
    assert abs(slope + 0.5) < 0.13, (slope, errors)


def test_the_error_of_log_z():
    """Without resampling V is the delta method's; by default its mean is 0.8 to 1.6 of the variance."""
    found = run(16, 3, value=unforeseen, below=0.0)
    for e, logw in zip(found.log_z(), found.logw, strict=True):
        assert e.interval[1] - e.value == pytest.approx(1.96 * log_mean_exp(logw)[1], rel=1e-4)
    estimates = run(128, 400).log_z()
    log_z = torch.tensor([e.value for e in estimates])
    claimed = torch.tensor([(e.interval[1] - e.value) / 1.96 for e in estimates]).square().mean()
    assert 0.8 < float(claimed / log_z.var()) < 1.6, float(claimed / log_z.var())


def test_intervals_cover(truth):
    """Of 400 populations of 128, at least 369 of the 95 % intervals hold the truth, for log Z and for the mean: fewer
    come with probability below 0.5 % each where 95 % do.
    """
    found = run(128, 400)
    x = found.average(found.particles.x[:, 0])
    for estimates, value in ((found.log_z(), truth[0]), (x, truth[1])):
        inside = sum(e.interval[0] <= value <= e.interval[1] for e in estimates)
        assert inside >= 369, inside


def test_pooled_replicas_agree_with_the_truth(truth):
    """64 populations as replicas: within 4 standard errors of log Z and of the mean (alarm 6e-5 each)."""
    found = run(32, 64)
    for e, value in ((found.pooled_log_z(), truth[0]), (found.pooled(found.particles.x[:, 0]), truth[1])):
        assert e.n == 64 and 0.0 < e.interval[1] - e.value < 0.5
        assert abs(e.value - value) < 2.1 * (e.interval[1] - e.value), e


def test_boundaries_are_seen():
    """The observer hears of every boundary with the weighted particles and the ancestors that are recorded; what it
    raises ends the steering.
    """
    seen = []
    found = run(8, 2, each=lambda row, cloud, ancestors: seen.append((row, len(cloud), ancestors)))
    assert [row for row, *_ in seen] == list(found.rows) and {n for _, n, _ in seen} == {16}
    assert all(torch.equal(a, b) for (*_, a), b in zip(seen, found.ancestors, strict=True))

    def refuse(row, cloud, ancestors):
        raise KeyError(row)

    with pytest.raises(KeyError, match=str(EVERY)):
        run(8, 2, each=refuse)


class Pushing:
    """Aims a little further than the model does, the less the less noise is left."""

    slots = 0

    def __call__(self, p, state):
        return p.towards(p.aim + 0.15 * p.sigma), ()


def test_a_guided_proposal_is_corrected(truth):
    """Steps aimed elsewhere, with the densities' ratio: unbiased within 4 standard errors (alarm 6e-5); without it off
    by more than ten.
    """
    guided = Guided(DDIM(1.0), Pushing())
    deviates, error = deviation(ratios(run(16, 750, integrator=guided, base=DDIM(1.0)), truth[0]))
    assert error < 0.05 and abs(deviates) < 4.0, (deviates, error)
    assert abs(deviation(ratios(run(16, 750, integrator=guided), truth[0]))[0]) > 10.0


def test_the_correction_is_the_ratio_of_densities():
    """sum log_prob under the base less that under the guided rows, of every path, to 1e-9."""
    integrator, start = Guided(DDIM(1.0), Pushing()), starts(8)
    found = steer(
        SDE,
        integrator,
        start,
        TIMES,
        lambda x: 0.0 * x[:, 0],
        noise=Noise(0),
        value=unforeseen,
        every=5,
        below=0.0,
        base=DDIM(1.0),
    )
    path, expected = rollout(SDE, integrator, start, TIMES, noise=Noise(0)), torch.zeros(8, dtype=F64)
    for sign, table in ((1.0, DDIM(1.0).rows(SDE, TIMES)), (-1.0, integrator.rows(SDE, TIMES))):
        memory = Memory()
        for k, row in enumerate(table):
            log_p, memory = log_prob(row, SDE, path.frame(k), path.frame(k + 1), memory)
            expected += sign * log_p
    torch.testing.assert_close(found.particles.x, path.final.x)
    torch.testing.assert_close(found.particles.logw, expected, rtol=0, atol=1e-9)
    assert float(expected.std()) > 0.1


class Nothing:
    slots = 1

    def __call__(self, p, state):
        return p, (p.aim,)


def test_the_bases_history_follows_its_particle():
    """A guide that does nothing, on a multistep scheme, resampled at every boundary: the correction is 0."""
    scheme = DPMSolverPP2M(1.0, short=0)
    options = {"below": 2.0, "every": 3}
    a = run(16, 4, integrator=Guided(scheme, Nothing()), base=scheme, **options)
    b = run(16, 4, integrator=scheme, **options)
    torch.testing.assert_close(a.particles.logw, b.particles.logw, rtol=0, atol=1e-8)
    torch.testing.assert_close(a.particles.x, b.particles.x, rtol=0, atol=1e-9)


def test_a_base_has_the_same_noise():
    with pytest.raises(ValueError, match="row 0"):
        run(4, 1, base=DDIM(0.5))


# ---- walkers: the same function, closed forms of linear chains ----

KT, H, ROWS, TARGET, WIDTH = 0.6, 0.05, 20, 1.2, 0.3


def closeness(x):
    return -0.5 * ((x.flatten(1)[:, 0] - TARGET) / WIDTH) ** 2


@pytest.mark.parametrize("underdamped_one", [False, True])
def test_walkers_are_steered_to_a_value(underdamped_one):
    """Mean of Z-hat / Z is 1 and the mean of x_n is the tilted one, for Langevin walkers with and without velocities:
    each within 4 standard errors of 200 populations of 32 (alarm 2.5e-4 in all).
    """
    groups, m = 200, 32
    n, times = groups * m, [k * H for k in range(ROWS + 1)]
    x = torch.full((n, 1), 0.1, dtype=F64)
    if underdamped_one:
        mass, friction = 2.0, 1.5
        dyn, integrator = Underdamped(Harmonic(1.0), torch.tensor([mass], dtype=F64), KT, friction), LangevinMiddle()
        start = Particles.at(x, (KT / mass) ** 0.5 * Noise(9).normal(0, torch.arange(n), (1,)))
        chain = oscillator(stiffness=1.0, mass=mass, kT=KT, friction=friction, h=H, steps=ROWS, x0=0.1)
    else:
        dyn, integrator, start = Overdamped(Harmonic(1.0), KT), EulerMaruyama(), Particles.at(x)
        chain = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1)
    exact = chain.rewarded(TARGET, WIDTH)
    found = steer(
        dyn,
        integrator,
        start,
        times,
        closeness,
        noise=Noise(3),
        every=4,
        groups=groups,
        value=lambda t, p: 0.3 * closeness(p.x),
    )
    r = ratios(found, exact.log_z)
    assert deviation(r)[1] < 0.05 and abs(deviation(r)[0]) < 4.0, deviation(r)
    e = found.pooled(found.particles.x[:, 0], "nm")
    assert abs(e.value - float(exact.mean[0])) < 2.1 * (e.interval[1] - e.value) < 0.05, (e, exact.mean)


def test_annealing_suits_a_wide_reward():
    """exp(a x_n), log Z = a m + a^2 S / 2, a = 3: within 4 standard errors of Z over 200 populations of 32 (alarm
    6e-5), and the spread is below three quarters of that of weighing at the end.
    """
    chain, a = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1), 3.0
    m, S = (float(q[-1].flatten()[0]) for q in chain.moments())
    spread = []
    for value in (annealed(lambda x: a * x[:, 0], 0.0, chain.times[-1]), unforeseen):
        start = Particles.at(torch.full((6400, 1), 0.1, dtype=F64))
        dyn = Overdamped(Harmonic(1.0), KT)
        options = {"noise": Noise(1), "value": value, "groups": 200, "every": 2}
        found = steer(dyn, EulerMaruyama(), start, chain.times, lambda x: a * x[:, 0], **options)
        r = ratios(found, a * m + 0.5 * a**2 * S)
        assert abs(deviation(r)[0]) < 4.0 and deviation(r)[1] < 0.1, deviation(r)
        spread.append(float(r.std()))
    assert spread[0] < 0.75 * spread[1], spread


def test_foresight_pays():
    """Towards a rare value: with the exact one that may be expected, the spread of log Z-hat is below a third of that
    of weighing at the end.
    """
    chain = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1)
    left = [ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS - k, x0=0.0) for k in range(ROWS)]
    spread = [float(c.moments()[1][-1, 0, 0]) + WIDTH**2 for c in left]

    def close(x):
        return -0.5 * ((x[:, 0] - 3.0) / WIDTH) ** 2

    def exact(t, p):
        k = round(t / H)
        gap = 3.0 - (1.0 - H) ** (ROWS - k) * p.x[:, 0]
        return 0.5 * math.log(WIDTH**2 / spread[k]) - 0.5 * gap**2 / spread[k]

    found = []
    for value in (exact, unforeseen):
        start = Particles.at(torch.full((6400, 1), 0.1, dtype=F64))
        r = steer(
            Overdamped(Harmonic(1.0), KT),
            EulerMaruyama(),
            start,
            chain.times,
            close,
            noise=Noise(1),
            value=value,
            groups=50,
        )
        found.append(torch.tensor([e.value for e in r.log_z()]))
    assert abs(float(found[0].mean()) - chain.rewarded(3.0, WIDTH).log_z) < 4.0 * float(found[0].std()) / 50**0.5
    assert float(found[0].std()) < float(found[1].std()) / 3.0


# ---- an autoregressive process of tokens, enumerated ----

LENGTH = 6
PREFERS = torch.tensor([[0.8, 0.2], [0.35, 0.65]], dtype=F64)  # p(token | token before); the first follows 0


def tokens(x):
    """Tokens from the normals of every position: token j is 1 where Phi(x_j) exceeds p(0 | token before)."""
    u, before, out = torch.special.ndtr(x), torch.zeros(len(x), dtype=torch.int64), []
    for j in range(x.shape[1]):
        before = (u[:, j] > PREFERS[before, 0]).long()
        out.append(before)
    return torch.stack(out, 1)


class Writing:
    """Row k draws the normal of position k and leaves the others: a discrete process on the same rollout."""

    def rows(self, dyn, times):
        eye = torch.eye(LENGTH, dtype=F64)
        return [
            Row(a, b, (Evaluate(a), Line("x", {"x": 1.0 - eye[k]}, (0.0,), eye[k])))
            for k, (a, b) in enumerate(pairwise(times))
        ]


def score(s):
    """log tilt of a sentence: 0.7 a one, and 1.5 more if it ends in two of them."""
    return 0.7 * s.sum(1).double() + 1.5 * (s[:, -1] * s[:, -2]).double()


def test_an_enumerable_process():
    """All 64 sentences: Z within 4 standard errors over 1000 populations of 4, and the frequency of every sentence by
    chi^2 over 128 populations of 128 (below 63 + 5 sqrt(126): alarm 1e-5); of the free process it is far above.
    """
    sentences = torch.tensor(list(product((0, 1), repeat=LENGTH)))
    log_p = torch.zeros(len(sentences), dtype=F64)
    before = torch.zeros(len(sentences), dtype=torch.int64)
    for j in range(LENGTH):
        log_p += PREFERS[before, sentences[:, j]].log()
        before = sentences[:, j]
    log_z = float(torch.logsumexp(log_p + score(sentences), 0))
    exact = (log_p + score(sentences) - log_z).exp()
    still, times = Ito(lambda t, x: 0.0 * x, lambda t: 1.0), [float(k) for k in range(LENGTH + 1)]

    def ahead(t, p):
        return 0.7 * tokens(p.x)[:, : int(t)].sum(1).double()

    def sentence(m, groups):
        start = Particles.at(torch.zeros(m * groups, LENGTH, dtype=F64))
        tilt = lambda x: score(tokens(x))  # noqa: E731
        return steer(still, Writing(), start, times, tilt, noise=Noise(5), value=ahead, groups=groups)

    deviates, error = deviation(ratios(sentence(4, 1000), log_z))
    assert error < 0.05 and abs(deviates) < 4.0, (deviates, error)
    found = sentence(128, 128)
    code = (tokens(found.particles.x) * 2 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    each = torch.zeros(128, 64, dtype=F64).scatter_add(1, code.view(128, 128), found.weights)
    chi2 = float((((each.mean(0) - exact) / (each.std(0) / 128**0.5).clamp(min=1e-12)) ** 2)[exact > 1e-4].sum())
    assert chi2 < 63.0 + 5.0 * math.sqrt(126.0), chi2
    assert float((each.mean(0) - log_p.exp()).abs().max()) > 0.05


# ---- genealogy, groups ----


def test_populations_stay_apart():
    """Ancestors lie within their population, ids are unique, and lines of descent end where they say."""
    found = run(8, 6, below=2.0)
    block = torch.arange(48) // 8
    assert all(torch.equal(parents // 8, block) for parents in found.ancestors)
    assert len(found.particles.ids.unique()) == 48
    line = found.line()
    for b in range(1, len(line)):
        assert torch.equal(found.ancestors[b - 1][line[b]], line[b - 1])
    assert torch.equal(line[-1], torch.arange(48))
    assert found.effective.shape == (len(found.rows), 6) and bool((found.effective <= 8.0 + 1e-9).all())


def test_equal_weights_come_from_the_final_resampling(truth):
    found = run(256, 8)
    p = found.resampled(Noise(1))
    assert float(p.logw.view(8, -1).std(1).max()) < 1e-12
    assert abs(float(p.x.mean()) - truth[1]) < 0.15


# ---- what goes wrong is said ----


def spoiled(value, at=3):
    def bad(x):
        return torch.where(torch.arange(len(x)) == at, value, reward(x))

    return bad


def raising(x):
    if bool((x[:, 0] > 1.5).any()):
        raise ZeroDivisionError("too far")
    return reward(x)


def anywhere(x):
    raise OSError("no file")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (spoiled(torch.nan), r"reward of particle 3, id \d+, is nan after row 24"),
        (spoiled(torch.inf), r"reward of particle 3, id \d+, is inf after row 24"),
        (lambda x: reward(x)[:, None], r"reward gave shape \(16, 1\) after row 24.*\(16,\)"),
        (lambda x: 1.0, "reward gave float after row 24"),
        (raising, r"raised ZeroDivisionError after row 24.*particle \d+, id \d+: too far"),
        (anywhere, "raised OSError after row 24.*particle 0"),
    ],
)
def test_a_bad_reward_is_named_with_particle_and_row(bad, match):
    with pytest.raises(ValueError, match=match):
        steer(SDE, DDIM(1.0), starts(16), TIMES, bad, noise=Noise(0), value=unforeseen, every=EVERY)


def test_a_bad_value_is_named_at_its_row():
    with pytest.raises(ValueError, match="value of particle 3, id 3, is nan after row 4, t = "):
        run(16, 1, value=lambda t, p: spoiled(torch.nan)(p.x))


def test_extinction_is_an_error():
    """Of the second population nothing survives the boundary after row 8."""

    def value(t, p):
        gone = (torch.arange(16) >= 8) & (t == TIMES[8])
        return torch.where(gone, -torch.inf, 0.0)

    with pytest.raises(Extinct, match=r"row 8, t = .*8 particles of population 1.*particle 8, id 8"):
        run(8, 2, value=value)


def test_what_is_forbidden_stays_out():
    """-inf on the way and at the end: a particle that once weighed nothing never comes back, nothing is NaN."""

    def value(t, p):
        return torch.where(p.x[:, 0] > 0.5, -torch.inf, 0.0) if t == TIMES[20] else unforeseen(t, p)

    for kind in ("difference", "sum"):
        found = steer(
            SDE, DDIM(1.0), starts(64), TIMES, reward, noise=Noise(0), value=value, kind=kind, every=EVERY, below=0.0
        )
        assert not bool(found.particles.logw.isnan().any())
        dead = found.logw[0] == -torch.inf
        assert 0 < int(dead.sum()) < 64 and float(found.particles.x[~dead].max()) < 1.2


def test_a_single_ancestor_is_warned_of():
    """With the ESS, in the warning and in what is returned; populations that keep two ancestors are silent."""

    def value(t, p):
        return torch.where(torch.arange(8) == 5, 30.0, 0.0) if t == TIMES[4] else torch.zeros(len(p))

    with pytest.warns(Collapse, match=r"row 4.*all 8 particles of population 0.*particle 5 alone, ESS 1.00;"):
        found = run(8, 1, value=value)
    assert len(found.warnings) >= 1 and int(found.starts().unique()) == 5
    assert found.log_z()[0].interval == (-math.inf, math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Collapse)
        assert run(512, 1).warnings == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "product"}, "difference"),
        ({"groups": 3}, "16 particles do not make 3"),
        ({"integrator": DDIM()}, "copies"),
    ],
)
def test_bad_settings_are_refused(options, match):
    integrator = options.pop("integrator", DDIM(1.0))
    with pytest.raises(Exception, match=match):
        steer(SDE, integrator, starts(16), TIMES, reward, noise=Noise(0), value=unforeseen, **options)
