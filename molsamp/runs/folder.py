"""One run = one folder: locked, self-describing, resumable after a kill at any instant.

Contract: `Run` owns every file that changes while a run works (lock, log.txt, checkpoints/, and those that lines are
appended to: metrics.jsonl, HILLS, KERNELS, COLVAR), which a resumed run finds as long as they were at the checkpoint,
and turns SIGINT and SIGTERM into the flag `interrupted`, which the loop asks between two units of work. It
knows nothing of what is computed: a state is a flat dict of tensors, numbers and strings.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from molsamp.runs import checkpoint

if TYPE_CHECKING:
    from molsamp.runs.checkpoint import Value


GROWING = ("metrics.jsonl", "HILLS", "KERNELS", "COLVAR")


class Run:
    """The folder of one run.

    Args:
        folder: made when missing. An existing folder that holds anything is refused unless `resume`.
        resume: continue in an existing folder.
    Raises:
        ValueError: the folder exists (or, with `resume`, does not), or another process holds its lock.
        OSError: no permission, or no space.
    """

    def __init__(self, folder: str | os.PathLike[str], resume: bool = False) -> None:
        self.folder = Path(folder)
        self.interrupted = False
        self.signal = 0
        self._open_folder(resume)
        self._lock = _take_lock(self.folder / "lock")
        self._checkpoints = self.folder / "checkpoints"
        self._grown: dict[str, int] = {}
        self._begun = False  # a file since the last checkpoint
        self._before = (0.0, 0.0)
        self._since = _clock()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the folder can then be opened by another process."""
        if not self._lock.closed:
            self._lock.truncate(0)
            self._lock.close()

    # -- checkpoints and metrics ------------------------------------------------------------------

    def save(self, state: Mapping[str, Value]) -> None:
        """Checkpoint `state` as safetensors + manifest, all or nothing; the newest two generations are kept.

        Args:
            state: flat dict of tensors, numbers, strings; "k" counts the finished units of work.
        Raises:
            ValueError: no integer "k", or a value that is none of these.
            OSError: no space or no permission; the earlier checkpoints are untouched.
        """
        cpu, wall = self.clock()
        for name in self._grown:
            checkpoint.fsync(self.folder / name)
        if self._begun:
            checkpoint.fsync(self.folder)  # their names
            self._begun = False
        checkpoint.write(
            self._checkpoints,
            state,
            grown=dict(self._grown),
            cpu_seconds=round(cpu, 3),
            wall_seconds=round(wall, 3),
        )

    def resume(self) -> dict[str, Any] | None:
        """Return the newest valid state, or None when there is none, and cut the files that grow back to it.

        A torn newest generation costs one warning, also in log.txt, and is removed; the one before is used.

        Raises:
            Unusable: a ValueError; a file that grows has lost lines, or the checkpoint is of an older molsamp; nothing
                is touched.
        """
        generation, torn = checkpoint.newest(self._checkpoints)
        if torn:
            instead = f"the one at k = {generation.k} is used" if generation else "the run starts again"
            text = f"{self.folder}: torn checkpoint ({torn[0]}); {instead}"
            self.note(text)
            warnings.warn(text, stacklevel=2)
        self._cut(generation.grown if generation else {})
        if generation is None:
            return None
        self._before = (generation.cpu_seconds, generation.wall_seconds)
        self._since = _clock()
        return generation.load()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null.

        Raises:
            OSError: no space or no permission.
        """
        self.append("metrics.jsonl", json.dumps({name: _plain(value) for name, value in metrics.items()}) + "\n")

    def append(self, name: str, lines: str) -> None:
        """Append whole lines to a file of the folder; a resume undoes what came after its checkpoint.

        A file that the last checkpoint does not know begins empty, whatever a run that was killed had put there.

        Raises:
            OSError: no space or no permission.
        """
        begun = name not in self._grown
        with (self.folder / name).open("w" if begun else "a", encoding="utf-8", newline="") as f:
            f.write(lines)
        self._begun |= begun
        self._grown[name] = self._grown.get(name, 0) + len(lines.encode())

    def note(self, text: str) -> None:
        """Append one dated line to log.txt."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as f:
            f.write(f"{datetime.now().isoformat(timespec='seconds')}  {text}\n")

    def clock(self) -> tuple[float, float]:
        """Return (CPU s, wall s) spent on this run, the time before a resume included."""
        cpu, wall = _clock()
        return self._before[0] + cpu - self._since[0], self._before[1] + wall - self._since[1]

    # -- interruption -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside this block the first SIGINT or SIGTERM sets `interrupted`; a second SIGINT stops at once.

        The loop that sees `interrupted` (and `signal`, the number) checkpoints and leaves. The former handlers
        come back at the end. Outside the main thread, where Python allows no handlers, the block does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            os._exit(128 + number)  # asked twice; the checkpoints on disk are valid at any instant
        self.interrupted, self.signal = True, number

    # -- details ----------------------------------------------------------------------------------

    def _open_folder(self, resume: bool) -> None:
        if resume and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: nothing to resume, there is no such folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: is a file; a run needs a folder of its own")
        if not resume and self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder}: exists already; choose another folder, or continue with --resume")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _cut(self, grown: dict[str, int]) -> None:
        """Cut the files that grow to the sizes they had.

        A line that a crash tore lies behind the checkpoint, as do the whole lines that are about to be written again.

        Raises:
            Unusable: a file is shorter than it was at the checkpoint; nothing has been touched then.
        """
        found = {name: self.folder / name for name in {*GROWING, *grown} if (self.folder / name).exists()}
        for name, size in grown.items():
            if (here := found[name].stat().st_size if name in found else 0) < size:
                text = f"{self.folder / name}: has {here} bytes, its checkpoint knows {size}; put it back"
                raise checkpoint.Unusable(text)
        for name, file in sorted(found.items()):
            beyond = file.read_bytes()[grown.get(name, 0) :]
            if beyond and not beyond.endswith(b"\n"):
                text = f"{file}: its last line was torn; it is cut back to {grown.get(name, 0)} bytes and goes on there"
                self.note(text)
                warnings.warn(text, stacklevel=3)
            os.truncate(file, grown.get(name, 0))
        self._grown = dict(grown)


def _take_lock(file: Path) -> Any:
    """Open and lock `file` (advisory, freed by the kernel when the process ends) and write who holds it."""
    lock = file.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown process"
        lock.close()
        raise ValueError(f"{file.parent}: another run is working in this folder ({holder})") from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def _clock() -> tuple[float, float]:
    workers = sys.modules.get("molsamp.molecular.workers")  # where it was not imported there are none
    return workers.cpu_seconds() if workers else time.process_time(), time.perf_counter()


def _plain(value: Any) -> Any:
    """Turn 0-d tensors and numpy scalars into Python numbers, and what JSON cannot hold into null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
