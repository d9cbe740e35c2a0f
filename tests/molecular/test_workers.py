"""Workers: rows in order, faults told, nothing left over when the parent ends in whatever way."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from molsamp.molecular.workers import Workers, cpu_seconds

ROWS = """
import os, sys, time
import numpy as np

def doubled(factor=2.0):
    print("a calculator that talks on stdout")
    def rows(x):
        if (x == -7).any():
            os._exit(7)
        if (x == -60).any():
            time.sleep(60)
        print("and talks")
        return factor * x.sum((1, 2)), factor * x
    return rows

def busy():
    def rows(x):
        while time.process_time() < 0.5:
            pass
        return np.zeros(len(x)), x
    return rows

def surroundings():
    def rows(x):
        facts = [float("torch" in sys.modules), float(os.environ["OMP_NUM_THREADS"]), float(os.getpid())]
        return np.zeros(len(x)), np.tile(np.array(facts), (len(x), 1, 1))
    return rows

def picky(**settings):
    raise ValueError(f"factor {settings} is not allowed")

def broken():
    raise KeyError("oh")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_rows.py").write_text(ROWS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_rows"


def batch(n, atoms=2):
    return np.random.default_rng(n).standard_normal((n, atoms, 3))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_come_back_in_their_places_for_any_number_of_workers(module, count):
    workers = Workers(count, f"{module}:doubled", {"factor": 3.0})
    for n in (5, 2, 0, 1):
        x = batch(n)
        E, F = workers(x)
        assert np.array_equal(F, 3 * x) and np.array_equal(E, 3 * x.sum((1, 2)))


def test_what_workers_spend_is_counted(module):
    before = cpu_seconds()
    workers = Workers(2, f"{module}:busy", {})
    workers(batch(4))
    workers(batch(4))  # what a worker has spent in all, not that a second time
    workers.close()
    assert 1.0 <= cpu_seconds() - before < 2.0


def test_a_worker_has_one_thread_a_process_of_its_own_and_no_torch(module):
    _, F = Workers(2, f"{module}:surroundings", {})(batch(2, 1))
    torch_there, threads, pids = F[:, 0].T
    assert not torch_there.any() and (threads == 1).all()
    assert len({os.getpid(), *pids.astype(int).tolist()}) == 3


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("picky", {"factor": 5}, r"factor \{'factor': 5\} is not allowed"),
        ("broken", {}, "some_rows:broken: KeyError: 'oh'"),
        ("absent", {}, "some_rows:absent: AttributeError"),
        ("doubled", {"factor": {1, 2}}, "settings of a worker are numbers, text, lists and tables"),
    ],
)
def test_what_cannot_be_built_is_refused_at_the_door(module, function, settings, message):
    with pytest.raises(ValueError, match=message):
        Workers(2, f"{module}:{function}", settings)


def test_no_worker_is_too_few(module):
    with pytest.raises(ValueError, match="workers = 0; allowed is 1 or more"):
        Workers(0, f"{module}:doubled", {})


def test_a_crash_is_told_with_its_exit_status_and_the_next_call_works(module):
    workers, x = Workers(2, f"{module}:doubled", {}), batch(4)
    bad = x.copy()
    bad[1, 0, 0] = -7
    with pytest.raises(RuntimeError, match="died with exit status 7"):
        workers(bad)
    assert np.array_equal(workers(x)[1], 2 * x)


def test_signals_to_the_whole_group_are_the_parents_affair(module):
    """Ctrl-C in a terminal and a cluster's SIGTERM reach the workers too; the parent may want to finish its step."""
    workers = Workers(2, f"{module}:surroundings", {})
    before = workers(batch(2, 1))[1][:, 0, 2]
    for pid in before.astype(int).tolist():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert np.array_equal(workers(batch(2, 1))[1][:, 0, 2], before)


def test_an_interrupted_call_leaves_no_answer_behind_for_the_next(module):
    """The alarm rings while both workers are asleep; a stale answer would come back as the next one."""
    workers, x = Workers(2, f"{module}:doubled", {}), batch(4)
    sleepy = x.copy()
    sleepy[:2, 0, 0] = -60

    def ring(*_):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            workers(sleepy)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert np.array_equal(workers(x)[1], 2 * x)


def test_closing_and_garbage_collection_stop_the_processes(module):
    workers = Workers(2, f"{module}:surroundings", {})
    first = workers(batch(2, 1))[1][:, 0, 2]
    workers.close()
    second = workers(batch(2, 1))[1][:, 0, 2]
    del workers
    assert not any(alive(int(pid)) for pid in (*first, *second))


VICTIM = """
import os, signal, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
from molsamp.molecular.workers import Workers
workers = Workers(2, "some_rows:surroundings", {})
print(*workers(np.zeros((2, 1, 3)))[1][:, 0, 2].astype(int), flush=True)
busy = Workers(2, "some_rows:doubled", {})
print(*(worker.pid for worker in busy._workers), flush=True)
busy(np.full((2, 1, 3), -60.0))
"""


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)])
def test_no_orphans_whatever_ends_the_parent(module, tmp_path, number, group):
    """Two workers wait for work, two are asleep in theirs; Ctrl-C goes to all of the group, a kill to the parent."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        text=True,
    )
    pids = [int(pid) for _ in range(2) for pid in victim.stdout.readline().split()]
    assert len(pids) == 4 and all(map(alive, pids))
    time.sleep(0.2)
    os.killpg(victim.pid, number) if group else os.kill(victim.pid, number)
    victim.stdout.close()
    assert victim.wait(10) != 0
    deadline = time.monotonic() + 8
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
