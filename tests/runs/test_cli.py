"""The command line on a real toy: files, exit codes, one-line errors, resume, same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import molsamp

SAME = ("config.toml", "frames.csv", "figures/map.csv", "checkpoints/state-0000000003.safetensors")
SMALL = ("--set", "paths=24", "--set", "steps=40", "--set", "batch=8")


def child(code: str, *arguments: str | Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert molsamp("paths", "double-well", "--method", "md", "--seed", "3", "--out", folder, "--quiet", *SMALL) == 0
    return folder


def test_the_run_folder_holds_what_design_section_7_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.toml", "result.json", "metrics.jsonl", "frames.csv", "figures", "report.html", "lock"} <= names
    result = json.loads((finished / "result.json").read_text())
    assert list(result) == [
        *("verb", "system", "method", "seed", "versions", "machine", "engine", "energy_evaluations"),
        *("network_calls", "cpu_seconds", "wall_seconds", "results", "null", "warnings"),
    ]
    assert result["results"]["hit_rate"]["n"] == 24 and result["null"]["hit_rate"]["n"] == 24
    for number in result["results"].values():
        assert {"value", "interval", "unit", "n"} <= number.keys()


def test_config_given_back_gives_the_same_bytes(finished, tmp_path):
    assert molsamp("paths", "--config", finished / "config.toml", "--out", tmp_path / "again", "--quiet") == 0
    for name in SAME:
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name
    results = [json.loads((folder / "result.json").read_text())["results"] for folder in (finished, tmp_path / "again")]
    assert results[0] == results[1]


def test_the_table_and_the_progress_are_shown_unless_quiet(tmp_path, capsys):
    assert molsamp("paths", "double-well", "--method", "md", "--out", tmp_path / "r", *SMALL) == 0
    shown = capsys.readouterr()
    assert "hit rate" in shown.out and "untrained pull" in shown.out and "report:" in shown.out
    assert "3/3" in shown.err


def test_another_seed_gives_other_paths(finished, tmp_path):
    molsamp("paths", "--config", finished / "config.toml", "--seed", "4", "--out", tmp_path / "r", "--quiet")
    assert (tmp_path / "r" / "frames.csv").read_bytes() != (finished / "frames.csv").read_bytes()


def test_resuming_a_finished_run_writes_it_again(finished, capsys):
    before = (finished / "frames.csv").read_bytes()
    (finished / "result.json").unlink()
    assert molsamp("paths", "--out", finished, "--resume", "--quiet") == 0
    assert (finished / "frames.csv").read_bytes() == before and (finished / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paths", "duble-well"], "double-well"),
        (["paths", "double-well", "--method", "shoting"], "did you mean 'shooting'?"),
        (["paths", "double-well", "--set", "tps-dps.rolouts=3"], "did you mean 'tps-dps.rollouts'?"),
        (["paths", "double-well", "--set", "timestep=-1"], "key 'timestep': got '-1'; should be greater than 0"),
        (["paths", "double-well", "--set", "start=right"], "start and end are both 'right'"),
        (["paths", "double-well", "--set", "end=up"], "no state 'up'"),
        (["paths", "double-well", "--set", "energy=magic"], "energy tier 'magic' is unknown"),
        (["paths", "double-well", "--seed", "x"], "Invalid value for '--seed'"),
        (["paths", "--bogus"], "No such option: --bogus"),
        (["paths"], "key 'system' is missing"),
        (["paths", "double-well", "--resume"], "name the run folder with --out DIR"),
        (["paths", "double-well", "--config", "none.toml"], "none.toml: no such file"),
        (["report", "nowhere"], "nowhere: no result.json"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert molsamp(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_and_changed_settings_are_refused(finished, tmp_path, capsys):
    assert molsamp("paths", "double-well", "--method", "md", "--out", finished) == 2
    assert "exists already" in capsys.readouterr().err
    assert molsamp("paths", "--out", finished, "--resume", "--seed", "5", "--set", "paths=8") == 2
    assert "paths: was 24, now 8; seed: was 3, now 5" in capsys.readouterr().err
    assert molsamp("paths", "--out", tmp_path / "none", "--resume") == 2
    assert "no such file" in capsys.readouterr().err


def test_another_version_is_refused_on_resume(finished, tmp_path, capsys):
    import shutil

    shutil.copytree(finished, tmp_path / "old")
    config = tmp_path / "old" / "config.toml"
    config.write_text('version = "0.0.1"\n' + config.read_text().partition("\n")[2])
    assert molsamp("paths", "--out", tmp_path / "old", "--resume") == 2
    assert "version: was '0.0.1'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert molsamp("paths", "double-well", "--method", "md", "--out", tmp_path / "file" / "run") == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said and said.count("\n") == 1


FULL_DISK = """
import resource, sys
from molsamp.runs import cli
sys.dont_write_bytecode = True  # of modules that are compiled under the limit a torn .pyc would stay behind
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.argv = ["molsamp", *sys.argv[1:]]
cli.main()
"""


def test_a_full_disk_is_one_line_exit_2_and_no_half_file(tmp_path):
    """The file size limit stands for the full disk; paths of 40 frames need more than 9 kB."""
    arguments = ("paths", "double-well", "--method", "md", "--out", tmp_path / "r", "--quiet", *SMALL)
    process = child(FULL_DISK, *arguments)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and said.count("\n") == 1 and "File too large" in said
    assert not [path for path in (tmp_path / "r").rglob("*") if path.suffix in (".tmp", ".part")]
    assert not (tmp_path / "r" / "result.json").exists()


SLOW = """
import sys, time
from molsamp.molecular.paths.free import UnbiasedMD
from molsamp.runs import cli
advance = UnbiasedMD.advance
def slowly(self):
    print("working", flush=True)
    time.sleep(0.3)
    return advance(self)
