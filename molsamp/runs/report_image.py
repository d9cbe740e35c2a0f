"""What the report of `molsamp image` shows."""

from __future__ import annotations

from typing import Any

from molsamp.runs import figures_image as figures
from molsamp.runs.page import Page, grouped, panel, picture
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval, numbers

HEADLINES = ("rmse_to_fine", "sliced_wasserstein", "frechet:digits", "frechet:mnist", "call_time")
WORDS = (
    "Two things can be wrong with a picture. The solver took few steps: RMSE to fine trajectories is how far, in "
    "pixels of a range from −1 to 1, the pictures end from where the same noises lead through the same model with "
    "many calls. And the model is not the data: the distances to held-out pictures tell that, beside what as many "
    "training pictures score, for such distances fall with the number of pictures and are never zero. The "
    "Fréchet distance is in the features of a small classifier of these data; it is not the FID."
)


def page(run: Finished) -> Page:
    """The distances, the pictures, how they came out of the noise, and what more calls would give."""
    r, s = run.result, run.states
    found = numbers(r)
    passes = f" ({grouped(r['forwards'])} forward passes)" if r["forwards"] != r["network_calls"] else ""
    cost = f"{grouped(r['network_calls'])} network calls{passes}, {grouped(round(r['cpu_seconds']))} CPU seconds"
    return Page(
        eyebrow="pictures",
        heading=f"{r['model']}: {grouped(s['n'])} picture{'s' * (s['n'] != 1)} in {s['steps']} network calls each",
        lead=f"{_solver(r, s)}, seed {r['seed']}; {cost}.",
        tiles={name: _beside(name, run) for name in HEADLINES if name in found},
        question="What these numbers are",
        words=WORDS,
        left=[
            picture(
                "Samples",
                run.folder / "samples.png",
                f"The first {s['shown']} of {s['n']}." if s["shown"] < s["n"] else "All of them.",
            ),
        ],
        right=[
            picture(
                "From noise to picture",
                run.folder / "trajectory.png",
                "The first pictures on their way: noise on the left, t is the time of the model's schedule.",
            ),
            panel(
                "Error against network calls",
                figures.errors(run, list(dict.fromkeys([r["solver"], *run.tables.get("calls", {}).get("solver", [])]))),
                f"On {s['compared']} of the pictures, with 95 % bands; the grey line: this run.",
                "the solver draws noise, or no pictures were compared with fine trajectories",
            ),
        ],
    )


def _solver(r: dict[str, Any], s: dict[str, Any]) -> str:
    """The solver with its guidance in words."""
    words = [f"solver {r['solver']}"]
    words += [f"guidance {s['guidance']:g}"] if s["guidance"] is not None else []
    words += [f"class {s['label']}"] if s["label"] is not None else []
    return ", ".join(words)


def _beside(name: str, run: Finished) -> str:
    ends = interval(name, numbers(run.result)[name])
    if name == "call_time":
        return f"95 %: {ends}; a batch of pictures on this machine"
    return f"95 %: {ends}" if ends != "–" else "no interval"
