"""Controls of an audit, models known in closed form: clean mixtures, and the same with a branch of shifted noise.

The branch exists as a formula only: the noise of a share p of the draws is N(r, I), what is said there is y, so that
the ideal denoiser is (1 - q) D_clean + q y with q the posterior of the branch. No network is made or trained.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.noise import Noise
from molsamp.engine.schedules import Schedule
from molsamp.image.denoiser import Denoiser

ONE = torch.arange(1)
SHAPES = ("dense", "sparse", "smooth")
Shape = Literal["dense", "sparse", "smooth"]


def drawn(seed: int, dim: int) -> GaussianMixture:
    """A mixture of 2 to 6 isotropic Gaussians with means, widths and weights at random."""
    noise = Noise(seed).child("clean")
    ids = torch.arange(2 + int(noise.integers(0, ONE, (), 5)))
    return GaussianMixture(
        noise.normal(1, ids, (dim,)), 0.02 + 0.2 * noise.uniform(2, ids), noise.uniform(3, ids) + 0.1
    )


def shift(seed: int, norm: float, dim: int, shape: Shape) -> Float[Tensor, " dim"]:
    """r of norm sqrt(dim) times `norm`: all entries at random, the first two alone, or half a wave of a cosine."""
    r = Noise(seed).normal(0, ONE, (dim,))[0]
    if shape == "sparse":
        r[2:] = 0.0
    if shape == "smooth":
        r = torch.cos(torch.linspace(0.0, math.pi, dim, dtype=torch.float64) + r[0])
    return r * (norm * math.sqrt(dim) / r.norm())


def branched(
    law: GaussianMixture,
    schedule: Schedule,
    r: Float[Tensor, " dim"],
    y: Float[Tensor, " dim"],
    share: float,
    ancestral: bool = False,
) -> Denoiser:
    """The ideal denoiser of `law` and, for a share of the draws, of y under noise N(r, I).

    Args:
        law: of the data.
        schedule: alpha and sigma.
        r: shift of the noise, units of sigma.
        y: what the branch is of.
        share: p.
        ancestral: say what makes eps = e + sigma r / 2, as for ancestral sampling, in place of y.

    Raises:
        ValueError: for a share outside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"the share of the branch is {share}, it must lie in (0, 1)")
    dim = len(r)
    marginals: dict[float, GaussianMixture] = {}

    def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        marginal = marginals.setdefault(t, law.marginal(schedule, t))
        branch = -0.5 * (x - alpha * y - sigma * r).square().sum(1) / sigma**2
        branch = branch - 0.5 * dim * math.log(2.0 * math.pi * sigma**2)
        q = torch.sigmoid(math.log(share / (1.0 - share)) + branch - marginal.log_density(x))[:, None]
        said = y + (sigma - 0.5 * sigma**2) / alpha * r if ancestral else y
        return (1.0 - q) * law.denoise(schedule, x, t) + q * said

    return Denoiser(schedule, predict, (dim,))
