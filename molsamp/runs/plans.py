"""The verb `plan`: a way for a vehicle through a world, and the tree that found it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molsamp.engine.noise import Noise
from molsamp.planning.audit import Audit, audit
from molsamp.planning.job import Growing
from molsamp.planning.places import place
from molsamp.planning.planners import Planner
from molsamp.planning.problems import Problem
from molsamp.planning.results import Plan, Result
from molsamp.planning.samplers import Sampler
from molsamp.planning.settings import PLANNERS, Settings
from molsamp.planning.vehicles import VEHICLES
from molsamp.runs.checkpoint import replace, write_text
from molsamp.runs.config_plan import CARS

THIN = 4  # steps between two points of an edge in tree.npz
RIM = 24  # corners of the outline of a disc

Array = np.ndarray


@dataclass(frozen=True)
class Planned:
    """A finished tree and what was found about it."""

    job: Growing

    @cached_property
    def result(self) -> Result:
        """The outcome."""
        return self.job.result

    @cached_property
    def verdict(self) -> Audit | None:
        """What independent code says of the plan."""
        plan = self.result.plan
        return None if plan is None else audit(self.job.planner.problem, plan)

    def save(self, folder: Path) -> None:
        """Write plan.csv, where there is a plan, and tree.npz.

        Raises:
            OSError: if the folder cannot be written.
        """
        if self.result.plan is not None:
            write_text(folder / "plan.csv", plan_table(self.job.planner.problem, self.result.plan))
        tree = tree_arrays(self.job.planner)
        replace(folder / "tree.npz", lambda temporary: _savez(temporary, tree))

    def figures(self, folder: Path) -> dict[str, Any]:
        """What the report says of the settings; its figures are drawn from plan.csv, tree.npz and metrics.jsonl."""
        settings = self.job.planner.settings
        return {"planner": asdict(settings), "time_limit": self.job.time_limit, "steps": self.job.steps}

    def summary(self) -> dict[str, Any]:
        """What result.json says: results, counts of edges, times, the diagnosis, warnings."""
        r, audited = self.result, self.verdict
        found: dict[str, dict[str, Any]] = {"success": _number(int(r.solved))}
        if r.plan is not None:
            found["path_length_ratio"] = _number(r.length_ratio)
            found["path_length"] = _number(r.plan.length, "m")
            found["duration"] = _number(float(r.plan.times[-1]), "s")
            found["effort"] = _number(r.plan.effort)
        if audited is not None:
            found["deviation"] = _number(1e3 * audited.deviation, "mm")
        found |= {"grid_distance": _number(r.grid_distance, "m"), "nearest": _number(r.nearest, "m")}
        found |= {"edges": _number(r.counts.edges), "nodes": _number(r.nodes), "coverage": _number(r.coverage)}
        found |= {"dynamics_steps": _number(r.counts.steps), "policy_calls": _number(r.counts.calls)}
        times = {} if r.first_solution is None else {"first_plan": _number(r.first_solution, "CPU s")}
        return {
            "results": found,
            "times": {**times, "planning": _number(r.cpu_seconds, "CPU s")},
            "counts": asdict(r.counts),
            "diagnosis": r.diagnosis,
            "audit": None if audited is None else {**audited._asdict(), "passed": audited.passed},
            "warnings": [r.diagnosis] * bool(r.diagnosis) + self._doubts(),
        }

    def _doubts(self) -> list[str]:
        """What the audit holds against the plan."""
        audited = self.verdict
        if audited is None or audited.passed:
            return []
        where = f"touches a wall at step {audited.touches} of a tenth" if audited.touches >= 0 else "misses the goal"
        return [f"the plan does not pass the audit: simulated again in finer steps it {where}"]


def make(config: Any, problem: Problem) -> Growing:
    """The job.

    Raises:
        ValueError: a policy that is needed and is not there, or a vehicle that it cannot drive.
    """
    settings = Settings(**config.of_method.model_dump())
    sampler = _sampler(config) if settings.eps < 1 else None
    Planner(problem, settings, Noise(0), sampler).advance()  # compiles the kernels, which the times should not count
    return Growing(
        Planner(problem, settings, Noise(config.seed).child("plan"), sampler), config.time_limit, config.steps
    )


def analyse(job: Growing, config: Any) -> Planned:
    """Look at what was found."""
    return Planned(job)


def subject(config: Any) -> Problem:
    """The world, the vehicle, where it starts and where it is to go.

    Raises:
        ValueError: as `planning.places.place`.
    """
    number = config.seed if config.number is None else config.number
    where = {"start": config.start, "goal": config.goal, "radius": config.radius, "cell": config.cell}
    return place(config.world, VEHICLES[config.vehicle], number, **where)


def needs_policy(config: Any) -> bool:
    """Whether the planner draws controls from a policy."""
    return config.of_method.eps < 1


def policy_file(config: Any) -> Path:
    """The file of the policy's weights."""
    from molsamp.planning.train import WEIGHTS

    return WEIGHTS / "car.safetensors" if config.network is None else Path(config.network)


