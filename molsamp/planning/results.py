"""What a planner found, what it cost, and, where it found nothing, why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.planning.problems import Problem


@dataclass(frozen=True)
class Plan:
    """Controls and the states they lead through.

    Args:
        times: s, (F,).
        states: (F, s).
        controls: control j acts from frame j to j + 1, (F - 1, m).
    """

    times: Float[Tensor, " F"]
    states: Float[Tensor, "F s"]
    controls: Float[Tensor, "F-1 m"]

    @property
    def length(self) -> float:
        """Of the way, m."""
        return float((self.states[1:, :2] - self.states[:-1, :2]).norm(dim=1).sum())

    @property
    def effort(self) -> float:
        """Mean square of the controls times the duration, summed over them: the integral of |u|^2 dt."""
        return float((self.controls.square().sum(1) * self.times.diff()).sum())


@dataclass
class Counts:
    """What was done.

    Args:
        batches: calls of `advance`.
        edges: edges tried.
        hit: rejected, touched a wall.
        stuck: of these, at their first step.
        diverged: rejected, not finite.
        pruned: rejected, a cheaper node was near.
        costly: rejected, no cheaper than the best plan.
        steps: of the dynamics, rejected edges included.
        calls: of the policy, one for each vehicle and call.
    """

    batches: int = 0
    edges: int = 0
    hit: int = 0
    stuck: int = 0
    diverged: int = 0
    pruned: int = 0
    costly: int = 0
    steps: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Result:
    """The outcome of planning.

    Args:
        solved: whether a plan was found.
        plan: it, or None.
        counts: what was done.
        nodes: in the tree.
        cpu_seconds: spent.
        first_solution: CPU seconds until the first plan, or None.
        grid_distance: shortest way through free cells from start to goal, m.
        nearest: distance between the goal and the node nearest to it, m.
        coverage: share of the cells that can be reached which hold a node.
        diagnosis: in words; empty where solved.
    """

    solved: bool
    plan: Plan | None
    counts: Counts
    nodes: int
    cpu_seconds: float
    first_solution: float | None
    grid_distance: float
    nearest: float
    coverage: float
    diagnosis: str

    @property
    def length_ratio(self) -> float:
        """Length of the plan over the grid distance; not a number without a plan."""
        return self.plan.length / self.grid_distance if self.plan else float("nan")


def coverage(problem: Problem, states: Float[Tensor, "N s"]) -> float:
    """Share of the cells connected with the start that hold a state."""
    seen = torch.zeros_like(problem.world.blocked)
    seen[tuple(problem.world.cells(states[:, :2]).T)] = True
    return float(seen[tuple(problem.reachable.T)].double().mean())


def diagnose(problem: Problem, counts: Counts, nodes: int, nearest: float, covered: float, limit: str) -> str:
    """Why there is no plan."""
    if problem.closed:
        return "unreachable: walls cut the start off from the goal"
    lines = [
        f"not solved within {limit}: {counts.edges} edges tried, {nodes} nodes in {covered:.0%} of the reachable cells",
        f"the nearest is {nearest:.2f} m from the goal, whose disc has a radius of {problem.radius:g} m",
    ]
    if counts.edges:
        reasons = [
            (counts.hit, "touched a wall"),
            (counts.stuck, "did so at their first step (nodes from which no way leads out)"),
            (counts.pruned, "ended near a cheaper node"),
            (counts.diverged, "diverged"),
        ]
        lines.append("edges: " + ", ".join(f"{n / counts.edges:.0%} {why}" for n, why in reasons if n))
    if not counts.edges:
        lines.append("no edge was tried: the limit is too small")
    elif covered < 0.5 and counts.hit > 0.8 * counts.edges:
        lines.append("nearly all edges end in walls: shorter edges, or kept prefixes, may help")
    return "; ".join(lines)
