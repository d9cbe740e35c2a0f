"""Weighted ensemble: many walkers, split where they are few and merged where they are many, never changing the law.

    carry        all walkers on for one segment by the one rollout
    count        what changes its colour from A to B and back, and the time spent in either colour, by weight
    recycle      what arrived in B starts again in A            (steady state; not in equilibrium)
    split, merge the same number of walkers in every bin of every colour

In the steady state the flux into B is 1 / (mean first-passage time from the start) (Hill 1989). Time is counted until
arrival alone, not until the end of the segment, so that the relation is exact for the chain that is looked at, however
long a segment. Without recycling both rates come out: k_AB = (arrivals in B, having last been in A) / (time since A).
Without splitting it is brute force.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.ensembles import Ensemble, Motion, Restart, colours, lost, refuse, restarted, split_merge
from molsamp.engine.estimates import Estimate, poisson, ratio, student95


@dataclass(frozen=True)
class Scheme:
    """How a weighted ensemble goes.

    Args:
        looks: of a segment.
        edges: of the bins of progress, rising, (bins - 1,).
        target: walkers of a bin of each colour and replica; None never splits (brute force).
        restart: the source where what reached B starts again; None for equilibrium.
    """

    looks: int
    edges: Float[Tensor, " inner"]
    target: int | None
    restart: Restart | None = None

    @property
    def bins(self) -> int:
        """Their number."""
        return len(self.edges) + 1

    def bin(self, progress: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Number of the bin."""
        return torch.bucketize(progress.double().contiguous(), self.edges.double(), right=True)

    def advance(
        self, motion: Motion, e: Ensemble, k: int, replicas: int
    ) -> tuple[Ensemble, History, Int[Tensor, " m"]]:
        """One segment.

        Args:
            motion: what moves, and how it is seen.
            e: the walkers.
            k: number of the segment, its place in the noise.
            replicas: in all.

        Returns:
            (walkers at the beginning of the next segment, what was counted, the ancestor of each walker).

        Raises:
            TypeError: for anything but an `Ensemble`.
        """
        refuse(e, Ensemble)
        steps = self.looks * motion.every
        path, sight = motion.carry(e.particles, self.looks, k * steps)
        gone = lost(path.final)
        w = torch.where(gone, 0.0, e.weight * torch.exp(-path.log_ratio))  # a control's ratio; 1 for free dynamics
        colour = colours(e.colour, sight, once=self.restart is not None)
        turned = colour[1:] != colour[:-1]
        cell = self.bin(sight.progress[-1])
        roots = e.root[(turned & (colour[1:] == 1)).any(0) & ~gone].unique()
        history = History(
            hits=_by_replica(e.replica, replicas, [w * (turned & (colour[:-1] == c)).sum(0) for c in (0, 1)]),
            time=_by_replica(e.replica, replicas, [w * (colour[:-1] == c).sum(0) * motion.interval for c in (0, 1)]),
            occupancy=self._occupancy(w, colour[-1], e.replica, cell, replicas)[None],
            lost=(e.weight * gone).sum()[None],
            number=torch.tensor([k]),
            roots=torch.stack([torch.full_like(roots, k), roots], 1),
        )
        fresh = turned.any(0)
        root = torch.where(fresh, ((k + 1) << 32) + torch.arange(len(e)), e.root)
        e = e.evolve(particles=path.final, weight=w, colour=colour[-1], root=root)
        progress = sight.progress[-1]
        if self.restart is not None and bool((back := e.colour == 1).any()):
            p = restarted(e.particles, back, self.restart, (k + 1) * steps)
            e = e.evolve(particles=p, colour=torch.where(back, 0, e.colour))
            seen = motion.look(e.particles.x[back]).progress
            progress = progress.masked_scatter(back, seen)
            cell = cell.masked_scatter(back, self.bin(seen))
        if self.target is None:
            return e, history, torch.arange(len(e))
        e, ancestors = split_merge(e, cell + self.bins * e.colour, progress, self.target, motion.noise, k)
        return e, history, ancestors

    def run(self, motion: Motion, e: Ensemble, segments: int) -> tuple[Ensemble, History]:
        """So many segments from the beginning; the replicas are those that `e` has.

        Raises:
            TypeError: for anything but an `Ensemble`.
        """
        refuse(e, Ensemble)
        replicas, parts = int(e.replica.max()) + 1, []
        for k in range(segments):
            e, counted, _ = self.advance(motion, e, k, replicas)
            parts.append(counted)
        return e, History.joined(parts)

    def _occupancy(self, w: Tensor, colour: Tensor, replica: Tensor, cell: Tensor, replicas: int) -> Tensor:
        place = (replica * 2 + colour) * self.bins + cell
        return torch.bincount(place, w, replicas * 2 * self.bins).view(replicas, 2, self.bins)


def _by_replica(replica: Tensor, replicas: int, columns: list[Tensor]) -> Float[Tensor, "1 R 2"]:
    return torch.stack([torch.bincount(replica, c, replicas) for c in columns], 1)[None]


