"""What does a node of a planning tree cost, from the first to the ten-thousandth and beyond?

growth: an RRT of the hard car (C2 = 4) in a maze whose goal nobody reaches; CPU microseconds per node and per edge
tried over each thousand nodes, dynamics steps a second, and bytes per node, of which most are the states and controls
along its edge. propagate: dynamics steps a second of the motion alone, collision check inside. solve: success, CPU
seconds, edges and path length over grid distance of RRT and SST (first plans) on mazes that no test uses, both cars.
Appends to benchmarks/results/trees.json; what is there for the code as it stands is not measured again.

    python benchmarks/trees.py [--nodes 20000] [--problems 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

os.environ.update(OMP_NUM_THREADS="1")

import torch
from interleaved import ROOT, Results, code_version, rates

from molsamp.engine import Noise
from molsamp.planning import PLANNERS, Car, Planner, plan, problem

RESULTS = ROOT / "benchmarks" / "results" / "trees.json"
CODE = (
    *(f"molsamp/engine/{name}.py" for name in ("trees", "columns", "neighbours", "kd", "witnesses", "noise")),
    *(f"molsamp/planning/{n}.py" for n in ("kernels", "vehicles", "worlds", "generators", "problems")),
    *(f"molsamp/planning/{n}.py" for n in ("planners", "settings", "edges", "samplers", "draws")),
    "benchmarks/trees.py",
)
CARS = {"easy": 15.5, "hard": 4.0}
BATCHES, THOUSAND, SECONDS = (32, 64, 128), 1000, 10.0


def growth(batch: int, nodes: int) -> dict:
    """CPU time per node, thousand by thousand."""
    task = problem("maze", Car(C2=4.0), 0)
    planner = Planner(replace(task, radius=1e-9), replace(PLANNERS["rrt"], batch=batch), Noise(0))
    planner.advance()  # compiles
    marks = [(len(planner.tree), planner.counts.edges, planner.counts.steps, time.process_time())]
    while len(planner.tree) < nodes:
        planner.advance()
        if len(planner.tree) - marks[-1][0] >= THOUSAND:
            marks.append((len(planner.tree), planner.counts.edges, planner.counts.steps, time.process_time()))
    n, edges, steps, seconds = torch.tensor(marks, dtype=torch.float64).diff(dim=0).unbind(1)
    stored = sum(column.nbytes for column in planner.tree.to_tensors().values())
    return {
        "us_per_node": (1e6 * seconds / n).round(decimals=1).tolist(),
        "us_per_edge": (1e6 * seconds / edges).round(decimals=1).tolist(),
        "steps_per_second": round(float(steps.sum() / seconds.sum())),
        "bytes_per_node": round(stored / len(planner.tree)),
    }


def propagation(C2: float) -> dict:
    """Steps a second of 64 cars under random controls, held for 64 steps, from rest in a maze."""
    task = problem("maze", Car(C2=C2), 0)
    controls = 2 * Noise(0).uniform(0, torch.arange(64), (1, 2)) - 1
    controls *= torch.tensor(task.vehicle.body.rate)
    starts = torch.stack([task.vehicle.at(task.world.centre(*c)) for c in task.world.free[:64].tolist()])

    def work(k: int) -> int:
        return sum(task.vehicle.propagate(starts, controls, 64, task).simulated for _ in range(k))

    return {"steps_per_second": round(rates({"ours": work})["ours"])}


def solving(planner: str, C2: float, problems: int) -> dict:
    """First plans on mazes 100, 101, .."""
    settings = replace(PLANNERS[planner], improve=False)
    found = [
        plan(problem("maze", Car(C2=C2), 100 + s), settings, noise=Noise(s), cpu_seconds=SECONDS)
        for s in range(problems)
    ]
    solved = [r for r in found if r.solved]
    median = statistics.median
    return {
        "solved": len(solved),
        "median_seconds": round(median(r.cpu_seconds if r.solved else SECONDS for r in found), 2),
        "median_edges": round(median(r.counts.edges for r in found)),
        "median_steps": round(median(r.counts.steps for r in found)),
        "median_length_ratio": round(median(r.length_ratio for r in solved), 2) if solved else None,
    }


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--problems", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("question", "case", "size")), code_version(*CODE)
    jobs = [("growth", str(b), args.nodes, lambda b=b: growth(b, args.nodes)) for b in BATCHES]
    jobs += [("propagate", name, 64, lambda c=c: propagation(c)) for name, c in CARS.items()]
    jobs += [
        ("solve", f"{planner} {name}", args.problems, lambda p=planner, c=c: solving(p, c, args.problems))
        for planner in ("rrt", "sst")
        for name, c in CARS.items()
    ]
    for question, case, size, work in jobs:
        key = {"question": question, "case": case, "size": size}
        if not results.has(code, **key):
            results.add(code, **key, **work())
        e = next(r for r in results.newest() if all(r[k] == v for k, v in key.items()))
        if question == "growth":
            costs = e["us_per_node"]
            print(
                f"growth     B = {case:>3}: {costs[0]:.0f} us a node in the first thousand, {costs[9]:.0f} in the "
                f"tenth, {costs[-1]:.0f} in the last (n = {size}); {e['steps_per_second']:.2e} steps/s, "
                f"{e['bytes_per_node']} bytes a node"
            )
        elif question == "propagate":
            print(f"propagate  {case} car: {e['steps_per_second']:.2e} steps/s")
        else:
            print(
                f"solve      {case:8}: {e['solved']}/{size} within {SECONDS:g} CPU s, median {e['median_seconds']} s, "
                f"{e['median_edges']} edges, {e['median_steps']} steps, length ratio {e['median_length_ratio']}"
            )


if __name__ == "__main__":
    main()