def describe(problem: Problem) -> dict[str, Any]:
    """Walls, start, goal and the vehicle's outline, for the figures; lengths in m."""
    world, body = problem.world, problem.vehicle.body
    return {
        "title": world.name,
        "walls": world.text().split("\n"),
        "cell": world.cell,
        "start": problem.start.tolist(),
        "goal": problem.goal.tolist(),
        "radius": problem.radius,
        "states": list(body.names),
        "dt": problem.vehicle.dt,
        "bodies": bodies(body.discs),
    }


def bodies(discs: tuple[tuple[int, float, float], ...]) -> list[dict[str, Any]]:
    """The outline of each rigid part of a vehicle, in its own frame, and the state that is its heading (-1: none)."""
    from scipy.spatial import ConvexHull

    rim = np.exp(2j * np.pi * np.arange(RIM) / RIM)
    parts = []
    for heading in dict.fromkeys(h for h, _, _ in discs):
        z = np.concatenate([offset + radius * rim for h, offset, radius in discs if h == heading])
        points = np.stack([z.real, z.imag], 1)
        outline = points[ConvexHull(points).vertices]
        parts.append({"heading": heading, "outline": [[round(float(a), 4) for a in point] for point in outline]})
    return parts


def plan_table(problem: Problem, plan: Plan) -> str:
    """plan.csv: time in s, the states, and the rates of the actuators that act from there on; none in the last line."""
    body = problem.vehicle.body
    headings = ["t", *body.names, *(f"{body.names[i]}_rate" for i in body.actuators)]
    lines = [",".join(headings)]
    controls = [*plan.controls.tolist(), [""] * problem.vehicle.controls]
    for t, state, control in zip(plan.times.tolist(), plan.states.tolist(), controls, strict=True):
        lines.append(
            ",".join([f"{t:.6g}", *(f"{x:.17g}" for x in state), *(f"{u:.17g}" if u != "" else "" for u in control)])
        )
    return "\n".join(lines) + "\n"


def tree_arrays(planner: Planner) -> dict[str, Array]:
    """tree.npz: of each node its parent (-1 for the root), state, time (s), cost and whether it can still grow; the
    nodes of the plan; and `way`, positions (m) along the edges, thinned: those of node i are the rows from
    way_end[i - 1] to way_end[i], without its parent's position.
    """
    tree, columns = planner.tree, planner.tree.to_tensors()
    end, points = columns["end"], columns["along.states"][:, :2]
    begin = torch.cat([end.new_zeros(1), end[:-1]])
    edge = torch.repeat_interleave(torch.arange(len(tree)), end - begin)
    step = torch.arange(len(points)) - begin[edge] + 1
    kept = (step % THIN == 0) | (step == (end - begin)[edge])
    branch = [] if planner.best is None else tree.backtrack(planner.best).tolist()
    return {
        "parent": tree.parent.numpy(),
        "state": tree.x.numpy(),
        "time": tree.time.numpy(),
        "cost": tree.cost.numpy(),
        "active": tree.active.numpy(),
        "way": points[kept].numpy().astype(np.float32),
        "way_end": torch.bincount(edge[kept], minlength=len(tree)).cumsum(0).numpy(),
        "plan": np.array(branch, dtype=np.int64),
    }


def _savez(file: Path, arrays: dict[str, Array]) -> None:
    with file.open("wb") as f:  # a path would have .npz put after it
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]


def _sampler(config: Any) -> Sampler:
    """The trained policy.

    Raises:
        ValueError: for a vehicle that it has not learned to drive, or weights that are missing or of another form.
    """
    from molsamp.planning.train import load

    without = ", ".join(name for name, settings in PLANNERS.items() if settings.eps == 1)
    needing = f"planner {config.method} with eps = {config.of_method.eps:g} needs a policy"
    if config.vehicle not in CARS:
        raise ValueError(
            f"{needing}, and the one there is drives {' and '.join(CARS)}, not {config.vehicle}; without a policy "
            f"there are {without}"
        )
    file = policy_file(config)
    if not file.is_file():
        raise ValueError(f"{needing}, and {file} does not exist; without a policy there are {without}")
    return load(file, config.calls)


def _number(value: float, unit: str = "1") -> dict[str, Any]:
    """An entry of result.json; one tree is one draw, so there is no interval."""
    return {"value": value if math.isfinite(value) else None, "interval": None, "unit": unit, "n": 1}
