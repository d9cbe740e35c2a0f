"""What is kept of a steered population, and several of them as replicas of one problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.estimates import Estimate, ratio
from molsamp.engine.lineage import Steered
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.particles import live_weights, sizes
from molsamp.engine.state import Particles
from molsamp.molecular.cvs import wrap


@dataclass(frozen=True)
class Population:
    """m walkers that were weighed at B boundaries.

    Args:
        x: where they ended.
        logw, status: as `Particles` has them, at the end.
        effective: ESS at every boundary, before resampling.
        ancestors: as `Steered.ancestors`.
        s: the quantities at the start and at every boundary, before resampling.
    """

    x: Float[Tensor, "m *event"]
    logw: Float[Tensor, " m"]
    status: Int[Tensor, " m"]
    effective: Float[Tensor, " B"]
    ancestors: Int[Tensor, "B m"]
    s: Float[Tensor, "B+1 m k"]

    @classmethod
    def of(cls, found: Steered, s: Sequence[Tensor]) -> Population:
        """From what `engine.steer` returned of one population, and the quantities seen on its way."""
        p = found.particles
        return cls(p.x, p.logw, p.status, found.effective[:, 0], found.ancestors, torch.stack(list(s)))

    @property
    def line(self) -> Int[Tensor, "B m"]:
        """As `Steered.line`."""
        return joined([self]).line()

    @property
    def collapsed(self) -> bool:
        """Whether it once was resampled from a single ancestor."""
        one = self.ancestors == self.ancestors[:, :1]
        return self.ancestors.shape[1] > 1 and bool(one.all(1).any())


def stacked(populations: Sequence[Population]) -> dict[str, Tensor]:
    """Tensors for a checkpoint, one row a population; none for no population."""
    names = [f.name for f in fields(Population)] if populations else []
    return {name: torch.stack([getattr(p, name) for p in populations]) for name in names}


def unstacked(tensors: dict[str, Tensor]) -> list[Population]:
    """The inverse of `stacked`."""
    if not tensors:
        return []
    return [Population(**{k: t[i] for k, t in tensors.items()}) for i in range(len(tensors["x"]))]


def joined(populations: Sequence[Population]) -> Steered:
    """Populations of equal size as the replicas of one problem."""
    B, m = populations[0].ancestors.shape
    p = Particles.at(torch.cat([a.x for a in populations])).evolve(
        logw=torch.cat([a.logw for a in populations]), status=torch.cat([a.status for a in populations])
    )
    ancestors = torch.cat([a.ancestors + g * m for g, a in enumerate(populations)], 1)
    effective = torch.stack([a.effective for a in populations], 1)
    return Steered(p, len(populations), tuple(range(B)), effective, ancestors)


def even(found: Steered) -> Steered:
    """The same particles without their weights."""
    p = found.particles
    return Steered(p.evolve(logw=torch.zeros_like(p.logw)), found.groups, found.rows, found.effective, found.ancestors)


def gain(found: Steered, before: Steered) -> Estimate:
    """log Z of what a reward adds: of the mean weights of replicas over those of the same replicas before it, nats."""
    a, b = (f.logw.new_tensor([log_mean_exp(logw)[0] for logw in f.logw]) for f in (found, before))
    top, bottom = a.max(), b.max()
    e, shift = ratio(torch.exp(a - top), torch.exp(b - bottom)), float(top - bottom)
    low, high = (math.log(end) + shift if end > 0.0 else -math.inf for end in e.interval)
    return Estimate(math.log(e.value) + shift, (low, high), "nats", e.n, float(sizes(a[None])[0]))


def average(found: Steered, s: Float[Tensor, " n"], period: float | None, unit: str) -> Estimate:
    """The weighted mean over replicas; of what has a period the mean around the mean direction, in [-P/2, P/2]."""
    if period is None:
        return found.pooled(s, unit)
    turn = 2.0 * math.pi / period
    w = torch.softmax(live_weights(found.particles), 0)
    centre = math.atan2(float(w @ torch.sin(turn * s.double())), float(w @ torch.cos(turn * s.double()))) / turn
    off = found.pooled(wrap(s.double()[:, None] - centre, (period,))[:, 0], unit)
    value = float(wrap(torch.tensor([[centre + off.value]], dtype=torch.float64), (period,)))
    low, high = (value + end - off.value for end in off.interval)
    return Estimate(value, (low, high), unit, off.n, off.ess)
