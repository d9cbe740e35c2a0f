"""Restoration by mean-reverting diffusion: every solver of pictures, run on x - mu about the degraded picture mu.

The forward process dx = theta (mu - x) dt + scale sqrt(2 theta) dW has x_t = alpha x_0 + (1 - alpha) mu + sigma eps, so
that z = x - mu is a diffusion of x_0 - mu in the schedule `MeanReverting`. The samplers of MRS are the solvers that
there are, on z: MRS-ODE-k is "dpm++2m", "dpm++3m" (data) or an `Exponential` in noise form, MRS-SDE-1 and -2 are
"sde-dpm++1" and "sde-dpm++2m". No update of its own is needed.

Sources: Luo et al., "Image restoration with mean-reverting SDEs", ICML 2023; Li et al., "MaRS: a fast sampler for mean
reverting diffusion", ICLR 2025 (there each update is written out in x and mu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.schedules import MeanReverting
from molsamp.engine.state import Path
from molsamp.image.denoiser import Denoiser, data_from
from molsamp.image.sampling import sample

Pictures = Float[Tensor, "n *event"]
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Prediction = Literal["data", "noise", "velocity"]


def shifted(
    net: Network, mu: Pictures, schedule: MeanReverting = MeanReverting(), prediction: Prediction = "data"
) -> Denoiser:
    """The denoiser of z = x - mu: what it is given is z_t, what it predicts is x_0 - mu.

    Args:
        net: (x_t, t (n,), mu) -> its prediction: x_0; eps; or, with cos a = alpha, sin a = sigma / scale, the velocity
            dz/da = scale cos a eps - sin a (x_0 - mu).
        mu: degraded pictures, one for each of the batch.
        schedule: of z.
        prediction: which of them.

    Raises:
        ValueError: for another prediction; when called, for a batch of another size or an answer of another shape.
    """
    if prediction not in get_args(Prediction):
        raise ValueError(f"prediction {prediction!r} is unknown, allowed are {', '.join(get_args(Prediction))}")

    def predict(z: Tensor, t: float, label: Tensor | None) -> Tensor:
        if len(z) != len(mu):
            raise ValueError(f"{len(z)} pictures were given, to be restored from {len(mu)}")
        centre = mu.to(z)
        y = net(z + centre, z.new_full((len(z),), t), centre)
        if y.shape != z.shape:
            raise ValueError(f"the network answers with shape {tuple(y.shape)} to x of shape {tuple(z.shape)}")
        if prediction == "data":
            return y - centre
        if prediction == "noise":
            return data_from("noise", schedule, z, t, y)
        return schedule.alpha(t) * z - (schedule.sigma(t) / schedule.scale) * y

    return Denoiser(schedule, predict, tuple(mu.shape[1:]))


def restore(
    net: Network,
    mu: Pictures,
    solver: str | Integrator = "dpm++2m",
    steps: int = 10,
    *,
    noise: Noise,
    schedule: MeanReverting = MeanReverting(),
    prediction: Prediction = "data",
    grid: str | Sequence[float] | None = None,
    start: Pictures | None = None,
    dtype: torch.dtype = torch.float32,
    save: Literal["all", "last"] | int = "last",
) -> Path:
    """Restored pictures, from mu and noise, as `path.final.x`; one for each mu (repeat them for more).

    Args:
        net, mu, schedule, prediction: as `shifted` takes them.
        solver, steps, noise, grid, dtype, save: as `sample` takes them.
        start: x at the first time; by default mu + sigma eps.

    Raises:
        ValueError: as `shifted` and `sample`.
    """
    centre = mu.to(dtype)
    z = None if start is None else start.to(dtype) - centre
    model = shifted(net, centre, schedule, prediction)
    path = sample(model, solver, steps, len(mu), noise=noise, grid=grid, start=z, dtype=dtype, save=save)
    return replace(path, x=path.x + centre, final=path.final.evolve(x=path.final.x + centre))
