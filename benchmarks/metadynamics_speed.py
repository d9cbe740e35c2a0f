"""How much sampling a second under metadynamics, against OpenMM's own openmm.app.Metadynamics?

Alanine dipeptide in vacuum, one System for all: LangevinMiddle, 1 fs, 300 K, 1/ps; hills of 1.2 kJ/mol and 0.35 rad on
(phi, psi), bias factor 8, 72 nodes an axis, every 500 or 1000 steps. Ours are n walkers on one shared bias, with the
code of `molsamp free-energy`: forces in the native lanes, hills, lines of HILLS. OpenMM has one walker, with
BiasVariables on CustomTorsionForces under a CustomCVForce, on the CPU platform (Threads=1) and on Reference; without a
bias as well, for scale. Steps of all walkers together in a second of CPU time, one thread, and two for ours; in turns
in one process, medians.

    python benchmarks/metadynamics_speed.py [--walkers 16,64,256] [--turns 7] [--table]
"""

from __future__ import annotations

import argparse
import dataclasses
import os

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import math

import openmm
import torch
from interleaved import ROOT, Results, Work, code_version, rates
from openmm import app

from molsamp import Noise
from molsamp.molecular import System, load
from molsamp.molecular.free_energy import walkers
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.native.energy import NativeEnergy

RESULTS = ROOT / "benchmarks" / "results" / "metadynamics_speed.json"
CODE = ("molsamp/engine", "molsamp/molecular", "benchmarks/metadynamics_speed.py")
PLATFORMS = {"CPU": {"Threads": "1"}, "Reference": {}}
TEMPERATURE, HEIGHT, WIDTH, FACTOR, NODES = 300.0, 1.2, 0.35, 8.0, 72
EVERY = (500, 1000)  # steps between hills


def ours(system: System, n: int, every: int, threads: int) -> Work:
    """k batches of hills of n walkers."""
    walkers.UNIT = 1  # batch of hills in a unit of work
    energy = NativeEnergy.from_openmm(system.forcefield_system(), torch.float32, threads=threads)
    task = dataclasses.replace(Task.of(system, ["phi", "psi"]), energy=energy)
    settings = {"walkers": n, "height": HEIGHT, "width": (WIDTH, WIDTH), "factor": FACTOR, "build": 1e6}
    job = walkers.Metadynamics(task, noise=Noise(1), stride=every * task.timestep, grid={"nodes": NODES}, **settings)

    def work(k: int) -> float:
        before = job.evaluations
        for _ in range(k):
            job.advance()
        return job.evaluations - before

    return work


def theirs(system: System, platform: str, every: int | None) -> Work:
    """k portions of 500 steps of openmm.app.Metadynamics; of no bias at all where there is no `every`."""
    physics, settings = system.forcefield_system(), system.settings
    meta = None
    if every is not None:
        variables = []
        for name in ("phi", "psi"):
            torsion = openmm.CustomTorsionForce("theta")
            torsion.addTorsion(*system.cvs[name].atoms, [])
            variables.append(app.BiasVariable(torsion, -math.pi, math.pi, WIDTH, True, NODES + 1))
        meta = app.Metadynamics(physics, variables, TEMPERATURE, FACTOR, HEIGHT, every)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, settings.friction, settings.timestep)
    kind = openmm.Platform.getPlatformByName(platform)
    simulation = app.Simulation(system.topology, physics, integrator, kind, PLATFORMS[platform])
    simulation.context.setPositions(next(iter(system.states.values())).x.numpy())
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)

    def work(k: int) -> float:
        (simulation if meta is None else meta).step(*(() if meta is None else (simulation,)), 500 * k)
        return 500 * k

    return work


def table(entries: list[dict]) -> str:
    """One line an entry."""
    head = f"{'every':>6} {'walkers':>8} {'threads':>8} {'ours, steps/CPU s':>18}"
    head += "".join(f" {name:>14}" for name in ("OpenMM CPU", "Reference", "no bias, best")) + f" {'ratio':>6}"
    lines = [
        f"{e['every']:6} {e['walkers']:8} {e['threads']:8} {e['steps']:18.0f} {e['openmm-CPU']:14.0f} "
        f"{e['openmm-Reference']:14.0f} {e['openmm-unbiased']:14.0f} {e['ratio']:6.1f}"
        for e in entries
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure what is missing, then print the table; the ratio is to the faster platform under metadynamics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walkers", default="16,64,256")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(RESULTS, ("every", "walkers", "threads"))
    system, code = load("alanine-dipeptide"), code_version(*CODE)
    counts = [n for n in map(int, args.walkers.split(",")) if not results.has(code, walkers=n)]
    if counts and not args.table:
        kinds = [(every, n, threads) for every in EVERY for n in counts for threads in (1, 2)]
        contestants = {kind: ours(system, kind[1], kind[0], kind[2]) for kind in kinds}
        contestants |= {(p, every): theirs(system, p, every) for p in PLATFORMS for every in (*EVERY, None)}
        found = rates(contestants, turns=args.turns)
        for every, n, threads in kinds:
            openmm_rates = {f"openmm-{p}": found[p, every] for p in PLATFORMS}
            steps, ratio = found[every, n, threads], found[every, n, threads] / max(openmm_rates.values())
            openmm_rates["openmm-unbiased"] = max(found[p, None] for p in PLATFORMS)
            results.add(
                code, every=every, walkers=n, threads=threads, steps=steps, **openmm_rates, ratio=ratio,
                turns=args.turns,
            )  # fmt: skip
    print(table(results.newest()))


if __name__ == "__main__":
    main()
