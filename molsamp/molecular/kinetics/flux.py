"""Rates by forward flux."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from molsamp.engine import forward_flux
from molsamp.engine.estimates import Estimate, inverse, ratio
from molsamp.engine.forward_flux import Ladder, binomial_error, committor, fluxes, rate
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.kinetics.rates import Rates
from molsamp.molecular.kinetics.settings import FFSSettings


class ForwardFlux(Rates):
    """Forward-flux sampling; a unit of work is an interface, which takes as many rollouts as it needs.

    Args:
        transition, settings, noise, overrides: as in `Rates`.
    """

    name = "ffs"
    Settings = FFSSettings

    def _begin(self) -> None:
        super()._begin()
        s, R, a = self.settings, self.settings.replicas, self.transition.a
        looks = self._looks(s.segment)
        settle, count = (max(1, round(t / (looks * self.motion.interval))) for t in (s.settle, s.basin))
        low, high = self.transition.climb[:2]
        levels = s.levels or tuple(torch.linspace(low, high, s.interfaces + 1, dtype=torch.float64)[:-1].tolist())
        source = self.transition.source
        self.method = forward_flux.ForwardFlux(
            levels, s.trials, R, looks, settle, count, source(a, self.noise.child("restart"))
        )
        start = source(a, self.noise.child("start"))(torch.arange(R * s.walkers), 0)
        self.ladder = self.method.begin(start)
        self.total = len(levels) + 1

    def _advance(self) -> dict[str, Any]:
        """One rollout of all that are on their way."""
        before, n = self.ladder, len(self.ladder.walkers)
        self.ladder = self.method.advance(self.motion, before)
        self.evaluations += n * (self.ladder.step - before.step)
        self.k = self.ladder.stage
        where = f"interface {self.k} of {self.total - 1}" if self.k else "basin"
        return {"stage": self.k, "walkers": n, "note": f"{where}, {n} walkers"}

    # ---------------------------------------------------------------- results

    def results(self) -> dict[str, Estimate]:
        """As `Rates`; the flux is that into B of the steady state, beside it that through the first interface."""
        k = replace(rate(self.ladder, self.per_time), n=int(self.ladder.roots[-1]))
        first = fluxes(self.ladder)[0]
        through = ratio(first, torch.ones_like(first), self.per_time)
        found = {"rate": k, "mfpt": inverse(k, self.time), "flux": k, "flux_first": through}
        return {**found, **self.half_way()}

    def committors(self) -> list[tuple[float, Estimate]]:
        """The committor of the crossings of each interface that has any."""
        found = zip(self.method.levels, committor(self.ladder), strict=True)
        return [(s, q) for s, q in found if q.value == q.value]

    def tables(self) -> dict[str, tuple[Sequence[str], list[list[float]]]]:
        """Flux through every interface with the trajectories behind it, committor by interface."""
        rows, l = [], self.ladder
        for i, f in enumerate(fluxes(l)):
            e = ratio(f, torch.ones_like(f))
            where = self.method.levels[i] if i < len(self.method.levels) else self.transition.climb[1]
            n, found = (int(l.trials[i - 1].sum()), int(l.successes[i - 1].sum())) if i else (0, int(l.crossings.sum()))
            rows.append([where, e.value, *e.interval, n, found])
        return {
            "ladder": (("progress", "flux", "low", "high", "trials", "arrived"), rows),
            "committor": self.along(),
        }

    def warnings(self) -> list[str]:
        """What to doubt: an interface that nothing passed, few ancestors, walkers lost."""
        l, found = self.ladder, []
        if l.lost:
            found.append(f"{l.lost} walkers diverged; they count as not arrived.")
        if not int(l.successes[-1].sum()):
            return [*found, "Nothing reached B. Take more `trials`, or more `interfaces`."]
        value = rate(l)
        told = 0.5 * (value.interval[1] - value.interval[0]) / value.value
        if told > 4.0 * binomial_error(l):
            found.append(
                f"{int(l.roots[-1])} departures from A are the ancestors of all that reached B: the replicas scatter "
                "by more than independent trajectories would. Run the `basin` for longer, or take more `trials`."
            )
        return found

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        return flatten_state("ladder", self.ladder.to_tensors())

    def _load(self, state: dict[str, Tensor]) -> None:
        self.ladder = Ladder.from_tensors(with_prefix("ladder", state))
