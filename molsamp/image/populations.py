"""Pictures under guides, rewards and measurements as resumable work: populations of particles, one a unit.

All pictures of a population have one class, one measurement and, with a reward, one ancestry: they are weighed and
resampled among themselves (`image.steer`). Each is also drawn as it would be without: from the same noise without the
reward, or without the guides where there is no reward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.grids import Kind
from molsamp.engine.guides import Chain, Guided, Prediction
from molsamp.engine.integrators import Integrator
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.renoising import Renoising
from molsamp.engine.schedules import Schedule
from molsamp.engine.state import Particles, Status
from molsamp.engine.steering import Collapse, Value
from molsamp.engine.steering import Kind as Potential
from molsamp.image.denoiser import Denoiser
from molsamp.image.guidance import Noted, guided
from molsamp.image.sampling import grid_of, sample
from molsamp.image.steering import steer
from molsamp.image.subject import Subject
from molsamp.image.wishes import Wishes
from molsamp.learn.drive import Abandoned

RENOISING = "renoising"
"""The solver of published DDS, `engine.renoising.Renoising`; the others are those of `solvers.SOLVERS`."""


class Populations:
    """n pictures in populations of equal size; a `learn.drive.Job` whose units are populations.

    `moved`, (populations, guides, rows), is how far each guide moved the aims: root mean square of a picture, averaged.

    Args:
        subject: the model; guides of classes want it conditional, guidance = 1.
        wishes: what is asked of the pictures.
        solver: a name of `solvers.SOLVERS` of one prediction a row, or "renoising".
        steps: rows, each of one network call.
        n: pictures.
        size: pictures a population.
        grid: of times; None for the schedule's own.
        every: rows between boundaries, where a reward weighs.
        kind: of potential.
        eta: share of the noise that "renoising" draws anew.
        diverged: share of the pictures that may diverge before the work is given up.
        noise: keys of everything random.

    Raises:
        ValueError: n that is no multiple of the size; a solver that is unknown, takes several calls a row, or draws no
            noise where there is a reward.
    """

    def __init__(
        self,
        subject: Subject,
        wishes: Wishes,
        solver: str,
        steps: int,
        n: int,
        size: int,
        *,
        grid: Kind | None = None,
        every: int = 5,
        kind: Potential = "difference",
        eta: float = 0.85,
        diverged: float = 0.1,
        noise: Noise,
    ):
        if n % size:
            raise ValueError(f"n: got {n}; the pictures must make populations of {size} particles")
        self.subject = replace(subject, guidance=1.0) if wishes.of_classes else subject
        self.wishes, self.steps, self.n, self.size, self.grid = wishes, steps, n, size, grid
        self.every, self.kind, self.tolerated, self.noise = every, kind, diverged, noise
        plain = guided(solver) if solver != RENOISING else Guided(Renoising(eta), Chain(()))
        self.integrator: Integrator = plain.integrator
        schedule: Schedule = subject.denoiser.schedule
        self.times = grid_of(schedule, grid, steps)
        rows = self.integrator.rows(LinearSDE(schedule, _nothing, plain.form), self.times)  # type: ignore[arg-type]
        if wishes.reward is not None and not any(row.draws for row in rows):
            raise ValueError(f"solver '{solver}' draws no noise, so that copies would stay copies; take ddpm")
        self.k, self.total, self.calls, self.forwards, self.beside = 0, n // size, 0, 0, 0
        self.rows = [min(k + every, steps) for k in range(0, steps, every)] if wishes.reward is not None else []
        event = subject.denoiser.event
        self.x, self.before = torch.zeros(n, *event), torch.zeros(n, *event)
        self.status, self.logw = torch.zeros(n, dtype=torch.int8), torch.zeros(n, dtype=torch.float64)
        self.effective = torch.zeros(len(self.rows), self.total, dtype=torch.float64)
        self.ancestors = torch.zeros(len(self.rows), n, dtype=torch.int64)
        self.moved = torch.zeros(self.total, len(wishes.chain(0, self._unconditional())), steps, dtype=torch.float64)
        self.asked_to_stop: Callable[[], bool] = lambda: False

    @property
    def compared(self) -> bool:
        """Whether there is something to compare with: a reward or guides, and not a measurement alone."""
        return self.wishes.reward is not None or bool(self.wishes.guides)

    def advance(self) -> dict[str, Any]:
        """One population, and what it is compared with.

        Raises:
            Abandoned: when it was `asked_to_stop`.
            RuntimeError: when more pictures diverged than are tolerated, or a population died out (`Extinct`).
        """
        u, m = self.k, self.size
        own, ids = slice(u * m, (u + 1) * m), torch.full((m,), u)
        noise, model, free = self.noise.child(f"population:{u}"), self.subject.model(ids), self._unconditional()
        guides = self.wishes.chain(u, free)
        notes: list[list[Tensor]] = [[] for _ in guides]
        solver = Guided(self.integrator, Chain(tuple(map(Noted, guides, notes))))
        how: dict[str, Any] = {"noise": noise, "grid": self.times}
        if self.wishes.reward is None:
            p = sample(_Watched(model, self), solver, self.steps, m, **how).final
        else:
            found = self._steered(model, solver, Chain(guides), how)
            p, self.effective[:, u] = found.particles, found.effective[:, 0]
            self.ancestors[:, own] = u * m + found.ancestors
        self.x[own], self.status[own], self.logw[own] = p.x, p.status, p.logw
        for k, of_rows in enumerate(notes):
            self.moved[u, k] = torch.stack(of_rows).double().nanmean(1)
        self.calls += model.calls
        self.forwards += model.forwards + free.forwards
        if self.compared:
            plain, other = self.subject.model(ids), self._unconditional()
            guides = self.wishes.chain(u, other) if self.wishes.reward is not None else ()
            path = sample(_Watched(plain, self), Guided(self.integrator, Chain(guides)), self.steps, m, **how)
            self.before[own] = path.final.x
            self.beside += plain.calls
        self._enough(u)
        self.k += 1
        said = {"drawn": (u + 1) * m, "calls": self.calls, "forwards": self.forwards}
        return said if self.wishes.reward is None else {**said, "ess": float(self.effective[-1, u])}

    def _steered(self, model: Denoiser, solver: Guided, chain: Chain, how: dict[str, Any]) -> Steered:
        reward, strength = self.wishes.reward, self.wishes.strength
        assert reward is not None
        schedule = model.schedule

        def tilt(x: Tensor) -> Tensor:
            return strength * reward(x)

        def foreseen(t: float, p: Particles) -> Tensor:
            """The reward of the picture that the guides aim at; what they remember of the way is left out."""
            x0 = model(p.x, t)
            return tilt(chain(Prediction(p.x, t, schedule.alpha(t), schedule.sigma(t), x0, x0), None)[0].aim)

        value: Value = foreseen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Collapse)  # counted once more from the ancestors, see `alone`
            return steer(
                _Watched(model, self),
                reward,
                solver,
                self.steps,
                self.size,
                strength=strength,
                value=value,
                kind=self.kind,
                every=self.every,
                **how,
            )

    def steered(self) -> Steered:
        """All populations as one record, each a group."""
        p = Particles.at(self.x).evolve(logw=self.logw, status=self.status)
        return Steered(p, self.total, tuple(self.rows), self.effective, self.ancestors)

    def alone(self) -> int:
        """Populations that were once resampled from a single ancestor."""
        parents = self.ancestors[:-1].view(-1, self.total, self.size)
        return int((parents == parents[:, :, :1]).all(2).any(0).sum()) if self.size > 1 else 0

    @property
    def of(self) -> Tensor:
        """The population of every picture, (n,)."""
        return torch.arange(self.n) // self.size

    @property
    def labels(self) -> Tensor | None:
        """The class of every picture."""
        return self.subject.labels(self.of)

    def state(self) -> dict[str, Tensor]:
        """What the next unit depends on, and what there is."""
        counters = {name: torch.tensor(getattr(self, name)) for name in COUNTERS}
        return {**counters, **{name: getattr(self, name).clone() for name in KEPT}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        for name in COUNTERS:
            setattr(self, name, int(state[name]))
        for name in KEPT:
            setattr(self, name, state[name].clone())

    def _unconditional(self) -> Denoiser:
        d = self.subject.denoiser
        return Denoiser(d.schedule, d.predict, d.event, passes=d.passes)

    def _enough(self, u: int) -> None:
        lost, done = int((self.status == Status.DIVERGED).sum()), (u + 1) * self.size
        if lost > self.tolerated * done:
            raise RuntimeError(
                f"{lost} of {done} pictures diverged ({lost / done:.0%}), the model's answer is not finite; "
                f"tolerated are {self.tolerated:.0%}"
            )


COUNTERS = ("k", "calls", "forwards", "beside")
KEPT = ("x", "before", "status", "logw", "effective", "ancestors", "moved")


class _Watched:
    """A model that leaves a rollout when its job was asked to stop."""

    def __init__(self, model: Denoiser, job: Populations):
        self.model, self.job, self.schedule, self.event = model, job, model.schedule, model.event

    def __call__(self, x: Tensor, t: float) -> Tensor:
        if self.job.asked_to_stop():
            raise Abandoned
        return self.model(x, t)


def _nothing(x: Tensor, t: float) -> Tensor:
    return x
