"""`molsamp steer --from` a finished run of a diffusion sampler: files, same bytes, and what is refused."""

import json

import pytest
from shell import molsamp

TINY = ("particles=8", "replicas=3", "steps=6")
LEARN = (
    *("network.widths=[16]", "warm=0.2", "warm_steps=250", "epochs=1", "samples=64", "gradient_steps=5", "batch=64"),
    *("steps=5", "draws=256", "walkers=64", "settle=0.1", "production=0.2", "record=0.1", "frame=0.02"),
    *("relax=none", "blend=none", "process.smin=0.02", "process.smax=3"),
)
FILES = ("config.toml", "metrics.jsonl", "particles.csv", "free.csv", "figures/effective.csv", "figures/genealogy.csv")


def sets(items):
    return [word for item in items for word in ("--set", item)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has hardly learnt."""
    runs = tmp_path_factory.mktemp("runs")
    learn = ("free-energy", "gaussians-2d", "--method", "as", "--out", runs / "as", "--quiet", *sets(LEARN))
    assert molsamp(*learn) == 0
    steer = ("steer", "gaussians-2d", "--reward", "x=1+-0.5", "--from", runs / "as", "--out", runs / "steer")
    assert molsamp(*steer, "--quiet", *sets(TINY)) == 0
    return runs


def test_a_run_folder_is_whole(folder):
    run = folder / "steer"
    result = json.loads((run / "result.json").read_text())
    assert (result["verb"], result["method"]) == ("steer", "diffusion") and result["network_calls"] > 0
    assert {"log_partition", "ess_sampler", "log_z"} <= result["results"].keys() == result["null"].keys()
    page = (run / "report.html").read_text()
    for words in ("What distribution comes out", "free samples", "Genealogy", "network calls", "point\nsource"):
        assert words in page, words
    assert {f.stem for f in (run / "figures").glob("*.svg")} >= {"effective", "genealogy", "distribution"}
    assert molsamp("report", run) == 0


def test_the_written_settings_make_the_same_run(folder, tmp_path):
    again = tmp_path / "again"
    assert molsamp("steer", "--config", folder / "steer" / "config.toml", "--out", again, "--quiet") == 0
    assert [(again / f).read_bytes() for f in FILES] == [(folder / "steer" / f).read_bytes() for f in FILES]


def test_a_sampler_that_has_changed_is_refused(folder, tmp_path, capsys):
    file = tmp_path / "config.toml"
    lines = (folder / "steer" / "config.toml").read_text().splitlines()
    file.write_text("\n".join('weights = "0"' if line.startswith("weights") else line for line in lines))
    assert molsamp("steer", "--config", file, "--out", tmp_path / "r", "--quiet") == 2
    assert "the settings were made for 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gaussians-2d", "--method", "diffusion"], "--from: is missing; --method diffusion takes"),
        (["gaussians-2d", "--method", "fk", "--from", "as"], "fk takes none"),
        (["gaussians-2d", "--from", "nowhere"], "holds no finished run"),
        (["gaussians-2d", "--from", "steer"], "is a run of steer, method diffusion; allowed is"),
        (["gaussians-50d", "--from", "as"], "has learnt system = gaussians-2d, asked for is gaussians-50d"),
        (["gaussians-2d", "--from", "as", "--set", "steps=1"], "steps"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    assert molsamp("steer", *arguments, "--reward", "x=1+-0.5", "--out", tmp_path / "r", "--quiet") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "r").exists()
