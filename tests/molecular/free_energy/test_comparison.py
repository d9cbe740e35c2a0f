"""Distances of surfaces: Gaussians in closed form, exact zeros, and what noise alone makes of them, by simulation."""

import dataclasses
import math

import numpy as np
import pytest
from test_surface import LINE as CHAINS
from test_surface import chains

from molsamp import Noise
from molsamp.engine.estimates import Z95, Estimate
from molsamp.molecular.free_energy.comparison import Distance, apart, compare, contrast, jsd_floor, profile
from molsamp.molecular.free_energy.surface import Histogram, Surface
from molsamp.molecular.grids import Grid

kT = 2.0
LINE = Grid(("x",), (None,), ((-12.0, 12.0),), (961,))
RING = Grid(("a", "b"), (2 * math.pi, 2 * math.pi), ((-math.pi, math.pi),) * 2, (40, 40))
MANY = (1e6, 1e6)


def surface(F, error=0.0, grid=LINE) -> Surface:
    F, error = np.broadcast_arrays(np.asarray(F, float), error)
    return Surface(grid, F, error, Z95 * error)


def gaussian(mean=0.0, sigma=1.0) -> Surface:
    return surface(kT * (LINE.nodes(0) - mean) ** 2 / (2 * sigma**2))


def waves(grid=RING) -> np.ndarray:
    a, b = grid.points().T.reshape(2, *grid.shape)
    return kT * (1.5 * np.cos(a) + np.sin(b) + 0.5 * np.cos(a + b))


def test_a_surface_is_no_distance_from_itself():
    c = compare(gaussian(), gaussian(), kT, 25.0, MANY)
    for d in (c.mae, c.jsd, c.kl):
        assert (d.value, d.error, d.expected) == (0, 0, 0) and d.verdict == "within the noise"
    assert c.left_out == (0, 0) and c.nodes[0] == c.nodes[1] == (np.abs(LINE.nodes(0)) < 5 - 1e-9).sum()


def test_a_constant_is_no_difference():
    one, other = gaussian(), gaussian()
    c = compare(one, dataclasses.replace(other, F=other.F + 7.0), kT, 25.0, MANY)
    assert max(c.mae.value, c.jsd.value, c.kl.value) < 1e-12
    assert np.abs(apart(one, surface(other.F + 7.0), 25.0)).max() < 1e-12


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 1.0), (0.0, 1.4), (-0.7, 1.2), (0.3, 0.8)])
def test_kl_of_two_gaussians(mean, sigma):
    """log(s2/s1) + (s1^2 + mu^2)/(2 s2^2) - 1/2, the other way round as well."""
    ahead = compare(gaussian(), gaussian(mean, sigma), kT, 25.0, MANY)
    back = compare(gaussian(mean, sigma), gaussian(), kT, 25.0, MANY)
    assert ahead.kl.value == pytest.approx(math.log(sigma) + (1 + mean**2) / (2 * sigma**2) - 0.5, abs=1e-9)
    assert back.kl.value == pytest.approx(-math.log(sigma) + (sigma**2 + mean**2) / 2 - 0.5, abs=1e-9)
    assert ahead.jsd.value == pytest.approx(back.jsd.value, abs=1e-12)


def test_jsd_of_near_and_far_gaussians():
    """mu^2 / 8 sigma^2 as mu goes to 0, and log 2 far apart."""
    near = compare(gaussian(), gaussian(0.04), kT, 25.0, MANY).jsd.value
    assert near == pytest.approx(0.04**2 / 8, rel=1e-3)
    far = compare(gaussian(-6, 0.3), gaussian(6, 0.3), kT, 25.0, MANY).jsd.value
    assert far == pytest.approx(math.log(2), abs=1e-9)


def test_mae_of_a_tilt():
    """G = F + a x + c: a times the mean |x| over the nodes below 25 kJ/mol, |x| < 5."""
    x = LINE.nodes(0)
    c = compare(gaussian(), surface(gaussian().F + 0.3 * x - 4), kT, 25.0, MANY)
    assert c.mae.value == pytest.approx(0.3 * np.abs(x[np.abs(x) < 5 - 1e-9]).mean(), rel=1e-12)


