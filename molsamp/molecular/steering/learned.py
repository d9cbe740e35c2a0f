"""Steered draws of a trained diffusion sampler, weighed so that they stand for exp(-E/kT) exp(reward) / Z.

Networks are imperfect, so the law in which a sampler ends is not p = exp(-E/kT). Every path has a weight towards p
(`samplers`). It is told at the end alone: on the way it would say how unlike the free base process a path is, which is
what the sampler is there for. For a sampler that has learnt its law it is the same for all, and nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.particles import live_weights, sizes
from molsamp.engine.state import Particles, Path
from molsamp.engine.steering import Value
from molsamp.molecular.free_energy.diffusion.adjoint import AdjointSampler
from molsamp.molecular.steering.job import Aim, Steering
from molsamp.molecular.steering.samplers import PathSampler
from molsamp.molecular.steering.settings import LearnedSettings


class SteeredSampler(Steering):
    """Feynman-Kac steering of a trained sampler.

    Args:
        trained: a finished run of adjoint sampling, of the same system at the same temperature.
        aim, settings, noise, overrides: as in `Steering`.

    Raises:
        ValueError: as `Work`, or a run of another system or temperature.
    """

    name = "diffusion"
    Settings = LearnedSettings
    movers = "samples"
    clock = "steps"
    advice = "More `particles` or a weaker reward help."
    sooner = "the reward needs no steering"
    every = 1

    def __init__(
        self,
        aim: Aim,
        trained: AdjointSampler,
        settings: Any = None,
        noise: Noise | None = None,
        **overrides: Any,
    ):
        self.trained = trained
        super().__init__(aim, settings, noise, **overrides)

    def _begin(self) -> None:
        super()._begin()
        ours, theirs = (task.system for task in (self.aim.task, self.trained.task))
        for what, here, there in (("system", ours.name, theirs.name), ("kT", ours.kT, theirs.kT)):
            if here != there:
                raise ValueError(f"--from: the sampler has learnt {what} = {there}, asked for is {here}")
        self.sampler = PathSampler(self.trained, self.settings.steps, self.noise.child("sampler"))
        self.times, self.network_calls = self.sampler.levels, self.sampler.taken()

    @property
    def boundaries(self) -> list[float]:
        """Steps done."""
        return [float(k) for k in range(len(self.times))]

    @property
    def origin(self) -> str:
        """What the sampler starts from."""
        return self.trained.settings.source.kind

    def _start(self, noise: Noise) -> Particles:
        self.sampler.taken()  # by a unit that was given up
        return self.sampler.start(noise, self.settings.particles)

    def _motion(self) -> tuple[Dynamics, Integrator]:
        return self.sampler.sde, self.sampler.integrator

    def _stream(self, noise: Noise) -> Noise:
        return self.sampler.noise(noise)

    def _value(self, noise: Noise) -> Value:
        """log E[exp reward] over ends drawn about the predicted one."""
        looks, looked = self.settings.looks, self._stream(noise.child("looks"))
        step = {t: k for k, t in enumerate(self.times)}

        def value(t: float, p: Particles) -> Tensor:
            z = looked.normal(step[t], p.ids, (looks, *p.x.shape[1:]))
            told = self.aim.tilt(self.sampler.ends(p.x, t, z).flatten(0, 1)).view(-1, looks)
            return torch.logsumexp(told, 1) - math.log(looks)

        return value

    def _weighed(self, found: Steered, x: Sequence[Tensor]) -> Steered:
        """The weights of the lines of descent join those of the reward."""
        line, p = found.line(), found.particles
        along = torch.stack([x[0][line[0]], *(a[own] for a, own in zip(x[1:], line, strict=True))])
        times = torch.tensor(self.times, dtype=torch.float64)
        path = Path(times, along, None, None, None, torch.zeros_like(p.logw), p, 1)
        self.evaluations += len(p)
        p = p.evolve(logw=p.logw + self.sampler.log_weights(path, self.aim.task))
        self.network_calls += self.sampler.taken()
        effective = torch.cat([found.effective[:-1], sizes(live_weights(p)[None])[None]])
        return replace(found, particles=p, effective=effective)

    def before(self, weighed: Steered) -> Steered:
        """Free draws with the sampler's own weights: they stand for p."""
        p = weighed.particles
        return replace(weighed, particles=p.evolve(logw=p.logw - self.aim.tilt(p.x)))
