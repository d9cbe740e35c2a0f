"""The one loop: carry a batch of particles over a table of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Dynamics
from molsamp.engine.integrators import Coefficient, Info, Integrator, Table, residual, step
from molsamp.engine.state import Memory, Particles, Path, Status

NOISE_CHUNK = 1 << 20  # normals drawn ahead in one call


@runtime_checkable
class Source(Protocol):
    """`Noise`, or a `Tape` of given noise."""

    def normal(self, step, ids: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...


@runtime_checkable
class Carrier(Protocol):
    """Particles on their way through a table in native code; `x` and `v` change under the hand that holds them."""

    x: Tensor
    v: Tensor | None

    def carry(self, rows: range, step: int, u: Tensor | None) -> None:
        """Carry on over `rows`, under a control u held all along; `step` is the first row's place in the noise."""

    def particles(self) -> Particles:
        """Where the particles are now."""


@runtime_checkable
class Executor(Protocol):
    """Native code that carries particles over many rows at once; a field offers one as its attribute `executor`.

    It compiles the same table and draws the same noise as the loop below, and holds no coefficient of its own.
    """

    def begin(
        self, dyn: Dynamics, table: Table, start: Particles, noise: Source, heat: Coefficient, record: Recorder
    ) -> Carrier | None:
        """A carrier for the whole table, or None where the loop below has to do it."""


def rollout(
    dyn: Dynamics,
    integrator: Integrator,
    start: Particles,
    times: Sequence[float],
    *,
    noise: Source,
    save: Literal["all", "last"] | int = "all",
    heat: Coefficient = 1.0,
    stop: Callable[[Particles], Tensor] | None = None,
    each: Callable[[int, Particles, Info], None] | None = None,
    first: int = 0,
    memory: Memory = Memory(),
) -> Path:
    """Carry `start` over the rows of `integrator` on the grid `times`.

    Args:
        dyn: the dynamics; under `Controlled` the path's log_ratio is accumulated in float64.
        integrator: the table of rows.
        start: n particles at times[0].
        times: F_all times.
        noise: `Noise`, or a `Tape` of given noise.
        save: every frame, the last alone, or every k-th (k must divide the number of rows).
        heat: sqrt(T_sampling / T), a number or per particle (n, 1, ...); densities keep the temperature of `dyn`.
        stop: particles -> (n,) bool; a particle for which it is true becomes DONE and stays where it is.
        each: observer called after every row with (row index, particles after the row, info).
        first: index of the first row in the noise streams, so that a rollout may be continued.
        memory: `Path.memory` of the rollout that is continued (multistep schemes, a control held across the cut).

    Returns:
        The path. A particle whose state is not finite is marked DIVERGED and kept at its last good state.

    Raises:
        ValueError: if `save` does not divide the number of rows, or the dynamics moves v and `start` has none.
    """
    if "v" in dyn.blocks and start.v is None:
        raise ValueError("the dynamics moves velocities, but start.v is None")
    table = integrator.rows(dyn, times)
    stride = save if isinstance(save, int) else {"all": 1, "last": max(1, len(table))}[save]
    if stride < 1 or len(table) % stride:
        raise ValueError(f"save={stride} does not divide the {len(table)} rows of this rollout")
    record = Recorder(start, len(table), stride)
    if stop is None and each is None and (carrier := _carrier(dyn, table, start, noise, heat, record)):
        p, memory = _carry(carrier, dyn, times, first, memory)
    else:
        p, memory = _loop(dyn, table, start, noise, first, heat, stop, each, record, memory)
    return record.path(times, p, dyn, memory)


