"""Steered walkers of a molecule or a toy as resumable work, beside the same walkers without a reward.

A unit is a replica: m walkers from one state, with thermal velocities, on the system's own dynamics. They are carried
twice from the same starts with the same noise, once by `engine.steer` and once freely, where the reward weighs them at
the end alone. So every number has its control, and log Z a second estimate, which is worth as much as it has effective
samples.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles, Status
from molsamp.engine.steering import Collapse, Value, annealed, steer, unforeseen
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.cvs import CV, Stack
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.schema import check_known
from molsamp.molecular.steering.populations import Population, joined, stacked, unstacked
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


class FeynmanKac(Work):
    """Feynman-Kac steering.

    Args:
        aim: what to.
        settings, noise, overrides: as in `Work`.

    Raises:
        ValueError: as `Work`, or a length or `every` of less than half a step, `every` beyond the length, or a memory
            with a potential that has none.
    """

    name = "fk"
    Settings = FKSettings

    def __init__(self, aim: Aim, settings: Any = None, noise: Noise | None = None, **overrides: Any):
        self.aim = aim
        super().__init__(settings, noise, **overrides)

    def _begin(self) -> None:
        s, task = self.settings, self.aim.task
        length = task.system.settings.steps * task.timestep if s.length is None else s.length
        rows = task.rows(length, "length")
        self.every = max(1, rows // BOUNDARIES) if s.every is None else task.rows(s.every, "every")
        if self.every > rows:
            raise ValueError(f"every: got {s.every:g}, which is beyond the length of {length:g}")
        if s.memory is not None and s.potential != "difference":
            raise ValueError(f"memory: goes with potential = difference, got {s.potential}")
        self.times = [k * task.timestep for k in range(rows + 1)]
        self.total = s.replicas
        self.steered: list[Population] = []
        self.free: list[Population] = []

    @property
    def boundaries(self) -> list[float]:
        """Times of the start and of all boundaries, ps."""
        return [*self.times[:: self.every], *([self.times[-1]] if (len(self.times) - 1) % self.every else [])]

    # ---------------------------------------------------------------- units

    def _advance(self) -> dict[str, Any]:
        s, noise = self.settings, self.noise.child(f"replica{self.k}")
        start = self.aim.task.start(noise.child("start"), s.particles, (self.aim.start,))
        free = self._population(start, noise, unforeseen, 0.0)
        steered = self._population(start, noise, self._value(), s.below)
        self.free.append(free)
        self.steered.append(steered)
        self.k += 1
        log_z = joined(self.steered).pooled_log_z().value
        return {"ess": float(steered.effective[-1]), "log_z": log_z, "note": f"ESS {float(steered.effective[-1]):.1f}"}

    def _value(self) -> Value:
        """What is told of the reward on the way."""
        s, tilt, B, last = self.settings, self.aim.tilt, len(self.boundaries) - 1, self.times[-1]
        if s.memory is not None:
            return lambda t, p: math.exp((t - last) / s.memory) * tilt(p.x)
        if s.potential == "difference":
            return annealed(tilt, self.times[0], last)
        shares = B if s.potential == "max" else B * (B + 1) / 2
        return lambda t, p: tilt(p.x) / shares

    def _population(self, start: Particles, noise: Noise, value: Value, below: float) -> Population:
        s, task, seen = self.settings, self.aim.task, [self.aim.quantities(start.x)]

        def each(row: int, cloud: Particles, ancestors: Tensor) -> None:
            self._check()
            seen.append(self.aim.quantities(cloud.x))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Collapse)  # told in the results
            found = steer(
                task.dynamics(task.energy), task.integrator, start, self.times, self.aim.tilt, noise=noise, value=value,
                kind=s.potential, every=self.every, scheme=s.scheme, below=below, each=each,
            )  # fmt: skip
        self.evaluations += len(start) * (len(self.times) - 1)
        lost = float((found.particles.status == Status.DIVERGED).double().mean())
        if lost > s.diverged:
            raise RuntimeError(f"{lost:.0%} of the walkers of replica {self.k} diverged, allowed is {s.diverged:.0%}")
        return Population.of(found, seen)

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        return flatten_state("steered", stacked(self.steered)) | flatten_state("free", stacked(self.free))

    def _load(self, state: dict[str, Tensor]) -> None:
        self.steered, self.free = (unstacked(with_prefix(name, state)) for name in ("steered", "free"))


def aim(system: Any, rewards: tuple[str, ...], strength: float, tier: str = "auto") -> Aim:
    """An aim from the words of its rewards, at the start state of the system; toys in float64.

    Raises:
        ValueError: rewards that are no rewards of this system, see `Tilt.of`.
    """
    check_known("start", system.settings.start, system.states, "states")
    dtype = torch.float64 if system.masses is None else torch.float32
    tilt = Tilt.of(system, rewards, strength)
    return Aim(Task(system, (), system.energy(tier, dtype=dtype), dtype), tilt, system.settings.start)
