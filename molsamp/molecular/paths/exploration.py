"""A tree that explores the space of the collective variables, from one state until it reaches another: seeds for paths.

    repeat, for B lanes at once:
        s_rand  <- uniform in the box of the CVs, with probability goal_bias in the disc of the end state
        x_near  <- the node nearest to s_rand, with periods taken into account
        x_1:n   <- the system's own dynamics from x_near with fresh velocities, pulled towards s_rand if asked to
        add to the tree the frame nearest to s_rand (or the last), or the first one in the end state

This is RRT (LaValle and Kuffner 2001) with thermal noise in the place of controls. Nodes are chosen by the size of
their Voronoi cells and frames by where they went, so nodes have no statistical weight: they are where a search has
been, not an ensemble, and no rate, free energy or path weight can be had from them. Nor is a branch a trajectory, since
velocities are drawn anew at every node. What starts from a branch has to be made by the dynamics (see `shooting`).
The tree looks at CVs, not at energies: it may arrive over a pass that the dynamics hardly ever takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.neighbours import Neighbours
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path, Status
from molsamp.engine.trees import Tree
from molsamp.molecular.cvs import Stack
from molsamp.molecular.energies import Sum
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import TreeSettings
from molsamp.molecular.paths.steered import Restraint
from molsamp.molecular.system import System


class Box:
    """What the CVs of a system span, and the metric in which configurations are near.

    A CV with a period lies on a circle of circumference 1, any other on a line of length 1 over its range; distance is
    Euclidean between these points, so that units do not matter and +179 degrees is beside -179.

    Args:
        system: its CVs, with their periods and ranges.

    Raises:
        ValueError: no CVs, or one without period and range.
    """

    def __init__(self, system: System):
        if not system.cvs:
            raise ValueError(f"{system.name}: a tree grows in the space of the CVs, and system.toml has none")
        self.cv = Stack(list(system.cvs.values()))
        spans = []
        for name, period in zip(self.cv.names, self.cv.period, strict=True):
            if (span := system.span(name, period)) is None:
                raise ValueError(
                    f"{system.name}: CV {name!r} has no period and needs range = [low, high] in [cvs.{name}] of "
                    "system.toml, for a tree to grow in"
                )
            spans.append(span)
        self.low, high = torch.tensor(spans, dtype=torch.float64).T
        self.width = high - self.low
        self.round = torch.tensor([p is not None for p in self.cv.period])

    def point(self, u: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """CV values of points of the unit cube."""
        return self.low + u * self.width

    def features(self, s: Float[Tensor, "*n k"]) -> Float[Tensor, "*n f"]:
        """The points whose Euclidean distance is the metric."""
        u = self._unit(s)
        turn = 2.0 * math.pi * u[..., self.round]
        return torch.cat([u[..., ~self.round], turn.cos() / (2.0 * math.pi), turn.sin() / (2.0 * math.pi)], -1)

    def coverage(self, s: Float[Tensor, "n k"], cells: int = 20) -> float:
        """Share of the box's cells, `cells` along every CV, that hold one of these points."""
        u = self._unit(s)
        u = torch.where(self.round, u - u.floor(), u)
        inside = u[((u >= 0.0) & (u < 1.0)).all(1)]
        return len((inside * cells).long().unique(dim=0)) / cells ** len(self.low)

    def _unit(self, s: Tensor) -> Tensor:
        return (s.double() - self.low) / self.width


