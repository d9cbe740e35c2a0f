"""Guidance rules between a conditional and an unconditional prediction, as guides of the engine.

With D_c and D_u the predictions of x_0 with and without the condition, a = alpha, s = sigma:

    CFG      aim = origin = D_u + w (D_c - D_u)
    CFG++    aim = D_u + w (D_c - D_u), w in [0, 1], re-noised along the unconditional direction, origin = D_u
    APG      aim = origin = D_c + (w - 1) (orth + eta par) of a clipped running difference, see `APG`

A guide acts on what it is given, the conditional prediction: it guides a rollout of the conditional model, and asks
`unconditional` itself, once a step. None of these samples p(x | c)^w p(x)^(1 - w); only weights do (`steering.steer`).
`Noted` tells how much a guide does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from molsamp.engine.guides import Chain, Guide, Guided, Prediction, State
from molsamp.engine.integrators import Integrator
from molsamp.image.denoiser import Denoiser, Label, _threshold
from molsamp.image.solvers import solver as named

Denoise = Callable[[Tensor, float], Tensor]


def conditioned(model: Denoiser, label: Label) -> Denoiser:
    """The conditional prediction as a model of its own: what `sample` rolls out under these guides.

    Raises:
        ValueError: for a model without labels, or a label that is none of the model's.
    """
    return model.guided(label, 1.0)


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance, D_u + w (D_c - D_u); w = 1 is the conditional model.

    Args:
        unconditional: (x, t) -> D_u.
        weight: w.

    Source: Ho, Salimans, "Classifier-free diffusion guidance", 2022 (w here is their 1 + w).
    """

    unconditional: Denoise
    weight: float
    slots = 0

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Both aim and origin."""
        D_u = self.unconditional(p.x, p.t)
        return p.towards(D_u + self.weight * (p.aim - D_u)), ()


@dataclass(frozen=True)
class CFGpp:
    """CFG++: the aim of CFG with w in [0, 1], re-noised along the unconditional direction.

    Args:
        unconditional: (x, t) -> D_u.
        weight: w.

    Raises:
        ValueError: for a weight outside [0, 1].

    Source: Chung et al., "CFG++: manifold-constrained classifier-free guidance", ICLR 2025, algorithm 2.
    """

    unconditional: Denoise
    weight: float
    slots = 0

    def __post_init__(self):
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"the weight of CFG++ is {self.weight}, it must lie in [0, 1]")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """The origin is D_u."""
        D_u = self.unconditional(p.x, p.t)
        return p.towards(D_u).aimed(D_u + self.weight * (p.aim - D_u)), ()


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: of what guides, the part along D_c (which saturates) is damped, the rest capped.

        m = D_c - D_u + momentum m_before,   c = m min(1, radius / |m|),
        par = <c, D_c> / |D_c|^2 D_c,   orth = c - par,   D = D_c + (w - 1) (orth + eta par)

    of every picture, about `centre`; eta = 1, momentum = 0 and an infinite radius are CFG. The un-capped m is carried
    with each particle.

    Args:
        unconditional: (x, t) -> D_u.
        weight: w; 1 is the conditional model.
        eta: share of the parallel part that is kept.
        radius: cap of |m|; see `radius_of`.
        momentum: <= 0; what guides again and again is damped.
        centre: what the projection is about: 0 unless given, the mean latent where latents are shifted, and the centre
            of mass, "mass", for molecules (n, A, 3), so that the split does not depend on where they are.

    Raises:
        ValueError: for a radius that is not positive, or a momentum outside (-1, 0].

    Source: Sadat et al., "Eliminating oversaturation and artifacts of high guidance scales in diffusion models", ICLR
    2025, algorithm 1.
    """

    unconditional: Denoise
    weight: float
    eta: float = 0.0
    radius: float = math.inf
    momentum: float = 0.0
    centre: Tensor | float | str = 0.0

    def __post_init__(self):
        if not self.radius > 0.0:
            raise ValueError(f"the radius of APG is {self.radius}, it must be positive")
        if not -1.0 < self.momentum <= 0.0:
            raise ValueError(f"the momentum of APG is {self.momentum}, it must lie in (-1, 0]")
        if isinstance(self.centre, str) and self.centre != "mass":
            raise ValueError(f"the centre of APG is {self.centre!r}; allowed are a number, a tensor and 'mass'")

    @property
    def slots(self) -> int:
        """m, where there is momentum."""
        return 0 if self.momentum == 0.0 else 1

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Both aim and origin."""
        D_c, D_u = p.aim, self.unconditional(p.x, p.t)
        m = D_c - D_u
        if self.centre == "mass":
            m = m - m.mean(-2, keepdim=True)
        if state:
            m = m + self.momentum * state[0]
        par, orth = split(m * (self.radius / norm(m).clamp(min=tiny(m))).clamp(max=1.0), self._centred(D_c))
        return p.towards(D_c + (self.weight - 1.0) * (orth + self.eta * par)), (m,) * self.slots

    def _centred(self, D: Tensor) -> Tensor:
        if isinstance(self.centre, str):
            return D - D.mean(-2, keepdim=True)
        return D - (self.centre.to(D) if isinstance(self.centre, Tensor) else self.centre)


def radius_of(relative: float, event: tuple[int, ...]) -> float:
    """The radius of APG for a root mean square of a picture's entries: relative sqrt(entries)."""
    return relative * math.sqrt(math.prod(event))


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of the aim, clip(x_0, -s, s) / s, s = max(1, quantile of |x_0|), after other guides.

    The direction follows the aim where it was the aim's own.

    Args:
        quantile: in (0, 1).

    Raises:
        ValueError: for a quantile outside.

    Source: Saharia et al., "Photorealistic text-to-image diffusion models", NeurIPS 2022, section 2.3.
    """

    quantile: float = 0.995
    slots = 0

    def __post_init__(self):
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"the quantile of thresholding is {self.quantile}, it must lie in (0, 1)")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Clips and scales."""
        aim = _threshold(p.aim, self.quantile)
        return (p.towards(aim) if p.origin is p.aim else p.aimed(aim)), ()


