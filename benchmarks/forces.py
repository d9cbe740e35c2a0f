"""How many force evaluations and Langevin steps a second, against OpenMM's own stepping, and in how much memory?

For every system and number of replicas N: the native tiers, lanes and torch, float32 and float64, one core, against
OpenMM's LangevinMiddleIntegrator stepping by itself on the same System (no cutoff, flexible bonds, 1 fs, 300 K, 1/ps)
on every platform that is here, all in turns in one process; medians, CPU time of one core (wall time where a GPU
works). Then wall time on 1 and 2 threads, and peak memory in a process of its own.
Appends to benchmarks/results/forces.json; what is there for the code as it stands is not measured again.

    python benchmarks/forces.py [--systems ...] [--replicas 1,16,...] [--only steps|threads|memory|table]

`alanine-dipeptide-obc` is a GBSAOBCForce, which OpenMM has kernels for; obc1, obc2 and gbn2 are the CustomGBForce of
its implicit/*.xml. `peptide-300` is a random sequence of 300 residues in an extended chain, ff14SB with GBn2, 5076
atoms. Lanes keep four vectors of every pair of atoms a thread in generalised Born: 3.3 GB there, in either precision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import openmm
import torch
from interleaved import ROOT, Results, Work, code_version, rates
from openmm import app
from peptide import long_peptide
from torch import Tensor

from molsamp.engine import LangevinMiddle, Noise, Particles, Underdamped, rollout
from molsamp.molecular import NativeEnergy, load
from molsamp.molecular.system import kB

RESULTS = ROOT / "benchmarks" / "results" / "forces.json"
CODE = ("molsamp/engine", "molsamp/molecular/native")
SYSTEMS = {  # and the largest N that fits into minutes
    "alanine-dipeptide": 4096,
    "alanine-dipeptide-obc": 4096,
    "alanine-dipeptide-obc1": 4096,
    "alanine-dipeptide-obc2": 4096,
    "alanine-dipeptide-gbn2": 4096,
    "chignolin": 256,
    "peptide-300": 16,
}
TORCH = {name: 1024 for name in SYSTEMS} | {"alanine-dipeptide": 4096, "chignolin": 16, "peptide-300": 0}
LANES = [("lanes", torch.float32), ("lanes", torch.float64)]
BOTH = [*LANES, ("torch", torch.float32), ("torch", torch.float64)]
PROPERTIES = {"CPU": {"Threads": "1"}, "CUDA": {"Precision": "mixed"}, "OpenCL": {"Precision": "mixed"}}
KINDS = ("steps", "threads", "memory")
H, FRICTION, KT = 0.001, 1.0, kB * 300.0


@cache
def molecule(name: str) -> tuple[openmm.System, Tensor]:
    """The System and a configuration (A, 3) of it."""
    if name == "peptide-300":
        return long_peptide(300)
    if name == "alanine-dipeptide-obc2":
        return of_another_solvent("alanine-dipeptide-gbn2", "implicit/obc2.xml")
    system = load(name)
    return system.forcefield_system(), next(iter(system.states.values())).x


def of_another_solvent(name: str, solvent: str) -> tuple[openmm.System, Tensor]:
    """A bundled system with ff14SB in this implicit solvent."""
    system = load(name)
    options = {"constraints": None, "rigidWater": False, "removeCMMotion": False}
    forcefield = app.ForceField("amber14/protein.ff14SB.xml", solvent)
    return forcefield.createSystem(system.topology, **options), next(iter(system.states.values())).x


def masses(system: openmm.System) -> Tensor:
    """Da, (A, 1)."""
    return torch.tensor([system.getParticleMass(i)._value for i in range(system.getNumParticles())]).double()[:, None]


def at_rest(x: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """n copies of x, jittered by 0.1 pm so that no two are equal."""
    jitter = Noise(1).normal(0, torch.arange(n), tuple(x.shape), dtype)
    return x.to(dtype) + 1e-4 * jitter


def evaluations(energy: NativeEnergy, x: Tensor) -> Work:
    """k calls of energy_force."""

    def work(k: int) -> float:
        for _ in range(k):
            energy.energy_force(x)
        return k * len(x)

    return work


def steps(energy: NativeEnergy, x: Tensor, m: Tensor) -> Work:
    """8 k steps by the public `rollout`, which evaluates once more at its end."""
    dyn, start = Underdamped(energy, m, KT, FRICTION), Particles.at(x, torch.zeros_like(x))

    def work(k: int) -> float:
        rollout(dyn, LangevinMiddle(), start, [H * i for i in range(8 * k + 1)], noise=Noise(2), save="last")
        return 8 * k * len(x)

    return work


def openmm_steps(system: openmm.System, x: Tensor, platform: str) -> Work:
    """k steps by OpenMM alone."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, FRICTION, H)
    kind = openmm.Platform.getPlatformByName(platform)
    context = openmm.Context(system, integrator, kind, PROPERTIES.get(platform, {}))
    context.setPositions(x.double().numpy())

    def work(k: int) -> float:
        integrator.step(k)
        context.getState(energy=True)  # waits for a GPU
        return k

    return work


