"""`sample`: images from a denoiser by a solver. It is one rollout of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Dynamics, LinearSDE, flow
from molsamp.engine.grids import time_grid, usual
from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.schedules import Schedule
from molsamp.engine.state import Particles, Path
from molsamp.image.solvers import Frame
from molsamp.image.solvers import solver as named


@runtime_checkable
class Model(Protocol):
    """What is sampled: a data prediction with its schedule and the shape of one image."""

    schedule: Schedule
    event: tuple[int, ...]

    def __call__(self, x: Tensor, t: float, /) -> Tensor: ...


def sample(
    model: Model,
    solver: str | Integrator = "unipc",
    steps: int = 10,
    n: int = 16,
    *,
    noise: Noise,
    grid: str | Sequence[float] | None = None,
    start: Float[Tensor, "n *event"] | None = None,
    ids: Int[Tensor, " n"] | None = None,
    dtype: torch.dtype = torch.float32,
    save: Literal["all", "last"] | int = "last",
    each: Callable[[int, Particles, Any], None] | None = None,
) -> Path:
    """n images, from noise, as `path.final.x`.

    Args:
        model: a `Denoiser`, or anything alike.
        solver: a name of `SOLVERS`, or an integrator of rows of one call on the data prediction (or on what its
            attribute `form` says).
        steps: network calls; solvers of several calls a step take fewer steps.
        n: images; as many as `start` or `ids` has, if one is given.
        noise: keys of the start and of what the solver draws.
        grid: a kind of `time_grid`, or the times themselves, falling; by default `usual`.
        start: x at the first time; by default noise of its sigma.
        ids: keys of the images' noise, 0 .. n - 1 unless given; image i is the same in whichever batch it is drawn.
        dtype: of x.
        save: frames of the path that are kept.
        each: observer of every row.

    Raises:
        ValueError: an unknown solver, fewer calls than it needs, or a start that has another shape than the model's.
    """
    integrator, intervals, frame = plan(fitted(model, solver, steps, noise=noise, grid=grid), steps)
    times = grid_of(model.schedule, grid, intervals)
    if ids is None:
        ids = torch.arange(n if start is None else len(start))
    if start is None:
        start = noise.child("start").normal(0, ids, model.event, dtype) * model.schedule.sigma(times[0])
    elif start.shape[1:] != model.event:
        raise ValueError(f"start has images of shape {tuple(start.shape[1:])}, the model takes {tuple(model.event)}")
    return rollout(
        dynamics(model, frame),
        integrator,
        Particles.at(start, ids=ids),
        times,
        noise=noise.child("rows"),
        save=save,
        each=each,
    )


def fitted(
    model: Model,
    solver: str | Integrator,
    steps: int,
    *,
    noise: Noise,
    grid: str | Sequence[float] | None = None,
) -> str | Integrator:
    """The integrator of a solver that is searched on the model ("dc"), for any number of batches; others as they are.

    Raises:
        ValueError: as `sample`.
    """
    fit = named(solver).fit if isinstance(solver, str) else None
    if fit is None:
        return solver
    return fit(model, grid_of(model.schedule, grid, plan(solver, steps)[1]), noise.child("search"))


def plan(solver: str | Integrator, steps: int) -> tuple[Integrator, int, Frame]:
    """(integrator, intervals, what it integrates) for so many network calls.

    Raises:
        ValueError: as `sample`.
    """
    if not isinstance(solver, str):
        return solver, steps, getattr(solver, "form", "data")
    found = named(solver)
    if steps < found.least:
        raise ValueError(f"{solver} needs {found.least} network calls or more, got steps = {steps}")
    integrator, intervals = found.plan(steps)
    return integrator, intervals, found.frame


def grid_of(
    schedule: Schedule, grid: str | Sequence[float] | None, intervals: int, start: float | None = None
) -> list[float]:
    """Times by kind, from `start` on, or as given.

    Raises:
        ValueError: another number of times than the solver needs, or times that begin elsewhere than at `start`.
    """
    if grid is None:
        grid = usual(schedule)
    if isinstance(grid, str):
        return time_grid(grid, schedule, intervals, start)
    if start is not None and grid[0] != start:
        raise ValueError(
            f"the grid that was given begins at {grid[0]:g}, not at {start:g}; a kind of grid can be moved"
        )
    if len(grid) != intervals + 1:
        raise ValueError(f"a grid of {len(grid)} times was given, this solver needs {intervals + 1}")
    return list(grid)


def dynamics(model: Model, frame: Frame) -> Dynamics:
    """The model as rows see it."""
    if frame == "flow":
        return flow(LinearSDE(model.schedule, model))
    return LinearSDE(model.schedule, model, frame)
