"""car-ood-v1: planners of a car in worlds that the policy was not trained in, ours and OMPL's side by side.

Problems: 60 of the hard car (C2 = 4), 20 mazes, 20 worlds of boxes, 10 corridors with a dead end towards the goal, 5 in
each of D4RL's layouts medium and u-maze; the first half of each with the easy car (C2 = 15.5); 3 seeds each. The policy
was trained on D4RL's large layout; nothing is tuned on these problems, settings are chosen by --tune on 14 others.
Planners: the uniform trees rrt and sst (first plan); ditree as shipped, without its share of uniform edges, sent to the
goal as often as the paper has it (0.85), and with 4 calls of the network a draw; the policy alone; OMPL's
(benchmarks/ompl_planners.py). Limits: 20 CPU seconds of one thread and 2 million steps of the dynamics a run. Recorded
by run: solved, CPU seconds, edges tried, steps, policy calls, nodes, length of the plan over the grid distance, effort.
Planners take turns problem by problem, so that a busy machine slows them alike. --audit: N plans with other seeds,
re-simulated at a tenth of the step and re-checked by other code. Appends to benchmarks/results/planning.json,
--validation and --tune to planning_validation.json; what is there for the code as it stands is not measured again.

    python benchmarks/planning.py [--problems N] [--planners rrt,ditree] [--validation | --tune] [--audit N] [--table]
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product, zip_longest
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")

import ompl_planners
import torch
from interleaved import ROOT, Results, code_version
from ompl_planners import Tried
from planning_table import SECONDS, STEPS, summary, table

from molsamp.engine import Noise
from molsamp.planning import PLANNERS, Car, Planner, Problem, Settings, boxes, maze, problem
from molsamp.planning.audit import audits
from molsamp.planning.problems import drawn
from molsamp.planning.train import WEIGHTS, load

FOLDER, POLICY = ROOT / "benchmarks" / "results", WEIGHTS / "car.safetensors"
KEYS = ("set", "planner", "car", "family", "problem")
ENGINE = ("trees", "columns", "neighbours", "kd", "witnesses", "noise")
MOTION = ("kernels", "vehicles", "worlds", "generators", "problems")
GROWTH = ("planners", "settings", "edges", "samplers", "draws")
THEIRS = (
    *(f"molsamp/planning/{name}.py" for name in (*MOTION, "settings")),  # SST's radii are ours
    *("benchmarks/ompl_planners.py", "benchmarks/ompl_cpp.cpp"),
)
UNIFORM = (*(f"molsamp/engine/{name}.py" for name in ENGINE), *(f"molsamp/planning/{n}.py" for n in (*MOTION, *GROWTH)))
LEARNED = (*UNIFORM, "molsamp/planning/policy.py", "molsamp/planning/sight.py", str(POLICY.relative_to(ROOT)))
CARS = {"hard": 4.0, "easy": 15.5}
PROBLEMS = {
    "hard": {"maze": (1000, 20), "boxes": (2000, 20), "corridor": (3000, 10), "medium": (4000, 5), "u-maze": (5000, 5)},
    "easy": {"maze": (1000, 10), "boxes": (2000, 10), "corridor": (3000, 5), "medium": (4000, 3), "u-maze": (5000, 2)},
}
VALIDATION = {"maze 9": (100, 3), "boxes 12": (100, 3), "corridor": (100, 4), "maze": (100, 2), "maze 31": (100, 2)}
SEEDS = (0, 1, 2)
OTHER_SEEDS, AUDITED_SECONDS, TRIES = (3, 4, 5), 5.0, 4  # of the audit
OTHERWISE: tuple[dict[str, Any], ...] = (
    {},
    {"batch": 16},
    {"batch": 64},
    {"execute": 8},
    {"execute": 32},
    {"eps": 0.3},
    {"target_bias": 0.25},
    {"target_bias": 0.85},
    {"patience": 4.0},
    {"keep_prefix": True},
    {"K": 4},
)


@dataclass(frozen=True)
class Contestant:
    """One of our planners.

    Args:
        settings: of the tree.
        calls: K of the policy; 0 for none.
    """

    settings: Settings
    calls: int = 0


OURS = {
    "rrt": Contestant(PLANNERS["rrt"]),
    "sst": Contestant(replace(PLANNERS["sst"], improve=False)),
    "ditree": Contestant(PLANNERS["ditree"], 1),
    "ditree eps=0": Contestant(replace(PLANNERS["ditree"], eps=0.0), 1),
    "ditree target_bias=0.85": Contestant(replace(PLANNERS["ditree"], target_bias=0.85), 1),
    "ditree K=4": Contestant(PLANNERS["ditree"], 4),
    "policy": Contestant(PLANNERS["policy"], 1),
}


def variants() -> dict[str, Contestant]:
    """DiTrees to choose from: the shipped one, and those that differ from it in one thing."""
    found = {}
    for changed in map(dict, OTHERWISE):
        name = " ".join(["ditree", *(f"{key}={value:g}" for key, value in changed.items())])
        calls = changed.pop("K", 1)
        found[name] = Contestant(replace(PLANNERS["ditree"], **changed), calls)
    return found


def code(contestant: Contestant | None) -> str:
    """Hash of what a contestant exercises; None is one of OMPL's."""
    if contestant is None:
        return code_version(*THEIRS)
    return code_version(*(LEARNED if contestant.calls else UNIFORM))


def posed(family: str, car: Car, seed: int) -> Problem:
    """A problem of a family, those of the validation included."""
    noise = Noise(seed).child(family)
    if family == "maze 9":
        return drawn(maze(noise, 9, 9), car, noise)
    if family == "boxes 12":
        return drawn(boxes(noise, 12, 12), car, noise)
    if family == "maze 31":
        return drawn(maze(noise, 31, 31), car, noise, apart=40.0)
    return problem(family, car, seed)


