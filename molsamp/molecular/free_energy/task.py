"""What every free-energy method is given: a system, one or two of its collective variables, a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.dynamics import Overdamped, Underdamped
from molsamp.engine.integrators import EulerMaruyama, Integrator, LangevinMiddle
from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles
from molsamp.molecular.cvs import CV, Stack, wrap
from molsamp.molecular.energies import Energy
from molsamp.molecular.free_energy.settings import GridSettings
from molsamp.molecular.grids import Grid
from molsamp.molecular.system import State, System
from molsamp.schema import nearest


@dataclass(frozen=True)
class Task:
    """The free energy F(s) of `cvs` for the canonical ensemble of a system, sampled by its own dynamics.

    Args:
        system: what moves, with the settings that are in force.
        cvs: one or two of its CVs.
        energy: without bias; counted by whoever calls it.
        dtype: of positions and velocities.
    """

    system: System
    cvs: tuple[CV, ...]
    energy: Energy
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, system: System, cvs: Sequence[str] = (), tier: str = "auto", dtype: torch.dtype = torch.float32
    ) -> Task:
        """A task on CVs by name; the first two of the system unless given.

        Raises:
            ValueError: a CV that the system does not have, none at all, or more than two.
        """
        names = tuple(cvs) or tuple(system.cvs)[:2]
        for name in names:
            if name not in system.cvs:
                hint = nearest(name, system.cvs)
                raise ValueError(f"{system.name}: no CV {name!r};{hint} Allowed: {', '.join(system.cvs)}")
        if not 1 <= len(set(names)) == len(names) <= 2:
            raise ValueError(f"{system.name}: a free energy takes one or two CVs, got {', '.join(names) or 0}")
        return cls(system, tuple(system.cvs[name] for name in names), system.energy(tier, dtype=dtype), dtype)

    @cached_property
    def cv(self) -> Stack:
        """The CVs side by side."""
        return Stack(self.cvs)

    @property
    def kT(self) -> float:
        """kJ/mol (reduced for toys)."""
        return self.system.kT

    @property
    def timestep(self) -> float:
        """ps (reduced)."""
        return self.system.settings.timestep

    @property
    def integrator(self) -> Integrator:
        """LangevinMiddle, or Euler-Maruyama where the dynamics is overdamped."""
        return EulerMaruyama() if self.system.masses is None else LangevinMiddle()

    def dynamics(self, energy: Energy, friction: float | None = None) -> Overdamped | Underdamped:
        """The system's dynamics under an energy, which is its own with a bias or without; friction in 1/ps."""
        if self.system.masses is None:
            return Overdamped(energy, self.kT)
        friction = self.system.settings.friction if friction is None else friction
        assert friction is not None  # schema.Settings: underdamped systems have one
        return Underdamped(energy, self.system.masses[:, None], self.kT, friction)

    def rows(self, time: float, what: str) -> int:
        """Steps in a time.

        Raises:
            ValueError: less than half a step.
        """
        rows = round(time / self.timestep)
        if rows < 1:
            raise ValueError(f"{what}: got {time:g}, which is less than the timestep of {self.timestep:g}")
        return rows

    def start(self, noise: Noise, n: int, states: Sequence[str]) -> Particles:
        """n walkers with thermal velocities in the minima of these states in turn."""
        ids = torch.arange(n)
        minima = torch.stack([self.system.states[name].x for name in states]).to(self.dtype)
        return self.thermal(minima[ids % len(minima)], noise.child("velocities"))

    def thermal(self, x: Float[Tensor, "n *event"], noise: Noise, step: int = 0) -> Particles:
        """Walkers at x with velocities drawn from Maxwell-Boltzmann, where there are any."""
        dyn = self.dynamics(self.energy)
        if not isinstance(dyn, Underdamped):
            return Particles.at(x)
        z = noise.normal(step, torch.arange(len(x)), self.system.event, self.dtype)
        return Particles.at(x, z * dyn.thermal_speed().to(z))

    def grid(self, settings: GridSettings) -> Grid:
        """The grid of the settings over the CVs: the ranges given there, else the period, else the system's own range.

        Raises:
            ValueError: a CV without a period and without a range.
        """
        given = settings.ranges or tuple(self._range(*axis) for axis in zip(self.cv.names, self.cv.period, strict=True))
        return Grid(self.cv.names, self.cv.period, given, (settings.nodes,) * len(given))

    def _range(self, name: str, period: float | None) -> tuple[float, float]:
        if (span := self.system.span(name, period)) is not None:
            return span
        raise ValueError(
            f"grid.ranges: CV {name!r} has no period and needs a range, [[low, high], ...]; "
            f"or give range = [low, high] in [cvs.{name}] of system.toml"
        )

    def regions(self, grid: Grid) -> dict[str, Bool[np.ndarray, "*N"]]:
        """Cells of each region of the system, or of the discs of its states where it names none.

        Raises:
            ValueError: a region by a CV that this task does not have.
        """
        points, found = torch.from_numpy(grid.points()), {}
        for name, ranges in self.system.regions.items():
            inside = torch.ones(len(points), dtype=torch.bool)
            for cv, (low, high) in ranges.items():
                if cv not in self.cv.names:
                    raise ValueError(f"regions.{name}: is told by CV {cv!r}; take it among the CVs of the free energy")
                axis = self.cv.names.index(cv)
                off = wrap(points[:, axis, None] - 0.5 * (low + high), self.cv.period[axis : axis + 1])
                inside &= off[:, 0].abs() <= 0.5 * (high - low)
            found[name] = inside
        if not found:
            found = {name: self._disc(points, state) for name, state in self.system.states.items()}
        return {name: inside.numpy().reshape(grid.shape) for name, inside in found.items()}

    def _disc(self, points: Float[Tensor, "M k"], state: State) -> Bool[Tensor, " M"]:
        centre = torch.tensor([state.values[name] for name in self.cv.names], dtype=torch.float64)
        return torch.linalg.vector_norm(wrap(points - centre, self.cv.period), dim=-1) < state.radius

    def values(self, x: Float[Tensor, "*frames_event"]) -> Float[Tensor, "*frames k"]:
        """CV values of frames."""
        event = self.system.event
        return self.cv(x.reshape(-1, *event)).view(*x.shape[: x.dim() - len(event)], -1)
