"""Populations of steered pictures: the law that comes out (closed form), same bytes from any unit, before and after."""

import math

import pytest
import torch

from molsamp.engine import VP, GaussianMixture, Noise, Particles, step
from molsamp.engine.estimates import student95
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Chain, Guided
from molsamp.engine.integrators import Line
from molsamp.image.ideal import mixture
from molsamp.image.populations import Populations
from molsamp.image.sampling import grid_of, sample
from molsamp.image.scans import Problem, operator, simulated
from molsamp.image.steered_analysis import analyse
from molsamp.image.steering import steer
from molsamp.image.subject import Subject
from molsamp.image.wishes import Wishes, brightness, guides, reward
from molsamp.learn.drive import Abandoned, drive

F64 = torch.float64
EVENT, S, STRENGTH = (1, 4, 4), 0.5, 12.0
LAW = GaussianMixture(torch.zeros(1, 16, dtype=F64), torch.full((1,), S**2, dtype=F64))
GAUSSIAN = Subject("gaussian", mixture(LAW, VP(), EVENT))


def law(*guides):
    """Mean and variance of every pixel where ddpm ends in 40 steps, exactly: each row is affine, pixel by pixel."""
    model, integrator = GAUSSIAN.denoiser, Guided(DDIM(1.0), Chain(guides))
    times = grid_of(model.schedule, None, 40)
    ends = torch.stack([torch.zeros(EVENT, dtype=F64), torch.ones(EVENT, dtype=F64)])
    mean, variance = torch.zeros(16, dtype=F64), torch.full((16,), model.schedule.sigma(times[0]) ** 2, dtype=F64)
    for row in integrator.rows(model.sde(), times):
        c, plus = step(row, model.sde(), Particles.at(ends), torch.zeros_like(ends))[0].x.flatten(1)
        noise = next(float(v.noise) for v in row.program if isinstance(v, Line))
        mean, variance = c + (plus - c) * mean, (plus - c) ** 2 * variance + noise**2
    return mean, variance


def test_a_reward_tilts_what_a_measurement_leaves_open():
    """Pictures N(0, S^2 I), 12 of 16 pixels measured: `bayes` ends near the posterior N(m, P), tilted by 12 x the mean
    pixel its mean brightness is 1.m / 16 + 12 1.P / 256. Within 4 standard errors of 20 populations of 64, by
    Student's t (alarm 8e-4); without the reward it is not. m and P are the posterior's within 25 %.
    """
    A = operator("inpaint", EVENT)
    truth = S * Noise(5).normal(0, torch.arange(1), EVENT)
    y = simulated(A, truth, 0.2, Noise(6))
    problem = Problem(A, y, 0.2, truth, mode="bayes", deviation=S)
    (m, P), mask = law(problem.guide(0)), A.mask.flatten()
    exact_P = 1.0 / (1.0 / S**2 + mask / 0.04)
    torch.testing.assert_close(P, exact_P, rtol=0.25, atol=0)
    torch.testing.assert_close(m, exact_P * mask * y.flatten() / 0.04, rtol=0.25, atol=1e-6)
    job = Populations(GAUSSIAN, Wishes((), brightness, STRENGTH, problem), "ddpm", 40, 1280, 64, noise=Noise(1))
    drive(job)
    found = analyse(job).results
    free = float(m.mean())
    exact = free + STRENGTH * float(P.sum()) / 256
    e, before = found["reward"], found["reward_before"]
    sure = 4.0 / student95(19)
    assert abs(e.value - exact) < sure * (e.interval[1] - e.value), (e, exact)
    assert abs(before.value - free) < sure * (before.interval[1] - before.value), (before, free)
    assert exact - free > 1.5 * sure * (e.interval[1] - e.value)


def test_log_z_of_a_reward_alone():
    """12 x the mean of 16 pixels of variance V: log Z = 12^2 V / 32 and the reward's mean 12 V / 16, within 4 standard
    errors of 20 populations of 128 (alarm 2e-3); log Z with a strength 25 % off is not. V is S^2 within 20 %.
    """
    job = Populations(GAUSSIAN, Wishes((), brightness, STRENGTH), "ddpm", 40, 2560, 128, noise=Noise(2))
    drive(job)
    found, V = analyse(job).results, float(law()[1].mean())
    assert abs(V / S**2 - 1.0) < 0.2
    for name, exact in (("log_z", STRENGTH**2 * V / 32), ("reward", STRENGTH * V / 16)):
        e, sure = found[name], 4.0 / student95(19)
        assert abs(e.value - exact) < sure * (e.interval[1] - e.value), (e, exact)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return Subject.of("digits", label=3)


def job_of(subject: Subject, n=12) -> Populations:
    wishes = Wishes(guides("apg:3,threshold:0.99"), reward("digit:3", (1, 8, 8)), 2.0)
    return Populations(subject, wishes, "ddpm", 7, n, 4, every=3, noise=Noise(1))