@dataclass(frozen=True)
class History:
    """What T segments of R replicas counted.

    Args:
        hits: weight that left colour A for B, and B for A, (T, R, 2).
        time: weight x time in either colour, (T, R, 2).
        occupancy: weight by colour and bin at the end of the segment, (T, R, 2, bins).
        lost: weight that diverged, (T,).
        number: of the segments, (T,).
        roots: (number of a segment, root of walkers that came to B in it), (m, 2).
    """

    hits: Float[Tensor, "T R 2"]
    time: Float[Tensor, "T R 2"]
    occupancy: Float[Tensor, "T R 2 bins"]
    lost: Float[Tensor, " T"]
    number: Int[Tensor, " T"]
    roots: Int[Tensor, "m 2"]

    @classmethod
    def joined(cls, parts: list[History]) -> History:
        """One after the other."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def part(self, first: int, end: float = math.inf) -> History:
        """The segments numbered first, .., end - 1."""
        chosen, of = (self.number >= first) & (self.number < end), self.roots[:, 0]
        blocks = {f.name: getattr(self, f.name)[chosen] for f in fields(self)[:-1]}
        return History(**blocks, roots=self.roots[(of >= first) & (of < end)])

    @property
    def lineages(self) -> int:
        """Independent departures behind the arrivals in B."""
        return len(self.roots[:, 1].unique())

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, blocks: dict[str, Tensor]) -> History:
        """The inverse of `to_tensors`."""
        return cls(*(blocks[f.name] for f in fields(cls)))


def rate(h: History, colour: int = 0, unit: str = "1") -> Estimate:
    """k = (weight that changes colour) / (weight x time in that colour), its error from the scatter of the replicas.

    Args:
        h: settled segments.
        colour: 0 for A -> B, 1 for B -> A.
        unit: as printed.

    Raises:
        TypeError: for anything but a `History`.
    """
    refuse(h, History)
    return ratio(h.hits.sum(0)[:, colour], h.time.sum(0)[:, colour], unit)


def brute_rate(h: History, walkers: int, colour: int = 0, unit: str = "1") -> Estimate:
    """The same of walkers that were never split, with the exact interval of independent arrivals.

    Args:
        h, colour, unit: as in `rate`.
        walkers: of a replica, each with the weight 1 / walkers.

    Raises:
        TypeError: for anything but a `History`.
    """
    refuse(h, History)
    events, exposure = (walkers * float(a[..., colour].sum()) for a in (h.hits, h.time))
    return poisson(round(events), exposure, unit)


def reactive_flux(h: History, unit: str = "1") -> Estimate:
    """nu = k_AB k_BA / (k_AB + k_BA), the crossings from A to B per time in equilibrium.

    Raises:
        TypeError: for anything but a `History`.
    """
    refuse(h, History)
    value, log_error = _jackknife(lambda hits, time, _: (hits / time).reciprocal().sum().log().neg(), h)
    half = student95(max(1, h.hits.shape[1] - 1)) * log_error
    return _around(math.exp(value), float(half), h, unit)


def committor(h: History) -> list[Estimate]:
    """Probability to reach B before A from each bin, by the colours in equilibrium.

    Under dynamics that are reversible (but for the sign of velocities) the probability to come from B is that to go
    there. With rho_c(s) the law of the bins of colour c and k_AB p_A = k_BA p_B in equilibrium,

        q(s) = k_AB rho_B(s) / (k_BA rho_A(s) + k_AB rho_B(s)),

    so that it does not matter how far the weights of the two colours have come to equilibrium. Intervals are those of
    log q / (1 - q), from replicas left out in turn; (0, 1) where a replica alone saw a colour.

    Raises:
        TypeError: for anything but a `History`.
    """
    refuse(h, History)

    def logit(hits: Tensor, time: Tensor, occupancy: Tensor) -> Tensor:
        k, rho = hits / time, occupancy / occupancy.sum(-1, keepdim=True)
        return torch.log(k[0] * rho[1]) - torch.log(k[1] * rho[0])

    value, error = _jackknife(logit, h)
    half = student95(max(1, h.hits.shape[1] - 1)) * error
    found = []
    for x, d in zip(value.tolist(), half.tolist(), strict=True):
        low, high = (_logistic(x - d), _logistic(x + d)) if math.isfinite(d) else (0.0, 1.0)
        found.append(Estimate(_logistic(x), (low, high), "1", h.hits.shape[1]))
    return found


def _logistic(x: float) -> float:
    return math.nan if math.isnan(x) else 0.5 * (1.0 + math.tanh(0.5 * x))


def _around(value: float, half: float, h: History, unit: str) -> Estimate:
    """An interval of the logarithm; everything where it cannot be told."""
    if not (math.isfinite(half) and value > 0.0):
        return Estimate(value, (0.0, math.inf), unit, h.hits.shape[1])
    return Estimate(value, (value * math.exp(-half), value * math.exp(half)), unit, h.hits.shape[1])


def _jackknife(f: Callable[[Tensor, Tensor, Tensor], Tensor], h: History) -> tuple[Tensor, Tensor]:
    """f of the sums over replicas, and its standard error from leaving each out: (R - 1) / R sum (f_r - mean)^2."""
    sums = [a.sum(0) for a in (h.hits, h.time, h.occupancy)]
    R = len(sums[0])
    left = torch.stack([f(*(a.sum(0) - a[r] for a in sums)) for r in range(R)])
    error = ((R - 1) / R * (left - left.mean(0)).square().sum(0)).sqrt()
    return f(*(a.sum(0) for a in sums)), torch.where(error.isfinite() & (R > 1), error, torch.inf)
