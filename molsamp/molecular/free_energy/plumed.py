"""Files in PLUMED's forms: HILLS, KERNELS, COLVAR and grids, written and read.

Units are PLUMED's own: ps, nm, rad, kJ/mol. With a bias factor gamma PLUMED writes heights of HILLS scaled by
gamma/(gamma - 1), so that their sum is -F rather than V; so do we (source: PLUMED manual, METAD).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from molsamp.molecular.grids import Grid

Table = dict[str, Float[np.ndarray, "*n"]]


def header(fields: Sequence[str], grid: Grid | None = None, nbins: bool = False, **sets: object) -> str:
    """The lines that begin with "#!": field names, then the ranges of the periodic CVs of a grid (all, with bins)."""
    lines = ["FIELDS " + " ".join(fields)]
    if grid is not None:
        columns = zip(grid.names, grid.period, grid.ranges, grid.patches, strict=True)
        for name, period, (lo, hi), bins in columns:
            if period is not None or nbins:
                lines += [f"SET min_{name} {_number(lo)}", f"SET max_{name} {_number(hi)}"]
            if nbins:
                lines += [f"SET nbins_{name} {bins}", f"SET periodic_{name} {str(period is not None).lower()}"]
    lines += [f"SET {key} {value}" for key, value in sets.items()]
    return "".join(f"#! {line}\n" for line in lines)


def rows(*columns: Float[np.ndarray, " n"]) -> str:
    """Lines of numbers, nine digits each."""
    return "".join(" " + " ".join(f"{a:.9g}" for a in row) + "\n" for row in zip(*columns, strict=True))


def grid_text(grid: Grid, **columns: Float[np.ndarray, "*N"]) -> str:
    """A grid file: the first CV runs fastest, blocks are parted by an empty line."""
    points = grid.points().reshape(*grid.shape, -1)
    values = [*np.moveaxis(points, -1, 0), *columns.values()]
    text = header([*grid.names, *columns], grid, nbins=True)
    if len(grid.shape) == 1:
        return text + rows(*values)
    return text + "\n".join(rows(*(a[:, j] for a in values)) for j in range(grid.shape[1]))


def read(file: str | Path) -> tuple[Table, dict[str, str]]:
    """Columns by name and SET values of a HILLS, COLVAR or grid file; files joined end to end are one.

    Raises:
        ValueError: no FIELDS line, or a line that does not fit it; names the file and the line.
    """
    fields: list[str] = []
    sets: dict[str, str] = {}
    numbers: list[list[float]] = []
    text = Path(file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words[:2] == ["#!", "FIELDS"]:
            if fields and fields != words[2:]:
                raise ValueError(f"{file}, line {number}: FIELDS {' '.join(words[2:])} after {' '.join(fields)}")
            fields = words[2:]
        elif words[:2] == ["#!", "SET"] and len(words) == 4:
            sets[words[2]] = words[3]
        elif words and not words[0].startswith("#"):
            if not fields:
                raise ValueError(f"{file}, line {number}: numbers before a line '#! FIELDS ...'")
            try:
                numbers.append([float(word) for word in words])
            except ValueError:
                raise ValueError(f"{file}, line {number}: got '{line.strip()}', allowed are numbers") from None
            if len(words) != len(fields):
                raise ValueError(f"{file}, line {number}: got {len(words)} numbers, FIELDS names {len(fields)}")
    if not fields:
        raise ValueError(f"{file}: no line '#! FIELDS ...'; is this a file in PLUMED's form?")
    table = np.array(numbers, dtype=np.float64).reshape(-1, len(fields))
    return dict(zip(fields, table.T, strict=True)), sets


def read_grid(file: str | Path) -> tuple[Grid, Table]:
    """A grid file and its columns, each in the shape of the grid.

    Raises:
        ValueError: as `read`; or bins that do not fit the lines.
    """
    table, sets = read(file)
    names = tuple(name for name in table if f"nbins_{name}" in sets)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"{file}: is no grid of one or two CVs ('#! SET nbins_<name> N' is missing)")
    if missing := [f"{end}_{name}" for name in names for end in ("min", "max") if f"{end}_{name}" not in sets]:
        raise ValueError(f"{file}: '#! SET {missing[0]} ...' is missing")
    ranges = tuple((_value(sets[f"min_{name}"]), _value(sets[f"max_{name}"])) for name in names)
    wraps = [sets.get(f"periodic_{name}") == "true" for name in names]
    period = tuple(hi - lo if wrap else None for (lo, hi), wrap in zip(ranges, wraps, strict=True))
    shape = tuple(int(sets[f"nbins_{name}"]) + (not wrap) for name, wrap in zip(names, wraps, strict=True))
    grid = Grid(names, period, ranges, shape)
    if len(table[names[0]]) != math.prod(shape):
        raise ValueError(f"{file}: got {len(table[names[0]])} lines, {' x '.join(map(str, shape))} are needed")
    columns = {k: a.reshape(shape[::-1]).T for k, a in table.items() if k not in names}
    return grid, columns


def _number(a: float) -> str:
    if math.isclose(abs(a), math.pi, rel_tol=1e-12):
        return "pi" if a > 0 else "-pi"
    return f"{a:.12g}"


def _value(word: str) -> float:
    return {"pi": math.pi, "-pi": -math.pi}.get(word) or float(word)
