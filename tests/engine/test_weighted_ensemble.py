"""Weighted ensemble on the double well against the exact discrete chain: rates, committor, weights, intervals.

All figures are those of Euler-Maruyama at dt = 1e-3 seen at its looks, so nothing but chance separates the two.
"""

import math

import pytest
import torch
from scipy import stats
from wells import chain, look, motion, scheme, source, start

from molsamp.engine import Controlled, Noise, Overdamped
from molsamp.engine.ensembles import Ensemble, Motion
from molsamp.engine.estimates import inverse
from molsamp.engine.exact_rates import DoubleWell
from molsamp.engine.integrators import EulerMaruyama
from molsamp.engine.weighted_ensemble import History, Scheme, brute_rate, committor, rate, reactive_flux

SETTLED, WELLS, SLOW = 100, (2, 5, 10), pytest.mark.slow


def deviates(e, exact):
    """ln(estimate / exact) in its own standard errors, by the Student interval of 8 replicas."""
    half = 0.5 * math.log(e.interval[1] / e.interval[0])
    return math.log(e.value / exact) / (half / stats.t.ppf(0.975, e.n - 1))


def error(e):
    """Standard error of the logarithm."""
    return 0.5 * math.log(e.interval[1] / e.interval[0]) / stats.t.ppf(0.975, e.n - 1)


@pytest.mark.parametrize("b", [5, 10, pytest.param(2, marks=SLOW)])
def test_steady_state(b):
    """Mean first-passage time by the flux into B: error <= 5 %, within 4 of them (t with 7: false alarm 5e-3 each)."""
    e, h = scheme().run(motion(b, seed=11), start(8, 20), 350)
    found = inverse(rate(h.part(SETTLED)))
    exact = chain(b).mfpt(-1.0)
    print(f"b = {b}: {found}, exact {exact:.5g}, error {error(found):.3f}")
    assert abs(deviates(found, exact)) < 4.0 and error(found) <= 0.05
    assert float(e.weight.sum()) == pytest.approx(8.0, abs=1e-12)
    assert h.part(SETTLED).lineages > 8


@pytest.mark.parametrize(
    ("b", "target", "most"), [(5, 8, 0.12), *(pytest.param(b, 20, 0.05, marks=SLOW) for b in WELLS)]
)
def test_equilibrium(b, target, most):
    """Both rates, the reactive flux and the committor of five bins: error of rates <= `most`, all within 4 errors.

    Where a bin is narrow its committor is that of the exact law of its weight.
    """
    _, h = scheme(recycle=False, target=target).run(
        motion(b, seed=12), start(8, 40, both=True), 450 if target > 8 else 250
    )
    h, exact = h.part(SETTLED), chain(b)
    k, from_b = exact.reactive()
    both = [rate(h), rate(h, 1)]
    print(f"b = {b}: {both[0]}, {both[1]}, exact {k:.5g}, errors {[error(e) for e in both]}")
    assert all(abs(deviates(e, k)) < 4.0 and error(e) <= most for e in both)
    assert abs(deviates(reactive_flux(h), 0.5 * k)) < 4.0
    edges, known, pi = torch.linspace(-1, 1, 19).tolist(), committor(h), exact.stationary()
    for i in (4, 7, 9, 11, 14):
        inside = (exact.x >= edges[i - 1]) & (exact.x < edges[i])
        q = float((pi * from_b)[inside].sum() / pi[inside].sum())
        logit = [math.log(p / (1 - p)) for p in (known[i].value, q, *known[i].interval)]
        half = 0.5 * (logit[3] - logit[2]) / stats.t.ppf(0.975, 7)
        print(f"  bin {i}: {known[i]}, exact {q:.4g}")
        assert abs(logit[0] - logit[1]) < 4.0 * half + 0.03  # nodes do not end where bins do


def test_rare_looks():
    """Seen every tenth step, it is the chain of every tenth step: 36.35 at b = 5, against 36.31 of every step."""
    _, h = scheme(looks=2).run(motion(5, seed=13, every=10), start(8, 20), 120)
    assert abs(deviates(inverse(rate(h.part(40))), chain(5, every=10).mfpt(-1.0))) < 4.0


