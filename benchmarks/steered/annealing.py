"""Free energies of alanine dipeptide by annealed importance sampling: populations resampled on the way, or not.

Walkers in equilibrium with phi held near that of C7eq are taken to C5, and over the barrier to C7ax, by moving the
restraint (`molecular.anneal`). The truth is the free-energy room's: the same restraints weighed by F(phi) of the
system's reference, 2.2 microseconds of metadynamics. What is told is the mean square, over populations of 32, of the
error of log Z; both sides have the same starts, noise and evaluations, and nothing is chosen. The worse target counts.
The pooled free energies and their intervals stand beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from molsamp.engine import Noise, log_mean_exp, rollout
from molsamp.molecular import GridBias, Task, anneal, load
from molsamp.molecular.energies import Energy
from molsamp.molecular.steering.annealing import difference, moved
from molsamp.molecular.system import reference
from molsamp.runs.reading import read

CLAIM = "resampling by the work makes log Z of a population closer than Jarzynski's estimator, at equal evaluations"
UNIT = "mean square error of log Z of 32 walkers, nats^2, against the free-energy room; lower is better"
BELOW = 1.0
SYSTEM, BEGIN, WIDTH, POPULATION = "alanine-dipeptide", -78.0, 0.1, 32  # degrees, rad
TARGETS = {"C5": (-150.0, 40, 10.0), "C7ax": (60.0, 60, 20.0)}  # degrees, stages, ps
CODE = (
    *(f"molsamp/engine/{name}.py" for name in ("particles", "lineage", "measures", "rollout", "integrators", "noise")),
    *("molsamp/molecular/steering/annealing.py", "molsamp/molecular/bias.py", "molsamp/molecular/native"),
    "systems/alanine-dipeptide",
)


def measure(seed: int, groups: int = 32, settle: float = 20.0, share: float = 1.0) -> dict[str, float]:
    """About two CPU minutes; `share` is that of the time of the targets."""
    system = load(SYSTEM)
    task, noise, n = Task.of(system, ("phi",)), Noise(seed).child("annealing"), groups * POPULATION
    dyn, free_energy = task.dynamics(task.energy), room(task)
    begin = math.radians(BEGIN)
    start = task.start(noise.child("start"), n, ("C7eq",))
    figures, worst = {}, ("", -1.0)
    for name, (degrees, stages, time) in TARGETS.items():
        biases = moved(task.cvs, [begin], [math.radians(degrees)], [WIDTH], stages, task.kT, system.event)
        if not figures:  # all ways have one beginning
            times = [k * task.timestep for k in range(round(settle / task.timestep) + 1)]
            still = replace(dyn, field=task.energy + biases[0])
            start = rollout(still, task.integrator, start, times, noise=noise.child("settle"), save="last").final
        exact, rows = free_energy(biases[-1]) - free_energy(biases[0]), round(share * time / stages / task.timestep)
        figures |= {f"{name}: room, kJ/mol": exact, f"{name}: evaluations": float(n * stages * rows)}
        for side, below in (("method", 0.5), ("baseline", 0.0)):
            how = {"timestep": task.timestep, "rows": rows, "noise": noise.child(name), "groups": groups}
            found = anneal(dyn, start, biases, below=below, **how)
            off = torch.tensor([log_mean_exp(a)[0] for a in found.logw]) + exact / task.kT
            e = difference(found, task.kT)
            figures[f"{name}, {side}: error"] = float(off.square().mean())
            figures[f"{name}, {side}: bias of log Z"] = float(off.mean())
            figures[f"{name}, {side}: dF, kJ/mol"] = e.value
            figures[f"{name}, {side}: half interval, kJ/mol"] = 0.5 * (e.interval[1] - e.interval[0])
        ratio = figures[f"{name}, method: error"] / figures[f"{name}, baseline: error"]
        worst = max(worst, (name, ratio), key=lambda a: a[1])
    return {side: figures[f"{worst[0]}, {side}: error"] for side in ("method", "baseline")} | figures


def room(task: Task) -> Callable[[Energy], float]:
    """-kT log <exp(-V / kT)> of a bias on phi, kJ/mol, by the reference's F of (phi, psi)."""
    folder = reference(SYSTEM)
    assert folder is not None
    surface = read(folder).surface
    assert surface is not None
    density = torch.exp(-torch.from_numpy(surface.F) / task.kT).sum(1)  # inf where nothing was seen: none
    f = GridBias(task.cvs, -density.log(), surface.grid.ranges[:1], task.system.event)
    s = torch.linspace(-math.pi, math.pi, 20001, dtype=torch.float64)[:-1, None]

    def free_energy(V: GridBias) -> float:
        return -task.kT * float(torch.logsumexp(-f.at(s) - V.at(s) / task.kT, 0) - torch.logsumexp(-f.at(s), 0))

    return free_energy


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, 2, 2.0, 0.1)
