"""log h(t, x, v), the log probability to reach the end state in the time that is left, as a network.

h is what a sampler of transition paths needs to know and all it needs to know (Doob's h-transform): paths weighted by
h(t, x_t, v_t) on the way survive as the paths that hit do, and the control

    u* = N d(log h) / d(noisy block),    N the amplitude of the row's noise,

turns P_0 into P_0 given a hit. Here the network is a sum of two: a coarse one that sees torsions and the velocities
along their tangents, and a fine one that also sees every atom's place and velocity in the body frame, without which
a tenth of a picosecond cannot be foretold (angles that bend carry the torsions along).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.dynamics import Underdamped, centred
from molsamp.engine.noise import Noise
from molsamp.learn.networks import MLP
from molsamp.molecular.geometry import Superposition, flat
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.torsions import turning


class Sight(NamedTuple):
    """Features of frames (n, k), and the map of a gradient in them to one in the noisy block, thermal units."""

    features: Tensor
    lift: Callable[[Tensor], Tensor]


class View(Protocol):
    """What a value function sees; `coarse` and `fine` make network inputs of the features, differentiably.

    What only the fine network needs is left out unless `sharp`. `soft` gives orthonormal directions (k, D) in which a
    start velocity, in thermal units, matters most.
    """

    widths: tuple[int, int]

    def __call__(self, x: Tensor, v: Tensor | None, sharp: bool) -> Sight: ...

    def soft(self, x: Tensor, v: Tensor) -> Tensor: ...

    def coarse(self, features: Tensor) -> Tensor: ...

    def fine(self, features: Tensor) -> Tensor: ...


class Plain:
    """x itself, and v in thermal units: enough for toys, whose fine network sees nothing more."""

    def __init__(self, problem: Problem):
        size = math.prod(problem.system.event)
        self.moves, dyn = problem.system.masses is not None, problem.dynamics
        self.thermal = dyn.thermal_speed() if isinstance(dyn, Underdamped) else None
        self.widths = (size * (1 + self.moves), 0)

    def __call__(self, x: Tensor, v: Tensor | None, sharp: bool) -> Sight:
        if v is None or self.thermal is None:
            return Sight(x.flatten(1), lambda g: g.view_as(x))
        w = (v / self.thermal.to(v)).flatten(1)
        return Sight(torch.cat([x.flatten(1), w], 1), lambda g: g[:, w.shape[1] :].view_as(x))

    def soft(self, x: Tensor, v: Tensor) -> Tensor:
        """All directions."""
        return torch.eye(x.numel(), dtype=x.dtype)

    def coarse(self, features: Tensor) -> Tensor:
        """The features."""
        return features

    def fine(self, features: Tensor) -> Tensor:
        """Nothing more."""
        return features[:, :0]


class Molecule:
    """Torsions about every bond that turns and the velocities along their tangents; atoms in the body frame.

    Features: sin, cos and tangent velocity of C torsions, (y - y_end) / 0.1 nm and thermal velocity of A atoms in the
    frame superposed on the end configuration, the centre of mass at rest.

    Raises:
        ValueError: see `torsions.turning`.
    """

    LENGTH = 0.1  # nm

    def __init__(self, problem: Problem):
        torsions, sides = zip(*turning(problem.system), strict=True)
        self.atoms, self.sides = np.array([cv.atoms for cv in torsions]), np.stack(sides)
        self.masses, self.kT, dtype = problem.masses, problem.kT, problem.dtype
        self.root = problem.masses.double().sqrt().flatten().numpy()
        self.thermal = problem.dynamics.thermal_speed().to(dtype)  # type: ignore[union-attr]
        self.superposition, self.end = Superposition(problem.end.x, problem.system.heavy), problem.end.x.to(dtype)
        self.C, self.A = len(torsions), len(self.root)
        self.widths = (5 * self.C + 4 * (self.C > 1), 6 * self.A)

    def __call__(self, x: Tensor, v: Tensor | None, sharp: bool) -> Sight:
        assert v is not None
        n, C, A = len(x), self.C, self.A
        s, d = self._tangents(x, v)

        def turn(g: Tensor) -> Tensor:
            return torch.einsum("nc,nck->nk", g[:, 2 * C : 3 * C], d).view(n, A, 3)

        if not sharp:
            return Sight(s, turn)
        R, shift = self.superposition(x)
        y = (torch.baddbmm(shift[:, None], x, R.mT) - self.end) / self.LENGTH
        w = centred(v / self.thermal, self.masses) @ R.mT

        def lift(g: Tensor) -> Tensor:
            return centred(turn(g) + g[:, 3 * C + 3 * A :].view(n, A, 3) @ R, self.masses)

        return Sight(torch.cat([s, y.flatten(1), w.flatten(1)], 1), lift)

    def _tangents(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """sin, cos, tangent velocity (n, 3 C) and tangents (n, C, 3 A)."""
        from molsamp.molecular.native.tangents import tangents

        s, d = x.new_empty(len(x), 3 * self.C), x.new_empty(len(x), self.C, 3 * self.A)
        tangents(flat(x), flat(v), self.atoms, self.sides, self.root, self.kT, s.numpy(), d.numpy())
        return s, d

    def soft(self, x: Tensor, v: Tensor) -> Tensor:
        """The span of the tangents at one configuration."""
        d = self._tangents(x[None], v[None])[1][0]
        return torch.linalg.qr(d.T.double()).Q.T.to(x)

    def coarse(self, features: Tensor) -> Tensor:
        """First and second harmonics of the torsions, the products of the first two, bounded tangent velocities."""
        C = self.C
        sine, cosine, speed = features[:, :C], features[:, C : 2 * C], features[:, 2 * C : 3 * C]
        parts = [sine, cosine, 2.0 * sine * cosine, cosine**2 - sine**2, bounded(speed)]
        if C > 1:
            first, second = (torch.stack([sine[:, c], cosine[:, c]], 1) for c in (0, 1))
            parts.append((first[:, :, None] * second[:, None]).flatten(1))
        return torch.cat(parts, 1)

    def fine(self, features: Tensor) -> Tensor:
        """Bounded places and velocities of the atoms."""
        own = features[:, 3 * self.C :]
        y, w = own[:, : 3 * self.A], own[:, 3 * self.A :]
        return torch.cat([0.5 * bounded(y), bounded(w)], 1)


def bounded(a: Tensor) -> Tensor:
    """a where it is small, at most 4: the rare speed beyond what was seen in training says no more than that."""
    return 4.0 * torch.tanh(a / 4.0)


class LogHit(nn.Module):
    """log h(t, x, v) = min(0, coarse network + fine network), and the control that follows from it.

    Untrained, log h is 0 everywhere and the control vanishes.

    Args:
        problem: the end state, the horizon and the noise.
        widths: hidden layers of the coarse network.
        fine: hidden layers of the fine one; unused where the view has nothing more to show.
        noise: keys of the initial weights.
    """

    CHUNK = 4096  # frames at a time: what the gradient keeps of them stays in the cache
    LIMIT = 1.0  # noise units: largest |u| of one frame, ten times what hitting costs on average
    FLOOR = -30.0  # nats
    sharp: Tensor

    def __init__(self, problem: Problem, widths: tuple[int, ...], fine: tuple[int, ...], noise: Noise):
        super().__init__()
        self.view: View = Plain(problem) if problem.system.topology is None else Molecule(problem)
        self.horizon, dyn, h = problem.steps * problem.timestep, problem.dynamics, problem.timestep
        variance = -math.expm1(-2.0 * dyn.friction * h) if isinstance(dyn, Underdamped) else 2.0 * problem.kT * h
        self.amplitude = math.sqrt(variance)
        coarse, more = self.view.widths
        self.coarse = MLP((coarse + 2, *widths, 1), noise.child("coarse")).to(problem.dtype)
        self.fine = MLP((coarse + 2 + more, *fine, 1), noise.child("fine")).to(problem.dtype) if more else None
        self.register_buffer("sharp", torch.tensor(False))  # whether the fine network takes part

    def forward(self, t: Float[Tensor, " n"], features: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """log h without the bound at 0, from features and t / T."""
        left = 1.0 - t[:, None]
        seen = torch.cat([self.view.coarse(features), 2.0 * left - 1.0, (left + 0.02).log() / 2.0], 1)
        value = self.coarse(seen)[:, 0]
        if self.fine is not None and self.sharp:
            value = value + self.fine(torch.cat([seen, self.view.fine(features)], 1))[:, 0]
        return value

    def look(self, x: Tensor, v: Tensor | None) -> Sight:
        """Features of frames as `forward` takes them."""
        return self.view(x, v, bool(self.sharp))

    @torch.no_grad()
    def log_h(self, t: float, x: Tensor, v: Tensor | None) -> Float[Tensor, " n"]:
        """log h of frames at time t in ps, within [FLOOR, 0], float64."""
        parts = []
        for at in torch.arange(len(x)).split(self.CHUNK):
            features = self.look(x[at], None if v is None else v[at]).features
            parts.append(self(torch.full((len(at),), t / self.horizon, dtype=x.dtype), features))
        return torch.cat(parts).double().clamp(self.FLOOR, 0.0)

    def control(self, t: float, x: Tensor, v: Tensor | None, floor: float = -math.inf) -> Float[Tensor, "n *event"]:
        """u = N grad log(h + e^floor), for `Controlled`."""
        parts = []
        for at in torch.arange(len(x)).split(self.CHUNK):
            sight = self.look(x[at], None if v is None else v[at])
            features = sight.features.requires_grad_(True)
            with torch.enable_grad():
                value = self(torch.full((len(at),), t / self.horizon, dtype=x.dtype), features).clamp(max=0.0)
                (g,) = torch.autograd.grad(value.sum(), features)
            share = torch.sigmoid(value.detach() - floor)  # h / (h + e^floor)
            u = self.amplitude * sight.lift(share[:, None] * g)
            size = u.flatten(1).norm(dim=1).clamp(min=self.LIMIT)
            parts.append(u * (self.LIMIT / size).view(-1, *[1] * (u.dim() - 1)))
        return torch.cat(parts)
