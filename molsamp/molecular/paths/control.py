"""Learned controls: maps from a configuration to a shift u of the noise, in noise units.

A control works in the body frame: x is superposed on the end configuration by its heavy atoms, y = R x + t, the
network sees y and answers there, and R^T carries the answer back. Hence u(Gx + c) = G u(x) for every proper
rotation G, while mirror images differ. `encode` (no gradient, once a stored frame) is kept apart from `forward`
(gradient, many times a stored frame), so that training never superposes twice.

In force units the control is b = u s m / (c h) with the symbols of `LangevinMiddle`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.dynamics import centred
from molsamp.molecular.geometry import Superposition, flat
from molsamp.molecular.paths.problem import Problem

Encoding = dict[str, Tensor]


class Control(nn.Module):
    """A trainable control on the interface `Controlled` needs, with the stored-frame split.

    Args:
        problem: the end state, masses and horizon.
        scale: size of u, in noise units a degree of freedom, for a network output of 1.
    """

    end: Tensor
    masses: Tensor

    def __init__(self, problem: Problem, scale: float):
        super().__init__()
        self.molecular, self.scale = problem.molecular, scale
        self.horizon = problem.steps * problem.timestep
        self.event = problem.system.event
        end = problem.end.x.to(problem.dtype)
        self.register_buffer("end", end, persistent=False)
        self.superposition = Superposition(problem.end.x, problem.system.heavy) if self.molecular else None
        if self.molecular:
            self.register_buffer("masses", problem.masses.to(problem.dtype), persistent=False)
            self.root_masses = problem.masses.double().sqrt().flatten().numpy()

    @abstractmethod
    def forward(self, encoding: Encoding) -> Float[Tensor, "n *event"]:
        """u in the frame of the encoding."""

    def encode(self, t: float | Tensor, x: Tensor, v: Tensor | None) -> Encoding:
        """What `forward` needs of frames x (n, *event) at time t: {"y": body frame, "t": t/T, "R": rotation}."""
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x)) / self.horizon
        if self.superposition is None:
            return {"y": x, "t": time}
        R, shift = self.superposition(x)
        return {"y": torch.baddbmm(shift[:, None], x, R.mT), "t": time, "R": R}

    def turn(self, encoding: Encoding, a: Tensor) -> Tensor:
        """A vector field of the laboratory frame seen in the encoding's frame."""
        return a @ encoding["R"].mT if "R" in encoding else a

    def stored(self, encoding: Encoding, z: Tensor) -> Encoding:
        """What `gain` needs of frames and of the noise sums z (n, *event) over the rows that one control is held."""
        return {"y": encoding["y"], "t": encoding["t"], "z": self.turn(encoding, z)}

    def gain(self, stored: Encoding, hold: int) -> Float[Tensor, " n"]:
        """u z - hold |u|^2 / 2: what the rows of one control add to log dP_u/dP_0."""
        u, z = self.forward(stored), stored["z"]
        return (u * (z - 0.5 * hold * u)).flatten(1).sum(1)

    @torch.no_grad()
    def drive(self, t: float, x: Tensor, v: Tensor | None) -> Float[Tensor, "n *event"]:
        """u in the laboratory frame, for `Controlled`."""
        encoding = self.encode(t, x, v)
        u = self.forward(encoding)
        return u @ encoding["R"] if "R" in encoding else u

    def free_of_drift(self, u: Tensor) -> Tensor:
        """u without the part that moves the centre of mass (molecules only)."""
        return centred(u, self.masses) if self.molecular else u


class NetworkControl(Control):
    """A network on the body frame with one of three heads (card section 6).

    "force": u = net(y), one vector an atom.
    "scale": u_i = softplus(net(y)_i) (y_B,i - y_i) / L: each atom is only ever pulled towards its own target.
    "potential": u = -grad_x net(y(x)), through the superposition; one scalar, conservative.

    Args:
        problem: see `Control`.
        network: (n, *event) displacement y - y_B and (n,) time -> (n, *event), (n, A) or (n,), by head.
        head: see above.
        scale: see `Control`.
    """

    LENGTH = 0.1  # nm, the displacement at which a scale of 1 gives u = `scale`

    def __init__(
        self, problem: Problem, network: nn.Module, head: Literal["force", "scale", "potential"], scale: float = 0.05
    ):
        super().__init__(problem, scale)
        self.network, self.head = network, head

    def forward(self, encoding: Encoding) -> Float[Tensor, "n *event"]:
        """u in the body frame."""
        y, t = encoding["y"], encoding["t"]
        if self.head == "potential":
            u = self._descent(y, t)
        elif self.head == "force":
            u = self.network(y - self.end, t)
        else:
            pull = torch.nn.functional.softplus(self.network(y - self.end, t))
            u = pull[..., None] * (self.end - y) / self.LENGTH
        return self.free_of_drift(self.scale * u)

    @torch.no_grad()
    def drive(self, t: float, x: Tensor, v: Tensor | None) -> Float[Tensor, "n *event"]:
        """u in the laboratory frame; for a plain network with the force head everything but the network is compiled."""
        net, superposition = self.network, self.superposition
        if self.head != "force" or not isinstance(net, Features) or superposition is None or x.device.type != "cpu":
            return super().drive(t, x, v)
        from molsamp.molecular.native.alignment import to_laboratory

        f, R = superposition.body(x, self.end, net.length, int(net.time))
        if net.time:
            f[:, -1] = t / self.horizon
        u = torch.empty_like(x)
        to_laboratory(net.network(f).numpy(), R.numpy(), self.root_masses, self.scale, flat(u))
        return u

    def _descent(self, y: Tensor, t: Tensor) -> Tensor:
        """-grad of the scalar network at y, seen through the superposition (which is the identity motion at y)."""
        with torch.enable_grad():
            at = y.detach().requires_grad_(True)
            body = at
            if self.superposition is not None:
                R, shift = self.superposition(at)
                body = torch.baddbmm(shift[:, None], at, R.mT)
            potential = self.network(body - self.end, t).sum()
            (g,) = torch.autograd.grad(potential, at, create_graph=self.training)
        return -g


class Features(nn.Module):
    """Flat features of a displacement in the body frame, for a plain MLP: d and |d| per atom (x 1/length), time.

    Args:
        network: MLP with `inputs(event, time)` inputs.
        length: nm; inputs are measured in it.
        time: whether t / T is appended.
        shape: of one output.
    """

    def __init__(self, network: nn.Module, length: float, time: bool, shape: tuple[int, ...]):
        super().__init__()
        self.network, self.length, self.time, self.shape = network, length, time, shape

    @staticmethod
    def inputs(event: tuple[int, ...], time: bool) -> int:
        """Number of features."""
        points, axes = (event[0], event[1]) if len(event) == 2 else (1, event[0])
        return points * (axes + 1) + int(time)

    def forward(self, d: Float[Tensor, "n *event"], t: Float[Tensor, " n"]) -> Tensor:
        """Network output, (n, *shape)."""
        d = d / self.length
        square = d.square().sum(-1, keepdim=True)
        f = torch.cat([d.flatten(1), (square + 1e-12).sqrt().flatten(1)], 1)
        if self.time:
            f = torch.cat([f, t[:, None]], 1)
        return self.network(f).view(len(d), *self.shape)
