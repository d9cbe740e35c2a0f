"""Rates by many walkers in segments: weighted ensemble, and brute force, which is the same without splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.ensembles import Ensemble
from molsamp.engine.estimates import Estimate, inverse
from molsamp.engine.weighted_ensemble import History, Scheme, brute_rate, committor, rate, reactive_flux
from molsamp.learn.drive import Abandoned
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.kinetics.rates import Rates
from molsamp.molecular.kinetics.settings import MDSettings, SegmentsSettings, WESettings

UNIT = 5  # segments in a unit of work
POINTS = 60  # in the figure of the flux


class WeightedEnsemble(Rates):
    """Weighted ensemble; arguments as in `Rates`."""

    name = "we"
    Settings: ClassVar[type[SegmentsSettings]] = WESettings
    advice: ClassVar[str] = "Let it run longer (`production`, `settle`), or take more `bins`."

    def _begin(self) -> None:
        s, R = self.settings, self.settings.replicas
        super()._begin()
        looks = self._looks(s.segment)
        self.scheme = Scheme(
            looks, self._edges(), self._target(), self.transition.source(self.transition.a, self.noise.child("restart"))
            if s.recycle else None,
        )  # fmt: skip
        self.segment = looks * self.motion.interval
        self.settled, counted = (max(UNIT, round(t / self.segment)) for t in (s.settle, s.production))
        self.segments = self.settled + counted
        self.total = -(-self.segments // UNIT)
        ids = torch.arange(R * self._walkers())
        colour = torch.zeros_like(ids) if s.recycle else ids // R % 2
        start = self.noise.child("start")
        a, b = (self.transition.source(names, start)(ids, 0) for names in (self.transition.a, self.transition.b))
        p = a.take(torch.where(colour == 0, ids, 0))
        pick = (colour == 1).view(-1, *[1] * (p.x.dim() - 1))
        v = None if p.v is None or b.v is None else torch.where(pick, b.v, p.v)
        p = p.evolve(x=torch.where(pick, b.x, p.x), v=v, ids=ids)
        self.e = Ensemble.of(p, ids % R, colour)
        self.parts: list[History] = []

    def _target(self) -> int | None:
        return self.settings.walkers

    def _walkers(self) -> int:
        """Of each replica, at first."""
        return 4 * self.settings.walkers

    def _edges(self) -> Float[Tensor, " inner"]:
        s, period = self.settings, self.transition.period
        if s.edges is None and period is not None:
            return torch.linspace(-0.5 * period, 0.5 * period, s.bins + 1, dtype=torch.float64)[1:-1]
        if s.edges is None:
            low, _, high = self.transition.climb
            return torch.linspace(low, high, s.bins - 1, dtype=torch.float64)
        if any(b <= a for a, b in zip(s.edges, s.edges[1:], strict=False)) or len(s.edges) < 2:
            raise ValueError(f"edges: must rise, two at least, got {list(s.edges)}")
        return torch.tensor(s.edges, dtype=torch.float64)

    # ---------------------------------------------------------------- units

    def _advance(self) -> dict[str, Any]:
        before = self.e, len(self.parts)
        first = self.k * UNIT
        for k in range(first, min(first + UNIT, self.segments)):
            n = len(self.e)
            self.e, counted, _ = self.scheme.advance(self.motion, self.e, k, self.settings.replicas)
            self.parts.append(counted)
            self.evaluations += n * self.scheme.looks * self.motion.every
            try:
                self._check()
            except Abandoned:
                self.e, self.parts = before[0], self.parts[: before[1]]
                raise
        self.k += 1
        done = self.k * UNIT
        found = {} if done <= self.settled else {"rate": self._rate(self.counted()).value}
        phase = "settling" if done <= self.settled else "counting"
        return {"ps": done * self.segment, "walkers": len(self.e), "note": f"{phase}, {len(self.e)} walkers", **found}

    def history(self) -> History:
        """All segments."""
        self.parts = [History.joined(self.parts)]
        return self.parts[0]

    def counted(self) -> History:
        """The settled ones."""
        return self.history().part(self.settled)

    # ---------------------------------------------------------------- results

    def _rate(self, h: History, colour: int = 0) -> Estimate:
        return rate(h, colour, self.per_time)

    def results(self) -> dict[str, Estimate]:
        """As `Rates`; the flux is that of the steady state, or with both colours that of equilibrium."""
        h = self.counted()
        k = replace(self._rate(h), n=h.lineages)
        found = {"rate": k, "mfpt": inverse(k, self.time)}
        if self.settings.recycle:
            return {**found, "flux": k}
        back = self._rate(h, 1)
        found |= {"rate_back": back, "flux": reactive_flux(h, self.per_time)}
        return {**found, **self.half_way()}

    def committors(self) -> list[tuple[float, Estimate]]:
        """The committor by the middles of the bins that replicas fed from both A and B; none when recycling."""
        if self.settings.recycle:
            return []
        low, high, known = *self._bins(), committor(self.counted())
        return [(0.5 * (a + b), q) for a, b, q in zip(low, high, known, strict=True) if q.interval != (0.0, 1.0)]

    def _bins(self) -> tuple[list[float], list[float]]:
        """Ends of the bins; the outermost are as wide as their neighbours."""
        inner = self.scheme.edges.tolist()
        edges = [2 * inner[0] - inner[1], *inner, 2 * inner[-1] - inner[-2]]
        return edges[:-1], edges[1:]

    def tables(self) -> dict[str, tuple[Sequence[str], list[list[float]]]]:
        """Flux against time, weight by bin, committor by bin."""
        occupancy = self.counted().occupancy.mean(0).sum(0)
        occupancy = occupancy / occupancy.sum()
        rows = [list(r) for r in zip(*self._bins(), *occupancy.tolist(), strict=True)]
        return {
            "flux": (("time", "rate", "running", "low", "high"), self._against_time()),
            "occupancy": (("low", "high", "A", "B"), rows),
            "committor": self.along(),
        }

    def _against_time(self) -> list[list[float]]:
        h, rows, width = self.history(), [], max(1, self.segments // POINTS)
        for first in range(0, self.segments, width):
            end = min(first + width, self.segments)
            block, so_far = h.part(first, end), h.part(self.settled, end)
            value = float(block.hits[..., 0].sum() / block.time[..., 0].sum())
            known = end > self.settled + width
            running = self._rate(so_far) if known else Estimate(math.nan, (math.nan, math.nan))
            rows.append([end * self.segment, value, running.value, *running.interval])
        return rows

    def warnings(self) -> list[str]:
        """What to doubt: nothing came to B, weight was lost, the rate was still moving."""
        h, found = self.history(), []
        if (gone := float(h.lost.sum()) / self.settings.replicas) > 0.0:
            found.append(f"Walkers with {gone:.2g} of the weight diverged and were left out.")
        settled = self.counted()
        if not float(settled.hits[..., 0].sum()) > 0.0:
            return [*found, f"Nothing came from A to B. {self.advice}"]
        if math.isinf(self._rate(settled).interval[1]):
            found.append(
                f"One or two replicas brought nearly all that came to B, so the rate has no upper bound. {self.advice}"
            )
        middle = self.settled + (self.segments - self.settled) // 2
        a, b = self._rate(settled.part(self.settled, middle)), self._rate(settled.part(middle))
        if a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]:
            found.append(
                f"The rate of the first half of the production, {a}, and that of the second, {b}, differ by more than "
                "their intervals: it was still settling. Let it `settle` for longer."
            )
        return found

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = flatten_state("walkers", self.e.to_tensors())
        return flat | (flatten_state("history", self.history().to_tensors()) if self.parts else {})

    def _load(self, state: dict[str, Tensor]) -> None:
        self.e = Ensemble.from_tensors(with_prefix("walkers", state))
        history = with_prefix("history", state)
        self.parts = [History.from_tensors(history)] if history else []


class BruteForce(WeightedEnsemble):
    """Unbiased dynamics; rates from independent arrivals, with the exact interval. Arguments as in `Rates`."""

    name = "md"
    Settings = MDSettings
    advice = "Take more `walkers`, a longer `production`, or --method we."

    def _target(self) -> int | None:
        return None

    def _walkers(self) -> int:
        return self.settings.walkers

    def _rate(self, h: History, colour: int = 0) -> Estimate:
        return brute_rate(h, self.settings.walkers, colour, self.per_time)
