"""Where a planner's controls come from: the uniform draw, and the protocol of a learned policy."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.planning.problems import Problem
from molsamp.planning.vehicles import Vehicle


@runtime_checkable
class Sampler(Protocol):
    """A policy: H controls for each of B vehicles that are to drive towards a target.

    Args:
        states: (B, s).
        targets: points to drive to, m, in the plane, (B, 2).
        problem: world, vehicle and goal.
        noise: a stream of the sampler's own.
        step: key of this call's draws; particles' ids are 0..B-1.

    Returns:
        controls, (B, H, m), in the vehicle's units; rates beyond the vehicle's limits are cut by it.
    """

    def __call__(
        self,
        states: Float[Tensor, "B s"],
        targets: Float[Tensor, "B 2"],
        problem: Problem,
        noise: Noise,
        step: int,
    ) -> Float[Tensor, "B H m"]: ...


def uniform(
    vehicle: Vehicle, u: Float[Tensor, "B draws"], longest: int
) -> tuple[Float[Tensor, "B 1 m"], Int[Tensor, " B"]]:
    """One control each, uniform within the rates, and for how many steps it is held, uniform in 1..longest.

    Args:
        vehicle: whose rates.
        u: uniform numbers in (0, 1), the last for the duration.
        longest: steps.
    """
    rate = torch.tensor(vehicle.body.rate, dtype=torch.float64)
    return ((2.0 * u[:, :-1] - 1.0) * rate)[:, None], (u[:, -1] * longest).long() + 1
