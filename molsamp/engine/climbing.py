"""A control that climbs from A to B along a progress coordinate s, given the free energy F(s) on the way.

If s alone mattered and diffused evenly, the probability to reach s = b before s = a would be

    q(s) = int_a^s exp(F / kT) / int_a^b exp(F / kT),

and the noise shifted by u = N grad log q would lead every walker over, all of one weight: Doob's transform. Where the
weight of an ensemble is, near A, that is of no use and costs: there log(q + floor) is flat.

Whatever F is, a `Controlled` dynamics knows the ratio of its paths, and a weighted ensemble multiplies it into the
weights ahead of every split: their expectation stays 1, and all rates stay those of the free dynamics. A better F makes
their scatter smaller, a worse one larger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


class Climb:
    """u = N grad log(q(s(x)) + floor) in noise units, 0 below a and from b on; for `Controlled`.

    Args:
        progress: x (n, *event) -> s (n,), differentiable.
        nodes: values of s from a to b, rising.
        F: at the nodes, in the unit of kT, up to a constant.
        kT: in the unit of F.
        noise: N of a row, (2 kT mobility timestep)^(1/2) for Euler-Maruyama of `Overdamped`.
        floor: > 0; where q is below it the noise is hardly shifted.

    Raises:
        ValueError: nodes that do not rise, as many F, a floor or noise that is not positive.
    """

    def __init__(
        self,
        progress: Callable[[Tensor], Tensor],
        nodes: Float[Tensor, " K"],
        F: Float[Tensor, " M"],
        *,
        kT: float,
        noise: float,
        floor: float,
    ):
        if len(nodes) < 2 or not bool((nodes.diff() > 0).all()) or F.shape != nodes.shape:
            raise ValueError(f"F at {len(F)} of {len(nodes)} nodes: allowed is one at each of 2 nodes or more, rising")
        if not (floor > 0.0 and noise > 0.0):
            raise ValueError(f"floor={floor:g}, noise={noise:g}: both must be above 0")
        self.progress, self.nodes, self.noise = progress, nodes.double(), noise
        density = torch.exp((F.double() - F.max()) / kT)
        grown = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, self.nodes)])
        self.q = grown / grown[-1]
        self.slope = density / grown[-1] / (self.q + floor)  # d log(q + floor) / ds

    def __call__(self, t: float, x: Tensor, v: Tensor | None) -> Tensor:
        """u of the shape of x."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            s = self.progress(y)
            (ds,) = torch.autograd.grad(s.sum(), y)
        push = self.noise * self._at(s.detach().double())
        return push.to(x).view(-1, *[1] * (x.dim() - 1)) * ds

    def _at(self, s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The slope between the nodes."""
        k = torch.searchsorted(self.nodes, s.contiguous(), right=True).clamp(1, len(self.nodes) - 1)
        low, high = self.nodes[k - 1], self.nodes[k]
        inside = torch.lerp(self.slope[k - 1], self.slope[k], (s - low) / (high - low))
        return torch.where((s >= self.nodes[0]) & (s < self.nodes[-1]), inside, 0.0)
