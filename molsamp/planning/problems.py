"""Planning problems: a vehicle, a world, where to start and where to go; and families of them by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from molsamp.engine.noise import Noise
from molsamp.planning.generators import LAYOUTS, boxes, corridor, layout, maze
from molsamp.planning.vehicles import Vehicle
from molsamp.planning.worlds import Pose, World

FAMILIES = ("maze", "boxes", "corridor", *LAYOUTS)


@dataclass(frozen=True)
class Problem:
    """Bring a vehicle from a state into a disc without touching a wall.

    Args:
        world: the walls.
        vehicle: what moves.
        start: its state, (s,).
        goal: middle of the disc, m, (2,).
        radius: of the disc, m.

    Raises:
        ValueError: for a start that touches a wall, a goal in a wall, a state of another length or outside the
            vehicle's bounds, or a radius that is not positive.
    """

    world: World
    vehicle: Vehicle
    start: Float[Tensor, " s"]
    goal: Float[Tensor, "2"]
    radius: float = 0.5

    def __post_init__(self):
        body = self.vehicle.body
        if len(self.start) != len(body.names):
            raise ValueError(f"the start has {len(self.start)} numbers, the states are {', '.join(body.names)}")
        for i, name in enumerate(body.names):
            value, low, high = float(self.start[i]), body.low[i], body.high[i]
            if not math.isfinite(value) or (i not in body.headings and not low <= value <= high):
                raise ValueError(f"start: {name}={value:g} is not in [{low:g}, {high:g}]")
        if not self.radius > 0:
            raise ValueError(f"goal radius {self.radius} m must be positive")
        if bool(self.world.is_blocked(self.start[:2])):
            raise ValueError(f"the start {_at(self.world, self.start[:2])} is in a wall")
        gap = float(self.vehicle.clearance(self.start[None], self.world))
        if gap < 0:
            raise ValueError(
                f"at the start {_at(self.world, self.start[:2])} the vehicle overlaps a wall by {-gap:g} m"
            )
        if bool(self.world.is_blocked(self.goal)):
            raise ValueError(f"the goal {_at(self.world, self.goal)} is in a wall")

    @cached_property
    def distances(self) -> Float[Tensor, "rows columns"]:
        """Shortest way from each cell to the goal's, m; inf where there is none."""
        return self.world.distances(*self.world.cells(self.goal).tolist())

    @property
    def grid_distance(self) -> float:
        """Shortest way from the start's cell to the goal's through the sides of free cells, m; inf if there is none."""
        return float(self.distances[tuple(self.world.cells(self.start[:2]).tolist())])

    @cached_property
    def reachable(self) -> Int[Tensor, "cells 2"]:
        """(row, column) of the free cells that are connected with the start's."""
        return torch.nonzero(self.world.distances(*self.world.cells(self.start[:2]).tolist()).isfinite())

    @cached_property
    def closed(self) -> bool:
        """Whether walls cut the start off from every cell that the goal's disc reaches into."""
        nearest = self._nearest_points(self.reachable)
        return not bool(((nearest - self.world.pose.inverse().apply(self.goal)).norm(dim=-1) < self.radius).any())

    def _nearest_points(self, cells: Tensor) -> Tensor:
        """The point of each cell that is nearest to the goal, in the grid's frame."""
        low = cells.flip(-1) * self.world.cell
        return self.world.pose.inverse().apply(self.goal).clamp(low, low + self.world.cell)

    def moved(self, pose: Pose) -> Problem:
        """Everything moved together; the solution moves with it."""
        return replace(
            self,
            world=self.world.moved(pose),
            start=self.vehicle.moved(self.start, pose),
            goal=pose.apply(self.goal),
        )


def between(
    world: World,
    vehicle: Vehicle,
    start: tuple[int, int],
    goal: tuple[int, int],
    radius: float = 0.5,
) -> Problem:
    """A problem between the middles of two cells, (row, column); the vehicle stands along the shortest way.

    Raises:
        ValueError: as `Problem`.
    """
    far = pad(world.distances(*goal), (1, 1, 1, 1), value=math.inf)  # a frame, for cells at the edge of the grid
    row, column = start[0] + 1, start[1] + 1
    ways = [(i, j) for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)) if far[row + i, column + j] < far[row, column]]
    i, j = ways[0] if ways else (0, 1)
    heading = math.atan2(i, j) + world.pose.angle
    return Problem(world, vehicle, vehicle.at(world.centre(*start), heading), world.centre(*goal), radius)


def drawn(world: World, vehicle: Vehicle, noise: Noise, apart: float = 12.0, radius: float = 0.5) -> Problem:
    """A problem between two free cells at random, at least `apart` m of way from each other.

    Args:
        world: where.
        vehicle: what moves.
        noise: what the cells are drawn from.
        apart: least grid distance, m.
        radius: of the goal, m.

    Raises:
        ValueError: if no two free cells lie that far apart.
    """
    cells = world.free[noise.child("cells").uniform(0, torch.arange(len(world.free))).argsort()]
    order = noise.child("start").uniform(0, torch.arange(len(cells))).argsort()
    for goal in cells.tolist():
        far = world.distances(*goal)[tuple(cells[order].T)]
        if len(fit := torch.nonzero(far.isfinite() & (far >= apart))[:, 0]):
            row, column = cells[order[fit[0]]].tolist()
            return between(world, vehicle, (row, column), (goal[0], goal[1]), radius)
    raise ValueError(f"{world.name}: no two free cells lie {apart:g} m of way apart")


def problem(family: str, vehicle: Vehicle, seed: int) -> Problem:
    """Problem number `seed` of a family.

    maze: 13 x 13 cells, 12 % of the inner walls opened; boxes: 20 x 20, 22 % blocked; corridor: straight or dogleg,
    length 8 to 14, with a dead end that faces the goal; start and goal at least 12 m of way apart. The public layouts
    u-maze, medium and large have drawn starts and goals, at least 4, 8 and 12 m apart.

    Raises:
        ValueError: for an unknown family.
    """
    noise = Noise(seed).child(family)
    if family == "maze":
        return drawn(maze(noise), vehicle, noise)
    if family == "boxes":
        return drawn(boxes(noise), vehicle, noise)
    if family == "corridor":
        length, kind = noise.integers(0, torch.arange(2), (), 14).tolist()
        world, start, goal = corridor(8 + length % 7, "dogleg" if kind % 2 else "straight")
        return between(world, vehicle, start, goal)
    if family in LAYOUTS:
        return drawn(layout(family), vehicle, noise, apart={"u-maze": 4.0, "medium": 8.0, "large": 12.0}[family])
    raise ValueError(f"family {family!r}: there are {', '.join(FAMILIES)}")


def _at(world: World, point: Tensor) -> str:
    row, column = world.cells(point).tolist()
    return f"({point[0]:g}, {point[1]:g}) m, row {row} column {column} of {world.name},"
