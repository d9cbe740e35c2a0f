"""The expert that policies learn from: a route over the grid, followed by pursuit of its farthest visible point.

Each step the vehicle looks along the shortest way from its cell to the goal's, takes the farthest of the next cells
that it sees past all walls, and turns towards it with curvature 2 sin(angle) / distance (pure pursuit, Coulter 1992),
slowly where it cannot see far. Nothing here is optimal: it shows a policy how to drive, not where the shortest plan is.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.planning.problems import Problem
from molsamp.planning.vehicles import Car

AHEAD, SIGHT = 6, 0.22  # cells of the way that are looked at; m of free space on either side of a line of sight
SLOW, FAST = 0.9, 2.2  # m/s, where nothing and where all of the way ahead is seen
NEAR, REACT = 0.45, 0.25  # m and s: pursuit never looks farther than NEAR + REACT v
THROTTLE, STEER = 0.12, 0.08  # s in which the actuators are to reach what is wanted


def pursue(states: Float[Tensor, "B s"], problem: Problem) -> Float[Tensor, "B 2"]:
    """Controls of a car towards the goal of a problem; straight on where no way leads there."""
    car = problem.vehicle
    if not isinstance(car, Car):
        raise ValueError(f"the expert drives a Car, not a {type(car).__name__}")
    x, psi, v, D, delta = states[:, :2], states[:, 2], states[:, 3], states[:, 4], states[:, 5]
    target = waypoint(x, problem)
    d = target - x
    far = d.norm(dim=1).clamp(min=0.3)
    angle = (
        torch.atan2(d[:, 1], d[:, 0]) - psi - car.parameters[1] * delta
    )  # from where it moves to, not where it looks
    angle = torch.atan2(angle.sin(), angle.cos())
    turn = torch.where(angle.abs() < 0.5 * math.pi, angle.sin(), angle.sign())
    curvature = 2.0 * turn / torch.minimum(far, NEAR + REACT * v)
    steer = (curvature / car.C2).clamp(*_range(car, 5))
    wanted = (SLOW + (FAST - SLOW) * ((far - 1.0) / AHEAD).clamp(0.0, 1.0)) * (1.0 - 0.5 * angle.abs().clamp(max=1.0))
    _, _, _, Cm1, Cm2, Cr0, Cr2 = car.parameters
    hold = (Cr2 * wanted**2 + Cr0 * (5.0 * wanted).tanh()) / (Cm1 - Cm2 * wanted)
    throttle = (hold + 0.6 * (wanted - v)).clamp(*_range(car, 4))
    return torch.stack([(throttle - D) / THROTTLE, (steer - delta) / STEER], 1)


def waypoint(x: Float[Tensor, "B 2"], problem: Problem, ahead: int = AHEAD) -> Float[Tensor, "B 2"]:
    """The farthest of the next `ahead` cells of the shortest way that is seen from x; the goal itself within them."""
    world, far = problem.world, problem.distances
    rows, columns = world.shape
    around = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])
    size = torch.tensor([rows, columns])
    cell = world.cells(x).clamp(min=torch.zeros(2, dtype=torch.int64), max=size - 1)
    best, blind = problem.goal.expand(len(x), 2).clone(), torch.zeros(len(x), dtype=torch.bool)
    for k in range(ahead):
        beside = cell[:, None] + around
        inside = ((beside >= 0) & (beside < size)).all(-1)
        i, j = beside.clamp(min=torch.zeros(2, dtype=torch.int64), max=size - 1).unbind(-1)
        d = torch.where(inside, far[i, j], torch.inf)
        arrived = far[cell[:, 0], cell[:, 1]] == 0.0
        cell = torch.where(arrived[:, None], cell, beside[torch.arange(len(x)), d.argmin(1)])
        centre = world.place((cell.flip(-1).to(x) + 0.5) * world.cell)
        centre = torch.where((far[cell[:, 0], cell[:, 1]] == 0.0)[:, None], problem.goal.to(x), centre)
        blind |= ~seen(x, centre, problem) if k else torch.zeros_like(blind)  # the next cell is driven to in any case
        best = torch.where(blind[:, None], best, centre)
    return best


def seen(a: Float[Tensor, "B 2"], b: Float[Tensor, "B 2"], problem: Problem) -> Bool[Tensor, " B"]:
    """Whether a band of `SIGHT` on either side of the line from a to b is free."""
    d = b - a
    side = torch.stack([-d[:, 1], d[:, 0]], 1) / d.norm(dim=1, keepdim=True).clamp(min=1e-9) * SIGHT
    along = torch.linspace(0.0, 1.0, 25, dtype=a.dtype)[:, None, None]
    points = torch.stack([a + along * d + shift * side for shift in (-1.0, 0.0, 1.0)])
    return ~problem.world.is_blocked(points).any(0).any(0)


def _range(car: Car, i: int) -> tuple[float, float]:
    return car.body.low[i], car.body.high[i]
