"""Feynman-Kac steering of picture models: `sample` with a reward, by the engine's one population of particles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine import steering
from molsamp.engine.integrators import Integrator
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.particles import Scheme
from molsamp.engine.state import Particles
from molsamp.image.sampling import Model, dynamics, fitted, grid_of, plan


def steer(
    model: Model,
    reward: Callable[[Tensor], Tensor],
    solver: str | Integrator = "ddpm",
    steps: int = 100,
    n: int = 16,
    *,
    noise: Noise,
    strength: float = 1.0,
    value: steering.Value | None = None,
    kind: steering.Kind = "difference",
    every: int = 20,
    scheme: Scheme = "systematic",
    below: float = 0.5,
    groups: int = 1,
    base: Integrator | None = None,
    grid: str | Sequence[float] | None = None,
    start: Float[Tensor, "n *event"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Steered:
    """n weighted pictures of p(x) exp(strength reward(x)) / Z, p the model's law, as `.particles`.

    Four particles search, a few hundred sample. The weights are part of the answer: use them, or `.resampled(noise)`.

    Args:
        model, solver, steps, grid, start, dtype: as `sample` takes them; the solver must draw noise.
        reward: pictures (n, *event) -> (n,), differentiable or not.
        n: pictures, in `groups` populations of equal size, for as many independent draws.
        strength: lambda.
        value: (t, particles) -> expected log tilt; by default strength x the reward of the model's prediction of x_0,
            one network call a boundary.
        kind, scheme, below, base: as the engine's `steer`.
        every: rows between boundaries.

    Raises:
        ValueError, Extinct: as `sample` and the engine's `steer`.
    """
    integrator, intervals, frame = plan(fitted(model, solver, steps, noise=noise, grid=grid), steps)
    times = grid_of(model.schedule, grid, intervals)
    if start is None:
        ids = torch.arange(n)
        start = noise.child("start").normal(0, ids, model.event, dtype) * model.schedule.sigma(times[0])
    elif start.shape[1:] != model.event:
        raise ValueError(f"start has pictures of shape {tuple(start.shape[1:])}, the model takes {model.event}")

    def tilt(x: Tensor) -> Tensor:
        return strength * reward(x)

    return steering.steer(
        dynamics(model, frame),
        integrator,
        Particles.at(start),
        times,
        tilt,
        noise=noise.child("rows"),
        value=(lambda t, p: tilt(model(p.x, t))) if value is None else value,
        kind=kind,
        every=every,
        scheme=scheme,
        below=below,
        groups=groups,
        base=base,
    )
