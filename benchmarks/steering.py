"""Does steering keep what its papers promise, against the baseline of each: network calls, rewards?

Every file of benchmarks/steered measures one claim for a seed, in the form of benchmarks/image_claims.py: a figure of
the method and of its baseline, lower is better, on noises and pictures that chose nothing. The ratio is averaged
over seeds (geometric mean), its 95 % interval is Student's; a claim holds where the interval lies below the bound
of its piece.

    python benchmarks/steering.py [--pieces dds,fk_digits] [--seeds 1,2,3] [--table] [--quick]

`--quick` tries every piece for less than a CPU minute and records nothing.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch
from image_claims import line
from interleaved import ROOT, Results, code_version

RESULTS, PIECES = ROOT / "benchmarks" / "results" / "steering.json", Path(__file__).parent / "steered"


def main() -> None:
    """Measure what is missing, print the table."""
    known = sorted(file.stem for file in PIECES.glob("[a-z]*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", default=",".join(known))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="try, and record nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(RESULTS, ("piece", "seed"))
    for name in args.pieces.split(","):
        piece = import_module(f"steered.{name}")
        code = code_version(*piece.CODE, f"benchmarks/steered/{name}.py")
        tried = []
        for seed in [] if args.table else map(int, args.seeds.split(",")):
            if args.quick:
                tried.append(piece.quick(seed))
                print(*(f"{k}: {v:.4g}" for k, v in tried[-1].items()), sep="\n", flush=True)
            elif not results.has(code, piece=name, seed=seed):
                found = {k: float(v) for k, v in piece.measure(seed).items()}
                results.add(code, piece=name, seed=seed, unit=piece.UNIT, **found)
        if entries := tried or [e for e in results.newest() if e["piece"] == name]:
            print(line(name, entries, piece.BELOW), flush=True)


if __name__ == "__main__":
    main()
