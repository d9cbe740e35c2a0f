"""The models that image benchmarks run on, their fine trajectories, and diffusers' schedulers on the same models.

All models are in the frame of the linear VP schedule. Both sides start from the same x of unit variance at the noise of
diffusers' last training step, and end where its first one is (rho = 0.01), or at no noise at all; each result is
compared with the model's own fine trajectory to the end that its solver says it went to.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molsamp.engine import VP, Discrete, Exponential, GaussianMixture, Noise, time_grid
from molsamp.engine.integrators import Integrator
from molsamp.image import data, ideal
from molsamp.image.denoiser import Denoiser
from molsamp.image.models import load
from molsamp.image.sampling import plan, sample

ENGINE = tuple(
    f"molsamp/engine/{name}.py"
    for name in (
        *("schedules", "grids", "quadrature", "exponential", "singlestep", "integrators", "rollout", "dynamics"),
        *("noise", "state", "mixtures"),
    )
)
"""The part of the engine that solves diffusion models."""
IMAGE = ("solvers", "sampling", "compensation", "denoiser", "ideal", "networks")
CODE = (*ENGINE, *(f"molsamp/image/{name}.py" for name in IMAGE), "benchmarks/pictures.py")
MODELS = ("gaussians", "ideal:digits", "ideal:mnist", "digits", "digits, guided", "mnist", "mnist, guided")
STOCHASTIC = ("ddpm", "edm", "sde-dpm++1", "sde-dpm++2m")  # draw noise on the way
S, TABLE = VP(), Discrete()
RHO = np.array([TABLE.sigma(i) / TABLE.alpha(i) for i in range(TABLE.N)])
START, END = S.time(-math.log(RHO[-1])), S.time(-math.log(RHO[0]))
FINE = 300  # intervals of a fine trajectory, UniPC of order 3, each half of them with even steps in log-SNR and in t
GUIDED, GUIDANCE = 3, 3.0  # class and strength
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")


@cache
def model(name: str) -> Denoiser:
    """gaussians | ideal:digits | ideal:mnist | digits | mnist, and the last two with ", guided" behind."""
    if name == "gaussians":
        x, label = data.digits()
        flat = x.flatten(1).double()
        of = [flat[label == k] for k in range(10)]
        covs = torch.stack([torch.cov(a.T) + 0.05**2 * torch.eye(64, dtype=torch.float64) for a in of])
        return ideal.mixture(GaussianMixture(torch.stack([a.mean(0) for a in of]), covs), S, (1, 8, 8))
    kind, _, guided = name.partition(", ")
    return load(kind).guided(GUIDED, GUIDANCE) if guided else load(kind)


def starts(name: str, seed: int, n: int) -> Tensor:
    """x of unit variance."""
    return Noise(seed).child("start").normal(0, torch.arange(n), model(name).event, torch.float32)


@dataclass(frozen=True)
class Truth:
    """Ends of the fine trajectory at rho = 0.01, and where all noise is gone."""

    small: Tensor
    zero: Tensor


def truth(name: str, start: Tensor, fine: int = FINE) -> Truth:
    """The fine trajectory: half the intervals even in t, the others, among the last noise levels, in log-SNR."""
    middle = 0.15
    denoise = model(name)
    grid = [*time_grid("uniform", S, fine // 2, START, middle)[:-1], *time_grid("log-snr", S, fine // 2, middle, END)]
    solver = Exponential(3, corrects=3, rule="exact", short=0)
    small = sample(denoise, solver, len(grid) - 1, noise=Noise(0), grid=grid, start=start).final.x
    rest = [*time_grid("log-snr", S, 20, END, 1e-5), 0.0]
    zero = sample(denoise, solver, len(rest) - 1, noise=Noise(0), grid=rest, start=small).final.x
    return Truth(small, zero)


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """Mean squared difference of each image."""
    return (found - exact).double().square().flatten(1).mean(1)


def ours(name: str, solver: str | Integrator, calls: int, grid: str, start: Tensor) -> Tensor:
    """Last x at rho = 0.01."""
    intervals = plan(solver, calls)[1]
    times = time_grid(grid, S, intervals, START, END)
    return sample(model(name), solver, calls, noise=Noise(1), grid=times, start=start).final.x


# ---- diffusers ----

MULTI, SINGLE, UNI = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"


@cache
def schedulers() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every scheduler of diffusers that runs on this model, with its variants of ends, grids and formulas.

    Those "on our grid" are not theirs: DPM-Solver++ given the training steps next to the nodes of our quadratic grid.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    grids = {"": {}, " karras": dict(use_karras_sigmas=True), " lu": dict(use_lu_lambdas=True)}
    grids |= {
        " trailing": dict(timestep_spacing="trailing"),
        " leading": dict(timestep_spacing="leading", steps_offset=1),
    }
    ends = {"": dict(final_sigmas_type="zero"), " to 0.01": dict(final_sigmas_type="sigma_min")}
    for g, grid in grids.items():
        for e, end in ends.items():
            for order in (1, 2, 3):
                found[f"dpm++{order}m{g}{e}"] = MULTI, dict(solver_order=order, **grid, **end)
            found[f"dpm++2m heun{g}{e}"] = MULTI, dict(solver_order=2, solver_type="heun", **grid, **end)
            for order in (2, 3):
                if "spacing" not in "".join(grid):
                    found[f"dpm++{order}s{g}{e}"] = SINGLE, dict(solver_order=order, **grid, **end)
            if "lu" not in g:
                for order in (1, 2, 3):
                    for bh in ("bh1", "bh2"):
                        found[f"unipc-{order} {bh}{g}{e}"] = (
                            UNI,
                            dict(solver_order=order, solver_type=bh, **grid, **end),
                        )
        if "lu" not in g:
            for order in (1, 2, 3):
                found[f"deis-{order}{g}"] = "DEISMultistepScheduler", dict(solver_order=order, **grid)
            found[f"heun{g}"] = "HeunDiscreteScheduler", grid
            found[f"euler{g}"] = "EulerDiscreteScheduler", grid
            found[f"lms{g}"] = "LMSDiscreteScheduler", grid
            found[f"kdpm2{g}"] = "KDPM2DiscreteScheduler", grid
    for spacing in ("leading", "trailing", "linspace"):
        found[f"ddim {spacing}"] = "DDIMScheduler", dict(timestep_spacing=spacing, clip_sample=False)
        if spacing != "linspace":
            found[f"pndm {spacing}"] = "PNDMScheduler", dict(timestep_spacing=spacing, skip_prk_steps=True)
    for order in (1, 2, 3):
        end = dict(final_sigmas_type="sigma_min", timesteps=_quadratic)
        found[f"dpm++{order}m on our grid"] = MULTI, dict(solver_order=order, **end)
    return found


def _quadratic(calls: int) -> list[int]:
    """Training steps, no two alike, nearest to a quadratic grid."""
    steps = [TABLE.time(S.lam(t)) for t in time_grid("quadratic", S, calls, START, END)[:-1]]
    whole = [round(t) for t in steps]
    for i in range(len(whole) - 1, 0, -1):
        whole[i - 1] = max(whole[i - 1], whole[i] + 1)
    return whole


def theirs(name: str, scheduler: str, calls: int, start: Tensor) -> tuple[Tensor, bool] | None:
    """Last x and whether it is at rho = 0.01 (else at 0); None if it cannot with these calls, or one less."""
    import diffusers

    kind, settings = schedulers()[scheduler]
    settings, small = dict(settings), settings.get("final_sigmas_type") == "sigma_min" or "deis" in scheduler
    own = settings.pop("timesteps", None)
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for steps in (calls, calls - 1, (calls + 1) // 2, calls // 2):
            try:
                made = getattr(diffusers, kind)(**BETAS, **settings)
                made.set_timesteps(**(dict(timesteps=own(calls)) if own else dict(num_inference_steps=steps)))
                if calls - 1 <= len(made.timesteps) <= calls:
                    return _run(name, made, start), small
            except (ValueError, IndexError, RuntimeError, TypeError, AssertionError, NotImplementedError):
                continue
    return None


def _run(name: str, made: Any, start: Tensor) -> Tensor:
    """Its own loop, on noise predictions of the model at the noise that a (fractional) training step stands for."""
    denoise, x = model(name), start * float(made.init_noise_sigma)
    for t in made.timesteps:
        rho = float(np.exp(np.interp(float(t), np.arange(TABLE.N), np.log(RHO))))
        time = S.time(-math.log(rho))
        y = made.scale_model_input(x, t)
        eps = (y - S.alpha(time) * denoise(y, time)) / S.sigma(time)
        x = made.step(eps, t, x).prev_sample
    return x
