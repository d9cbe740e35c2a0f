"""What every path sampler is given: a system, two of its states, a length, a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Overdamped, Underdamped
from molsamp.engine.integrators import EulerMaruyama, Integrator, LangevinMiddle
from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles
from molsamp.molecular.energies import Energy
from molsamp.molecular.geometry import rmsd
from molsamp.molecular.system import State, System, kB


@dataclass(frozen=True)
class Problem:
    """Paths of `steps` rows that start at the minimised start state; a hit has some frame inside the end state.

    The path ensemble: x_0 fixed, v_0 Maxwell-Boltzmann (underdamped systems), LangevinMiddle or Euler-Maruyama.

    Args:
        system: what moves.
        start, end: states of it.
        energy: evaluated at every row, counted.
        kT: kJ/mol (reduced for toys).
        timestep: ps (reduced).
        steps: rows of a path.
        friction: 1/ps; None for overdamped systems.
        dtype: of positions and velocities in rollouts.
    """

    system: System
    start: State
    end: State
    energy: Energy
    kT: float
    timestep: float
    steps: int
    friction: float | None
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        system: System,
        *,
        start: str | None = None,
        end: str | None = None,
        steps: int | None = None,
        timestep: float | None = None,
        temperature: float | None = None,
        friction: float | None = None,
        tier: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> Problem:
        """The system's own settings, with any of them replaced.

        Raises:
            ValueError: for a state the system does not have, or start and end the same.
        """
        s = system.settings
        names = (start or s.start, end or s.end)
        for name in names:
            if name not in system.states:
                raise ValueError(f"{system.name}: no state {name!r}; it has {', '.join(system.states)}")
        if names[0] == names[1]:
            raise ValueError(f"{system.name}: start and end are both {names[0]!r}; they must differ")
        return cls(
            system=system,
            start=system.states[names[0]],
            end=system.states[names[1]],
            energy=system.energy(tier, dtype=dtype),
            kT=system.kT if temperature is None else kB * temperature,
            timestep=s.timestep if timestep is None else timestep,
            steps=steps or s.steps,
            friction=s.friction if friction is None else friction,
            dtype=dtype,
        )

    @property
    def times(self) -> list[float]:
        """The grid of the rollout, `steps` + 1 times in ps."""
        return [k * self.timestep for k in range(self.steps + 1)]

    @cached_property
    def dynamics(self) -> Overdamped | Underdamped:
        """The free dynamics P_0."""
        if self.system.masses is None:
            return Overdamped(self.energy, self.kT)
        assert self.friction is not None  # schema.Settings: underdamped systems have one
        return Underdamped(self.energy, self.masses, self.kT, self.friction)

    @property
    def integrator(self) -> Integrator:
        """The scheme whose rows define P_0."""
        return EulerMaruyama() if self.system.masses is None else LangevinMiddle()

    @cached_property
    def masses(self) -> Float[Tensor, "A 1"]:
        """Da, shaped to broadcast over (n, A, 3)."""
        assert self.system.masses is not None
        return self.system.masses[:, None]

    @property
    def log_p_hit(self) -> float | None:
        """log P_0(hit) in nats as system.toml has it, where this problem is the one it was measured for."""
        s = self.system.settings
        asked = (self.start.name, self.end.name, self.steps, self.timestep, self.friction, self.kT)
        return s.log_p_hit if asked == (s.start, s.end, s.steps, s.timestep, s.friction, self.system.kT) else None

    @property
    def molecular(self) -> bool:
        """Whether configurations are atoms in space (and so are superposed before comparison)."""
        return self.system.masses is not None

    def velocities(self, noise: Noise, ids: Int[Tensor, " n"], step: int = 0) -> Tensor | None:
        """Maxwell-Boltzmann velocities, nm/ps, keyed by id; None for overdamped dynamics."""
        if not isinstance(self.dynamics, Underdamped):
            return None
        z = noise.child("velocities").normal(step, ids, self.system.event, self.dtype)
        return z * self.dynamics.thermal_speed().to(z)

    def initial(self, noise: Noise, ids: Int[Tensor, " n"]) -> Particles:
        """Particles at the minimised start with thermal velocities."""
        x = self.start.x.to(self.dtype).expand(len(ids), *self.system.event).clone()
        return Particles.at(x, self.velocities(noise, ids), ids)

    def distance(self, x: Float[Tensor, "*frames_event"], state: State | None = None) -> Float[Tensor, "*frames"]:
        """Distance of frames to the centre of a state (the end unless given), in its own metric."""
        state = state or self.end
        event = self.system.event
        flat = x.reshape(-1, *event)
        return self.system.distance(flat, state.name).view(x.shape[: x.dim() - len(event)])

    def inside(self, x: Tensor, state: State | None = None) -> Bool[Tensor, "*frames"]:
        """Whether frames are in a state (the end unless given)."""
        state = state or self.end
        return self.distance(x, state) < state.radius

    def deviation(self, x: Tensor) -> Float[Tensor, "*frames"]:
        """RMSD to the end configuration: heavy atoms after superposition (nm), or plain distance for toys."""
        event = self.system.event
        flat = x.reshape(-1, *event)
        reference = self.end.x.to(flat)
        d = rmsd(flat, reference, self.system.heavy) if self.molecular else (flat - reference).norm(dim=-1)
        return d.view(x.shape[: x.dim() - len(event)])

    @cached_property
    def floor(self) -> float:
        """Energy of the minimised start state, kJ/mol: the zero of every reported barrier; not counted."""
        before = self.energy.evaluations
        e = float(self.energy.energy(self.start.x.to(self.dtype)[None])[0])
        self.energy.evaluations = before
        return e
