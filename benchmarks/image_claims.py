"""Does each special method of the image room do at small scale what its paper says, against the baseline of its paper?

Every file of benchmarks/claims measures one: a figure of the method and of its baseline, lower is better, for a seed
on 256 noises or more that chose nothing. The ratio of the two is averaged over seeds (geometric mean), its 95 %
interval is Student's; a claim holds where the interval lies below 1.

    python benchmarks/image_claims.py [--claims teleport,mrs] [--seeds 1,2,3] [--table]
"""

from __future__ import annotations

import argparse
import math
import statistics
from importlib import import_module
from pathlib import Path

import pictures
import torch
from interleaved import ROOT, Results, code_version

from molsamp.engine.estimates import student95

METHODS = (
    *("boundary", "compensation", "data", "denoiser", "gradients", "ideal", "models", "networks", "pyramid", "refiner"),
    *("restoration", "sampling", "scoring", "search", "skips", "solvers", "teleport", "transport"),
)
CODE = (*pictures.ENGINE, *(f"molsamp/image/{name}.py" for name in METHODS))
RESULTS, CLAIMS = ROOT / "benchmarks" / "results" / "image_claims.json", Path(__file__).parent / "claims"


def line(name: str, entries: list[dict], below: float = 1.0) -> str:
    """Ratio, interval and verdict of one claim: whether the ratio is below a bound."""
    logs = [math.log(e["method"] / e["baseline"]) for e in entries]
    value, n = statistics.mean(logs), len(logs)
    half = student95(n - 1) * statistics.stdev(logs) / math.sqrt(n) if n > 1 else math.inf
    low, high = math.exp(value - half), math.exp(value + half) if half < 700 else math.inf
    verdict = "holds" if high < below else "fails" if low > below else "not told"
    figures = [" ".join(f"{e[side]:.4g}" for e in entries) for side in ("method", "baseline")]
    return f"{name:14} {math.exp(value):5.2f} [{low:.2f}, {high:.2f}] {verdict:9} {figures[0]} against {figures[1]}"


def main() -> None:
    """Measure what is missing, print the table."""
    known = sorted(file.stem for file in CLAIMS.glob("[a-z]*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claims", default=",".join(known))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(RESULTS, ("claim", "seed"))
    for name in args.claims.split(","):
        code = code_version(*CODE, f"benchmarks/claims/{name}.py")
        claim = import_module(f"claims.{name}")
        for seed in [] if args.table else map(int, args.seeds.split(",")):
            if not results.has(code, claim=name, seed=seed):
                found = {k: float(v) for k, v in claim.measure(seed).items()}
                results.add(code, claim=name, seed=seed, unit=claim.UNIT, **found)
        if entries := [e for e in results.newest() if e["claim"] == name]:
            print(line(name, entries), flush=True)


if __name__ == "__main__":
    main()
