"""What the report of `molsamp rates` shows."""

from __future__ import annotations

from molsamp.runs import figures_rates as figures
from molsamp.runs.page import Page, grouped, panel
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval

LAST_VISITED = (
    "A rate counts the arrivals in B of what was last in A, per time since it was last in A rather than B; the mean "
    "first-passage time is one over it. It is the rate of what is seen at every look. "
)
WORDS = {
    "we": LAST_VISITED
    + (
        "Walkers carry weights. In every bin of the progress they were split where they were few and merged where they "
        "were many, which keeps the mean of everything; so rare places are visited all the time by walkers of tiny "
        "weight. The replicas share nothing, and the intervals come from their scatter. The committor of a bin is the "
        "share of its equilibrium weight that came from B, which holds for reversible dynamics."
    ),
    "ffs": LAST_VISITED
    + (
        "The flux out of A through the first interface is multiplied by the chances to get from each interface to the "
        "next before falling back to A. Trajectories with a common ancestor are alike; the replicas share none, and "
        "the intervals come from their scatter."
    ),
    "md": LAST_VISITED
    + (
        "Plain dynamics of many walkers: the arrivals are counted. They are rare and independent, so their number is "
        "Poisson's, with its exact interval."
    ),
}


def page(run: Finished) -> Page:
    """The rate with its interval, how it came about, the weights of the bins, the committor."""
    r, results = run.result, run.result["results"]
    beside = {
        name: f"95 %: {interval(name, results[name])}" for name in ("rate", "mfpt", "rate_back") if name in results
    }
    a, b = (", ".join(run.states.get(side, [side])) for side in ("A", "B"))
    return Page(
        eyebrow="rates",
        heading=f"{run.states.get('title') or r['system']}: from {a} to {b}",
        lead=f"{r['method']}, seed {r['seed']}; {grouped(r['energy_evaluations'])} energy evaluations, "
        f"{grouped(round(r['cpu_seconds']))} CPU seconds.",
        tiles=beside,
        question="What these rates are",
        words=WORDS[r["method"]],
        left=[
            panel("Flux from interface to interface", figures.ladder(run), "Band: 95 %.", "nothing left A")
            if r["method"] == "ffs"
            else panel(
                "Flux against time",
                figures.flux(run),
                "Dots: the rate of each stretch; line: the running estimate.",
                "nothing came to B",
            ),
            panel(
                "Weight of the bins",
                figures.occupancy(run),
                "Share of all weight, by the set last visited.",
                "forward flux has no bins",
            ),
        ],
        right=[
            panel("Committor", figures.committor(run), "Probability to reach B before A. Band: 95 %.", _absent(run)),
        ],
    )


def _absent(run: Finished) -> str:
    return "too few arrivals" if "rate_back" in run.result["results"] else "with recycling nothing comes back from B"
