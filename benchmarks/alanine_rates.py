"""Does weighted ensemble find the rate of alanine dipeptide that brute force finds, and at what cost?

A is the discs of C5 and C7eq, the basins of phi < 0, and B that of C7ax, 0.75 rad in (phi, psi) each; a walker is of
the set that it last visited. A piece is a method at a temperature, such as we@500: one run of 8 independent replicas
for every seed, each of so many ps after what it needs to settle. Seeds are pooled: the rate is the weight that came to
B over the weight x time since A, for we with the error from the scatter of all replicas, for md with the exact interval
of its arrivals. flux asks neither to climb: 256 walkers in a window of 3 degrees at phi = 0, shot both ways
(`engine.reactive_flux`); how rare the top is comes from the system's reference free energy, whose error is carried on.
The verdict is the ratio of we to each other method at the same temperature with its 95 % interval.

A run lies in runs/alanine-rates-...; it goes on from there when it was stopped (Ctrl-C, SIGTERM, `timeout`), as often
as it takes, as long as the code that it exercises stands. Finished runs are appended to
benchmarks/results/alanine_rates.json, and not repeated.

    python benchmarks/alanine_rates.py --pieces we@300 --seeds 1,2
    python benchmarks/alanine_rates.py --pieces flux@300 --picoseconds 100 --settle 50 --seeds 1,2
    python benchmarks/alanine_rates.py --pieces we@500 --picoseconds 60 --settle 20 --seeds 1,2 --set edges=none
        --set bins=36 --set walkers=6 --set recycle=false --set segment=0.05
    python benchmarks/alanine_rates.py --pieces md@500 --picoseconds 1000 --settle 20 --seeds 1,2
    python benchmarks/alanine_rates.py --table
"""

from __future__ import annotations

import argparse
import math
import os
import time
import zlib
from collections.abc import Sequence

