"""The one driver of long work: advance a job, log, checkpoint, stop when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Abandoned(Exception):
    """A unit of work gave up half-way because the run was asked to stop; the job is as it was before the unit."""


class Interrupted(Exception):
    """The run was asked to stop and has written its checkpoint."""


@runtime_checkable
class Job(Protocol):
    """Resumable work in `total` units; `state` and `load` carry everything the next unit depends on.

    A job that writes files line by line has a member `lines`: file names and what the last unit adds to each.
    A job whose units last longer than a user waits after Ctrl-C has a member `asked_to_stop`, which it calls now and
    then within a unit, to raise `Abandoned` when it is true.
    """

    k: int
    total: int

    def advance(self) -> dict[str, Any]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: dict[str, Tensor]) -> None: ...


@runtime_checkable
class Journal(Protocol):
    """Where a job is recorded; `molsamp.Run` is one."""

    interrupted: bool

    def resume(self) -> dict[str, Tensor] | None: ...
    def save(self, state: dict[str, Tensor]) -> None: ...
    def log(self, metrics: dict[str, Any]) -> None: ...
    def append(self, name: str, lines: str) -> None: ...


def drive(
    job: Job,
    run: Journal | None = None,
    each: Callable[[dict[str, Any]], None] | None = None,
    *,
    every: float = 20.0,
) -> None:
    """Advance `job` to its end, from the run's checkpoint if it has one.

    Args:
        job: the work.
        run: records metrics and checkpoints, and says when to stop.
        each: called with the metrics of every unit (progress bars).
        every: seconds between checkpoints.

    Raises:
        Interrupted: after a checkpoint, when the run was asked to stop.
    """
    if run is not None and (saved := run.resume()) is not None:
        job.load(saved)
    if run is not None and hasattr(job, "asked_to_stop"):
        job.asked_to_stop = lambda: run.interrupted
    last = time.monotonic()
    while job.k < job.total:
        try:
            metrics = {"k": job.k, **job.advance()}
        except Abandoned:
            assert run is not None
            run.save(job.state())
            raise Interrupted from None
        if run is not None:
            run.log(metrics)
            for name, lines in getattr(job, "lines", dict)().items():
                run.append(name, lines)
        if each is not None:
            each(metrics)
        if run is not None and (run.interrupted or time.monotonic() - last > every or job.k == job.total):
            run.save(job.state())
            last = time.monotonic()
            if run.interrupted and job.k < job.total:
                raise Interrupted