def platforms(name: str) -> list[str]:
    """OpenMM's platforms; Reference needs a minute a step for the long peptide."""
    here = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    return [p for p in here if not (p == "Reference" and name == "peptide-300")]


def measure(name: str, n: int, turns: int) -> list[dict]:
    """One entry a tier and precision."""
    system, x = molecule(name)
    m, work = masses(system), {}
    tiers = BOTH if n <= TORCH[name] else LANES
    for tier, dtype in tiers:
        energy = NativeEnergy.from_openmm(system, dtype, tier, threads=1)
        frames, label = at_rest(x, n, dtype), f"{tier} {dtype}"
        work |= {f"{label} steps": steps(energy, frames, m), f"{label} evaluations": evaluations(energy, frames)}
    work |= {platform: openmm_steps(system, x, platform) for platform in platforms(name)}
    clock = time.perf_counter if "CUDA" in work or "OpenCL" in work else time.process_time
    found = rates(work, turns=turns, clock=clock)
    best = max(platforms(name), key=lambda p: found[p])
    return [
        {
            "kind": "steps", "system": name, "tier": tier, "dtype": str(dtype).removeprefix("torch."), "N": n,
            "evaluations": found[f"{tier} {dtype} evaluations"], "steps": found[f"{tier} {dtype} steps"],
            "openmm": found[best], "platform": best, "ratio": found[f"{tier} {dtype} steps"] / found[best],
        }
        for tier, dtype in tiers
    ]  # fmt: skip


def measure_threads(name: str, n: int, turns: int) -> list[dict]:
    """Steps a second of wall time on one thread and on two, in turns."""
    system, x = molecule(name)
    counts = (1, 2)
    work = {
        str(t): steps(
            NativeEnergy.from_openmm(system, torch.float32, "lanes", threads=t), at_rest(x, n, torch.float32),
            masses(system),
        )
        for t in counts
    }  # fmt: skip
    found = rates(work, turns=turns, clock=time.perf_counter)
    load_average = os.getloadavg()[0]
    return [
        {"kind": "threads", "system": name, "tier": "lanes", "dtype": "float32", "N": n, "threads": t,
         "steps_wall": found[str(t)], "speedup": found[str(t)] / found["1"], "load": load_average}
        for t in counts
    ]  # fmt: skip


def peak(name: str, n: int, tier: str, dtype: torch.dtype) -> None:
    """Prints by how many MB the peak of this process in eight steps of n replicas lies above its size before them."""
    system, x = molecule(name)
    steps(NativeEnergy.from_openmm(_one_particle(), dtype, tier), torch.zeros(1, 1, 3, dtype=dtype), torch.ones(1, 1))(
        4
    )
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading and compiling
    before = _megabytes("VmRSS")
    steps(NativeEnergy.from_openmm(system, dtype, tier), at_rest(x, n, dtype), masses(system))(1)
    print(json.dumps(_megabytes("VmHWM") - before))


