"""What moves and what is recorded: `Particles` (the next step needs it), `Path` (a human needs it)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Status(IntEnum):
    """Fate of one particle; a particle that is not OK is frozen at its last good state."""

    OK = 0
    DIVERGED = 1
    DONE = 2


@dataclass(frozen=True)
class Particles:
    """A batch of n particles.

    Args:
        x: positions, (n, *event).
        v: velocities, (n, *event), or None for overdamped dynamics and images.
        logw: log importance weights in nats, (n,), float64.
        status: `Status` of each particle, (n,), int8.
        ids: keys of the particles' noise, (n,), int64; a resampled clone gets a new one.
    """

    x: Float[Tensor, "n *event"]
    v: Float[Tensor, "n *event"] | None
    logw: Float[Tensor, " n"]
    status: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]

    @classmethod
    def at(cls, x: Tensor, v: Tensor | None = None, ids: Tensor | None = None) -> Particles:
        """Fresh particles at x (and v) with zero log weight and ids 0..n-1 unless given."""
        n, device = len(x), x.device
        return cls(
            x=x,
            v=v,
            logw=torch.zeros(n, dtype=torch.float64, device=device),
            status=torch.zeros(n, dtype=torch.int8, device=device),
            ids=torch.arange(n, device=device) if ids is None else ids,
        )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Particles:
        """The particles at `index` (clones keep their ids; see `particles.resample` for new ones)."""
        return self.evolve(**{k: None if b is None else b[index] for k, b in _blocks(self)})

    def evolve(self, **blocks) -> Particles:
        """A copy with some blocks replaced."""
        return replace(self, **blocks)

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        return {k: b for k, b in _blocks(self) if b is not None}

    @classmethod
    def from_tensors(cls, blocks: dict[str, Tensor]) -> Particles:
        """The inverse of `to_tensors`."""
        return cls(blocks["x"], blocks.get("v"), blocks["logw"], blocks["status"], blocks["ids"])


class Memory(NamedTuple):
    """What a row hands to the next besides the particles: past evaluations (newest first) and a held control."""

    history: tuple[Tensor, ...] = ()
    held: Tensor | None = None


@dataclass(frozen=True)
class Path:
    """A record of n particles at F frames, saved every `stride` rows of the rollout.

    Args:
        times: (F,).
        x: (F, n, *event).
        v: (F, n, *event) or None.
        z: total standard-normal displacement (control + noise, in units of the row's N) summed over the
            rows between frame j and j + 1, (F - 1, n, *event); with stride 1 it is the residual of each row.
            Zero for the rows in which a particle was frozen.
        energy: energy at each frame in kJ/mol, (F, n), or None where the dynamics has none.
        log_ratio: log dP_u/dP_0 of the control that drove the path, nats, (n,), float64; 0 without one.
        final: the particles at the end, ready for the next rollout.
        stride: rows between frames.
        memory: what the last row hands on, for the next rollout.
    """

    times: Float[Tensor, " F"]
    x: Float[Tensor, "F n *event"]
    v: Float[Tensor, "F n *event"] | None
    z: Float[Tensor, "F-1 n *event"] | None
    energy: Float[Tensor, "F n"] | None
    log_ratio: Float[Tensor, " n"]
    final: Particles
    stride: int
    memory: Memory = field(default_factory=Memory)

    def __len__(self) -> int:
        return len(self.times)

    def frame(self, j: int) -> Particles:
        """The particles at frame j."""
        return Particles.at(self.x[j], None if self.v is None else self.v[j], self.final.ids)


def _blocks(p: Particles) -> list[tuple[str, Tensor | None]]:
    return [(f.name, getattr(p, f.name)) for f in fields(p)]
