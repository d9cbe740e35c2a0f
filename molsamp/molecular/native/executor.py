"""Lanes: the CPU tier. Packs terms, shares blocks of replicas among threads, carries rollouts natively."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from molsamp.engine.dynamics import Dynamics, Overdamped, Underdamped
from molsamp.engine.integrators import Coefficient, Evaluate, Line, Table
from molsamp.engine.noise import MASK, Noise, Tape
from molsamp.engine.rollout import Recorder, Source
from molsamp.engine.state import Particles
from molsamp.molecular.native.terms import Terms

WIDTH = {torch.float32: 16, torch.float64: 8}
"""Replicas side by side."""
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def threads_here() -> int:
    """Threads used unless told otherwise: MOLSAMP_THREADS, or the cores this process may run on."""
    return int(os.environ.get("MOLSAMP_THREADS") or len(os.sched_getaffinity(0)))


class Lanes:
    """Energies, forces and rollouts of one molecule in numba, in float32 or float64; an `engine.rollout.Executor`.

    Args:
        terms: the molecule.
        dtype: of the lanes.
        threads: shares of the blocks; the results do not depend on it.
        count: told of every evaluation made inside `carry`.
    """

    def __init__(self, terms: Terms, dtype: torch.dtype, threads: int | None, count: Callable[[int], None]):
        self.dtype, self.width, self.atoms = dtype, WIDTH[dtype], terms.atoms
        self.threads = threads_here() if threads is None else threads
        self.count = count
        from molsamp.molecular.native.lanes import pack, scratch_size

        self.packed = pack(terms, NUMPY[dtype], self.width)
        self._size = scratch_size(self.packed, self.width)
        self._scratch: list[np.ndarray] = []

    def energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E (n,) and F (n, A, 3) of x (n, A, 3), in the dtype of x."""
        y = self.flat(x)
        E, F = np.empty(len(y)), np.empty_like(y)
        evaluate, t, W = _kernels(self.dtype).evaluate, self.packed, self.width
        self.share(len(y), lambda begin, end, scratch: evaluate(y, E, F, begin, end, W, t, scratch))
        return torch.from_numpy(E).to(x), torch.from_numpy(F).view(x.shape).to(x)

    def begin(
        self, dyn: Dynamics, table: Table, start: Particles, noise: Source, heat: Coefficient, record: Recorder
    ) -> Carriage | None:
        """A carriage for the table, or None: rows must evaluate once, first, and use nothing of earlier rows."""
        if not isinstance(dyn, Overdamped | Underdamped) or not isinstance(noise, Noise | Tape):
            return None
        if start.x.dtype != self.dtype or start.x.device.type != "cpu" or not table:
            return None
        mobility = 1.0 / dyn.masses if isinstance(dyn, Underdamped) else dyn.mobility
        scale = torch.as_tensor(mobility, dtype=torch.float64)
        program = compile_table(table, scale, self.atoms)
        return program and Carriage(self, program, start, noise, heat, record)

    # ---- blocks ----

    def flat(self, x: Tensor) -> np.ndarray:
        return x.detach().to(self.dtype).reshape(len(x), 3 * self.atoms).contiguous().numpy()

    def pad(self, a: np.ndarray) -> np.ndarray:
        """One entry a replica, the last repeated until the blocks are whole."""
        return np.pad(a, (0, -len(a) % self.width), mode="edge")

    def share(self, n: int, work: Callable[[int, int, np.ndarray], Any]) -> None:
        """work(first block, end, scratch) on contiguous shares of the blocks of n replicas, a thread each."""
        blocks = -(-n // self.width)
        shares = max(1, min(self.threads, blocks))
        while len(self._scratch) < shares:
            self._scratch.append(np.zeros(self._size, NUMPY[self.dtype]))
        cuts = [blocks * s // shares for s in range(shares + 1)]
        if shares == 1:
            work(0, blocks, self._scratch[0])
        else:
            list(_pool(shares).map(work, cuts[:-1], cuts[1:], self._scratch))


class Program(NamedTuple):
    """A table of rows as the kernels want it."""

    target: np.ndarray  # (lines,)
    used: np.ndarray  # (lines, 4)
    kind: np.ndarray  # (rows,)
    coefficients: np.ndarray  # (sets, lines, 4, A)


def compile_table(table: Table, scale: Tensor, atoms: int) -> Program | None:
    """The table as arrays, rows with the same lines sharing one set; None if it asks for more than the kernels do.

    Args:
        table: of rows that evaluate once, at their beginning, and use nothing of earlier rows.
        scale: what an evaluation is divided by the force, (A, 1) or a number.
        atoms: A.
    """
    sets: dict[tuple[int, ...], int] = {}
    programs: list[list[Line]] = []
    kind = np.empty(len(table), np.int64)
    for k, row in enumerate(table):
        key = tuple(map(id, row.program[1:]))
        if key not in sets:
            lines = [verb for verb in row.program[1:] if _plain(verb)]
            if not isinstance(row.program[0], Evaluate) or len(lines) < len(key):
                return None
            sets[key] = len(programs)
            programs.append(lines)
        kind[k] = sets[key]
    if len({tuple(line.block for line in lines) for lines in programs}) != 1:
        return None
    numbers = np.stack([[_coefficients(line, scale, atoms) for line in lines] for lines in programs])
    target = np.array([line.block == "v" for line in programs[0]], np.int64)
    return Program(target, np.abs(numbers).max((0, 3)) > 0, kind, numbers)


def _plain(line: object) -> TypeGuard[Line]:
    """Whether a verb is a Line of x or v that reads the newest evaluation alone, with one coefficient an atom."""
    if not isinstance(line, Line) or len(line.weights) > 1 or not {line.block, *line.keep} <= {"x", "v"}:
        return False
    coefficients = (*line.keep.values(), *line.weights, line.noise)
    return all(c.dim() == 0 or c.shape[-1] == 1 for c in coefficients if isinstance(c, Tensor))


def _coefficients(line: Line, scale: Tensor, atoms: int) -> np.ndarray:
    """What multiplies x, v, F and z in one line, (4, A)."""
    weight = line.weights[0] * scale if line.weights else 0.0
    noise = 0.0 if line.noise is None else line.noise
    terms = (line.keep.get("x", 0.0), line.keep.get("v", 0.0), weight, noise)
    return np.stack([torch.as_tensor(c, dtype=torch.float64).expand(atoms, 1)[:, 0].numpy() for c in terms])


class Carriage:
    """Particles on their way through a program; an `engine.rollout.Carrier`. Its arrays live as long as the rollout."""

    def __init__(
        self, lanes: Lanes, program: Program, start: Particles, noise: Source, heat: Coefficient, record: Recorder
    ):
        self.kernels = _kernels(lanes.dtype)
        self.lanes, self.noise, self.start, self.record = lanes, noise, start, record
        n, x = len(start), lanes.flat(start.x).copy()
        v = x[:, :0] if start.v is None else lanes.flat(start.v).copy()
        self.x, self.v = torch.from_numpy(x).view(start.x.shape), None
        if start.v is not None:
            self.v = torch.from_numpy(v).view(start.x.shape)
        seed = noise.seed if isinstance(noise, Noise) else 0
        hot = isinstance(heat, Tensor) or heat != 1.0
        heats = np.broadcast_to(np.asarray(heat, x.dtype).reshape(-1), (n,)) if hot else np.ones(n, x.dtype)
        ids = lanes.pad(start.ids.numpy())
        self._state, self._none = (x, v), np.empty((0, x.shape[1]), x.dtype)
        self._kind = program.kind
        self._stretch = self.kernels.Stretch(
            first=0, rows=0, step=0, key=(np.uint32(seed & MASK), np.uint32(seed >> 32)),
            low=(ids & MASK).astype(np.uint32), high=(ids >> 32).astype(np.uint32), tape=self._none[None][:0],
            hot=hot, heat=lanes.pad(heats), driven=False, u=self._none, target=program.target, used=program.used,
            kind=program.kind, coefficients=np.ascontiguousarray(program.coefficients, dtype=x.dtype),
        )  # fmt: skip
        self._frames = self.kernels.Frames(
            stride=record.stride, x=_frames(record.x), v=v[None] if record.v is None else _frames(record.v),
            z=_frames(record.z), energy=record.energy.numpy(), log_ratio=np.zeros(len(ids)),
            status=lanes.pad(start.status.numpy()),
        )  # fmt: skip
        record.has_energy = True

    def carry(self, rows: range, step: int, u: Tensor | None) -> None:
        """Carry on over `rows`; see `engine.rollout.Carrier`."""
        lanes, (x, v), n = self.lanes, self._state, len(self.start)
        run = self._stretch._replace(
            first=rows.start, rows=len(rows), step=step, kind=self._kind[rows.start :],
            driven=u is not None, u=self._none if u is None else lanes.flat(u),
        )  # fmt: skip
        if isinstance(self.noise, Tape):
            z = self.noise.normal(range(step, step + len(rows)), self.start.ids, tuple(self.x.shape[1:]), lanes.dtype)
            run = run._replace(tape=np.ascontiguousarray(z.expand(-1, n, -1, -1).reshape(len(rows), n, -1).numpy()))
        advance, W, t, frames = self.kernels.advance, lanes.width, lanes.packed, self._frames
        lanes.share(n, lambda begin, end, scratch: advance(x, v, begin, end, W, t, run, frames, scratch))
        lanes.count(n * len(rows))

    def particles(self) -> Particles:
        """Where the particles are now; tells the record their log ratio."""
        n = len(self.start)
        self.record.log_ratio += torch.from_numpy(self._frames.log_ratio[:n])
        return self.start.evolve(x=self.x, v=self.v, status=torch.from_numpy(self._frames.status[:n].copy()))


def _frames(a: Tensor) -> np.ndarray:
    return a.view(*a.shape[:2], -1).numpy()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="molsamp-lanes")


@cache
def _kernels(dtype: torch.dtype) -> ModuleType:
    """The compiled kernels, with a word to whoever waits for a cold start."""
    from molsamp.molecular.native import compiling, stepping

    compiling.announce(str(dtype).removeprefix("torch."))
    return stepping
