"""Worlds: occupancy grids of square cells, somewhere in the plane.

blocked[i, j] is the cell [j, j + 1) x [i, i + 1), in cells, of the grid's own frame, which stands at a `Pose`. Row 0 is
the lowest; texts and maps, which begin with the highest, are turned over as they are read. Everything outside the grid
is wall. Vehicles move through sides of cells, never across a corner between two walls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FREE, WALL = ".GS", "@OTW"  # the letters of a `type octile` map; S is swamp, W water that the land does not reach


class Pose(NamedTuple):
    """A rigid motion of the plane: turn by `angle` (rad) about (0, 0), then shift by (x, y) in m."""

    angle: float = 0.0
    x: float = 0.0
    y: float = 0.0

    def apply(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points moved."""
        return self.turn(points) + torch.tensor([self.x, self.y], dtype=points.dtype)

    def turn(self, vectors: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Vectors turned."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return torch.stack(
            [c * vectors[..., 0] - s * vectors[..., 1], s * vectors[..., 0] + c * vectors[..., 1]], dim=-1
        )

    def inverse(self) -> Pose:
        """The motion back."""
        x, y = Pose(-self.angle).turn(torch.tensor([-self.x, -self.y], dtype=torch.float64)).tolist()
        return Pose(-self.angle, x, y)

    def after(self, first: Pose) -> Pose:
        """This motion after another one."""
        x, y = self.apply(torch.tensor([first.x, first.y], dtype=torch.float64)).tolist()
        return Pose(self.angle + first.angle, x, y)


ORIGIN = Pose()


@dataclass(frozen=True)
class World:
    """An occupancy grid.

    Args:
        blocked: cells that are wall, (rows, columns), row 0 lowest.
        cell: side of a cell, m.
        pose: where the grid's frame stands; its corner is the pose's (x, y).
        name: for reports.

    Raises:
        ValueError: for a grid without cells, or a side that is not positive.
    """

    blocked: Bool[Tensor, "rows columns"]
    cell: float = 1.0
    pose: Pose = ORIGIN
    name: str = "world"

    def __post_init__(self):
        if self.blocked.ndim != 2 or not self.blocked.numel():
            raise ValueError(f"a world of shape {tuple(self.blocked.shape)}: rows and columns of cells are needed")
        if not 0 < self.cell < math.inf:
            raise ValueError(f"cell={self.cell} m must be positive")

    @classmethod
    def parse(cls, text: str, cell: float = 1.0, name: str = "world") -> World:
        """A world drawn in lines of `#` (wall) and `.` or space (free), the highest row first.

        Raises:
            ValueError: for another letter, or lines of different lengths, naming the line.
        """
        lines, empty = text.strip("\n").split("\n"), len(text) - len(text.lstrip("\n"))
        return cls(_rows(lines, ". ", "#", f"{name}: line", 1 + empty), cell, name=name)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.blocked.shape[0], self.blocked.shape[1]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, m."""
        return self.shape[1] * self.cell, self.shape[0] * self.cell

    def text(self) -> str:
        """The drawing that `parse` reads."""
        return "\n".join("".join("#" if b else "." for b in row) for row in reversed(self.blocked.tolist()))

    def moved(self, pose: Pose) -> World:
        """The same walls elsewhere."""
        return replace(self, pose=pose.after(self.pose))

    def place(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points of the grid's frame, m, in the plane."""
        return self.pose.apply(points)

    def centre(self, row: int, column: int) -> Float[Tensor, "2"]:
        """The middle of a cell, in the plane."""
        return self.place((torch.tensor([column, row], dtype=torch.float64) + 0.5) * self.cell)

    def cells(self, points: Float[Tensor, "*n 2"]) -> Int[Tensor, "*n 2"]:
        """(row, column) of the cell that holds each point; outside the grid these lie outside its shape."""
        return (self.pose.inverse().apply(points) / self.cell).floor().long().flip(-1)

    def is_blocked(self, points: Float[Tensor, "*n 2"]) -> Bool[Tensor, "*n"]:
        """Whether points lie in a wall or outside the grid."""
        cells = self.cells(points)
        size = torch.tensor(self.shape)
        outside = ((cells < 0) | (cells >= size)).any(-1)
        row, column = cells.clamp(min=torch.zeros(2, dtype=torch.int64), max=size - 1).unbind(-1)
        return outside | self.blocked[row, column]

    @cached_property
    def free(self) -> Int[Tensor, "free 2"]:
        """(row, column) of every free cell."""
        return torch.nonzero(~self.blocked)

    def distances(self, row: int, column: int) -> Float[Tensor, "rows columns"]:
        """Shortest way to a cell through the sides of free cells, m; inf for walls and cells cut off from it.

        Raises:
            ValueError: if the cell is a wall or outside.
        """
        rows, columns = self.shape
        if not (0 <= row < rows and 0 <= column < columns) or self.blocked[row, column]:
            raise ValueError(f"cell (row {row}, column {column}) of {self.name} is not free")
        blocked = np.pad(self.blocked.numpy(), 1, constant_values=True).ravel()  # a frame, so that no step leaves it
        far = np.full(blocked.shape, np.inf)
        stride, front, d = columns + 2, np.array([(row + 1) * (columns + 2) + column + 1]), 0
        far[front] = 0
        while len(front):
            d += 1
            around = np.unique(np.concatenate([front + 1, front - 1, front + stride, front - stride]))
            front = around[~blocked[around] & np.isinf(far[around])]
            far[front] = d
        return torch.from_numpy(far.reshape(rows + 2, stride)[1:-1, 1:-1] * self.cell)


