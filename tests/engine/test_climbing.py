"""A control that climbs, inside a weighted ensemble: weights of mean 1, the exact discrete rate, and less scatter."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from wells import DT, chain, look, motion, scheme, start

from molsamp.engine import Controlled, EulerMaruyama, Noise, Overdamped, Particles, rollout
from molsamp.engine.climbing import Climb
from molsamp.engine.ensembles import Motion
from molsamp.engine.exact_rates import DoubleWell
from molsamp.engine.weighted_ensemble import rate

N, SETTLED = math.sqrt(2.0 * DT), 50
NODES = torch.linspace(-1.0, 1.0, 401, dtype=torch.float64)


def first(x):
    return x[:, 0]


def climb(b, floor, noise=N):
    return Climb(first, NODES, b * (NODES**2 - 1) ** 2, kT=1.0, noise=noise, floor=floor)


@dataclass(frozen=True)
class Falsified(Motion):
    """A motion that tells its log ratio times a factor: 1 is right, 0 drops it."""

    factor: float = 0.0

    def carry(self, p, looks, first):
        path, sight = super().carry(p, looks, first)
        return replace(path, log_ratio=self.factor * path.log_ratio), sight


def controlled(b, seed, floor, known=None, factor=1.0):
    """The double well of b kT whose control believes in a barrier of `known` kT."""
    dyn = Controlled(Overdamped(DoubleWell(b), 1.0), climb(known or b, floor))
    return Falsified(dyn, EulerMaruyama(), DT, 1, look, Noise(seed), factor)


def told(h):
    """(rate, its relative standard error) by the scatter of the replicas."""
    hits, time = (a.sum(0)[:, 0] for a in (h.hits, h.time))
    value, R = float(hits.sum() / time.sum()), len(hits)
    return value, math.sqrt(R / (R - 1) * float((hits - value * time).square().sum())) / float(hits.sum())


def test_the_slope_is_that_of_the_logarithm_of_the_committor():
    """q(-0.5) = 0.025518 at 5 kT by quadrature; without a barrier q = (s + 1) / 2, so u = N / (s + 1 + 2 floor)."""
    assert float(climb(5, 1e-3).q[100]) == pytest.approx(0.025518, abs=2e-5)
    x = torch.tensor([[-1.2], [-1.0], [0.3], [0.999], [1.0]], dtype=torch.float64)
    free = Climb(first, NODES, 0.0 * NODES, kT=1.0, noise=N, floor=0.05)(0.0, x, None)
    expected = torch.where((x >= -1) & (x < 1), N / (x + 1.1), 0.0)
    torch.testing.assert_close(free, expected, rtol=1e-4, atol=0.0)


def test_the_unit_of_F_and_the_gradient_of_the_progress():
    """F in other units with its kT is the same control; a progress of half the slope along two axes halves u twice."""
    x = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)[:, None]
    u = climb(5, 1e-2)(0.0, x, None)
    other = Climb(first, NODES, 12.5 * (NODES**2 - 1) ** 2, kT=2.5, noise=N, floor=1e-2)
    torch.testing.assert_close(other(0.0, x, None), u)
    both = Climb(lambda y: y.mean(1), NODES, 5 * (NODES**2 - 1) ** 2, kT=1.0, noise=N, floor=1e-2)
    torch.testing.assert_close(both(0.0, x.expand(7, 2).contiguous(), None), 0.5 * u.expand(7, 2))


def passages(noise):
    """Weight of the way to 1 of each of 2000 walkers that start at -0.5 at 5 kT, 0 of those that end at -1."""
    dyn = Controlled(Overdamped(DoubleWell(5), 1.0), climb(5, 1e-9, noise))
    p = Particles.at(torch.full((2000, 1), -0.5, dtype=torch.float64))
    times = [k * DT for k in range(1501)]
    path = rollout(dyn, EulerMaruyama(), p, times, noise=Noise(3), save="last", stop=lambda q: q.x[:, 0].abs() >= 1.0)
    assert float((path.final.x.abs() >= 1.0).double().mean()) > 0.98
    return torch.exp(-path.log_ratio) * (path.final.x[:, 0] >= 1.0)


def test_with_the_exact_committor_every_passage_weighs_the_same():
    """Mean of the weights: the exact discrete committor of -0.5, within 3 standard errors (alarm 0.3 %, of below 1 %),
    while free walkers would have an error of 14 %; their scatter is what steps of 1e-3 leave. Seed 3.
    """
    w, exact = passages(N), chain(5).committor_at(-0.5)
    error = float(w.std()) / len(w) ** 0.5
    print(f"{float(w.mean()):.5f} +- {error:.5f}, exact {exact:.5f}")
    assert error < 0.01 * exact and abs(float(w.mean()) - exact) < 3.0 * error


def test_a_shift_of_the_noise_that_is_off_by_a_fifth_costs():
    right, weak = (passages(k * N) for k in (1.0, 0.8))
    assert float(weak.var()) > 4.0 * float(right.var())


@pytest.mark.parametrize(("factor", "held"), [(1.0, True), (0.8, False), (1.2, False), (0.0, False)])
def test_weights_have_mean_one(factor, held):
    """400 replicas after 20 segments at 5 kT: within 3 standard errors of below 0.5 % (alarm 0.3 %, seed 4).

    With a ratio of four or six fifths the mean is off by more than 5 of them, and without it no weight moves at all.
    """
    e, _ = scheme(target=4).run(controlled(5, 4, 0.03, factor=factor), start(400, 4), 20)
    total = torch.bincount(e.replica, e.weight)
    error = float(total.std()) / 20.0
    off = float(total.mean()) - 1.0
    print(f"{factor}: {off:.5f} +- {error:.5f}")
    if factor == 0.0:
        assert error < 1e-12
    else:
        assert error < 0.005 and (abs(off) < 3.0 * error) == held and (held or abs(off) > 5.0 * error)


@pytest.mark.parametrize(("floor", "known"), [(0.01, 5), (0.03, 4), (0.1, 7)])
def test_the_rate_stays_that_of_the_free_chain(floor, known):
    """32 replicas at 5 kT, the control's F right or wrong: within 3.5 errors of below 5 % (t with 31: 0.14 % each).

    The chain's own flux is within 0.1 % of the steady one from segment 50 on (from 30 on it lacks 2 %).
    """
    _, h = scheme(target=8).run(controlled(5, 5, floor, known), start(32, 8), 110)
    value, error = told(h.part(SETTLED))
    exact = 1.0 / chain(5).mfpt(-1.0)
    print(f"floor {floor}, F of {known} kT: {value / exact:.4f} +- {error:.4f}")
    assert error < 0.05 and abs(value / exact - 1.0) < 3.5 * error * value / exact


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_a_ratio_that_is_dropped_or_off_by_a_fifth_is_seen(factor):
    """The same comparison: the rate is off by more than five standard errors."""
    _, h = scheme(target=8).run(controlled(5, 5, 0.03, factor=factor), start(32, 8), 110)
    value, error = told(h.part(SETTLED))
    exact = 1.0 / chain(5).mfpt(-1.0)
    print(f"factor {factor}: {value / exact:.4f} +- {error:.4f}")
    assert abs(math.log(value / exact)) > 5.0 * error


def test_less_scatter_at_ten_kT():
    """Variance of the rate over 24 replicas, segments of 10 steps: less than a quarter of that without control. It is a
    fifteenth or less, so that F with 23 and 23 degrees of freedom stays above 4 but for a chance of 0.1 %; seed 6.
    """
    errors, exact = [], 1.0 / chain(10).mfpt(-1.0)
    for m in (motion(10, 6), controlled(10, 6, 1e-3)):
        _, h = scheme(target=8).run(m, start(24, 8), 120)
        value, error = told(h.part(SETTLED))
        print(f"{value / exact:.3f} +- {error:.3f}")
        errors.append(error)
    assert errors[1] ** 2 < 0.25 * errors[0] ** 2
    assert abs(value / exact - 1.0) < 3.5 * error * value / exact and rate(h.part(SETTLED)).value == pytest.approx(
        value
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": NODES.flip(0)}, "F at 401 of 401 nodes: allowed is one at each of 2 nodes or more, rising"),
        ({"F": NODES[1:]}, "F at 400 of 401 nodes"),
        ({"nodes": NODES[:1], "F": NODES[:1]}, "F at 1 of 1 nodes"),
        ({"floor": 0.0}, "floor=0, noise=0.04"),
        ({"noise": -1.0}, "noise=-1: both must be above 0"),
        ({"floor": math.nan}, "floor=nan"),
    ],
    ids=["falling", "short", "single", "floor", "noise", "nan"],
)
def test_what_is_no_profile_is_refused(change, message):
    given = {"nodes": NODES, "F": NODES, "kT": 1.0, "noise": N, "floor": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        Climb(first, **given)
