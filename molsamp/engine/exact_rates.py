"""Rates of one-dimensional Euler-Maruyama chains, exactly: the truth that rare-event methods are tested against.

The chain x' = x + f(x) dt + sqrt(2 dt) z has a Gaussian kernel. Looked at every m-th step, on Gauss-Legendre nodes of
A = [lo, a], of the middle (a, b) and of B = [b, hi], it is a matrix K whose rows sum to 1, and every quantity is a
linear solve. No time-step error separates it from a rollout; what is left out is the quadrature and the tails beyond lo
and hi, which are to be chosen so that they hold nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.closed_forms import legendre
from molsamp.engine.dynamics import Field


@dataclass(frozen=True)
class DoubleWell:
    """beta V = b (x^2 - 1)^2 in x of shape (n, 1), in kT: a field with the barrier b between -1 and 1.

    Args:
        b: kT.
    """

    b: float

    def energy_force(self, x: Float[Tensor, "n 1"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 1"]]:
        """E and F = -4 b x (x^2 - 1)."""
        u = x**2 - 1.0
        return self.b * u[:, 0] ** 2, -4.0 * self.b * x * u


class Chain:
    """Overdamped dynamics with D = kT = 1 between A: x <= a and B: x >= b, as a Markov chain.

    Args:
        field: energy in kT and force, of x (n, 1).
        dt: time step.
        ends: of the pieces of the quadrature: lo, a, the interfaces of `ladder`, b, hi.
        every: steps between two looks; what happens in between is not seen.
        nodes: in each piece.
    """

    def __init__(self, field: Field, dt: float, ends: Sequence[float], every: int = 1, nodes: int = 160):
        pieces = [legendre(low, high, nodes) for low, high in pairwise(ends)]
        self.x, self.w = (torch.cat(part) for part in zip(*pieces, strict=True))
        piece = torch.arange(len(pieces)).repeat_interleave(nodes)
        self.a, self.b, self.interfaces = piece == 0, piece == len(pieces) - 1, ends[2:-2]
        self.field, self.dt, self.look = field, dt, every * dt
        self.later = torch.linalg.matrix_power(self._step(self.x), every - 1)  # the looks' steps but the first
        self.K = self._step(self.x) @ self.later

    def _step(self, x: Float[Tensor, " n"]) -> Float[Tensor, "n N"]:
        """One step from x to the nodes; rows are brought to the sum 1, which they have but for the quadrature."""
        mean = x + self.dt * self.field.energy_force(x[:, None])[1][:, 0]
        density = self.w * torch.exp(-((self.x - mean[:, None]) ** 2) / (4.0 * self.dt))
        return density / density.sum(1, keepdim=True)

    def leave(self, x: float) -> Float[Tensor, " N"]:
        """Where a look finds what was at x, which need not be a node, one look ago."""
        return (self._step(torch.tensor([x], dtype=torch.float64)) @ self.later)[0]

    def mfpt(self, x: float) -> float:
        """Mean time from x to the first look that finds it in B: (I - K) T = look 1 outside B."""
        out = ~self.b
        T = torch.linalg.solve(_I(int(out.sum())) - self.K[out][:, out], torch.ones(int(out.sum())).double())
        return self.look * (1.0 + float(self.leave(x)[out] @ T))

    def committor(self) -> Float[Tensor, " N"]:
        """Probability of the nodes to be seen in B before A: q = K q in between, 0 in A and 1 in B."""
        return _enter(self.K, self.b, self.a).sum(1)

    def committor_at(self, x: float) -> float:
        """The committor of a point between A and B."""
        return float(self.leave(x) @ self.committor())

    def stationary(self) -> Float[Tensor, " N"]:
        """Weights pi of the nodes in equilibrium: pi K = pi, summing to 1."""
        N = len(self.x)
        balance = _I(N) - self.K.T
        balance[-1] = 1.0
        return torch.linalg.solve(balance, _I(N)[-1])

    def reactive(self) -> tuple[float, Float[Tensor, " N"]]:
        """(rate A -> B, probability of each node to have last been in B rather than A).

        With q-(x) = P(last in A | now at x), the committor to A of the chain reversed in time, the rate is
        k = sum_x pi q-(x) K(x, B) / (look sum_x pi q-(x)).
        """
        pi = self.stationary()
        from_a = _enter(self.K.T * pi / pi[:, None], self.a, self.b).sum(1)
        weight = pi * from_a
        return float(weight @ self.K[:, self.b].sum(1) / weight.sum()) / self.look, 1.0 - from_a

    def ladder(self, x: float) -> tuple[float, list[float]]:
        """(flux from A through the first interface, success probabilities) of lives that go from x to B.

        One life is a chain of stretches: up from A through the first interface (map U), and home to A (map H) unless it
        ends in B. The expected law of all its crossings is c = x U (I - H U)^-1, its number over the mean first-passage
        time the flux; the laws of the first entrance to the later interfaces follow one from the other.
        """
        above = self.x >= self.interfaces[0]
        up, home = _enter(self.K, above, torch.zeros_like(above)), _enter(self.K, self.a, self.b)
        law = torch.linalg.solve((_I(len(up)) - home @ up).T, self.leave(x) @ up)
        flux, successes = float(law.sum()) / self.mfpt(x), []
        for target in [*(self.b | (self.x >= level) for level in self.interfaces[1:]), self.b]:
            arrived = law @ _enter(self.K, target, self.a)
            successes.append(float(arrived.sum() / law.sum()))
            law = arrived
        return flux, successes


def _I(n: int) -> Float[Tensor, "n n"]:
    return torch.eye(n, dtype=torch.float64)


def _enter(K: Float[Tensor, "N N"], target: Bool[Tensor, " N"], avoid: Bool[Tensor, " N"]) -> Float[Tensor, "N N"]:
    """Where in `target` each node is first found, being killed in `avoid`: 1 on the target, (I - K)^-1 K elsewhere."""
    rest = ~(target | avoid)
    laws = torch.diag(target.double())
    found = torch.linalg.solve(_I(int(rest.sum())) - K[rest][:, rest], K[rest][:, target])
    laws[rest.nonzero(), target.nonzero()[:, 0]] = found
    return laws
