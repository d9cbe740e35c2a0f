"""What does each free-energy method cost until it is right, on alanine dipeptide in vacuum?

Every method runs with the settings of `molsamp free-energy alanine-dipeptide`, from a bare start, for several seeds.
Along each run two errors against the reference of the system are followed, for each way the method has to tell F: by
weights, by its bias, by samples with no dynamics after them.

    dF      |F(right) - F(left) - reference|
    F       mean |F(phi, psi) - reference| below 25 kJ/mol of the reference, after the best constant, where nodes that
            were never visited count as 25 kJ/mol

A tolerance is reached where the error falls below it for good, that is, to the end of the run; the costs there are
energy evaluations, network calls (one a configuration) and CPU seconds of one thread. Chemical accuracy: 4.184 kJ/mol.

Finished runs are kept in runs/benchmark with their surfaces, their figures in benchmarks/results/free_energy.json with
commit and machine; the script can be stopped and started again, and the table is that of the newest run of each seed.

    python benchmarks/free_energy.py [--methods wt-asbs,metadynamics] [--seeds 1,2,3] [--table]
"""

from __future__ import annotations

import argparse
import os

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import ROOT, Results, code_version

from molsamp.molecular import load
from molsamp.molecular.free_energy import make
from molsamp.molecular.free_energy.analysis import analyse
from molsamp.molecular.free_energy.settings import METHODS, method_settings
from molsamp.molecular.free_energy.surface import Surface
from molsamp.molecular.system import reference
from molsamp.runs.reading import read

RESULTS, KEPT = ROOT / "benchmarks" / "results" / "free_energy.json", ROOT / "runs" / "benchmark"
CODE = ("molsamp/engine", "molsamp/learn", "molsamp/molecular", "systems/alanine-dipeptide/system.toml")
SYSTEM, BELOW = "alanine-dipeptide", 25.0
TOLERANCES = (4.184, 1.0)
ESTIMATORS = ("weights", "bias", "samples")
COSTS = ("energy_evaluations", "network_calls", "cpu_seconds")


def run(method: str, seed: int, code: str) -> Path:
    """A run of a method to its end: figures as JSON, and costs, dF and F after every unit as arrays."""
    system = load(SYSTEM)
    job = make(system, method, method_settings(method, system.methods), seed=seed)
    name = next(iter(job.differences()))
    rows: list[list[float]] = []
    surfaces: list[np.ndarray] = []
    while job.k < job.total:
        known = len(job.history), len(job.grown), job.evaluations
        job.advance()
        if (len(job.history), len(job.grown)) != known[:2] and _due(rows, job):
            rows.append([*_costs(job), *_differences(job, name)])
            surfaces.append(np.stack(_surfaces(job)).astype(np.float32))
        if job.k % 20 == 0:
            print(f"{method} {seed}: {job.k}/{job.total}, {job.cpu:.0f} CPU s", flush=True)
    summary = analyse(job).summary()
    file = KEPT / f"{code}-{method}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file.with_suffix(".npz"), rows=np.array(rows), surfaces=np.stack(surfaces))
    file.write_text(json.dumps({"cpu_seconds": job.cpu, **summary}))
    return file


def _due(rows: list[list[float]], job: Any) -> bool:
    """A hundredth more evaluations than at the last row, or the end."""
    return not rows or job.evaluations > 1.01 * rows[-1][0] or job.k == job.total or job.name == "umbrella"


def _costs(job: Any) -> list[float]:
    """Of umbrella sampling, whose parts are taken when all is there: the share that a part would have cost."""
    share = job.history[-1][0] / job.evaluations if job.history else 1.0
    return [job.evaluations * share, job.network_calls, job.cpu * share]


def _differences(job: Any, name: str) -> list[float]:
    raw = getattr(job, "raw", None)
    by_samples = math.nan if raw is None else job.differences(raw)[name].value
    return [job.history[-1][1] if job.history else math.nan, job.grown[-1][1] if job.grown else math.nan, by_samples]


def _surfaces(job: Any) -> list[np.ndarray]:
    none = np.full(job.grid.shape, np.nan)
    raw, by_bias = getattr(job, "raw", None), job.by_bias()
    return [
        job.histogram.surface().F if job.history else none,
        none if by_bias is None or not job.grown else by_bias,
        none if raw is None or not raw.count else raw.surface().F,
    ]


