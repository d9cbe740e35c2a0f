"""How planners grow: the settings of the one loop, and those that make the known planners of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How a tree grows.

    Args:
        batch: lanes B.
        goal_bias: probability that a node is chosen for being near the goal.
        target_bias: probability that the policy is told to go to the goal.
        eps: share of edges with a uniform control; 1 without a policy.
        longest: steps of an edge.
        execute: steps between two calls of the policy.
        keep_prefix: whether an edge that touches a wall is kept up to there.
        metric: distance by the whole "state", in the vehicle's weights, or by "position" alone.
        patience: failures after which a node is left in half of the cases; 0 for never.
        restart: edges after which a lane that drives on from its own last edge begins again; 0 to choose nodes.
        near: radius of the choice of the cheapest node, in the metric (m for positions).
        sparse: radius in which one node is kept, in the metric.
        cost: of a way, its "time" in s or its "length" in m.
        improve: whether to go on after the first plan, for cheaper ones.
    """

    batch: int = 64
    goal_bias: float = 0.15
    target_bias: float = 0.85
    eps: float = 1.0
    longest: int = 64
    execute: int = 8
    keep_prefix: bool = False
    metric: str = "state"
    patience: float = 0.0
    restart: int = 0
    near: float = 0.0
    sparse: float = 0.0
    cost: str = "time"
    improve: bool = False

    def __post_init__(self):
        for name in ("batch", "longest", "execute"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("goal_bias", "target_bias", "eps"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability")
        for name in ("near", "sparse", "patience", "restart"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name, allowed in (("metric", ("state", "position")), ("cost", ("time", "length"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: there are {', '.join(allowed)}")


PLANNERS = {
    "rrt": Settings(),
    "sst": Settings(near=0.2, sparse=0.1, improve=True),
    "ditree": Settings(batch=32, eps=0.1, target_bias=0.0, execute=16, metric="position"),
    "policy": Settings(batch=16, eps=0.0, target_bias=1.0, restart=62),  # 62 x 64 steps of 0.02 s: 80 s of driving
}
