"""Guides: pure functions on a diffusion model's prediction, between its evaluation and the step that uses it.

A step of a diffusion sampler aims at a picture and re-noises along a direction,

    x' = alpha' aim + sigma' direction,        direction = (x - alpha origin) / sigma,

and a plain one aims at what it measures the noise from: aim = origin = E[x_0 | x]. A guide may change either: usual
guidance moves both, CFG++ and DDS move the aim and leave the origin. `Guided` makes the table of any integrator guided:
where aim and origin differ, x is first replaced by alpha aim + sigma direction, whose own prediction `aim` then is, so
that every solver does what it does.

What a guide remembers (a momentum) lies in the history that rows hand on: it is cut, continued, checkpointed and
resampled with the particles, and a rollout that begins anew begins without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Evaluate, Integrator, Line, Mix, Row, Table, Verb, require

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Prediction:
    """What a step is about to use.

    Args:
        x: state at time t, alpha x_0 + sigma eps.
        t, alpha, sigma: time and coefficients.
        aim: the x_0 that the step goes to, the shape of x.
        origin: the x_0 that the noise in x is measured from; `aim` itself in a plain step.
    """

    x: Float[Tensor, "n *event"]
    t: float
    alpha: float
    sigma: float
    aim: Tensor
    origin: Tensor

    @property
    def direction(self) -> Float[Tensor, "n *event"]:
        """(x - alpha origin) / sigma, what the step re-noises along."""
        return (self.x - self.alpha * self.origin) / self.sigma

    def towards(self, aim: Tensor) -> Prediction:
        """Another aim, the noise measured from it."""
        return replace(self, aim=aim, origin=aim)

    def aimed(self, aim: Tensor) -> Prediction:
        """Another aim, the re-noising direction as it is."""
        return replace(self, aim=aim)


@runtime_checkable
class Guide(Protocol):
    """A pure function (prediction, what it remembers of each particle, None at first) -> the same two.

    Member `slots` is the number of tensors that it remembers; each has the shape of x.
    """

    @property
    def slots(self) -> int: ...

    def __call__(self, p: Prediction, state: State | None, /) -> tuple[Prediction, State]: ...


@dataclass(frozen=True)
class Chain:
    """Guides one after the other, the first on the left.

    Args:
        guides: none is a guide that changes nothing.
    """

    guides: tuple[Guide, ...]

    @property
    def slots(self) -> int:
        """The sum of theirs."""
        return sum(g.slots for g in self.guides)

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Each acts on what the one before it left."""
        after: list[Tensor] = []
        for guide in self.guides:
            own = None if state is None else state[len(after) : len(after) + guide.slots]
            p, kept = guide(p, own)
            after += kept
        return p, tuple(after)


@dataclass(frozen=True)
class Uphill:
    """The score plus weight grad_x log h(x, t): aim = origin = x_0 + weight sigma^2 / alpha grad_x log h.

    With h(x, t) = E[g(x_0) | x_t = x] and weight 1 that is the model of p(x_0) g(x_0) itself; h may be p(class | x) of
    a classifier that knows noise. Gradients go through log h alone, not through the model, unless log h asks it.

    Args:
        log_h: (x (n, *event), t) -> (n,), nats, differentiable.
        weight: of the gradient; above 1 it samples no law of this form.

    Raises:
        ValueError: when called, for a log h of another shape or a gradient that is not finite, naming the particle.

    Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, algorithm 2.
    """

    log_h: Callable[[Tensor, float], Tensor]
    weight: float = 1.0
    slots = 0

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Both aim and origin."""
        with torch.enable_grad():
            x = p.x.detach().requires_grad_()
            log_h = self.log_h(x, p.t)
            if log_h.shape != (len(x),):
                raise ValueError(f"at t = {p.t:g} log h has shape {tuple(log_h.shape)}, allowed is ({len(x)},)")
            (uphill,) = torch.autograd.grad(log_h.sum(), x)
        lost = ~torch.isfinite(uphill).flatten(1).all(1)
        if bool(lost.any()):
            i = int(lost.nonzero()[0])
            raise ValueError(
                f"at t = {p.t:g} the gradient of log h is not finite at particle {i}, where log h = {float(log_h[i]):g}"
            )
        return p.towards(p.aim + (self.weight * p.sigma**2 / p.alpha) * uphill), ()


@dataclass(frozen=True)
class GuidedEvaluation(Evaluate):
    """Evaluate, guide, re-noise x along the direction if that is not the aim's own, push the aim and the memories.

    Args:
        guide: what acts on the data prediction.
    """

    guide: Guide

    def act(self, dyn: Dynamics, state: dict[str, Tensor], history: State) -> tuple[State, Tensor | None]:
        """The history is (aim, memories, aim before, memories before, ..)."""
        sde, x = require(dyn, (LinearSDE,), "a guide's row"), state["x"]
        alpha, sigma = sde.schedule.alpha(self.t), sde.schedule.sigma(self.t)
        x0 = sde.denoise(x, self.t)
        kept = history[1 : 1 + self.guide.slots] if history else None
        p, memories = self.guide(Prediction(x, self.t, alpha, sigma, x0, x0), kept)
        _check(p, memories, self.guide.slots, x)
        if p.origin is not p.aim:
            state["x"] = x + alpha * (p.aim - p.origin)
        g = p.aim if sde.stores == "data" else p.direction
        return (g, *memories, *history), None


@dataclass(frozen=True)
class Guided:
    """An integrator whose every evaluation passes through a guide; of the same order wherever the guide is smooth.

    Rows that knew their density know it still: given x, aim and direction are fixed before the draw. It is the density
    of the guided step, which is another law than the model's (see `steering.steer`, `base`).

    Args:
        integrator: of a `LinearSDE`.
        guide: what acts.
    """

    integrator: Integrator
    guide: Guide

    @property
    def form(self) -> str:
        """What the integrator wants evaluations to be, "data" unless it says otherwise."""
        return getattr(self.integrator, "form", "data")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """The integrator's table with guided evaluations; memories stand between the evaluations, without weight.

        Raises:
            ValueError: as the integrator's, or for a dynamics that is no `LinearSDE`.
        """
        require(dyn, (LinearSDE,), "Guided")
        return [self._guided(row) for row in self.integrator.rows(dyn, times)]

    def _guided(self, row: Row) -> Row:
        stride = 1 + self.guide.slots
        kept = max(row.history, 1 if self.guide.slots else 0)
        return Row(row.t0, row.t1, tuple(self._verb(verb, stride) for verb in row.program), kept * stride)

    def _verb(self, verb: Verb, stride: int) -> Verb:
        if isinstance(verb, Evaluate):
            return GuidedEvaluation(verb.t, self.guide)
        apart = tuple(w for first in verb.weights for w in (first, *[0.0] * (stride - 1)))
        weights = apart[: len(apart) - stride + 1]
        return Mix(weights) if isinstance(verb, Mix) else Line(verb.block, verb.keep, weights, verb.noise)


def _check(p: Prediction, memories: State, slots: int, x: Tensor) -> None:
    for name, a in (("aim", p.aim), ("origin", p.origin), *((f"memory {i}", m) for i, m in enumerate(memories))):
        if a.shape != x.shape:
            raise ValueError(f"at t = {p.t:g} a guide gave {name} of shape {tuple(a.shape)} for x of {tuple(x.shape)}")
    if len(memories) != slots:
        raise ValueError(f"at t = {p.t:g} a guide remembers {len(memories)} tensors, it said {slots}")
