"""Ensembles of weighted walkers between two sets A and B: what rates are made of.

A walker carries a weight, a colour (0 = last in A, 1 = last in B), the replica it belongs to and its root, the walker
that last entered the set of its colour. Replicas are independent repetitions: they share no draw, and no walker of one
takes the place of another's, so the scatter of their sums is the error of everything, correlations in time and common
ancestors included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.particles import BELOW_ONE
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path, Status

Restart = Callable[[Int[Tensor, " n"], int], Particles]
"""(ids of walkers, step) -> as many walkers at the source."""


class Sight(NamedTuple):
    """What is seen of configurations.

    Args:
        progress: rises from A to B.
        a, b: whether they are in A, in B.
    """

    progress: Float[Tensor, "*batch"]
    a: Bool[Tensor, "*batch"]
    b: Bool[Tensor, "*batch"]


@dataclass(frozen=True)
class Motion:
    """A dynamics that is looked at every so many steps; the rates are those of what is seen.

    Args:
        dyn, integrator, timestep: of the engine's rollout.
        every: steps between two looks.
        look: configurations (n, *event) -> what is seen of them.
        noise: of the steps.
    """

    dyn: Dynamics
    integrator: Integrator
    timestep: float
    every: int
    look: Callable[[Tensor], Sight]
    noise: Noise

    @property
    def interval(self) -> float:
        """Time between two looks."""
        return self.every * self.timestep

    def carry(self, p: Particles, looks: int, first: int) -> tuple[Path, Sight]:
        """Carry particles on for so many looks from step `first` of the noise: (path, sights (looks, n))."""
        times = [k * self.timestep for k in range(looks * self.every + 1)]
        path = rollout(self.dyn, self.integrator, p, times, noise=self.noise, save=self.every, first=first)
        return path, Sight(*(s.view(looks, len(p)) for s in self.look(path.x[1:].flatten(0, 1))))


@dataclass(frozen=True)
class Ensemble:
    """Weighted walkers.

    Args:
        particles: n walkers; their own `logw` is not used.
        weight: linear and in float64, so that sums are kept to rounding, (n,).
        colour: 0 = last in A, 1 = last in B, (n,).
        replica: (n,).
        root: of their descent, (n,).

    Raises:
        TypeError, ValueError: for what `refuse` lets not pass, such as the nodes of a planner's tree.
    """

    particles: Particles
    weight: Float[Tensor, " n"]
    colour: Int[Tensor, " n"]
    replica: Int[Tensor, " n"]
    root: Int[Tensor, " n"]

    def __post_init__(self):
        refuse(self.particles, Particles)

    @classmethod
    def of(cls, particles: Particles, replica: Int[Tensor, " n"], colour: Int[Tensor, " n"]) -> Ensemble:
        """Walkers of equal weight, 1 in all for each replica.

        Raises:
            TypeError, ValueError: as `Ensemble`.
        """
        refuse(particles, Particles)
        weight = 1.0 / torch.bincount(replica)[replica].double()
        return cls(particles, weight, colour, replica, torch.arange(len(particles)))

    def __len__(self) -> int:
        return len(self.particles)

    def evolve(self, **blocks) -> Ensemble:
        """A copy with some blocks replaced."""
        return replace(self, **blocks)

    def take(self, index: Tensor) -> Ensemble:
        """The walkers at `index`."""
        own = (getattr(self, f.name)[index] for f in fields(self)[1:])
        return Ensemble(self.particles.take(index), *own)

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        own = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        return own | {f"particles.{k}": b for k, b in self.particles.to_tensors().items()}

    @classmethod
    def from_tensors(cls, blocks: dict[str, Tensor]) -> Ensemble:
        """The inverse of `to_tensors`."""
        inner = {k.removeprefix("particles."): b for k, b in blocks.items() if k.startswith("particles.")}
        return cls(Particles.from_tensors(inner), *(blocks[f.name] for f in fields(cls)[1:]))


def refuse(given: Any, kind: type) -> None:
    """Let a weighted ensemble pass and nothing else.

    Raises:
        TypeError: for another type. The nodes of a planner's tree are where its search went (Voronoi bias), which is
            no ensemble of the dynamics, so no rate can be had from them.
        ValueError: for particles without a weight (NaN), as `Tree.path` has them.
    """
    if not isinstance(given, kind):
        raise TypeError(
            f"rates are made of {kind.__name__}, got {type(given).__name__}: only walkers that carry their statistical "
            "weight will do. Nodes of a planner's tree have none; take them as starts of an ensemble's walkers at most"
        )
    if isinstance(given, Particles) and bool(given.logw.isnan().any()):
        raise ValueError(
            f"rates are made of walkers that carry their statistical weight, got logw = nan for "
            f"{int(given.logw.isnan().sum())} of {len(given)}: nodes of a planner's tree have none; allowed are numbers"
        )


def split_merge(
    e: Ensemble, cell: Int[Tensor, " n"], progress: Float[Tensor, " n"], target: int, noise: Noise, step: int
) -> tuple[Ensemble, Int[Tensor, " m"]]:
    """Give every occupied cell of every replica `target` walkers of equal weight.

    Walkers of a cell of weight W are drawn systematically in the order of their progress: walker i has on average
    target w_i / W copies of weight W / target, so its expected weight stays w_i, and the weight of the cell is kept.
    The first copy keeps its id; further ones get new ids. Walkers without weight are never drawn.

    Args:
        e: n walkers.
        cell: of each, 0 or more; walkers of different replicas never share one.
        progress: of each.
        target: walkers a cell.
        noise: its stream "split" is used.
        step: key of this resampling, used once.

    Returns:
        (ensemble, the ancestor of each walker).

    Raises:
        ValueError: for a target below 1.

    Source: Huber and Kim, Biophys. J. 70, 97 (1996); Zhang, Jasnow and Zuckerman, J. Chem. Phys. 132, 054107 (2010),
        with systematic draws in the place of pairwise merging.
    """
    if target < 1:
        raise ValueError(f"target={target}: a cell has at least one walker")
    order = progress.argsort(stable=True)
    key = e.replica * (int(cell.max()) + 1) + cell
    order = order[key[order].argsort(stable=True)]
    groups, counts = key[order].unique_consecutive(return_counts=True)
    row = torch.arange(len(groups)).repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    place = torch.arange(len(order)) - begin[row]
    w = torch.zeros(len(groups), int(counts.max()), dtype=torch.float64)
    w[row, place] = e.weight[order]
    edges = w.cumsum(1)
    total = edges[:, -1:]
    live = total[:, 0] > 0.0
    u = (torch.arange(target) + noise.child("split").uniform(step, groups)[:, None]) / target
    slot = torch.searchsorted((edges / total)[live], u[live].clamp(max=BELOW_ONE), right=True)
    ancestors = order[(begin[live, None] + slot).flatten()]
    clone = torch.zeros_like(ancestors, dtype=torch.bool)
    clone[1:] = ancestors[1:] == ancestors[:-1]
    out = e.take(ancestors)
    p = out.particles
    ids = torch.where(clone, e.particles.ids.max() + clone.cumsum(0), p.ids)
    weight = (total[live] / target).expand(-1, target).flatten()
    return out.evolve(particles=p.evolve(ids=ids), weight=weight), ancestors


def colours(start: Int[Tensor, " n"], sight: Sight, once: bool) -> Int[Tensor, "frames n"]:
    """Colour at the start and at every look: of the set last seen; with `once` B is for good."""
    found = [start]
    for a, b in zip(sight.a, sight.b, strict=True):
        home = a & (found[-1] == 0) if once else a
        found.append(torch.where(b, 1, torch.where(home, 0, found[-1])))
    return torch.stack(found)


def restarted(p: Particles, back: Bool[Tensor, " n"], restart: Restart, step: int) -> Particles:
    """The walkers `back` at the source, all others where they are."""
    if not bool(back.any()):
        return p
    where = back.nonzero()[:, 0]
    fresh = restart(p.ids[where], step)
    v = None if p.v is None or fresh.v is None else p.v.index_copy(0, where, fresh.v.to(p.v))
    return p.evolve(x=p.x.index_copy(0, where, fresh.x.to(p.x)), v=v)


def lost(p: Particles) -> Bool[Tensor, " n"]:
    """Walkers that diverged."""
    return p.status == Status.DIVERGED
