"""Two surfaces of one free energy: how far apart they are, and how far apart their errors alone would put them.

What is known of a surface is F(c) and its standard error at every node c, not how the errors go together: a walker that
stayed long in one basin lifts all of another at once. So whatever is said of errors here holds for any correlation.
With p = exp(-F/kT) and q = exp(-G/kT), normalised, m = (p + q)/2, s^2 = e^2 + g^2 the sum of both squared errors, and n
nodes below a free energy of the reference F that both have visited,

    MAE = mean |G - F - median(G - F)|       expected <= sqrt(2/pi) mean s       error <= sqrt((mean e)^2 + (mean g)^2)
    JSD = 1/2 sum p log(p/m) + q log(q/m)             <= sum m s^2 / (8 kT^2)          <= first order + sqrt(2) expected
    KL  = sum p log(p/q), where both were             <= sum p s^2 / (2 kT^2)          <= first order + sqrt(2) expected

`expected` is the mean of a figure between two samples of one free energy, with Gaussian errors, to second order for the
lower two: the mean of a sum asks for no correlations, and a constant that is fitted can only lessen it. `error` bounds
the standard error: the two surfaces are independent of each other, within each a standard deviation of a sum is at most
the sum of the standard deviations, |d| varies no more than d, and of a quadratic form Q >= 0 of Gaussians
var Q <= 2 (mean Q)^2. Where the error of a node is not known it is taken as kT, which is the most that the estimator of
`surface` can say: one block has all there is. A node that one of the two has never visited counts for its share of the
JSD, m log 2, in the value and in what is expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from molsamp.engine.estimates import Z95, Estimate
from molsamp.molecular.free_energy.surface import Surface

Nodes = Float[np.ndarray, "*N"]


@dataclass(frozen=True)
class Distance:
    """How far apart two surfaces are.

    Args:
        value: in `unit`, 0 for the same surface; NaN where nothing can be compared.
        error: its standard error is at most this, whatever the correlations.
        expected: the value between two samples of one free energy is on average at most this.
        unit: "kJ/mol", or "nats".
    """

    value: float
    error: float
    expected: float
    unit: str

    @property
    def verdict(self) -> str:
        """In words, whether it is noise; 2 `error`s beyond `expected` no correlation makes it so."""
        if not math.isfinite(self.value):
            return "nothing to compare"
        if self.value <= self.expected:
            return "within the noise"
        return "undecided" if self.value <= self.expected + 2 * self.error else "beyond the noise"


@dataclass(frozen=True)
class Comparison:
    """What two surfaces say of each other.

    Args:
        mae: mean absolute difference of F after the best constant, kJ/mol.
        jsd: Jensen-Shannon divergence of exp(-F/kT), nats, at most log 2.
        kl: Kullback-Leibler divergence of the reference from the other, on nodes that both have visited, nats.
        floor: of the JSD, between so many independent samples of one distribution, nats.
        nodes: that the MAE is a mean of, and those of the reference below the same free energy.
        left_out: shares of the reference and of the other on nodes that only one of them has visited.
    """

    mae: Distance
    jsd: Distance
    kl: Distance
    floor: float
    nodes: tuple[int, int]
    left_out: tuple[float, float]


def compare(reference: Surface, other: Surface, kT: float, below: float, ess: tuple[float, float]) -> Comparison:
    """Compare two surfaces on one grid.

    Args:
        reference, other: F and its errors.
        kT: kJ/mol, of both.
        below: the MAE is over nodes where the reference is below this, kJ/mol.
        ess: effective samples of each, for the floor of the JSD.
    Raises:
        ValueError: different grids.
    """
    if reference.grid != other.grid:
        raise ValueError(f"surfaces are compared on one grid, got {reference.grid} and {other.grid}")
    p, q = (_shares(s, kT) for s in (reference, other))
    e, g = (np.where(np.isfinite(s.error), s.error, kT) / kT for s in (reference, other))
    both = (p > 0) & (q > 0)
    low = below > reference.F
    return Comparison(
        _mae(apart(reference, other, below)[low & both], kT * e[low & both], kT * g[low & both]),
        _jsd(p, q, e, g, both),
        _kl(p, q, e, g, both),
        jsd_floor(0.5 * (p + q), *ess),
        (int((low & both).sum()), int(low.sum())),
        (float(p[~both].sum()), float(q[~both].sum())),
    )


def apart(reference: Surface, other: Surface, below: float) -> Nodes:
    """G - F at each node, kJ/mol, less its median below a free energy of the reference; NaN where one was never."""
    d = np.full(reference.F.shape, np.nan)
    both = np.isfinite(reference.F) & np.isfinite(other.F)
    d[both] = other.F[both] - reference.F[both]
    low = both & (below > reference.F)
    return d - (np.median(d[low]) if low.any() else 0.0)


def contrast(reference: Estimate, other: Estimate) -> tuple[Estimate, float]:
    """The difference of two independent estimates with its 95 % interval, and its z-score; NaN where that is not known.

    Half the interval is that of both, added in squares; Student's quantiles stay inside, so that |z| is a little low.
    """
    halves = [0.5 * (e.interval[1] - e.interval[0]) for e in (reference, other)]
    value, half = other.value - reference.value, math.hypot(*halves)
    z = Z95 * value / half if 0 < half < math.inf else 0.0 if half == value == 0 else math.nan
    return Estimate(value, (value - half, value + half), reference.unit), z


def profile(surface: Surface, axis: int, kT: float) -> Surface:
    """F of one CV alone, kJ/mol, from that of two; its errors are the most that any correlation allows.

    F(s) = -kT log sum_t exp(-F(s, t)/kT), and the error of a logarithm of a sum is at most the mean error.
    """
    axes = tuple(a for a in range(len(surface.grid.shape)) if a != axis)
    p, known = _shares(surface, kT), np.isfinite(surface.error)
    total = p.sum(axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        F = -kT * np.log(total)
        error = (p * np.where(known, surface.error, kT)).sum(axes) / total
    error = np.where(total > 0, error, math.inf)
    return Surface(surface.grid.alone(axis), F - F.min(), error, Z95 * error)


def jsd_floor(m: Nodes, n: float, k: float) -> float:
    """Mean JSD in nats between n and k independent samples of one distribution m over cells, sum m = 1.

    (1 - m) (1/n + 1/k) / 8 of each cell to first order in 1/n, as long as samples reach it; else at most m log 2.
    """
    if min(n, k) <= 0:
        return math.nan
    return float(np.minimum((1 - m) * (1 / n + 1 / k) / 8, m * math.log(2)).sum())


def _shares(surface: Surface, kT: float) -> Nodes:
    """exp(-F/kT), normalised over the nodes."""
    p = np.exp(-(surface.F - surface.F.min()) / kT)
    return p / p.sum()


def _mae(d: Float[np.ndarray, " n"], e: Float[np.ndarray, " n"], g: Float[np.ndarray, " n"]) -> Distance:
    if not len(d):
        return Distance(math.nan, math.inf, math.nan, "kJ/mol")
    expected = math.sqrt(2 / math.pi) * float(np.hypot(e, g).mean())
    return Distance(float(np.abs(d).mean()), math.hypot(e.mean(), g.mean()), expected, "kJ/mol")


def _jsd(p: Nodes, q: Nodes, e: Nodes, g: Nodes, both: Bool[np.ndarray, "*N"]) -> Distance:
    """Of shares, with their relative errors; d JSD = 1/2 sum p log(p/m) dlog p + q log(q/m) dlog q."""
    m = 0.5 * (p + q)
    parts = [0.5 * a * np.log(np.where(a > 0, a, 1) / np.where(a > 0, m, 1)) for a in (p, q)]
    expected = float((m * np.where(both, np.minimum((e**2 + g**2) / 8, math.log(2)), math.log(2))).sum())
    linear = math.hypot((np.abs(parts[0]) * e).sum(), (np.abs(parts[1]) * g).sum())
    return Distance(max(float(np.sum(parts)), 0.0), linear + math.sqrt(2) * expected, expected, "nats")


def _kl(p: Nodes, q: Nodes, e: Nodes, g: Nodes, both: Bool[np.ndarray, "*N"]) -> Distance:
    """Where both were, normalised there; d KL = sum p (log(p/q) - KL) dlog p - (p - q) dlog q."""
    if not both.any():
        return Distance(math.nan, math.inf, math.nan, "nats")
    p, q, e, g = (a[both] for a in (p, q, e, g))
    p, q = p / p.sum(), q / q.sum()
    log = np.log(p) - np.log(q)
    value, expected = float((p * log).sum()), float((p * (e**2 + g**2)).sum()) / 2
    linear = math.hypot((p * np.abs(log - value) * e).sum(), (np.abs(p - q) * g).sum())
    return Distance(max(value, 0.0), linear + math.sqrt(2) * expected, expected, "nats")
