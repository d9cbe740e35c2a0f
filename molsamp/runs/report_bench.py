"""What the report of `molsamp image bench` shows."""

from __future__ import annotations

from html import escape

from molsamp.runs import figures_image as figures
from molsamp.runs.page import Page, grouped, panel, table
from molsamp.runs.reading import Finished
from molsamp.runs.summary import CELLS, tabulated

NAMED = 4  # solvers drawn in colour, besides ddim
WORDS = (
    "Every solver starts from the same noises on the same model and is set against where fine trajectories end. That is "
    "the error of the solver alone: it says nothing about how good the model is, and a solver that is best here at few "
    "calls need not be so on another model. Solvers that draw noise on their way have no such end and are left out. "
    "The bands and brackets are 95 % intervals over the noises."
)


def page(run: Finished) -> Page:
    """Errors of all solvers as a figure and a table."""
    r, s = run.result, run.states
    headings, rows = tabulated(r)
    best = [row[0] for row in rows[:NAMED]]
    named = list(dict.fromkeys([*best, *(["ddim"] if any(row[0] == "ddim" for row in rows) else [])]))
    cells = [[escape(cell) for cell in row] for row in rows]
    cost = f"{grouped(r['network_calls'])} network calls, {grouped(round(r['cpu_seconds']))} CPU seconds"
    return Page(
        eyebrow="comparison of solvers",
        heading=f"{r['model']}: {len(rows)} solver{'s' * (len(rows) != 1)} at few network calls",
        lead=f"{s['n']} noises, seed {r['seed']}; {cost}.",
        tiles={"fineness": f"between {s['fine']} calls and half as many"},
        question="What these numbers are",
        words=WORDS,
        left=[
            panel(
                "Error against network calls",
                figures.errors(run, named),
                "In colour: the best on average, and DDIM, where every comparison begins.",
                "no solver was compared",
            )
        ],
        right=[panel("Solvers, the best first", table(headings, cells), CELLS, "")],
        table=table(headings, cells),
    )
