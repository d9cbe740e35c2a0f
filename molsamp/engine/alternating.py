"""Steps that obey two guides in turn: at each noise level one, back up to that level, then the other.

    x1 = alpha (a1 + (sigma' / alpha') d1) + (sigma^2 - (alpha sigma' / alpha')^2)^(1/2) z
    x' = alpha' a2 + sigma' d2                                  a, d = aim and direction of either guide

Sequential, not averaged: what either guide sees was noised by the schedule, so that both act where the model knows its
way. With the two ends of a path as conditions it is ViBiDSampler. It is a heuristic: the law in which it ends is
neither guide's nor their product's, and a row has no density, since its second evaluation sees its noise.

Source: Yang et al., "ViBiDSampler: enhancing video interpolation using bidirectional diffusion sampler", ICLR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.guides import Guide, GuidedEvaluation, Prediction, State
from molsamp.engine.integrators import Line, Row, Table, require

Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Alternating:
    """One row an interval: a step under `first`, noise back up, a step under `second`.

    Args:
        first, second: guides that remember nothing.

    Raises:
        ValueError: for a guide that remembers, whose memory would be the other's.
    """

    first: Guide
    second: Guide
    form = "data"

    def __post_init__(self):
        if self.first.slots or self.second.slots:
            raise ValueError("guides in turn may not remember: the memory of one would be taken for the other's")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """Rows of two evaluations, both at the earlier time.

        Raises:
            ValueError: for a dynamics that stores no data prediction.
        """
        sde = require(dyn, (LinearSDE,), "Alternating")
        if sde.stores != "data":
            raise ValueError(f"steps in turn are in data form, the dynamics stores {sde.stores}")
        table = []
        for s, t in pairwise(times):
            alpha, sigma, a_t, s_t = (f(u) for u in (s, t) for f in (sde.schedule.alpha, sde.schedule.sigma))
            keep, up = s_t / sigma, alpha / a_t
            weight = a_t - keep * alpha
            noise = math.sqrt(max(sigma**2 - (up * s_t) ** 2, 0.0))
            back = Line("x", {"x": up * keep}, (up * weight,), noise if noise > 0.0 else None)
            down = Line("x", {"x": keep}, (weight,))
            program = (GuidedEvaluation(s, self.first), back, GuidedEvaluation(s, self.second), down)
            table.append(Row(s, t, program, history=0))
        return table


@dataclass(frozen=True)
class Condition:
    """CFG++ from an unconditional rollout: the aim U + weight (C - U), re-noised along the direction of U.

    As `image.guidance.CFGpp`, which acts on the conditional prediction; here several conditions share one model.

    Args:
        conditional: (x, t) -> C.
        weight: in [0, 1].

    Raises:
        ValueError: for a weight outside.

    Source: Chung et al., "CFG++: manifold-constrained classifier-free guidance", ICLR 2025, algorithm 2.
    """

    conditional: Denoise
    weight: float = 1.0
    slots = 0

    def __post_init__(self):
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"the weight of CFG++ is {self.weight}, it must lie in [0, 1]")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Moves the aim, leaves the origin."""
        return p.aimed(p.aim + self.weight * (self.conditional(p.x, p.t) - p.aim)), ()


@dataclass(frozen=True)
class Pinned:
    """The aim with one frame overwritten: DDS for an operator that selects it, whose conjugate gradients are exact.

    Args:
        index: of the frame along the first axis of a path.
        frame: (*frame) or, of its own for every path, (n, *frame).
    """

    index: int
    frame: Tensor
    slots = 0

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Moves the aim, leaves the origin."""
        aim = p.aim.clone()
        aim[:, self.index] = self.frame
        return p.aimed(aim), ()


@dataclass(frozen=True)
class Reversal:
    """A path run backwards: its first axis flipped, and the sign of what is odd in time, such as velocities, changed.

    A model of paths may be asked about reversed ones only where these have the law of paths: reversible dynamics in
    equilibrium. A drift, or velocities whose sign is kept, breaks that.

    Args:
        odd: 1 where an entry of a frame changes its sign, 0 elsewhere, of the shape of a frame; None for nowhere.
    """

    odd: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, frames, *frame) backwards; twice is x."""
        y = x.flip(1)
        return y if self.odd is None else torch.where(self.odd.to(x.device) > 0, -y, y)

    def of(self, denoise: Denoise) -> Denoise:
        """The model asked about reversed paths, its answer turned back."""
        return lambda x, t: self(denoise(self(x), t))
