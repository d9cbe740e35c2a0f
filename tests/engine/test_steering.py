"""The law that steered particles have: log Z and averages against a grid; their errors; what is observed."""

import math

import pytest
import torch
from tilted import (
    EVERY,
    KINDS,
    SCHEDULE,
    SDE,
    STEPS,
    TIMES,
    closed_form,
    deviation,
    on_a_grid,
    ratios,
    reward,
    run,
)

from molsamp.engine import (
    particles,
    time_grid,
)
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.steering import foreseen, unforeseen

F64 = torch.float64


@pytest.fixture(scope="module")
def truth():
    return on_a_grid(TIMES)


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
