"""Which path sampler reaches the end state, at what divergence from the physical dynamics, at what cost?

Runs every method on the double well and on alanine dipeptide for several seeds, methods interleaved within a seed,
appends each finished run to benchmarks/results/paths.json (with commit and machine) and prints the table of all.
A run that is already there for the code as it stands is not repeated, so the script can be stopped and started again;
the table shows the newest run of each seed, and * where the code has changed since.

    python benchmarks/paths.py [--systems double-well,alanine-dipeptide] [--methods ...] [--seeds 0,1,2] [--preset full]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time

import torch
from interleaved import ROOT, code_version, commit

from molsamp.molecular import load
from molsamp.molecular.paths import make
from molsamp.molecular.paths.analysis import analyse
from molsamp.molecular.paths.settings import METHODS, PRESETS, method_settings
from molsamp.runs.machine import machine

RESULTS = ROOT / "benchmarks" / "results" / "paths.json"
CODE = ("molsamp/engine", "molsamp/learn", "molsamp/molecular")
PATHS = {"double-well": 512, "alanine-dipeptide": 64}
COLUMNS = ("hit_rate", "rmsd", "ets", "e_max", "log_rn", "path_ess", "log_z", "channel")


def measure(system: str, method: str, seed: int, preset: str = "demo") -> dict:
    """One run of one method: estimates, costs of the sampler alone, wall seconds; "end" is the last control's."""
    loaded = load(system)
    paths = PATHS[system] * (1 if preset == "demo" else 4)
    sampler = make(loaded, method, method_settings(method, loaded.methods, preset), seed=seed, paths=paths)
    began = time.perf_counter()
    sampler.fit()
    last = sampler.sample(paths, sampler.noise.child("end of budget")).results() if method == "tps-dps" else None
    analysis = analyse(sampler)
    cost = analysis.paths.cost
    entry = {
        "system": system, "method": method, "preset": preset, "seed": seed,
        "code": code_version(*CODE, f"systems/{system}"), "commit": commit(), "machine": machine(),
        "wall_seconds": time.perf_counter() - began, "cpu_seconds": cost.cpu_seconds,
        "energy_evaluations": cost.energy_evaluations,
        "results": {k: e.as_dict() for k, e in analysis.results().items()},
    }  # fmt: skip
    if method == "tps-dps":
        assert last is not None
        entry["null"] = {k: e.as_dict() for k, e in analysis.null.results().items()}
        entry["end"] = {k: e.as_dict() for k, e in last.items()}
    return entry


def table(entries: list[dict]) -> str:
    """Medians over seeds, with the range, one line a system and method."""
    lines = [
        f"{'system':18} {'method':13} {'seeds':9} " + " ".join(f"{c:>22}" for c in COLUMNS) + "  evaluations   CPU s"
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for e in entries:
        full = " full" if e.get("preset", "demo") == "full" else ""
        groups.setdefault((e["system"], e["method"] + full), []).append(e)
        for kind in ("null", "end"):
            if kind in e:
                own = {**e, "results": e[kind], "cpu_seconds": math.nan}
                groups.setdefault((e["system"], f"({kind}){full}"), []).append(own)
    for (system, method), runs in sorted(groups.items()):
        now = code_version(*CODE, f"systems/{system}")
        seeds = ",".join(f"{r['seed']}{'' if r['code'] == now else '*'}" for r in sorted(runs, key=lambda r: r["seed"]))
        cells = [_cell([r["results"].get(c, {}).get("value") for r in runs]) for c in COLUMNS]
        evaluations = statistics.median(r["energy_evaluations"] for r in runs)
        cpu = statistics.median(r["cpu_seconds"] for r in runs)
        lines.append(
            f"{system:18} {method:13} {seeds:9} "
            + " ".join(f"{c:>22}" for c in cells)
            + f"  {evaluations:11.3g} {cpu:7.1f}"
        )
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.3g} ({min(known):.3g}..{max(known):.3g})"


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default="double-well,alanine-dipeptide")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--preset", default="demo", choices=PRESETS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []

    def key(e: dict) -> tuple:
        return e["system"], e["method"], e.get("preset", "demo"), e["seed"]

    done = {key(e) for e in entries if e["code"] == code_version(*CODE, f"systems/{e['system']}")}
    for system in args.systems.split(","):
        for seed in map(int, args.seeds.split(",")):
            for method in args.methods.split(","):
                if (system, method, args.preset, seed) in done:
                    continue
                entries.append(measure(system, method, seed, args.preset))
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n")
                print(f"{system} {method} seed {seed}: {entries[-1]['cpu_seconds']:.1f} CPU s", flush=True)
    newest = {key(e): e for e in entries}
    print(table(list(newest.values())))


if __name__ == "__main__":
    main()
