"""Worlds by family: mazes, boxes, corridors with a dead end, and the public layouts of D4RL."""

from __future__ import annotations

import torch
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.planning.worlds import World

WAYS = ((0, 1), (1, 0), (0, -1), (-1, 0))

# The layouts of D4RL (Fu et al. 2020) as gymnasium-robotics 1.4.2 lists them (Farama Foundation, MIT): the grids of
# U_MAZE, MEDIUM_MAZE and LARGE_MAZE in gymnasium_robotics/envs/maze/maps.py, retyped.
LAYOUTS = {
    "u-maze": """
#####
#...#
###.#
#...#
#####""",
    "medium": """
########
#..##..#
#..#...#
##...###
#..#...#
#.#..#.#
#...#..#
########""",
    "large": """
############
#....#.....#
#.##.#.#.#.#
#......#...#
#.####.###.#
#..#.#.....#
##.#.#.#.###
#..#...#...#
############""",
}


def layout(name: str) -> World:
    """A public layout, cells of 1 m.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r}: there are {', '.join(LAYOUTS)}")
    return World.parse(LAYOUTS[name], name=name)


def maze(noise: Noise, rows: int = 13, columns: int = 13, opened: float = 0.12) -> World:
    """A maze by depth-first search, then a share of its inner walls opened, so that there is more than one way.

    Args:
        noise: what the maze is drawn from.
        rows: odd, 5 or more.
        columns: odd, 5 or more.
        opened: share of the walls between two neighbouring rooms that is taken away, 0 to 1.

    Returns:
        a world of cells of 1 m: rooms at odd rows and columns, passages between them.

    Raises:
        ValueError: for even or small sizes, or a share outside [0, 1].
    """
    if rows < 5 or columns < 5 or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"a maze of {rows} x {columns} cells: both must be odd and at least 5")
    if not 0 <= opened <= 1:
        raise ValueError(f"opened={opened} is not a share in [0, 1]")
    blocked = torch.ones((rows, columns), dtype=torch.bool)
    order = _draw(noise, "ways", rows, columns, 4).argsort(-1).tolist()
    stack = [(1, 1)]
    blocked[1, 1] = False
    while stack:
        i, j = stack[-1]
        for way in order[i][j]:
            a, b = i + 2 * WAYS[way][0], j + 2 * WAYS[way][1]
            if 0 < a < rows and 0 < b < columns and blocked[a, b]:
                blocked[a, b] = blocked[(i + a) // 2, (j + b) // 2] = False
                stack.append((a, b))
                break
        else:
            stack.pop()
    between = torch.zeros_like(blocked)
    between[1:-1:2, 2:-1:2] = between[2:-1:2, 1:-1:2] = True
    blocked &= ~(between & (_draw(noise, "opened", rows, columns) < opened))
    return World(blocked, name=f"maze {rows} x {columns}")


def boxes(noise: Noise, rows: int = 20, columns: int = 20, share: float = 0.22) -> World:
    """Cells blocked at random within a closed frame; what is cut off from the largest free component is filled.

    Args:
        noise: what the boxes are drawn from.
        rows: 4 or more.
        columns: 4 or more.
        share: of the inner cells that is blocked, 0 to 0.35: far above it nothing wide is left (site percolation of
            the square lattice ends at 0.41).

    Raises:
        ValueError: for a share or sizes outside these.
    """
    if rows < 4 or columns < 4:
        raise ValueError(f"boxes in {rows} x {columns} cells: both must be at least 4")
    if not 0 <= share <= 0.35:
        raise ValueError(f"share={share} of blocked cells is not in [0, 0.35]")
    blocked = torch.ones((rows, columns), dtype=torch.bool)
    blocked[1:-1, 1:-1] = _draw(noise, "boxes", rows - 2, columns - 2) < share
    return World(_largest(World(blocked)), name=f"boxes {rows} x {columns}")


def corridor(length: int = 10, kind: str = "straight") -> tuple[World, tuple[int, int], tuple[int, int]]:
    """Two rooms of 3 x 3 cells joined by a corridor one cell wide; between start and goal lies a dead end.

    The dead end leaves the start's room straight towards the goal and ends at a wall before the goal's room, so that
    whoever heads for the goal is caught in it. The corridor proper leaves by another row and, as a dogleg, changes rows
    half-way.

    Args:
        length: of the corridor, cells, 8 to 14.
        kind: "straight" or "dogleg".

    Returns:
        (world, cell of the start, cell of the goal), cells as (row, column).

    Raises:
        ValueError: for another length or kind.
    """
    if not 8 <= length <= 14:
        raise ValueError(f"a corridor of length={length} cells is not in 8 to 14")
    if kind not in ("straight", "dogleg"):
        raise ValueError(f"corridor kind {kind!r}: there are straight, dogleg")
    blocked = torch.ones((7, length + 8), dtype=torch.bool)
    left, right, middle = slice(1, 4), slice(length + 4, length + 7), 4 + length // 2
    blocked[1:4, left] = blocked[1:4, right] = False
    blocked[1, 4 : length + 3] = False  # the dead end, in the row of start and goal
    if kind == "straight":
        blocked[3, 4 : length + 4] = False
    else:
        blocked[3, 4 : middle + 1] = blocked[3:6, middle] = blocked[5, middle : length + 6] = False
        blocked[3:6, length + 5] = False
    return World(blocked, name=f"corridor {kind} {length}"), (1, 2), (1, length + 5)


def _draw(noise: Noise, what: str, *shape: int) -> Tensor:
    return noise.child(what).uniform(0, torch.arange(shape[0]), shape[1:])


def _largest(world: World) -> Tensor:
    """Walls everywhere but in the largest free component.

    Raises:
        ValueError: if no cell is free.
    """
    left = ~world.blocked
    if not left.any():
        raise ValueError("every cell is blocked")
    best = torch.zeros_like(left)
    while left.any():
        component = world.distances(*torch.nonzero(left)[0].tolist()).isfinite()
        best = component if component.sum() > best.sum() else best
        left = left & ~component
    return ~best
