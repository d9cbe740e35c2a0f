"""Settings of `molsamp plan`, and of its planners: those of `planning.settings.PLANNERS`, by name."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from molsamp.planning.settings import PLANNERS
from molsamp.runs.config import Config
from molsamp.schema import Strict

SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
CARS = ("car", "hard-car")
"""Vehicles that the policy that is shipped can drive."""


def seconds(value: Any) -> float:
    """A number of seconds, or text such as "20s" or "2 min".

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        return float(number) * SECONDS[text[len(number) :].strip() or "s"]
    except (ValueError, KeyError):
        raise ValueError(f"got {value!r}; allowed is a number in s, or with a unit: {', '.join(SECONDS)}") from None


Cell = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
CELL = "(row, column) of its cell, row 0 the lowest; none: drawn from the seed"


class Growth(Strict):
    """Settings of a planner; those of `planning.settings.Settings`, which says more of each."""

    batch: int = Field(ge=1, description="edges that are tried side by side")
    goal_bias: float = Field(ge=0, le=1, description="probability that a node is chosen for being near the goal")
    target_bias: float = Field(ge=0, le=1, description="probability that the policy is told to go to the goal")
    eps: float = Field(ge=0, le=1, description="share of edges with a uniform control; 1 without a policy")
    longest: int = Field(ge=1, description="steps of an edge")
    execute: int = Field(ge=1, description="steps between two calls of the policy")
    keep_prefix: bool = Field(description="whether an edge that touches a wall is kept up to there")
    metric: Literal["state", "position"] = Field(description="of the distance between nodes: state | position")
    patience: float = Field(ge=0, description="failures after which a node is left in half of the cases; 0: never")
    restart: int = Field(ge=0, description="edges of a lane that drives on from its own last one; 0: nodes are chosen")
    near: float = Field(ge=0, description="radius of the choice of the cheapest node, in the metric (m)")
    sparse: float = Field(ge=0, description="radius in which one node is kept, in the metric (m)")
    cost: Literal["time", "length"] = Field(description="of a way: its time in s, or its length in m")
    improve: bool = Field(description="whether to go on after the first plan, for cheaper ones")


def _of(name: str) -> type[pydantic.BaseModel]:
    """The settings of a planner, its own values the defaults."""
    fields: dict[str, Any] = {}
    for key, value in asdict(PLANNERS[name]).items():
        told = copy(Growth.model_fields[key])
        told.default = value
        fields[key] = (told.annotation, told)
    return pydantic.create_model(f"Growth_{name}", __base__=Growth, **fields)


METHODS: dict[str, type[pydantic.BaseModel]] = {name: _of(name) for name in PLANNERS}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "full": {name: {"improve": True} for name in PLANNERS},
}
"""Preset -> planner -> settings: `full` uses up its limits for cheaper plans."""


class PlanConfig(Config):
    """Settings of `molsamp plan`."""

    verb: Literal["plan"] = "plan"
    world: str = Field(description="maze | boxes | corridor | u-maze | medium | large, or a file")
    cells: str | None = Field(None, description="start of the sha256 of the world's file")
    method: str = Field("ditree", description="the planner")
    vehicle: Literal["car", "hard-car", "unicycle", "trailer"] = "car"
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    number: int | None = Field(None, ge=0, lt=2**63, description="of the world; none: the seed")
    start: Cell | None = Field(None, description=CELL)
    goal: Cell | None = Field(None, description=CELL)
    radius: float = Field(0.5, gt=0, description="of the goal, m")
    cell: float = Field(1.0, gt=0, description="side of a cell of a file, m")
    time_limit: Annotated[float, BeforeValidator(seconds)] = Field(20.0, gt=0, description="CPU time of the planner, s")
    steps: int | None = Field(2_000_000, ge=1, description="limit of dynamics steps")
    network: str | None = Field(None, description="file of the policy's weights; none: the one that is shipped")
    weights: str | None = Field(None, description="start of the sha256 of these, where the planner has a policy")
    calls: int = Field(1, ge=1, description="of the policy's network for each answer")
    threads: int = Field(1, ge=1, description="of torch; the same number gives the same bytes")

    @property
    def named(self) -> dict[str, Any]:
        """The world, the planner and the vehicle."""
        return {"world": self.world, "method": self.method, "vehicle": self.vehicle}
