"""How far the paths of one sampler are from those of an exact one: density of frames, barriers, times, divergence.

Frames of a path are correlated, so every spread here comes from whole paths drawn again. A distance between two finite
samples of one law is positive; it is read against what the reference alone would give (`Score.jsd_floor`), or with
its p-value (Kolmogorov-Smirnov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.estimates import Z95, Estimate, mean
from molsamp.engine.noise import Noise
from molsamp.molecular.paths.paths import Paths

RESAMPLES = 200
BINS = 100
FEWEST = 8
"""Hits that a reference must have, to be split into disjoint parts twice over."""
TINY = 1e-300
"""Least weight, relative to the largest: a resample that misses all the heavy paths still has a sum."""


@dataclass(frozen=True)
class Score:
    """Distances of a sampler's hits from a reference for P_0 given a hit, each with its 95 % interval.

    A distance's interval is its spread over resampled paths, moved onto the value: what another pair of samples of
    these sizes would give. It does not remove the upward bias of a distance between finite samples.

    Args:
        jsd: Jensen-Shannon divergence (nats) of the densities of all frames up to the arrival, in the first two CVs.
        jsd_floor: what two samples of the reference's law would give at these effective sizes, the mean and the
            central 95 % over splits of this one reference. Two samples of one law had `jsd` above that interval in 3 to
            8 % of pairs, and the two intervals apart in none of 600: apart, the difference is real. NaN for a sampler
            worth more than twice the reference, which cannot tell.
        ks_peak, ks_crossing, ks_hit: Kolmogorov-Smirnov statistics of the highest energy up to the cut, of the time
            from the last frame in the start state to the arrival, and of the time of the arrival.
        p_peak, p_crossing, p_hit: their p-values at the effective sizes.
        kl: KL(P_b(. | hit) || P_0(. | hit)) in nats, see `divergence_of_hits`; None where it is not known.
    """

    jsd: Estimate
    jsd_floor: Estimate
    ks_peak: Estimate
    ks_crossing: Estimate
    ks_hit: Estimate
    p_peak: float
    p_crossing: float
    p_hit: float
    kl: Estimate | None = None

    def results(self) -> dict[str, Estimate]:
        """Every estimate under its name; without `kl` where it is not known."""
        names = ("jsd", "jsd_floor", "ks_peak", "ks_crossing", "ks_hit")
        table = {name: getattr(self, name) for name in names}
        return table if self.kl is None else table | {"kl": self.kl}


def score(paths: Paths, reference: Paths, log_p_hit: Estimate | None = None, weighted: bool = False) -> Score:
    """Compare the hits of a sampler with those of a reference for P_0 given a hit.

    Args:
        paths: of the sampler in question; without a hit all its distances are NaN.
        reference: exact paths, or paths whose weights make them so (always used); `effective` counts the independent.
        log_p_hit: log P_0(hit), nats; gives `kl` for a sampler with a density.
        weighted: whether the sampler's hits carry their weights towards P_0 or, as drawn, all the same.

    Raises:
        ValueError: if the two answer different problems, lack energies, CVs or the weights asked for, or the reference
            has fewer than 8 hits.
    """
    _check(paths, reference, weighted)
    a, b = _Hits.of(paths, weighted), _Hits.of(reference, True)
    kl = None if log_p_hit is None or not _has_density(paths) else divergence_of_hits(paths, log_p_hit)
    if not len(a.weight):
        nothing = Estimate(math.nan, (math.nan, math.nan), n=0, ess=0.0)
        return Score(nothing, nothing, nothing, nothing, nothing, math.nan, math.nan, math.nan, kl)
    noise = Noise(0)
    w_a, w_b = a.resampled(noise.child("paths")), b.resampled(noise.child("reference"))
    h_a, h_b = _histograms(a, b, _periods(paths))
    jsd = _spread(jensen_shannon(_pooled(h_a, w_a), _pooled(h_b, w_b)), math.log(2.0), "nats", a)
    floor = _floor(h_b, a.size, b, noise.child("floor"))
    ks = [_spread(kolmogorov_smirnov(x, y, w_a, w_b), 1.0, "1", a) for x, y in zip(a.values, b.values, strict=True)]
    p = [p_value(k.value, a.size, b.size) for k in ks]
    return Score(jsd, floor, ks[0], ks[1], ks[2], p[0], p[1], p[2], kl)


def jensen_shannon(p: Float[Tensor, "*n bins"], q: Float[Tensor, "*n bins"]) -> Float[Tensor, "*n"]:
    """JSD = H((p + q) / 2) - H(p) / 2 - H(q) / 2 in nats of two histograms, normalised here; between 0 and ln 2."""
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    entropy = [torch.special.entr(r).sum(-1) for r in (0.5 * (p + q), p, q)]
    return (entropy[0] - 0.5 * (entropy[1] + entropy[2])).clamp(min=0.0)


def kolmogorov_smirnov(
    a: Float[Tensor, " n"], b: Float[Tensor, " m"], w_a: Float[Tensor, "*r n"], w_b: Float[Tensor, "*r m"]
) -> Float[Tensor, "*r"]:
    """D = sup_x |F_a(x) - F_b(x)| of two weighted samples, for each row of weights."""
    values, order = torch.cat([a, b]).sort()
    last = torch.cat([values[1:] > values[:-1], torch.ones(1, dtype=torch.bool)])  # of equal values: F is a step there
    jump = torch.cat([w_a / w_a.sum(-1, keepdim=True), -w_b / w_b.sum(-1, keepdim=True)], -1)
    return jump[..., order].cumsum(-1)[..., last].abs().amax(-1)


def p_value(statistic: float, n: float, m: float) -> float:
    """P(D >= statistic) for two samples of one law, 2 sum_k (-1)^(k-1) exp(-2 k^2 l^2) with l = D sqrt(n m / (n + m)).

    The limit of large sizes n and m: at 20 it errs on the side of calling two samples alike.
    """
    from scipy.special import kolmogorov

    return float(kolmogorov(statistic * math.sqrt(n * m / (n + m))))


def divergence_of_hits(paths: Paths, log_p_hit: Estimate) -> Estimate:
    """KL(P_b(. | hit) || P_0(. | hit)) in nats of a sampler's own hits, weights or not.

    Given a hit, dP_b has the density dP_b 1_hit / h with h = P_b(hit), and dP_0 likewise with p = P_0(hit), so that

        KL = E_b[log dP_b/dP_0 | hit] - log h + log p.

    Its three terms are independent; the interval adds their squares (Student's t; (1 - h) / (n h); that of log p). An
    estimate may fall below 0, which KL itself cannot.

    Raises:
        ValueError: if the paths have no density with respect to P_0.
    """
    if not _has_density(paths):
        raise ValueError(f"kl: paths of {paths.method!r} are no independent draws of known dP_b/dP_0")
    inside = mean(paths.log_rn[paths.hit], "nats")
    n, h = len(paths), float(paths.hit.double().mean())
    if not h:
        return inside
    value = inside.value - math.log(h) + log_p_hit.value
    half = [_half(inside), Z95 * math.sqrt((1.0 - h) / (n * h)), _half(log_p_hit)]
    return Estimate(value, (value - math.hypot(*half), value + math.hypot(*half)), "nats", inside.n)


def arrival(paths: Paths) -> Int[Tensor, " n"]:
    """First frame in the end state; 0 for paths that never are."""
    return (paths.distances < paths.problem.end.radius).int().argmax(0)


def departure(paths: Paths) -> Int[Tensor, " n"]:
    """Last frame in the start state before the arrival; 0 for paths that never were."""
    inside = paths.problem.inside(paths.path.x, paths.problem.start)
    frame = torch.arange(len(paths.path))[:, None]
    return torch.where(inside & (frame < arrival(paths)), frame, 0).amax(0)


@dataclass(frozen=True)
class _Hits:
    """What is compared of a set of paths: its n hits.

    Args:
        weight: of each hit.
        size: effective number of independent hits.
        independent: whether the n hits are so themselves, however their weights scatter.
        values: peak (kJ/mol), crossing time and arrival (ps), each (n,).
        point: CVs of all m frames up to the arrival, (m, k), and the hit to which each belongs, (m,).
    """

    weight: Float[Tensor, " n"]
    size: float
    independent: bool
    values: tuple[Tensor, Tensor, Tensor]
    point: Float[Tensor, "m k"]
    owner: Int[Tensor, " m"]

    @classmethod
    def of(cls, paths: Paths, weighted: bool) -> _Hits:
        hit = paths.hit
        logw = paths.logw[hit] if weighted else torch.zeros(int(hit.sum()), dtype=torch.float64)
        weight = (logw - logw.max()).exp().clamp(min=TINY) if len(logw) else logw
        size = kish(weight) if paths.effective is None else min(paths.effective, float(len(weight)))
        first, times = arrival(paths)[hit], paths.path.times.double()
        values = (paths.peak[hit], times[first] - times[departure(paths)[hit]], times[first])
        frame, owner = (torch.arange(len(times))[:, None] <= first).nonzero(as_tuple=True)
        return cls(weight, size, paths.effective is None, values, _plane(paths)[:, hit][frame, owner], owner)

    def resampled(self, noise: Noise) -> Float[Tensor, "s n"]:
        """The weights, and below them those of `RESAMPLES` bootstrap samples: as many as there are independent hits."""
        n = len(self.weight)
        draws = n if self.independent else max(1, round(self.size))
        chosen = noise.integers(range(RESAMPLES), torch.arange(draws), (), n)
        count = torch.zeros(RESAMPLES, n, dtype=torch.float64)
        count.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
        return torch.cat([self.weight[None], count * self.weight])


def kish(weight: Float[Tensor, " n"]) -> float:
    """(sum w)^2 / sum w^2."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def _plane(paths: Paths) -> Float[Tensor, "F n k"]:
    """The first two CVs of every frame, or coordinates of a toy that has none."""
    x = paths.cvs if paths.problem.system.cvs else paths.path.x.flatten(2)
    return x[..., :2].double()


def _periods(paths: Paths) -> list[float | None]:
    cvs = paths.problem.system.cvs.values()
    return ([period for cv in cvs for period in cv.period] or [None, None])[:2]


def _histograms(a: _Hits, b: _Hits, periods: list[float | None]) -> tuple[Tensor, Tensor]:
    """Frames of each hit in each occupied bin, sparse (n, bins): one period, or the range of both sets, in 100 bins."""
    points = torch.cat([a.point, b.point])
    cell = torch.zeros(len(points), dtype=torch.int64)
    for s, period in zip(points.T, periods, strict=False):
        low, width = (s.min(), s.max() - s.min()) if period is None else (s.new_tensor(-period / 2), period)
        place = ((s - low) / width * BINS).nan_to_num(0.0).floor().long()  # 0 / 0 where all frames are in one place
        cell = BINS * cell + (place.clamp(max=BINS - 1) if period is None else place % BINS)
    bins, cell = cell.unique(return_inverse=True)

    def counts(hits: _Hits, cell: Tensor) -> Tensor:
        index, one = torch.stack([hits.owner, cell]), torch.ones(len(cell), dtype=torch.float64)
        return torch.sparse_coo_tensor(index, one, (len(hits.weight), len(bins)), check_invariants=True).coalesce()

    first, second = cell.split([len(a.point), len(b.point)])
    return counts(a, first), counts(b, second)


def _pooled(histograms: Tensor, weight: Float[Tensor, "r n"]) -> Float[Tensor, "r bins"]:
    return torch.sparse.mm(histograms.t(), weight.T).T


def _spread(draws: Float[Tensor, " s"], most: float, unit: str, hits: _Hits) -> Estimate:
    """The first draw, with the central 95 % of the others moved so that their mean is the first."""
    value, others = draws[0], draws[1:]
    low, high = (others - others.mean() + value).quantile(draws.new_tensor([0.025, 0.975])).clamp(0.0, most).tolist()
    return Estimate(float(value), (low, high), unit, len(hits.weight), hits.size)


def _floor(histograms: Tensor, size: float, reference: _Hits, noise: Noise) -> Estimate:
    """JSD of disjoint random parts of the reference, worth `size` and `reference.size` independent paths.

    Drawn with replacement the parts would share frames, and the floor would be too low. Where the reference is not
    large enough for both, parts at fractions f, f / 2 and f / 4 of these sizes are carried on to 1 by Newton's formula
    in log JSD against log size: a slope of -1 where every bin holds many paths, a smaller one where few do. Half of
    its second-order term widens the interval. It serves to a sampler worth twice the reference; beyond, the floor is
    NaN. Copies in the reference make it low: with each path there four times by 14 % for a sampler worth a quarter of
    it, and by half for one worth as much.
    """
    n, weight = len(reference.weight), reference.weight
    share = n / kish(weight)  # paths per effective one
    wanted = share * size, share * reference.size
    f = min(1.0, n / sum(wanted))
    if 3.0 * f < 1.0:
        return Estimate(math.nan, (math.nan, math.nan), "nats", n, size)
    rank = noise.uniform(range(RESAMPLES), torch.arange(n)).argsort(-1)

    def split(f: float) -> Tensor:
        m_a, m_b = (max(1, round(f * m)) for m in wanted)
        one, other = (rank < m_a) * weight, ((rank >= m_a) & (rank < m_a + m_b)) * weight
        return jensen_shannon(_pooled(histograms, one), _pooled(histograms, other))

    draws, doubt = split(f), 0.0
    if f < 1.0:
        half, quarter = (split(f / k).mean().log2() for k in (2, 4))
        t, whole = -math.log2(f), draws.mean().log2()
        bend = 0.5 * t * (t + 1.0) * (whole - 2.0 * half + quarter).nan_to_num(0.0)
        draws = draws * 2.0 ** (t * (whole - half) + bend).nan_to_num(0.0).clamp(-t, 0.0)
        doubt = 0.5 * abs(float(bend))
    low, high = draws.quantile(draws.new_tensor([0.025, 0.975])).tolist()
    low, high = low * 2.0**-doubt, high * 2.0**doubt
    return Estimate(float(draws.mean()), (low, high), "nats", n, size)


def _half(estimate: Estimate) -> float:
    return 0.5 * (estimate.interval[1] - estimate.interval[0])


def _has_density(paths: Paths) -> bool:
    return not paths.exact and paths.effective is None and not bool(torch.isnan(paths.log_rn[paths.hit]).any())


def _check(paths: Paths, reference: Paths, weighted: bool) -> None:
    p, r = paths.problem, reference.problem
    asked = [(q.system.name, q.start.name, q.end.name, q.kT, q.friction) for q in (p, r)]
    if asked[0] != asked[1]:
        raise ValueError(f"reference: its (system, start, end, kT, friction) is {asked[1]}; the paths' is {asked[0]}")
    grids = [(len(q.path), float(q.path.times[-1])) for q in (paths, reference)]
    if grids[0][0] != grids[1][0] or not math.isclose(grids[0][1], grids[1][1], rel_tol=1e-6):
        raise ValueError(f"reference: its (frames, ps) are {grids[1]}; the paths' are {grids[0]}")
    if p.molecular and not p.system.cvs:
        raise ValueError(f"{p.system.name}: no CVs, and a density of frames needs one or two")
    for name, q, needed in (("paths", paths, weighted), ("reference", reference, True)):
        if q.path.energy is None:
            raise ValueError(f"{name}: no energies, and the highest is compared")
        if needed and not q.exact and bool(torch.isnan(q.log_rn[q.hit]).any()):
            raise ValueError(f"{name}: {q.method!r} is neither exact nor has weights towards P_0")
    if (hits := int(reference.hit.sum())) < FEWEST:
        raise ValueError(f"reference: {hits} hits; {FEWEST} or more are needed")
