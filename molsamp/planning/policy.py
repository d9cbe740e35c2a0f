"""Policies that draw sequences of controls: conditional flow matching on what a vehicle sees and where it is to go.

The law of H controls a = u_1:H, in units of their rates, is carried from noise by

    da/ds = v(a, s, o),  s from 0 to 1,      trained by E |v(s a + (1 - s) z, s, o) - (a - z)|^2,  z ~ N(0, I).

An observation o knows nothing of the vehicle's place: a map of the walls around it, turned with its heading, the target
in its own frame, its speeds and actuators. So a plan moves and turns with the world. With one step of Euler's method,
a = z + v(z, 0), the best v gives the mean of the controls whatever z is; several steps tell modes apart.

Sources: Lipman et al., "Flow matching", ICLR 2023; Chi et al., "Diffusion policy", RSS 2023; Hassidof, Jurgenson and
Solovey, "Train-once plan-anywhere kinodynamic motion planning via diffusion trees", CoRL 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.dynamics import Ito
from molsamp.engine.integrators import EulerMaruyama
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles
from molsamp.learn.networks import MLP, seeded
from molsamp.planning.problems import Problem
from molsamp.planning.unet import TemporalUNet
from molsamp.planning.vehicles import Vehicle

SIDE, SPACING = 20, 0.2  # points of the local map along each side, m between them
FAR = 4.0  # m, the distance to the target that tanh takes for middling
FREQUENCIES = 8  # of s, by octaves


@dataclass(frozen=True)
class Observation:
    """What a policy sees.

    Args:
        walls: 1 in walls and -1 in the open, rows to the left of the vehicle, columns ahead of it, (B, side, side).
        numbers: cosine, sine and tanh(distance / 4 m) of the target in the vehicle's frame; then its other states.
    """

    walls: Float[Tensor, "B side side"]
    numbers: Float[Tensor, "B f"]


def observe(states: Float[Tensor, "B s"], targets: Float[Tensor, "B 2"], problem: Problem) -> Observation:
    """Look around from each state, towards each target.

    The other states are speeds and actuators in units of their bounds, further headings as cosine and sine against the
    first, and the logarithms of the vehicle's parameters that differ from one to the next (`Car.C2`).
    """
    body = problem.vehicle.body
    heading = states[:, body.headings[0]] if body.headings else torch.zeros_like(states[:, 0])
    c, s = heading.cos()[:, None], heading.sin()[:, None]
    walls = _walls(states, heading, problem)
    d = targets - states[:, :2]
    far = d.norm(dim=1, keepdim=True)
    d = torch.cat([c * d[:, :1] + s * d[:, 1:], -s * d[:, :1] + c * d[:, 1:]], 1) / far.clamp(min=1e-9)
    columns = [d, (far / FAR).tanh()]
    for i, (low, high) in enumerate(zip(body.low, body.high, strict=True)):
        if i in body.headings[1:]:
            against = states[:, i : i + 1] - heading[:, None]
            columns += [against.cos(), against.sin()]
        elif i > 1 and i not in body.headings:
            columns.append(states[:, i : i + 1] / max(abs(low), abs(high)))
    columns.append(torch.full_like(far, math.log(getattr(problem.vehicle, "C2", 1.0))))
    return Observation(walls, torch.cat(columns, 1).to(torch.float32))


def _walls(states: Tensor, heading: Tensor, problem: Problem) -> Float[Tensor, "B side side"]:
    from molsamp.planning.sight import look_around

    _, _, blocked, pose, _, _ = problem.vehicle.walls(problem.world)
    out = np.empty((len(states), SIDE, SIDE), np.float32)
    look_around(blocked, pose, states.contiguous().numpy(), heading.contiguous().numpy(), SPACING, out)
    return torch.from_numpy(out)


class PolicyNetwork(nn.Module):
    """v(a, s, o): three convolutions over the map, then a perceptron or a U-Net over all there is.

    Args:
        horizon: H.
        controls: m.
        numbers: length of `Observation.numbers`.
        width: of the perceptron's layers, or channels of the U-Net's first level.
        depth: hidden layers, or levels.
        noise: keys of the first weights.
        body: "mlp", quick on a CPU, or "unet", which shares its weights along time.

    Raises:
        ValueError: for another body, or sizes that a U-Net cannot have.
    """

    def __init__(
        self, horizon: int, controls: int, numbers: int, width: int, depth: int, noise: Noise, body: str = "mlp"
    ):
        super().__init__()
        self.horizon, self.controls, self.body = horizon, controls, body
        sizes = {"horizon": horizon, "controls": controls, "numbers": numbers, "width": width, "depth": depth}
        self.architecture = {**sizes, "body": body}
        with seeded(noise.child("map")):
            self.look = nn.Sequential(
                *(part for a, b in ((1, 16), (16, 32), (32, 32)) for part in (nn.Conv2d(a, b, 3, 2, 1), nn.SiLU())),
                nn.Flatten(),
                nn.Linear(32 * 3 * 3, 64),
                nn.SiLU(),
            )
        condition, stream = 2 * FREQUENCIES + 64 + numbers, noise.child("answer")
        self.answer: nn.Module
        if body == "mlp":
            self.answer = MLP([horizon * controls + condition, *[width] * depth, horizon * controls], stream)
        elif body == "unet":
            self.answer = TemporalUNet(horizon, controls, condition, width, depth, stream)
        else:
            raise ValueError(f"body {body!r} of a policy: there are mlp, unet")

    def see(self, o: Observation) -> Float[Tensor, "B e"]:
        """What stays the same while s runs from 0 to 1."""
        return torch.cat([self.look(o.walls[:, None]), o.numbers], 1)

    def forward(self, a: Float[Tensor, "B Hm"], s: Float[Tensor, " B"], seen: Float[Tensor, "B e"]) -> Tensor:
        """The velocity."""
        phase = s[:, None] * (0.5 * math.pi * 2.0 ** torch.arange(FREQUENCIES))
        condition = torch.cat([phase.cos(), phase.sin(), seen], 1)
        return self.answer(torch.cat([a, condition], 1)) if self.body == "mlp" else self.answer(a, condition)


def flow_matching(
    net: PolicyNetwork, o: Observation, a: Float[Tensor, "B Hm"], z: Float[Tensor, "B Hm"], s: Float[Tensor, " B"]
) -> Tensor:
    """The loss: mean squared error of the velocity on the line from z to a."""
    x = s[:, None] * a + (1.0 - s[:, None]) * z
    return (net(x, s, net.see(o)) - (a - z)).square().mean()


@dataclass(frozen=True)
class Policy:
    """A sampler of controls (`samplers.Sampler`) from a trained network.

    Args:
        net: the network.
        calls: K, of the network for each draw.
        spread: standard deviation of controls in the data, in units of the rates.
    """

    net: PolicyNetwork
    calls: int = 1
    spread: tuple[float, ...] = (1.0, 1.0)

    @torch.no_grad()
    def __call__(
        self,
        states: Float[Tensor, "B s"],
        targets: Float[Tensor, "B 2"],
        problem: Problem,
        noise: Noise,
        step: int,
    ) -> Float[Tensor, "B H m"]:
        """H controls for each state, drawn towards its target."""
        B, H, m = len(states), self.net.horizon, self.net.controls
        seen, ids = self.net.see(observe(states, targets, problem)), torch.arange(B)
        z = noise.child("start").normal(step, ids, (H * m,), torch.float32)
        field = Ito(lambda t, x: -self.net(x, torch.full((B,), 1.0 - t), seen), lambda t: 0.0)
        a = rollout(field, EulerMaruyama(), Particles.at(z), exponential_times(self.calls), noise=noise, save="last")
        return a.final.x.view(B, H, m).double() * scale(problem.vehicle, self.spread)


def exponential_times(K: int) -> list[float]:
    """1 - s at the ends of K steps of Euler's method, of sizes proportional to exp(-4 k / K)."""
    sizes = [math.exp(-4.0 * k / K) for k in range(K)]
    return [1.0 - sum(sizes[:k]) / sum(sizes) for k in range(K)] + [0.0]


def scale(vehicle: Vehicle, spread: tuple[float, ...]) -> Float[Tensor, " m"]:
    """What a control of size 1 in the network is in the vehicle's units."""
    return torch.tensor(vehicle.body.rate, dtype=torch.float64) * torch.tensor(spread, dtype=torch.float64)
