"""Stochastic dynamics: what drives a particle, apart from how a step is taken.

Every dynamics answers `evaluate(t, x) -> (g, energy)`: g is what an integrator's rows store and weigh (a drift,
an acceleration or a data prediction), energy is the potential at x where there is one, since it comes for free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.schedules import Schedule


@runtime_checkable
class Field(Protocol):
    """A potential energy: batch of configurations to (energy (n,), force (n, *event))."""

    def energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Dynamics(Protocol):
    """The right-hand side that rows evaluate; `blocks` names the state blocks it moves, ("x",) or ("x", "v")."""

    @property
    def blocks(self) -> tuple[str, ...]: ...

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Overdamped:
    """dx = mobility F(x) dt + sqrt(2 kT mobility) dW.

    Args:
        field: energy in kJ/mol (or reduced) and force.
        kT: in the energy's unit.
        mobility: 1 / (mass x friction) in nm^2 mol/(kJ ps), or 1 in reduced units.
    """

    field: Field
    kT: float
    mobility: float = 1.0
    blocks = ("x",)

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(drift, energy)."""
        energy, force = self.field.energy_force(x)
        return self.mobility * force, energy

    def diffusion(self, t: float) -> float:
        """The coefficient of dW."""
        return (2.0 * self.kT * self.mobility) ** 0.5


@dataclass(frozen=True)
class Underdamped:
    """dx = v dt, dv = (F(x) / m - friction v) dt + sqrt(2 friction kT / m) dW.

    Args:
        field: energy in kJ/mol and force in kJ/mol/nm.
        masses: Da, broadcastable against x, for example (A, 1).
        kT: kJ/mol.
        friction: 1/ps.
    """

    field: Field
    masses: Tensor
    kT: float
    friction: float
    blocks = ("x", "v")

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(acceleration in nm/ps^2, energy in kJ/mol)."""
        energy, force = self.field.energy_force(x)
        return force / self.masses.to(force.dtype), energy

    def thermal_speed(self) -> Tensor:
        """Standard deviation of the Maxwell-Boltzmann velocity, sqrt(kT / m), nm/ps."""
        return (self.kT / self.masses) ** 0.5


@dataclass(frozen=True)
class LinearSDE:
    """Diffusion model q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) with a data prediction E[x_0 | x_t].

    Args:
        schedule: alpha and sigma.
        denoise: (x, t) -> prediction of x_0, the shape of x.
        stores: what an evaluation is for integrators, the "data" prediction or the "noise" prediction
            (x - alpha x_0) / sigma that goes with it.
    """

    schedule: Schedule
    denoise: Callable[[Tensor, float], Tensor]
    stores: Literal["data", "noise"] = "data"
    blocks = ("x",)

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(prediction, None)."""
        D = self.denoise(x, t)
        return (D if self.stores == "data" else self._noise(x, D, t)), None

    def _noise(self, x: Tensor, D: Tensor, t: float) -> Tensor:
        sigma = self.schedule.sigma(t)
        return torch.add(x / sigma, D, alpha=-self.schedule.alpha(t) / sigma)

    def score(self, x: Tensor, t: float) -> Tensor:
        """grad log q_t(x) = (alpha_t E[x_0 | x] - x) / sigma_t^2."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (alpha * self.denoise(x, t) - x) / sigma**2


@dataclass(frozen=True)
class Ito:
    """dx = drift(t, x) dt + diffusion(t) dW for given functions.

    Args:
        drift: (t, x) -> the shape of x.
        spread: t -> coefficient of dW; 0 makes it an ordinary differential equation.
    """

    drift: Callable[[float, Tensor], Tensor]
    spread: Callable[[float], float]
    blocks = ("x",)

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(drift, None)."""
        return self.drift(t, x), None

    def diffusion(self, t: float) -> float:
        """The coefficient of dW."""
        return self.spread(t)


def reverse(sde: LinearSDE) -> Ito:
    """Time reversal of a diffusion, dx = [f x - g^2 score] dt + g dW with time running down (Anderson 1982)."""
    return Ito(
        lambda t, x: sde.schedule.f(t) * x - sde.schedule.g2(t) * sde.score(x, t),
        lambda t: sde.schedule.g2(t) ** 0.5,
    )


def flow(sde: LinearSDE) -> Ito:
    """Probability-flow ODE, dx = [f x - g^2 score / 2] dt, with the same marginals (Song et al. 2021, eq. 13)."""
    return Ito(lambda t, x: sde.schedule.f(t) * x - 0.5 * sde.schedule.g2(t) * sde.score(x, t), lambda t: 0.0)


@dataclass(frozen=True)
class Controlled:
    """A base dynamics whose noise is shifted by a control: each row's z becomes u + z.

    The control enters nowhere else, so the controlled and the free path measures are mutually absolutely
    continuous and log dP_u/dP_0 = sum u (z + u) - |u|^2 / 2, with z the noise that was drawn.

    Args:
        base: the free dynamics.
        control: (t, x, v) -> u in noise units, (n, *event).
        hold: rows for which one u is kept; exact, since u may depend on the past.
    """

    base: Dynamics
    control: Callable[[float, Tensor, Tensor | None], Tensor]
    hold: int = 1

    @property
    def blocks(self) -> tuple[str, ...]:
        """The state blocks of the base dynamics."""
        return self.base.blocks

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The base dynamics' answer."""
        return self.base.evaluate(t, x)


def centred(u: Float[Tensor, "n A 3"], masses: Float[Tensor, "A 1"]) -> Float[Tensor, "n A 3"]:
    """The part of u, in noise units, that moves no centre of mass: u - sqrt(m) sum(sqrt(m) u) / sum(m)."""
    root = masses.to(u.dtype).sqrt()
    return u - root * (torch.einsum("nad,ab->nd", u, root) / (root**2).sum())[:, None, :]
