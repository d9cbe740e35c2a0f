"""Kinodynamic trees: one loop for RRT, SST, trees whose controls come from a learned policy, and that policy alone.

    repeat, for B lanes at once:
        x_rand   <- uniform state in the cells that can be reached, with probability goal_bias one at the goal
        x_near   <- the cheapest node within `near` of x_rand, or the nearest node where there is none; with probability
                    f / (f + patience) any node, where the last f edges from that one have failed
        u_1:n    <- with probability eps one uniform control, held for a random time; otherwise the policy, which is
                    told to go to the goal with probability target_bias, and to x_rand otherwise
        add the motion under u to the tree unless it touches a wall, or ends within `sparse` of a cheaper node

RRT (LaValle and Kuffner 2001) is eps = 1, near = sparse = 0; SST (Li, Littlefield and Bekris 2016) is eps = 1 with
both positive; DiTree (Hassidof, Jurgenson and Solovey 2025) is eps < 1 with nodes nearest by position. For eps > 0
every control has a density of at least eps times the uniform one, so the guarantee of the uniform tree is kept with
eps k iterations in place of k. The policy alone is eps = 0 with x_near the end of the lane's own last edge, or the
start, where that edge has failed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import torch
from jaxtyping import Int
from torch import Tensor

from molsamp.engine.columns import Columns
from molsamp.engine.neighbours import Neighbours
from molsamp.engine.noise import Noise
from molsamp.engine.trees import Tree
from molsamp.engine.witnesses import Witnesses
from molsamp.planning.draws import Ahead
from molsamp.planning.edges import Edges, driven, held, merge
from molsamp.planning.problems import Problem
from molsamp.planning.results import Counts, Plan, Result, coverage, diagnose
from molsamp.planning.samplers import Sampler
from molsamp.planning.settings import PLANNERS, Settings
from molsamp.planning.vehicles import DIVERGED, HIT, REACHED


class Planner:
    """A tree that grows from a problem's start; `advance` is the unit of work, after which it can be saved.

    Args:
        problem: what to solve.
        settings: how.
        noise: randomness; all draws are keyed by the number of the batch and the lane.
        sampler: the policy, for eps < 1.

    Raises:
        ValueError: if eps < 1 without a policy.
    """

    def __init__(self, problem: Problem, settings: Settings, noise: Noise, sampler: Sampler | None = None):
        if settings.eps < 1 and sampler is None:
            raise ValueError(f"eps={settings.eps} < 1 needs a sampler, who draws the controls of the other edges")
        self.problem, self.settings, self.noise, self.sampler = problem, settings, noise, sampler
        self.counts = Counts()
        self.best: int | None = None
        self.cpu_seconds = 0.0
        self.first_solution: float | None = None
        self._lanes, self._policy = (Ahead(noise.child(name).seed, settings.batch) for name in ("lanes", "policy"))
        self._failed = Columns({"edges": torch.zeros(1, dtype=torch.int64)})
        self._tips = torch.zeros(settings.batch, dtype=torch.int64)
        along = {"states": problem.start[None], "controls": problem.start.new_zeros((1, problem.vehicle.controls))}
        self.tree = Tree(problem.start[None], along=along)
        root = self._features(self.tree.x)
        self._nodes = Neighbours(root.shape[1])
        self._nodes.add(root, torch.tensor([0]))
        self._witnesses = Witnesses(settings.sparse, root.shape[1]) if settings.sparse else None
        if self._witnesses is not None:
            self._witnesses.settle(
                self._witnesses.admit(root, self.tree.cost).witness, torch.tensor([0]), self.tree.cost
            )

    @property
    def done(self) -> bool:
        """Whether there is a plan and no other is wanted."""
        return self.best is not None and not self.settings.improve

    def advance(self) -> None:
        """One batch of edges."""
        began = time.process_time()
        aim, mix, control, other = self._draws()
        aims = self._aims(aim)
        parents = self._choose(aims, other)
        edges = self._edges(self.tree.x[parents], aims[:, :2], mix, control)
        self._count(edges)
        grown = self._grow(parents, edges)
        failed = self._failed["edges"]
        failed.index_add_(0, parents, (grown < 0).long())
        failed[parents[grown >= 0]] = 0
        self._tips = torch.where((grown >= 0) & (self.tree.depth[grown] < self.settings.restart), grown, 0)
        self.cpu_seconds += time.process_time() - began
        if self.best is not None and self.first_solution is None:
            self.first_solution = self.cpu_seconds

    def run(self, cpu_seconds: float = 30.0, steps: int | None = None) -> Result:
        """Grow until there is a plan, or a limit is reached; may be called again with larger limits.

        Args:
            cpu_seconds: CPU time of this planner in all, s.
            steps: of the dynamics in all; None for no limit.

        Raises:
            ValueError: for limits that are not positive.
        """
        if not cpu_seconds > 0 or (steps is not None and steps < 1):
            raise ValueError(f"limits of {cpu_seconds} CPU seconds and {steps} steps: they must be positive")
        while not (self.done or self.problem.closed or self.cpu_seconds >= cpu_seconds):
            if steps is not None and self.counts.steps >= steps:
                break
            self.advance()
        limit = f"{cpu_seconds:g} CPU seconds" + ("" if steps is None else f" and {steps} steps")
        return self.result(limit)

    def result(self, limit: str = "the work done so far") -> Result:
        """What there is up to now."""
        gap = float((self.tree.x[:, :2] - self.problem.goal).norm(dim=1).min())
        covered, solved = coverage(self.problem, self.tree.x), self.best is not None
        return Result(
            solved=solved,
            plan=None if self.best is None else self.plan(self.best),
            counts=replace(self.counts),
            nodes=len(self.tree),
            cpu_seconds=self.cpu_seconds,
            first_solution=self.first_solution,
            grid_distance=self.problem.grid_distance,
            nearest=gap,
            coverage=covered,
            diagnosis="" if solved else diagnose(self.problem, self.counts, len(self.tree), gap, covered, limit),
        )

    def plan(self, node: int) -> Plan:
        """The way from the start to a node."""
        way = self.tree.trace(self.tree.backtrack(node))
        states = torch.cat([self.problem.start[None], way["states"]])
        return Plan(torch.arange(len(states), dtype=torch.float64) * self.problem.vehicle.dt, states, way["controls"])

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        first = -1.0 if self.first_solution is None else self.first_solution
        return {
            **{f"tree.{name}": rows for name, rows in self.tree.to_tensors().items()},
            **{f"witnesses.{k}": v for k, v in (self._witnesses.to_tensors() if self._witnesses else {}).items()},
            "counts": torch.tensor(list(asdict(self.counts).values())),
            "failed": self._failed["edges"].clone(),
            "tips": self._tips,
            "best": torch.tensor(-1 if self.best is None else self.best),
            "seconds": torch.tensor([self.cpu_seconds, first], dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> Planner:
        """Go on from `to_tensors` of a planner of the same problem, settings and noise; returns self."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.tree = Tree.from_tensors(under("tree."))
        self._nodes = Neighbours(self._features(self.problem.start[None]).shape[1])
        active = torch.nonzero(self.tree.active)[:, 0]
        self._nodes.add(self._features(self.tree.x[active]), active)
        if self._witnesses is not None:
            self._witnesses = Witnesses.from_tensors(self.settings.sparse, under("witnesses."))
        self._failed, self._tips = Columns({"edges": state["failed"]}), state["tips"]
        self.counts = Counts(*state["counts"].tolist())
        self.best = int(state["best"]) if state["best"] >= 0 else None
        self.cpu_seconds, first = state["seconds"].tolist()
        self.first_solution = first if first >= 0 else None
        return self

    def _features(self, states: Tensor) -> Tensor:
        return states[:, :2] if self.settings.metric == "position" else self.problem.vehicle.features(states)

    def _choose(self, aims: Tensor, u: Tensor) -> Int[Tensor, " B"]:
        """The nodes to grow from."""
        if self.settings.restart:
            return self._tips
        parents = self._nodes.cheapest(self._features(aims), self.settings.near, self.tree.cost)
        if not self.settings.patience:
            return parents
        f, active = self._failed["edges"][parents].double(), torch.nonzero(self.tree.active)[:, 0]
        leave = u[:, 0] < f / (f + self.settings.patience)
        return torch.where(leave, active[(u[:, 1] * len(active)).long()], parents)

    def _draws(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This batch's uniform numbers: for the aims, the mixture, uniform controls, and nodes that are left."""
        sizes = (len(self.problem.start) + 2, 2, self.problem.vehicle.controls + 1, 2)
        u = self._lanes.uniform(self.counts.batches, torch.arange(self.settings.batch), (sum(sizes),))
        aim, mix, control, other = u.split(sizes, dim=1)
        return aim, mix, control, other

    def _aims(self, u: Tensor) -> Tensor:
        """Uniform states in the cells that can be reached, drawn in the world's frame; some at the goal."""
        world, vehicle = self.problem.world, self.problem.vehicle
        cell = self.problem.reachable[(u[:, 1] * len(self.problem.reachable)).long()].flip(-1)
        low, high = (torch.tensor(bound[2:], dtype=torch.float64) for bound in (vehicle.body.low, vehicle.body.high))
        states = torch.cat([(cell + u[:, 2:4]) * world.cell, low + u[:, 4:] * (high - low)], 1)
        states = vehicle.moved(states, world.pose)
        states[u[:, 0] < self.settings.goal_bias, :2] = self.problem.goal
        return states

    def _edges(self, starts: Tensor, targets: Tensor, mix: Tensor, control: Tensor) -> Edges:
        s, problem = self.settings, self.problem
        if s.eps == 1 or self.sampler is None:
            return held(starts, problem, control, s.longest)
        targets = torch.where((mix[:, 1] < s.target_bias)[:, None], problem.goal, targets)
        own = mix[:, 0] < s.eps
        parts = []
        if len(rows := torch.nonzero(own)[:, 0]):
            parts.append((rows, held(starts[rows], problem, control[rows], s.longest)))
        if len(rows := torch.nonzero(~own)[:, 0]):
            ends, batch = targets[rows], self.counts.batches
            driving = driven(starts[rows], ends, problem, self.sampler, self._policy, batch, s.longest, s.execute)
            parts.append((rows, driving))
        return merge(parts, len(own))

    def _count(self, edges: Edges) -> None:
        hit, c = edges.fate == HIT, self.counts
        c.batches += 1
        c.edges += len(hit)
        c.hit += int(hit.sum())
        c.stuck += int((hit & (edges.steps == 0)).sum())
        c.diverged += int((edges.fate == DIVERGED).sum())
        c.steps += edges.simulated
        c.calls += edges.calls

    def _grow(self, parents: Tensor, edges: Edges) -> Int[Tensor, " B"]:
        """Add the edges that are worth keeping; the node of each lane, -1 where there is none."""
        s, seconds = self.settings, edges.steps.double() * self.problem.vehicle.dt
        stands = (edges.steps > 0) & (edges.fate != DIVERGED) & ((edges.fate != HIT) | s.keep_prefix)
        cost = edges.lengths() if s.cost == "length" else seconds
        total = self.tree.cost[parents] + cost
        if self.best is not None:
            cheap = total < self.tree.cost[self.best]
            self.counts.costly += int((stands & ~cheap).sum())
            stands &= cheap
        rows, ends = torch.nonzero(stands)[:, 0], edges.ends()
        points, reached = self._features(ends[rows]), edges.fate[rows] == REACHED
        keep = torch.ones(len(rows), dtype=torch.bool)
        if self._witnesses is not None:
            admission = self._witnesses.admit(points, total[rows])
            keep[:] = False
            keep[admission.rows] = True
            self.counts.pruned += int((~(keep | reached)).sum())
        chosen = torch.nonzero(keep | reached)[:, 0]  # a plan is never pruned away, only never grown from
        lanes = rows[chosen]
        nodes = self.tree.extend(
            parents[lanes],
            ends[lanes],
            duration=seconds[lanes],
            cost=cost[lanes],
            along={"states": edges.states[lanes, 1:], "controls": edges.controls[lanes]},
            steps=edges.steps[lanes],
        )
        self._failed.append({"edges": torch.zeros_like(nodes)})
        growing = keep[chosen]
        self._nodes.add(points[chosen[growing]], nodes[growing])
        self._retire(nodes[~growing])
        if self._witnesses is not None:
            self._witnesses.settle(admission.witness, nodes[growing], self.tree.cost[nodes[growing]])
            self._retire(admission.displaced)
        self._finish(nodes[reached[chosen]])
        return torch.full_like(parents, -1).index_put((lanes,), nodes)

    def _retire(self, nodes: Int[Tensor, " n"]) -> None:
        self.tree.prune(nodes)
        self._nodes.discard(nodes)

    def _finish(self, goals: Int[Tensor, " n"]) -> None:
        if len(goals):
            node = int(goals[self.tree.cost[goals].argmin()])
            if self.best is None or self.tree.cost[node] < self.tree.cost[self.best]:
                self.best = node


def plan(
    problem: Problem,
    planner: str | Settings = "rrt",
    *,
    noise: Noise,
    sampler: Sampler | None = None,
    cpu_seconds: float = 30.0,
    steps: int | None = None,
) -> Result:
    """Solve a problem.

    Args:
        problem: vehicle, world, start and goal.
        planner: "rrt", "sst", "ditree", "policy", or settings of one's own.
        noise: same noise, same plan.
        sampler: the policy, for "ditree" and "policy".
        cpu_seconds: limit, s.
        steps: limit of dynamics steps, or None.

    Returns:
        the plan and what it cost, or why there is none.

    Raises:
        ValueError: for an unknown planner, a missing policy, or limits that are not positive.
    """
    if isinstance(planner, str) and planner not in PLANNERS:
        raise ValueError(f"planner {planner!r}: there are {', '.join(PLANNERS)}")
    settings = PLANNERS[planner] if isinstance(planner, str) else planner
    return Planner(problem, settings, noise, sampler).run(cpu_seconds, steps)
