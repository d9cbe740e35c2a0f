"""How far solvers end from a model's own fine trajectories, for so many network calls: a resumable job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.estimates import Estimate
from molsamp.engine.grids import Kind
from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.state import Status
from molsamp.image.sampling import dynamics, fitted, grid_of, plan, sample
from molsamp.image.scoring import jackknife
from molsamp.image.solvers import SEARCHED, SOLVERS, solver
from molsamp.image.subject import Subject
from molsamp.learn.drive import Abandoned

TOLERATED = 0.1
"""Share of fine trajectories that may diverge; those that do are left out."""
CALLS = (5, 6, 8, 10, 15, 20)
FINE: tuple[str, Kind] = ("unipc-3-bh1", "log-snr")
"""Solver and grid of fine trajectories; with 200 calls they end within 3e-6 of 800, on all models that are shipped."""


@dataclass(frozen=True)
class Entry:
    """One solver at one number of calls, on a grid of times."""

    solver: str
    calls: int
    grid: Kind | None = None


class Fitted:
    """Solvers ready for batches: those that are searched on the model ("dc") once for each number of calls.

    Args:
        subject: the model; searched with the classes of its first pictures.
        noise: as `sampling.sample` takes it.
    """

    def __init__(self, subject: Subject, noise: Noise):
        self.subject, self.noise = subject, noise
        self.found: dict[Entry, str | Integrator] = {}

    def __call__(self, entry: Entry) -> tuple[str | Integrator, int, int]:
        """The integrator, or a name that stands for itself; network calls and forward passes of a search made now."""
        if entry in self.found:
            return self.found[entry], 0, 0
        model = self.subject.model(torch.arange(SEARCHED))
        self.found[entry] = fitted(model, entry.solver, entry.calls, noise=self.noise, grid=entry.grid)
        return self.found[entry], model.calls, model.forwards


class Bench:
    """RMSE of solvers to fine trajectories from the same noises; a `learn.drive.Job`.

    Units are an entry on a batch of pictures. Fine trajectories come first, then ones of half their calls, which tell
    how fine they are.

    Args:
        subject: the model.
        entries: what is measured; see `entries`.
        n: pictures, those with ids 0 .. n - 1.
        fine: network calls of the fine trajectories.
        batch: pictures carried side by side.
        noise: as `sampling.sample` takes it.
    """

    def __init__(self, subject: Subject, entries: Sequence[Entry], n: int, *, fine: int, batch: int, noise: Noise):
        self.subject, self.entries, self.n, self.batch, self.noise = subject, tuple(entries), n, batch, noise
        self.rows = (*(Entry(FINE[0], calls, FINE[1]) for calls in (fine, max(1, fine // 2))), *self.entries)
        self.batches = -(-n // batch)
        self.k, self.total = 0, len(self.rows) * self.batches
        self.calls = self.forwards = 0
        self.fine = torch.zeros(n, *subject.denoiser.event)
        self.squares = torch.full((len(self.rows), n), math.nan, dtype=torch.float64)
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self.solver = Fitted(subject, noise)

    def advance(self) -> dict[str, Any]:
        """One entry on one batch.

        Raises:
            Abandoned: when it was `asked_to_stop`.
            RuntimeError: when more than a share `TOLERATED` of fine trajectories diverged.
        """
        row, part = divmod(self.k, self.batches)
        entry, ids = self.rows[row], torch.arange(part * self.batch, min((part + 1) * self.batch, self.n))
        model = self.subject.model(ids)

        def check(*_: Any) -> None:
            if self.asked_to_stop():
                raise Abandoned

        solver, *searched = self.solver(entry)
        path = sample(model, solver, entry.calls, noise=self.noise, grid=entry.grid, ids=ids, each=check)
        lost = path.final.status == Status.DIVERGED
        if row == 0:
            self.fine[ids] = path.final.x.masked_fill(lost.view(-1, *[1] * (path.final.x.dim() - 1)), math.nan)
            if lost.float().mean() > TOLERATED:
                raise RuntimeError(
                    f"{int(lost.sum())} of {len(ids)} fine trajectories diverged ({float(lost.float().mean()):.0%}), "
                    f"the model's answer is not finite; tolerated are {TOLERATED:.0%}"
                )
        square = (path.final.x.double() - self.fine[ids].double()).square().flatten(1).mean(1)
        self.squares[row, ids] = torch.where(lost & square.isfinite(), math.inf, square)
        self.k += 1
        self.calls += model.calls + searched[0]
        self.forwards += model.forwards + searched[1]
        return {"solver": entry.solver, "calls": entry.calls, "note": f"{entry.solver}, {entry.calls} calls"}

    def state(self) -> dict[str, Tensor]:
        """What the next unit depends on."""
        counters = {name: torch.tensor(getattr(self, name)) for name in ("k", "calls", "forwards")}
        return {**counters, "fine": self.fine.clone(), "squares": self.squares.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        self.k, self.calls, self.forwards = (int(state[name]) for name in ("k", "calls", "forwards"))
        self.fine, self.squares = state["fine"].clone(), state["squares"].clone()

    @property
    def fineness(self) -> Estimate:
        """RMSE between fine trajectories and those of half the calls: an upper bound of their error."""
        return rmse(self.squares[1])

    def results(self) -> list[tuple[Entry, Estimate]]:
        """RMSE of every entry to the fine trajectories; not finite where a picture diverged."""
        return [(entry, rmse(row)) for entry, row in zip(self.entries, self.squares[2:], strict=True)]


def rmse(squares: Float[Tensor, " n"]) -> Estimate:
    """Root of the mean of squared differences, those that are not known (NaN) left out, with its jackknife interval."""
    squares = squares[~squares.isnan()]
    found = jackknife(lambda kept: float(squares[kept].mean().sqrt()), len(squares), len(squares))
    return replace(found, interval=(max(0.0, found.interval[0]), found.interval[1]))


def entries(solvers: Iterable[str], calls: Sequence[int], grid: Kind | None = None) -> list[Entry]:
    """Every solver at every number of calls that is enough for it.

    Raises:
        ValueError: an unknown solver.
    """
    return [Entry(name, n, grid) for name in solvers for n in calls if solver(name).least <= n]


def draws(subject: Subject, name: str, steps: int, grid: Kind | None = None) -> bool:
    """Whether a solver draws noise on the way: such a path has no fine trajectory of its own to be compared with.

    Raises:
        ValueError: an unknown solver, fewer calls than it needs, an unknown grid.
    """
    model = subject.denoiser
    integrator, intervals, frame = plan(name, steps)
    rows = integrator.rows(dynamics(model, frame), grid_of(model.schedule, grid, intervals))
    return any(row.draws for row in rows)


def without_noise(subject: Subject, grid: Kind | None = None) -> list[str]:
    """Solvers that draw no noise; of names for one and the same solver the first."""
    names = {id(s): name for name, s in reversed(SOLVERS.items())}
    return [name for name in SOLVERS if name in names.values() and not draws(subject, name, 12, grid)]
