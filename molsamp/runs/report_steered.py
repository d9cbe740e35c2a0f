"""What the report of `molsamp image` shows of steered pictures."""

from __future__ import annotations

from molsamp.runs import figures_steered as figures
from molsamp.runs.page import Page, grouped, panel, picture
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval, numbers

HEADLINES = (
    "reward",
    "reward_before",
    "log_z",
    "ess_share",
    "recognised",
    "recognised_before",
    "psnr_mean",
    "psnr_cg",
    "psnr_gain",
)
REWARDED = (
    "With p the law in which the {free} ends, these pictures and their weights stand for p(x) exp({strength:g} "
    "reward(x)) / Z. At every boundary particles that promise little reward die and others are copied; with a few "
    "particles that is a search, with many a sample. The effective number tells how many of a population still "
    "count, the genealogy how many starts they come from. "
)
GUIDED = (
    "Guides move the picture that a step aims at. What comes out is no law that could be written down (only weights "
    "make one), so look at the pictures, and at what the same noise gives without. "
)
SOLVED = {
    "published": (
        "Every step moves the model's picture a few conjugate-gradient steps towards the measurement and draws most of "
        "the noise anew (DDS as published): good pictures, narrower than the posterior. "
    ),
    "bayes": (
        "Every step aims at what a posterior of Gaussian pictures of equal pixels would, so that the solutions scatter "
        "about as the measurement leaves them free to. "
    ),
}
BESIDE = (
    "Conjugate gradients alone know the mean picture and the spread of a pixel, not the model. PSNR is 10 log10(4 / "
    "mean squared error); the mean of the solutions has less error than each. A misfit of 1 is what the noise makes. "
)


def page(run: Finished) -> Page:
    """The numbers, pictures before and after, lineage and weights, solutions beside the truth."""
    r, s = run.result, run.states
    found = numbers(r)
    rewarded, solved = "reward" in r, "operator" in r
    free = "guided rollout" if "guide" in r or solved else "model's rollout"
    words = REWARDED.format(free=free, strength=s["strength"]) if rewarded else GUIDED if "guide" in r else ""
    words += SOLVED[s["mode"]] + BESIDE if solved else ""
    after, before = _pictures(run)
    left = [*(_solutions(run) if solved else []), *after]
    right = [*before, *_measured(run), *_guidance(run)]
    return Page(
        eyebrow="steered pictures",
        heading=f"{r['model']}: {_asked(run)}",
        lead=f"{grouped(s['n'])} pictures in populations of {s['particles']}; solver {r['solver']}, {s['steps']} steps"
        f"{_class(run)}, seed {r['seed']}; {grouped(r['network_calls'])} network calls ({grouped(r['forwards'])} "
        f"forward passes), {grouped(round(r['cpu_seconds']))} CPU seconds.",
        tiles={name: f"95 %: {interval(name, found[name])}" for name in HEADLINES if name in found},
        question="What these pictures are",
        words=words,
        left=left + right if rewarded else left,
        right=_lineage(run) if rewarded else right,
    )


def _asked(run: Finished) -> str:
    r, s = run.result, run.states
    words = [r["guide"]] if "guide" in r else []
    words += [f"{r['reward']} × {s['strength']:g}"] if "reward" in r else []
    source = "simulated" if s["measurement"] is None else "as measured"
    words += [f"{r['operator']}, {source}"] if "operator" in r else []
    return "; ".join(words)


def _class(run: Finished) -> str:
    s = run.states
    words = f", class {s['label']}" if s["label"] is not None else ""
    return words + (f", guidance {s['guidance']:g}" if s["guidance"] is not None else "")


def _pictures(run: Finished) -> tuple[list[str], list[str]]:
    """After, and before where there is something to compare with."""
    s, rewarded = run.states, "reward" in run.result
    rows = "A row a population, the first ones." if s["shown"] * s["particles"] < s["n"] else "A row a population."
    after = " Each has the weight that the figure shows." if rewarded else ""
    shown = [picture("After" if s["compared"] else "Solutions", run.folder / "samples.png", rows + after)]
    if not s["compared"]:
        return shown, []
    caption = f"The same noise in the same solver, without {'the reward' if rewarded else 'guides'}."
    return shown, [picture("Before", run.folder / "before.png", caption)]


def _guidance(run: Finished) -> list[str]:
    if "guide" not in run.result and "operator" not in run.result:
        return []
    caption = "How far each moves the picture that a row aims at; from the left, noise to data."
    return [panel("What guides add", figures.guidance(run), caption, "there were none")]


def _lineage(run: Finished) -> list[str]:
    absent = "the run has no boundary before its end"
    return [
        panel("Effective particles", figures.effective(run), "Grey: each population, before it is resampled.", absent),
        panel(
            "Genealogy of the first population",
            figures.genealogy(run),
            "From left to right who was copied; blue: the lines that reach the end.",
            absent,
        ),
        panel("Weights and rewards", figures.weights(run), "Every particle at the end; left, in grey, before.", absent),
    ]


def _measured(run: Finished) -> list[str]:
    if "operator" not in run.result:
        return []
    caption = "Each scaled to its range; of complex numbers the logarithm of the size, a column a coil."
    return [picture("Measurements", run.folder / "measurements.png", caption)]


def _solutions(run: Finished) -> list[str]:
    caption = (
        "A row a measurement. The adjoint is the measurement laid back on the picture; CG is without a model; the "
        "mean is that of all solutions, beside which the first by weight stand."
    )
    return [picture("Truth, measurement, solution", run.folder / "solutions.png", caption)]
