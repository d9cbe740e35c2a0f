"""Worker processes: the rows of a batch side by side, each process doing nothing else.

A worker is this very file run by a fresh interpreter: nothing is forked, nothing is pickled, and the caller's script
needs no `if __name__ == "__main__"`. Its stdin brings a line of JSON, what to build and from which plain settings, and
then batches as raw float64; its stdout carries E, F and its CPU time back. Without torch it starts in 0.2 s.

No worker outlives its parent: end of file on stdin, or a parent that has gone, ends it, whatever killed the parent.
Ctrl-C and SIGTERM are the parent's affair: workers ignore them, and a call that is interrupted stops them all.
"""

import contextlib
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Rows = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""x (n, A, 3) float64 in nm to E (n,) in kJ/mol and F (n, A, 3) in kJ/mol/nm; a row that fails is NaN."""
_SHAPE = struct.Struct("<2q")  # n, A
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PATIENCE = 1.0  # s for a worker that is told to stop; then it is killed

_cpu: dict[int, float] = {}  # seconds of every worker so far, by process id

_Worker = subprocess.Popen[bytes]


class Workers:
    """A pool of processes for one energy, called like the `Rows` that each of them builds.

    Row k of a batch goes to worker k modulo `count`; where `Rows` is a function of each row alone, the result does
    not depend on `count`. The workers start now, one thread each; they are stopped by `close`, by garbage collection
    or at the end of the interpreter.

    Args:
        count: processes.
        build: "module:function" that returns the `Rows`; imported and called in each worker.
        settings: its keyword arguments, of types that JSON carries.
    Raises:
        ValueError: count below 1, or `build` failed in a worker; says why.
        RuntimeError: (a call) a worker died; the next call starts new ones.
    """

    def __init__(self, count: int, build: str, settings: Mapping[str, Any]):
        if count < 1:
            raise ValueError(f"got workers = {count}; allowed is 1 or more")
        order = {"build": build, "settings": dict(settings), "parent": os.getpid(), "path": sys.path}
        self._count = count
        try:
            self._order = json.dumps(order).encode() + b"\n"
        except TypeError as error:
            raise ValueError(f"settings of a worker are numbers, text, lists and tables: {error}") from None
        self._workers: list[_Worker] = []
        weakref.finalize(self, _stop, self._workers)
        self._start()

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E, F = np.empty(len(x)), np.empty(x.shape)
        with self._stopped_on_error():
            self._start()
            busy = list(enumerate(self._workers[: len(x)]))
            for k, worker in busy:
                rows = np.ascontiguousarray(x[k :: self._count], dtype=np.float64)
                _send(worker, _SHAPE.pack(*rows.shape[:2]) + rows.tobytes())
            for k, worker in busy:
                E[k :: self._count] = _receive(worker, E[k :: self._count])
                F[k :: self._count] = _receive(worker, F[k :: self._count])
                _cpu[worker.pid] = float(_receive(worker, np.empty(1))[0])
        return E, F

    def close(self) -> None:
        """Stop the workers; a later call starts new ones."""
        _stop(self._workers)

    def _start(self) -> None:
        if self._workers:
            return
        command = [sys.executable, "-P", __file__]  # -P: the folder of this file is no place to import from
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        with self._stopped_on_error():
            for _ in range(self._count):
                worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                self._workers.append(worker)
                _send(worker, self._order)
            for worker in self._workers:
                assert worker.stdout is not None
                answer = worker.stdout.readline()
                if not answer:
                    raise _death(worker)
                if why := json.loads(answer):
                    raise ValueError(why)

    @contextlib.contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        """Ctrl-C between question and answer: the answer that is still to come must not be taken for the next one."""
        try:
            yield
        except BaseException:
            self.close()
            raise


def cpu_seconds() -> float:
    """CPU time of this process and of all its workers, the ended ones included."""
    return time.process_time() + sum(_cpu.values())


def _send(worker: _Worker, message: bytes) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(message)
        worker.stdin.flush()
    except BrokenPipeError:
        raise _death(worker) from None


def _receive(worker: _Worker, like: np.ndarray) -> np.ndarray:
    assert worker.stdout is not None
    answer = worker.stdout.read(8 * like.size)
    if len(answer) < 8 * like.size:
        raise _death(worker)
    return np.frombuffer(answer).reshape(like.shape)


def _death(worker: _Worker) -> RuntimeError:
    return RuntimeError(f"worker process {worker.pid} died with exit status {worker.wait()}; see its messages above")


def _stop(workers: list[_Worker]) -> None:
    """Tell all to stop, wait a little, kill those that are still busy."""
    for worker in workers:
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(OSError):  # what is unsent cannot be sent to the dead
            worker.stdin.close()
        worker.stdout.close()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    workers.clear()


def _serve() -> None:
    """The life of a worker."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a calculator prints must not be taken for an answer
    if not (line := questions.readline()):
        return
    order = json.loads(line)
    sys.path[:] = order["path"]
    threading.Thread(target=_leave_with, args=(order["parent"],), daemon=True).start()
    rows, why = _build(order["build"], order["settings"])
    answers.write(json.dumps(why).encode() + b"\n")
    answers.flush()
    while header := questions.read(_SHAPE.size):
        n, atoms = _SHAPE.unpack(header)
        x = np.frombuffer(questions.read(24 * n * atoms)).reshape(n, atoms, 3)
        E, F = rows(x)
        answers.write(E.tobytes() + F.tobytes() + struct.pack("<d", time.process_time()))
        answers.flush()


def _build(name: str, settings: dict[str, Any]) -> tuple[Rows, str | None]:
    """What was ordered, or why it cannot be."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(**settings), None
    except ValueError as error:
        return _nothing, str(error)
    except Exception as error:
        return _nothing, f"{name}: {type(error).__name__}: {error}"


def _nothing(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raise RuntimeError("nothing was built")


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _serve()
