"""Umbrella sampling: all walkers visit a mesh of harmonic windows in turn, and MBAR joins what they saw.

windows       Breadth first from the states. In each window every walker starts where it was at the end of the
              neighbouring window that was done first, settles, and is recorded.
mbar          All frames get the weights they have without bias, with errors from the scatter of the walkers, which
              are independent of each other (see `mbar`). The frames of the first tenth of every window come
              first, then two tenths and so on: the free energies from these tell whether there were enough.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molsamp.engine.state import Particles, Status
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.free_energy.mbar import join
from molsamp.molecular.free_energy.settings import UmbrellaSettings
from molsamp.molecular.free_energy.walkers import Walkers
from molsamp.molecular.free_energy.windows import Visit, Windows

PARTS = 10  # the first tenth of the frames, two tenths, ...
JOINED = 0.03  # overlap from which two windows know their difference (Klimovich, Shirts and Mobley 2015)


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
        self.visits = self.windows.visits(list(values))
        self.parts, K = self.total, len(self.windows)  # units of a window; the first `settled` are not counted
        self.built, self.total = K * self.parts, K * self.parts + PARTS
        self.per_unit = self.record // self.frame
        T = (self.parts - self.settled) * self.per_unit
        self.s = torch.zeros(K, T, s.walkers, len(self.grid.shape), dtype=task.dtype)  # CVs of all frames
        self.ends: dict[int, Particles] = {}  # where the walkers were at the end of each window
        self.gone = torch.zeros(s.walkers, dtype=torch.bool)  # diverged somewhere
        self.f_k = torch.zeros(K, dtype=torch.float64)
        self.logw = torch.zeros(0)  # of all frames
        self.overlap = torch.eye(K, dtype=torch.float64)

    # ---------------------------------------------------------------- units

    def _build(self) -> dict[str, Any]:
        """A record's time in a window."""
        number, part = divmod(self.k, self.parts)
        visit, counted = self.visits[number], part - self.settled
        self.stream = self.noise.child(f"window{visit.window}")
        if part == 0:
            self.p, self.bias = self._first(visit), self.windows.bias(visit.window)
        assert self.bias is not None
        path = self._carry(self.record, self.frame)
        s = self.task.values(path.x[1:])
        if counted >= 0:
            self.s[visit.window, counted * self.per_unit : (counted + 1) * self.per_unit] = s
            kept = (counted + 1) * self.settings.snapshots // (self.parts - self.settled)
            if len(self.snapshots) < number * self.settings.snapshots + kept:
                self.snapshots.append(path.x[-1].clone())
        self.gone = self.gone | (self.p.status == Status.DIVERGED)
        self.lost = int(self.gone.sum())
        if part == self.parts - 1:
            self.ends[visit.window] = self.p
        last = s[-1].double()
        self._write_colvar(last, self.bias.at(last), window=visit.window)
        return {"note": f"window {number + 1}/{len(self.windows)}"}

    def _first(self, visit: Visit) -> Particles:
        if visit.parent is not None:
            return self.ends[visit.parent]
        return self.task.start(self.stream, len(self.p), [list(self.task.system.states)[visit.source]])

    def _produce(self) -> dict[str, Any]:
        """MBAR of the first frames of every window."""
        part, sound = self.k - self.built + 1, ~self.gone
        if bool(sound.any()):
            T = max(1, self.s.shape[1] * part // PARTS)
            found = join(self.windows, self.s[:, :T, sound], self.grid, self.f_k if part > 1 else None)
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
            found.append(
                f"Windows around {self.windows.name(a)} and {self.windows.name(b)} overlap by {share:.1g}, less than "
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
        first = part == part[self.visits[0].window]
        a, b = np.unravel_index(int(np.where(np.outer(first, ~first), O, -1.0).argmax()), O.shape)
        return int(a), int(b), float(O[a, b])

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = {"s": self.s, "gone": self.gone}
        if self.k > self.built:
            flat |= {"f_k": self.f_k, "logw": self.logw, "overlap": self.overlap}
        if self.ends:
            every = [p.to_tensors() for p in self.ends.values()]
            flat |= flatten_state("ends", {name: torch.stack([p[name] for p in every]) for name in every[0]})
        return super()._state() | flat

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        self.s, self.gone = state["s"], state["gone"]
        if self.k > self.built:
            self.f_k, self.logw, self.overlap = state["f_k"], state["logw"], state["overlap"]
        self.lost = int(self.gone.sum())
        ends, number = with_prefix("ends", state), min(self.k, self.built - 1) // self.parts
        done = [visit.window for visit in self.visits[: self.k // self.parts]]
        self.ends = {
            window: Particles.from_tensors({name: a[i] for name, a in ends.items()}) for i, window in enumerate(done)
        }
        self.bias = self.windows.bias(self.visits[number].window)