def problems(families: dict[str, tuple[int, int]], most: int) -> Iterator[tuple[str, int]]:
    """(family, seed), the families in turns, at most so many of each."""
    columns = [[(family, first + i) for i in range(min(n, most))] for family, (first, n) in families.items()]
    yield from (p for row in zip_longest(*columns) for p in row if p is not None)


def tried(
    name: str, contestant: Contestant | None, task: Problem, seed: int, seconds: float = SECONDS, steps: int = STEPS
) -> Tried:
    """One run."""
    if contestant is None:
        return ompl_planners.tried(name, task, seed, seconds, steps)
    policy = load(POLICY, contestant.calls) if contestant.calls else None
    result = Planner(task, contestant.settings, Noise(seed).child("run"), policy).run(seconds, steps)
    c = result.counts
    return Tried(result.plan, result.cpu_seconds, c.edges, c.steps, result.nodes, c.calls)


def entry(runs: list[Tried], task: Problem) -> dict:
    """The runs of one problem, a list for each quantity."""
    plans = [r.plan for r in runs]
    return {
        "solved": [int(p is not None) for p in plans],
        "cpu_seconds": [round(r.cpu_seconds, 3) for r in runs],
        **{name: [getattr(r, name) for r in runs] for name in ("edges", "steps", "calls", "nodes")},
        "length_ratio": [None if p is None else round(p.length / task.grid_distance, 3) for p in plans],
        "effort": [None if p is None else round(p.effort, 1) for p in plans],
    }


def measure(
    results: Results, which: str, cars: dict[str, dict], contestants: Mapping[str, Contestant | None], most: int
) -> None:
    """Every problem, the contestants in turns."""
    for car, families in cars.items():
        for family, seed in problems(families, most):
            task = posed(family, Car(C2=CARS[car]), seed)
            for name, contestant in contestants.items():
                key = {"set": which, "planner": name, "car": car, "family": family, "problem": seed}
                if results.has(code(contestant), **key):
                    continue
                found = entry([tried(name, contestant, task, s) for s in SEEDS], task)
                results.add(code(contestant), **key, **found)
                told = f"{sum(found['solved'])}/{len(SEEDS)} in {found['cpu_seconds']} CPU s, {found['edges']} edges"
                print(f"{car} {family} {seed}, {name}: {told}", flush=True)


def check(results: Results, contestants: Mapping[str, Contestant | None], plans: int) -> None:
    """Audit that many plans in all, as many of each planner and car; fewer of those who seldom find one."""
    share = math.ceil(plans / (len(contestants) * len(CARS)))
    for car, (name, contestant) in product(CARS, contestants.items()):
        key = {"set": "audit", "planner": name, "car": car, "family": "all", "problem": share}
        if results.has(code(contestant), **key):
            continue
        tasks, plans = [], []
        posers = product(OTHER_SEEDS, problems(PROBLEMS[car], 99))
        for seed, (family, number) in islice(posers, TRIES * share):  # some planners seldom find a plan
            task = posed(family, Car(C2=CARS[car]), number)
            plan = tried(name, contestant, task, seed, AUDITED_SECONDS).plan
            if plan is not None:
                tasks.append(task)
                plans.append(plan)
            if len(plans) == share:
                break
        found = audits(tasks, plans)
        print(f"audited: {car} car, {name}: {len(found)} plans", flush=True)
        results.add(
            code(contestant), **key, plans=len(found),
            touches=sum(a.touches >= 0 for a in found), misses=sum(not a.reaches for a in found),
            deviation=max((a.deviation for a in found), default=0.0),
        )  # fmt: skip


def possible(wanted: str) -> dict[str, Contestant | None]:
    """The contestants that can be run here, and a line for each that cannot."""
    lacking = ompl_planners.available()
    if not POLICY.exists():
        lacking |= dict.fromkeys((n for n, c in OURS.items() if c.calls), f"there are no weights at {POLICY}")
    everyone: dict[str, Contestant | None] = {**OURS, **dict.fromkeys(ompl_planners.NAMES)}
    chosen = wanted.split(",") if wanted else list(everyone)
    if unknown := set(chosen) - set(everyone):
        raise SystemExit(f"planners {', '.join(sorted(unknown))}: there are {', '.join(everyone)}")
    for name in chosen:
        if name in lacking:
            print(f"{name} is skipped: {lacking[name]}")
    return {name: everyone[name] for name in chosen if name not in lacking}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=99, help="of each family, at most")
    parser.add_argument("--planners", default="", help="names, with commas between; all")
    parser.add_argument("--cars", default=",".join(CARS), help="hard, easy")
    parser.add_argument("--validation", action="store_true", help="on the problems for tuning")
    parser.add_argument("--tune", action="store_true", help="variants of DiTree on the problems for tuning")
    parser.add_argument("--audit", type=int, default=0, metavar="N", help="audit N plans, measure nothing else")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tuning = args.validation or args.tune
    results = Results(FOLDER / ("planning_validation.json" if tuning else "planning.json"), KEYS)
    if not args.table:
        contestants: Mapping[str, Contestant | None] = variants() if args.tune else possible(args.planners)
        for name, contestant in contestants.items():  # what is compiled and loaded once
            tried(name, contestant, problem("u-maze", Car(), 0), 0, 1.0, 20_000)
        cars = {car: VALIDATION if tuning else PROBLEMS[car] for car in args.cars.split(",")}
        if args.audit:
            check(results, contestants, args.audit)
        else:
            measure(results, "validation" if tuning else "test", cars, contestants, args.problems)
    print(summary(results.newest()) if tuning else table(results.newest()))


if __name__ == "__main__":
    main()