class Noted:
    """A guide as it is, and a note of how far it moves the aim, the root mean square of aim' - aim of every picture.

    Args:
        guide: the guide.
        notes: one (n,) for every evaluation is appended.
    """

    def __init__(self, guide: Guide, notes: list[Float[Tensor, " n"]]):
        self.guide, self.slots, self.notes = guide, guide.slots, notes

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """What the guide makes of it."""
        after, state = self.guide(p, state)
        self.notes.append((after.aim - p.aim).square().flatten(1).mean(1).sqrt())
        return after, state


def guided(solver: str | Integrator, *guides: Guide) -> Guided:
    """A solver under guides, from left to right, for `sample`: of one network call a row.

    Raises:
        ValueError: an unknown name, or a solver by name that takes several calls a row, integrates the flow or is
            searched on its model; hand over its integrator, and a grid, instead.
    """
    if isinstance(solver, str):
        found = named(solver)
        integrator, rows = found.plan(12)
        if rows != 12 or found.frame == "flow" or found.fit is not None:
            raise ValueError(f"solver {solver!r} is not of one prediction a row; guide for example 'ddim' or 'dpm++2m'")
        solver = integrator
    return Guided(solver, guides[0] if len(guides) == 1 else Chain(guides))


def norm(a: Float[Tensor, "n *event"]) -> Tensor:
    """|a| of every picture, (n, 1, ..)."""
    return a.flatten(1).norm(dim=1).view(-1, *[1] * (a.dim() - 1))


def split(a: Float[Tensor, "n *event"], along: Float[Tensor, "n *event"]) -> tuple[Tensor, Tensor]:
    """The parts of every picture a parallel and orthogonal to another; where that is 0, all is orthogonal."""
    unit = along / norm(along).clamp(min=tiny(along))
    par = (a * unit).flatten(1).sum(1).view(-1, *[1] * (a.dim() - 1)) * unit
    return par, a - par


def tiny(a: Tensor) -> float:
    """A length below which there is no direction."""
    return 1e-12 if a.element_size() >= 8 else 1e-6
