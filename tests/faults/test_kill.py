"""Kill -9 at any instant: a valid checkpoint remains, and the resumed run ends in the same bytes.

The victims are forked from one server that has torch loaded, so that a test costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from molsamp.learn.drive import Interrupted, drive
from molsamp.runs import checkpoint
from molsamp.runs.folder import Run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "safetensors.torch", "molsamp.learn.drive", "molsamp.runs.folder"])


class Walk:
    """A random walk keyed by k, with a state large enough that writing it takes a while."""

    total = 60

    def __init__(self, pause: float) -> None:
        self.k, self.x, self.pause = 0, torch.zeros(100_000, dtype=torch.float64), pause

    def advance(self) -> dict[str, float]:
        self.x += torch.randn(len(self.x), generator=torch.Generator().manual_seed(self.k), dtype=torch.float64)
        self.k += 1
        time.sleep(self.pause)
        return {"mean": float(self.x.mean())}

    def state(self) -> dict[str, torch.Tensor]:
        return {"k": torch.tensor(self.k), "x": self.x}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.k, self.x = int(state["k"]), state["x"]


def walk(folder: Path, pause: float, ready: Event) -> None:
    run = Run(folder, resume=folder.is_dir())
    ready.set()
    try:
        with run.signals():
            drive(Walk(pause), run, every=0.0)
    except Interrupted:
        sys.exit(128 + run.signal)


def start(folder: Path, pause: float = 0.0) -> multiprocessing.process.BaseProcess:
    ready = SERVER.Event()
    process = SERVER.Process(target=walk, args=(folder, pause, ready))
    process.start()
    assert ready.wait(30)
    return process


def finish(process: multiprocessing.process.BaseProcess, within: float = 30) -> int | None:
    process.join(within)
    return process.exitcode


def result(folder: Path) -> tuple[bytes, bytes]:
    last = folder / "checkpoints" / "state-0000000060.safetensors"
    return last.read_bytes(), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("kill") / "undisturbed"
    assert finish(start(folder)) == 0
    return result(folder)


def test_kill_9_and_resume_gives_the_same_bytes(tmp_path, undisturbed):
    """Six kills at random times (seed 0), most of them inside a write, then a resume to the end."""
    instants = random.Random(0)
    for _ in range(6):
        process = start(tmp_path / "r")
        time.sleep(instants.uniform(0.01, 0.08))
        process.kill()
        finish(process)
    assert finish(start(tmp_path / "r")) == 0
    assert result(tmp_path / "r") == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_checkpoints_and_leaves_within_10_s(tmp_path, undisturbed, number, code):
    process = start(tmp_path / "r", pause=0.05)
    time.sleep(0.3)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert finish(process, within=10) == code
    assert list((tmp_path / "r" / "checkpoints").glob("*.json"))
    assert finish(start(tmp_path / "r")) == 0
    assert result(tmp_path / "r") == undisturbed


def save(folder: Path, k: int) -> None:
    state = {"k": k, "x": torch.full((9,), float(k))}
    checkpoint.write(folder, state, grown={}, cpu_seconds=0.0, wall_seconds=0.0)


def save_and_die(folder: Path, k: int, step: int) -> None:
    """Save, but die before the step-th operation on the disk."""
    count = 0

    def mortal(operation: Callable) -> Callable:
        def call(*a, **b):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return operation(*a, **b)

        return call

    os.replace, os.fsync, checkpoint._save_tensors = map(mortal, (os.replace, os.fsync, checkpoint._save_tensors))
    Path.write_text, Path.unlink = map(mortal, (Path.write_text, Path.unlink))  # type: ignore[method-assign]
    save(folder, k)


def test_a_crash_before_each_single_disk_operation_leaves_a_valid_state(tmp_path):
    """Every write, fsync, rename and removal of one checkpoint is in turn the last thing that did not happen."""
    found = []
    for step in range(1, 30):
        folder = tmp_path / str(step)
        for k in (1, 2):
            save(folder, k)
        child = SERVER.Process(target=save_and_die, args=(folder, 3, step))
        child.start()
        died = finish(child) == 9
        generation, _ = checkpoint.newest(folder)
        assert generation is not None
        state = generation.load()
        assert torch.equal(state["x"], torch.full((9,), float(state["k"])))
        found.append(state["k"])
        save(folder, 3)
        after, torn = checkpoint.newest(folder)
        assert after is not None and after.k == 3 and not torn
        if not died:
            break
    assert not died and len(found) > 8
    assert found == sorted(found) and set(found) == {2, 3}
