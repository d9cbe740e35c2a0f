"""The figures of steered pictures: SVG for the page; their data are guidance, population, genealogy and final.csv."""

from __future__ import annotations

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, ORANGE, canvas, columns, finish, legend
from molsamp.runs.figures_image import LINES
from molsamp.runs.reading import Finished


def guidance(run: Finished) -> str | None:
    """Draw how far each guide moves the aim in each row, with 95 % bands over the populations."""
    if not (table := run.tables.get("guidance")):
        return None
    with canvas("guidance", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        for k, name in enumerate(dict.fromkeys(table["guide"])):
            row, rms, low, high = columns(table, "row", "rms", "low", "high", guide=name)
            colour = LINES[k % len(LINES)]
            ax.fill_between(row, np.maximum(low, 0.0), high, color=colour, alpha=0.22, lw=0)
            ax.plot(row, rms, color=colour, lw=1.6, label=name)
        ax.set_ylim(bottom=0.0)
        ax.set_xlabel("row")
        ax.set_ylabel("change of the aim, RMS of a pixel")
        legend(ax)
    return finish(run, "guidance", out)


def effective(run: Finished) -> str | None:
    """Draw the ESS of every population at every boundary, before resampling, and their mean."""
    if not (table := run.tables.get("population")):
        return None
    u, row, ess = columns(table, "population", "row", "ess")
    populations, rows = (len(np.unique(a)) for a in (u, row))
    ess, row = ess.reshape(rows, populations), row.reshape(rows, populations)[:, 0]
    with canvas("population", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        ax.plot(row, ess, color=GREY, lw=0.7, alpha=0.55)
        ax.plot(row, ess.mean(1), "o-", color=BLUE, lw=1.6, ms=3.5, label="mean of the populations")
        ax.axhline(0.5 * run.states["particles"], color=ORANGE, lw=0.9, ls="--", label="resampled below")
        ax.set_ylim(0.0, 1.04 * run.states["particles"])
        ax.set_xlabel("rows done")
        ax.set_ylabel("effective particles")
        legend(ax)
    return finish(run, "population", out)


def genealogy(run: Finished) -> str | None:
    """Draw who descends from whom in the first population; in blue the lines that reach the end."""
    if not (table := run.tables.get("genealogy")):
        return None
    boundary, particle, parent, survives = columns(table, "boundary", "particle", "parent", "survives")
    with canvas("genealogy", (5.6, 3.6)) as (figure, out):
        ax = figure.subplots()
        for b, i, a, alive in zip(boundary, particle, parent, survives, strict=True):
            colour, width, above = (BLUE, 1.3, 2) if alive else (GREY, 0.6, 1)
            ax.plot([b, b + 1], [a, i], color=colour, lw=width, alpha=0.9 if alive else 0.5, zorder=above)
        ax.plot(boundary, parent, ".", color=GREY, ms=2, zorder=0)
        ax.set_xticks(np.unique(np.append(boundary, boundary.max() + 1)))
        ax.set_xlabel("boundary")
        ax.set_ylabel("particle")
        ax.invert_yaxis()
    return finish(run, "genealogy", out)


def weights(run: Finished) -> str | None:
    """Draw reward against weight at the end of every particle; the rewards without steering on the left."""
    if not (table := run.tables.get("final")):
        return None
    weight, reward, before = columns(table, "weight", "reward", "before")
    with canvas("final", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        m = run.states["particles"]
        ax.scatter(np.full_like(before, 0.0), before, s=14, color=GREY, alpha=0.5, lw=0, label="before")
        ax.scatter(m * weight, reward, s=14, color=BLUE, alpha=0.6, lw=0, label="after")
        ax.axvline(1.0, color=GREY, lw=0.7, ls=":")
        ax.set_xlabel("weight at the end, in units of an equal share")
        ax.set_ylabel("reward")
        legend(ax)
    return finish(run, "final", out)
