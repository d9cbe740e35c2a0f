"""OMPL's planners on molsamp's vehicle: RRT of its Python wheel, RRT and SST of its C++ library.

Both call the kernel that moves our own trees, compiled by numba: 4 steps of 0.02 s with the collision check inside,
through a Python function in the one case, by its address in the other. An OMPL state holds the vehicle's features
(weighted positions and speeds, the heading as cosine and sine), so that OMPL's own Euclidean distance is the metric of
ours; a state that touches a wall is marked by the kernel, and the validity check only reads the mark.

OMPL draws states in the box that holds the world, walls included; our trees draw them in cells that can be reached.
"in cells" is OMPL with our draw, so that what the draw does can be told from what the planner does. Other differences
are OMPL's own: an edge is kept up to the wall it touches, and the goal is looked for at ends of edges only.

The wheel (ompl 2.0.1) lists control.SST without a constructor, so SST is compared in C++ alone, with Debian's
libompl-dev 1.5.2: `available` says what is missing where it is not there.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import shutil
import subprocess
import time
from functools import cache, partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from interleaved import ROOT
from numba import carray, cfunc, njit, types

from molsamp.engine.compiling import OPTIONS, kernel
from molsamp.planning import PLANNERS, Car, Problem, World
from molsamp.planning.audit import audit
from molsamp.planning.kernels import CAR, RAN, REACHED, advance, judge, look
from molsamp.planning.results import Plan

SUBSTEPS, SHORTEST, LONGEST, GOAL_BIAS = 4, 1, 16, 0.1
SELECTION, PRUNING = PLANNERS["sst"].near, PLANNERS["sst"].sparse
SOURCE, BUILD = ROOT / "benchmarks" / "ompl_cpp.cpp", ROOT / "build"
INCLUDE = (Path("/usr/include/ompl-1.5"), Path("/usr/include/eigen3"))
PIECES = 100_000  # of a path, at most
NAMES = ("ompl python rrt", "ompl c++ rrt", "ompl c++ rrt in cells", "ompl c++ sst")

# What the kernel must know lies in one array, so that it can be passed by its address. facts = (steps done, rows,
# columns, cells to look at, margin, dt); the last four are the kernel's scratch.
SIZES = {"facts": 6, "pose": 5, "p": 7, "rate": 2, "low": 6, "high": 6, "discs": 6, "weights": 6, "scratch": 6 * 9}
FACTS, POSE, P, RATE, LOW, HIGH, DISCS, WEIGHTS, SCRATCH, END = np.cumsum([0, *SIZES.values()]).tolist()
ACTUATORS = (4, 5)


@kernel
def unfold(f, weights, s):
    """A car's state from its features."""
    for i in range(2):
        s[i] = f[i] / weights[i]
    s[2] = math.atan2(f[3], f[2])
    for i in range(3, 6):
        s[i] = f[i + 1] / weights[i]


@kernel
def fold(s, weights, f):
    """A car's features, as of `Vehicle.features`."""
    for i in range(2):
        f[i] = weights[i] * s[i]
    f[2], f[3] = weights[2] * math.cos(s[2]), weights[2] * math.sin(s[2])
    for i in range(3, 6):
        f[i + 1] = weights[i] * s[i]


@kernel
def hold(told, blocked, f, u, out):
    """A car's features after a control was held for `SUBSTEPS` steps; the first is NaN where it touches a wall."""
    reach, margin, dt = int(told[FACTS + 3]), told[FACTS + 4], told[FACTS + 5]
    pose, discs = told[POSE:P], told[DISCS:WEIGHTS].reshape((2, 3))
    weights, scratch = told[WEIGHTS:SCRATCH], told[SCRATCH:END].reshape((9, 6))
    here, there, k, held, before = scratch[0], scratch[1], scratch[2:8], scratch[8, :2], scratch[8, 2:4]
    goal = (0.0, 0.0, -1.0)  # OMPL looks for it
    unfold(f, weights, here)
    for d in range(2):
        before[d] = look(here, discs[d], blocked, pose, reach)
    for _ in range(SUBSTEPS):
        advance(
            CAR, told[P:RATE], here, u, dt, ACTUATORS, told[RATE:LOW], told[LOW:HIGH], told[HIGH:DISCS], held, k, there
        )
        told[FACTS] += 1
        if judge(here, there, before, discs, margin, blocked, pose, reach, goal) != RAN:
            out[0] = math.nan
            return
        here[:] = there
    fold(here, weights, out)


@njit(**OPTIONS)
def hold_python(told, blocked, x, y, a, b, v, D, delta, u1, u2):
    """`hold` on numbers, which pass the border to Python faster than arrays."""
    f, u, out = np.array((x, y, a, b, v, D, delta)), np.array((u1, u2)), np.empty(7)
    hold(told, blocked, f, u, out)
    return out[0], out[1], out[2], out[3], out[4], out[5], out[6]


_NUMBERS = types.CPointer(types.float64)


