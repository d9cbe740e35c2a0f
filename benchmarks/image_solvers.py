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


def measure(model: str, calls: int) -> dict[str, dict[str, list[float] | None]]:
    """Solver -> side -> figures; nothing where diffusers has no such scheme at these calls."""
    found: dict[str, dict[str, list[float] | None]] = {}
    for name, side in contestants(model, calls):
        if (figures := one(model, name, side, calls)) is not None:
            found.setdefault(name, {})[side] = [float(f"{a:.4g}") for a in figures] or None
    return found


def one(model: str, name: str, side: str, calls: int) -> list[float] | None:
    """RMSE and the ends of its interval; (distance, floor) of those that draw noise; nothing where one diverged."""
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
        return [distance(model, torch.cat(found)), distance(model, None)]
    if not torch.cat(squares).isfinite().all():
        return []
    pooled = rmse(torch.cat(squares))
    return [pooled.value, *pooled.interval]


def distance(model: str, x: Tensor | None) -> float:
    """Sliced Wasserstein distance to fine trajectories of other noises; of other fine trajectories where x is None."""
    if x is None:
        x = torch.cat([prepared(model, seed)[1].small for seed in SEEDS])
    others = torch.cat([prepared(model, OTHER + seed)[1].small for seed in SEEDS])
    return sliced_wasserstein(x, others, Noise(0)).value


def table(entries: list[dict]) -> str:
    """A block a model, a line a solver and side, RMSE (distance) at each number of calls; * where pictures diverged."""
    lines = []
    for model in dict.fromkeys(e["model"] for e in entries):
        of = {e["calls"]: e["found"] for e in entries if e["model"] == model}
        lines.append(f"{model:30}" + "".join(f"{calls:>8}" for calls in CALLS))
        for name, side in dict.fromkeys((n, side) for found in of.values() for n in found for side in found[n]):
            cells = (of.get(calls, {}).get(name, {}).get(side, [None]) for calls in CALLS)
            shown = ("*" if c is None else "" if c[0] is None else f"{c[0]:.4f}" for c in cells)
            lines.append(f"  {name:16} {side:10} " + "".join(f"{c:>8}" for c in shown))
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=";".join(pictures.MODELS), help="parted by ;")
    parser.add_argument("--calls", default=",".join(map(str, CALLS)))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("model", "calls")), code_version(*CODE)
    asked = product(args.models.split(";"), map(int, args.calls.split(",")))
    for model, calls in [] if args.table else asked:
        if not results.has(code, model=model, calls=calls):
            found = measure(model, calls)
            results.add(code, model=model, calls=calls, seeds=list(SEEDS), noises=noises(model), found=found)
        print(f"{model}, {calls} calls", flush=True)
    print(table(results.newest()))


if __name__ == "__main__":
    main()
