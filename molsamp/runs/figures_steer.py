"""The figures of steering: SVG for the page, the data beside it as CSV.

Contract: every function takes a `Finished` run and returns the SVG text, or None when there is nothing to show.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, INK, ORANGE, canvas, columns, finish, label_axis
from molsamp.runs.reading import Array, Finished

PANELS = 4  # quantities whose distributions are drawn


def effective(run: Finished) -> str | None:
    """Draw the effective size of the populations at every boundary."""
    if not (table := run.tables.get("effective")):
        return None
    time, middle, low, high = columns(table, "time", "mean", "low", "high")
    m = run.states["particles"]
    with canvas("effective", (5.6, 2.9)) as (figure, out):
        ax = figure.subplots()
        ax.fill_between(time, low, high, color=BLUE, alpha=0.25, lw=0, label="all replicas")
        ax.plot(time, middle, "o-", color=BLUE, lw=1.2, ms=3, label="mean")
        ax.axhline(m, color=GREY, lw=0.7, ls=":")
        ax.set_ylim(0, 1.05 * m)
        ax.set_xlabel(_time(run))
        ax.set_ylabel(f"effective ones of {m}" if run.states.get("clock") else f"effective walkers of {m}")
        _above(ax)
    return finish(run, "effective", out)


def genealogy(run: Finished) -> str | None:
    """Draw who descends from whom in the heaviest replica."""
    if (steps := _steps(run)) is None:
        return None
    t0, t1, parent, child, _, _, alive = steps
    with canvas("genealogy", (5.6, 3.6)) as (figure, out):
        ax = figure.subplots()
        _segments(ax, (t0, parent), (t1, child), alive)
        ax.set_ylim(-1, run.states["particles"])
        ax.set_xlabel(_time(run))
        ax.set_ylabel("walker")
    return finish(run, "genealogy", out)


def trajectories(run: Finished) -> str | None:
    """Draw the first quantity along the lines of the heaviest replica."""
    if (steps := _steps(run)) is None:
        return None
    t0, t1, _, _, s0, s1, alive = steps
    quantity = run.states["quantities"][0]
    whole = np.abs(s1 - s0) < 0.5 * (quantity["period"] or np.inf)  # steps around the end of a period are left out
    with canvas("trajectories", (5.6, 3.6)) as (figure, out):
        ax = figure.subplots()
        _wanted(ax.axhspan, ax.axhline, run, quantity["name"])
        _segments(ax, (t0[whole], s0[whole]), (t1[whole], s1[whole]), alive[whole])
        ax.margins(0.03)
        ax.set_xlabel(_time(run))
        label_axis(ax.yaxis, quantity, run)
    return finish(run, "trajectories", out)


def distribution(run: Finished) -> str | None:
    """Draw the densities of the quantities before and after, and where the reward wants them."""
    if not (table := run.tables.get("distribution")):
        return None
    quantities = run.states["quantities"][:PANELS]
    with canvas("distribution", (5.6, 2.4 * len(quantities))) as (figure, out):
        for ax, quantity in zip(figure.subplots(len(quantities), 1, squeeze=False)[:, 0], quantities, strict=True):
            low, high, *laws = columns(table, "low", "high", "free", "weighed", "steered", quantity=quantity["name"])
            edges = np.append(low, high[-1])
            _wanted(ax.axvspan, ax.axvline, run, quantity["name"])
            ax.stairs(laws[0], edges, color=GREY, lw=1.2, label="free")
            ax.stairs(laws[2], edges, color=BLUE, lw=1.5, label="steered")
            ax.stairs(laws[1], edges, color=INK, lw=0.9, ls="--", label="free, weighed at the end")
            ax.set_ylim(0, 1.08 * max(laws[0].max(), laws[2].max()))
            ax.set_ylabel("density")
            label_axis(ax.xaxis, quantity, run)
        _above(figure.axes[0])
    return finish(run, "distribution", out)


def _steps(run: Finished) -> list[Array] | None:
    table = run.tables.get("genealogy")
    return columns(table, "t0", "t1", "parent", "child", "s0", "s1", "alive") if table else None


def _segments(ax: Any, a: tuple[Array, Array], b: tuple[Array, Array], alive: Array) -> None:
    """Lines from a to b, those that lead to the end above the others."""
    from matplotlib.collections import LineCollection

    lines = np.stack([np.stack(a, -1), np.stack(b, -1)], 1)
    for survived, colour, width, label in ((0, GREY, 0.5, "died out"), (1, BLUE, 0.8, "alive at the end")):
        chosen = lines[alive == survived]
        ax.add_collection(LineCollection(list(chosen), colors=colour, linewidths=width, alpha=0.7, label=label))
    ax.autoscale_view()
    _above(ax)


def _above(ax: Any) -> None:
    """A legend above the axes, where no line runs."""
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncol=3, frameon=False, fontsize=9, borderaxespad=0.0)


def _wanted(span: Any, line: Any, run: Finished, name: str) -> None:
    for w in (w for w in run.states["wanted"] if w["name"] == name):
        span(w["value"] - w["width"], w["value"] + w["width"], color=ORANGE, alpha=0.18, lw=0)
        line(w["value"], color=ORANGE, lw=0.9)


def _time(run: Finished) -> str:
    if (clock := run.states.get("clock")) is not None:
        return str(clock)
    return "time" if run.states.get("reduced") else "time / ps"
