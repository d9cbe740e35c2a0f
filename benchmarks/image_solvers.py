"""How far does every solver end from the model's own fine trajectory at 4 to 50 network calls, here and in diffusers?

Ours run on the grid that `sample` takes by default and on even steps, those of diffusers as they come; both from the
same noises, in one process. RMSE over 3 seeds of 256 noises (96 for the U-Net, which costs most) with its jackknife
interval over noises. Solvers that draw noise have no fine trajectory and are judged by the law alone: the sliced
Wasserstein distance of their samples to fine trajectories of other noises, beside that of these among themselves.

Orders of convergence: image_orders.py; time beyond the network: image_overhead.py; the best of each side, chosen on
other noises: image_best.py. Results: benchmarks/results/image_solvers.json; can be stopped and started again.

    python benchmarks/image_solvers.py [--models "digits;mnist, guided"] [--calls 5,10] [--table]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from itertools import product

import pictures
import torch
from interleaved import ROOT, Results, code_version
from torch import Tensor

from molsamp.engine import Noise
from molsamp.image.bench import rmse
from molsamp.image.scoring import sliced_wasserstein
from molsamp.image.solvers import SOLVERS

RESULTS = ROOT / "benchmarks" / "results" / "image_solvers.json"
CODE = (*pictures.CODE, "benchmarks/image_solvers.py")
CALLS, SEEDS, OTHER = (4, 5, 6, 8, 10, 15, 20, 50), (1, 2, 3), 100
THEIRS = {
    "ddim": "ddim leading",
    "euler": "euler",
    "heun": "heun",
    "dpm++2m": "dpm++2m",
    "dpm++3m": "dpm++3m",
    "dpm++2s": "dpm++2s",
    "dpm++3s": "dpm++3s",
    "deis-lam1": "deis-2",
    "deis-lam2": "deis-3",
    "unipc-1": "unipc-1 bh2",
    "unipc-2": "unipc-2 bh2",
    "unipc-3": "unipc-3 bh2",
    "unipc-1-bh1": "unipc-1 bh1",
    "unipc-2-bh1": "unipc-2 bh1",
    "unipc-3-bh1": "unipc-3 bh1",
    "ipndm": "pndm leading",
}
"""Our name -> diffusers' scheduler as `pictures.schedulers` names it."""


def noises(model: str) -> int:
    """Of each seed."""
    return 96 if model.startswith("mnist") else 256


@cache
def prepared(model: str, seed: int) -> tuple[Tensor, pictures.Truth]:
    """Starts and where the fine trajectories end."""
    start = pictures.starts(model, seed, noises(model))
    return start, pictures.truth(model, start)


def contestants(model: str, calls: int) -> Iterator[tuple[str, str]]:
    """(solver, side) with side "quadratic" or "uniform", our grids, or "diffusers"."""
    for name, solver in SOLVERS.items():
        if name == "unipc" or calls < solver.least:
            continue
        yield name, "quadratic"
        if not model.startswith("mnist"):
            yield name, "uniform"
        if name in THEIRS:
            yield name, "diffusers"


def measure(model: str, name: str, side: str, calls: int) -> dict | None:
    """RMSE by seed and pooled; None where diffusers has no such scheme at these calls."""
    squares, found = [], []
    for seed in SEEDS:
        start, exact = prepared(model, seed)
        if side == "diffusers":
            if (their := pictures.theirs(model, THEIRS[name], calls, start)) is None:
                return None
            x, small = their
        else:
            x, small = pictures.ours(model, name, calls, side, start), True
        found.append(x)
        squares.append(pictures.errors(x, exact.small if small else exact.zero))
    if name in pictures.STOCHASTIC:
        return {"distance": distance(model, torch.cat(found)), "floor": distance(model, None)}
    if lost := sum(int((~s.isfinite()).sum()) for s in squares):
        return {"diverged": lost}
    pooled = rmse(torch.cat(squares))
    by_seed = [float(s.mean().sqrt()) for s in squares]
    return {"rmse": pooled.value, "low": pooled.interval[0], "high": pooled.interval[1], "rmse by seed": by_seed}


def distance(model: str, x: Tensor | None) -> float:
    """Sliced Wasserstein distance to fine trajectories of other noises; of other fine trajectories where x is None."""
    if x is None:
        x = torch.cat([prepared(model, seed)[1].small for seed in SEEDS])
    others = torch.cat([prepared(model, OTHER + seed)[1].small for seed in SEEDS])
    return sliced_wasserstein(x, others, Noise(0)).value


def table(entries: list[dict]) -> str:
    """A block a model, a line a solver and side, RMSE at each number of calls (of those that draw noise, distances)."""
    lines = []
    for model in dict.fromkeys(e["model"] for e in entries):
        lines.append(f"{model:30}" + "".join(f"{calls:>8}" for calls in CALLS))
        mine = [e for e in entries if e["model"] == model]
        for name, side in dict.fromkeys((e["solver"], e["side"]) for e in mine):
            of = {e["calls"]: e for e in mine if (e["solver"], e["side"]) == (name, side)}
            lines.append(f"  {name:16} {side:10} " + "".join(cell(of.get(c)) for c in CALLS))
    return "\n".join(lines)


def cell(entry: dict | None) -> str:
    """One figure in eight characters; * where a picture diverged."""
    if entry is None or "diverged" in entry:
        return f"{'' if entry is None else '*':>8}"
    return f"{entry.get('rmse', entry.get('distance')):8.4f}"


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=";".join(pictures.MODELS), help="parted by ;")
    parser.add_argument("--calls", default=",".join(map(str, CALLS)))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("model", "solver", "side", "calls")), code_version(*CODE)
    asked = product(args.models.split(";"), map(int, args.calls.split(",")))
    for model, calls in [] if args.table else asked:
        for name, side in contestants(model, calls):
            key = {"model": model, "solver": name, "side": side, "calls": calls}
            if not results.has(code, **key) and (found := measure(model, name, side, calls)) is not None:
                results.add(code, **key, seeds=list(SEEDS), noises=noises(model), **found)
        print(f"{model}, {calls} calls", flush=True)
    print(table(results.newest()))


if __name__ == "__main__":
    main()
