"""One population of twisted sequential Monte Carlo, with its genealogy.

N particles leave the start together, driven by the control of log h. At every boundary they are weighed by the change
of log h and resampled, so that at time t they follow p_0(z) h(t, z); at the end log h is 0 on a hit and -inf else.
The mean weight is an unbiased estimate of P_0(hit) and the weighted lines of descent are draws from P_0 given a hit,
whatever log h is (Del Moral, "Feynman-Kac formulae", 2004; the twisting: Whiteley and Lee, Ann. Statist. 42, 115
(2014)): a wrong log h costs variance, never truth. After its hit a
particle is free: log h is 0 and so is the control.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Underdamped
from molsamp.engine.measures import ess, log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.particles import live_weights, resample, smc
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path
from molsamp.molecular.paths.free import end_to_end
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.value import LogHit

ALWAYS = 2.0  # a share of n that no effective number reaches


class Population:
    """N particles from the start to the end of the grid.

    Args:
        problem: what to sample.
        value: log h.
        noise: of this population alone.
        n: particles.
        every: rows between boundaries.
        hold: rows for which a control is kept.
        level: distance to the end state that counts as a hit; None lets everything live, to see how far it gets.
        final: whether only the last frame can hit.
        pool: start velocities drawn for each particle that starts; the pool is resampled to follow h(0, v_0).
        check: called at every boundary; it may raise.
    """

    def __init__(
        self,
        problem: Problem,
        value: LogHit,
        noise: Noise,
        *,
        n: int,
        every: int,
        hold: int,
        level: float | None,
        final: bool = False,
        pool: int = 8,
        check: Callable[[], None] = lambda: None,
    ):
        self.problem, self.value, self.noise, self.level, self.final = problem, value, noise, level, final
        self.check = check
        self.boundaries = [*range(0, problem.steps, every), problem.steps]
        self.done: list[Tensor] = []  # whether the hit lies behind
        self.clouds: list[Particles] = []  # weighted, before they are resampled
        self.log_h: list[Tensor] = []
        self.ancestors: list[Tensor] = []
        self.log_ratio: list[Tensor] = []
        self.nearest: list[Tensor] = []
        start = self._start(n, pool)
        self._remember(start, torch.zeros(n, dtype=torch.bool), value.log_h(0.0, start.x, start.v), torch.arange(n))
        _, self.log_z = smc(
            Controlled(problem.dynamics, self._control, hold),
            problem.integrator,
            start,
            problem.times,
            self._potential,
            noise=noise,
            every=every,
            watch=self._watch,
            each=self._each,
        )

    # ---------------------------------------------------------------- the simulation

    def _start(self, n: int, pool: int) -> Particles:
        """n particles at the start whose velocities follow p_0(v_0) h(0, v_0), all of the same weight."""
        if not isinstance(self.problem.dynamics, Underdamped):
            p = self.problem.initial(self.noise, torch.arange(n))
            return p.evolve(logw=self.value.log_h(0.0, p.x, p.v))
        draws = self.noise.child("pool")
        p = self.problem.initial(draws, torch.arange(n * pool))
        p, _ = resample(p.evolve(logw=self.value.log_h(0.0, p.x, p.v)), draws, 0, below=ALWAYS)
        offset = int(draws.child("offset").integers(0, torch.zeros(1, dtype=torch.int64), (), pool))
        chosen = p.take(torch.arange(offset, n * pool, pool))  # every pool-th of a systematic draw is one of n
        return Particles.at(chosen.x, chosen.v).evolve(logw=chosen.logw)

    def _remember(self, cloud: Particles, done: Tensor, log_h: Tensor, ancestors: Tensor) -> None:
        self.clouds.append(cloud)
        self.done.append(done)
        self.log_h.append(log_h)
        self.ancestors.append(ancestors)

    def _control(self, t: float, x: Tensor, v: Tensor | None) -> Tensor:
        return free(self.value.control(t, x, v), self.done[-1][self.ancestors[-1]])

    def _watch(self, k: int, segment: Path) -> None:
        """Least distance to the end state on the segment."""
        near = self.problem.distance(segment.x[-1:] if self.final else segment.x[1:]).amin(0)
        self.nearest.append(torch.full_like(near, math.inf) if self.final and k < self.problem.steps else near)

    def _potential(self, k: int, p: Particles) -> Float[Tensor, " n"]:
        """log h now less log h at the boundary before."""
        level, parents = self.level, self.ancestors[-1]
        if k < self.problem.steps:
            now = self.value.log_h(self.problem.times[k], p.x, p.v)
        else:
            now = torch.full((len(p),), 0.0 if level is None else -math.inf, dtype=torch.float64)
        hit = torch.zeros(len(p), dtype=torch.bool) if level is None else self.nearest[-1] < level
        done = self.done[-1][parents] | hit
        self._now = done, torch.where(done, 0.0, now)
        return self._now[1] - self.log_h[-1][parents]

    def _each(self, k: int, segment: Path, cloud: Particles, ancestors: Tensor) -> None:
        self.check()
        self.log_ratio.append(segment.log_ratio)
        self._remember(cloud, *self._now, ancestors)

    # ---------------------------------------------------------------- what it tells

    @property
    def final_weights(self) -> Float[Tensor, " n"]:
        """log weights of the lines of descent, -inf for those that miss."""
        return live_weights(self.clouds[-1])

    def log_mass(self, b: int) -> float:
        """log of the mean weight at boundary b: an estimate of E_0[h] there."""
        return log_mean_exp(live_weights(self.clouds[b]))[0]

    def efficiency(self) -> float:
        """Mean over the boundaries of ESS / n."""
        return sum(ess(live_weights(c)) / len(c) for c in self.clouds[1:]) / len(self.clouds[1:])

    def lineage(self, last: Int[Tensor, " m"]) -> Int[Tensor, "B m"]:
        """Index at every boundary of the ancestors of particles `last` of the final cloud."""
        line = [last]
        for ancestors in reversed(self.ancestors[:-1]):
            line.append(ancestors[line[-1]])
        return torch.stack(line[::-1])

    def reach(self) -> Float[Tensor, " n"]:
        """Least distance to the end state along every line of descent."""
        line = self.lineage(torch.arange(len(self.clouds[0])))
        return torch.stack([near[at] for near, at in zip(self.nearest, line[1:], strict=True)]).amin(0)

    def pick(self, b: int, m: int, draws: Noise, logw: Float[Tensor, " n"] | None = None) -> Int[Tensor, " m"]:
        """m particles of cloud b, with replacement, by weight."""
        return _invert(live_weights(self.clouds[b]) if logw is None else logw, draws.uniform(b, torch.arange(m)))

    def draw(self, m: int, draws: Noise) -> Int[Tensor, " m"]:
        """m lines of descent by weight, spread systematically (as `resample` does)."""
        return _invert(self.final_weights, (torch.arange(m) + draws.uniform(0, torch.zeros(1, dtype=torch.int64))) / m)

    def lines(self, last: Int[Tensor, " m"]) -> Lines:
        """The lines of descent of particles `last` of the final cloud."""
        line, clouds = self.lineage(last), self.clouds
        v = [c.v[at] for c, at in zip(clouds, line, strict=True) if c.v is not None]
        return Lines(
            torch.stack([c.x[at] for c, at in zip(clouds, line, strict=True)]),
            torch.stack(v) if v else None,
            torch.stack([c.ids[at] for c, at in zip(clouds, line, strict=True)]),
            torch.stack([d[at] for d, at in zip(self.done, line, strict=True)]),
        )


class Lines(NamedTuple):
    """m lines of descent at B boundaries: what their paths can be simulated again from.

    Args:
        x, v: states, (B, m, *event).
        ids: keys of the noise of the segment that ends there, (B, m).
        done: whether the hit lies behind, (B, m).
    """

    x: Tensor
    v: Tensor | None
    ids: Int[Tensor, "B m"]
    done: Bool[Tensor, "B m"]

    def take(self, index: Int[Tensor, " k"]) -> Lines:
        """The lines at `index`."""
        return Lines(*(None if a is None else a[:, index] for a in self))  # type: ignore[arg-type]

    def replay(self, problem: Problem, value: LogHit, every: int, hold: int, noise: Noise) -> Path:
        """Every row of the paths, from the states at the boundaries; free after their hit.

        Args:
            problem, value, every, hold, noise: as the population had them.
        """
        parts = []
        for b, first in enumerate(range(0, problem.steps, every)):
            p = Particles.at(self.x[b], None if self.v is None else self.v[b], self.ids[b + 1])

            def control(t: float, x: Tensor, v: Tensor | None, done: Tensor = self.done[b]) -> Tensor:
                return free(value.control(t, x, v), done)

            dyn, times = Controlled(problem.dynamics, control, hold), problem.times[first : first + every + 1]
            parts.append(rollout(dyn, problem.integrator, p, times, noise=noise, first=first))
        return end_to_end(parts)


def _invert(logw: Float[Tensor, " n"], u: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """First index whose cumulative weight exceeds u."""
    w = torch.softmax(logw, 0).cumsum(0)
    return torch.searchsorted(w / w[-1], u.contiguous(), right=True).clamp(max=len(w) - 1)


def free(u: Float[Tensor, "n *event"], done: Bool[Tensor, " n"]) -> Float[Tensor, "n *event"]:
    """u, but nothing for those that are done."""
    return u.masked_fill(done.view(-1, *[1] * (u.dim() - 1)), 0.0)
