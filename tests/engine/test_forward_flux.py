"""Forward flux on the double well against the exact discrete chain, interface by interface."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from wells import LEVELS, chain, ladder, motion, source

from molsamp.engine import Controlled
from molsamp.engine.estimates import inverse, student95
from molsamp.engine.forward_flux import ForwardFlux, Ladder, binomial_error, committor, fluxes, rate

SLOW = pytest.mark.slow


def begin(replicas, walkers=8):
    return source(torch.arange(replicas * walkers), 0)


@pytest.mark.parametrize(
    ("b", "trials", "count"),
    [(2, 250, 60), pytest.param(5, 500, 250, marks=SLOW), pytest.param(10, 800, 1200, marks=SLOW)],
)
def test_flux_successes_rate_and_committor(b, trials, count):
    """24 replicas: mean first-passage time to <= 5 %, all within 4 errors (false alarm 5e-4 each)."""
    l = ladder(b, 24, trials, count).run(motion(b, seed=31), begin(24))
    exact = chain(b, levels=LEVELS[b])
    flux, successes = exact.ladder(-1.0)
    f = fluxes(l)
    known = torch.tensor([flux * math.prod(successes[:i]) for i in range(len(successes) + 1)])
    z = (f.mean(1) - known) / (f.std(1) / math.sqrt(f.shape[1]))
    found = inverse(rate(l))
    error = 0.5 * math.log(found.interval[1] / found.interval[0]) / stats.t.ppf(0.975, 23)
    print(
        f"b = {b}: {found}, exact {exact.mfpt(-1.0):.5g}, error {error:.3f} (binomial {binomial_error(l):.3f}), z {z}"
    )
    assert z.abs().max() < 4.0 and error <= 0.05
    for i, q in enumerate(committor(l)):
        half = 0.5 * math.log(q.interval[1] / q.interval[0]) / stats.t.ppf(0.975, 23)
        assert abs(math.log(q.value / math.prod(successes[i:]))) < 4.0 * half


def test_common_ancestors_widen_the_interval():
    """Trajectories of a replica all alike, 100 of 100 or none by their one ancestor: the error is that of 8 coins.

    Independent trials would claim 4 %; that of the mean of 8 coins, 4 of them heads, is sqrt(1 / 7) = 38 %.
    """
    l = ForwardFlux((0.0,), 100, 8, 1, 1, 1, source).begin(begin(8))
    one = torch.ones(8, dtype=torch.int64)
    coins = 100 * (torch.arange(8) % 2)[None]
    l = replace(l, time=one.double(), crossings=100 * one, trials=100 * one[None], successes=coins)
    low, high = rate(l).interval
    assert 0.5 * math.log(high / low) / student95(7) == pytest.approx(math.sqrt(1 / 7), rel=1e-9)
    assert binomial_error(l) == pytest.approx(math.sqrt(1 / 800 + 0.5 / 400), rel=1e-9)


def test_a_run_cut_in_two_is_the_same_bytes():
    f, m = ladder(2, 4, trials=5, count=3), motion(2, seed=33)
    whole, l = f.run(m, begin(4)), f.begin(begin(4))
    while l.stage <= len(f.levels):
        l = Ladder.from_tensors(f.advance(m, l).to_tensors())
    assert all(torch.equal(b, l.to_tensors()[name]) for name, b in whole.to_tensors().items())


def test_nothing_that_crosses_is_no_rate_and_no_crash():
    f = ForwardFlux((0.9,), 10, 4, looks=2, settle=0, count=1, restart=source)
    l = f.run(motion(10, seed=34), begin(4))
    assert rate(l).value == 0.0 and math.isinf(inverse(rate(l)).value)


@pytest.mark.parametrize("levels", [(), (0.0, -0.1), (0.0, 0.0)])
def test_interfaces_must_rise(levels):
    with pytest.raises(ValueError, match="must rise"):
        ForwardFlux(levels, 10, 4, 2, 0, 1, source).begin(begin(4))


def test_controls_are_refused():
    m, f = motion(2, seed=36), ladder(2, 4, trials=5, count=3)
    m = replace(m, dyn=Controlled(m.dyn, lambda t, x, v: torch.zeros_like(x)))
    with pytest.raises(ValueError, match="not Controlled"):
        f.run(m, begin(4))


@pytest.mark.slow
def test_intervals_cover():
    """400 runs of 8 replicas each at b = 3, in one batch: 95 % intervals, binomial test at 1 %."""
    runs, R = 400, 8
    f = ForwardFlux((-0.8, -0.5, -0.1), 60, runs * R, looks=20, settle=10, count=40, restart=source)
    l = f.run(motion(3, seed=35), begin(runs * R, walkers=4))
    k = 1.0 / chain(3).mfpt(-1.0)
    hit = 0
    for i in range(runs):
        own = slice(i * R, (i + 1) * R)
        part = l.__class__(
            l.stage, l.step, l.born, l.walkers, l.armed, l.caught, l.time[own], l.crossings[own], l.trials[:, own],
            l.successes[:, own], l.roots,
        )  # fmt: skip
        low, high = rate(part).interval
        hit += low <= k <= high
    print(f"coverage {hit / runs:.3f}; pooled {rate(l)}, exact {k:.5g}")
    assert stats.binomtest(hit, runs, 0.95, alternative="less").pvalue > 0.01 and hit < 0.995 * runs
