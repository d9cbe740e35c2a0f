"""The figures of free energies: SVG for the page, the data beside it as CSV or fes.dat.

Contract: every function takes a `Finished` run and returns the SVG text, or None when there is nothing to show.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, INK, ORANGE, canvas, columns, disc, finish, label_axis, legend, unit
from molsamp.runs.reading import Array, Finished

FILL = ("#3b1f6e", "#2f6db5", "#1fa187", "#9cc25c", "#f2e3a0")  # low to high; readable on white and on near-black
HIGHEST = 60.0  # kJ/mol that are drawn at most
BY_BIAS = " by the bias"  # differences that a growing bias tells, in the table of convergence


def surface(run: Finished) -> str | None:
    """Draw F over two variables as filled contours."""
    if run.surface is None or len(run.surface.grid.names) < 2:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    s, axes = run.surface, _axes(run)
    x, y, F = once_round(s.grid, np.where(np.isfinite(s.F), s.F, np.nan))
    top = min(HIGHEST if not run.states.get("reduced") else np.inf, np.nanmax(F))
    levels = np.linspace(0, top, 13) if top < HIGHEST else np.arange(0, HIGHEST + 1, 5)
    with canvas("surface", (5.6, 4.6), "compressed") as (figure, out):
        ax = figure.subplots()
        colours = LinearSegmentedColormap.from_list("free energy", FILL)
        filled = ax.contourf(x, y, np.minimum(F, levels[-1]), levels, cmap=colours)
        ax.contour(x, y, F, levels[1:-1], colors=INK, linewidths=0.35, alpha=0.55)
        for name, state in run.states.get("states", {}).items():
            disc(ax, name, state, axes)
        label_axis(ax.xaxis, axes[0], run)
        label_axis(ax.yaxis, axes[1], run)
        if all(s.grid.period):
            ax.set_aspect("equal", adjustable="box")
        ax.spines[:].set_visible(True)
        bar = figure.colorbar(filled, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(f"F / {unit(run, 'kJ/mol')}")
        bar.outline.set_visible(False)
    return finish(run, "surface", out)


def once_round(grid: Any, F: Array) -> tuple[Array, Array, Array]:
    """Nodes along both axes and F as a picture has it, (y, x), the first node of a periodic axis again at its end."""
    x, y, F = grid.nodes(0), grid.nodes(1), F.T
    for axis, period in enumerate(grid.period):
        if period is not None:
            F = np.concatenate([F, F.take([0], 1 - axis)], 1 - axis)
    x, y = (np.append(a, a[0] + p) if p is not None else a for a, p in zip((x, y), grid.period, strict=True))
    return x, y, F


def profiles(run: Finished) -> str | None:
    """Draw F along each variable with its band, and the estimate by the bias."""
    table = run.tables.get("profiles")
    if not table:
        return None
    axes = _axes(run)
    with canvas("profiles", (5.6, 0.5 + 2.5 * len(axes))) as (figure, out):
        for ax, cv in zip(figure.subplots(len(axes), 1, squeeze=False)[:, 0], axes, strict=True):
            s, F, low, high, bias = columns(table, "s", "F", "low", "high", "bias", cv=cv["name"])
            F = np.where(np.isfinite(F), F, np.nan)
            ax.fill_between(s, low, high, where=np.isfinite(high), color=BLUE, alpha=0.3, lw=0, label="95 %")
            ax.plot(s, F, color=BLUE, lw=1.5, label="by weights")
            if np.isfinite(bias).any():
                ax.plot(s, np.where(np.isfinite(F), bias, np.nan), color=ORANGE, lw=1.2, ls="--", label="by the bias")
            label_axis(ax.xaxis, cv, run)
            ax.set_ylabel(f"F / {unit(run, 'kJ/mol')}")
            ax.set_ylim(bottom=-0.02 * np.nanmax(F))
        legend(ax)
    return finish(run, "profiles", out)


def convergence(run: Finished) -> str | None:
    """Draw each difference against the energy evaluations spent; dashed what the bias said while it grew."""
    table = run.tables.get("convergence")
    if not table:
        return None
    names = [name for name in dict.fromkeys(table["name"]) if not name.endswith(BY_BIAS)]
    with canvas("convergence", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        for name, colour in zip(names, (BLUE, ORANGE, GREY), strict=False):
            what = name.removeprefix("dF:").replace("->", " → ")
            spent, value, low, high = columns(table, "evaluations", "value", "low", "high", name=name)
            known = np.isfinite(value) & np.isfinite(low)
            if known.any():
                ax.fill_between(spent[known], low[known], high[known], color=colour, alpha=0.22, lw=0)
                ax.plot(spent[known], value[known], color=colour, lw=1.5, label=what)
            spent, value = columns(table, "evaluations", "value", name=name + BY_BIAS)
            if len(spent):
                ax.plot(spent, value, color=colour, lw=1.0, ls="--", label=what + BY_BIAS)
        if not ax.lines:
            return None
        ax.set_xlabel("energy evaluations")
        ax.set_ylabel(f"ΔF / {unit(run, 'kJ/mol')}")
        legend(ax)
    return finish(run, "convergence", out)


def weights(run: Finished) -> str | None:
    """Draw the histogram of log weights."""
    table = run.tables.get("weights")
    if not table:
        return None
    low, high, share = columns(table, "low", "high", "share")
    with canvas("weights", (5.6, 2.8)) as (figure, out):
        ax = figure.subplots()
        ax.bar(low, 100 * share, width=high - low, align="edge", color=BLUE, alpha=0.8, lw=0)
        ax.set_xlabel("log weight of a sample below the largest / nats")
        ax.set_ylabel("share of the samples / %")
    return finish(run, "weights", out)


def _axes(run: Finished) -> list[dict[str, Any]]:
    known = {axis["name"]: axis for axis in run.states.get("cvs", [])}
    return [known.get(name, {"name": name, "period": None}) for name in run.states.get("axes", known)]
