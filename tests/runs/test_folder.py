"""The run folder: locked, refused when taken, exact checkpoints, metrics cut back to them, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from molsamp.runs import checkpoint
from molsamp.runs.folder import Run


def state(k: int) -> dict:
    return {"k": k, "x": torch.full((3, 2), float(k), dtype=torch.float64), "note": "ja", "rate": 0.1 * k, "none": None}


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_a_state_comes_back_exactly(tmp_path):
    half, odd = torch.randn(4, generator=torch.Generator().manual_seed(0)), torch.tensor([True, False])
    saved = {**state(3), "half": half.half(), "odd": odd, "view": half[1:3], "alias": half, "scalar": torch.tensor(5)}
    with Run(tmp_path / "r") as run:
        run.save(saved)
    with Run(tmp_path / "r", resume=True) as run:
        back = run.resume()
    assert back is not None and back.keys() == saved.keys()
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert back[name].dtype == value.dtype and torch.equal(back[name], value)
        else:
            assert back[name] == value


def test_two_generations_are_kept_and_the_same_state_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        with Run(tmp_path / name) as run:
            for k in range(5):
                run.save(state(k))
    files = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert [f.name for f in files if f.suffix == ".safetensors"] == [f"state-000000000{k}.safetensors" for k in (3, 4)]
    for file in files:
        if file.suffix == ".safetensors":
            assert file.read_bytes() == (tmp_path / "b" / "checkpoints" / file.name).read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_torn_generation_costs_one_warning_and_the_one_before_is_used(tmp_path, suffix, damage):
    with Run(tmp_path / "r") as run:
        for k in (1, 2):
            run.log({"k": k})
            run.save(state(k))
    file = tmp_path / "r" / "checkpoints" / f"state-0000000002{suffix}"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] if damage == "cut" else content[:middle] + b"\x81" + content[middle + 1 :])
    with Run(tmp_path / "r", resume=True) as run, pytest.warns(UserWarning, match=r"torn checkpoint.*k = 1") as seen:
        back = run.resume()
        assert back is not None and back["k"] == 1 and len(seen) == 1
        assert (tmp_path / "r" / "metrics.jsonl").read_text() == '{"k": 1}\n'
        run.save(state(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = run.resume()
        assert again is not None and again["k"] == 2


def test_both_generations_torn_starts_again(tmp_path):
    with Run(tmp_path / "r") as run:
        run.log({"k": 0})
        run.save(state(1))
        run.save(state(2))
    for file in (tmp_path / "r" / "checkpoints").glob("*.safetensors"):
        file.write_bytes(b"")
    with Run(tmp_path / "r", resume=True) as run, pytest.warns(UserWarning, match="starts again"):
        assert run.resume() is None
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == ""


def test_files_that_grow_are_cut_back_and_go_on(tmp_path):
    """What came after the checkpoint is undone, and a torn line is noted; nothing before it is touched."""
    with Run(tmp_path / "r") as run:
        run.append("HILLS", "1\n2\n")
        run.save(state(1))
        run.append("HILLS", "3\n")
        run.append("COLVAR", "a\n")
    with (tmp_path / "r" / "HILLS").open("a") as f:
        f.write("4, torn")
    with Run(tmp_path / "r", resume=True) as run, pytest.warns(UserWarning, match="HILLS: its last line was torn"):
        assert run.resume() is not None
        run.append("HILLS", "3\n4\n")
        run.append("COLVAR", "a\n")
        run.save(state(2))
    assert (tmp_path / "r" / "HILLS").read_text() == "1\n2\n3\n4\n"
    assert (tmp_path / "r" / "COLVAR").read_text() == "a\n"
    log = (tmp_path / "r" / "log.txt").read_text()
    assert log.count("torn") == 1 and "HILLS: its last line was torn; it is cut back to 4 bytes" in log


def test_a_file_begun_after_the_checkpoint_begins_again(tmp_path):
    """Also one whose name nobody knows beforehand: the second run writes it from its first byte."""
    with Run(tmp_path / "r") as run:
        run.append("HILLS", "1\n")
        run.save(state(1))
        run.append("mine", "a\nb\n")
    with Run(tmp_path / "r", resume=True) as run:
        assert run.resume() is not None
        run.append("mine", "a\n")
        run.append("mine", "b\n")
        run.save(state(2))
    assert (tmp_path / "r" / "mine").read_text() == "a\nb\n"
    with Run(tmp_path / "r", resume=True) as run:
        run.resume()
        run.append("mine", "c\n")
    assert (tmp_path / "r" / "mine").read_text() == "a\nb\nc\n"


def test_the_name_of_a_new_file_is_on_the_disk_before_the_checkpoint_counts_it(tmp_path, monkeypatch):
    pushed: list[str] = []
    monkeypatch.setattr(checkpoint, "fsync", lambda path: pushed.append(path.name))
    with Run(tmp_path / "r") as run:
        run.append("HILLS", "1\n")
        run.save(state(1))
        manifest = pushed.index("state-0000000001.json.tmp")
        assert pushed.index("HILLS") < pushed.index("r") < manifest
        assert pushed[:manifest].count("r") == 2  # the name of the file, and that of the folder checkpoints/
        pushed.clear()
        run.append("HILLS", "2\n")
        run.save(state(2))
        assert "HILLS" in pushed and "r" not in pushed
        pushed.clear()
        run.append("COLVAR", "a\n")
        run.save(state(3))
        assert pushed.index("r") < pushed.index("state-0000000003.json.tmp")


@pytest.mark.parametrize("left", ["", "1\n", None])
def test_a_file_that_lost_lines_is_not_padded(tmp_path, left):
    with Run(tmp_path / "r") as run:
        run.append("HILLS", "1\n2\n")
        run.log({"k": 0})
        run.save(state(1))
        run.log({"k": 1})
    hills, metrics = tmp_path / "r" / "HILLS", tmp_path / "r" / "metrics.jsonl"
    before = metrics.read_bytes()
    hills.unlink() if left is None else hills.write_text(left)
    refused = pytest.raises(ValueError, match=r"HILLS: has . bytes, its checkpoint")
    with Run(tmp_path / "r", resume=True) as run, refused:
        run.resume()
    assert metrics.read_bytes() == before and (hills.read_text() if hills.exists() else None) == left


def test_a_checkpoint_of_an_older_version_is_refused_and_kept(tmp_path):
    with Run(tmp_path / "r") as run:
        run.save(state(1))
    (manifest,) = (tmp_path / "r" / "checkpoints").glob("*.json")
    manifest.write_text(manifest.read_text().replace('"grown": {}', '"metrics_lines": 0'))
    with Run(tmp_path / "r", resume=True) as run, pytest.raises(ValueError, match="checkpoint of an older molsamp"):
        run.resume()
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) == 2


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    with Run(tmp_path / "r") as run:
        for k in range(4):
            run.log({"k": k, "loss": float("nan") if k == 1 else torch.tensor(0.5)})
            if k == 2:
                run.save(state(3))
    metrics = tmp_path / "r" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"k": 4, "lo')  # a kill in the middle of a line
    with Run(tmp_path / "r", resume=True) as run:
        run.resume()
        run.log({"k": 3})
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines == [{"k": 0, "loss": 0.5}, {"k": 1, "loss": None}, {"k": 2, "loss": 0.5}, {"k": 3}]


def test_clock_goes_on_after_a_resume(tmp_path):
    with Run(tmp_path / "r") as run:
        time.sleep(0.05)
        run.save(state(1))
    with Run(tmp_path / "r", resume=True) as run:
        run.resume()
        assert run.clock()[1] >= 0.05


@pytest.mark.parametrize("bad", [{"x": torch.zeros(1)}, {"k": -1}, {"k": True}, {"k": 0.5}, {"k": 1, "f": [1]}])
def test_a_state_that_cannot_be_saved_is_refused(tmp_path, bad):
    with Run(tmp_path / "r") as run, pytest.raises(ValueError, match="checkpoint: state"):
        run.save(bad)
    assert not list((tmp_path / "r").glob("checkpoints/*"))


def test_existing_missing_and_misplaced_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    Run(tmp_path / "r").close()
    with pytest.raises(ValueError, match="exists already; choose another folder, or continue with --resume"):
        Run(tmp_path / "r")
    with pytest.raises(ValueError, match="nothing to resume"):
        Run(tmp_path / "s", resume=True)
    with pytest.raises(ValueError, match="is a file"):
        Run(tmp_path / "file")
    with pytest.raises(OSError):
        Run(tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    Run(tmp_path / "empty").close()


def test_a_second_process_is_told_who_works_in_the_folder(tmp_path):
    code = "import sys\nfrom molsamp.runs.folder import Run\nRun(sys.argv[1], resume=True)"
    with Run(tmp_path / "r"):
        second = python(code, tmp_path / "r")
        assert f"another run is working in this folder (pid {os.getpid()} on" in second.stderr
    assert python(code, tmp_path / "r").returncode == 0


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """The file size limit of the process stands for the full disk: the write fails after some bytes."""
    code = """
import resource, sys, torch
from molsamp.runs.folder import Run
run = Run(sys.argv[1])
run.save({"k": 1, "x": torch.zeros(10)})
sys.dont_write_bytecode = True  # of modules that are compiled under the limit a torn .pyc would stay behind
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    run.save({"k": 2, "x": torch.zeros(100000)})
except OSError as error:
    print(error.strerror)
"""
    done = python(code, tmp_path / "r")
    assert done.stdout == "File too large\n", done.stderr
    names = {f.name for f in (tmp_path / "r" / "checkpoints").iterdir()}
    assert names == {"state-0000000001.safetensors", "state-0000000001.json"}


def test_signals_set_the_flag_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Run(tmp_path / "r") as run:
        with run.signals():
            assert not run.interrupted
            signal.raise_signal(signal.SIGTERM)
            assert run.interrupted and run.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before
        worker = threading.Thread(target=lambda: run.signals().__enter__())
        worker.start()
        worker.join()
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    code = """
import signal, sys
from molsamp.runs.folder import Run
run = Run(sys.argv[1])
with run.signals():
    signal.raise_signal(signal.SIGINT)
    print("first", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("never")
"""
    done = python(code, tmp_path / "r")
    assert (done.stdout, done.returncode) == ("first\n", 130)
