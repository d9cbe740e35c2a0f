"""The exact ensemble of transition paths of alanine dipeptide at 1 ps, and how far learned samplers are from it.

A seed is an independent start: its own log h from nothing, then populations that count while it learns on (`twisted`).
For each: two estimates of log P_0(hit), by the populations and by importance sampling with the control of log h alone
(other noise, no resampling); the effective number of paths; ESS of 1024 paths of that control; and the learned sampler
tps-dps of the same seed, both scored against the seed's exact paths. Over seeds: split R-hat (Vehtari et al., Bayesian
Analysis 16, 667 (2021), rank-normalised) of particle independent Metropolis-Hastings chains (Andrieu et al., J. R.
Stat. Soc. B 72, 269 (2010)), whose proposals are the populations, and the pooled numbers: log P_0(hit), effective
paths by the scatter of all populations, wall time on two cores.
Appends to benchmarks/results/exact.json; seeds that are there for the code as it stands are not repeated, and one that
was interrupted goes on from its run folder, runs/exact-SEED-CODE.

    python benchmarks/exact.py [--seeds 62,63,64,65] [--populations 10] [--learned full] [--table]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import torch
from interleaved import ROOT, code_version, commit
from torch import Tensor

from molsamp import Run
from molsamp.engine import Noise
from molsamp.engine.measures import ess, log_mean_exp
from molsamp.molecular import load, score
from molsamp.molecular.paths import make
from molsamp.molecular.paths.settings import method_settings
from molsamp.runs.machine import machine

RESULTS = ROOT / "benchmarks" / "results" / "exact.json"
MODULES = ("twisted", "population", "value", "tangent", "problem", "paths", "scoring", "free", "sampler")
STATES = ("systems/alanine-dipeptide/C5.pdb", "systems/alanine-dipeptide/C7ax.pdb")
CODE = (*STATES, "molsamp/engine", "molsamp/molecular/native", *(f"molsamp/molecular/paths/{m}.py" for m in MODULES))
SYSTEM, OBSERVED = "alanine-dipeptide", ("departure", "arrival", "e_max")
DRIVEN, SCORED = 1024, 256


def measure(seed: int, populations: int, learned: list[str]) -> dict:
    """One independent start."""
    system = load(SYSTEM)
    settings = method_settings("twisted", system.methods, "full").model_copy(update={"populations": populations})
    job = make(system, "twisted", settings, seed=seed, paths=SCORED * 2)
    folder = ROOT / "runs" / f"exact-{seed}-{code_version(*CODE)}"
    with Run(folder, resume=folder.exists()) as run:
        job.fit(run, each=lambda m: print(f"seed {seed}  {job.k}/{job.total}", m, flush=True))
        reference = job.paths()
        cpu, wall = run.clock()
    entry = {
        "system": SYSTEM, "seed": seed, "code": code_version(*CODE), "commit": commit(), "machine": machine(),
        "settings": settings.model_dump(), "wall_seconds": wall, "cpu_seconds": cpu,
        "energy_evaluations": job.problem.energy.evaluations,
        "log_p_hit": job.log_p_hit().as_dict(), "log_z": job.log_z, "effective": job.effective_number(),
        "seen": torch.stack(job.seen).tolist(), "results": {k: e.as_dict() for k, e in reference.results().items()},
    }  # fmt: skip
    cpu = time.process_time()
    driven = [job.sample(DRIVEN, Noise(seed).child(f"driven {i}")) for i in range(8)]
    logw = torch.cat([p.logw for p in driven])
    value, error = log_mean_exp(logw)
    entry["driven"] = {
        "cpu_seconds": time.process_time() - cpu, "log_p_hit": value, "error": error, "ess": ess(logw), "n": len(logw),
        "ess_of_1024": [ess(p.logw) for p in driven],
        "hit_rate": float(torch.cat([p.hit for p in driven]).double().mean()),
        "log_rn": float(torch.cat([p.log_rn for p in driven]).mean()),
    }  # fmt: skip
    entry["scores"] = {
        "log h control": _score(driven[0], reference, job),
        "reweighted": _score(driven[0], reference, job, True),
    }
    for preset in learned:
        other = make(system, "tps-dps", method_settings("tps-dps", system.methods, preset), seed=seed, paths=SCORED)
        other.fit()
        entry["scores"][f"tps-dps {preset}"] = _score(other.paths(), reference, job)
    return entry


def _score(paths, reference, job, weighted: bool = False) -> dict:
    s = score(paths, reference, job.log_p_hit(), weighted)
    return {k: e.as_dict() for k, e in s.results().items()} | {"p": [s.p_peak, s.p_crossing, s.p_hit]}


def chain(entry: dict) -> Tensor:
    """Particle independent Metropolis-Hastings over the populations of a start: (R m, k) of what was observed."""
    log_z, seen = entry["log_z"], torch.tensor(entry["seen"], dtype=torch.float64)
    u = Noise(entry["seed"]).child("metropolis").uniform(0, torch.arange(len(log_z)))
    at, states = 0, []
    for r in range(len(log_z)):
        if math.log(float(u[r])) < log_z[r] - log_z[at]:
            at = r
        states.append(seen[at])
    return torch.cat(states)


def split_r_hat(chains: Tensor) -> float:
    """Rank-normalised split R-hat of one observable, chains (M, T)."""
    M, T = chains.shape
    halves = chains[:, : T // 2 * 2].reshape(2 * M, T // 2)
    ranks = halves.flatten().argsort().argsort().double() + 1.0
    same = halves.flatten().unique(return_inverse=True)[1]  # equal values share their mean rank
    mean = torch.zeros(int(same.max()) + 1, dtype=torch.float64).scatter_reduce(
        0, same, ranks, "mean", include_self=False
    )
    z = torch.special.ndtri((mean[same] - 0.375) / (len(ranks) + 0.25)).view_as(halves)
    n = z.shape[1]
    between, within = n * z.mean(1).var(), z.var(1).mean()
    return float(((n - 1) / n + between / (n * within)).sqrt())


def table(entries: list[dict]) -> str:
    """Every start, then all together."""
    lines = [f"{'seed':>5} {'CPU s':>6} {'log P (populations)':>26} {'log P (control alone)':>22} {'effective':>9} "
             f"{'hits':>5} {'nats':>6} {'ESS of 1024 (median, range)':>28}"]  # fmt: skip
    for e in entries:
        p, d = e["log_p_hit"], e["driven"]
        share = sorted(d["ess_of_1024"])
        lines.append(
            f"{e['seed']:5d} {e['cpu_seconds']:6.0f} {p['value']:9.2f} "
            f"[{p['interval'][0]:.2f}, {p['interval'][1]:.2f}] "
            f"{d['log_p_hit']:9.2f} +- {d['error']:.2f} {e['effective']:12.0f} {d['hit_rate']:6.2f} {d['log_rn']:6.1f} "
            f"{share[len(share) // 2]:12.1f} ({share[0]:.1f} to {share[-1]:.1f})"
        )
        for name, s in e["scores"].items():
            lines.append(
                "      "
                + f"{name:16}"
                + "  ".join(
                    f"{k} {v['value']:.3g} {[round(a, 3) for a in v['interval']]}" for k, v in s.items() if k != "p"
                )
            )
    if len(entries) > 1:
        T = min(len(chain(e)) for e in entries)
        chains = torch.stack([chain(e)[:T] for e in entries])
        system = load(SYSTEM)
        pool = make(system, "twisted", method_settings("twisted", system.methods, "full"), seed=0)
        pool.log_z = [z for e in entries for z in e["log_z"]]
        pool.seen = [torch.tensor(f, dtype=torch.float64) for e in entries for f in e["seen"]]
        hats = {o: round(split_r_hat(chains[:, :, k]), 3) for k, o in enumerate(OBSERVED)}
        minutes = sum(e["wall_seconds"] for e in entries) / 120.0
        lines.append(
            f"all: R-hat {hats}; log P = {pool.log_p_hit()} from {len(pool.log_z)} populations; "
            f"effective {pool.effective_number():.0f}; {minutes:.0f} minutes on two cores"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="62,63,64,65")
    parser.add_argument("--populations", type=int, default=10)
    parser.add_argument("--learned", default="full")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    now = code_version(*CODE)
    for seed in [] if args.table else map(int, args.seeds.split(",")):
        if any(e["seed"] == seed and e["code"] == now for e in entries):
            continue
        entry = measure(seed, args.populations, [a for a in args.learned.split(",") if a])
        entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []  # another process may have written
        entries.append(entry)
        RESULTS.write_text(json.dumps(entries) + "\n")
    newest = {e["seed"]: e for e in entries}
    print(table([newest[s] for s in map(int, args.seeds.split(",")) if s in newest]))


if __name__ == "__main__":
    main()