os.environ.setdefault("MOLSAMP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from interleaved import ROOT, Results, code_version
from scipy.interpolate import CubicSpline

from molsamp import Run
from molsamp.engine import Noise
from molsamp.engine.estimates import Z95, Estimate, mean, poisson, ratio
from molsamp.engine.reactive_flux import shoot
from molsamp.engine.rollout import rollout
from molsamp.learn.drive import Interrupted
from molsamp.molecular import load
from molsamp.molecular.bias import GridBias
from molsamp.molecular.kinetics import make
from molsamp.molecular.kinetics.analysis import analyse
from molsamp.molecular.kinetics.settings import METHODS
from molsamp.molecular.kinetics.transition import Transition
from molsamp.runs.config import RatesConfig, build, with_system

FILE = ROOT / "benchmarks" / "results" / "alanine_rates.json"
ENGINE = ("dynamics", "ensembles", "integrators", "noise", "particles", "rollout", "state", "weighted_ensemble")
CODE = (
    *(f"molsamp/engine/{name}.py" for name in ENGINE), "molsamp/molecular/native", "molsamp/molecular/kinetics",
    "molsamp/molecular/cvs", "molsamp/molecular/free_energy/task.py", "systems/alanine-dipeptide",
)  # fmt: skip
FLUX = (*CODE, "molsamp/engine/reactive_flux.py", "systems/alanine-dipeptide/reference/fes.dat")
PIECES = ("we@500", "md@500", "we@300", "md@300", "flux@300")
A, B = {"C5", "C7eq"}, {"C7ax"}
WALKERS, PULLED, WINDOW = 256, (1.0, 0.5, 0.25, 0.1), 0.05  # at phi = 0; rad: windows on the way there, and the last
EVERY, LOOK, LONGEST = 5.0, 0.005, 20.0  # ps: between shots, between looks at one, after which it is given up


def measure(
    results: Results, piece: str, picoseconds: float | None, settle: float | None, seed: int, more: Sequence[str] = ()
) -> None:
    """One run; what is not given is as `molsamp rates alanine-dipeptide` has it."""
    method, kelvin = piece.split("@")
    system = load("alanine-dipeptide")
    options = {"system": system.name, "method": method, "seed": seed, "temperature": float(kelvin)}
    times = {"production": picoseconds, "settle": settle}
    sets = [f"{name}={value:g}" for name, value in times.items() if value is not None] + list(more)
    own = {**system.methods, **system.methods.get("rates", {})}
    config, system = with_system(build(RatesConfig, options, sets, METHODS, {"demo": {}}, own=own), system)
    settings, code = config.of_method, code_version(*CODE)
    key = {"piece": piece, "picoseconds": settings.production, "settle": settings.settle, "seed": seed}
    key["set"] = list(more) or None
    if results.has(code, **key):
        return
    job = make(system, method, settings, seed=seed)
    t = job.transition
    assert set(t.a) == A and set(t.b) == B, f"A = {t.a} and B = {t.b} are not what is asked for"
    name = f"alanine-rates-{piece}-{settings.production:g}-{settings.settle:g}-{seed}-{code}".replace("@", "-")
    name += f"-{zlib.crc32(repr(more).encode()):08x}" if more else ""
    folder = ROOT / "runs" / name
    with Run(folder, resume=folder.exists()) as run, run.signals():
        job.fit(run, each=lambda m: show(piece, seed, job.k, job.total, m))
        cpu, _ = run.clock()
    h, walkers = job.counted(), getattr(settings, "walkers", None) if method == "md" else None
    results.add(
        code, **key, hits=h.hits.sum(0)[:, 0].tolist(), time=h.time.sum(0)[:, 0].tolist(), walkers=walkers,
        cpu_seconds=cpu, **{k: analyse(job).summary()[k] for k in ("energy_evaluations", "results", "warnings")},
        settings=settings.model_dump(),
    )  # fmt: skip


def shots(results: Results, piece: str, picoseconds: float | None, settle: float | None, seed: int) -> None:
    """Walkers held at phi = 0, for `picoseconds` after they settled, and what becomes of them every 5 ps."""
    picoseconds, settle, code = picoseconds or 100.0, settle or 50.0, code_version(*FLUX)
    key = {"piece": piece, "picoseconds": picoseconds, "settle": settle, "seed": seed}
    if results.has(code, **key):
        return
    t = Transition.of(load("alanine-dipeptide"), progress="phi")
    task, phi, noise, began = t.task, t.task.system.cvs["phi"], Noise(seed).child("flux"), time.process_time()
    assert set(t.a) == A and set(t.b) == B
    assert task.system.settings.temperature == 300.0, "the reference free energy is that of 300 K"
    p, taken = task.start(noise, WALKERS, t.a + t.b), 0.0
    for sigma, ps in (*((s, 5.0) for s in PULLED), (WINDOW, settle), (WINDOW, picoseconds)):
        nodes = np.linspace(-math.pi, math.pi, 720, endpoint=False)
        bias = GridBias((phi,), 0.5 * task.kT * (nodes / sigma) ** 2, [(-math.pi, math.pi)], task.system.event)
        rows, stream = round(ps / task.timestep), noise.child(f"{sigma:g}, {ps:g} ps")
        times = [k * task.timestep for k in range(rows + 1)]
        dyn, every = task.dynamics(task.energy + bias), round(EVERY / task.timestep)
        path = rollout(dyn, task.integrator, p, times, noise=stream, save=every)
        p, taken = path.final, taken + rows * WALKERS
        print(f"flux seed {seed}: {ps:g} ps with sigma = {sigma:g} rad", flush=True)
    x = path.x[1:].flatten(0, 1)
    q = task.thermal(x, noise.child("velocities")).evolve(ids=torch.arange(len(x)))
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(phi(y).sum(), y)
    assert q.v is not None
    motion = t.motion(noise.child("shots"), LOOK)
    found = shoot(motion, q, (gradient * q.v).flatten(1).sum(1), round(LONGEST / LOOK), period=2.0 * math.pi)
    results.add(
        code, **key, **top(), flux=found.flux.view(-1, WALKERS).mean(0).tolist(),
        reactive=float(found.reactive.double().mean()), undecided=int((found.ends < 0).sum()),
        crossings=found.crossings[found.reactive].double().mean().item(),
        shots=len(x), cpu_seconds=time.process_time() - began, energy_evaluations=int(taken) + found.steps, warnings=[],
    )  # fmt: skip


def top() -> dict[str, float]:
    """Of the reference free energy: p(phi) 1/rad, with the weight of the window; its relative error; the share of A."""
    phi, _, F, error = np.loadtxt(ROOT / "systems" / "alanine-dipeptide" / "reference" / "fes.dat").T
    kT = load("alanine-dipeptide").kT
    p = np.exp(-F / kT)
    nodes = np.unique(phi)
    law = np.array([p[phi == a].sum() for a in nodes]) / p.sum() / (nodes[1] - nodes[0])
    off = np.array([(p * error / kT)[phi == a].sum() / p[phi == a].sum() for a in nodes])
    fine = np.linspace(-5 * WINDOW, 5 * WINDOW, 2001)
    w = np.exp(-0.5 * (fine / WINDOW) ** 2)
    density = (np.exp(CubicSpline(nodes, np.log(law))(fine)) * w).sum() / w.sum()
    share = 1.0 - p[(phi > 0.0) & (phi < 2.0)].sum() / p.sum()  # the rest of the time a walker was last in C7ax
    return {"density": float(density), "density_error": float(np.interp(0.0, nodes, off)), "share": float(share)}


def show(piece: str, seed: int, k: int, total: int, metrics: dict) -> None:
    """A line for every hundredth of a run."""
    if k % max(1, total // 100) == 0:
        rate = metrics.get("rate", math.nan)
        print(f"{piece} seed {seed}: {k}/{total}, {metrics['note']}, rate {rate:.4g}", flush=True)


def pooled(runs: list[dict]) -> Estimate:
    """The rate of all seeds together, 1/ps."""
    if "flux" in runs[0]:
        flux = mean(torch.tensor([a for e in runs for a in e["flux"]]), "1/ps")
        scale, off = runs[0]["density"] / runs[0]["share"], Z95 * runs[0]["density_error"]
        half = math.hypot((flux.interval[1] - flux.value) / flux.value, off)
        k = scale * flux.value
        return Estimate(k, (k * math.exp(-half), k * math.exp(half)), "1/ps", flux.n)
    hits, spans = (torch.tensor([a for e in runs for a in e[name]], dtype=torch.float64) for name in ("hits", "time"))
    if (walkers := runs[0]["walkers"]) is None:
        return ratio(hits, spans, "1/ps")
    return poisson(round(walkers * float(hits.sum())), walkers * float(spans.sum()), "1/ps")


def verdict(we: Estimate, md: Estimate, name: str) -> str:
    """Whether two rates agree: do intervals overlap, and does that of their ratio (by the logarithms) hold 1."""
    if not all(a > 0.0 for e in (we, md) for a in (e.value, *e.interval)):
        return "no verdict: one of the two has no arrivals"
    overlap = we.interval[0] <= md.interval[1] and md.interval[0] <= we.interval[1]
    r = we.value / md.value
    up = math.hypot(math.log(we.interval[1] / we.value), math.log(md.value / md.interval[0]))
    down = math.hypot(math.log(we.value / we.interval[0]), math.log(md.interval[1] / md.value))
    low, high = r * math.exp(-down), r * math.exp(up)
    return (
        f"we / {name} = {r:.3g} ({low:.3g} to {high:.3g}): {'agree' if low <= 1.0 <= high else 'DISAGREE'}; "
        f"intervals {'overlap' if overlap else 'DO NOT OVERLAP'}"
    )


def table(results: Results) -> str:
    """A row a piece, over its seeds of one length, the last that was measured; and the verdicts."""
    newest = results.newest()
    groups: dict[tuple, list[dict]] = {}
    rates: dict[str, Estimate] = {}
    for e in newest:
        groups.setdefault((e["piece"], e["picoseconds"], e["settle"], *(e.get("set") or ())), []).append(e)
    lines = [f"{'piece':8} {'ps':>6} {'settle':>6} {'seeds':>5} {'rate, 1/ps':>10} {'95 % interval':>23} "
             f"{'evaluations':>11} {'CPU s':>8}  warnings"]  # fmt: skip
    for (piece, ps, settle, *_), runs in groups.items():
        k = rates[piece] = pooled(runs)
        evaluations, cpu = (sum(e[name] for e in runs) for name in ("energy_evaluations", "cpu_seconds"))
        low, high = (f"{a:.4g}" for a in k.interval)
        lines.append(
            f"{piece:8} {ps:6g} {settle:6g} {len(runs):5} {k.value:10.4g} {f'{low} to {high}':>23} {evaluations:11.3g} "
            f"{cpu:8.0f}  {sum(len(e['warnings']) for e in runs)}"
        )
    for piece, k in rates.items():
        method, kelvin = piece.split("@")
        if method != "we" and (we := rates.get(f"we@{kelvin}")):
            lines.append(f"{kelvin} K: {verdict(we, k, method)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", default=",".join(PIECES), help=f"of {', '.join(PIECES)}")
    parser.add_argument(
        "--picoseconds", help="of production, one for all pieces or one each; default: the methods' own"
    )
    parser.add_argument("--settle", type=float, help="ps before it; default: the methods' own")
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the method, as of `molsamp rates`")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    pieces = given.pieces.split(",")
    budgets = [float(a) for a in given.picoseconds.split(",")] if given.picoseconds else [None]
    budgets = budgets * len(pieces) if len(budgets) == 1 else budgets
    if wrong := [p for p in pieces if p not in PIECES]:
        parser.error(f"--pieces: got {wrong[0]}; allowed are {', '.join(PIECES)}")
    if len(budgets) != len(pieces):
        parser.error(f"--picoseconds: got {len(budgets)} for {len(pieces)} pieces; allowed is one, or one for each")
    torch.set_num_threads(1)
    results = Results(FILE, ("piece", "picoseconds", "settle", "seed", "set"))
    try:
        for seed in (int(s) for s in given.seeds.split(",") if not given.table):
            for piece, picoseconds in zip(pieces, budgets, strict=True):
                if piece.startswith("flux"):
                    shots(results, piece, picoseconds, given.settle, seed)
                else:
                    measure(results, piece, picoseconds, given.settle, seed, given.set)
    except Interrupted:
        print("stopped after a checkpoint; the same command goes on from there")
    print(table(results))


if __name__ == "__main__":
    main()