def _megabytes(line: str) -> float:
    status = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) / 1024


def _one_particle() -> openmm.System:
    system = openmm.System()
    system.addParticle(1.0)
    return system


def measure_memory(name: str, n: int) -> list[dict]:
    """Peak memory of the rollouts, each in a process of its own."""
    entries = []
    for tier, dtype in BOTH if n <= TORCH[name] else LANES:
        kind = str(dtype).removeprefix("torch.")
        command = [sys.executable, __file__, "--peak", name, str(n), tier, kind]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        entries.append({"kind": "memory", "system": name, "tier": tier, "dtype": kind, "N": n, "MB": json.loads(out)})
    return entries


def table(entries: list[dict]) -> str:
    """Three tables: rates, threads, memory."""
    found = {kind: sorted((e for e in entries if e["kind"] == kind), key=_order) for kind in KINDS}
    single = {_case(e): e["steps"] for e in found["steps"] if e["dtype"] == "float32"}
    lines = [
        f"{'system':24} {'tier':14} {'N':>5} {'evals/s':>10} {'steps/s':>10}  {'OpenMM steps':20} {'ratio':>7} f64/f32"
    ]
    for e in found["steps"]:
        share = f"{e['steps'] / single[_case(e)]:7.2f}" if e["dtype"] == "float64" else ""
        lines.append(
            f"{e['system']:24} {e['tier'] + '-' + e['dtype']:14} {e['N']:5} {e['evaluations']:10.4g} "
            f"{e['steps']:10.4g}  {e['openmm']:10.4g} {e['platform']:9} {e['ratio']:7.1f} {share}"
        )
    lines.append("\nsteps/s of wall time, lanes-float32")
    lines += [
        f"{e['system']:24} N = {e['N']:5} {e['threads']} threads {e['steps_wall']:10.4g}, {e['speedup']:.2f} times one "
        f"(load {e['load']:.1f})"
        for e in found["threads"]
    ]
    lines.append("\npeak memory, MB: a rollout of eight steps, with the energy and all its buffers")
    lines += [
        f"{e['system']:24} {e['tier'] + '-' + e['dtype']:14} N = {e['N']:5} {e['MB']:8.1f}" for e in found["memory"]
    ]
    return "\n".join(lines)


def _case(e: dict) -> tuple:
    return e["system"], e["tier"], e["N"]


def _order(e: dict) -> tuple:
    return list(SYSTEMS).index(e["system"]), e["tier"], e["dtype"], e["N"], e.get("threads", 0)


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--replicas", default="1,16,64,256,1024,4096")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default=",".join(KINDS), help="of steps, threads, memory; or table")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        return peak(args.peak[0], int(args.peak[1]), args.peak[2], getattr(torch, args.peak[3]))
    results = Results(RESULTS, ("kind", "system", "tier", "dtype", "N", "threads"))
    tasks = {
        "steps": lambda name, n: measure(name, n, args.turns),
        "threads": lambda name, n: measure_threads(name, n, args.turns),
        "memory": measure_memory,
    }
    for name in args.systems.split(","):
        for n in (n for n in map(int, args.replicas.split(",")) if n <= SYSTEMS[name]):
            for kind in (k for k in KINDS if k in args.only):
                code = code_version(*CODE)
                if (kind != "steps" and n != min(1024, SYSTEMS[name])) or results.has(
                    code, kind=kind, system=name, N=n
                ):
                    continue
                for entry in tasks[kind](name, n):
                    results.add(code, **entry)
                print(f"{name} N = {n}: {kind} done", flush=True)
    print(table(results.newest()))


if __name__ == "__main__":
    main()
