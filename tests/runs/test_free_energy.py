"""`molsamp free-energy` end to end on the double well: files, refusals, kill -9 and resume to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from molsamp.runs import cli

SMALL = {
    "walkers": "8", "build": "1.6", "stride": "0.04", "height": "0.05", "width": "[0.2]", "settle": "0.4",
    "production": "1.6", "frame": "0.04", "record": "0.4", "snapshots": "2", "grid.nodes": "40",
    "grid.ranges": "[[-1.75, 1.75]]",
}  # fmt: skip
LEARNT = {
    "walkers": "32", "height": "0.05", "width": "[0.2]", "settle": "0.4", "production": "1.6", "frame": "0.04",
    "record": "0.4", "grid.nodes": "40", "grid.ranges": "[[-1.75, 1.75]]", "network.widths": "[8]", "draws": "32",
    "process.smin": "0.02", "process.smax": "2.0", "source.width": "0.5", "warm": "2", "warm_steps": "250",
    "epochs": "6", "samples": "32", "relax": "0.4", "gradient_steps": "5", "batch": "32", "buffer": "64",
}  # fmt: skip


def sets(method, settings):
    return [part for key, value in settings.items() for part in ("--set", f"{method}.{key}={value}")]


SETS = sets("metadynamics", SMALL)
KERNELS = {key: value for key, value in SMALL.items() if key != "height"}
WINDOWS = {
    "walkers": "8", "windows": "4", "settle": "0.2", "production": "0.8", "frame": "0.04", "record": "0.2",
    "grid.nodes": "40", "grid.ranges": "[[-1.75, 1.75]]",
}  # fmt: skip
EVERY_UNIT = (
    "from molsamp.learn import drive; drive.drive.__kwdefaults__['every'] = 0.0; "
    "from molsamp.runs.cli import main; main()"
)
KILLED = {  # settings, and the file to kill at and to tear
    "metadynamics": (SMALL, "HILLS"),
    "opes": (KERNELS, "KERNELS"),
    "wt-asbs": (LEARNT, "HILLS"),
    "umbrella": (WINDOWS, "COLVAR"),
}
SAME = ("fes.dat", "COLVAR", "metrics.jsonl", "config.toml", "figures/profiles.csv")


def molsamp(*arguments) -> int:
    sys.argv = ["molsamp", *map(str, arguments)]
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "r"
    assert molsamp("free-energy", "double-well", "--cvs", "x", "--out", folder, "--quiet", *SETS) == 0
    return folder


def test_a_run_folder_is_whole(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["verb"] == "free-energy" and result["engine"] == "analytic"
    assert {"dF:left->right", "ess", "ess_share", "disagreement"} <= set(result["results"])
    for file in (*SAME, "HILLS", "report.html", "figures/profiles.svg", "figures/weights.svg"):
        assert (finished / file).stat().st_size > 0, file
    page = (finished / "report.html").read_text()
    assert "What these free energies are" in page and "Profiles" in page


@pytest.mark.parametrize("method", KILLED)
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(finished, tmp_path, method):
    """Kill -9 as soon as a file has begun, and again further on, with a checkpoint after every unit; a line is torn."""
    settings, torn = KILLED[method]
    given = ["--cvs", "x", "--method", method, *sets(method, settings)]
    if method != "metadynamics":
        finished = tmp_path / "whole"
        assert molsamp("free-energy", "double-well", "--out", finished, "--quiet", *given) == 0
    folder, command = tmp_path / "r", [sys.executable, "-c", EVERY_UNIT]
    first = [*command, "free-energy", "double-well", "--out", str(folder), "--quiet", *given]
    again = [*command, "free-energy", "--out", str(folder), "--resume", "--quiet"]
    for arguments, name in ((first, torn), (again, "metrics.jsonl")):
        file = folder / name
        known = _size(file)
        process = subprocess.Popen(arguments)
        deadline = time.monotonic() + 60
        while _size(file) <= 4 * known and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with (folder / torn).open("a") as f:
        f.write(" 1.0 0.3")
    assert molsamp("free-energy", "--out", folder, "--resume", "--quiet") == 0
    assert f"{torn}: its last line was torn" in (folder / "log.txt").read_text()
    for name in (*SAME, torn):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    ours, theirs = (json.loads((f / "result.json").read_text())["results"] for f in (folder, finished))
    assert ours == theirs


def _size(file):
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize("damage", ["lost lines", "older"])
def test_a_folder_that_cannot_be_gone_on_from_is_bad_input(finished, tmp_path, capsys, damage):
    shutil.copytree(finished, folder := tmp_path / "r")
    if damage == "older":
        for file in (folder / "checkpoints").glob("*.json"):
            file.write_text(file.read_text().replace('"grown"', '"metrics_lines": 0, "grown"'))
    else:
        (folder / "HILLS").write_text("")
    assert molsamp("free-energy", "--out", folder, "--resume", "--quiet") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and {"lost lines": "put it back", "older": "older molsamp"}[damage] in said
    assert "Traceback" not in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["double-well", "--method", "metadynamic"], "did you mean 'metadynamics'"),
        (["double-well", "--cvs", "z"], "no CV 'z'"),
        (["sn2-chloride", "--cvs", "h1"], "CV 'h1' has no period and needs a range"),
        (["double-well", "--cvs", "x", *SETS, "--set", "heigth=1"], "did you mean 'height'"),
        (["double-well", "--cvs", "x", *SETS, "--set", "factor=1"], "factor"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, message):
    assert molsamp("free-energy", *arguments, "--out", tmp_path / "r", "--quiet") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "r").exists()


def test_settings_of_another_verb_are_refused(finished, tmp_path, capsys):
    assert molsamp("paths", "--config", finished / "config.toml", "--out", tmp_path / "r") == 2
    assert "these are not settings of `molsamp paths`" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
