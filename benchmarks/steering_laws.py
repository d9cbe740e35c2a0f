"""How fast do steered samples come to have the law they are steered to: against particles, against network calls?

Every problem of benchmarks/laws has a law that is known: tilted in closed form, enumerated, a Gaussian posterior, a
sharpened class. A curve is the error of its mean, of log Z (nats) and a distance between laws (Wasserstein on the
line, sliced or between Gaussians; total variation where it is enumerated)

    particles   of populations of 2 .. 256 at the same steps against the chain's own law: root mean square (the mean,
                for the distance) over populations, 4096 particles in all; of "best of n" the law that its picks have
    calls       of many particles against the exact law: what the steps, or a rule that samples another law, leave

on a seed's noises. Slopes of log error over log n are fitted from 16 particles on; intervals are Student's over seeds.

    python benchmarks/steering_laws.py [--seeds 1,2,3,4,5] [--problems mixture,sentences] [--table] [--picture FILE]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys

import torch
from interleaved import ROOT, Results, code_version
from laws import classes, linear, mixture, sentences
from laws.measuring import BEST, errors, of_the_best

from molsamp.engine import Noise
from molsamp.engine.estimates import student95

RESULTS = ROOT / "benchmarks" / "results" / "steering_laws.json"
PROBLEMS = {
    "mixture": mixture.Mixture,
    "sentences": sentences.Sentences,
    "linear": linear.Linear,
    "apart": classes.Apart,
    "overlapping": classes.Overlapping,
}
ENGINE = (
    *("steering", "particles", "lineage", "measures", "mixtures", "guides", "renoising", "exponential", "quadrature"),
    *("integrators", "rollout", "dynamics", "noise", "schedules", "grids", "operators", "conjugate_gradients", "state"),
)
CODE = (
    *(f"molsamp/engine/{name}.py" for name in ENGINE),
    *(f"molsamp/image/{name}.py" for name in ("steering", "sampling", "ideal", "denoiser", "inverse", "guidance")),
    *("benchmarks/laws", "benchmarks/steered/dds.py"),
)
SIZES, TOTAL, FITTED = (2, 4, 8, 16, 32, 64, 128, 256), 4096, 16
UNITS = "error of the mean, of log Z in nats, distance of laws"


def curve(name: str, axis: str, method: str, seed: int) -> list[dict[str, float]]:
    """Points of one curve."""
    kind = PROBLEMS[name]
    if axis == "calls":
        return kind.by_calls(method, seed)
    problem, points = kind(seed), []
    noise = Noise(seed).child(f"{name} {method}")
    for m in SIZES:
        x, logw = problem.populations(method, m, TOTAL // m, noise.child(f"{m}"))
        told = of_the_best if method == BEST else errors
        points.append({"particles": float(m), **told(problem, x, logw)})
    return points


def axes_of(name: str) -> list[tuple[str, str]]:
    """(axis, method) of a problem."""
    kind = PROBLEMS[name]
    along = {"particles": getattr(kind, "methods", ()), "calls": getattr(kind, "guided", ())}
    return [(axis, method) for axis, methods in along.items() for method in methods]


def over_seeds(entries: list[dict], figure: str) -> dict[float, tuple[float, float, float]]:
    """Geometric mean and 95 % interval of a figure at every place of the axis where all seeds have it."""
    found = {}
    axis = entries[0]["axis"]
    at = [{p[axis]: p[figure] for p in e["points"] if figure in p} for e in entries]
    for place in at[0]:
        if all(place in a for a in at):
            value, half = _student([math.log(max(a[place], 1e-12)) for a in at])
            found[place] = math.exp(value), math.exp(value - half), math.exp(value + half) if half < 700.0 else math.inf
    return found


def slope(entries: list[dict], figure: str) -> tuple[float, float]:
    """Of log error over log particles, from 16 on: mean and half a 95 % interval over seeds."""
    found = []
    for e in entries:
        at = [(math.log(p["particles"]), math.log(p[figure])) for p in e["points"] if p["particles"] >= FITTED]
        found.append(statistics.linear_regression(*zip(*at, strict=True)).slope)
    return _student(found)


def _student(values: list[float]) -> tuple[float, float]:
    n = len(values)
    half = student95(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return statistics.mean(values), half


def table(groups: dict[tuple[str, str, str], list[dict]]) -> None:
    """Every curve on a line, with its slope."""
    for (name, axis, method), entries in groups.items():
        figures = [f for f in ("mean", "log Z", "distance", "variance") if f in entries[0]["points"][0]]
        for figure in figures:
            at = over_seeds(entries, figure)
            shown = "  ".join(f"{int(k)}: {v[0]:.2g}" for k, v in at.items())
            told = ""
            if axis == "particles" and method != BEST:
                value, half = slope(entries, figure)
                told = f"  slope {value:.2f} +- {half:.2f}"
            print(f"{name:12}{axis:10}{method:30}{figure:9}{shown}{told}")


def picture(groups: dict[tuple[str, str, str], list[dict]], file: str) -> None:
    """Columns: problems against particles, above, and against calls, below; rows: mean and distance (and log Z)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "particles": [(p, f) for f in ("mean", "log Z", "distance") for p in ("mixture", "sentences", "linear")],
        "calls": [(p, f) for f in ("mean", "distance") for p in ("mixture", "linear", "apart", "overlapping")],
    }
    figure, axes = plt.subplots(5, 4, figsize=(19, 19), layout="constrained")
    titles = {
        "mixture": "Gaussian mixture, tilted",
        "sentences": "sentences, enumerated",
        "linear": "linear-Gaussian posterior",
        "apart": "classes far apart",
        "overlapping": "classes that overlap, w = 4",
    }
    names = {"mean": "error of the mean", "log Z": "error of log Z, nats", "distance": "distance of the laws"}
    for axis, some in panels.items():
        across = 3 if axis == "particles" else 4
        for k, (problem, f) in enumerate(some):
            ax = axes[k // across + (0 if axis == "particles" else 3)][k % across]
            ax.set(xscale="log", yscale="log", title=titles[problem], ylabel=names[f])
            mine = {m: over_seeds(e, f) for (p, a, m), e in groups.items() if (p, a) == (problem, axis)}
            for i, (method, at) in enumerate(mine.items()):
                if not at:
                    continue
                x, (y, low, high) = list(at), zip(*at.values(), strict=True)
                ax.set_xticks(x, [f"{a:.0f}" for a in x])
                ax.plot(x, y, "o-", ms=3.5, lw=1.4, color=f"C{i}", label=method)
                if all(map(math.isfinite, high)):
                    ax.fill_between(x, low, high, color=f"C{i}", alpha=0.15, lw=0)
                if axis == "particles" and i == 0:
                    ax.plot(x, [y[-1] * (x[-1] / a) ** 0.5 for a in x], "k:", lw=1.2, label="$n^{-1/2}$")
            ax.set_xlabel("particles in a population" if axis == "particles" else "network calls")
            ax.set_xticks([], minor=True)
            if shown := [v[0] for at in mine.values() for v in at.values()]:
                ax.set_ylim(max(1e-4, 0.6 * min(shown)), 1.7 * max(shown))
            ax.grid(alpha=0.25)
            ax.legend(fontsize=8, framealpha=0.6)
    for row in axes[:3]:
        row[3].axis("off")
    figure.savefig(file, dpi=90)


def main() -> None:
    """Measure what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--picture", help="draw the curves into this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("problem", "axis", "method", "seed")), code_version(*CODE)
    for name in args.problems.split(","):
        for seed in [] if args.table else map(int, args.seeds.split(",")):
            for axis, method in axes_of(name):
                key = {"problem": name, "axis": axis, "method": method, "seed": seed}
                if not results.has(code, **key):
                    results.add(code, **key, unit=UNITS, points=curve(name, axis, method, seed))
            print(name, seed, file=sys.stderr, flush=True)
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for e in results.newest():
        if e["problem"] in args.problems.split(","):
            groups.setdefault((e["problem"], e["axis"], e["method"]), []).append(e)
    table(groups)
    if args.picture:
        picture(groups, args.picture)


if __name__ == "__main__":
    main()
