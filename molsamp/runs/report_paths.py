"""What the report of `molsamp paths` shows."""

from __future__ import annotations

from typing import Any

from molsamp.runs import figures
from molsamp.runs.page import Page, grouped, panel, player, symbols
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval, value

HEADLINES = ("hit_rate", "rmsd", "log_rn", "path_ess", "ets")
WORDS = {
    "tps-dps": (
        "Every path starts at {origin} and was driven by a control trained for this transition. Such paths show how "
        "{body} can get from {start} to {end} in this short time, and at what energy. They are not what it does by "
        "itself: log dP_b/dP_0 says by how many nats the driving departs from free dynamics, and unless the path ESS "
        "comes close to the number of paths, averages over them are not thermal averages and their timing is no rate."
    ),
    "steered": (
        "Every path starts at {origin} and was pulled towards {end} by a force that was not trained. It is the null "
        "to compare with: a pull reaches the end state often, far away from free dynamics. Averages over these paths "
        "are not thermal averages."
    ),
    "md": (
        "Nothing was driven: these are free trajectories from {origin}. A hit is a spontaneous crossing; in this "
        "short time one expects next to none."
    ),
    "shooting": (
        "A Markov chain of shooting moves drew these paths from free dynamics, given that they go from {start} to "
        "{end}. They start thermally inside {start}, not at its minimum, so they belong to another ensemble than "
        "paths from the fixed start. Neighbours in the chain are correlated: the effective number is below the count."
    ),
    "chain": (
        "A Markov chain on the noise drew these paths from free dynamics that starts at {origin}, given that {end} is "
        "reached. The ensemble is exact once the chain has mixed; neighbours are correlated, so the effective number "
        "of paths is below the count."
    ),
    "twisted": (
        "Populations of free dynamics from {origin}, thinned and multiplied on the way by a learned probability to "
        "reach {end}, left these lines of descent: draws from free dynamics given that {end} is reached, exact "
        "whatever was learned. The scatter of independent populations gives the errors and the effective number."
    ),
    "vibid": (
        "A Markov chain of whole paths drew these: a Gaussian model of paths, asked from {start} and backwards from "
        "{end} in turn, proposes them, and their weight in free dynamics decides. They start thermally inside {start}, "
        "as those of shooting do, and are the same ensemble once the chain has mixed; neighbours are correlated."
    ),
}


def page(run: Finished) -> Page:
    """Headline numbers, what the paths are, where they run and how it went."""
    left, right = _columns(run)
    states = run.states
    title, results = str(states.get("title") or run.result["system"]), run.result["results"]
    return Page(
        eyebrow="transition paths",
        heading=f"{title}: {states['start']} → {states['end']}" if states else title,
        lead=_lead(run),
        tiles={name: _beside(name, results) for name in HEADLINES if name in results},
        question="What these paths are",
        words=_words(run),
        left=left,
        right=right,
    )


def _lead(run: Finished) -> str:
    r = run.result
    n = r["results"].get("hit_rate", {}).get("n", "")
    cost = f"{grouped(r['energy_evaluations'])} energy evaluations, {grouped(round(r['cpu_seconds']))} CPU seconds"
    return f"{n} paths by {r['method']}, seed {r['seed']}; {cost}."


def _words(run: Finished) -> str:
    start, end = (str(run.states.get(name, f"the {name} state")) for name in ("start", "end"))
    toy = bool(run.states.get("reduced"))
    origin = f"the minimum of {start}" if toy else f"the minimised {start} structure with thermal velocities"
    body = "the particle" if toy else "the molecule"
    return symbols(WORDS[run.result["method"]].format(start=start, end=end, origin=origin, body=body))


def _beside(name: str, results: dict[str, Any]) -> str:
    if name == "path_ess":
        return f"of {results[name]['n']} paths"
    if name == "log_rn" and "log_rn_bound" in results:
        ideal = value("log_rn_bound", results["log_rn_bound"])
        return f"{interval(name, results[name])}; ideal {ideal}"
    return f"95 %: {interval(name, results[name])}" if results[name]["value"] is not None else "no such paths"


def _columns(run: Finished) -> tuple[list[str], list[str]]:
    """Lay out the panels: where, at what energy, how committed | how it looks, how it went."""
    left = [
        panel(
            "Where the paths run",
            figures.path_map(run),
            "Circles: the states. Colour: time along the path; misses are grey.",
            "there are no two collective variables to draw",
        ),
        panel(
            "Energy along the paths",
            figures.energies(run),
            "The highest point decides a crossing; thermal motion alone lifts the curve above zero.",
            "no frames were written",
        ),
    ]
    history = panel(
        "Over the run",
        figures.training(run),
        "Thin: every unit of work; thick: moving average.",
        "this method records no history",
    )
    committor = panel(
        "Committor of the highest frame",
        figures.committor(run),
        "The share of free trajectories from that frame that reach the end state first.",
        "committors were not computed in this run; they cost many free trajectories a frame",
    )
    return [*left, committor], [player(run), history]