def test_a_loaded_job_goes_on_as_the_one_that_was_saved(digits):
    """Interrupted at every unit in turn; the states at the end are the same to the last bit."""
    whole = job_of(digits)
    drive(whole)
    state = job_of(digits).state()
    for k in range(whole.total):
        part = job_of(digits)
        part.load(state)
        assert part.k == k
        part.advance()
        state = part.state()
    assert state.keys() == whole.state().keys()
    assert all(torch.equal(state[name], value) for name, value in whole.state().items())


def test_a_population_is_one_call_of_steer(digits):
    """By hand: pictures, weights, ESS and ancestors of the second; its calls are counted, two passes each."""
    job = job_of(digits)
    drive(job)
    noise, model = Noise(1).child("population:1"), digits.denoiser.guided(3, 1.0)
    found = steer(model, job.wishes.reward, "ddpm", 7, 4, noise=noise, strength=2.0, every=3)
    plain = Populations(digits, Wishes((), job.wishes.reward, 2.0), "ddpm", 7, 12, 4, every=3, noise=Noise(1))
    drive(plain)
    assert torch.equal(plain.x[4:8], found.particles.x) and torch.equal(plain.logw[4:8], found.particles.logw)
    all_of = plain.steered()
    assert all_of.rows == found.rows == (3, 6, 7)
    assert torch.equal(all_of.effective[:, 1], found.effective[:, 0])
    assert torch.equal(all_of.starts()[1], found.starts()[0])
    assert all_of.log_z()[1] == found.log_z()[0]
    assert torch.equal(plain.before[4:8], sample(model, "ddpm", 7, 4, noise=noise).final.x)
    assert (job.calls, job.forwards, job.beside) == (3 * (7 + 2), 6 * (7 + 2), 3 * 7)


def test_classes_come_in_turn_population_by_population():
    job = Populations(Subject.of("digits"), Wishes(guides("cfg:2")), "ddim", 3, 9, 3, noise=Noise(0))
    drive(job)
    assert job.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert job.logw.eq(0).all() and not torch.equal(job.x, job.before)
    model = Subject.of("digits", guidance=2.0).denoiser.guided(1, 2.0)
    by_hand = sample(model, "ddim", 3, 3, noise=Noise(0).child("population:1")).final.x
    torch.testing.assert_close(job.x[3:6], by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rewarded", [True, False])
def test_a_unit_is_left_in_the_middle_when_asked(digits, rewarded):
    """At the fourth call of the model; the job is as it was before the unit."""
    wishes = Wishes(guides("cfg:2"), brightness if rewarded else None, 3.0)
    job, calls = Populations(digits, wishes, "ddpm", 9, 8, 4, every=2, noise=Noise(0)), []
    job.asked_to_stop = lambda: calls.append(0) or len(calls) > 3
    before = job.state()
    with pytest.raises(Abandoned):
        job.advance()
    assert len(calls) == 4 and all(torch.equal(job.state()[name], value) for name, value in before.items())


def test_a_single_ancestor_is_told():
    strong = Wishes((), lambda x: 1e3 * brightness(x), 1.0)
    job = Populations(GAUSSIAN, strong, "ddpm", 8, 8, 4, every=2, noise=Noise(0))
    drive(job)
    said = analyse(job).warnings
    assert job.alone() == 2 and any("2 of 2 populations were once resampled" in text for text in said)
    assert any("2 of 2 populations end with the offspring of a single start" in text for text in said)
    assert math.isfinite(analyse(job).results["log_z"].value)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: Populations(GAUSSIAN, Wishes(), "ddim", 5, 10, 4, noise=Noise(0)), "populations of 4"),
        (lambda: Populations(GAUSSIAN, Wishes((), brightness), "ddim", 5, 8, 4, noise=Noise(0)), "draws no noise"),
        (lambda: Populations(GAUSSIAN, Wishes(), "heun", 5, 8, 4, noise=Noise(0)), "one prediction a row"),
        (lambda: Populations(GAUSSIAN, Wishes(), "dimm", 5, 8, 4, noise=Noise(0)), "did you mean 'ddim'"),
        (lambda: guides("agp:4"), "did you mean 'apg'"),
        (lambda: guides("apg"), "allowed is cfg:W"),
        (lambda: guides("apg:inf"), "finite"),
        (lambda: guides("cfg:2,,apg:3"), "'' is unknown"),
        (lambda: guides("cfg++:2"), r"\[0, 1\]"),
        (lambda: guides("threshold:1"), r"\(0, 1\)"),
        (lambda: reward("digit:10", (1, 8, 8)), "0 to 9"),
        (lambda: reward("brightness:3", EVENT), "Allowed: brightness"),
        (lambda: reward("digit:3", EVENT), "no classifier"),
    ],
)
def test_bad_wishes_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()
