"""The figures of rates: SVG for the page, the data beside it as CSV.

Contract: every function takes a `Finished` run and returns the SVG text, or None when there is nothing to show.
"""

from __future__ import annotations

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, ORANGE, canvas, columns, finish, legend
from molsamp.runs.reading import Finished


def flux(run: Finished) -> str | None:
    """Draw the rate of every stretch of time, and the running estimate with its interval."""
    if not (table := run.tables.get("flux")):
        return None
    time, rate, running, low, high = columns(table, "time", "rate", "running", "low", "high")
    if not (rate > 0).any():
        return None
    with canvas("flux", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        ax.plot(time, np.where(rate > 0, rate, np.nan), ".", color=GREY, ms=4, label="each stretch")
        told = np.isfinite(running) & (running > 0) & np.isfinite(high) & (low > 0)
        ax.fill_between(time[told], low[told], high[told], color=BLUE, alpha=0.25, lw=0)
        ax.plot(time[told], running[told], color=BLUE, lw=1.5, label="all since it settled, 95 %")
        ax.set_yscale("log")
        ax.set_xlabel("time of a walker" + _unit(run, " / ps"))
        ax.set_ylabel("rate A → B" + _unit(run, " / (1/ps)"))
        legend(ax)
    return finish(run, "flux", out)


def ladder(run: Finished) -> str | None:
    """Draw the flux from A through every interface, B the last."""
    if not (table := run.tables.get("ladder")):
        return None
    s, value, low, high = columns(table, "progress", "flux", "low", "high")
    seen = value > 0
    if not seen.any():
        return None
    with canvas("ladder", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        told = seen & (low > 0) & np.isfinite(high)
        ax.fill_between(s[told], low[told], high[told], color=BLUE, alpha=0.25, lw=0)
        ax.plot(s[seen], value[seen], "o-", color=BLUE, lw=1.2, ms=4)
        ax.set_yscale("log")
        ax.set_xlabel(_progress(run))
        ax.set_ylabel("flux from A" + _unit(run, " / (1/ps)"))
    return finish(run, "ladder", out)


def occupancy(run: Finished) -> str | None:
    """Draw the weight in every bin, by where it came from."""
    if not (table := run.tables.get("occupancy")):
        return None
    low, high, a, b = columns(table, "low", "high", "A", "B")
    with canvas("occupancy", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        edges = np.append(low, high[-1])
        for weight, colour, label in ((a, BLUE, "last in A"), (b, ORANGE, "last in B")):
            if (weight > 0).any():
                ax.stairs(np.where(weight > 0, weight, np.nan), edges, color=colour, lw=1.5, label=label)
        ax.set_yscale("log")
        ax.set_xlabel(_progress(run))
        ax.set_ylabel("weight of a bin")
        legend(ax)
    return finish(run, "occupancy", out)


def committor(run: Finished) -> str | None:
    """Draw the probability to reach B first along the progress."""
    table = run.tables.get("committor")
    if not table or len(table["progress"]) < 2:
        return None
    s, q, low, high = columns(table, "progress", "value", "low", "high")
    with canvas("committor", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        ax.axhline(0.5, color=GREY, lw=0.7, ls=":")
        ax.fill_between(s, low, high, color=BLUE, alpha=0.25, lw=0)
        ax.plot(s, q, "o-", color=BLUE, lw=1.2, ms=4)
        ax.set_ylim(0, 1)
        ax.set_xlabel(_progress(run))
        ax.set_ylabel("committor")
    return finish(run, "committor", out)


def _progress(run: Finished) -> str:
    return str(run.states.get("progress", "progress"))


def _unit(run: Finished, text: str) -> str:
    return "" if run.states.get("reduced") else text
