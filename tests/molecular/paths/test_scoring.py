"""Distances between sets of paths, on paths made by hand and on laws with closed forms."""

import copy
import dataclasses
import math

import pytest
import torch
from linear import line_problem
from scipy.stats import binom, ks_2samp, norm

from molsamp.engine import Noise, Particles, Path, Status
from molsamp.engine.estimates import Estimate
from molsamp.molecular import Problem, load
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.scoring import (
    arrival,
    departure,
    divergence_of_hits,
    jensen_shannon,
    kolmogorov_smirnov,
    p_value,
    score,
)

LEFT, UP, DOWN, RIGHT = (-1.118, 0.0), (0.0, 1.0), (0.0, -1.0), (1.118, 0.0)


@pytest.fixture(scope="module")
def problem():
    return Problem.of(load("double-well"), dtype=torch.float64)


def made(problem, x, log_rn=None, **changes):
    """Paths through points x (n, F, *event), a frame each 0.5 ps, with their true energies."""
    x = torch.as_tensor(x, dtype=torch.float64).transpose(0, 1).contiguous()
    log_rn = torch.zeros(x.shape[1]) if log_rn is None else torch.as_tensor(log_rn)
    energy = problem.energy.energy(x.flatten(0, 1)).view(x.shape[:2])
    path = Path(0.5 * torch.arange(len(x)), x, None, None, energy, log_rn.double(), Particles.at(x[-1]), 1)
    return dataclasses.replace(Paths(problem, path, log_rn.double(), "hand"), **changes)


def channels(problem, up, down, **changes):
    """So many paths through each saddle."""
    return made(problem, [[LEFT, UP, RIGHT]] * up + [[LEFT, DOWN, RIGHT]] * down, **changes)


def bridges(problem, seed, n, frames=12):
    """n random bridges from one well to the other."""
    walk = Noise(seed).normal(0, torch.arange(n), (frames, 2)).cumsum(1)
    s = torch.linspace(0, 1, frames, dtype=torch.float64)[None, :, None]
    line = torch.tensor(LEFT) + s * (torch.tensor(RIGHT) - torch.tensor(LEFT))
    return made(problem, line + 0.15 * (walk - walk[:, :1] - s * (walk[:, -1:] - walk[:, :1])))


def test_a_set_is_no_distance_from_itself(problem):
    paths = bridges(problem, 0, 30)
    s = score(paths, paths)
    for name in ("jsd", "ks_peak", "ks_crossing", "ks_hit"):
        assert s.results()[name].value == pytest.approx(0.0, abs=1e-12), name
    assert (s.p_peak, s.p_crossing, s.p_hit) == (1.0, 1.0, 1.0)
    assert s.kl is None and "kl" not in s.results()
    assert s == score(paths, paths)


def binary(p, q):
    """JSD of two coins."""
    return sum(0.5 * a * math.log(2 * a / (a + b)) for x, y in ((p, q), (1 - p, 1 - q)) for a, b in ((x, y), (y, x)))


def test_density_of_two_channels(problem):
    """Three frames a path, of which one is in a channel: a third of the JSD of the two coins; weights count."""
    reference = channels(problem, 5, 5)
    s = score(channels(problem, 8, 2), reference)
    assert s.jsd.value == pytest.approx(binary(0.8, 0.5) / 3, abs=1e-12)
    assert s.jsd.interval[0] <= s.jsd.value <= s.jsd.interval[1]
    assert (s.jsd.n, s.jsd.ess) == (10, 10.0)
    log_rn = [math.log(4.0)] * 8 + [0.0] * 2
    tilted = channels(problem, 8, 2, log_rn=log_rn)
    assert score(tilted, reference, weighted=True).jsd.value == pytest.approx(0.0, abs=1e-12)
    assert score(tilted, reference).jsd.value == pytest.approx(binary(0.8, 0.5) / 3, abs=1e-12)
    assert score(reference, tilted).jsd.value == pytest.approx(0.0, abs=1e-12)  # a reference keeps its weights
    apart = jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    assert float(apart) == pytest.approx(math.log(2.0))


