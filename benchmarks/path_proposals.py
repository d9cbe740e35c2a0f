"""ViBiD proposals of whole paths against shooting, on the double well: do they sample one ensemble, and at what price?

Fixed length, 150 rows of 0.01: at kT = 0.6 also against brute force, free paths from the thermal start that hit, and at
the system's own kT = 0.1034. Three chains of moves: one-way shooting, `vibid`, and `vibid` without alternation (rows =
0, the bridge that a Gaussian model has in closed form and a network has not), all from one burn-in of shots. "after" is
as many shots from where `vibid` ended: they stay where they are if that is the ensemble of shooting.

Per path: time of the first frame in B, duration from the last frame in A before it, mean action per row and coordinate
(1/2 for free dynamics), highest energy, x at a quarter, half and three quarters, |y| where |x| is least, y > 0 there.
Intervals are Student's over seeds; z the difference from the reference (brute force, else shooting) over both errors.
Effective paths by autocorrelation and the scatter of chains, the least over the first three, of the production alone.

    python benchmarks/path_proposals.py [--seeds 0,1,2,3,4,5,6,7] [--shots 150] [--moves 1500] [--kT 0.6,0.1034]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import torch
from interleaved import ROOT, commit
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.estimates import mean
from molsamp.molecular import Problem, Shooting, ViBiDPaths, load
from molsamp.molecular.paths.markov import effective_number
from molsamp.molecular.paths.reversal import Frames
from molsamp.runs.machine import machine

RESULTS = ROOT / "benchmarks" / "results" / "path_proposals.json"
ROWS, H, CHAINS, BURN_IN = 150, 0.01, 64, 400
NAMES = ("arrival", "duration", "action", "peak", "x 1/4", "x 1/2", "x 3/4", "|y| at x = 0", "y > 0")
JUDGED = 3  # the first so many decide on the effective number; y > 0 is symmetric
FREE = 200_000  # free paths of brute force, over all seeds


def observed(p: Problem, f: Frames) -> Tensor:
    """(M, k) of `NAMES`."""
    x, t = f.x, torch.arange(len(f.x))[:, None]
    arrival = p.inside(x).int().argmax(0)
    left = torch.where(p.inside(x, p.start) & (t <= arrival), t, 0).amax(0)
    z = (x[1:] - x[:-1] - H * f.force[:-1]) / (2.0 * p.kT * H) ** 0.5
    top = x[..., 1].gather(0, x[..., 0].abs().argmin(0)[None])[0]
    quarters = [x[ROWS * q // 4, :, 0] for q in (1, 2, 3)]
    action = 0.5 * z.square().mean((0, 2))
    return torch.stack(
        [H * arrival, H * (arrival - left), action, f.energy.amax(0), *quarters, top.abs(), (top > 0).double()], 1
    ).double()


def burnt(p: Problem, seed: int) -> dict[str, Tensor]:
    """The state of all methods where production begins: their burn-in is the same shots."""
    job = ViBiDPaths(p, None, Noise(seed), CHAINS, chains=CHAINS, burn_in=BURN_IN)
    while job.k < BURN_IN:
        job.advance()
    return job.state()


def chains(
    p: Problem, kind: str, seed: int, begin: dict[str, Tensor], shots: int, moves: int
) -> tuple[dict, dict[str, Tensor]]:
    """One seed of one method: (means, effective paths, evaluations and CPU seconds of the production; its end)."""
    size = dict(chains=CHAINS, burn_in=BURN_IN)
    if kind in ("shooting", "after"):
        begin = {name: a for name, a in begin.items() if not name.startswith("seen")}
        many = shots + int(begin["k"]) - BURN_IN
        job = Shooting(p, None, Noise(seed).child(kind), CHAINS, length="fixed", moves=many, **size)
    else:
        rows = {} if kind == "vibid" else {"rows": 0}
        job = ViBiDPaths(p, None, Noise(seed), CHAINS, moves=moves, **size, **rows)
    job.load(begin)
    before = (job.evaluations, time.process_time())
    seen, accepted = [], []
    while job.k < job.total:
        done = job.advance()
        seen.append(observed(p, job.frames))
        accepted.append(done["acceptance"])
    f = torch.stack(seen)
    entry = {
        "kind": kind,
        "seed": seed,
        "means": f.mean((0, 1)).tolist(),
        "effective": effective_number(f[..., :JUDGED], torch.arange(CHAINS)),
        "acceptance": sum(accepted) / len(accepted),
        "evaluations": job.evaluations - before[0],
        "cpu_seconds": time.process_time() - before[1],
    }
    return entry, job.state()


def brute(p: Problem, seed: int, paths: int) -> dict:
    """Free paths from Boltzmann starts in A, those that hit: by rejection on a box about A, then rows."""
    job = Shooting(p, None, Noise(seed).child("brute"), CHAINS, length="fixed", chains=CHAINS)
    ids, noise = torch.arange(paths), Noise(seed).child("brute")
    box = p.start.x + p.start.radius * (2.0 * noise.child("box").uniform(0, ids, (2,)) - 1.0)
    likely = torch.exp((p.floor - p.energy.energy(box)) / p.kT)
    keep = (noise.child("keep").uniform(0, ids) < likely) & p.inside(box, p.start)
    start = p.initial(noise, ids[keep]).evolve(x=box[keep])
    f, _ = job._roll(start, ROWS, noise.child("rows"))
    length = torch.full((f.x.shape[1],), ROWS)
    f = f.columns(job._member(f, length, job._free(f)))
    o = observed(p, f)
    return {"kind": "brute", "seed": seed, "means": o.mean(0).tolist(), "effective": float(len(o)), "acceptance": 1.0}


def table(entries: list[dict]) -> str:
    """Every observable of every method, z against the first, and prices."""
    lines = []
    for kT in sorted({e["kT"] for e in entries}, reverse=True):
        kinds = list(dict.fromkeys(e["kind"] for e in entries if e["kT"] == kT))
        of = {kind: [e for e in entries if e["kT"] == kT and e["kind"] == kind] for kind in kinds}
        lines.append(f"kT = {kT}, seeds {sorted({e['seed'] for e in entries if e['kT'] == kT})}")
        reference = of[kinds[0]]
        for kind, runs in of.items():
            for i, name in enumerate(NAMES):
                m, r = (torch.tensor([e["means"][i] for e in a], dtype=torch.float64) for a in (runs, reference))
                error = (m.var() / len(m) + r.var() / len(r)).sqrt()
                z = "" if runs is reference else f"   z {float((m.mean() - r.mean()) / error):+.2f}"
                lines.append(f"  {kind:10} {name:14} {mean(m)}{z}")
            total = sum(e["effective"] for e in runs)
            price = ""
            if "evaluations" in runs[0]:
                evaluations, cpu = (sum(e[k] for e in runs) / total for k in ("evaluations", "cpu_seconds"))
                price = f", {evaluations:.3g} evaluations and {1000 * cpu:.3g} CPU ms each"
            accepted = sum(e["acceptance"] for e in runs) / len(runs)
            lines.append(f"  {kind:10} {total:.0f} effective paths, acceptance {accepted:.2f}{price}")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--shots", type=int, default=150)
    parser.add_argument("--moves", type=int, default=1500)
    parser.add_argument("--kT", default="0.6,0.1034")
    args = parser.parse_args()
    base = Problem.of(load("double-well"), steps=ROWS, timestep=H, dtype=torch.float64)
    seeds, entries = [int(s) for s in args.seeds.split(",")], []
    for kT in map(float, args.kT.split(",")):
        p = replace(base, kT=kT)
        for seed in seeds:
            found = [brute(p, seed, FREE // len(seeds))] if kT > 0.2 else []
            ends = {"burn-in": burnt(p, seed)}
            for kind in ("shooting", "vibid", "after", "bridge"):
                begin = ends["vibid" if kind == "after" else "burn-in"]
                entry, ends[kind] = chains(p, kind, seed, begin, args.shots, args.moves)
                found.append(entry)
            entries += [e | {"kT": kT} for e in found]
            print(f"kT {kT} seed {seed} done", flush=True)
    print(table(entries))
    RESULTS.write_text(
        json.dumps({"commit": commit(), "machine": machine(), "arguments": vars(args), "runs": entries}) + "\n"
    )


if __name__ == "__main__":
    main()