def load_octile(file: str | Path, cell: float = 1.0) -> World:
    """A map in the `type octile` text format of the Moving AI benchmarks (Sturtevant 2012): land `.`, `G` and swamp `S`
    are free; trees `T`, water `W` and out of bounds `@`, `O` are wall.

    Raises:
        ValueError: naming the file and line, what was got and what is allowed.
    """
    lines = Path(file).read_text(encoding="latin-1").rstrip("\n").split("\n")
    header = dict.fromkeys(("type", "height", "width", "map"), "")
    for i, key in enumerate(header):
        got, _, value = lines[i].strip().partition(" ") if i < len(lines) else ("", "", "")
        if got != key:
            raise ValueError(f"{file}, line {i + 1}: got {got!r}, the header is type, height, width, map")
        header[key] = value.strip()
    if header["type"] != "octile":
        raise ValueError(f"{file}, line 1: type {header['type']!r}, only octile is read")
    for i, key in ((1, "height"), (2, "width")):
        if not header[key].isdigit() or not int(header[key]):
            raise ValueError(f"{file}, line {i + 1}: {key} {header[key]!r} is not a positive whole number")
    height, width = int(header["height"]), int(header["width"])
    body = [line.rstrip("\r") for line in lines[4:]]
    if len(body) != height:
        raise ValueError(f"{file}: {len(body)} rows of cells from line 5 on, the header says height {height}")
    blocked = _rows(body, FREE, WALL, f"{file}, line", 5, width)
    return World(blocked, cell, name=Path(file).stem)


def _rows(lines: list[str], free: str, wall: str, where: str, first: int, width: int | None = None) -> Tensor:
    width = len(lines[0]) if width is None else width
    for i, line in enumerate(lines):
        if len(line) != width:
            raise ValueError(f"{where} {first + i}: {len(line)} cells, the others have {width}")
        if wrong := set(line) - set(free + wall):
            letter = min(wrong)
            raise ValueError(
                f"{where} {first + i}, column {line.index(letter) + 1}: got {letter!r}, allowed are "
                f"{' '.join(map(repr, free))} (free) and {' '.join(wall)} (wall)"
            )
    return torch.tensor([[c in wall for c in line] for line in reversed(lines)])