def test_only_hits_count_and_only_to_their_arrival(problem):
    """Frames after the arrival, a miss and a diverged path change nothing."""
    back = [[LEFT, UP, RIGHT, DOWN]] * 10
    paths = made(problem, [[LEFT, DOWN, RIGHT, RIGHT], [LEFT, DOWN, DOWN, LEFT], *back])
    status = paths.path.final.status.clone()
    status[0] = int(Status.DIVERGED)
    final = paths.path.final.evolve(status=status)
    paths = dataclasses.replace(paths, path=dataclasses.replace(paths.path, final=final))
    s = score(paths, made(problem, back))
    assert [s.jsd.value, s.ks_peak.value, s.ks_crossing.value] == pytest.approx([0.0] * 3, abs=1e-12)
    assert s.jsd.n == 10


def test_bins_of_a_periodic_variable_wrap(problem):
    """On a circle of 10, y = -5.03 is y = 4.97; y = -4.97 lies in the next bin."""
    cvs = {name: copy.copy(cv) for name, cv in problem.system.cvs.items()}
    for cv in cvs.values():
        cv.period = (10.0,)
    ring = dataclasses.replace(problem, system=dataclasses.replace(problem.system, cvs=cvs))
    at = {y: made(ring, [[LEFT, (0.0, y), RIGHT]] * 8) for y in (4.97, -5.03, -4.97)}
    assert score(at[4.97], at[-5.03]).jsd.value == pytest.approx(0.0, abs=1e-12)
    assert score(at[4.97], at[-4.97]).jsd.value == pytest.approx(math.log(2.0) / 3, abs=1e-12)
    near = made(ring, [[LEFT, (0.0, 4.92), RIGHT]] * 8)  # bins are 0.1 wide: 4.92 and 4.97 share one
    assert score(at[4.97], near).jsd.value == pytest.approx(0.0, abs=1e-12)


def test_times_of_a_path(problem):
    """It leaves for good after frame 2 and arrives at frame 4: crossing 1 ps, hit 2 ps; never back after arrival."""
    track = [LEFT, UP, LEFT, UP, RIGHT, LEFT, RIGHT]
    slow = made(problem, [track] * 8)
    assert arrival(slow).tolist() == [4] * 8 and departure(slow).tolist() == [2] * 8
    fast = [LEFT, LEFT, LEFT, UP, RIGHT, RIGHT, RIGHT]
    faster = [LEFT, UP, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT]
    s = score(made(problem, [fast] * 2 + [faster] * 6), slow)
    assert (s.ks_crossing.value, s.p_crossing) == (0.0, 1.0)  # all cross in 1 ps
    assert s.ks_hit.value == pytest.approx(0.75)  # but six in eight arrive after 1 ps, not 2


def test_kolmogorov_smirnov_by_hand():
    """F_a steps at 1, 2, 3; F_b by 0.7 at 2 and 0.3 at 4: the gap is largest at 3, and by weight 2 at 1."""
    a, b, w_b = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([4.0, 2.0]), torch.tensor([0.3, 0.7])
    w_a = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    found = kolmogorov_smirnov(a, b, w_a, w_b.expand(2, 2))
    assert found.tolist() == pytest.approx([1 / 3, 1 / 2])
    assert p_value(0.5, 30, 60) == pytest.approx(2 * (math.exp(-10.0) - math.exp(-40.0)), rel=1e-9)


def test_kolmogorov_smirnov_of_equal_weights_is_scipys(problem):
    """Statistic to rounding, ties and all; p-value as its limit, to 15 % at sizes 200 and 300."""
    a, b = Noise(1).normal(0, torch.arange(200), ()), 0.12 + Noise(2).normal(0, torch.arange(300), ())
    a, b = (5 * a).round(), (5 * b).round()
    one = kolmogorov_smirnov(a, b, torch.ones(200).double(), torch.ones(300).double())
    theirs = ks_2samp(a.numpy(), b.numpy(), method="asymp")
    assert float(one) == pytest.approx(theirs.statistic, abs=1e-12)
    assert p_value(float(one), 200, 300) == pytest.approx(theirs.pvalue, rel=0.15)
    paths, reference = bridges(problem, 3, 25), bridges(problem, 4, 40)
    expected = ks_2samp(paths.peak.numpy(), reference.peak.numpy()).statistic
    assert score(paths, reference).ks_peak.value == pytest.approx(expected, abs=1e-12)


