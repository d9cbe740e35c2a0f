"""A trained diffusion sampler with densities of its paths, so that what it draws is weighed exactly.

A sampler steers dX = sigma_t dW from X_0 ~ nu until X_1 is about p = exp(-E/kT) (see `learn.adjoint`). Here it goes in
K steps down noise levels s_0 > .. > s_K > 0, s_k^2 being the base's variance that is left, and ends at s_K, which is
small against all that p has:

    q(x_0 .. x_K) = nu(x_0) prod_k N(x_k+1; r_k x_k + (1 - r_k) D_k, N_k^2),    r_k = s_k+1^2 / s_k^2
    N_k^2 = (1 - r_k) s_k+1^2 + (1 - r_k)^2 V_k

with D_k the network's prediction of the end, and V_k the mean square of its error on pairs (X_0, X_1) that the sampler
learnt from, of each coordinate of a toy and of all together of a molecule, which turns: the variance that makes steps
right in the mean (Bao et al., ICLR 2022). A path has the weight

    w = p(x_K) L(x_0 | x_K) B(x_1 .. x_K-1 | x_0, x_K) / q(x_0 .. x_K)

where B is the bridge of the base and L = N(D_h, v C) the corrector's prediction of the start, with the source's C. Both
are densities whatever the networks have learnt, so E_q[w f(x_K)] is the integral of exp(-E/kT) f for every f: bad
networks cost effective samples and nothing else. At the Schroedinger bridge and for fine steps all weights are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.bridges import bridge, noise_levels
from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Evaluate, Line, Row, Table, require
from molsamp.engine.noise import Centred, Noise, Steps
from molsamp.engine.rollout import residuals
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Particles, Path
from molsamp.molecular.free_energy.diffusion.adjoint import AdjointSampler
from molsamp.molecular.free_energy.diffusion.sources import Point
from molsamp.molecular.free_energy.task import Task

PAIRS = 512  # of the sampler's own that variances are measured on
F64 = torch.float64


@dataclass(frozen=True)
class Ancestral:
    """x' = r x + (1 - r) D + N z down noise levels, with the N above.

    Args:
        variance: V of every step.
    """

    variance: Float[Tensor, "K *event"]

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row a step, one evaluation each; all have densities."""
        require(dyn, (LinearSDE,), "Ancestral")
        return [
            Row(s, t, (Evaluate(s), Line("x", {"x": (t / s) ** 2}, (1.0 - (t / s) ** 2,), N)))
            for (s, t), N in zip(pairwise(times), self.noise(times), strict=True)
        ]

    def noise(self, times: Sequence[float]) -> Float[Tensor, "K *event"]:
        """N of every step."""
        level = torch.tensor(times, dtype=F64).square().view(-1, *[1] * (self.variance.dim() - 1))
        rest = 1.0 - level[1:] / level[:-1]
        return (rest * level[1:] + rest.square() * self.variance).sqrt()


