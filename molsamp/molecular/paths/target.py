"""Relaxed indicators of the end state: what a path is rewarded for while its sampler learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.paths.problem import Problem


@dataclass(frozen=True)
class Target:
    """log rho of a path, the reward of Q = P_0 rho^scale / Z.

    kind "rmsd": -d^2 / (2 sigma^2) with d^2 the mean over heavy atoms AND axes of the squared deviation from the
    end configuration after superposition (so sigma, in nm, compares with RMSD / sqrt(3)).
    kind "basin": -max(0, d - radius)^2 / (2 sigma^2) with d the distance to the end state in its own metric.
    kind "centre": -d^2 / (2 sigma^2) with the same d.
    mode "max" takes the best frame, "final" the last, "softmax" (tau ln mean exp(./tau)) something between.

    Args:
        problem: the end state.
        kind: "rmsd", "basin" or "centre".
        sigma: width, nm for "rmsd", the state's own unit otherwise.
        mode: how frames are combined.
        tau: temperature of "softmax", nats.
    """

    problem: Problem
    kind: Literal["rmsd", "basin", "centre"]
    sigma: float
    mode: Literal["max", "final", "softmax"] = "max"
    tau: float = 1.0

    def frames(self, x: Float[Tensor, "F n *event"]) -> Float[Tensor, "F n"]:
        """log rho of every frame."""
        if self.kind == "rmsd":
            d2 = self.problem.deviation(x).double() ** 2 / x.shape[-1]
        else:
            free = self.problem.end.radius if self.kind == "basin" else 0.0
            d2 = (self.problem.distance(x).double() - free).clamp(min=0.0) ** 2
        return -d2 / (2.0 * self.sigma**2)

    def __call__(self, x: Float[Tensor, "F n *event"]) -> Float[Tensor, " n"]:
        """log rho of every path, float64."""
        return self.combine(self.frames(x))

    def combine(self, frames: Float[Tensor, "F n"]) -> Float[Tensor, " n"]:
        """One log rho a path from those of its frames."""
        if self.mode == "max":
            return frames.amax(0)
        if self.mode == "final":
            return frames[-1]
        return self.tau * (torch.logsumexp(frames / self.tau, 0) - math.log(len(frames)))