def _loop(dyn, table, start, noise, first, heat, stop, each, record, memory) -> tuple[Particles, Memory]:
    """Row after row: the definition of a rollout."""
    hold = dyn.hold if isinstance(dyn, Controlled) else 1
    chunk = max(1, NOISE_CHUNK // max(1, start.x.numel()))
    event, p = start.x.shape[1:], start
    for k, row in enumerate(table):
        if k % chunk == 0:
            ahead = range(first + k, first + min(k + chunk, len(table)))
            draws = noise.normal(ahead, p.ids, tuple(event), p.x.dtype) if any(r.draws for r in table) else None
        z = draws[k % chunk] if draws is not None and row.draws else None
        row = row.to(start.x)
        q, memory, info = step(row, dyn, p, z, memory, refresh=(first + k) % hold == 0, heat=heat)
        p, moved = _settle(p, q, stop)
        record.row(k, p, info, moved)
        if each is not None:
            each(k, p, info)
    return p, memory


def _carrier(dyn, table, start, noise, heat, record) -> Carrier | None:
    """A carrier of the field's executor, if there is one and it can do this rollout."""
    base = dyn.base if isinstance(dyn, Controlled) else dyn
    executor = getattr(getattr(base, "field", None), "executor", None)
    return None if executor is None else executor.begin(base, table, start, noise, heat, record)


def _carry(carrier: Carrier, dyn, times, first, memory) -> tuple[Particles, Memory]:
    """The same rows in native stretches, each as long as one control is held."""
    rows, controlled, k = len(times) - 1, isinstance(dyn, Controlled), 0
    while k < rows:
        late = (first + k) % dyn.hold if controlled else 0  # rows since the control was due
        end = min(rows, k + dyn.hold - late) if controlled else rows
        if controlled and (late == 0 or memory.held is None):
            memory = Memory((), dyn.control(times[k], carrier.x, carrier.v))
        carrier.carry(range(k, end), first + k, memory.held if controlled else None)
        k = end
    return carrier.particles(), memory


def residuals(path: Path, dyn: Dynamics, integrator: Integrator) -> tuple[Tensor, Tensor]:
    """The normalised residual z of every row of a path saved with stride 1, under the free dynamics `dyn`.

    For a correct pair of sampler and density z is standard normal: mean square 1.

    Returns:
        (z (F - 1, n, *event) with the control, if any drove the path, counted in it; the largest mismatch of the
        noiseless blocks per row and particle (F - 1, n)).

    Raises:
        ValueError: if the path was not saved at every row, or a row has no density.
    """
    if path.stride != 1:
        raise ValueError(f"the path holds every {path.stride}th frame; residuals need save='all'")
    memory, zs, gaps = Memory(), [], []
    for k, row in enumerate(integrator.rows(dyn, path.times.tolist())):
        z, gap, memory = residual(row, dyn, path.frame(k), path.frame(k + 1), memory)
        zs.append(z)
        gaps.append(gap)
    return torch.stack(zs), torch.stack(gaps)


def _settle(p: Particles, q: Particles, stop: Callable[[Particles], Tensor] | None) -> tuple[Particles, Tensor | None]:
    """Accept a step for the particles that are OK and stayed finite; freeze the others.

    Returns:
        (particles, (n,) bool of those that moved, or None when all did).
    """
    finite = torch.isfinite(q.x.flatten(1).sum(1))
    if q.v is not None:
        finite &= torch.isfinite(q.v.flatten(1).sum(1))
    moving = (p.status == Status.OK) & finite
    all_moved = bool(moving.all())
    if not all_moved:
        lost = (p.status == Status.OK) & ~finite
        keep = moving.view(-1, *[1] * (q.x.dim() - 1))
        v = None if q.v is None or p.v is None else torch.where(keep, q.v, p.v)
        status = torch.where(lost, torch.full_like(p.status, Status.DIVERGED), p.status)
        q = q.evolve(x=torch.where(keep, q.x, p.x), v=v, status=status)
    if stop is not None:
        reached = stop(q) & (q.status == Status.OK)
        q = q.evolve(status=torch.where(reached, torch.full_like(q.status, Status.DONE), q.status))
    return q, None if all_moved else moving


class Recorder:
    """Preallocated frames, noise sums and the running log ratio of one rollout."""

    def __init__(self, start: Particles, rows: int, stride: int):
        frames = rows // stride + 1
        self.stride = stride
        self.x = _frames(start.x, frames)
        self.x[0] = start.x
        self.v = None if start.v is None else _frames(start.v, frames)
        if self.v is not None and start.v is not None:
            self.v[0] = start.v
        self.z = _frames(start.x, frames - 1)
        self.energy = start.x.new_empty(frames, len(start))
        self.has_energy = False
        self.log_ratio = torch.zeros(len(start), dtype=torch.float64, device=start.x.device)

    def row(self, k: int, p: Particles, info: Info, moved: Tensor | None) -> None:
        j, inside = divmod(k, self.stride)
        if inside == 0 and info.energy is not None:
            self.energy[j], self.has_energy = info.energy, True
        if inside == 0:
            self.z[j] = 0.0
        if info.z is not None:
            self.z[j] += _where(moved, info.z)
            if info.u is not None:
                terms = (info.u * (info.z - 0.5 * info.u)).flatten(1).sum(1)
                self.log_ratio += _where(moved, terms.double())
        if inside == self.stride - 1:
            self.x[j + 1] = p.x
            if self.v is not None and p.v is not None:
                self.v[j + 1] = p.v

    def path(self, times: Sequence[float], p: Particles, dyn: Dynamics, memory: Memory) -> Path:
        energy = None
        if self.has_energy:
            last = dyn.evaluate(times[-1], p.x)[1]
            assert last is not None
            self.energy[-1], energy = last, self.energy
        kept = torch.as_tensor(times, dtype=torch.float64)[:: self.stride]
        final = p.evolve(logw=p.logw - self.log_ratio)
        return Path(kept, self.x, self.v, self.z, energy, self.log_ratio, final, self.stride, memory)


def _frames(like: Tensor, frames: int) -> Tensor:
    """Memory for frames. On the CPU it comes from numpy, which asks for huge pages: with small ones the page faults of
    a long record cost more than native steps."""
    shape = (frames, *like.shape)
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, np.float32 if like.dtype == torch.float32 else np.float64))


def _where(moved: Tensor | None, a: Tensor) -> Tensor:
    """`a` (n, ...) with zeros for the particles that did not move."""
    return a if moved is None else torch.where(moved.view(-1, *[1] * (a.dim() - 1)), a, 0.0)
