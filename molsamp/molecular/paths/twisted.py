"""The exact ensemble of paths from a fixed start, given a hit, by twisted sequential Monte Carlo with a learned log h.

One unit is one population (see `population`) or one lesson that log h takes from it:

    on the way     The end state is approached through levels of the distance to it, each a share of the last
                   population's weight. A classifier tells frames of the cloud, which follow p_0 psi, from frames on
                   lines of descent that reach the new level, which follow p_0 h: its logit is log h - log psi - c,
                   with c the log ratio of the two masses, which the population itself estimates.
    refinement     The same at one level, with lines of descent that follow p_0 h some boundaries later, h as the
                   network knows it there. A short horizon makes log h agree with itself from one boundary to the
                   next; a longer one carries news from the end to the start in fewer lessons: they take turns. The
                   last few populations teach together, or what is rare is forgotten again. A level is ripe when
                   enough distinct starts survive: lines that all descend from a few say that h is wrong early on,
                   and a lesson of a few lines about the next level would be wrong everywhere.
    production     Refinement goes on, and populations count: each is unbiased given the log h it ran with, which only
                   earlier ones have taught, so that their errors are uncorrelated and their scatter gives the error
                   of log P_0(hit) and of every average. A channel that turns up late is learnt all the same.

What comes out is exact whatever log h is; log h is also a sampler by itself, see `TwistedPaths.sample`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Underdamped
from molsamp.engine.estimates import Estimate, student95
from molsamp.engine.measures import ess, log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path
from molsamp.learn.fit import fit
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.paths.free import concatenate
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.population import Lines, Population, choose_starts
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.scoring import arrival, departure
from molsamp.molecular.paths.settings import TwistedSettings
from molsamp.molecular.paths.value import LogHit

SPARE = 4  # kept lines of descent a population, for each that an average population gives to the result
POOL = 64  # start velocities drawn for each path of the control alone


class Kept(NamedTuple):
    """What the paths of a population are simulated again from: its unit, lines of descent, log h and floor."""

    unit: int
    lines: Lines
    value: LogHit
    floor: float


class TwistedPaths(Sampler):
    """Twisted sequential Monte Carlo; arguments as in `Sampler`, settings as in `TwistedSettings`."""

    name = "twisted"
    Settings = TwistedSettings

    def _begin(self) -> None:
        s = self.settings
        self.value = LogHit(self.problem, s.widths, s.fine, self.noise.child("network"))
        self.level: float | None = None
        self.floor = -math.inf  # log of kappa E_0[h]
        self.taught = 0  # refinements at this level
        self.population: Population | None = None  # what the next lesson is taken from
        self.lessons: list[dict[str, Tensor]] = []  # of the refinement at this level: the last ones
        self.log_z: list[float] = []
        self.kept: list[Kept] = []  # of the production
        self.seen: list[Tensor] = []  # and what was observed on their paths
        self.keep = -(-SPARE * self.n // s.populations)
        self.counting: int | None = None  # first unit of the production
        self.total = 2 * (s.levels + s.refinements + s.populations) - 1

    # ---------------------------------------------------------------- units

    def _advance(self) -> dict[str, Any]:
        """A population and its lesson in turn."""
        if self.k % 2:
            metrics = self._lesson(self.population or self._populate(self.k - 1))
            self.population = None
        else:
            self.population = self._populate(self.k)
            metrics = self._look(self.population)
            if self.counting is not None:
                self._produce(self.population)
        self.k += 1
        return metrics

    def _populate(self, unit: int) -> Population:
        s = self.settings
        self.network_calls += s.particles * (self.problem.steps // s.hold + self.problem.steps // s.every)
        return Population(
            self.problem,
            self.value,
            self.noise.child(f"population {unit}"),
            n=s.particles,
            every=s.every,
            hold=s.hold,
            level=self.level,
            floor=self.floor,
            final=s.arrival == "final",
            pool=s.pool,
            heat=s.heat,
            check=self._check,
        )

    def _look(self, population: Population) -> dict[str, Any]:
        return {
            "level": math.inf if self.level is None else self.level,
            "log_p": population.log_z,
            "efficiency": population.efficiency(),
            "starts": population.starts(),
            "hit_rate": float((population.reach() < self.problem.end.radius).double().mean()),
        }

    @property
    def _arrived(self) -> bool:
        return self.level == self.problem.end.radius

    def _lesson(self, population: Population) -> dict[str, Any]:
        """A step towards the end state if the level is ripe, or there is no level yet; else a refinement."""
        s, alive = self.settings, population.log_z > -math.inf
        metrics: dict[str, Any] = {}
        if alive and not self._arrived and self._ripe(population, 0, s.dwell):
            goal = self._next_level(population)
            metrics = {"loss": self._approach(population, goal), "level": goal}
            self.level, self.taught, self.lessons = goal, 0, []
            if self._arrived:
                self._plan(s.refinements)
        else:
            metrics = {"loss": self._refine(population) if alive else math.nan}
            self.taught += 1
            if self._arrived and self.counting is None:
                ripe = self._ripe(population, s.refinements, s.refinements + s.patience)
                self._plan(0 if ripe else max(1, s.refinements - self.taught))
        self.floor = self._defence()
        if not self._arrived and self.k + 1 >= 2 * s.levels:
            self.total = self.k + 1
        return metrics

    def _ripe(self, population: Population, least: int, most: int) -> bool:
        """Whether enough starts survive at this level after the least, or no matter how many after the most lessons."""
        enough = population.starts() >= self.settings.ripe * self.settings.particles
        return self.taught >= most or (self.taught >= least and enough)

    def _plan(self, refinements: int) -> None:
        """So many more, then the production, whose last population teaches nobody."""
        self.total = self.k + 2 * (refinements + self.settings.populations)
        if not refinements:
            self.counting = self.k + 1

    def _defence(self) -> float:
        """log of kappa E_0[h(0, v_0)]."""
        s, draws = self.settings, self.noise.child("defence")
        p = self.problem.initial(draws, torch.arange(s.particles * s.pool))
        return math.log(s.kappa) + log_mean_exp(self.value.log_h(0.0, p.x, p.v))[0] if s.kappa else -math.inf

    # ---------------------------------------------------------------- lessons

    def _next_level(self, population: Population) -> float:
        """The distance that `share` of the weight stays below, or more where too few starts are behind it.

        It shrinks every time, or the few would teach the same level again.
        """
        s, radius, last = self.settings, self.problem.end.radius, math.inf if self.level is None else self.level
        reach, order = population.reach().sort()
        within = int((torch.softmax(population.final_weights, 0)[order].cumsum(0) < s.share).sum())
        starts = population.lineage(order)[0]
        firsts = torch.from_numpy(np.unique(starts.numpy(), return_index=True)[1]).sort().values
        for enough in (max(within, int(firsts[: s.ancestors][-1])), within):
            level = float(reach[min(enough, len(reach) - 1)].nextafter(torch.tensor(math.inf).to(reach)))
            if level < last:
                break
        return max(radius, min(last, level))

    def _approach(self, population: Population, goal: float) -> float:
        """Teach the coarse network log h of the level `goal`; returns the last cross-entropy, nats."""
        logw = torch.where(population.reach() < goal, population.final_weights, -math.inf)
        with torch.no_grad():  # it is that much rarer
            self.value.coarse[-1].get_parameter("bias").add_(log_mean_exp(logw)[0] - population.log_z)
        lesson = self._classes(population, logw, len(population.boundaries))
        return self._fit(lesson, self.settings.classify_steps)

    def _refine(self, population: Population) -> float:
        """Teach log h as boundaries further on know it, of the end state the fine network too; returns as above."""
        s = self.settings
        self.value.sharp.fill_(self._arrived)
        lesson = self._classes(population, population.final_weights, s.horizons[self.k // 2 % len(s.horizons)])
        self.lessons = [*self.lessons, lesson][-s.replay :]
        together = {k: torch.cat([lesson[k] for lesson in self.lessons]) for k in lesson}
        return self._fit(together, s.refine_steps)

    def _classes(self, population: Population, final: Tensor, horizon: int) -> dict[str, Tensor]:
        """Frames of every cloud (label 0), and of its lines of descent that follow p_0 h `horizon` boundaries on (1).

        At the end, what the lines follow is given by their log weights `final`.
        """
        s, draws = self.settings, self.noise.child(f"classes {self.k}")
        end, parts = len(population.boundaries) - 1, []
        for b in range(end):
            cloud, then = population.clouds[b], min(b + horizon, end)
            logw = final if then == end else population.twisted(then)
            line = population.lineage(population.pick(then, s.pairs, draws.child("lines"), logw), then, b)[0]
            at = torch.cat([population.pick(b, s.pairs, draws), line])
            label = (torch.arange(len(at)) >= s.pairs).to(self.problem.dtype)
            going = ~population.done[b][at]
            at, label = at[going], label[going]
            if not len(at):
                continue
            x, v = cloud.x[at], None if cloud.v is None else cloud.v[at]
            offset = population.log_psi(b)[at] + log_mean_exp(logw)[0] - population.log_mass(b)
            t = torch.full((len(at),), population.boundaries[b] / self.problem.steps, dtype=x.dtype)
            parts.append((t, self.value.look(x, v).features, offset.to(x), label))
        columns = (torch.cat(p) for p in zip(*parts, strict=True))
        return dict(zip(("t", "features", "offset", "label"), columns, strict=True))

    def _fit(self, items: dict[str, Tensor], steps: int) -> float:
        """Adam with a rate that falls linearly to nothing, on uniform batches; the logit is log h - offset."""
        s, keys = self.settings, self.noise.child(f"batches {self.k}")
        optimiser = torch.optim.Adam(self.value.parameters(), lr=s.learning_rate)
        count = len(items["t"])

        def draw(step: int) -> dict[str, Tensor]:
            for group in optimiser.param_groups:
                group["lr"] = s.learning_rate * (1.0 - step / steps)
            index = keys.integers(step, torch.arange(s.batch), (), count)
            return {k: a[index] for k, a in items.items()}

        def loss(batch: dict[str, Tensor]) -> Tensor:
            logit = self.value(batch["t"], batch["features"]) - batch["offset"]
            return torch.nn.functional.binary_cross_entropy_with_logits(logit, batch["label"])

        return fit(loss, draw, optimiser, steps=steps).loss

    # ---------------------------------------------------------------- production

    def _produce(self, population: Population) -> None:
        """Keep the estimate of P_0(hit) and some lines of descent."""
        self.log_z.append(population.log_z)
        if population.log_z > -math.inf:
            lines = population.lines(population.draw(self.keep, self.noise.child(f"lines {self.k}")))
            self.kept.append(Kept(self.k, lines, copy.deepcopy(self.value), self.floor))
            self.seen.append(self._observe(self._replay(*self.kept[-1])))

    def _replay(self, unit: int, lines: Lines, value: LogHit, floor: float) -> Path:
        s, noise = self.settings, self.noise.child(f"population {unit}")
        return lines.replay(self.problem, value, s.every, s.hold, noise, floor)

    def _observe(self, path: Path) -> Float[Tensor, "m k"]:
        """Frames of departure and arrival, and the highest energy: what effective numbers are judged by."""
        paths = Paths(self.problem, path, path.log_ratio, self.name)
        seen = [departure(paths).double(), arrival(paths).double()]
        return torch.stack(seen if path.energy is None else [*seen, path.energy.double().amax(0)], 1)

    def log_p_hit(self) -> Estimate:
        """log P_0(hit) in nats: log of the mean over populations, each unbiased; interval by their scatter."""
        R = len(self.log_z)
        if R < 2:
            return Estimate(math.nan, (-math.inf, 0.0), "nats", R)
        log_z = torch.tensor(self.log_z, dtype=torch.float64)
        value, error = log_mean_exp(log_z)
        half = student95(R - 1) * error
        return Estimate(value, (value - half, value + half), "nats", R, ess(log_z))

    def paths(self) -> Paths:
        """n paths, from every population in proportion to its estimate; draws from P_0 given a hit."""
        if not self.kept:
            far = math.inf if self.level is None else self.level
            note = f"After {self.settings.levels} levels populations are still at distance {far:.3g}: give them more."
            return replace(self.sample(self.n, self.noise.child("evaluation")), notes=(note,))
        log_p = self.log_p_hit()
        w = self._weights()
        shares = self._shares(w)
        given = (
            kept._replace(lines=kept.lines.take(torch.arange(m) % self.keep))
            for kept, m in zip(self.kept, shares, strict=True)
            if m
        )
        path = concatenate([self._replay(*kept) for kept in given])
        effective = min(float(self.n), self.effective_number())
        note = f"Fixed start; {len(w)} independent populations, by scatter worth {effective:.1f} independent paths."
        log_rn = torch.full((self.n,), -log_p.value, dtype=torch.float64)
        return Paths(
            self.problem,
            path,
            log_rn,
            self.name,
            exact=True,
            cost=self.cost,
            effective=effective,
            notes=(note,),
            extra={"log_p_hit": log_p},
        )

    def _weights(self) -> Float[Tensor, " R"]:
        """Share of every population that has hits."""
        return torch.softmax(torch.tensor([z for z in self.log_z if z > -math.inf], dtype=torch.float64), 0)

    def _shares(self, w: Float[Tensor, " R"]) -> list[int]:
        """How many of the n paths each population gives, systematically."""
        u = float(self.noise.child("shares").uniform(0, torch.zeros(1, dtype=torch.int64)))
        edges = torch.cat([torch.zeros(1, dtype=w.dtype), w.cumsum(0)])
        edges[-1] = 1.0
        return (edges * self.n - u).ceil().diff().long().tolist()

    def effective_number(self) -> float:
        """var(f) / var(mean of f), the least over what is observed of every path.

        The variance of the mean is that of a ratio over populations, sum_r w_r^2 (f_r - f)^2 R / (R - 1); it sees
        common ancestors within a population and unequal populations alike.
        """
        if not self.seen:
            return 0.0
        w, f = self._weights(), torch.stack(self.seen)  # (R, m, k)
        R = len(w)
        means = f.mean(1)
        centre = (w[:, None] * means).sum(0)
        variance = (w[:, None] * (f - centre).square().mean(1)).sum(0)
        error = (w[:, None] * (means - centre)).square().sum(0) * R / max(1, R - 1)
        counts = torch.where(error > 0.0, variance / error, 1.0)
        return max(1.0, float(counts.min()))

    # ---------------------------------------------------------------- log h as a sampler

    def sample(self, n: int, noise: Noise) -> Paths:
        """n independent paths of the control u = N grad log h alone, v_0 from a pool weighed by h(0, v_0); weighted.

        log_rn is log dP_u/dP_0 of the path and of the choice of v_0; its reference is the pool's own mean of h.
        """
        s, problem = self.settings, self.problem
        if isinstance(problem.dynamics, Underdamped):
            chosen, log_psi = choose_starts(problem, self.value, noise.child("pool"), n, POOL, s.heat)
            start, log_rn = Particles.at(chosen.x, chosen.v), log_psi - chosen.logw
        else:
            start, log_rn = problem.initial(noise, torch.arange(n)), torch.zeros(n, dtype=torch.float64)
        dyn = Controlled(problem.dynamics, self.value.control, s.hold)
        self.network_calls += n * problem.steps // s.hold
        with self._timed():
            path = rollout(dyn, problem.integrator, start, problem.times, noise=noise)
        return Paths(problem, path, path.log_ratio + log_rn, self.name, cost=self.cost)

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        """Networks, level, production; a population that waits for its lesson is simulated again."""
        flat = {
            "total": torch.tensor([self.total, self.taught, -1 if self.counting is None else self.counting]),
            "level": torch.tensor(math.nan if self.level is None else self.level, dtype=torch.float64),
            "floor": torch.tensor(self.floor, dtype=torch.float64),
            "log_z": torch.tensor(self.log_z, dtype=torch.float64),
        }
        flat |= flatten_state("value", self.value.state_dict())
        for i, lesson in enumerate(self.lessons):
            flat |= flatten_state(f"lesson{i}", lesson)
        for i, (kept, seen) in enumerate(zip(self.kept, self.seen, strict=True)):
            blocks = {"unit": torch.tensor(kept.unit), "floor": torch.tensor(kept.floor, dtype=torch.float64)}
            flat |= flatten_state(f"lines{i}", {**blocks, "seen": seen, **kept.lines._asdict()})
            flat |= flatten_state(f"log_h{i}", kept.value.state_dict())
        return flat

    def _load(self, state: dict[str, Tensor]) -> None:
        self.total, self.taught, counting = state["total"].tolist()
        self.counting = None if counting < 0 else counting
        level = float(state["level"])
        self.level = None if math.isnan(level) else level
        self.floor = float(state["floor"])
        self.log_z = state["log_z"].tolist()
        self.value.load_state_dict(with_prefix("value", state))
        self.kept, self.seen, self.population, self.lessons = [], [], None, []
        while lesson := with_prefix(f"lesson{len(self.lessons)}", state):
            self.lessons.append(lesson)
        while blocks := with_prefix(f"lines{len(self.kept)}", state):
            value = copy.deepcopy(self.value)
            value.load_state_dict(with_prefix(f"log_h{len(self.kept)}", state))
            lines = Lines(blocks["x"], blocks.get("v"), blocks["ids"], blocks["done"])
            self.kept.append(Kept(int(blocks["unit"]), lines, value, float(blocks["floor"])))
            self.seen.append(blocks["seen"])