class Exploration:
    """A tree from the start of a problem, to be grown until a node lies in its end state.

    It holds structures and nothing that an estimator of rates takes: no weights, no `Particles`, no `Ensemble`.

    Args:
        problem: its start is the root; its dynamics moves the pieces.
        settings: how it grows.
        noise: piece b of batch k is drawn with the particle id k B + b, and node 1 + k B + b is its end.

    Raises:
        ValueError: as `Box`, or for looks that do not divide a piece.
    """

    def __init__(self, problem: Problem, settings: TreeSettings, noise: Noise):
        if settings.rows % settings.look:
            raise ValueError(f"tree.look = {settings.look} does not divide tree.rows = {settings.rows}")
        self.problem, self.settings, self.noise = problem, settings, noise
        self.box = Box(problem.system)
        root = problem.start.x.to(problem.dtype)[None]
        self.tree = Tree(root, along={"x": root})
        self.reached: int | None = None
        self.evaluations = 0
        features = self.box.features(self.box.cv(root))
        self._nodes = Neighbours(features.shape[1])
        self._nodes.add(features, torch.tensor([0]))

    @property
    def batches(self) -> int:
        """Grown so far."""
        return (len(self.tree) - 1) // self.settings.lanes

    def run(self, each: Callable[[], None] = lambda: None) -> Exploration:
        """Grow until the end state is reached or the evaluations are spent, `each` called before every batch."""
        while self.reached is None and self.evaluations < self.settings.evaluations:
            each()
            self.advance()
        return self

    def advance(self) -> None:
        """One batch of pieces, each of which ends in a new node."""
        k, lanes, s = self.batches, torch.arange(self.settings.lanes), self.settings
        target = self.box.features(self.targets(k))
        parents = self._nodes.nearest(target)[0][:, 0]
        before = self.problem.energy.evaluations
        path = self.pieces(k, parents)
        self.evaluations += self.problem.energy.evaluations - before
        x = path.x[1:]
        features = self.box.features(self.box.cv(x.flatten(0, 1)).view(*x.shape[:2], -1))
        fine = path.final.status != Status.DIVERGED
        there = self.problem.inside(x) & fine
        apart = torch.linalg.vector_norm(features - target, dim=-1)
        last = apart.argmin(0) if s.keep == "nearest" else torch.full_like(lanes, len(x) - 1)
        last = torch.where(there.any(0), there.int().argmax(0), last)
        nodes = self.tree.extend(
            parents,
            x[last, lanes],
            duration=(last + 1).double() * (s.look * self.problem.timestep),
            along={"x": x.transpose(0, 1)},
            steps=last + 1,
        )
        self._nodes.add(features[last, lanes][fine], nodes[fine])
        if len(hits := nodes[there.any(0)]):
            self.reached = int(hits[self.tree.time[hits].argmin()])

    def targets(self, k: int) -> Float[Tensor, "B k"]:
        """CV values that batch k is sent to."""
        lanes, end, width = torch.arange(self.settings.lanes), self.problem.end, len(self.box.low)
        draw = self.noise.child("targets")
        u = draw.uniform(k, lanes, (width + 2,))
        away = torch.nn.functional.normalize(draw.normal(k, lanes, (width,)), dim=1)
        radius = end.radius if end.metric == "cvs" else 0.0  # of another unit otherwise
        disc = torch.tensor(list(end.values.values())).double() + radius * u[:, 1:2] ** (1.0 / width) * away
        return torch.where(u[:, :1] < self.settings.goal_bias, disc, self.box.point(u[:, 2:]))

    def pieces(self, k: int, parents: Int[Tensor, " B"]) -> Path:
        """The pieces of batch k from these nodes, `look` rows a frame: the same noise and nodes give the same bytes."""
        p, s = self.problem, self.settings
        ids = k * s.lanes + torch.arange(s.lanes)
        start = Particles.at(self.tree.x[parents], p.velocities(self.noise, ids), ids)
        times = [j * p.timestep for j in range(s.rows + 1)]
        if not s.stiffness:
            return rollout(p.dynamics, p.integrator, start, times, noise=self.noise, save=s.look)
        joint = Sum(p.energy, Restraint(self.box.cv, self.targets(k), s.stiffness, p.system.event))
        dyn = replace(p.dynamics, field=joint)
        path = rollout(dyn, p.integrator, start, times, noise=self.noise, save=s.look)
        p.energy.evaluations += joint.evaluations
        return path

    def branch(self, node: int | None = None) -> Float[Tensor, "F *event"]:
        """Structures from the root to a node (the one that reached the end state), a frame every `look` rows.

        Raises:
            ValueError: no node given and none in the end state.
        """
        node = self.reached if node is None else node
        if node is None:
            p = self.problem
            raise ValueError(
                f"{p.system.name}: none of {len(self.tree)} nodes of the tree from {p.start.name} lies in {p.end.name} "
                f"after {self.evaluations} evaluations; allow more (tree.evaluations), or pull (tree.stiffness)"
            )
        return torch.cat([self.tree.x[:1], self.tree.trace(self.tree.backtrack(node))["x"]])

    def values(self) -> Float[Tensor, "N k"]:
        """CV values of the nodes."""
        return self.box.cv(self.tree.x)

    def coverage(self, cells: int = 20) -> float:
        """Share of the box of the CVs, `cells` along each, that nodes lie in."""
        return self.box.coverage(self.values(), cells)
