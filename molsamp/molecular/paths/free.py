"""Unbiased dynamics, the null of every path sampler, and `Batches`, the job that draws independent paths."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from molsamp.engine.rollout import rollout
from molsamp.engine.state import Memory, Particles, Path
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.settings import FreeSettings


class Batches(Sampler):
    """n independent paths, drawn batch by batch, one a unit; path i has particle id i, whatever the batch."""

    batch: int
    drawn: list[Path]

    @abstractmethod
    def _draw(self, ids: Int[Tensor, " m"]) -> Path:
        """The paths with these particle ids."""

    def _advance(self) -> dict[str, Any]:
        first = self.k * self.batch
        path = self._draw(torch.arange(first, min(first + self.batch, self.n)))
        self.drawn.append(path)
        self.k += 1
        return self._measure(path)

    def _state(self) -> dict[str, Tensor]:
        flat: dict[str, Tensor] = {}
        for i, path in enumerate(self.drawn):
            flat |= flatten_state(f"path{i}", _to_tensors(path))
        return flat

    def _load(self, state: dict[str, Tensor]) -> None:
        self.drawn = [_from_tensors(with_prefix(f"path{i}", state)) for i in range(self.k)]


class UnbiasedMD(Batches):
    """Draws from P_0 itself, or from the same dynamics at a higher temperature; arguments as in `Sampler`."""

    name = "md"
    Settings = FreeSettings

    def _begin(self) -> None:
        self.batch, self.drawn = self.settings.batch, []
        self.total = -(-self.n // self.batch)

    def _draw(self, ids: Int[Tensor, " m"]) -> Path:
        root = math.sqrt(self.settings.heat)
        start = self.problem.initial(self.noise, ids)
        if start.v is not None:
            start = start.evolve(v=root * start.v)
        p = self.problem
        return rollout(p.dynamics, p.integrator, start, p.times, noise=self.noise, heat=root)

    def paths(self) -> Paths:
        """All paths; log dP_b/dP_0 is 0, or NaN for hot ones."""
        path, heat = concatenate(self.drawn), self.settings.heat
        if heat == 1.0:
            return Paths(self.problem, path, path.log_ratio, self.name, cost=self.cost)
        note = (
            f"These paths were driven by noise of {heat:g} times the temperature: they are not draws from P_0, and "
            "no weight makes them so (two diffusions of different strength have no density with respect to each other "
            "as the timestep goes to zero)."
        )
        log_rn = torch.full_like(path.log_ratio, math.nan)
        return Paths(self.problem, path, log_rn, self.name, cost=self.cost, notes=(note,))


def concatenate(parts: list[Path]) -> Path:
    """One path record of the particles of several, on the same frames."""
    first = parts[0]

    def joined(name: str) -> Tensor | None:
        blocks = [getattr(p, name) for p in parts]
        return None if blocks[0] is None else torch.cat(blocks, dim=1)

    final = {f.name: [getattr(p.final, f.name) for p in parts] for f in fields(Particles)}
    blocks = {k: torch.cat(b) for k, b in final.items() if b[0] is not None}
    x = joined("x")
    assert x is not None
    return replace(
        first,
        x=x,
        v=joined("v"),
        z=joined("z"),
        energy=joined("energy"),
        log_ratio=torch.cat([p.log_ratio for p in parts]),
        final=Particles.from_tensors(blocks),
        memory=Memory(),
    )


def end_to_end(parts: list[Path]) -> Path:
    """One path record of rollouts that follow each other in time, each from where the one before ended."""

    def joined(name: str, frames: bool) -> Tensor | None:
        blocks = [getattr(p, name) for p in parts]
        if blocks[0] is None:
            return None
        return torch.cat([b[:-1] for b in blocks[:-1]] + blocks[-1:] if frames else blocks)

    x, times = joined("x", True), joined("times", True)
    assert x is not None and times is not None
    return replace(
        parts[-1],
        times=times,
        x=x,
        v=joined("v", True),
        z=joined("z", False),
        energy=joined("energy", True),
        log_ratio=torch.stack([p.log_ratio for p in parts]).sum(0),
    )


def _to_tensors(path: Path) -> dict[str, Tensor]:
    blocks = {k: getattr(path, k) for k in ("times", "x", "v", "z", "energy", "log_ratio")}
    flat = {k: b for k, b in blocks.items() if b is not None}
    return flat | {f"final.{k}": b for k, b in path.final.to_tensors().items()}


def _from_tensors(flat: dict[str, Tensor]) -> Path:
    final = Particles.from_tensors(with_prefix("final", flat))
    blocks = {k: flat.get(k) for k in ("times", "x", "v", "z", "energy", "log_ratio")}
    return Path(**blocks, final=final, stride=1)  # type: ignore[arg-type]
