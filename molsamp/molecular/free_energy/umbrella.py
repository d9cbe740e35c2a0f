"""Umbrella sampling: all walkers visit a mesh of harmonic windows in turn, and MBAR joins what they saw.

windows       Those nearest to the states first; then always the neighbour of the lowest window that has one left, as
              water rises, until all up to `highest` above the bottom are there and the states are joined. In each every
              walker starts where it was at the end of that neighbour, settles, and is recorded. How high a window lies
              is told on the way,

                  f_b = f_a + (<u_b - u_a>_a + <u_b - u_a>_b) / 2   (the trapezoid rule, in kT).

              Windows that turn out to be higher are left out: there molecules find ways of their own around a clash,
              which of them depends on where they came from, and what such windows say of F is no gradient of anything.
mbar          All frames get the weights they have without bias, with errors from the scatter of the walkers, which
              are independent of each other (see `mbar`). The frames of the first tenth of every window come
              first, then two tenths and so on: the free energies from these tell whether there were enough.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from molsamp.engine.state import Particles, Status
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.free_energy.mbar import join
from molsamp.molecular.free_energy.settings import UmbrellaSettings
from molsamp.molecular.free_energy.walkers import Walkers
from molsamp.molecular.free_energy.windows import Windows

PARTS = 10  # the first tenth of the frames, two tenths, ...
JOINED = 0.03  # overlap from which two windows know their difference (Klimovich, Shirts and Mobley 2015)


class Visit(NamedTuple):
    """A window by its number on the mesh, the place of the visit before it (-1: none), and the state it began from."""

    window: int
    parent: int
    source: int


class Umbrella(Walkers):
    """Umbrella sampling with MBAR; arguments as in `Walkers`. Units: records of windows, then MBAR of parts."""

    name = "umbrella"
    Settings = UmbrellaSettings
    advice = "Let the windows run longer (`production`), or use more of them (`windows`)."

    def _begin(self) -> None:
        super()._begin()
        s, task = self.settings, self.task
        n = s.windows or {1: 24, 2: 12}[len(self.grid.shape)]
        self.windows = Windows(task.cvs, self.grid, n, s.width, task.kT, task.system.event)
        values = (task.values(state.x[None].to(task.dtype))[0].double() for state in task.system.states.values())
        self.sources = [self.windows.nearest(s) for s in values]
        self.visits: list[Visit] = []
        self.parts, K = self.total, len(self.windows)  # units of a window; the first `settled` are not counted
        self.built, self.total = K * self.parts, K * self.parts + PARTS  # at most
        self.per_unit = self.record // self.frame
        T = (self.parts - self.settled) * self.per_unit
        self.s = torch.zeros(K, T, s.walkers, len(self.grid.shape), dtype=task.dtype)  # CVs of all frames
        self.ends: list[Particles] = []  # where the walkers were at the end of each window
        self.heights: list[float] = []  # f of each window, in kT
        self.gone = torch.zeros(s.walkers, dtype=torch.bool)  # diverged somewhere
        self.f_k = torch.zeros(K, dtype=torch.float64)
        self.logw = torch.zeros(0)  # of all frames
        self.overlap = torch.eye(K, dtype=torch.float64)

    # ---------------------------------------------------------------- units

    @property
    def recorded(self) -> int:
        """The unit that begins COLVAR."""
        return 0

    def _build(self) -> dict[str, Any]:
        """A record's time in a window."""
        number, part = divmod(self.k, self.parts)
        if number == len(self.visits):
            if (visit := self._next()) is None:
                self._close()
                return self._produce()
            self.visits.append(visit)
        visit, counted = self.visits[number], part - self.settled
        self.stream = self.noise.child(f"window{visit.window}")
        if part == 0:
            self.p, self.bias = self._first(visit), self.windows.bias(visit.window)
        assert self.bias is not None
        path = self._carry(self.record, self.frame)
        s = self.task.values(path.x[1:])
        if counted >= 0:
            self.s[number, counted * self.per_unit : (counted + 1) * self.per_unit] = s
            kept = (counted + 1) * self.settings.snapshots // (self.parts - self.settled)
            if len(self.snapshots) < number * self.settings.snapshots + kept:
                self.snapshots.append(path.x[-1].clone())
        self.gone = self.gone | (self.p.status == Status.DIVERGED)
        self.lost = int(self.gone.sum())
        if part == self.parts - 1:
            self.ends.append(self.p)
            self.heights.append(self._height(number))
        last = s[-1].double()
        self._write_colvar(last, self.bias.at(last), window=visit.window)
        return {"note": f"window {number + 1}"}

    def _next(self) -> Visit | None:
        """The window after those that are done; None where all are too high, or there are no more."""
        done = {visit.window for visit in self.visits}
        for source, window in enumerate(self.sources):
            if window not in done:
                return Visit(window, -1, source)
        above, level = self._above(), self._level()
        for place in np.argsort(above, kind="stable").tolist():
            if above[place] > level:
                return None
            visit = self.visits[place]
            for window in self.windows.beside(visit.window):
                if window not in done:
                    return Visit(window, place, visit.source)
        return None

    def _above(self) -> list[float]:
        """How far each window lies above the lowest that was reached from the same state, in kT."""
        bottom: dict[int, float] = {}  # the levels of two states are not known to each other yet
        for visit, height in zip(self.visits, self.heights, strict=True):
            bottom[visit.source] = min(height, bottom.get(visit.source, height))
        return [height - bottom[visit.source] for visit, height in zip(self.visits, self.heights, strict=True)]

    def _level(self) -> float:
        """The height of what is joined: `highest`, or more where it takes more to join the states."""
        highest, above = self.settings.highest, self._above()
        for level in (highest, *sorted(h for h in above if h > highest)):
            there = {visit.window for visit, h in zip(self.visits, above, strict=True) if h <= level}
            reached, found = set(), {self.sources[0]}
            while found:
                reached |= found
                found = {b for a in found for b in self.windows.beside(a) if b in there} - reached
            if reached.issuperset(self.sources):
                return level
        return math.inf

    @property
    def used(self) -> list[int]:
        """Places of the windows that are joined."""
        level = self._level()
        return [place for place, height in enumerate(self._above()) if height <= level]

    def _close(self) -> None:
        """No more windows."""
        self.built, self.total = self.k, self.k + PARTS

    def _height(self, b: int) -> float:
        """f of a window from its parent's, in kT; 0 for the first of a state."""
        a = self.visits[b].parent
        if a < 0:
            return 0.0
        both = self.windows.only([self.visits[a].window, self.visits[b].window])
        up = [(u[:, 1] - u[:, 0]).mean() for u in (both.reduced(self.s[k].flatten(0, 1)) for k in (a, b))]
        return self.heights[a] + 0.5 * float(up[0] + up[1])

    def _first(self, visit: Visit) -> Particles:
        if visit.parent >= 0:
            return self.ends[visit.parent]
        return self.task.start(self.stream, len(self.p), [list(self.task.system.states)[visit.source]])

    def _produce(self) -> dict[str, Any]:
        """MBAR of the first frames of every window."""
        part, sound, used = self.k - self.built + 1, ~self.gone, self.used
        if bool(sound.any()):
            T = max(1, self.s.shape[1] * part // PARTS)
            windows = self.windows.only([self.visits[place].window for place in used])
            guess = self.f_k if part > 1 else torch.tensor(self.heights, dtype=torch.float64)[used]
            found = join(windows, self.s[used, :T][:, :, sound], self.grid, guess)
            weight = torch.zeros(len(sound), found.histogram.weight.shape[1], dtype=torch.float64)
            weight[sound] = found.histogram.weight
            self.histogram = dataclasses.replace(found.histogram, weight=weight)
            self.f_k, self.logw, self.overlap = found.f_k, found.logw.flatten().float(), found.overlap
        share = (self.settled + (self.parts - self.settled) * part / PARTS) / self.parts
        self._note_differences(self.evaluations * share)
        return {"ess": self.histogram.ess, "note": self._word("mbar", self.built, self.total)}

    # ---------------------------------------------------------------- results

    def log_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all frames, relative to the largest."""
        logw = (self.logw - self.logw.max()).numpy()
        return logw, np.ones_like(logw)

    def warnings(self) -> list[str]:
        """Walkers that diverged, and windows that are not joined by overlapping ones."""
        found = []
        if self.lost:
            n = len(self.gone)
            found.append(f"{self.lost} of {n} walkers diverged in some window and were left out of all of them.")
        if (gap := self.gap()) is not None:
            a, b, share = gap
            used = self.used
            names = [self.windows.name(self.visits[used[k]].window) for k in (a, b)]
            found.append(
                f"Windows around {names[0]} and {names[1]} overlap by {share:.1g}, less than "
                f"{JOINED:g}, and nothing else joins them well: F on one side against the other is unsure. Use more "
                "`windows`, or wider ones (`width`)."
            )
        return found

    def gap(self) -> tuple[int, int, float] | None:
        """The two windows, and their overlap, that come closest to joining parts which less than `JOINED` joins."""
        from scipy.sparse.csgraph import connected_components

        O = torch.minimum(self.overlap, self.overlap.T).numpy()
        parts, part = connected_components(O >= JOINED, directed=False)
        if parts == 1:
            return None
        first = part == part[0]
        a, b = np.unravel_index(int(np.where(np.outer(first, ~first), O, -1.0).argmax()), O.shape)
        return int(a), int(b), float(O[a, b])

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = {
            "s": self.s[: len(self.visits)],
            "gone": self.gone,
            "visits": torch.tensor(self.visits).view(-1, 3),
            "heights": torch.tensor(self.heights, dtype=torch.float64),
            "built": torch.tensor(self.built),
        }
        if self.k > self.built:
            flat |= {"f_k": self.f_k, "logw": self.logw, "overlap": self.overlap}
        if self.ends:
            every = [p.to_tensors() for p in self.ends]
            flat |= flatten_state("ends", {name: torch.stack([p[name] for p in every]) for name in every[0]})
        return super()._state() | flat

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        self.visits = [Visit(*row) for row in state["visits"].tolist()]
        self.s[: len(self.visits)], self.gone = state["s"], state["gone"]
        self.heights, self.built = state["heights"].tolist(), int(state["built"])
        self.total = self.built + PARTS
        if self.k > self.built:
            self.f_k, self.logw, self.overlap = state["f_k"], state["logw"], state["overlap"]
        self.lost = int(self.gone.sum())
        ends = with_prefix("ends", state)
        self.ends = [Particles.from_tensors({name: a[i] for name, a in ends.items()}) for i in range(len(self.heights))]
        if self.visits:
            self.bias = self.windows.bias(self.visits[-1].window)