def test_a_weight_of_two_is_a_path_twice(problem):
    """Every distance, and not the effective sizes: 3 paths of weights 2, 1, 1 are worth 16/6."""
    reference, few = bridges(problem, 5, 20), bridges(problem, 6, 3)
    heavy = made(problem, few.path.x.transpose(0, 1), [-math.log(2.0), 0.0, 0.0])
    twice = made(problem, few.path.x.transpose(0, 1)[[0, 0, 1, 2]])
    a, b = score(heavy, reference, weighted=True), score(twice, reference)
    for name in ("jsd", "ks_peak", "ks_crossing", "ks_hit"):
        assert a.results()[name].value == pytest.approx(b.results()[name].value, abs=1e-12), name
    assert (a.jsd.ess, b.jsd.ess) == (pytest.approx(16 / 6), 4.0)
    assert a.p_peak == pytest.approx(p_value(a.ks_peak.value, 16 / 6, 20))
    assert score(heavy, reference).jsd.ess == 3.0


def test_two_sets_of_one_law_are_at_the_floor(problem):
    """60 pairs of 40 and 120 bridges: jsd and floor agree to 4 % on average (their ratio scatters by 0.3 %).

    At most 12 jsd lie above the floor's interval (at the 8 % seen in 200 other pairs, by chance 6e-4), and at most 2
    with all of their own interval (at 0.5 %, the bound from none in 600, by chance 3e-3).
    p < 0.05 in at most 10 (3e-4).
    """
    scores = [score(bridges(problem, 2 * i, 40, 6), bridges(problem, 2 * i + 1, 120, 6)) for i in range(60)]
    assert sum(s.jsd.value for s in scores) / sum(s.jsd_floor.value for s in scores) == pytest.approx(1.0, abs=0.04)
    assert sum(s.jsd.value > s.jsd_floor.interval[1] for s in scores) <= 12
    assert sum(s.jsd.interval[0] > s.jsd_floor.interval[1] for s in scores) <= 2
    assert sum(s.p_peak < 0.05 for s in scores) <= 10 and sum(s.p_hit < 0.05 for s in scores) <= 10


def test_two_laws_are_above_it(problem):
    """A coin of 0.8 against one of 0.5, 100 and 400 tosses: intervals apart, and peaks of equal saddles alike."""
    s = score(channels(problem, 80, 20), channels(problem, 200, 200))
    assert s.jsd.interval[0] > s.jsd_floor.interval[1]
    assert s.p_peak == pytest.approx(1.0)


