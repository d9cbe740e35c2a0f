"""`molsamp rates` end to end on the double well: files, refusals, kill -9 and resume to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from shell import molsamp

from molsamp.molecular.system import bundled

SMALL = {
    "we": {"replicas": "4", "walkers": "2", "segment": "0.2", "settle": "2", "production": "6", "bins": "12"},
    "ffs": {"replicas": "4", "walkers": "2", "settle": "0.4", "basin": "8", "interfaces": "3", "trials": "20"},
    "md": {"replicas": "4", "walkers": "16", "settle": "1", "production": "10"},
}
EVERY_UNIT = (
    "from molsamp.learn import drive; drive.drive.__kwdefaults__['every'] = 0.0; "
    "from molsamp.runs.cli import main; main()"
)
FILES = {"we": ("flux", "occupancy"), "ffs": ("ladder",), "md": ("flux", "occupancy")}


def sets(method):
    return ["--method", method, *(part for k, v in SMALL[method].items() for part in ("--set", f"{method}.{k}={v}"))]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The double well at a temperature where its barrier is 2.4 kT."""
    file = tmp_path_factory.mktemp("warm") / "system.toml"
    own = (bundled() / "double-well" / "system.toml").read_text()
    file.write_text(own.replace("kT = 0.1034", "kT = 0.45"))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warm):
    folders = {method: tmp_path_factory.mktemp("runs") / method for method in SMALL}
    for method, folder in folders.items():
        assert molsamp("rates", warm, "--out", folder, "--quiet", *sets(method)) == 0
    return folders


@pytest.mark.parametrize("method", SMALL)
def test_a_run_folder_is_whole(finished, method):
    folder = finished[method]
    result = json.loads((folder / "result.json").read_text())
    assert (result["verb"], result["method"], result["engine"]) == ("rates", method, "analytic")
    assert {"rate", "mfpt", "flux"} <= set(result["results"]) and result["energy_evaluations"] > 0
    for file in ("config.toml", "metrics.jsonl", "report.html", *(f"figures/{name}.csv" for name in FILES[method])):
        assert (folder / file).stat().st_size > 0, file
    page = (folder / "report.html").read_text()
    assert "What these rates are" in page and "Committor" in page
    assert molsamp("report", folder) == 0


def test_the_figures_are_drawn(finished):
    drawn = {method: {f.stem for f in (folder / "figures").glob("*.svg")} for method, folder in finished.items()}
    assert drawn["we"] == drawn["md"] == {"flux", "occupancy", "committor"}
    assert drawn["ffs"] == {"ladder", "committor"}


@pytest.mark.parametrize("method", SMALL)
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(finished, warm, tmp_path, method):
    """Kill -9 as soon as there are metrics, with a checkpoint after every unit."""
    folder, command = tmp_path / "r", [sys.executable, "-c", EVERY_UNIT]
    process = subprocess.Popen([*command, "rates", str(warm), "--out", str(folder), "--quiet", *sets(method)])
    deadline, file = time.monotonic() + 60, folder / "metrics.jsonl"
    while not (file.exists() and file.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert molsamp("rates", "--out", folder, "--resume", "--quiet") == 0
    for name in ("metrics.jsonl", "config.toml", *(f"figures/{name}.csv" for name in FILES[method])):
        assert (folder / name).read_bytes() == (finished[method] / name).read_bytes(), name
    ours, theirs = (json.loads((f / "result.json").read_text())["results"] for f in (folder, finished[method]))
    assert ours == theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["double-well", "--method", "wee"], "did you mean 'we'"),
        (["double-wel"], "did you mean 'double-well'"),
        (["double-well", "--set", "progress=z"], "no CV 'z'"),
        (["double-well", "--set", "walkers=0"], "walkers"),
        (["double-well", "--set", "end=left"], "left"),
        (["double-well", "--set", "temperature=300"], "reduced units"),
        (["alanine-dipeptide", "--set", "start=C7eq", "--set", "end=C5"], "both of the region"),
        (["double-well", "--set", "edges=[1.0, 0.0]"], "edges: must rise"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, message):
    assert molsamp("rates", *arguments, "--out", tmp_path / "r", "--quiet") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and os.listdir(tmp_path) == []