@cfunc(types.void(_NUMBERS, types.CPointer(types.boolean), _NUMBERS, _NUMBERS, _NUMBERS))
def hold_address(told, blocked, f, u, out):
    """`hold` on addresses."""
    facts = carray(told, END)
    walls = carray(blocked, (int(facts[FACTS + 1]), int(facts[FACTS + 2])))
    hold(facts, walls, carray(f, 7), carray(u, 2), carray(out, 7))


class Tried(NamedTuple):
    """What a planner did.

    Args:
        plan: re-simulated by the vehicle, or None.
        cpu_seconds: inside the planner.
        edges: tried.
        steps: of the dynamics.
        nodes: in the tree.
        calls: of a policy.
    """

    plan: Plan | None
    cpu_seconds: float
    edges: int
    steps: int
    nodes: int
    calls: int = 0


class Task(NamedTuple):
    """A car's problem as the kernel and OMPL read it: `SIZES` in one array, walls, and the features' bounds."""

    told: np.ndarray
    blocked: np.ndarray
    low: np.ndarray
    high: np.ndarray
    start: np.ndarray
    goal: np.ndarray


def task(problem: Problem) -> Task:
    """Pack a car's problem."""
    vehicle, body = problem.vehicle, problem.vehicle.body
    discs, margin, blocked, pose, reach, goal = vehicle.walls(problem)
    facts = [0.0, *problem.world.shape, reach, margin, vehicle.dt]
    parts = (facts, pose, vehicle.parameters, body.rate, body.low, body.high, discs.ravel(), body.weights)
    told = np.concatenate([np.array(part, dtype=np.float64) for part in parts] + [np.zeros(SIZES["scratch"])])
    corners = problem.world.place(torch.tensor([[0.0, 0.0], problem.world.size], dtype=torch.float64)).numpy()
    w = np.array(body.weights)
    low = np.array([*corners.min(0), -w[2], -w[2], *(w * body.low)[3:]])
    high = np.array([*corners.max(0), w[2], w[2], *(w * body.high)[3:]])
    start = vehicle.features(problem.start).numpy()
    return Task(told, np.ascontiguousarray(blocked), low, high, start, goal)


def available() -> dict[str, str]:
    """Why a contestant of `NAMES` cannot be run here; empty where it can."""
    lacking = {}
    if find_spec("ompl") is None:
        lacking[NAMES[0]] = "the Python package ompl is missing: pip install 'molsamp[ompl]'"
    if shutil.which("g++") is None or not all(folder.is_dir() for folder in INCLUDE):
        lacking |= dict.fromkeys(NAMES[1:], "g++, libompl-dev or libeigen3-dev is missing: apt install g++ libompl-dev")
    return lacking


def tried(name: str, problem: Problem, seed: int, cpu_seconds: float, steps: int) -> Tried:
    """Run a contestant of `NAMES`; its path is driven again by our vehicle and audited.

    Raises:
        RuntimeError: if the path does not lead our vehicle into the goal, which would make the comparison void.
    """
    _compile()
    work = task(problem)
    planner = _python if name == NAMES[0] else partial(_cpp, sst=name.endswith("sst"), in_cells=name.endswith("cells"))
    pieces, seconds, edges, nodes = planner(work, problem, seed + 1, cpu_seconds, steps)
    driven = None if pieces is None else replay(problem, pieces)
    return Tried(driven, seconds, edges, int(work.told[FACTS]), nodes)


@cache
def _compile() -> None:
    """Compile `hold_python`, lest the first planner's clock count it."""
    world = World(torch.zeros((3, 3), dtype=torch.bool))
    easy = Problem(world, Car(), Car().at(world.centre(1, 1)), world.centre(0, 0))
    work = task(easy)
    hold_python(work.told, work.blocked, *work.start.tolist(), 0.0, 0.0)


def replay(problem: Problem, pieces: np.ndarray) -> Plan:
    """The plan of controls that are held one after the other, (u1, u2, seconds) each."""
    vehicle = problem.vehicle
    held = torch.from_numpy(pieces[:, 2] / vehicle.dt).round().long()
    controls = torch.from_numpy(pieces[:, :2].copy()).repeat_interleave(held, 0)
    motion = vehicle.propagate(problem.start[None], controls[None], len(controls), problem)
    n = int(motion.steps)
    plan = Plan(torch.arange(n + 1, dtype=torch.float64) * vehicle.dt, motion.states[0, : n + 1], controls[:n])
    if int(motion.fate) != REACHED or not audit(problem, plan).passed:
        raise RuntimeError(f"a path of OMPL's is not one of ours: fate {int(motion.fate)} after {n} steps")
    return plan