def test_nodes_of_one_alone_are_left_out_and_named():
    F = gaussian().F
    G = np.where(LINE.nodes(0) > 0, F, np.inf)
    c = compare(surface(F), surface(G, np.where(np.isfinite(G), 0.0, np.inf)), kT, 25.0, MANY)
    half = 0.5 + 0.5 / np.exp(-F / kT).sum()  # x <= 0
    assert c.left_out == (pytest.approx(half), 0) and c.nodes == (199, 399)
    assert c.kl.value == pytest.approx(0, abs=1e-12) and c.mae.value == 0 and c.jsd.value > 0.2
    nothing = compare(surface(np.where(np.arange(961) < 9, 0.0, np.inf)), surface(G), kT, 25.0, MANY)
    assert math.isnan(nothing.mae.value) and nothing.mae.verdict == "nothing to compare"
    assert nothing.jsd.value == pytest.approx(math.log(2)) and math.isnan(nothing.kl.value)


def test_an_error_that_is_not_known_is_kT():
    c = compare(surface(waves(), np.inf, RING), surface(waves(), 0.0, RING), kT, 25.0, MANY)
    assert c.mae.error == pytest.approx(kT) and c.kl.expected == pytest.approx(0.5)
    assert c.jsd.expected == pytest.approx(1 / 8)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_alone_makes_what_is_expected(seed):
    """Independent errors of 0.02 to 0.06 kT on 1600 nodes, 200 pairs: the mean of each figure is `expected`, |z| < 4.

    False alarms: 6e-5 each of six, the fitted constant's 1/1600 and the third order being a tenth of an error. Errors
    of one surface alone, or a constant of 1 instead of sqrt(2/pi), are off by 20 % and more, hundreds of errors.
    """
    rng, F = np.random.default_rng(seed), waves()
    e, g = (kT * (0.02 + 0.04 * rng.random(RING.shape)) for _ in range(2))
    found = []
    for _ in range(200):
        one, other = (surface(F + s * rng.normal(size=F.shape), s, RING) for s in (e, g))
        c = compare(one, other, kT, 100.0, MANY)
        found.append([(d.value, d.expected) for d in (c.mae, c.jsd, c.kl)])
    values, expected = np.moveaxis(np.array(found), 2, 0)
    d = values - expected
    assert (np.abs(d.mean(0)) < 4 * d.std(0) / math.sqrt(len(d))).all()


@pytest.mark.parametrize("tilt", [0.0, 0.15])
@pytest.mark.parametrize("together", [False, True])
def test_no_correlation_scatters_more_than_the_error(tilt, together):
    """Scatter of each figure over 300 pairs against its `error`; errors independent, or those of two halves opposite.

    `expected` bounds the mean where there is no tilt. Seed fixed; a scatter is known to 4 %, so 1.15 times is an alarm
    of 1e-4 at most where the bound is tight, which it is for the MAE of errors that go together on top of a tilt.
    """
    rng, F = np.random.default_rng(3), waves()
    signs = np.where(np.arange(RING.shape[0]) < 20, 1.0, -1.0)[:, None]
    s = np.full(F.shape, 0.08 * kT)
    found = []
    for _ in range(300):
        one, other = (
            surface(F + s * (signs * rng.normal() if together else rng.normal(size=F.shape)), s, RING) for _ in range(2)
        )
        other = surface(other.F + tilt * 6 * signs, s, RING)
        c = compare(one, other, kT, 100.0, MANY)
        found.append([(d.value, d.error, d.expected) for d in (c.mae, c.jsd, c.kl)])
    values, error, expected = np.moveaxis(np.array(found), 2, 0)
    assert (values.std(0) < 1.15 * error.mean(0)).all()
    if tilt and together:
        assert values.std(0)[0] > 0.9 * error.mean(0)[0]
    if not tilt:
        assert (values.mean(0) < expected.mean(0) + 4 * values.std(0) / math.sqrt(300)).all()


