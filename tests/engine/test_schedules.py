"""Schedules agree with themselves, and grids are even in what they say."""

import math
from itertools import pairwise

import pytest

from molsamp.engine import EDM, VP, Cosine, Discrete, Flow, MeanReverting, time_grid
from molsamp.engine.schedules import Schedule

ALL = [
    VP(),
    Cosine(),
    Discrete(),
    Discrete("scaled-linear", 8.5e-4, 1.2e-2),
    Flow(),
    EDM(),
    *(MeanReverting(theta) for theta in ("constant", "linear", "cosine")),
]


def times(schedule):
    """Off the kinks of a discrete schedule."""
    a, b = schedule.end, schedule.start
    return [a + (b - a) * u + (0.3 if b > 100 else 0.0) for u in (0.003, 0.1, 0.37, 0.7, 0.993)]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_log_snr_has_an_inverse(schedule):
    assert isinstance(schedule, Schedule)
    for t in times(schedule):
        lam = schedule.lam(t)
        assert math.isclose(lam, math.log(schedule.alpha(t) / schedule.sigma(t)), rel_tol=1e-10, abs_tol=1e-12)
        assert math.isclose(schedule.time(lam), t, rel_tol=1e-8)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_the_forward_process_has_these_marginals(schedule):
    """f = d log alpha/dt and g^2 = d sigma^2/dt - 2 f sigma^2, by central differences."""
    for t in times(schedule):
        h = 1e-5 * t
        f = (math.log(schedule.alpha(t + h)) - math.log(schedule.alpha(t - h))) / (2 * h)
        slope = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
        assert math.isclose(schedule.f(t), f, rel_tol=1e-5, abs_tol=1e-12)
        assert math.isclose(schedule.g2(t), slope - 2 * f * schedule.sigma(t) ** 2, rel_tol=1e-5)


def test_variance_is_preserved():
    for schedule in (VP(), Cosine(), Discrete()):
        assert all(math.isclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0) for t in times(schedule))
    ou = MeanReverting(scale=0.3)
    assert all(math.isclose(0.09 * ou.alpha(t) ** 2 + ou.sigma(t) ** 2, 0.09) for t in times(ou))


def test_discrete_nodes_are_those_of_ddpm():
    """alpha_i^2 = prod (1 - beta); the first and last of the linear schedule of 1000 steps."""
    s = Discrete()
    assert math.isclose(s.alpha(0.0) ** 2, 1 - 1e-4, rel_tol=1e-12)
    logs = sum(math.log1p(-(1e-4 + (2e-2 - 1e-4) * i / 999)) for i in range(1000))
    assert math.isclose(s.alpha(999.0) ** 2, math.exp(logs), rel_tol=1e-12)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=repr)
@pytest.mark.parametrize("kind", ["uniform", "quadratic", "log-snr", "karras"])
def test_grids_are_even_in_their_variable(schedule, kind):
    grid = time_grid(kind, schedule, 9)
    assert (len(grid), grid[0], grid[-1]) == (10, schedule.start, schedule.end)
    place = {
        "uniform": lambda t: t,
        "quadratic": math.sqrt,
        "log-snr": schedule.lam,
        "karras": lambda t: (schedule.sigma(t) / schedule.alpha(t)) ** (1 / 7),
    }[kind]
    steps = [place(b) - place(a) for a, b in pairwise(grid)]
    assert max(steps) - min(steps) < 1e-9 * (abs(place(grid[0])) + abs(place(grid[-1])))


def test_a_grid_to_zero_takes_its_last_step_there():
    assert time_grid("karras", EDM(), 5, end=0.0) == [*time_grid("karras", EDM(), 4), 0.0]
    assert time_grid("log-snr", EDM(), 1, end=0.0) == [80.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("linear", VP(), 4), "allowed are uniform"),
        (("uniform", VP(), 0), "one step"),
        (("uniform", VP(), 3, 0.1, 0.5), "down"),
    ],
)
def test_bad_grids_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        time_grid(*arguments)