def _python(
    work: Task, problem: Problem, seed: int, cpu_seconds: float, steps: int
) -> tuple[np.ndarray | None, float, int, int]:
    """OMPL's wheel."""
    from ompl import base, control, util

    util.setLogLevel(util.LogLevel.LOG_NONE)
    util.RNG.setSeed(seed)
    space = base.RealVectorStateSpace(len(work.start))
    bounds = base.RealVectorBounds(len(work.start))
    rates = base.RealVectorBounds(2)
    for box, low, high in (
        (bounds, work.low, work.high),
        (rates, -work.told[RATE:LOW], work.told[RATE:LOW]),
    ):
        for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            box.setLow(i, a)
            box.setHigh(i, b)
    space.setBounds(bounds)
    controls = control.RealVectorControlSpace(space, 2)
    controls.setBounds(rates)
    information = control.SpaceInformation(space, controls)
    told, blocked, whole = work.told, work.blocked, slice(0, len(work.start))

    def propagate(state: Any, u: Any, duration: float, result: Any) -> None:
        result[whole] = hold_python(told, blocked, *state[whole], u[0], u[1])

    def valid(state: Any) -> bool:
        x = state[0]
        return x == x

    information.setStatePropagator(propagate)
    information.setStateValidityChecker(valid)
    information.setPropagationStepSize(SUBSTEPS * problem.vehicle.dt)
    information.setMinMaxControlDuration(SHORTEST, LONGEST)
    information.setup()
    gx, gy, radius = work.goal.tolist()
    sampler = information.allocStateSampler()

    class Disc(base.GoalSampleableRegion):
        def distanceGoal(self, state):
            return math.hypot(state[0] - gx, state[1] - gy)

        def sampleGoal(self, state):
            sampler.sampleUniform(state)
            state[0], state[1] = gx, gy

        def maxSampleCount(self):
            return 2**31 - 1

    root = space.allocState()
    root[whole] = work.start.tolist()
    goal = Disc(information)
    goal.setThreshold(radius)
    definition = base.ProblemDefinition(information)
    definition.addStartState(root)
    definition.setGoal(goal)
    planner = control.RRT(information)
    planner.setGoalBias(GOAL_BIAS)
    planner.setProblemDefinition(definition)
    planner.setup()
    edges, clock = count(), time.process_time
    until = clock() + cpu_seconds

    def over() -> bool:
        next(edges)
        return bool(told[FACTS] >= steps) or clock() >= until

    planner.solve(base.PlannerTerminationCondition(over))
    seconds = clock() - until + cpu_seconds
    data = base.PlannerData(information)
    planner.getPlannerData(data)
    pieces = None
    if definition.hasExactSolution():
        path = definition.getSolutionPath()
        u = [path.getControl(i) for i in range(path.getControlCount())]
        pieces = np.array([(c[0], c[1], d) for c, d in zip(u, path.getControlDurations(), strict=True)])
    return pieces, seconds, next(edges), data.numVertices()


class _Limits(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("goal_bias", "selection", "pruning", "cpu_seconds", "steps")),
        ("shortest", ctypes.c_int),
        ("longest", ctypes.c_int),
        ("step_seconds", ctypes.c_double),
    )


class _Report(ctypes.Structure):
    _fields_ = (("cpu_seconds", ctypes.c_double), ("edges", ctypes.c_int), ("nodes", ctypes.c_int))


@cache
def library() -> ctypes.CDLL:
    """OMPL's C++ planners, compiled where the source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    made = BUILD / f"ompl_cpp-{digest}.so"
    if not made.exists():
        BUILD.mkdir(exist_ok=True)
        include = [f"-I{folder}" for folder in INCLUDE]
        options = ["-O3", "-std=c++17", "-shared", "-fPIC"]
        subprocess.run(["g++", *options, *include, str(SOURCE), "-o", str(made), "-lompl"], check=True)
    return ctypes.CDLL(str(made))


def _cpp(
    work: Task, problem: Problem, seed: int, cpu_seconds: float, steps: int, sst: bool, in_cells: bool
) -> tuple[np.ndarray | None, float, int, int]:
    """OMPL's C++ library."""
    limits = _Limits(
        GOAL_BIAS, SELECTION, PRUNING, cpu_seconds, steps, SHORTEST, LONGEST, SUBSTEPS * problem.vehicle.dt
    )
    report, path = _Report(), np.zeros((PIECES, 3))

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    rate, world = work.told[RATE:LOW], problem.world
    corners = np.ascontiguousarray(world.cell * problem.reachable.flip(-1).double())  # of a world at the origin
    pieces = library().plan(
        int(sst), seed, ctypes.c_void_p(hold_address.address), at(work.told), at(work.blocked), len(work.start),
        at(work.low), at(work.high), at(work.start), at(work.goal), at(rate),
        len(corners) if in_cells else 0, at(corners), ctypes.c_double(world.cell),
        ctypes.byref(limits), ctypes.byref(report), PIECES, at(path),
    )  # fmt: skip
    if pieces > PIECES:
        raise RuntimeError(f"a path of {pieces} pieces: {PIECES} were provided for")
    return path[:pieces] if pieces >= 0 else None, report.cpu_seconds, report.edges, report.nodes
