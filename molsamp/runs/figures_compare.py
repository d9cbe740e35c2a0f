"""The figures of a comparison of free energies, as SVG text; the data are those of the runs' own folders.

Contract: the first of the runs is the reference, all are on one grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from molsamp.engine.estimates import Z95
from molsamp.molecular.free_energy.comparison import apart
from molsamp.runs.drawing import BLUE, GREY, INK, ORANGE, canvas, inline, label_axis, legend, unit
from molsamp.runs.figures_free_energy import FILL, HIGHEST, once_round
from molsamp.runs.reading import Array

if TYPE_CHECKING:
    from molsamp.runs.compare import Compared

LINES = (INK, BLUE, ORANGE, "#1fa187", "#8a5fc7", GREY)  # the reference, then the others
SIGNED = ("#2f6db5", "#e9e9e6", "#c2452d")  # below, same, above


def profiles(runs: Sequence[Compared], axis: int, below: float) -> str:
    """Draw F along one variable with 95 % bands, each after its best constant, and below it what differs."""
    lines = [r.profiles[axis] for r in runs]
    first, shown = lines[0], runs[-1].run
    s = first.grid.nodes(0)
    with canvas(f"profile{axis}", (5.6, 4.6)) as (figure, out):
        above, beneath = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        for i, (r, one) in enumerate(zip(runs, lines, strict=True)):
            d, colour = apart(first, one, below), LINES[i % len(LINES)]
            F = np.where(np.isfinite(first.F), first.F, np.nan) + d
            _band(above, s, F, one.half, colour, label=r.name, zorder=2.5 - 0.1 * i)
            if i:
                _band(beneath, s, d, Z95 * np.hypot(first.error, one.error), colour)
        beneath.axhline(0, color=INK, lw=0.8)
        label_axis(beneath.xaxis, axes(runs[0])[axis], shown)
        above.set_ylabel(f"F / {unit(shown, 'kJ/mol')}")
        beneath.set_ylabel("difference")
        legend(above)
        figure.align_ylabels()
    return inline(out)


def maps(runs: Sequence[Compared], below: float) -> str | None:
    """Draw the surfaces side by side on one scale, and the differences to the reference: under each, or beside two."""
    if len(runs[0].surface.grid.names) < 2:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    shown, n = runs[-1].run, len(runs)
    pictures = [_known(r.surface) for r in runs]
    top = min(HIGHEST if not shown.states.get("reduced") else np.inf, max(np.nanmax(F) for F in pictures))
    levels = np.arange(0, top + 5, 5) if top > 20 else np.linspace(0, top, 13)
    differences = [np.where(np.isfinite(F), apart(runs[0].surface, r.surface, below), np.nan)
                   for r, F in zip(runs[1:], pictures[1:], strict=True)]  # fmt: skip
    differences = [np.where(np.isfinite(pictures[0]), d, np.nan) for d in differences]
    most = max(0.1, *(float(np.nanpercentile(np.abs(d), 98)) if np.isfinite(d).any() else 0.0 for d in differences))
    scale = LinearSegmentedColormap.from_list("free energy", FILL), LinearSegmentedColormap.from_list("sign", SIGNED)
    columns, lines = (3, 1) if n == 2 else (n, 2)
    with canvas("maps", (1.2 + 3.4 * columns, 3.4 * lines), "compressed") as (figure, out):
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        above, beneath = grid[:n], grid[1 - n :]
        for ax, r, F in zip(above, runs, pictures, strict=True):
            x, y, F = once_round(r.surface.grid, F)
            filled = ax.contourf(x, y, np.minimum(F, levels[-1]), levels, cmap=scale[0])
            ax.contour(x, y, F, levels[1:-1], colors=INK, linewidths=0.35, alpha=0.55)
            ax.set_title(r.name)
        for ax, r, d in zip(beneath, runs[1:], differences, strict=True):
            x, y, d = once_round(runs[0].surface.grid, d)
            drawn = ax.pcolormesh(x, y, d, cmap=scale[1], vmin=-most, vmax=most, shading="nearest", rasterized=True)
            ax.set_title(f"{r.name} − {runs[0].name}")
        for ax in grid[n : 1 - n]:
            ax.set_axis_off()
        for ax in (*above, *beneath):
            _frame(ax, runs[0], shown)
        for row, picture, text in ((above, filled, "F"), (beneath, drawn, "difference")):
            bar = figure.colorbar(picture, ax=row, fraction=0.046, pad=0.02)
            bar.set_label(f"{text} / {unit(shown, 'kJ/mol')}")
            bar.outline.set_visible(False)
    return inline(out)


def _known(surface: Any) -> Array:
    """F where its error is known; where that is nowhere, all of it."""
    known = np.isfinite(surface.error)
    return np.where(np.isfinite(surface.F) & (known | ~known.any()), surface.F, np.nan)


def axes(r: Compared) -> list[dict[str, Any]]:
    """The CVs as an axis wants them."""
    grid = r.surface.grid
    return [{"name": name, "period": period} for name, period in zip(grid.names, grid.period, strict=True)]


def _frame(ax: Any, r: Compared, shown: Any) -> None:
    for axis, cv in zip((ax.xaxis, ax.yaxis), axes(r), strict=True):
        label_axis(axis, cv, shown)
    ax.spines[:].set_visible(True)
    ax.tick_params(labelleft=True, labelbottom=True)
    if all(r.surface.grid.period):
        ax.set_aspect("equal", adjustable="box")


def _band(ax: Any, s: Array, y: Array, half: Array, colour: str, **line: Any) -> None:
    """A line with its band where that is known."""
    known = np.isfinite(half) & np.isfinite(y)
    low, high = (np.where(known, y + sign * np.where(known, half, 0), np.nan) for sign in (-1, 1))
    ax.fill_between(s, low, high, color=colour, alpha=0.22, lw=0, zorder=line.get("zorder", 2) - 0.5)
    ax.plot(s, y, color=colour, lw=1.4, **line)
