"""`molsamp steer` end to end on the double well: files, report, refusals, kill -9 and resume to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from shell import molsamp

SMALL = ("--reward", "x=0.2+-0.4", "--reward", "y*0.5", "--set", "particles=12", "--set", "replicas=4")
SMALL += ("--set", "length=0.4", "--set", "every=0.05")
FILES = ("config.toml", "metrics.jsonl", "particles.csv", "free.csv")
TABLES = ("effective", "genealogy", "distribution")
EVERY_UNIT = (
    "from molsamp.learn import drive; drive.drive.__kwdefaults__['every'] = 0.0; "
    "from molsamp.runs.cli import main; main()"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "steer"
    assert molsamp("steer", "double-well", "--out", folder, "--quiet", *SMALL) == 0
    return folder


def test_a_run_folder_is_whole(finished):
    result = json.loads((finished / "result.json").read_text())
    assert (result["verb"], result["method"], result["engine"]) == ("steer", "fk", "analytic")
    expected = {"dF:free->tilted", "dF_kT:free->tilted", "log_z", "mean:x", "mean:y", "inside:left", "ess", "lineages"}
    assert expected <= result["results"].keys() == result["null"].keys()
    assert result["energy_evaluations"] == 2 * 12 * 4 * 40
    for name in (*FILES, "report.html", *(f"figures/{table}.csv" for table in TABLES)):
        assert (finished / name).stat().st_size > 0, name
    assert len((finished / "particles.csv").read_text().splitlines()) == 1 + 12 * 4
    page = (finished / "report.html").read_text()
    for words in ("What distribution comes out", "free walkers", "Genealogy", "x=0.2+-0.4"):
        assert words in page, words
    drawn = {f.stem for f in (finished / "figures").glob("*.svg")}
    assert drawn == {"effective", "genealogy", "trajectories", "distribution"}
    assert molsamp("report", finished) == 0


def test_the_written_settings_make_the_same_run(finished, tmp_path):
    again = tmp_path / "again"
    assert molsamp("steer", "--config", finished / "config.toml", "--out", again, "--quiet") == 0
    assert [(again / f).read_bytes() for f in FILES] == [(finished / f).read_bytes() for f in FILES]


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(finished, tmp_path):
    """Kill -9 as soon as there are metrics, with a checkpoint after every unit."""
    folder, command = tmp_path / "r", [sys.executable, "-c", EVERY_UNIT]
    process = subprocess.Popen([*command, "steer", "double-well", "--out", str(folder), "--quiet", *SMALL])
    deadline, file = time.monotonic() + 60, folder / "metrics.jsonl"
    while not (file.exists() and file.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert molsamp("steer", "--out", folder, "--resume", "--quiet") == 0
    for name in (*FILES, *(f"figures/{table}.csv" for table in TABLES)):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    ours, theirs = (json.loads((f / "result.json").read_text())["results"] for f in (folder, finished))
    assert ours == theirs
    assert molsamp("steer", "--out", folder, "--resume", "--strength", "2", "--quiet") == 2


def test_a_molecule_leaves_structures(tmp_path):
    """20 fs of a peptide towards an r^-6 average: trajectories, a topology, the player, units."""
    sets = ("--set", "particles=4", "--set", "replicas=2", "--set", "length=20 fs", "--set", "every=10 fs")
    folder = tmp_path / "r"
    reward = ("--reward", "noe:4-14,6-16=0.35+-0.05", "--reward", "phi=60 deg+-1")
    assert molsamp("steer", "alanine-dipeptide", "--out", folder, "--quiet", *reward, *sets) == 0
    for name in ("samples.dcd", "free.dcd", "topology.pdb", "player.pdb", "particles.csv"):
        assert (folder / name).stat().st_size > 0, name
    results = json.loads((folder / "result.json").read_text())["results"]
    assert results["mean:noe:4-14,6-16"]["unit"] == "nm" and 0.2 < results["mean:noe:4-14,6-16"]["value"] < 0.5
    assert (results["mean:phi"]["unit"], results["dF:free->tilted"]["unit"]) == ("rad", "kJ/mol")
    assert "Not shown" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["double-well"], "--reward: is missing; allowed is QUANTITY=VALUE+-WIDTH"),
        (["double-well", "--reward", "z=1"], "no CV 'z'"),
        (["double-well", "--reward", "x->1"], "allowed is QUANTITY=VALUE+-WIDTH"),
        (["double-well", "--reward", "x=nan"], "got 'nan'; allowed is a finite number"),
        (["double-wel", "--reward", "x=1"], "did you mean 'double-well'"),
        (["double-well", "--reward", "x=1", "--method", "fkk"], "did you mean 'fk'"),
        (["double-well", "--reward", "x=1", "--set", "particles=1"], "particles"),
        (["double-well", "--reward", "x=1", "--set", "replicas=1"], "replicas"),
        (["double-well", "--reward", "x=1", "--set", "potential=min"], "potential"),
        (["double-well", "--reward", "x=1", "--strength", "nan"], "strength"),
        (["double-well", "--reward", "x=1", "--strength", "0"], "strength"),
        (["double-well", "--reward", "x=1", "--set", "every=99"], "beyond the length"),
        (["double-well", "--reward", "x=1", "--set", "start=lef"], "did you mean 'left'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, message):
    assert molsamp("steer", *arguments, "--out", tmp_path / "r", "--quiet") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and os.listdir(tmp_path) == []
