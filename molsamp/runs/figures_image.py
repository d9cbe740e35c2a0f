"""The figures of pictures: SVG for the page; the data beside are figures/calls.csv."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, INK, ORANGE, canvas, columns, finish, legend
from molsamp.runs.reading import Finished

LINES = (BLUE, ORANGE, "#1fa187", "#8a5fc7", "#c2452d", "#b8860b", "#d05a9e")


def errors(run: Finished, named: Sequence[str], wide: bool = False) -> str | None:
    """Draw RMSE to the fine trajectories against network calls, with 95 % bands; in grey what is not `named`."""
    table = run.tables.get("calls")
    if not table:
        return None
    solvers = list(dict.fromkeys(table["solver"]))
    with canvas("calls", (11.2, 4.2) if wide else (5.6, 4.0)) as (figure, out):
        ax = figure.subplots()
        for solver in [*(s for s in solvers if s not in named), *named]:
            calls, rmse, low, high = columns(table, "calls", "rmse", "low", "high", solver=solver)
            if solver not in named:
                ax.plot(calls, rmse, color=GREY, lw=0.7, alpha=0.55, zorder=1)
                continue
            colour = LINES[named.index(solver) % len(LINES)]
            ax.fill_between(calls, low, high, color=colour, alpha=0.22, lw=0)
            ax.plot(calls, rmse, color=colour, lw=1.6, marker="o", ms=3.5, label=solver)
        if others := len(set(solvers) - set(named)):
            ax.plot([], [], color=GREY, lw=0.8, label=f"{others} others")
        if steps := run.states.get("steps"):
            ax.axvline(steps, color=INK, lw=0.7, ls=":", zorder=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ticks = sorted(set(map(int, table["calls"])))
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if _leads(y) else "")
        ax.set_xlabel("network calls")
        ax.set_ylabel("RMSE to fine trajectories")
        if wide:
            figure.legend(loc="outside right center", frameon=False)
        else:
            legend(ax)
    return finish(run, "calls", out)


def _leads(y: float) -> bool:
    """Whether a minor tick of a log axis is labelled: 2 and 5 of each decade."""
    return round(y / 10 ** np.floor(np.log10(y) + 1e-9)) in (2, 5)
