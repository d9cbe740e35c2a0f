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


class Plan(NamedTuple):
    """A table of rows as the kernels want it, and where its noise comes from."""

    target: np.ndarray
    used: np.ndarray
    kind: np.ndarray
    coefficients: np.ndarray
    noise: Source
    low: np.ndarray
    high: np.ndarray


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
        self._count = count
        from molsamp.molecular.native.lanes import pack, scratch_size

        self._packed = pack(terms, NUMPY[dtype], self.width)
        self._size = scratch_size(self._packed, self.width)
        self._scratch: list[np.ndarray] = []

    def energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E (n,) and F (n, A, 3) of x (n, A, 3), in the dtype of x."""
        y = self._flat(x)
        E, F = np.empty(len(y)), np.empty_like(y)
        evaluate, t, W = _kernels(self.dtype).evaluate, self._packed, self.width
        self._share(len(y), lambda begin, end, scratch: evaluate(y, E, F, begin, end, W, t, scratch))
        return torch.from_numpy(E).to(x), torch.from_numpy(F).view(x.shape).to(x)

    # ---- rollouts ----

    def prepare(self, dyn: Dynamics, table: Table, start: Particles, noise: Source) -> Plan | None:
        """The table as arrays, or None: rows must evaluate once, first, and use nothing of earlier rows."""
        if not isinstance(dyn, Overdamped | Underdamped) or not isinstance(noise, Noise | Tape):
            return None
        if start.x.dtype != self.dtype or start.x.device.type != "cpu" or not table:
            return None
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
        scale = 1.0 / dyn.masses.double() if isinstance(dyn, Underdamped) else torch.tensor(dyn.mobility).double()
        numbers = np.stack([[self._coefficients(line, scale) for line in lines] for lines in programs])
        ids = self._pad(start.ids.numpy())
        return Plan(
            target=np.array([line.block == "v" for line in programs[0]], np.int64),
            used=np.abs(numbers).max((0, 3)) > 0,
            kind=kind,
            coefficients=np.ascontiguousarray(numbers, dtype=NUMPY[self.dtype]),
            noise=noise,
            low=(ids & MASK).astype(np.uint32),
            high=(ids >> 32).astype(np.uint32),
        )

    def carry(
        self, plan: Plan, p: Particles, u: Tensor | None, rows: range, step: int, heat: Coefficient, record: Recorder
    ) -> Particles:
        """The particles after `rows` of the plan's table; see `engine.rollout.Executor`."""
        kernels, W, t, n = _kernels(self.dtype), self.width, self._packed, len(p)
        x = self._flat(p.x).copy()
        v = x[:, :0] if p.v is None else self._flat(p.v).copy()
        key, none = (np.uint32(0), np.uint32(0)), np.empty((0, x.shape[1]), x.dtype)
        tape = none[None][:0]
        if isinstance(plan.noise, Noise):
            key = np.uint32(plan.noise.seed & MASK), np.uint32(plan.noise.seed >> 32)
        else:
            z = plan.noise.normal(range(step, step + len(rows)), p.ids, tuple(p.x.shape[1:]), self.dtype)
            tape = np.ascontiguousarray(z.expand(-1, n, -1, -1).reshape(len(rows), n, -1).numpy())
        hot = isinstance(heat, Tensor) or heat != 1.0
        heats = np.broadcast_to(np.asarray(heat).reshape(-1), (n,)) if hot else np.ones(n)
        run = kernels.Stretch(
            first=rows.start, rows=len(rows), step=step, key=key, low=plan.low, high=plan.high, tape=tape,
            hot=hot, heat=self._pad(heats).astype(x.dtype),
            driven=u is not None, u=none if u is None else self._flat(u),
            target=plan.target, used=plan.used, kind=plan.kind[rows.start :], coefficients=plan.coefficients,
        )  # fmt: skip
        status, log_ratio = self._pad(p.status.numpy()), np.zeros(len(plan.low))
        frames = kernels.Frames(
            stride=record.stride, x=_frames(record.x), v=v[None] if record.v is None else _frames(record.v),
            z=_frames(record.z), energy=record.energy.numpy(), log_ratio=log_ratio, status=status,
        )  # fmt: skip
        self._share(n, lambda begin, end, scratch: kernels.advance(x, v, begin, end, W, t, run, frames, scratch))
        self._count(n * len(rows))
        record.has_energy = True
        record.log_ratio += torch.from_numpy(log_ratio[:n])
        return p.evolve(
            x=torch.from_numpy(x).view(p.x.shape),
            v=None if p.v is None else torch.from_numpy(v).view(p.x.shape),
            status=torch.from_numpy(status[:n].copy()),
        )

    def _coefficients(self, line: Line, scale: Tensor) -> np.ndarray:
        """What multiplies x, v, F and z in one line, (4, A)."""
        weight = line.weights[0] * scale if line.weights else 0.0
        noise = 0.0 if line.noise is None else line.noise
        terms = (line.keep.get("x", 0.0), line.keep.get("v", 0.0), weight, noise)
        return np.stack([torch.as_tensor(c, dtype=torch.float64).expand(self.atoms, 1)[:, 0].numpy() for c in terms])

    # ---- blocks ----

    def _flat(self, x: Tensor) -> np.ndarray:
        return x.detach().to(self.dtype).reshape(len(x), 3 * self.atoms).contiguous().numpy()

    def _pad(self, a: np.ndarray) -> np.ndarray:
        """One entry a replica, the last repeated until the blocks are whole."""
        return np.pad(a, (0, -len(a) % self.width), mode="edge")

    def _share(self, n: int, work: Callable[[int, int, np.ndarray], Any]) -> None:
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


def _plain(line: object) -> TypeGuard[Line]:
    """Whether a verb is a Line of x or v that reads the newest evaluation alone, with one coefficient an atom."""
    if not isinstance(line, Line) or len(line.weights) > 1 or not {line.block, *line.keep} <= {"x", "v"}:
        return False
    coefficients = (*line.keep.values(), *line.weights, line.noise)
    return all(c.dim() == 0 or c.shape[-1] == 1 for c in coefficients if isinstance(c, Tensor))


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
