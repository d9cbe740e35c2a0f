"""Resampling between steps, and the sequential Monte Carlo that follows from it.

A population of weighted particles is an estimate: sum_i w_i f(x_i). Resampling replaces it by an equally weighted
one with the same expectation, spending particles where the weight is. The log of the mean weight, which estimates
the normalising constant Z, is carried through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator, Table
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Memory, Particles, Path, Status

Scheme = Literal["systematic", "stratified", "multinomial", "residual"]
BELOW_ONE = 1.0 - 2.0**-53


def resample(
    p: Particles, noise: Noise, step: int, *, scheme: Scheme = "systematic", below: float = 0.5, groups: int = 1
) -> tuple[Particles, Int[Tensor, " n"]]:
    """Draw n particles with expected multiplicities n w_i / sum w, if ESS < below x n.

    Every copy carries the mean weight, so that the log-mean weight is kept. DIVERGED particles, and weights that are
    NaN or +inf, count as zero and are never drawn. The first copy of a particle keeps its id; each further copy gets
    max(ids) + 1, + 2, ..: whenever a particle dies a clone is born, so the largest id grows and no id ever returns.

    Args:
        p: n particles.
        noise: its stream "resample" is used; populations that share ids need a child each.
        step: key of this resampling, used once.
        scheme: systematic (one uniform for all), stratified (one per stratum), multinomial (independent),
            residual (whole parts of n w for certain, multinomial for the rest).
        below: threshold as a share of n; above 1 resamples always.
        groups: populations of equal size that lie one after the other, each resampled within itself, or not.

    Returns:
        (particles sorted by ancestor, index of each one's ancestor). A population whose ESS is high enough, or
        which has no positive weight at all, comes back as it is.

    Raises:
        ValueError: for an unknown scheme, or groups that do not divide the particles.

    Source: Douc, Cappe, Moulines, "Comparison of resampling schemes for particle filtering", ISPA 2005.
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"resampling scheme {scheme!r} is not one of {', '.join(get_args(Scheme))}")
    slots = torch.arange(len(p), device=p.x.device)
    logw = grouped(live_weights(p), groups)
    effective = sizes(logw)
    few = (effective > 0.0) & (effective < below * logw.shape[1])
    if not bool(few.any()):
        return p, slots
    w = torch.exp(logw[few] - logw[few].amax(1, keepdim=True)).cpu()
    own = grouped(slots, groups)[few]
    drawn = own[:, :1] + _draw(w, noise.child("resample"), step, scheme, own.cpu()).to(own)
    mean = logw.new_tensor([log_mean_exp(a)[0] for a in logw[few]])
    ancestors = slots.index_put((own.flatten(),), drawn.flatten())
    carried = p.logw.index_put((own.flatten(),), mean.repeat_interleave(own.shape[1]))
    return p.take(ancestors).evolve(logw=carried, ids=_clone_ids(p.ids, ancestors)), ancestors


def grouped(a: Shaped[Tensor, " n"], groups: int) -> Shaped[Tensor, "groups m"]:
    """One row a population.

    Raises:
        ValueError: for groups that do not divide n.
    """
    if groups < 1 or len(a) % groups:
        raise ValueError(f"{len(a)} particles do not make {groups} groups of equal size")
    return a.view(groups, -1)


def sizes(logw: Float[Tensor, "groups m"]) -> Float[Tensor, " groups"]:
    """Kish's effective sample size of every population, see `measures.ess`."""
    top = logw.amax(1, keepdim=True)
    w = torch.exp(logw - torch.where(top > -torch.inf, top, 0.0))
    return w.sum(1) ** 2 / (w**2).sum(1).clamp(min=torch.finfo(w.dtype).tiny)


def live_weights(p: Particles) -> Float[Tensor, " n"]:
    """Log weights with -inf for DIVERGED particles and for weights that are NaN or +inf."""
    live = (p.status != Status.DIVERGED) & (p.logw < torch.inf)
    return torch.where(live, p.logw, -torch.inf)


