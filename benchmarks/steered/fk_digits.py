"""Digits with a classifier's reward: Feynman-Kac particles against the best of as many at the same network calls.

The reward is the log-probability of a class; both take the best of 16 pictures of the unconditional model, the classes
in turn. Best-of-16 spends the calls that steering spends on looking ahead on more steps of the same solver. Strength
and boundaries are chosen on other noises. What is told is the mean of -log p(class | best picture).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.steering import Collapse
from molsamp.image import load, sample, steer
from molsamp.image.wishes import classifier, log_probability

CLAIM = "16 steered particles hold a better picture than the best of 16 at equal calls (Singhal et al. 2025)"
UNIT = "mean of -log p(class) of the best of 16, nats; lower is better"
BELOW = 1.0
PARTICLES, STEPS = 16, 40
STRENGTHS, EVERY = (1.0, 3.0, 10.0), (2, 5)
CODE = tuple(
    f"molsamp/{name}.py"
    for name in (
        *("engine/steering", "engine/particles", "engine/exponential", "engine/rollout", "engine/noise"),
        *("engine/schedules", "engine/grids", "image/steering", "image/sampling", "image/wishes", "image/denoiser"),
        *("image/networks", "image/models"),
    )
)


def measure(seed: int, populations: int = 40, choosing: int = 10) -> dict[str, float]:
    """About 4 CPU minutes."""
    noise, options = Noise(seed).child("fk"), list(product(STRENGTHS, EVERY))
    chosen = {how: _steered(noise.child("choosing"), choosing, *how)[0] for how in options}
    strength, every = min(chosen, key=chosen.__getitem__)
    method, calls, recognised = _steered(noise.child("scoring"), populations, strength, every)
    baseline, plain = _best(noise.child("scoring"), populations, calls)
    figures = {"strength": strength, "every": float(every), "calls": float(calls)}
    return {"method": method, "baseline": baseline, **figures, "recognised": recognised, "recognised of best": plain}


def _steered(noise: Noise, populations: int, strength: float, every: int) -> tuple[float, int, float]:
    """(mean -log p of the best, calls a picture, share of the best that are recognised), over the ten classes."""
    model = load("digits")

    def draw(reward: Callable, own: Noise) -> Tensor:
        how = {"strength": strength, "every": every, "groups": populations}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Collapse)  # it is a search
            return steer(model, reward, "ddpm", STEPS, PARTICLES * populations, noise=own, **how).particles.x

    loss, right = _classes(draw, noise, populations)
    return loss, model.calls // 10, right


def _best(noise: Noise, populations: int, calls: int) -> tuple[float, float]:
    model = load("digits")
    return _classes(
        lambda reward, own: sample(model, "ddpm", calls, PARTICLES * populations, noise=own).final.x, noise, populations
    )


def _classes(draw: Callable, noise: Noise, populations: int) -> tuple[float, float]:
    """(mean -log p, share with p above a half) of the best of every population, over the ten classes."""
    best = []
    for k in range(10):
        reward = partial(log_probability, classifier((1, 8, 8)), k)
        best.append(reward(draw(reward, noise.child(f"{k}"))).detach().view(populations, PARTICLES).amax(1))
    all_of = torch.cat(best)
    return -float(all_of.mean()), float((all_of > math.log(0.5)).double().mean())


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, 6, 3)