def test_floor_of_a_coin(problem):
    """Dense bins: the chi-square limit, a third of (1/n + 1/m) / 8; draws of chi-square scatter by sqrt(2) of it.

    So the mean over 200 splits by 10 %, to which sizes that are carried on (200 of 200) add; 3 sigma are allowed.
    """
    for n, m in ((50, 200), (100, 400), (200, 200)):
        s = score(channels(problem, n // 2, n // 2), channels(problem, m // 2, m // 2))
        assert s.jsd_floor.value == pytest.approx((1 / n + 1 / m) / 8 / 3, rel=0.3)
    assert math.isnan(score(channels(problem, 50, 50), channels(problem, 20, 20)).jsd_floor.value)


def test_an_effective_number_widens(problem):
    """A reference of 400 paths worth 25: the p-values and the spread are those of 25 independent ones."""
    paths, reference = channels(problem, 80, 20), channels(problem, 200, 200)
    few = dataclasses.replace(reference, exact=True, effective=25.0)
    tight, wide = score(paths, reference), score(paths, few)
    assert wide.jsd.value == tight.jsd.value
    assert wide.jsd_floor.value == pytest.approx((1 / 100 + 1 / 25) / 24, rel=0.3)
    widths = [s.jsd.interval[1] - s.jsd.interval[0] for s in (tight, wide)]
    slope = [0.5 * math.log(p / ((p + q) / 2) * (1 - (p + q) / 2) / (1 - p)) for p, q in ((0.8, 0.5), (0.5, 0.8))]
    for width, m in zip(widths, (400, 25), strict=True):  # the delta method; quantiles of 200 to 25 %
        error = math.hypot(slope[0] * math.sqrt(0.16 / 100), slope[1] * math.sqrt(0.25 / m)) / 3
        assert width == pytest.approx(2 * 1.96 * error, rel=0.25)


SHIFT, EDGE = 1.0, 1.5


def tilted(seed, n):
    """One Euler step in a flat well of P_b, noise N(SHIFT, 1) in place of N(0, 1); a hit is noise above EDGE."""
    problem = line_problem(above=EDGE, steps=1)
    z = SHIFT + Noise(seed).normal(0, torch.arange(n), (1, 1))
    return made(problem, torch.cat([torch.zeros(n, 1, 1), z], 1), SHIFT * z[:, 0, 0] - 0.5 * SHIFT**2)


LOG_P = float(norm.logsf(EDGE))
INSIDE = SHIFT * (SHIFT + norm.pdf(EDGE - SHIFT) / norm.sf(EDGE - SHIFT)) - 0.5 * SHIFT**2
KL = float(INSIDE - norm.logsf(EDGE - SHIFT)) + LOG_P


def test_divergence_of_a_tilted_gaussian():
    """Truncated normals: KL = E[uz - u^2/2 | z > c] - log Q(c - u) + log Q(c); |z| < 4 (false alarm 6e-5)."""
    known = Estimate(LOG_P, (LOG_P, LOG_P), "nats")
    paths = tilted(0, 20000)
    kl = score(paths, tilted(1, 4000), log_p_hit=known).kl
    assert kl == divergence_of_hits(paths, known)
    assert abs(kl.value - KL) < 4 / 1.96 * (kl.interval[1] - kl.value)
    assert kl.interval[1] - kl.value < 0.03 < 0.08 < KL
    wide = divergence_of_hits(paths, Estimate(LOG_P, (LOG_P - 3.0, LOG_P + 3.0), "nats"))
    assert wide.interval[1] - wide.value == pytest.approx(3.0, rel=1e-3)


def test_the_divergence_covers():
    """95 % intervals, 400 runs of 60 paths, log p known to 0.1: 363 to 396 contain the truth (false alarm 1 %)."""
    errors = 0.1 * Noise(3).normal(0, torch.arange(400), ())
    covered = 0
    for i, e in enumerate(errors.tolist()):
        log_p = Estimate(LOG_P + e, (LOG_P + e - 0.196, LOG_P + e + 0.196), "nats")
        low, high = divergence_of_hits(tilted(100 + i, 60), log_p).interval
        covered += low <= KL <= high
    assert binom.ppf(0.005, 400, 0.95) <= covered <= binom.ppf(0.998, 400, 0.95)


def test_a_sampler_that_never_arrives_has_no_distance(problem):
    known = Estimate(-5.0, (-5.1, -4.9), "nats")
    s = score(made(problem, [[LEFT, LEFT, LEFT]] * 3), channels(problem, 5, 5), log_p_hit=known)
    assert all(math.isnan(e.value) for e in s.results().values())
    assert "kl" in s.results()


def test_one_heavy_path_leaves_every_interval_finite(problem):
    """Weights that underflow: half of the bootstrap samples miss the only path that counts."""
    paths = channels(problem, 1, 9, log_rn=[0.0] + [2000.0] * 9)
    s = score(paths, channels(problem, 5, 5), weighted=True)
    assert s.jsd.ess == pytest.approx(1.0)
    assert all(math.isfinite(b) for e in s.results().values() for b in e.interval)


def test_what_cannot_be_compared_is_refused(problem):
    paths, known = channels(problem, 5, 5), Estimate(-5.0, (-5.1, -4.9), "nats")
    nameless = channels(problem, 5, 5, log_rn=[math.nan] * 10)
    with pytest.raises(ValueError, match="reference: 7 hits; 8 or more"):
        score(paths, channels(problem, 4, 3))
    with pytest.raises(ValueError, match=r"\(frames, ps\) are \(4, 1.5\); the paths' are \(3, 1.0\)"):
        score(paths, made(problem, [[LEFT, UP, RIGHT, RIGHT]] * 8))
    with pytest.raises(ValueError, match=r"reference: its \(system, start, end, kT, friction\) is"):
        score(paths, channels(dataclasses.replace(problem, kT=1.0), 5, 5))
    with pytest.raises(ValueError, match="reference: 'hand' is neither exact nor has weights"):
        score(paths, nameless)
    with pytest.raises(ValueError, match="paths: 'hand' is neither exact nor has weights"):
        score(nameless, paths, weighted=True)
    assert score(nameless, paths, known).kl is None
    with pytest.raises(ValueError, match="kl: paths of 'hand' are no independent draws"):
        divergence_of_hits(nameless, known)
    with pytest.raises(ValueError, match="paths: no energies"):
        score(dataclasses.replace(paths, path=dataclasses.replace(paths.path, energy=None)), paths)