def score(file: Path, reference: Surface, right: float) -> dict[str, Any]:
    """The figures of a run and, for each estimator and tolerance, what it cost until it was reached."""
    entry = json.loads(file.read_text())
    kept = np.load(file.with_suffix(".npz"))
    found: dict[str, Any] = {k: entry[k] for k in (*COSTS, "results", "warnings")}
    for i, estimator in enumerate(ESTIMATORS):
        dF = np.abs(kept["rows"][:, 3 + i] - right)
        F = np.array([_apart(surface[i], reference) for surface in kept["surfaces"]])
        for what, error in (("dF", dF), ("F", F)):
            found[f"{what} by {estimator}"] = None if math.isnan(error[-1]) else {
                "error": float(error[-1]),
                **{f"{tolerance:g}": _reached(error, tolerance, kept["rows"][:, :3]) for tolerance in TOLERANCES},
            }  # fmt: skip
    return found


def _apart(F: np.ndarray, reference: Surface) -> float:
    if np.isnan(F).all():
        return math.nan
    return reference.deviation(np.where(np.isfinite(F), F, BELOW), BELOW)


def _reached(error: np.ndarray, tolerance: float, costs: np.ndarray) -> dict[str, float] | None:
    """The costs where the error falls below the tolerance for good; None if it is not below at the end."""
    outside = np.flatnonzero(~(error < tolerance))
    first = 0 if not len(outside) else outside[-1] + 1
    return None if first == len(error) else dict(zip(COSTS, map(float, costs[first]), strict=True))


def table(entries: list[dict]) -> str:
    """Medians over seeds, with the range; a line a method and estimator."""
    heads = [f"{what} to {tolerance:g}" for what in ("dF", "F") for tolerance in TOLERANCES]
    lines = [
        f"{'method':13} {'by':8} {'seeds':>5} {'|dF error|':>18} {'F error':>8} " + " ".join(f"{h:>20}" for h in heads)
    ]
    for method in METHODS:
        mine = [e for e in entries if e["method"] == method]
        for estimator in ESTIMATORS:
            told = [e for e in mine if e[f"F by {estimator}"]]
            if told:
                lines.append(f"{method:13} {estimator:8} {len(told):5} " + _line(told, estimator))
    return "\n".join(lines)


def _line(entries: list[dict], estimator: str) -> str:
    cells = []
    errors = [e[f"dF by {estimator}"]["error"] if e[f"dF by {estimator}"] else math.nan for e in entries]
    cells.append(f"{' '.join(f'{a:.2f}' for a in errors):>18}")
    cells.append(f"{statistics.median(e[f'F by {estimator}']['error'] for e in entries):8.2f}")
    for what in ("dF", "F"):
        for tolerance in TOLERANCES:
            reached = [(e[f"{what} by {estimator}"] or {}).get(f"{tolerance:g}") for e in entries]
            if None in reached:
                cells.append(f"{reached.count(None)} of {len(reached)} not".rjust(20))
            else:
                evaluations, _, cpu = (statistics.median(r[k] for r in reached) for k in COSTS)
                cells.append(f"{evaluations:10.2g} {cpu:6.0f} s".rjust(20))
    return " ".join(cells)


def main() -> None:
    """Run what is missing, score it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("method", "seed")), code_version(*CODE)
    asked = [(m, s) for m in args.methods.split(",") for s in map(int, args.seeds.split(","))]
    for method, seed in [] if args.table else asked:
        if results.has(code, method=method, seed=seed):
            continue
        file = KEPT / f"{code}-{method}-{seed}.json"
        if not file.exists():
            run(method, seed, code)
        reference, dF = _reference()
        results.add(code, method=method, seed=seed, system=SYSTEM, **score(file, reference, dF))
    print(table(results.newest()))


def _reference() -> tuple[Surface, float]:
    folder = reference(SYSTEM)
    if folder is None:
        raise SystemExit(f"{SYSTEM} has no reference yet; the runs are kept in {KEPT}")
    found = read(folder)
    assert found.surface is not None
    return found.surface, found.result["results"]["dF:left->right"]["value"]


if __name__ == "__main__":
    main()
