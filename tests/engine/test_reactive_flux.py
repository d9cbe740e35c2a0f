"""Rates from the top of the barrier: shots both ways against walkers that cross by themselves, and whatever surface."""

import math

import pytest
import torch
from wells import look, motion

from molsamp.engine import LangevinMiddle, Noise, Particles, Underdamped
from molsamp.engine.ensembles import Ensemble, Motion, Sight
from molsamp.engine.exact_rates import DoubleWell
from molsamp.engine.reactive_flux import shoot
from molsamp.engine.weighted_ensemble import Scheme, brute_rate

HEIGHT, DT, FRICTION = 3.0, 0.05, 0.5


def moving(seed):
    dyn = Underdamped(DoubleWell(HEIGHT), torch.ones(1, dtype=torch.float64), 1.0, FRICTION)
    return Motion(dyn, LangevinMiddle(), DT, 1, look, Noise(seed))


def density(s):
    """exp(-U(s)) / Z."""
    x = torch.linspace(-3.0, 3.0, 6001, dtype=torch.float64)
    return math.exp(-HEIGHT * (s * s - 1.0) ** 2) / float(torch.trapezoid(torch.exp(-HEIGHT * (x * x - 1) ** 2), x))


def shots(seed, s, n=4000):
    v = Noise(seed).child("v").normal(0, torch.arange(n), (1,))
    return shoot(moving(seed), Particles.at(torch.full((n, 1), s, dtype=torch.float64), v), v[:, 0], 4000)


def rate(found, s):
    """(k, standard error) per time since A, which is half of all by symmetry."""
    f = 2.0 * density(s) * found.flux
    return float(f.mean()), float(f.std() / math.sqrt(len(f)))


def test_as_walkers_that_cross_by_themselves():
    """The same chain by brute force, within 4 standard errors of the difference (false alarm 6e-5), both below 4 %."""
    n = 1000
    ids = torch.arange(n)
    v = Noise(5).child("v").normal(0, ids, (1,))
    colour = ids % 2
    x = torch.where(colour == 0, -1.0, 1.0).double()[:, None]
    e = Ensemble.of(Particles.at(x, v), ids * 0, colour)
    _, h = Scheme(200, torch.tensor([-0.5, 0.5]), None).run(moving(5), e, 12)
    brute = brute_rate(h.part(2), n)
    k, error = rate(shots(6, 0.0), 0.0)
    other = brute.value / math.sqrt(brute.n)
    print(f"shots {k:.5f} +- {error:.5f}, walkers {brute.value:.5f} +- {other:.5f}")
    assert error < 0.04 * k and other < 0.04 * k
    assert abs(k - brute.value) < 4.0 * math.hypot(error, other)


def test_any_surface():
    """The surface changes the error, not the rate: 0 and 0.3 within 4 standard errors (false alarm 6e-5)."""
    (a, da), (b, db) = (rate(shots(seed, s), s) for seed, s in ((7, 0.0), (8, 0.3)))
    assert abs(a - b) < 4.0 * math.hypot(da, db)
    assert density(0.3) > 1.5 * density(0.0)


def test_every_reactive_trajectory_crosses_an_odd_number_of_times():
    found = shots(9, 0.1, 500)
    assert bool((found.crossings[found.reactive] % 2 == 1).all()) and bool((found.crossings > 1).any())
    assert bool((found.crossings[(found.ends[0] == found.ends[1])] % 2 == 0).all())
    assert bool((found.ends >= 0).all())


@pytest.mark.parametrize("speed", [1.0, 1.03])
def test_far_side_of_a_period_is_no_surface(speed):
    """Free turning at a constant speed from 0 to B at 0.9 turns, the other way to A at -0.9: one crossing each.

    The far side is passed between the looks 49 and 50, or 48 and 49, between which a stretch of 16 ends.
    """

    def turned(x):
        s = x[:, 0] - x[:, 0].round()
        return Sight(s, x[:, 0] < -0.9, x[:, 0] > 0.9)

    class Flat:
        def energy_force(self, x):
            return torch.zeros(len(x), dtype=x.dtype), torch.zeros_like(x)

    dyn = Underdamped(Flat(), torch.full((1,), 1e12, dtype=torch.float64), 1.0, 1e-9)
    m = Motion(dyn, LangevinMiddle(), 0.01, 1, turned, Noise(0))
    v = torch.tensor([[speed], [-speed]], dtype=torch.float64)
    found = shoot(m, Particles.at(torch.zeros(2, 1, dtype=torch.float64), v), v[:, 0], 200, period=1.0)
    assert found.ends.T.tolist() == [[0, 1], [1, 0]] and found.crossings.tolist() == [1, 1]
    assert found.flux.tolist() == [0.5 * speed, 0.5 * speed]


def test_what_does_not_arrive_is_told_and_not_counted():
    found = shots(9, 0.0, 50)
    v = Noise(9).child("v").normal(0, torch.arange(50), (1,))
    short = shoot(moving(9), Particles.at(torch.zeros(50, 1, dtype=torch.float64), v), v[:, 0], 16)
    assert bool((short.ends < 0).any()) and not bool(short.flux[(short.ends < 0).any(0)].any())
    assert short.steps < found.steps


def test_needs_velocities():
    with pytest.raises(ValueError, match="not Overdamped"):
        shoot(motion(2, 0), Particles.at(torch.zeros(2, 1, dtype=torch.float64)), torch.ones(2), 10)
