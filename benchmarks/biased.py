"""How many biased steps a second, with a policy evaluated at every step, against a loop over OpenMM Contexts?

Both drive the same physics (no cutoff, flexible bonds, LangevinMiddle, 1 fs, 300 K, 1/ps) with the same policy: the
control of the path sampler, a 64-64 SiLU network on superposed coordinates, batched over replicas in torch. Ours is
`rollout` under `Controlled`, which also records noise and weights. The other is what one writes without it: a Context
for each replica on the faster of Reference and CPU, positions read, forces of the policy uploaded through a
CustomExternalForce, one step, again. CPU time of one core, measured in turns, medians.

    python benchmarks/biased.py [--systems alanine-dipeptide,...] [--replicas 16,256] [--table]
"""

from __future__ import annotations

import argparse
import os

os.environ.update(MOLSAMP_THREADS="1", OMP_NUM_THREADS="1")

import openmm
import torch
from interleaved import ROOT, Results, Work, code_version, rates

from molsamp.engine import Controlled, LangevinMiddle, Noise, rollout
from molsamp.molecular import Problem, load
from molsamp.molecular.paths.control import Control
from molsamp.molecular.paths.networks import build_control
from molsamp.molecular.paths.settings import NetworkSettings

RESULTS = ROOT / "benchmarks" / "results" / "biased.json"
CODE = ("molsamp/engine", "molsamp/learn", "molsamp/molecular")
PLATFORMS = {"openmm-Reference": {}, "openmm-CPU": {"Threads": "1"}}


def policy(problem: Problem) -> Control:
    """A 64-64 SiLU control that pushes: its last layer is drawn, since a fresh one answers zero."""
    control = build_control(problem, NetworkSettings(), Noise(1))
    last = control.network.network[-1]
    torch.nn.init.normal_(last.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return control


def ours(problem: Problem, control: Control, n: int) -> Work:
    """k steps of n paths."""
    dyn, at = Controlled(problem.dynamics, control.drive), problem.initial(Noise(2), torch.arange(n))

    def work(k: int) -> float:
        times = [problem.timestep * i for i in range(k + 1)]
        rollout(dyn, problem.integrator, at, times, noise=Noise(3), save="last")
        return n * k

    return work


def force_per_noise(problem: Problem) -> torch.Tensor:
    """b / u (A, 1): the force that shifts the noise of `LangevinMiddle` by one, s m / (c h)."""
    kick, _, ou, _ = LangevinMiddle().rows(problem.dynamics, problem.times[:2])[0].program[1:]
    return ou.noise * problem.masses / (ou.keep["v"] * kick.weights[0])


def contexts(problem: Problem, control: Control, n: int, platform: str) -> Work:
    """The loop over Contexts: k steps of n replicas."""
    system, atoms = problem.system.forcefield_system(), problem.system.event[0]
    bias = openmm.CustomExternalForce("-(fx*x + fy*y + fz*z)")
    for name in ("fx", "fy", "fz"):
        bias.addPerParticleParameter(name)
    for a in range(atoms):
        bias.addParticle(a, (0.0, 0.0, 0.0))
    system.addForce(bias)
    kind = openmm.Platform.getPlatformByName(platform.removeprefix("openmm-"))
    at, gain, temperature = problem.initial(Noise(2), torch.arange(n)), force_per_noise(problem), 300.0
    replicas = []
    for r in range(n):
        integrator = openmm.LangevinMiddleIntegrator(temperature, problem.friction, problem.timestep)
        context = openmm.Context(system, integrator, kind, PLATFORMS[platform])
        context.setPositions(at.x[r].double().numpy())
        context.setVelocities(at.v[r].double().numpy())
        replicas.append((context, integrator))
    x = torch.empty_like(at.x)

    def work(k: int) -> float:
        for i in range(k):
            for r, (context, _) in enumerate(replicas):
                x[r] = torch.from_numpy(context.getState(positions=True).getPositions(asNumpy=True)._value)
            pushes = (gain * control.drive(problem.timestep * i, x, None)).tolist()
            for (context, integrator), push in zip(replicas, pushes, strict=True):
                for a, b in enumerate(push):
                    bias.setParticleParameters(a, a, b)
                bias.updateParametersInContext(context)
                integrator.step(1)
        return n * k

    return work


def table(entries: list[dict]) -> str:
    """One line a system and number of replicas."""
    lines = [f"{'system':24} {'N':>5} {'ours, steps/s':>14} {'Contexts':>10} {'platform':>17} {'ratio':>6}"]
    lines += [
        f"{e['system']:24} {e['N']:5} {e['steps']:14.0f} {e['openmm']:10.0f} {e['platform']:>17} {e['ratio']:6.1f}"
        for e in entries
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default="alanine-dipeptide,alanine-dipeptide-gbn2")
    parser.add_argument("--replicas", default="16,64,256,1024")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(RESULTS, ("system", "N"))
    for system in () if args.table else args.systems.split(","):
        for n in map(int, args.replicas.split(",")):
            if results.has(code_version(*CODE), system=system, N=n):
                continue
            problem = Problem.of(load(system), dtype=torch.float32)
            control = policy(problem)
            found = rates(
                {
                    "ours": ours(problem, control, n),
                    **{name: contexts(problem, control, n, name) for name in PLATFORMS},
                },
                turns=args.turns,
            )
            steps = found.pop("ours")
            best = max(found, key=lambda name: found[name])
            results.add(
                code_version(*CODE), system=system, N=n, tier=problem.energy.tier, steps=steps,
                openmm=found[best], platform=best, ratio=steps / found[best],
            )  # fmt: skip
            print(table(results.entries[-1:]).splitlines()[-1], flush=True)
    print(table(results.newest()))


if __name__ == "__main__":
    main()
