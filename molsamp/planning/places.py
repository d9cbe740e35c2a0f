"""Problems as the command line names them: a world by family or by file, start and goal by cells or drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from molsamp.engine.noise import Noise
from molsamp.learn.weights import digest
from molsamp.planning.problems import FAMILIES, Problem, between, drawn, problem
from molsamp.planning.vehicles import Vehicle
from molsamp.planning.worlds import World, load_octile
from molsamp.schema import nearest

Cell = tuple[int, int]

APART = (12.0, 6.0, 3.0, 1.5, 1.0)  # m of way between start and goal: the first that the world has


def fingerprint(world: str) -> str | None:
    """Start of the sha256 of a world's file; None for a world that is generated."""
    return None if world in FAMILIES else digest(_file(world))


def place(
    world: str,
    vehicle: Vehicle,
    number: int,
    *,
    start: Cell | None = None,
    goal: Cell | None = None,
    radius: float = 0.5,
    cell: float = 1.0,
) -> Problem:
    """A problem in a world that is generated or read.

    Args:
        world: one of `problems.FAMILIES`; or a file, `type octile` if its name ends in .map, else a drawing as
            `World.parse` reads it.
        vehicle: what moves.
        number: of the world, and of what is drawn.
        start: (row, column), row 0 the lowest; None to draw it.
        goal: the same.
        radius: of the goal, m.
        cell: side of the cells of a file, m.

    Raises:
        ValueError: for an unknown world, a file that is not one (naming the line), a start or goal in a wall or
            outside, or a start that lies in the goal already.
    """
    if world in FAMILIES:
        found = problem(world, vehicle, number)
        if start or goal:
            found = _between(found.world, vehicle, Noise(number), start, goal)
    else:
        found = _between(_read(_file(world), cell), vehicle, Noise(number), start, goal)
    if float((found.start[:2] - found.goal).norm()) < radius:
        raise ValueError(f"the start lies in the goal already, a disc of radius {radius:g} m around the cell of --goal")
    return replace(found, radius=radius)


def _file(world: str) -> Path:
    file = Path(world)
    if not file.exists():
        allowed = f"Allowed: {', '.join(FAMILIES)}, or a file"
        raise ValueError(f"world '{world}' is unknown;{nearest(world, FAMILIES)} {allowed}")
    return file


def _read(file: Path, cell: float) -> World:
    if file.suffix == ".map":
        return load_octile(file, cell)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a drawing of walls in text; {error}") from None
    if not text.strip():
        raise ValueError(f"{file}: no cells; allowed are lines of # (wall) and . or space (free)")
    return replace(World.parse(text, cell, name=str(file)), name=file.stem)


def _between(world: World, vehicle: Vehicle, noise: Noise, start: Cell | None, goal: Cell | None) -> Problem:
    """Between the cells given; those that are not are drawn, `APART` from the other where the world has such a way."""
    for name, cell in (("start", start), ("goal", goal)):
        if cell is not None:
            _check(world, name, cell)
    if start and goal:
        return between(world, vehicle, start, goal)
    if known := start or goal:
        far = world.distances(*known)[tuple(world.free.T)]
        for apart in APART:
            if len(fit := torch.nonzero(far.isfinite() & (far >= apart))[:, 0]):
                i = int(noise.child("other").integers(0, torch.arange(1), (), len(fit)))
                row, column = world.free[fit[i]].tolist()
                return between(world, vehicle, start or (row, column), goal or (row, column))
        raise ValueError(f"--{'start' if start else 'goal'}: no way leads out of cell {known[0]},{known[1]}")
    for apart in APART[:-1]:
        try:
            return drawn(world, vehicle, noise, apart)
        except ValueError:
            continue
    return drawn(world, vehicle, noise, APART[-1])


def _check(world: World, name: str, cell: Cell) -> None:
    """Refuse a cell that is not there or not free."""
    (rows, columns), (row, column) = world.shape, cell
    if not (row < rows and column < columns):
        raise ValueError(
            f"--{name}: cell {row},{column} is outside {world.name}, whose rows are 0 to {rows - 1} (the lowest is 0) "
            f"and columns 0 to {columns - 1}"
        )
    if world.blocked[row, column]:
        raise ValueError(f"--{name}: cell {row},{column} of {world.name} is wall (row 0 is the lowest)")
