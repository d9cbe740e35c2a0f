"""One population of twisted sequential Monte Carlo, with its genealogy.

N particles leave the start together, driven by the control of a twist psi. At every boundary they are weighed by the
change of log psi and resampled, so that at time t they follow p_0(z) psi(t, z); at the end psi is 1 on a hit and 0
else. The mean weight is an unbiased estimate of P_0(hit) and the weighted lines of descent are draws from P_0 given a
hit, whatever psi is (Del Moral, "Feynman-Kac formulae", 2004; the twisting: Whiteley and Lee, Ann. Statist. 42, 115
(2014)): a wrong psi costs variance, never truth. The twist is defensive (after Hesterberg, Technometrics 37, 185
(1995)), psi = h + kappa E_0[h]: kappa / (1 + kappa) of the particles follow P_0 at every time, where h may be wrong for
having seen too little. After its hit a particle is free: psi is 1 and the control 0.
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
        floor: log of kappa E_0[h], what psi has more than h.
        noise: of this population alone.
        n: particles.
        every: rows between boundaries.
        hold: rows for which a control is kept.
        level: distance to the end state that counts as a hit; None lets everything live, to see how far it gets.
        final: whether only the last frame can hit.
        pool, heat: of the start velocities, see `choose_starts`.
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
        floor: float = -math.inf,
        final: bool = False,
        pool: int = 8,
        heat: float = 4.0,
        check: Callable[[], None] = lambda: None,
    ):
        self.problem, self.value, self.noise, self.level, self.final = problem, value, noise, level, final
        self.floor, self.check = floor, check
        self.boundaries = [*range(0, problem.steps, every), problem.steps]
        self.done: list[Tensor] = []  # whether the hit lies behind
        self.clouds: list[Particles] = []  # weighted, before they are resampled
        self.log_h: list[Tensor] = []
        self.ancestors: list[Tensor] = []
        self.log_ratio: list[Tensor] = []
        self.nearest: list[Tensor] = []
        start = self._start(n, pool, heat)
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

    def _start(self, n: int, pool: int, heat: float) -> Particles:
        """n particles at the start that follow p_0(v_0) h(0, v_0), all of the same weight."""
        if not isinstance(self.problem.dynamics, Underdamped):
            p = self.problem.initial(self.noise, torch.arange(n))
            return p.evolve(logw=twist(self.value.log_h(0.0, p.x, p.v), self.floor))
        chosen, _ = choose_starts(self.problem, self.value, self.noise.child("pool"), n, pool, heat, self.floor)
        return Particles.at(chosen.x, chosen.v).evolve(logw=chosen.logw)

    def _remember(self, cloud: Particles, done: Tensor, log_h: Tensor, ancestors: Tensor) -> None:
        self.clouds.append(cloud)
        self.done.append(done)
        self.log_h.append(log_h)
        self.ancestors.append(ancestors)

    def _control(self, t: float, x: Tensor, v: Tensor | None) -> Tensor:
        return free(self.value.control(t, x, v, self.floor), self.done[-1][self.ancestors[-1]])

    def _watch(self, k: int, segment: Path) -> None:
        """Least distance to the end state on the segment."""
        near = self.problem.distance(segment.x[-1:] if self.final else segment.x[1:]).amin(0)
        self.nearest.append(torch.full_like(near, math.inf) if self.final and k < self.problem.steps else near)

    def _potential(self, k: int, p: Particles) -> Float[Tensor, " n"]:
        """log psi now less log psi at the boundary before."""
        level, parents = self.level, self.ancestors[-1]
        if k < self.problem.steps:
            now = self.value.log_h(self.problem.times[k], p.x, p.v)
        else:
            now = torch.full((len(p),), 0.0 if level is None else -math.inf, dtype=torch.float64)
        hit = torch.zeros(len(p), dtype=torch.bool) if level is None else self.nearest[-1] < level
        done = self.done[-1][parents] | hit
        self._now = done, torch.where(done, 0.0, now)
        psi = torch.where(done, 0.0, twist(now, self.floor)) if k < self.problem.steps else self._now[1]
        return psi - self.log_psi(len(self.clouds) - 1)[parents]

    def _each(self, k: int, segment: Path, cloud: Particles, ancestors: Tensor) -> None:
        self.check()
        self.log_ratio.append(segment.log_ratio)
        self._remember(cloud, *self._now, ancestors)

    # ---------------------------------------------------------------- what it tells

    @property
    def final_weights(self) -> Float[Tensor, " n"]:
        """log weights of the lines of descent, -inf for those that miss."""
        return live_weights(self.clouds[-1])

    def log_psi(self, b: int) -> Float[Tensor, " n"]:
        """log psi of cloud b, before the last one."""
        return torch.where(self.done[b], 0.0, twist(self.log_h[b], self.floor))

    def log_mass(self, b: int) -> float:
        """log of the mean weight at boundary b: an estimate of E_0[psi] there."""
        return log_mean_exp(live_weights(self.clouds[b]))[0]

    def efficiency(self) -> float:
        """Mean over the boundaries of ESS / n."""
        return sum(ess(live_weights(c)) / len(c) for c in self.clouds[1:]) / len(self.clouds[1:])

    def twisted(self, b: int) -> Float[Tensor, " n"]:
        """log weights with which cloud b, before the last one, follows p_0 h instead of p_0 psi."""
        return live_weights(self.clouds[b]) + self.log_h[b] - self.log_psi(b)

    def lineage(self, at: Int[Tensor, " m"], then: int = -1, first: int = 0) -> Int[Tensor, "B m"]:
        """Index at every boundary from `first` on of the ancestors of particles `at` of cloud `then`, the final one."""
        line = [at]
        for ancestors in reversed(self.ancestors[first:then]):
            line.append(ancestors[line[-1]])
        return torch.stack(line[::-1])

    def starts(self) -> int:
        """Distinct starts behind the lines of descent that hit."""
        return len(self.lineage((self.final_weights > -math.inf).nonzero()[:, 0])[0].unique())

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


def choose_starts(
    problem: Problem, value: LogHit, noise: Noise, n: int, pool: int, heat: float, floor: float = -math.inf
) -> tuple[Particles, Float[Tensor, " n"]]:
    """n starts that follow p_0(v_0) psi(0, v_0), and their log psi(0, v_0).

    They are resampled from n x pool velocities, drawn hotter by `heat` in the directions that matter most, since what
    hits at once starts there with three or four times the thermal speed; weights p_0 psi / q make up for it.
    """
    p = problem.initial(noise, torch.arange(n * pool))
    assert p.v is not None
    thermal = problem.dynamics.thermal_speed().to(p.v)  # type: ignore[union-attr]
    basis, stretch = value.view.soft(p.x[0], p.v[0]), math.sqrt(heat) - 1.0
    along = (p.v / thermal).flatten(1) @ basis.T
    p = p.evolve(v=p.v + thermal * (stretch * along @ basis).view_as(p.v))
    log_psi = twist(value.log_h(0.0, p.x, p.v), floor)
    log_pq = 0.5 * (1.0 - heat) * along.double().square().sum(1) + 0.5 * len(basis) * math.log(heat)
    q, parents = resample(p.evolve(logw=log_psi + log_pq), noise, 0, below=ALWAYS)
    offset = int(noise.child("offset").integers(0, torch.zeros(1, dtype=torch.int64), (), pool))
    at = torch.arange(offset, n * pool, pool)  # every pool-th of a systematic draw is a systematic draw
    return q.take(at), log_psi[parents[at]]


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

    def replay(self, problem: Problem, value: LogHit, every: int, hold: int, noise: Noise, floor: float) -> Path:
        """Every row of the paths, from the states at the boundaries; free after their hit.

        Args:
            problem, value, every, hold, noise, floor: as the population had them.
        """
        parts = []
        for b, first in enumerate(range(0, problem.steps, every)):
            p = Particles.at(self.x[b], None if self.v is None else self.v[b], self.ids[b + 1])

            def control(t: float, x: Tensor, v: Tensor | None, done: Tensor = self.done[b]) -> Tensor:
                return free(value.control(t, x, v, floor), done)

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


def twist(log_h: Float[Tensor, " n"], floor: float) -> Float[Tensor, " n"]:
    """log psi = log(h + e^floor)."""
    return torch.logaddexp(log_h, torch.full_like(log_h, floor))
