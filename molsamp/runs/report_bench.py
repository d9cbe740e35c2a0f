"""What the report of `molsamp image bench` shows."""

from __future__ import annotations

from html import escape
from typing import Any

from molsamp.runs import figures_image as figures
from molsamp.runs.page import Page, grouped, panel, table
from molsamp.runs.reading import Finished
from molsamp.runs.summary import CELLS, by_calls, interval, tabulated, value

NAMED, TILES = 3, 4  # solvers drawn in colour because they are best; numbers of calls with a tile
FAMILIAR = ("unipc", "unipc-3-bh1", "dpm++2m", "heun", "ddim")
WORDS = (
    "Every solver starts from the same noises on the same model and is set against where fine trajectories end. That "
    "is the error of the solver alone: it says nothing about how good the model is, and a solver that is best here "
    "at few calls need not be so on another model. Solvers that draw noise on their way have no such end and are "
    "left out. The bands and brackets are 95 % intervals over the noises."
)


def page(run: Finished) -> Page:
    """The best of a few numbers of calls, and the errors of all solvers as a figure and a table."""
    r, s = run.result, run.states
    headings, rows = tabulated(r)
    order = [row[0] for row in rows]
    named = list(dict.fromkeys([*order[:NAMED], *(name for name in FAMILIAR if name in order)]))
    cost = f"{grouped(r['network_calls'])} network calls, {grouped(round(r['cpu_seconds']))} CPU seconds"
    fine = f"fine trajectories of {s['fine']} calls, known to {value('fineness', r['results']['fineness'])}"
    return Page(
        eyebrow="comparison of solvers",
        heading=f"{r['model']}: {len(rows)} solver{'s' * (len(rows) != 1)} at few network calls",
        lead=f"{s['n']} noises, seed {r['seed']}; {fine}; {cost}.",
        tiles=_best(r["results"]),
        question="What these numbers are",
        words=WORDS,
        left=[],
        right=[],
        wide=panel(
            "Error against network calls",
            figures.errors(run, named, wide=True),
            f"In colour: the {NAMED} best on average, and well-known ones. Bands: 95 %.",
            "no solver was compared",
        ),
        table=table(headings, [[escape(cell) for cell in row] for row in rows])
        + f"<p>{CELLS}. The best on average first.</p>",
    )


def _best(results: dict[str, Any]) -> dict[str, str]:
    """The best solver at a few numbers of calls, and the words below it."""
    found = by_calls(results)
    calls = sorted({n for row in found.values() for n in row})
    few = dict.fromkeys(calls[round(i * (len(calls) - 1) / (TILES - 1))] for i in range(TILES))
    tiles = {}
    for n in few:
        known = {s: row[n]["value"] for s, row in found.items() if n in row and row[n]["value"] is not None}
        if known:
            name = f"rmse:{min(known, key=known.__getitem__)}@{n}"
            tiles[name] = f"RMSE of the best here; 95 %: {interval(name, results[name])}"
    return tiles
