"""Steered populations of a molecule or a toy as resumable work, beside the same ones without a reward.

A unit is a replica: m particles, carried twice from the same starts with the same noise, once by `engine.steer` and
once freely, where the reward weighs them at the end alone. So every number has its control, and log Z a second
estimate, which is worth as much as it has effective samples. Here particles are walkers of the system's own dynamics,
from one state and with thermal velocities; those of a trained sampler stand in `learned`.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles, Status
from molsamp.engine.steering import Collapse, Kind, Value, annealed, steer, unforeseen
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.cvs import CV, Stack
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.schema import check_known
from molsamp.molecular.steering.populations import Population, even, gain, joined, stacked, unstacked
from molsamp.molecular.steering.rewards import Tilt
from molsamp.molecular.steering.settings import FKSettings
from molsamp.molecular.work import Work

BOUNDARIES = 20  # on the way, unless settings say otherwise


@dataclass(frozen=True)
class Aim:
    """What walkers are steered to.

    Args:
        task: system, energy, temperature; its own CVs are not used.
        tilt: the reward, nats.
        start: the state in whose minimum all walkers start.
    """

    task: Task
    tilt: Tilt
    start: str

    @cached_property
    def quantities(self) -> Stack:
        """What rewards are about, then the other CVs of the system."""
        cvs: dict[str, CV] = {term.cv.names[0]: term.cv for term in self.tilt.terms}
        return Stack([*{**cvs, **self.task.system.cvs}.values()])


class Steering(Work):
    """Replicas of steered and of free populations; what moves them, and what is told of the reward, say subclasses.

    Args:
        aim: what to.
        settings, noise, overrides: as in `Work`.
    """

    movers: ClassVar[str]
    advice: ClassVar[str]  # against collapse
    sooner: ClassVar[str]  # why weighing at the end alone may tell more
    clock: ClassVar[str | None] = None  # what boundaries are numbered by, where that is no time
    kind: Kind = "difference"
    every: int
    times: list[float]

    def __init__(self, aim: Aim, settings: Any = None, noise: Noise | None = None, **overrides: Any):
        self.aim = aim
        super().__init__(settings, noise, **overrides)

    def _begin(self) -> None:
        self.total = self.settings.replicas
        self.steered: list[Population] = []
        self.free: list[Population] = []

    @property
    def boundaries(self) -> list[float]:
        """Times of the start and of all boundaries, ps."""
        return [*self.times[:: self.every], *([self.times[-1]] if (len(self.times) - 1) % self.every else [])]

    @property
    def origin(self) -> str:
        """Where particles start, in a word."""
        return self.aim.start

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def _start(self, noise: Noise) -> Particles:
        """A population at its start."""

    @abstractmethod
    def _motion(self) -> tuple[Dynamics, Integrator]:
        """By what the free law is drawn."""

    @abstractmethod
    def _value(self, noise: Noise) -> Value:
        """What is told of the reward on the way."""

    def _stream(self, noise: Noise) -> Noise:
        """Keys of what the dynamics draws."""
        return noise

    @abstractmethod
    def _weighed(self, found: Steered, x: Sequence[Tensor]) -> Steered:
        """With all weights that are not the reward's; x is where particles were at the start and at all boundaries."""

    def before(self, weighed: Steered) -> Steered:
        """The free populations with those weights alone."""
        return even(weighed)

    # ---------------------------------------------------------------- units

    def _advance(self) -> dict[str, Any]:
        s, noise = self.settings, self.noise.child(f"replica{self.k}")
        start = self._start(noise.child("start"))
        free = self._population(start, noise, unforeseen, 0.0)
        steered = self._population(start, noise, self._value(noise), s.below)
        self.free.append(free)
        self.steered.append(steered)
        self.k += 1
        log_z = gain(joined(self.steered), self.before(joined(self.free))).value
        return {"ess": float(steered.effective[-1]), "log_z": log_z, "note": f"ESS {float(steered.effective[-1]):.1f}"}

    def _population(self, start: Particles, noise: Noise, value: Value, below: float) -> Population:
        s, seen = self.settings, [start.x]

        def each(row: int, cloud: Particles, ancestors: Tensor) -> None:
            self._check()
            seen.append(cloud.x)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Collapse)  # told in the results
            found = steer(
                *self._motion(), start, self.times, self.aim.tilt, noise=self._stream(noise), value=value,
                kind=self.kind, every=self.every, scheme=s.scheme, below=below, each=each,
            )  # fmt: skip
        found = self._weighed(found, seen)
        lost = float((found.particles.status == Status.DIVERGED).double().mean())
        if lost > s.diverged:
            raise RuntimeError(
                f"{lost:.0%} of the {self.movers} of replica {self.k} diverged, allowed is {s.diverged:.0%}"
            )
        return Population.of(found, [self.aim.quantities(x) for x in seen])

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        return flatten_state("steered", stacked(self.steered)) | flatten_state("free", stacked(self.free))

    def _load(self, state: dict[str, Tensor]) -> None:
        self.steered, self.free = (unstacked(with_prefix(name, state)) for name in ("steered", "free"))


class FeynmanKac(Steering):
    """Feynman-Kac steering of walkers.

    Raises:
        ValueError: as `Work`, or a length or `every` of less than half a step, `every` beyond the length, or a memory
            with a potential that has none.
    """

    name = "fk"
    Settings = FKSettings
    movers = "walkers"
    advice = "More `particles`, a weaker reward or nearer boundaries (`every`) help."
    sooner = "the reward is told too early (give a `memory`), or needs no steering"

    def _begin(self) -> None:
        super()._begin()
        s, task = self.settings, self.aim.task
        length = task.system.settings.steps * task.timestep if s.length is None else s.length
        rows = task.rows(length, "length")
        self.every = max(1, rows // BOUNDARIES) if s.every is None else task.rows(s.every, "every")
        if self.every > rows:
            raise ValueError(f"every: got {s.every:g}, which is beyond the length of {length:g}")
        if s.memory is not None and s.potential != "difference":
            raise ValueError(f"memory: goes with potential = difference, got {s.potential}")
        self.times, self.kind = [k * task.timestep for k in range(rows + 1)], s.potential

    def _start(self, noise: Noise) -> Particles:
        return self.aim.task.start(noise, self.settings.particles, (self.aim.start,))

    def _motion(self) -> tuple[Dynamics, Integrator]:
        task = self.aim.task
        return task.dynamics(task.energy), task.integrator

    def _value(self, noise: Noise) -> Value:
        s, tilt, B, last = self.settings, self.aim.tilt, len(self.boundaries) - 1, self.times[-1]
        if s.memory is not None:
            return lambda t, p: math.exp((t - last) / s.memory) * tilt(p.x)
        if s.potential == "difference":
            return annealed(tilt, self.times[0], last)
        shares = B if s.potential == "max" else B * (B + 1) / 2
        return lambda t, p: tilt(p.x) / shares

    def _weighed(self, found: Steered, x: Sequence[Tensor]) -> Steered:
        self.evaluations += self.settings.particles * (len(self.times) - 1)
        return found


def aim(system: Any, rewards: tuple[str, ...], strength: float, tier: str = "auto") -> Aim:
    """An aim from the words of its rewards, at the start state of the system; toys in float64.

    Raises:
        ValueError: rewards that are no rewards of this system, see `Tilt.of`.
    """
    check_known("start", system.settings.start, system.states, "states")
    dtype = torch.float64 if system.masses is None else torch.float32
    tilt = Tilt.of(system, rewards, strength)
    return Aim(Task(system, (), system.energy(tier, dtype=dtype), dtype), tilt, system.settings.start)
