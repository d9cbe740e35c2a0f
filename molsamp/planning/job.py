"""Planning as resumable work: batches of edges, until there is a plan or a limit is reached."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from molsamp.planning.planners import Planner
from molsamp.planning.results import Result


class Growing:
    """A tree that grows; a `learn.drive.Job` whose units are batches of edges.

    How many there will be is not known beforehand: `total` is an estimate from the share of the limits that is used up,
    and k once the work is done. The batches are the same however the work is interrupted; which is the last one depends
    on the machine only where the CPU time is what ends it.

    Args:
        planner: not yet grown.
        time_limit: CPU time of the planner, s.
        steps: limit of the dynamics' steps, or None.

    Raises:
        ValueError: for limits that are not positive.
    """

    def __init__(self, planner: Planner, time_limit: float, steps: int | None):
        if not time_limit > 0 or (steps is not None and steps < 1):
            raise ValueError(f"limits of {time_limit} CPU seconds and {steps} steps: they must be positive")
        self.planner, self.time_limit, self.steps = planner, time_limit, steps
        self.nearest = math.inf
        self._measured = 0
        self.k = self.total = 0
        self._look()

    def advance(self) -> dict[str, Any]:
        """One batch."""
        self.planner.advance()
        self._look()
        c, best = self.planner.counts, self.planner.best
        nodes = len(self.planner.tree)
        cost = None if best is None else float(self.planner.tree.cost[best])
        unit = "s" if self.planner.settings.cost == "time" else "m"
        note = f"{nodes} nodes, {self.nearest:.1f} m from the goal" if best is None else f"a plan of {cost:.2f} {unit}"
        told = {"edges": c.edges, "steps": c.steps, "nodes": nodes, "nearest": self.nearest, "cost": cost}
        return {**told, "note": note}

    @property
    def result(self) -> Result:
        """What there is up to now."""
        limit = f"{self.time_limit:g} CPU seconds"
        return self.planner.result(limit if self.steps is None else f"{limit} and {self.steps} steps")

    def state(self) -> dict[str, Tensor]:
        """What the next batch depends on, and what there is."""
        return {"k": torch.tensor(self.k), **self.planner.to_tensors()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        self.planner.restore(state)
        self.nearest, self._measured = math.inf, 0
        self._look()

    def _look(self) -> None:
        """Bring the distance to the goal, k and its total up to date."""
        planner, problem = self.planner, self.planner.problem
        new = planner.tree.x[self._measured :, :2]
        if len(new):
            self.nearest = min(self.nearest, float((new - problem.goal).norm(dim=1).min()))
        self._measured = len(planner.tree)
        self.k = planner.counts.batches
        used = planner.cpu_seconds / self.time_limit
        if self.steps is not None:
            used = max(used, planner.counts.steps / self.steps)
        over = planner.done or problem.closed or used >= 1.0
        self.total = self.k if over else max(self.k + 1, math.ceil(self.k / max(used, 1e-9)))