def test_long_segments_count_time_until_arrival_alone():
    """b = 1, segments of one time unit where the passage takes 3: time after arrival would count for a tenth."""
    _, h = scheme(looks=50, bins=8).run(motion(1, seed=14, every=20), start(8, 60), 14)
    found, exact = inverse(rate(h.part(2))), chain(1, every=20).mfpt(-1.0)
    assert abs(deviates(found, exact)) < 4.0 and error(found) < 0.05


def test_brute_force_is_the_same_without_splitting():
    """b = 2: 800 walkers, the exact interval of arrivals; the true rate within twice it."""
    brute = Scheme(50, scheme().edges, None, source)
    _, h = brute.run(motion(2, seed=15), start(4, 200), 80)
    found, exact = brute_rate(h.part(20), 200), 1.0 / chain(2).mfpt(-1.0)
    assert found.n > 200 and abs(math.log(found.value / exact)) < math.log(found.interval[1] / found.interval[0])
    assert float(h.time.sum()) == pytest.approx(4 * 4.0, rel=0.02)  # a replica's weight is 1


def test_a_control_leaves_the_rate_alone():
    """Pushed uphill by half a noise unit, every walker pays by its weight: the mean weight stays 1, the rate true."""
    pushed = Controlled(Overdamped(DoubleWell(3), 1.0), lambda t, x, v: 0.03 * (x < 0).to(x))
    m = Motion(pushed, EulerMaruyama(), 1e-3, 1, look, Noise(16))
    e, h = scheme(target=20).run(m, start(8, 40), 220)
    per_replica = torch.bincount(e.replica, e.weight)
    assert abs(float(per_replica.mean()) - 1.0) < 4.0 * float(per_replica.std()) / 8**0.5
    found = inverse(rate(h.part(SETTLED)))
    assert abs(deviates(found, chain(3).mfpt(-1.0))) < 4.0


def test_what_diverges_loses_its_weight_and_is_counted():
    class Cliff(DoubleWell):
        def energy_force(self, x):
            E, F = super().energy_force(x)
            return E, torch.where(x < -1.4, torch.nan, F)

    m = Motion(Overdamped(Cliff(1.0), 1.0), EulerMaruyama(), 1e-3, 1, look, Noise(17))
    e, h = scheme().run(m, start(4, 20), 20)
    assert 0.0 < float(h.lost.sum()) < 4.0
    assert float(h.lost.sum() + e.weight.sum()) == pytest.approx(4.0, abs=1e-12)


def test_a_run_cut_in_two_is_the_same_bytes():
    s, m = scheme(), motion(5, seed=18)
    whole, h = s.run(m, start(4, 20), 20)
    half, _ = s.run(m, start(4, 20), 10)
    e = Ensemble.from_tensors(half.to_tensors())
    for k in range(10, 20):
        e, last, _ = s.advance(m, e, k, 4)
    assert all(torch.equal(b, e.to_tensors()[name]) for name, b in whole.to_tensors().items())
    assert torch.equal(History.from_tensors(h.to_tensors()).hits[-1:], last.hits)


def test_a_history_without_arrivals_says_that_it_knows_nothing():
    _, h = scheme().run(motion(10, seed=19), start(4, 20), 2)
    assert rate(h).value == 0.0 and rate(h).interval == (0.0, math.inf)
    assert all(q.interval == (0.0, 1.0) for q in committor(h))


@pytest.mark.slow
@pytest.mark.parametrize("recycle", [True, False])
def test_intervals_cover(recycle):
    """400 runs of 8 replicas each at b = 3, in one batch: binomial test at 1 %, not above 99.5 %."""
    runs, R = 400, 8
    s = scheme(recycle, bins=8, target=5)
    _, h = s.run(motion(3, seed=21, every=2), start(runs * R, 12, both=not recycle), 140)
    h, exact = h.part(50), chain(3, every=2)
    k = 1.0 / exact.mfpt(-1.0) if recycle else exact.reactive()[0]
    hit = 0
    for i in range(runs):
        own = slice(i * R, (i + 1) * R)
        part = History(h.hits[:, own], h.time[:, own], h.occupancy[:, own], h.lost, h.number, h.roots)
        low, high = rate(part).interval
        hit += low <= k <= high
    print(f"coverage {hit / runs:.3f}; pooled {rate(h)}, exact {k:.5g}")
    assert stats.binomtest(hit, runs, 0.95, alternative="less").pvalue > 0.01 and hit < 0.995 * runs
