"""At few network calls, how far is the best solver here from the model's own fine trajectory, and how far diffusers'?

On each model and for each number of calls every solver here, on every grid, and every scheduler of diffusers with its
variants is tried on 128 noises; the best of either side is then scored on 3 times 256 others:

    ratio = RMSE(ours) / RMSE(theirs), pooled over noises, its 95 % interval by bootstrap over noises (paired)

DC-Solver is among ours, its ratios searched on 10 noises of its own. The best of ours on two grids are tried from later
times too, with x as it is ("late": so do the "leading" grids of diffusers begin) or carried there by the flow of the
data's Gaussian ("jump": teleportation). "grid" says how much is the grid's doing: it is the same ratio against
diffusers' DPM-Solver++ on the nodes of our quadratic grid, which its users would have to give.

Results: benchmarks/results/image_best.json. The script can be stopped and started again.

    python benchmarks/image_best.py [--models digits,mnist] [--calls 5,6,8,10] [--table]
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from itertools import product
from typing import NamedTuple

import pictures
import torch
from interleaved import ROOT, Results, code_version
from torch import Tensor

from molsamp.engine import Noise, time_grid
from molsamp.image import data
from molsamp.image.compensation import compensated, search
from molsamp.image.sampling import plan, sample
from molsamp.image.solvers import SOLVERS
from molsamp.image.teleport import Gaussian, fit_gaussian

RESULTS = ROOT / "benchmarks" / "results" / "image_best.json"
CODE = (*pictures.CODE, "molsamp/image/teleport.py", "benchmarks/image_best.py")
GRIDS = ("uniform", "quadratic", "log-snr", "karras")
CHOOSING, SCORING, SEEDS, SEARCHED = 128, 256, (1, 2, 3), 10
BOOTSTRAP = 2000
FEW, LATER = 4, (0.9, 0.95, 0.8, 0.85, 0.7, 0.6, 0.5)  # so many of each of two grids from these times


class Candidate(NamedTuple):
    """A solver on a grid that begins at a time, where x is "late" or was carried by a "jump"."""

    solver: str
    grid: str
    begin: float = pictures.START
    how: str = "late"

    def __str__(self) -> str:
        later = f", {self.how} {self.begin:g}" if self.begin < pictures.START else ""
        return f"{self.solver} {self.grid}{later}"


def candidates(calls: int) -> list[Candidate]:
    """Deterministic solvers on grids; DC-Solver of two orders beside them."""
    known = [k for k, s in SOLVERS.items() if s.least <= calls and k not in (*pictures.STOCHASTIC, "unipc", "dc")]
    return [Candidate(*pair) for pair in product((*known, "dc-2", "dc-3"), GRIDS)]


def run(model: str, candidate: Candidate, calls: int, x: Tensor) -> Tensor:
    """Last x of a candidate."""
    solver, grid, begin, how = candidate
    dc = solver.startswith("dc-")
    times = time_grid(grid, pictures.S, calls if dc else plan(solver, calls)[1], begin, pictures.END)
    if how == "jump":
        x = gaussian(model).flow(pictures.S, pictures.START, begin, x)
    return sample(
        pictures.model(model),
        compensated(times, ratios(model, candidate, calls), int(solver[3:])) if dc else solver,
        calls,
        noise=Noise(1),
        grid=times,
        start=x,
    ).final.x


@cache
def ratios(model: str, candidate: Candidate, calls: int) -> tuple[float, ...]:
    """Of DC-Solver, searched on noises of their own at the first time."""
    times = time_grid(candidate.grid, pictures.S, calls, candidate.begin, pictures.END)
    found = search(
        pictures.model(model), calls, noise=Noise(77), n=SEARCHED, order=int(candidate.solver[3:]), grid=times
    )
    return found.ratios


@cache
def prepared(model: str, seed: int, n: int) -> tuple[Tensor, pictures.Truth]:
    """Starts and where the fine trajectories end."""
    start = pictures.starts(model, seed, n)
    return start, pictures.truth(model, start, 120 if dear(model) else pictures.FINE)


def dear(model: str) -> bool:
    """Whether it is the U-Net: of our grids and later times only some are tried, and fine is less so."""
    return model.startswith("mnist")


@cache
def gaussian(model: str) -> Gaussian:
    """Of the data, of one class where the model is guided to it."""
    x, label = (data.mnist if "mnist" in model else data.digits)().split()[0]
    return fit_gaussian(x[label == pictures.GUIDED] if "guided" in model else x)


def measure(model: str, calls: int) -> dict:
    """The choice and the score."""
    start, exact = prepared(model, 100, CHOOSING)

    def error(candidate: Candidate) -> float:
        return finite(pictures.errors(run(model, candidate, calls, start), exact.small).mean().sqrt())

    mine = {c: error(c) for c in candidates(calls) if not dear(model) or c.grid in GRIDS[:2]}
    of_grids = ([c for c in mine if c.grid == grid] for grid in GRIDS[:2])
    for first in [c for found in of_grids for c in sorted(found, key=mine.__getitem__)[:FEW]]:
        later = (
            first._replace(begin=begin, how=how) for begin, how in product(LATER[:: 1 + dear(model)], ("late", "jump"))
        )
        mine |= {candidate: error(candidate) for candidate in later}
    their = {}
    for name in pictures.schedulers():
        if (found := pictures.theirs(model, name, calls, start)) is not None:
            x, small = found
            their[name] = finite(pictures.errors(x, exact.small if small else exact.zero).mean().sqrt())
    best = min(mine, key=mine.__getitem__)
    own = {k: v for k, v in their.items() if "our grid" not in k}
    foreign = {k: v for k, v in their.items() if "our grid" in k}
    rival, helped = min(own, key=own.get), min(foreign, key=foreign.get)
    scores = {name: [] for name in ("ours", "theirs", "on our grid", "unipc-2", "dc-2")}
    for seed in SEEDS:
        start, exact = prepared(model, seed, SCORING)
        scores["ours"].append(pictures.errors(run(model, best, calls, start), exact.small))
        for word, name in (("theirs", rival), ("on our grid", helped)):
            x, small = pictures.theirs(model, name, calls, start)
            scores[word].append(pictures.errors(x, exact.small if small else exact.zero))
        for name in ("unipc-2", "dc-2"):
            scores[name].append(pictures.errors(run(model, Candidate(name, "uniform"), calls, start), exact.small))
    pooled = {name: torch.cat(parts) for name, parts in scores.items()}
    return {
        "ours": str(best),
        "theirs": rival,
        "on our grid": helped,
        "rmse": {name: float(e.mean().sqrt()) for name, e in pooled.items()},
        "rmse by seed": {name: [float(e.mean().sqrt()) for e in parts] for name, parts in scores.items()},
        "ratio": ratio(pooled["ours"], pooled["theirs"]),
        "ratio on our grid": ratio(pooled["ours"], pooled["on our grid"]),
        "dc-2 over unipc-2": ratio(pooled["dc-2"], pooled["unipc-2"]),
        "choosing": {
            "ours": dict(sorted(((str(c), e) for c, e in mine.items()), key=lambda a: a[1])[:8]),
            "theirs": dict(sorted(their.items(), key=lambda a: a[1])[:8]),
        },
    }


def finite(error: Tensor) -> float:
    """The error, infinite where pictures diverged."""
    return float(error) if error.isfinite() else math.inf


def ratio(a: Tensor, b: Tensor) -> dict[str, float]:
    """RMSE of a over that of b, with its interval."""
    draws = torch.randint(len(a), (BOOTSTRAP, len(a)), generator=torch.Generator().manual_seed(0))
    values = (a[draws].mean(1) / b[draws].mean(1)).sqrt()
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return {"value": float((a.mean() / b.mean()).sqrt()), "low": low, "high": high}


def table(entries: list[dict]) -> str:
    """A line a model and number of calls."""
    lines = [
        f"{'model':15} {'calls':>5} {'ours':>30} {'RMSE':>7} {'theirs':>26} {'RMSE':>7} {'ratio':>20} "
        f"{'grid':>20} {'dc-2 / unipc-2':>20}"
    ]
    for e in sorted(entries, key=lambda e: (pictures.MODELS.index(e["model"]), e["calls"])):
        shown = [_interval(e[k]) for k in ("ratio", "ratio on our grid", "dc-2 over unipc-2")]
        lines.append(
            f"{e['model']:15} {e['calls']:5} {e['ours']:>30} {e['rmse']['ours']:7.4f} {e['theirs']:>26} "
            f"{e['rmse']['theirs']:7.4f} {shown[0]:>20} {shown[1]:>20} {shown[2]:>20}"
        )
    return "\n".join(lines)


def _interval(r: dict[str, float]) -> str:
    return f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=";".join(pictures.MODELS), help="parted by ;")
    parser.add_argument("--calls", default="5,6,8,10")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("model", "calls")), code_version(*CODE)
    asked = product(args.models.split(";"), map(int, args.calls.split(",")))
    for model, calls in [] if args.table else asked:
        if not results.has(code, model=model, calls=calls):
            results.add(code, model=model, calls=calls, seeds=list(SEEDS), noises=SCORING, **measure(model, calls))
            print(table([results.entries[-1]]), flush=True)
    print(table(results.newest()))


if __name__ == "__main__":
    main()
