"""A second opinion on a plan: re-simulated at a tenth of the step, re-checked point by point.

Nothing here is shared with the planners' kernels: other code for the equations of motion, the bounds and the walls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    return _verdict(problem, plan, resimulate(problem.vehicle, problem.start.numpy(), plan.controls.numpy()))


def audits(problems: Sequence[Problem], plans: Sequence[Plan]) -> list[Audit]:
    """The audit of many plans of one vehicle, re-simulated side by side, which costs little more than the longest.

    Raises:
        ValueError: as `audit`, or for problems of different vehicles.
    """
    if not plans:
        return []
    vehicle = problems[0].vehicle
    if any(p.vehicle != vehicle for p in problems):
        raise ValueError("plans are re-simulated side by side for one vehicle; these problems have several")
    controls = np.zeros((max(len(p.controls) for p in plans), vehicle.controls, len(plans)))
    for k, plan in enumerate(plans):
        controls[: len(plan.controls), :, k] = plan.controls.numpy()
    fine = resimulate(vehicle, np.stack([p.start.numpy() for p in problems], -1), controls)
    return [
        _verdict(q, p, fine[: FINER * len(p.controls) + 1, :, k])
        for k, (q, p) in enumerate(zip(problems, plans, strict=True))
    ]


def _verdict(problem: Problem, plan: Plan, fine: np.ndarray) -> Audit:
    blocked = touching(problem, fine)
    end = np.hypot(*(fine[-1, :2] - problem.goal.numpy()))
    gap = np.hypot(*(fine[::FINER, :2] - plan.states[:, :2].numpy()).T)
    first = int(np.argmax(blocked)) if blocked.any() else -1
    return Audit(first, bool(end < problem.radius + 1e-3), float(gap.max()))


def resimulate(vehicle: Vehicle, start: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """States at a tenth of the vehicle's step.

    Args:
        vehicle: whose equations.
        start: a state, (s,), or one of each of P vehicles, (s, P).
        controls: (F, m) or (F, m, P).

    Returns:
        (10 F + 1, s) or (10 F + 1, s, P).
    """
    f, body, h = _field(vehicle), vehicle.body, vehicle.dt / FINER
    driven = list(body.actuators)
    many = (slice(None), *[None] * (start.ndim - 1))
    low, high, rate = (np.array(bound)[many] for bound in (body.low, body.high, body.rate))
    states = [np.array(start)]
    for command in controls:
        limited = np.clip(command, -rate, rate)
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
            v, D, slip = np.maximum(s[3], 0.0), s[4], c.C1 * s[5]
            force = c.Cm1 * D - c.Cm2 * v * D - c.Cr0 * np.tanh(5 * v) - c.Cr2 * v**2
            push = np.where((v > 0) | (D > 0), np.cos(slip) * force / c.mass, 0.0)
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
