"""What the report of `molsamp free-energy` shows."""

from __future__ import annotations

from typing import Any

from molsamp.runs import figures_free_energy as figures
from molsamp.runs.page import Page, grouped, panel, player
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval

DIFFUSION = (
    "a network that learnt from energies draws configurations in a few dozen calls each. They are as good as what it "
    "has learnt, no more: dF_samples is the difference by them alone. What is shown here comes after some dynamics of "
    "each of them under the frozen bias, every frame with weight exp(V/kT), an ordinary average under a known bias; "
    "its intervals are from the scatter of these walkers. Where the two disagree the network had not converged."
)
WORDS = {
    "metadynamics": (
        "Walkers that shared one growing bias filled the basins; then the bias was frozen, and every frame since "
        "counts with weight exp(V/kT). That is an ordinary average under a known bias: it holds whether or not the "
        "hills had converged, as long as the walkers cross between the basins. The intervals come from the scatter of "
        "the walkers, which are independent of each other. dF_growing is what the second half of the filling says by "
        "itself, weighed with exp((V - c(t))/kT)."
    ),
    "opes": (
        "Walkers that shared one growing bias, made of the probability that they had found so far, went wherever the "
        "barrier of the settings let them; then the bias was frozen, and every frame since counts with weight "
        "exp(V/kT). That is an ordinary average under a known bias: it holds whether or not the bias had converged, as "
        "long as the walkers cross between the basins. The intervals come from the scatter of the walkers, which are "
        "independent of each other. dF_growing is what the second half of the growth says by itself, with the same "
        "weights."
    ),
    "md": (
        "Plain dynamics: the free energy is that of the histogram of what the walkers visited, all of them from one "
        "state. What they never visited is left blank, and a basin that only a few of them reached has no free energy "
        "here. The intervals come from the scatter of the walkers."
    ),
    "umbrella": (
        "Harmonic windows held the walkers at every point of a mesh in turn, breadth first from the states, and MBAR "
        "(pymbar) joined all frames into one ensemble without bias. Each walker made the whole calculation, "
        "independently of the others: the intervals come from their scatter, that of the windows' own free energies "
        "included. What no window can tell is slow motion along anything but these variables; windows that start from "
        "their neighbours inherit it."
    ),
    "as": f"Adjoint sampling from a single point: {DIFFUSION}",
    "asbs": f"The adjoint Schrödinger bridge sampler: {DIFFUSION}",
    "wt-asbs": (
        "The adjoint Schrödinger bridge sampler with a well-tempered bias on these variables, which its samples build "
        f"as they come: {DIFFUSION}"
    ),
}
SO_FAR = "Differences from all samples so far, with 95 % intervals; dashed: what the bias said while it grew."
PARTS = "Differences from the first tenth of every window's frames, two tenths and so on, with 95 % intervals."


def page(run: Finished) -> Page:
    """The differences with their intervals, the surface, its profiles, how they came about, how they look."""
    r, results = run.result, run.result["results"]
    differences = [name for name in results if name.startswith("dF:")]
    tiles = {name: _interval(name, results[name]) for name in differences[:3]}
    tiles |= {name: words for name, words in _beside(results).items() if name in results}
    calls = [f"{grouped(r['network_calls'])} network calls"] if r["network_calls"] else []
    costs = [f"{grouped(r['energy_evaluations'])} energy evaluations", *calls]
    cost = ", ".join([*costs, f"{grouped(round(r['cpu_seconds']))} CPU seconds"])
    return Page(
        eyebrow="free energy",
        heading=f"{run.states.get('title') or r['system']}: free energy of {' and '.join(_symbols(run))}",
        lead=f"{r['method']}, seed {r['seed']}; {cost}.",
        tiles=tiles,
        question="What these free energies are",
        words=WORDS[r["method"]],
        left=[
            panel(
                "Free energy",
                figures.surface(run),
                "Above the lowest point. Circles: the states; blank: never visited.",
                "there is one collective variable; see its profile",
            ),
            panel(
                "Towards the result",
                figures.convergence(run),
                PARTS if r["method"] == "umbrella" else SO_FAR,
                "no difference could be told",
            ),
            panel(
                "Weights",
                figures.weights(run),
                "How much the samples count: far from even means few effective samples.",
                "every sample counts the same",
            ),
        ],
        right=[
            panel(
                "Profiles",
                figures.profiles(run),
                "Each variable alone, the other averaged over. Band: 95 %; dashed: by the bias.",
                "no samples",
            ),
            player(run),
        ],
    )


def _interval(name: str, number: dict[str, Any]) -> str:
    return f"95 %: {interval(name, number)}" if number["value"] is not None else "too few crossings to tell"


def _beside(results: dict[str, Any]) -> dict[str, str]:
    n = results.get("ess", {}).get("n", 0)
    drawn = {name: _interval(name, number) for name, number in results.items() if name.startswith("dF_samples:")}
    return {**drawn, "ess": f"of {grouped(n)}, correlations not counted", "disagreement": "below 10 kT"}


def _symbols(run: Finished) -> list[str]:
    return [{"phi": "φ", "psi": "ψ"}.get(name, name) for name in run.states.get("axes", [])]
