"""Time reversal of the integrators' rows, exact at any timestep: what shooting backwards needs.

LangevinMiddle.  A row kicks, v -> w = v + h F/m, and then takes a drift-noise-drift step D, which is reversible for
mu = Lebesgue(x) Maxwell(v). The recorded v is so half a kick behind x; Boltzmann (up to O(h^2), as in BAOAB) is
(x, v + h F/2m), and that is the law we give the start. With R the flip of velocities, D(w -> y') mu(w) = D(Ry' -> Rw)
mu(y'), and the *same* forward row carries R w_{k+1} to R w_k. So a backward branch starts at R w_j = R(v_j + h F_j/m),
and its frame (x, v^b) is turned into (x, -v^b - h F/m). What is left over is the shadow work of the scheme,

    S_j = sum_{k<j} ln [rho(y_k) p(y_k -> y_{k+1})] / [rho(y_{k+1}) p^R(y_{k+1} -> y_k)]
        = sum_{k<j} [U_{k+1} - U_k + K(v_{k+1} + h F_{k+1}/2m) - K(v_k + h F_k/2m) + K(w_k) - K(v_{k+1})] / kT.

Euler-Maruyama.  The reversal is the forward row itself, S_j the log ratio of Metropolis-adjusted Langevin steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Overdamped
from molsamp.molecular.energies import Energy
from molsamp.molecular.paths.problem import Problem


class Frames(NamedTuple):
    """M trajectories at F frames with all that a reversal needs; v is None for overdamped dynamics."""

    x: Float[Tensor, "F M *event"]
    v: Float[Tensor, "F M *event"] | None
    energy: Float[Tensor, "F M"]
    force: Float[Tensor, "F M *event"]

    def gather(self, frame: Int[Tensor, "G M"]) -> Frames:
        """New trajectories whose frame g is the old frame[g]."""
        chain = torch.arange(frame.shape[1])
        return Frames(*(None if a is None else a[frame, chain] for a in self))  # type: ignore[arg-type]

    def columns(self, index: Tensor) -> Frames:
        """The trajectories at `index`, numbers or a mask."""
        return Frames(*(None if a is None else a[:, index] for a in self))  # type: ignore[arg-type]

    def put(self, index: Tensor, other: Frames) -> None:
        """Write other trajectories over those at `index`."""
        for mine, new in zip(self, other, strict=True):
            if mine is not None and new is not None:
                mine[:, index] = new


def side_by_side(parts: Sequence[Frames]) -> Frames:
    """The trajectories of all parts."""
    blocks = zip(*parts, strict=True)
    return Frames(*(None if any(a is None for a in b) else torch.cat(b, 1) for b in blocks))  # type: ignore[arg-type]


class Recording(Energy):
    """An energy that keeps the force of every call: one a frame of a rollout."""

    def __init__(self, base: Energy):
        self.base, self.event = base, base.event
        self.forces: list[Tensor] = []

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = self.base.energy_force(x)
        self.forces.append(F)
        return E, F


class Recalled:
    """A field that recalls what was evaluated before, for densities of paths whose forces are known.

    Args:
        energy, force: of the configurations that it will be asked about, in their order.
    """

    def __init__(self, energy: Float[Tensor, " n"], force: Float[Tensor, "n *event"]):
        self.energy, self.force = energy, force

    def energy_force(self, x: Float[Tensor, "n *event"]) -> tuple[Tensor, Tensor]:
        """What it was given."""
        return self.energy, self.force


class Reversal:
    """Kicks, shadow work and fresh velocities of one problem's integrator; see the head of this file."""

    def __init__(self, problem: Problem):
        self.problem, self.h = problem, problem.timestep

    def kick(self, force: Tensor, share: float) -> Tensor:
        """share x h F / m."""
        return share * self.h * force / self.problem.masses.to(force)

    def turned(self, v: Tensor | None, force: Tensor) -> Tensor | None:
        """The velocity of the same state seen in reversed time, -v - h F/m; its own inverse."""
        return None if v is None else -v - self.kick(force, 1.0)

    def fresh(self, force: Float[Tensor, "M *event"], z: Float[Tensor, "M *event"]) -> Tensor | None:
        """A recorded velocity v = v_MB - h F/2m with v_MB Maxwell-Boltzmann from normals z."""
        dyn = self.problem.dynamics
        if isinstance(dyn, Overdamped):
            return None
        return z * dyn.thermal_speed().to(z) - self.kick(force, 0.5)

    def shadow(self, f: Frames) -> Float[Tensor, "F M"]:
        """S_j for every frame j, float64, S_0 = 0."""
        kT, F = self.problem.kT, f.force.double()
        steps = f.energy.double().diff(dim=0) / kT
        if f.v is None:
            x, var = f.x.double(), 2.0 * kT * self.h
            there = x[1:] - x[:-1] - self.h * F[:-1]
            back = x[:-1] - x[1:] - self.h * F[1:]
            steps = steps + (back.square() - there.square()).flatten(2).sum(2) / (2.0 * var)
        else:
            v, m = f.v.double(), self.problem.masses

            def K(u: Tensor) -> Tensor:
                return 0.5 * (m * u.square()).flatten(2).sum(2)

            middle, after = K(v + self.kick(F, 0.5)), K(v + self.kick(F, 1.0))
            steps = steps + (middle.diff(dim=0) + after[:-1] - K(v)[1:]) / kT
        return torch.cat([torch.zeros_like(steps[:1]), steps]).cumsum(0)
