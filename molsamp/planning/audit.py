"""A second opinion on a plan: re-simulated at a tenth of the step, re-checked point by point.

Nothing here is shared with the planners' kernels: other code for the equations of motion, the bounds and the walls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from molsamp.planning.problems import Problem
from molsamp.planning.results import Plan
from molsamp.planning.vehicles import Car, DoubleIntegrator, Trailer, Unicycle, Vehicle
from molsamp.planning.worlds import World

FINER = 10
RIM = 48  # points on the rim of a disc, a multiple of 4

Field = Callable[[np.ndarray, np.ndarray], list[float]]


class Audit(NamedTuple):
    """What came out.

    Args:
        touches: fine step at which a point of the vehicle first lies in a wall, -1 for none.
        reaches: whether the end lies in the goal.
        deviation: largest distance between the plan's positions and the re-simulated ones, m.
    """

    touches: int
    reaches: bool
    deviation: float

    @property
    def passed(self) -> bool:
        """No wall, and in the goal."""
        return self.touches < 0 and self.reaches


def audit(problem: Problem, plan: Plan) -> Audit:
    """Re-simulate a plan's controls from its start and look at every point.

    Raises:
        ValueError: for a vehicle whose equations are not known here.
    """
    fine = resimulate(problem.vehicle, problem.start.numpy(), plan.controls.numpy())
    blocked = touching(problem, fine)
    end = np.hypot(*(fine[-1, :2] - problem.goal.numpy()))
    gap = np.hypot(*(fine[::FINER, :2] - plan.states[:, :2].numpy()).T)
    first = int(np.argmax(blocked)) if blocked.any() else -1
    return Audit(first, bool(end < problem.radius + 1e-3), float(gap.max()))


def resimulate(vehicle: Vehicle, start: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """States at a tenth of the vehicle's step, (10 F + 1, s)."""
    f, body, h = _field(vehicle), vehicle.body, vehicle.dt / FINER
    driven = list(body.actuators)
    low, high = np.array(body.low), np.array(body.high)
    states = [np.array(start)]
    for command in controls:
        limited = np.clip(command, -np.array(body.rate), body.rate)
        target = np.clip(states[-1][driven] + vehicle.dt * limited, low[driven], high[driven])
        u = (target - states[-1][driven]) / vehicle.dt
        for _ in range(FINER):
            s = states[-1]
            a = np.array(f(s, u))
            b = np.array(f(s + 0.5 * h * a, u))
            c = np.array(f(s + 0.5 * h * b, u))
            d = np.array(f(s + h * c, u))
            s = s + h / 6 * (a + 2 * b + 2 * c + d)
            if isinstance(vehicle, Car):
                s[3] = np.clip(s[3], low[3], high[3])
            states.append(s)
    return np.array(states)


def touching(problem: Problem, states: np.ndarray) -> np.ndarray:
    """Whether a point of the vehicle's discs lies in a wall or outside the grid, (n,).

    Looked up are a disc's centre, points all around its rim, and the four grid points around its centre: a corner of a
    wall can enter a disc between two points of the rim. For discs smaller than a cell this misses nothing.
    """
    world = problem.world
    angle, x, y = world.pose
    hit = np.zeros(len(states), dtype=bool)
    for heading, offset, radius in problem.vehicle.body.discs:
        centre = states[:, 0] + 1j * states[:, 1]
        if heading >= 0:
            centre = centre + offset * np.exp(1j * states[:, heading])
        z = ((centre - (x + 1j * y)) * np.exp(-1j * angle) / world.cell)[:, None]
        r = radius / world.cell
        hit |= _wall(world, np.append(z + r * np.exp(2j * np.pi * np.arange(RIM) / RIM), z, 1)).any(1)
        corner = np.floor(z.real) + 1j * np.floor(z.imag) + np.array([0, 1, 1j, 1 + 1j])
        beside = [_wall(world, corner + 0.5 * side) for side in (1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j)]
        hit |= (np.any(beside, 0) & (abs(z - corner) < r)).any(1)
    return hit


def _wall(world: World, z: np.ndarray) -> np.ndarray:
    """Whether points of the grid's frame, in cells, lie in a wall."""
    grid = np.pad(world.blocked.numpy(), 1, constant_values=True)
    i, j = (np.clip(np.floor(a).astype(int) + 1, 0, n - 1) for a, n in zip((z.imag, z.real), grid.shape, strict=True))
    return grid[i, j]


def _field(vehicle: Vehicle) -> Field:
    if isinstance(vehicle, Car):
        c = vehicle

        def car(s, u):
            v, D, slip = max(s[3], 0.0), s[4], c.C1 * s[5]
            force = c.Cm1 * D - c.Cm2 * v * D - c.Cr0 * np.tanh(5 * v) - c.Cr2 * v**2
            push = np.cos(slip) * force / c.mass if v > 0 or D > 0 else 0.0
            return [v * np.cos(s[2] + slip), v * np.sin(s[2] + slip), c.C2 * v * s[5], push, *u]

        return car
    if isinstance(vehicle, Unicycle):
        return lambda s, u: [s[3] * np.cos(s[2]), s[3] * np.sin(s[2]), s[4], *u]
    if isinstance(vehicle, Trailer):
        base, hitch = vehicle.wheelbase, vehicle.hitch
        return lambda s, u: [
            s[3] * np.cos(s[2]),
            s[3] * np.sin(s[2]),
            np.tan(s[4]) * s[3] / base,
            *u,
            np.sin(s[2] - s[5]) * s[3] / hitch,
        ]
    if isinstance(vehicle, DoubleIntegrator):
        return lambda s, u: [s[2], s[3], *u]
    raise ValueError(f"the equations of {type(vehicle).__name__} are not known here, only those of the room's vehicles")