def test_samples_of_one_free_energy_are_within_the_noise():
    """80 pairs of 32 AR(1) chains, errors from the chains themselves, correlated from cell to cell: `expected` holds.

    Means over 200 pairs: MAE 0.39 of at most 0.55 kJ/mol (scatter 0.10), JSD 0.0035 of at most 0.0064 (0.0017), above
    the floor of 0.0016 that forgets correlations. Limits are more than 6 errors of the mean away: no false alarm.
    """
    noise, runs, found = Noise(11), 160, []
    samples = [Histogram.empty(CHAINS, kT, 32).add(x[..., None], 0 * x) for x in chains(noise, runs)]
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        c = compare(one.surface(), other.surface(), kT, 12.0, (one.ess, other.ess))
        assert "beyond the noise" not in (c.mae.verdict, c.jsd.verdict, c.kl.verdict)
        found.append([c.mae.value / c.mae.expected, c.jsd.value / c.jsd.expected, c.jsd.value / c.floor])
    mae, jsd, floor = np.mean(found, 0)
    assert 0.5 < mae < 0.9 and 0.35 < jsd < 0.9 and 1.4 < floor < 4


def test_the_verdict():
    assert Distance(1.0, 0.5, 1.1, "nats").verdict == "within the noise"
    assert Distance(2.0, 0.5, 1.1, "nats").verdict == "undecided"
    assert Distance(2.2, 0.5, 1.1, "nats").verdict == "beyond the noise"


@pytest.mark.parametrize("ess", [(4000, 4000), (2000, 16000)])
def test_the_floor_is_what_independent_samples_make(ess):
    """400 pairs of multinomial counts over 100 cells, well visited: |z| < 4 (6e-5), 1 % allowed for second order."""
    rng = np.random.default_rng(5)
    m = np.exp(-waves(Grid(RING.names, RING.period, RING.ranges, (10, 10))) / (4 * kT)).ravel()
    m /= m.sum()
    found = []
    for _ in range(400):
        p, q = (rng.multinomial(n, m) / n for n in ess)
        both = 0.5 * (p + q)
        terms = [a * np.log(np.where(a > 0, a / both, 1)) for a in (p, q)]
        found.append(0.5 * sum(terms).sum())
    floor, mean, scatter = jsd_floor(m, *ess), np.mean(found), np.std(found) / 20
    assert abs(mean - floor) < 4 * scatter + 0.01 * floor
    assert jsd_floor(m, 1, 1) <= math.log(2) and math.isnan(jsd_floor(m, 0, 5))


def test_contrast_of_two_estimates():
    one, other = Estimate(10.0, (9.0, 11.0), "kJ/mol"), Estimate(13.0, (12.25, 13.75), "kJ/mol")
    difference, z = contrast(one, other)
    assert difference.value == 3 and difference.interval == (1.75, 4.25) and z == pytest.approx(Z95 * 3 / 1.25)
    assert contrast(other, one)[1] == -z and contrast(one, one)[1] == 0
    for value in (11.0, math.nan):
        assert math.isnan(contrast(one, Estimate(value, (-math.inf, math.inf)))[1])


def test_profiles_of_a_sum_are_its_parts():
    """F(a) + F(b): each part exactly, and an error that is the same everywhere stays."""
    a, b = RING.points().T.reshape(2, *RING.shape)
    both = surface(3 * np.cos(a) + 2 * np.sin(b), 0.1, RING)
    for axis, part in enumerate((3 * np.cos(RING.nodes(0)) + 3, 2 * np.sin(RING.nodes(1)) + 2)):
        one = profile(both, axis, kT)
        assert np.allclose(one.F, part) and np.allclose(one.error, 0.1) and one.grid.names == (RING.names[axis],)
    line = profile(gaussian(), 0, kT)
    assert np.allclose(line.F, gaussian().F) and line.grid == LINE


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        compare(gaussian(), surface(waves(), 0.1, RING), kT, 25.0, MANY)
