"""The noise that a density sees in its own sampler's paths has mean square 1.00; in anything else it has not.

Physics of card tps-dps section 12.1: the test that catches a force taken one frame too early or too late, and an
integrator whose density is another scheme's.
"""

import math
from functools import cache

import pytest
import torch

from molsamp.engine import (
    EulerMaruyama,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    SemiImplicitEuler,
    Underdamped,
    residuals,
    rollout,
)
from molsamp.engine.closed_forms import Harmonic

LANGEVIN = [SemiImplicitEuler(), LangevinMiddle()]
LANGEVIN_NAMES = ["semi-implicit-euler", "langevin-middle"]
ROWS = 200
TIMES = [0.001 * k for k in range(ROWS + 1)]  # 1 fs
MASSES = torch.tensor([[1.008], [12.011]], dtype=torch.float64)
STIFF = Underdamped(Harmonic(9.0e4), MASSES, 2.494, 1.0)  # periods of 21 and 73 fs, as of bonds with and without H
RELAXING = Overdamped(Harmonic(400.0), 2.494)  # two fifths of the way home in each step


class Neighbouring:
    """The field of `base` as asked one row late (+1) or early (-1): call k answers for the state of frame k + shift."""

    def __init__(self, base, frames, shift):
        self.answers = [base.energy_force(frames[(k + shift) % len(frames)]) for k in range(len(frames))]

    def energy_force(self, x):
        return self.answers.pop(0)


def shifted(dyn, path, shift):
    """`dyn` with its forces taken from the neighbouring frame of `path`."""
    field = Neighbouring(dyn.field, path.x, shift)
    if isinstance(dyn, Overdamped):
        return Overdamped(field, dyn.kT, dyn.mobility)
    return Underdamped(field, dyn.masses, dyn.kT, dyn.friction)


def mean_square(z) -> tuple[float, float]:
    """Mean of z^2 and the standard error it has if z is standard normal, sqrt(2 / count)."""
    return float((z.double() ** 2).mean()), math.sqrt(2.0 / z.numel())


@cache
def harmonic_path(kind):
    """100 particles from rest at the centre: (dynamics, integrator, path)."""
    dyn = RELAXING if kind == "euler-maruyama" else STIFF
    integrator = dict(zip(LANGEVIN_NAMES, LANGEVIN, strict=True)).get(kind, EulerMaruyama())
    x = torch.zeros(100, 2, 3, dtype=torch.float64)
    start = Particles.at(x, None if dyn is RELAXING else torch.zeros_like(x))
    return dyn, integrator, rollout(dyn, integrator, start, TIMES, noise=Noise(41))


every_kind = pytest.mark.parametrize("kind", ["euler-maruyama", *LANGEVIN_NAMES])


@every_kind
def test_mean_square_is_one_in_a_harmonic_well(kind):
    """120 000 numbers: within 4 standard errors (1.6 %), false alarm 6e-5; no mismatch in what carries no noise."""
    dyn, integrator, path = harmonic_path(kind)
    z, gaps = residuals(path, dyn, integrator)
    value, error = mean_square(z)
    assert abs(value - 1.0) < 4.0 * error and float(gaps.max()) < 1e-12


@every_kind
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_force_from_the_neighbouring_frame_is_seen(kind, shift):
    """At least 20 standard errors away from 1."""
    dyn, integrator, path = harmonic_path(kind)
    value, error = mean_square(residuals(path, shifted(dyn, path, shift), integrator)[0])
    assert abs(value - 1.0) > 20.0 * error


@pytest.mark.parametrize("own, other", [(0, 1), (1, 0)], ids=["semi-implicit/middle", "middle/semi-implicit"])
def test_the_density_of_another_scheme_is_seen(own, other):
    """The mean square hardly moves at gamma h = 0.001: what tells is x, which no noise of the other scheme explains."""
    dyn, _, path = harmonic_path(LANGEVIN_NAMES[own])
    gaps = residuals(path, dyn, LANGEVIN[other])[1]
    assert float(gaps.min()) > 1e-6


@cache
def peptide_path(k):
    """16 paths of alanine dipeptide, 1 fs, 300 K, 1/ps, flexible, from the minimised C5: (system, dynamics, path)."""
    system = pytest.importorskip("molsamp.molecular.system").load("alanine-dipeptide")
    dyn = Underdamped(system.energy("torch"), system.masses[:, None], system.kT, 1.0)
    x = system.states["C5"].x.expand(16, -1, -1).contiguous()
    v = dyn.thermal_speed() * Noise(42).child("v").normal(0, torch.arange(16), (22, 3))
    return system, dyn, rollout(dyn, LANGEVIN[k], Particles.at(x, v), TIMES, noise=Noise(42))


def by_element(system, z):
    """Residuals of the heavy atoms and of the hydrogens."""
    light = torch.ones(z.shape[2], dtype=torch.bool)
    light[system.heavy] = False
    return z[:, :, ~light], z[:, :, light]


@pytest.mark.parametrize("k", [0, 1], ids=LANGEVIN_NAMES)
def test_mean_square_is_one_in_alanine_dipeptide(k):
    """1.00 +- 0.02 for heavy atoms and hydrogens: 96 000 and 115 200 numbers, 4.4 standard errors, false alarm 1e-5."""
    system, dyn, path = peptide_path(k)
    z, gaps = residuals(path, dyn, LANGEVIN[k])
    assert float(gaps.max()) < 1e-12
    for part in by_element(system, z):
        assert abs(mean_square(part)[0] - 1.0) < 0.02


@pytest.mark.parametrize("k", [0, 1], ids=LANGEVIN_NAMES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_force_is_seen_in_alanine_dipeptide(k, shift):
    """The card measured 3.35 for heavy atoms and 17.0 for hydrogens, without a cutoff."""
    system, dyn, path = peptide_path(k)
    heavy, light = by_element(system, residuals(path, shifted(dyn, path, shift), LANGEVIN[k])[0])
    assert mean_square(heavy)[0] > 2.0 and mean_square(light)[0] > 8.0


@pytest.mark.parametrize("own, other", [(0, 1), (1, 0)], ids=["semi-implicit/middle", "middle/semi-implicit"])
def test_the_density_of_another_scheme_is_seen_in_alanine_dipeptide(own, other):
    """Every step of every path is off by more than 1e-6 nm, a million times the rounding of the right pair."""
    _, dyn, path = peptide_path(own)
    assert float(residuals(path, dyn, LANGEVIN[other])[1].min()) > 1e-6
