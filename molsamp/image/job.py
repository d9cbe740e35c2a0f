"""Sampling as resumable work: batches of pictures, then how far the solver is from the model's fine trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.grids import Kind
from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles, Status
from molsamp.image.bench import CALLS, Bench, Entry, Fitted, draws, entries
from molsamp.image.sampling import grid_of, plan, sample
from molsamp.image.subject import Subject
from molsamp.learn.drive import Abandoned

ROWS, FRAMES = 6, 11  # pictures whose way is recorded, and at most so many frames of it
BESIDE = "ddim"  # the solver that the figure of errors shows beside


class Sampling:
    """n pictures of a model by a solver; a `learn.drive.Job` whose units are batches.

    Picture i depends on the noise and on i alone, up to the rounding of a batch of another size.

    Args:
        subject: the model.
        solver: a name of `solvers.SOLVERS`.
        steps: network calls a picture.
        n: pictures.
        grid: of times; None for the schedule's own.
        batch: pictures carried side by side.
        compare: pictures, the first of all, that are also taken along fine trajectories; 0 for none.
        fine: network calls of these.
        diverged: share of the pictures that may diverge before the work is given up.
        noise: keys of everything random.

    Raises:
        ValueError: an unknown solver, fewer calls than it needs, an unknown grid.
    """

    def __init__(
        self,
        subject: Subject,
        solver: str,
        steps: int,
        n: int,
        *,
        grid: Kind | None = None,
        batch: int = 64,
        compare: int = 64,
        fine: int = 100,
        diverged: float = 0.1,
        noise: Noise,
    ):
        self.subject, self.solver, self.steps, self.n, self.grid = subject, solver, steps, n, grid
        self.batch, self.tolerated, self.noise = batch, diverged, noise
        self.stochastic = draws(subject, solver, steps, grid)
        compared = 0 if self.stochastic or min(compare, n) < 2 else min(compare, n)
        self.bench = Bench(subject, self._entries() if compared else (), compared, fine=fine, batch=batch, noise=noise)
        self.batches = -(-n // batch)
        self.k, self.total = 0, self.batches + self.bench.total
        self.calls = self.forwards = 0
        event = subject.denoiser.event
        self.x, self.status = torch.zeros(n, *event), torch.zeros(n, dtype=torch.int8)
        self.times = grid_of(subject.denoiser.schedule, grid, plan(solver, steps)[1])
        self.frames = kept_frames(len(self.times))
        self.way = torch.zeros(len(self.frames), min(ROWS, n, batch), *event)
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self.fitted = Fitted(subject, noise)

    def advance(self) -> dict[str, Any]:
        """One batch, or one unit of the comparison.

        Raises:
            Abandoned: when it was `asked_to_stop`.
            RuntimeError: when more pictures diverged than are tolerated; those of this batch are kept.
        """
        if self.k >= self.batches:
            self.bench.asked_to_stop = self.asked_to_stop
            metrics = self.bench.advance()
            self.k += 1
            return metrics
        ids = torch.arange(self.k * self.batch, min((self.k + 1) * self.batch, self.n))
        model = self.subject.model(ids)
        solver, *searched = self.fitted(Entry(self.solver, self.steps, self.grid))
        path = sample(
            model, solver, self.steps, noise=self.noise, grid=self.grid, ids=ids, each=self._watch, save="last"
        )
        if self.k == 0:
            self.way[0] = path.x[0, : self.way.shape[1]]
        self.x[ids], self.status[ids] = path.final.x, path.final.status
        self.calls += model.calls + searched[0]
        self.forwards += model.forwards + searched[1]
        lost = int((self.status == Status.DIVERGED).sum())
        done = int(ids[-1]) + 1
        if lost > self.tolerated * done:
            raise RuntimeError(
                f"{lost} of {done} pictures diverged ({lost / done:.0%}), the model's answer is not finite; "
                f"tolerated are {self.tolerated:.0%}"
            )
        self.k += 1
        return {"drawn": done, "diverged": lost, "calls": self.calls, "forwards": self.forwards}

    @property
    def labels(self) -> Tensor | None:
        """The class of every picture."""
        return self.subject.labels(torch.arange(self.n))

    def state(self) -> dict[str, Tensor]:
        """What the next unit depends on, and what there is."""
        counters = {name: torch.tensor(getattr(self, name)) for name in ("k", "calls", "forwards")}
        own = {name: getattr(self, name).clone() for name in ("x", "status", "way")}
        return {**counters, **own, **{f"bench.{name}": value for name, value in self.bench.state().items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        self.k, self.calls, self.forwards = (int(state[name]) for name in ("k", "calls", "forwards"))
        self.x, self.status, self.way = (state[name].clone() for name in ("x", "status", "way"))
        inside = {name.removeprefix("bench."): value for name, value in state.items() if name.startswith("bench.")}
        self.bench.load(inside)

    def _entries(self) -> list[Entry]:
        calls = sorted({*CALLS, self.steps})
        return entries(dict.fromkeys((self.solver, BESIDE)), calls, self.grid)

    def _watch(self, k: int, p: Particles, info: Any) -> None:
        """Keep the frames of the first pictures that are shown, and leave when asked to."""
        if self.asked_to_stop():
            raise Abandoned
        if self.k == 0 and k + 1 in self.frames:
            self.way[self.frames.index(k + 1)] = p.x[: self.way.shape[1]]


def kept_frames(times: int) -> list[int]:
    """Which of so many times are shown: both ends and as evenly as it goes between, at most `FRAMES`."""
    shown = min(times, FRAMES)
    return [round(i * (times - 1) / (shown - 1)) for i in range(shown)]
