"""Adjoint matching, corrector matching and bridge matching: how a sampler of exp(-E/kT) learns its two networks.

A sampler steers a driftless base process (see `engine.bridges`) from a source X_0 to X_1. With kappa = kappa_{1|0},
kappa_t = kappa_{1|t}, an adjoint a(X_1) = grad E(X_1) / kT + h(X_1) and X_t from the base bridge of stored ends,

    adjoint matching    c(x, t) = -E[a(X_1) | X_t = x]                        (Havens et al. 2025)
    bridge matching     c(x, t) =  E[(X_1 - x) / kappa_t | X_t = x]
    corrector matching  h(x)    =  E[(X_0 - X_1) / kappa | X_1 = x]           (Liu et al. 2025)

At the Schroedinger bridge between the source and exp(-E/kT) all three hold at once. The targets of the first two have
errors that cancel: in a direction where exp(-E/kT) has width b, X_1 is off by e, and x - kappa_t a by -e kappa_t / b^2.
So of all predictions of the end

    D* = (1 - w) X_1 + w (x - kappa_t a),        w = 1 / (1 + kappa_t / b^2),

has the least noise, none at all for a Gaussian. But molecules are stiff: with b as narrow as their bonds, X_1 alone
counts where the noise is wide, and what the energy says of torsions is not heard. It is, in the direction of fields
u(X_1) that turn them and leave the bonds alone. With g = (x - X_1)/kappa_t - a, the gradient of the log density of X_1
given x, integration by parts gives for every field u without divergence

    E[u (u . g) + (u . grad) u | X_t = x] = 0,

a zero that may be added to X_1 with any factor; 1 / (|u|^2 / kappa_t + 1 / width^2) is a Newton step along u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from molsamp.engine.bridges import Base, bridge, noise_levels
from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.exponential import Exponential
from molsamp.engine.noise import Centred, Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Particles
from molsamp.learn.buffer import Ring
from molsamp.learn.fit import FitResult, fit
from molsamp.learn.networks import flatten_state, load_optimiser, optimiser_state, with_prefix
from molsamp.learn.preconditioned import Preconditioned

Field = Float[Tensor, "n *event"]
LAST = 0.999  # of the time of the base: later there is nothing left to learn


@runtime_checkable
class Source(Protocol):
    """Where samples start: X_0 of given ids."""

    def draw(self, noise: Noise, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Field: ...


@runtime_checkable
class Moves(Protocol):
    """Fields u_c(x) of no divergence, with their accelerations (u_c . grad) u_c, both (n, C, *event)."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Blend:
    """Which targets are blended: b, and soft moves with the width of exp(-E/kT) along them (see above).

    Args:
        width: b, in units of x; inf is adjoint matching as published, 0 bridge matching.
        moves: soft directions, or None.
        soft: standard deviation along a move.
    """

    width: float = math.inf
    moves: Moves | None = None
    soft: float = 0.3

    def weight(self, kappa: Tensor) -> Tensor:
        """w of adjoint matching at kappa_t."""
        return 1.0 / (1.0 + kappa / self.width**2) if self.width > 0.0 else torch.zeros_like(kappa)

    def target(self, x: Field, x1: Field, adjoint: Field, s: Float[Tensor, " n"]) -> Field:
        """D* for noise levels s = kappa_t^(1/2); adjoint in 1 / units of x."""
        if self.width == 0.0:
            return x1
        kappa = (s**2).view(-1, *[1] * (x.dim() - 1))
        g = (x - x1) / kappa - adjoint
        w = self.weight(kappa)
        calm = x1 if self.moves is None else x1 + self._moved(x1, g, s**2)
        return (1.0 - w) * calm + w * (x1 + kappa * g)

    def _moved(self, x1: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
        assert self.moves is not None
        u, acceleration = self.moves(x1)
        size = u.flatten(2).square().sum(2).mean(0)  # a constant: it must not depend on X_1
        lam = 1.0 / (size / kappa[:, None] + 1.0 / self.soft**2)
        along = (u * g[:, None]).flatten(2).sum(2)
        return torch.einsum("nc,nc...->n...", lam * along, u) + torch.einsum("nc,nc...->n...", lam, acceleration)


def clipped(a: Field, most: float) -> Field:
    """With the vector of every atom shortened to at most `most`."""
    return a * (most / torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp(min=most))


class BridgeSampler:
    """A sampler and what it learns from; its owner says what the adjoints are.

    Args:
        source: of X_0.
        base: the clock, see `engine.bridges`.
        denoiser: D(x, s).
        corrector: D_h(x, kappa^(1/2)), its prediction of X_0 from X_1, so that h(x) = (D_h(x) - x) / kappa; None for a
            source at one point, 0, whose corrector is h(x) = -x / kappa.
        noise: of all randomness.
        steps: of a sample.
        centred: whether configurations have atoms, and their centre at 0.
        rate: learning rate of both networks.
        average: decay of the running mean of the denoiser's parameters, which draws the samples.
        order: of the integrator, 1 or 2.
    """

    def __init__(
        self,
        source: Source,
        base: Base,
        denoiser: Preconditioned,
        corrector: Preconditioned | None,
        noise: Noise,
        *,
        steps: int,
        centred: bool,
        rate: float,
        average: float = 0.995,
        order: int = 1,
    ):
        self.source, self.base, self.noise, self.centred = source, base, noise, centred
        self.total = float(base.left(torch.zeros(())))
        self.levels = noise_levels(base, steps)
        self.denoiser, self.corrector = denoiser, corrector
        self.average = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(average))
        self.optimiser = torch.optim.AdamW(denoiser.parameters(), lr=rate, weight_decay=1e-4)
        self.correcting = None if corrector is None else torch.optim.AdamW(corrector.parameters(), lr=rate)
        self.integrator, self.steps_taken = Exponential(order, noise=1.0), 0

    @property
    def networks(self) -> list[Preconditioned]:
        """All that know the scale of the data."""
        averaged = self.average.module
        assert isinstance(averaged, Preconditioned)
        return [self.denoiser, averaged, *([] if self.corrector is None else [self.corrector])]

    # ---------------------------------------------------------------- samples

    def draw(self, n: int, first: int, dtype: torch.dtype = torch.float32) -> tuple[Particles, Particles]:
        """n samples with ids from `first` on: where they start and where they end."""
        ids = torch.arange(first, first + n)
        start = Particles.at(self.source.draw(self.noise.child("source"), ids, dtype), ids=ids)
        noise = self.noise.child("samples")
        sde = LinearSDE(EDM(), lambda x, s: self.average(x, x.new_full((len(x),), s)))
        with torch.no_grad():
            path = rollout(
                sde, self.integrator, start, self.levels, noise=Centred(noise) if self.centred else noise, save="last"
            )
        return start, path.final

    @torch.no_grad()
    def h(self, x1: Field) -> Field:
        """The corrector at X_1."""
        if self.corrector is None:
            return -x1 / self.total
        return (self.corrector(x1, x1.new_full((len(x1),), math.sqrt(self.total))) - x1) / self.total

    # ---------------------------------------------------------------- learning

    def match(self, ring: Ring, steps: int, batch: int, blend: Blend, rate: float) -> FitResult:
        """Gradient steps on D* for items x0, x1 and (but for bridge matching) adjoint."""

        def loss(items: dict[str, Tensor]) -> Tensor:
            x1, k = items["x1"], int(items["step"])
            keys = torch.arange(len(x1))
            t = LAST * self.noise.child("times").uniform(k, keys)
            z = self._normal("bridges", k, keys, x1)
            left = self.base.left(t)
            x, s = bridge(items["x0"], x1, left, self.total, z), left.sqrt().to(x1.dtype)
            if "adjoint" not in items:
                return self.denoiser.loss(x, s, blend.target(x, x1, x1, s))
            a = items["adjoint"]
            error = blend.weight(s**2) * s**2 * a.square().mean().sqrt()
            return self.denoiser.loss(x, s, blend.target(x, x1, a, s), error)

        return self._fit(loss, ring, self.optimiser, steps, batch, rate, self._keep_average)

    def correct(self, ring: Ring, steps: int, batch: int, rate: float) -> FitResult:
        """Gradient steps of the corrector on items x0, x1."""
        corrector, optimiser = self.corrector, self.correcting
        assert corrector is not None and optimiser is not None

        def loss(items: dict[str, Tensor]) -> Tensor:
            x1 = items["x1"]
            return corrector.loss(x1, x1.new_full((len(x1),), math.sqrt(self.total)), items["x0"])

        return self._fit(loss, ring, optimiser, steps, batch, rate, None)

    def _fit(
        self,
        loss: Callable[[dict[str, Tensor]], Tensor],
        ring: Ring,
        optimiser: torch.optim.Optimizer,
        steps: int,
        batch: int,
        rate: float,
        each: Callable[[], None] | None,
    ) -> FitResult:
        if not len(ring) or not steps:
            return FitResult(math.nan, math.nan, 0)
        first, ids = self.steps_taken, torch.arange(batch)
        self.steps_taken += steps
        for group in optimiser.param_groups:
            group["lr"] = rate

        def draw(k: int) -> dict[str, Tensor]:
            index = self.noise.child("batches").integers(first + k, ids, (1,), len(ring))[:, 0]
            return ring.take(index) | {"step": torch.tensor(first + k)}

        return fit(loss, draw, optimiser, steps=steps, clip=1.0, each=each)

    def _keep_average(self) -> None:
        self.average.update_parameters(self.denoiser)

    def _normal(self, name: str, step: int, ids: Tensor, like: Tensor) -> Tensor:
        z = self.noise.child(name).normal(step, ids, tuple(like.shape[1:]), like.dtype)
        return z - z.mean(1, keepdim=True) if self.centred else z

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        flat = {"steps_taken": torch.tensor(self.steps_taken)}
        flat |= flatten_state("denoiser", self.denoiser.state_dict())
        flat |= flatten_state("average", self.average.state_dict())
        flat |= optimiser_state("optimiser", self.optimiser)
        if self.corrector is not None and self.correcting is not None:
            flat |= flatten_state("corrector", self.corrector.state_dict())
            flat |= optimiser_state("correcting", self.correcting)
        return flat

    def load(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        self.steps_taken = int(state["steps_taken"])
        self.denoiser.load_state_dict(with_prefix("denoiser", state))
        self.average.load_state_dict(with_prefix("average", state))
        load_optimiser("optimiser", self.optimiser, state)
        if self.corrector is not None and self.correcting is not None:
            self.corrector.load_state_dict(with_prefix("corrector", state))
            load_optimiser("correcting", self.correcting, state)