class PathSampler:
    """The sampler of a finished adjoint-sampling run, in float64 but for its networks.

    Args:
        trained: the run.
        steps: K.
        noise: of the pairs that variances are measured on.

    Raises:
        ValueError: a run that has learnt from no sample.
    """

    def __init__(self, trained: AdjointSampler, steps: int, noise: Noise):
        self.own, self.event, self.calls = trained.sampler, trained.task.system.event, 0
        self.restraint = trained.restraint
        if len(trained.ring) < 2:
            raise ValueError("the sampler has learnt from no sample; let it run to its end")
        self.levels = noise_levels(self.own.base, steps + 1)[:-1]
        self.size = math.prod(self.event) - (self.event[-1] if self.own.centred else 0)
        self.sde = LinearSDE(EDM(), self._denoise)
        pairs = trained.ring.take(noise.integers(0, torch.arange(PAIRS), (1,), len(trained.ring))[:, 0])
        x0, x1 = pairs["x0"].to(F64), pairs["x1"].to(F64)
        self.variance = torch.stack([self._missed(k, x0, x1, noise) for k in range(steps)])
        self.integrator = Ancestral(self.variance)
        if not isinstance(self.own.source, Point):
            gap = self._white(x0 - self._origin(x1))
            self.spread = float(gap.square().sum()) / (PAIRS * self.size)

    def _missed(self, k: int, x0: Tensor, x1: Tensor, noise: Noise) -> Tensor:
        """V_k."""
        s, z = self.levels[k], self.noise(noise.child("bridges")).normal(k, torch.arange(len(x1)), self.event)
        left = torch.full((len(x1),), s**2, dtype=F64).clamp(max=self.own.total)  # which rounding may pass
        x = bridge(x0, x1, left, self.own.total, z)
        V = (x1 - self._denoise(x, s)).square().mean(0)
        return (V.sum() / self.size).expand(self.event) if self.own.centred else V

    def taken(self) -> int:
        """Network calls since this was asked last."""
        calls, self.calls = self.calls, 0
        return calls

    @torch.no_grad()
    def _denoise(self, x: Tensor, s: float) -> Tensor:
        self.calls += len(x)
        like = self.own.denoiser.size
        return self.own.average(x.to(like), like.new_full((len(x),), s)).to(x)

    @torch.no_grad()
    def _origin(self, x: Tensor) -> Tensor:
        """The start that the corrector sees behind an end."""
        return x + self.own.total * self.own.h(x.to(self.own.denoiser.size)).to(x)

    def _white(self, x: Tensor) -> Tensor:
        """C^(-1/2) x."""
        root = self.own.source.root  # type: ignore[attr-defined]
        if isinstance(root, float):
            return x / root
        return torch.einsum("ab,nbd->nad", torch.linalg.pinv(root.to(x)), x)

    def noise(self, noise: Noise) -> Noise:
        """The same, and for molecules with no part that moves the centre."""
        return _Centred(noise.seed) if self.own.centred else noise

    def start(self, noise: Noise, n: int) -> Particles:
        """n draws of the source."""
        return Particles.at(self.own.source.draw(noise, torch.arange(n), F64))

    def ends(
        self, x: Float[Tensor, "n *event"], s: float, z: Float[Tensor, "n m *event"]
    ) -> Float[Tensor, "n m *event"]:
        """Where particles at level s may end: D + V^(1/2) z."""
        return self._denoise(x, s)[:, None] + self.variance[self.levels.index(s)].sqrt() * z

    def log_weights(self, path: Path, task: Task) -> Float[Tensor, " n"]:
        """log w of paths saved at every row, nats.

        Args:
            path: from a `start` down the levels.
            task: that knows E and kT.
        """
        x, d = path.x, self.size
        z, _ = residuals(path, self.sde, self.integrator)
        kappa = torch.tensor(self.levels, dtype=F64).square()
        gone = (kappa[:-1] - kappa[1:]).view(-1, *[1] * len(self.event))
        free = (x[1:] - x[:-1]) / gone.sqrt()[:, None]
        wider = (self.integrator.noise(self.levels) / gone.sqrt()).log().flatten(1).mean(1).sum()  # a coordinate
        log_w = 0.5 * (z - free).mul(z + free).flatten(2).sum((0, 2)) + d * float(wider)
        whole = float(gone.sum())
        log_w += 0.5 * ((x[-1] - x[0]).square().flatten(1).sum(1) / whole + d * math.log(2.0 * math.pi * whole))
        if not isinstance(self.own.source, Point):
            start, gap = self._white(x[0]), self._white(x[0] - self._origin(x[-1]))
            log_w += 0.5 * (start.square() - gap.square() / self.spread).flatten(1).sum(1)
            log_w -= 0.5 * d * math.log(self.spread)
        energy = task.energy if self.restraint is None else task.energy + self.restraint
        return log_w - energy.energy(x[-1].to(task.dtype)).double() / task.kT


class _Centred(Noise):
    """Vectors over atoms that sum to zero, as `noise.Centred`; the streams that it names are plain."""

    def normal(
        self, step: Steps, ids: Int[Tensor, " n"], shape: tuple[int, ...], dtype: torch.dtype = F64
    ) -> Float[Tensor, "... n *shape"]:
        """As `Noise.normal`, less the mean over the second last axis."""
        return Centred(Noise(self.seed)).normal(step, ids, shape, dtype)
