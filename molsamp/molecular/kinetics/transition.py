"""A transition between two sets of states of a system: what the engine's rate methods need of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.ensembles import Motion, Restart, Sight
from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles
from molsamp.molecular.cvs import wrap
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.system import System
from molsamp.schema import nearest

LOOK = 10  # steps of a molecule between two looks, unless settings say otherwise


@dataclass(frozen=True)
class Transition:
    """From A, the discs of some states, to B, those of others.

    Args:
        task: system, energy, temperature.
        a, b: names of states.
        progress: a CV that rises from A to B; None for minus the distance to the nearest minimum of B.
    """

    task: Task
    a: tuple[str, ...]
    b: tuple[str, ...]
    progress: str | None = None

    @classmethod
    def of(cls, system: System, tier: str = "auto", progress: str | None = None) -> Transition:
        """From the start of a system to its end, each with all states of the region that it lies in.

        Raises:
            ValueError: start and end in one region, or a CV that the system does not have.
        """
        if progress is not None and progress not in system.cvs:
            raise ValueError(
                f"progress: {system.name} has no CV '{progress}';{nearest(progress, system.cvs)} "
                f"Allowed: {', '.join(system.cvs) or 'none'}"
            )
        a, b = (_family(system, name) for name in (system.settings.start, system.settings.end))
        if both := sorted({*a} & {*b}):
            raise ValueError(
                f"start, end: got {system.settings.start} and {system.settings.end}, both of the region of {both[0]}"
            )
        toy = system.masses is None
        dtype = torch.float64 if toy else torch.float32
        return cls(Task(system, (), system.energy(tier, dtype=dtype), dtype), a, b, progress)

    def look(self, x: Float[Tensor, "n *event"]) -> Sight:
        """Progress, and whether in A or B."""
        system = self.task.system
        a = torch.stack([system.inside(x, name) for name in self.a]).any(0)
        apart = torch.stack([system.distance(x, name) for name in self.b])
        radii = torch.tensor([system.states[name].radius for name in self.b])[:, None]
        return Sight(self._progress(x, apart), a, (apart < radii.to(apart)).any(0))

    def _progress(self, x: Tensor, apart: Tensor) -> Tensor:
        return -apart.min(0).values if self.progress is None else self.task.system.cvs[self.progress](x)[:, 0]

    @cached_property
    def minima(self) -> dict[str, float]:
        """Progress at the minimum of every state of A and B."""
        states = self.task.system.states
        return {name: self.look(states[name].x[None].to(self.task.dtype)).progress.item() for name in self.a + self.b}

    @property
    def period(self) -> float | None:
        """Of the progress, where it is a CV that has one."""
        return None if self.progress is None else self.task.system.cvs[self.progress].period[0]

    @property
    def climb(self) -> tuple[float, float, float]:
        """Progress at the minimum of A that is nearest to B, at the edge of B, and at its minimum nearest to A.

        A CV is taken to change over a disc as the distance to its middle does.

        Raises:
            ValueError: it does not rise.
        """
        radii = {name: self.task.system.states[name].radius for name in self.b}
        low, high = max(self.minima[name] for name in self.a), min(self.minima[name] for name in self.b)
        edge = min(self.minima[name] - radii[name] for name in self.b)
        if not low < edge:
            raise ValueError(
                f"progress: must rise from {', '.join(self.a)} to the edge of {', '.join(self.b)}, "
                f"got {low:.4g} and {edge:.4g}"
            )
        return low, edge, high

    def motion(self, noise: Noise, frame: float | None) -> Motion:
        """The system's dynamics, looked at every `frame` ps.

        Raises:
            ValueError: less than half a step.
        """
        task = self.task
        every = (LOOK if task.system.masses is not None else 1) if frame is None else task.rows(frame, "frame")
        return Motion(
            task.dynamics(task.energy), task.integrator, task.timestep, every, self.look, noise.child("steps")
        )

    def source(self, names: tuple[str, ...], noise: Noise) -> Restart:
        """Walkers in the minima of some states, drawn evenly, with thermal velocities."""
        minima = torch.stack([self.task.system.states[name].x for name in names]).to(self.task.dtype)

        def fresh(ids: Int[Tensor, " n"], step: int) -> Particles:
            which = noise.child("minima").integers(step, ids, (), len(minima))
            return self.task.thermal(minima[which], noise.child("velocities"), step).evolve(ids=ids)

        return fresh


def _family(system: System, name: str) -> tuple[str, ...]:
    """A state and all that share a region with it."""
    found = {name}
    for ranges in system.regions.values():
        inside = {k for k, state in system.states.items() if _lies(system, state.values, ranges)}
        found |= inside if name in inside else set()
    return tuple(k for k in system.states if k in found)


def _lies(system: System, values: dict[str, float], ranges: dict[str, tuple[float, float]]) -> bool:
    for cv, (low, high) in ranges.items():
        off = wrap(torch.tensor([[values[cv] - 0.5 * (low + high)]]), system.cvs[cv].period)
        if abs(float(off)) > 0.5 * (high - low):
            return False
    return True