def smc(
    dyn: Dynamics,
    integrator: Integrator,
    start: Particles,
    times: Sequence[float],
    potential: Callable[[int, Particles], Tensor],
    *,
    noise: Noise,
    every: int = 1,
    scheme: Scheme = "systematic",
    below: float = 0.5,
    groups: int = 1,
    watch: Callable[[int, Path], None] | None = None,
    each: Callable[[int, Path, Particles, Tensor], None] | None = None,
) -> tuple[Particles, float]:
    """Sequential Monte Carlo: roll a segment, weigh by the potential, resample; again until the end of the grid.

    exp(log_z) is an unbiased estimate of E[prod_k exp(potential_k)] under the free dynamics. A `Controlled` dynamics
    (a twisted proposal) keeps it so, since `rollout` puts the control's log ratio into the weights.

    Args:
        dyn, integrator, start, times: as in `rollout`.
        potential: (k, particles at times[k]) -> log-weight increments (n,), nats; called after every segment. A
            particle that gets NaN or +inf is marked DIVERGED.
        noise: for the dynamics and, in its stream "resample", for the resampling.
        every: rows a segment; the last one may be shorter.
        scheme, below, groups: as in `resample`. The last segment is not resampled.
        watch: observer called ahead of the potential with (k, the segment that ends at times[k]); with it segments
            are saved at every row, so that a potential may depend on all of their frames.
        each: observer called after every segment with (k, segment, weighted particles at times[k], index of the
            ancestor that each particle of the next segment has among them).

    Returns:
        (weighted particles at times[-1], log of their mean weight over all groups; -inf once every weight is zero).

    Raises:
        ValueError: for `every` below 1, or a potential of another shape, which names the row.
    """
    if every < 1:
        raise ValueError(f"every={every}: a segment has at least one row")
    table = integrator.rows(dyn, times)
    p, memory = start, Memory()
    for first in range(0, len(table), every):
        last = min(first + every, len(table))
        segment = rollout(
            dyn,
            _Rows(table[first:last]),
            p,
            times[first : last + 1],
            noise=noise,
            save="last" if watch is None else "all",
            first=first,
            memory=memory,
        )
        p, memory = segment.final, segment.memory
        if watch is not None:
            watch(last, segment)
        cloud = p = _weigh(p, potential(last, p), last)
        ancestors = torch.arange(len(p), device=p.x.device)
        if last < len(table):
            p, ancestors = resample(p, noise, last, scheme=scheme, below=below, groups=groups)
            memory = remembered(memory, ancestors)
        if each is not None:
            each(last, segment, cloud, ancestors)
    return p, log_mean_exp(live_weights(p))[0]


@dataclass(frozen=True)
class _Rows:
    """Rows cut from the table of the whole grid, so that a multistep scheme does not start anew in each segment."""

    table: Table

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        return self.table


def _weigh(p: Particles, increment: Tensor, row: int) -> Particles:
    if increment.shape != p.logw.shape:
        raise ValueError(
            f"the potential after row {row} has shape {tuple(increment.shape)}, allowed is one number for each of "
            f"{len(p)} particles"
        )
    logw = p.logw + increment.to(p.logw)
    lost = (p.status == Status.OK) & ~(logw < torch.inf)
    return p.evolve(logw=logw, status=torch.where(lost, torch.full_like(p.status, Status.DIVERGED), p.status))


def remembered(memory: Memory, ancestors: Int[Tensor, " n"]) -> Memory:
    """What the particles at `ancestors` remember."""
    held = None if memory.held is None else memory.held[ancestors]
    return Memory(tuple(g[ancestors] for g in memory.history), held)


def _draw(
    w: Float[Tensor, "g m"], noise: Noise, step: int, scheme: Scheme, keys: Int[Tensor, "g m"]
) -> Int[Tensor, "g m"]:
    """Ancestors of every population in rising order for weights w >= 0; `keys` are those of the uniforms."""
    m = w.shape[1]
    slots = torch.arange(m)
    if scheme == "systematic":
        return _invert(w, (slots + noise.uniform(step, keys[:, 0])[:, None]) / m)
    u = noise.uniform(step, keys.flatten()).view_as(w)
    if scheme == "stratified":
        return _invert(w, (slots + u) / m)
    if scheme == "multinomial":
        return _invert(w, u.sort(1).values)
    expected = m * w / w.sum(1, keepdim=True)  # in this order m equal weights give exactly 1
    whole = expected.floor()
    drawn = []
    for certain, left, own in zip(whole, expected - whole, u, strict=True):
        rest = _invert(left[None], own[None, : m - int(certain.sum())])[0]
        drawn.append(torch.cat([torch.repeat_interleave(slots, certain.long()), rest]).sort().values)
    return torch.stack(drawn)


def _invert(w: Float[Tensor, "g m"], u: Float[Tensor, "g k"]) -> Int[Tensor, "g k"]:
    """First index whose cumulative weight exceeds u: a zero weight adds nothing to exceed and is never found.

    The cumulative weights end at exactly 1 and u is kept below it, so that rounding cannot point past the end.
    """
    edges = w.cumsum(1)
    return torch.searchsorted(edges / edges[:, -1:], u.clamp(max=BELOW_ONE), right=True)


def _clone_ids(ids: Int[Tensor, " n"], ancestors: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    clone = torch.zeros_like(ancestors, dtype=torch.bool)
    clone[1:] = ancestors[1:] == ancestors[:-1]
    return torch.where(clone, ids.max() + clone.cumsum(0), ids[ancestors])