UnbiasedMD.advance = slowly
sys.argv = ["molsamp", *sys.argv[1:]]
cli.main()
"""


def test_sigterm_checkpoints_says_how_to_continue_and_the_resumed_run_has_the_same_bytes(finished, tmp_path):
    folder = tmp_path / "r"
    process = child(SLOW, "paths", "double-well", "--method", "md", "--seed", "3", "--out", folder, "--quiet", *SMALL)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143 and time.monotonic() - began < 10
    assert said == f"molsamp: interrupted at 1 of 3; to continue: molsamp paths --out {folder} --resume\n"
    assert molsamp("paths", "--out", folder, "--resume", "--quiet") == 0
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_signal_during_the_last_unit_is_not_lost(tmp_path, monkeypatch, capsys):
    from molsamp.molecular.paths.free import UnbiasedMD

    advance = UnbiasedMD.advance

    def last(self):
        metrics = advance(self)
        if self.k == self.total:
            signal.raise_signal(signal.SIGINT)
        return metrics

    monkeypatch.setattr(UnbiasedMD, "advance", last)
    folder = tmp_path / "r"
    assert molsamp("paths", "double-well", "--method", "md", "--out", folder, "--quiet", *SMALL) == 130
    assert "interrupted at 3 of 3" in capsys.readouterr().err and not (folder / "result.json").exists()
    assert molsamp("paths", "--out", folder, "--resume", "--quiet") == 0


def test_a_failing_job_exits_1_with_the_traceback_in_the_log(tmp_path, monkeypatch, capsys):
    from molsamp.molecular.paths.free import UnbiasedMD

    def fail(self):
        raise FloatingPointError("90 % of the paths diverged")

    monkeypatch.setattr(UnbiasedMD, "advance", fail)
    assert molsamp("paths", "double-well", "--method", "md", "--out", tmp_path / "r", "--quiet", *SMALL) == 1
    assert "failed at 0 of 3: 90 % of the paths diverged" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "r" / "log.txt").read_text()


def test_systems_report_and_doctor(finished, capsys):
    assert molsamp("systems") == 0
    assert "double-well" in capsys.readouterr().out
    assert molsamp("systems", "--template") == 0
    assert "[states" in capsys.readouterr().out
    assert molsamp("report", finished) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert molsamp("doctor") == 0
    shown = capsys.readouterr().out
    assert "all is well" in shown and "Reference" in shown and "FAILED" not in shown


def test_the_doctor_notices(monkeypatch, capsys):
    from molsamp.runs import doctor

    wrong = [doctor.Check("a number", 2.0, 1.0), doctor.Check("no number", float("nan"), 1.0)]
    monkeypatch.setattr(doctor, "energies_agree", lambda: wrong)
    monkeypatch.setattr(doctor, "density_is_the_samplers", lambda: 1 / 0)
    assert not doctor.examine()
    shown = capsys.readouterr().out
    assert shown.count("FAILED") == 3 and "ZeroDivisionError" in shown


def test_help_is_immediate_and_imports_no_torch():
    code = """
import sys
from molsamp.runs import cli
sys.argv = ["molsamp", "--help"]
try:
    cli.main()
except SystemExit:
    assert "torch" not in sys.modules and "numpy" not in sys.modules, "slow import"
"""
    process = child(code)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert "paths" in out and "doctor" in out
