"""Long work shows itself: a bar with rate, ETA and hit rate on a terminal, one line per interval elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

Each = Callable[[dict[str, Any]], None]


@runtime_checkable
class Counted(Protocol):
    """Work with `k` of `total` units finished."""

    k: int
    total: int


@contextlib.contextmanager
def progress(job: Counted, title: str, *, quiet: bool = False, stream: io.TextIOBase | None = None) -> Iterator[Each]:
    """Yield the callback that shows the metrics of each finished unit of `job`.

    Args:
        job: its `k` and `total` are read at every call.
        title: what is being done.
        quiet: show nothing.
        stream: where to, by default stderr; results go to stdout.
    """
    stream = stream or cast(io.TextIOBase, sys.stderr)
    if quiet:
        yield lambda metrics: None
    elif stream.isatty():
        with _bar(job, title, stream) as each:
            yield each
    else:
        yield _lines(job, title, stream)


@contextlib.contextmanager
def _bar(job: Counted, title: str, stream: io.TextIOBase) -> Iterator[Each]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    clock = _Clock()
    with Progress(*columns, console=Console(file=cast(Any, stream))) as bars:
        task = bars.add_task(title, total=None, note="starting")

        def each(metrics: dict[str, Any]) -> None:
            clock.done += 1
            bars.update(task, completed=job.k, total=job.total, note=_note(metrics, clock, job))

        yield each


def _lines(job: Counted, title: str, stream: io.TextIOBase, every: float = 5.0) -> Each:
    """Write a line for the first and last unit, and between them at most one every `every` seconds."""
    clock = _Clock()
    last = float("-inf")

    def each(metrics: dict[str, Any]) -> None:
        nonlocal last
        clock.done += 1
        if job.k == job.total or time.monotonic() - last >= every:
            last = time.monotonic()
            print(f"{title}  {job.k}/{job.total}  {_note(metrics, clock, job)}", file=stream, flush=True)

    return each


class _Clock:
    """Units per second since the start, counting only units finished in this process."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.done = 0

    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.start, 1e-9)


def _note(metrics: dict[str, Any], clock: _Clock, job: Counted) -> str:
    rate = clock.rate()
    parts = [f"{rate:.2g}/s" if rate < 10 else f"{rate:.0f}/s", f"ETA {_duration((job.total - job.k) / rate)}"]
    if metrics.get("note"):
        parts.append(str(metrics["note"]))
    if metrics.get("hit_rate") is not None:
        parts.append(f"hit rate {float(metrics['hit_rate']):.0%}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
