"""`molsamp image` with guides, rewards and measurements: folders, one-line errors, same bytes, reports."""

from __future__ import annotations

import io
import json
import re
from functools import partial
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from safetensors import safe_open
from shell import molsamp

from molsamp.engine.noise import Noise
from molsamp.image import data
from molsamp.image.populations import Populations
from molsamp.image.scans import operator, simulated
from molsamp.learn import drive as learning
from molsamp.runs import cli, summary

SMALL = ("--n", "12", "--steps", "8", "--set", "particles=4", "--set", "every=3", "--seed", "3", "--quiet")
STEERED = ("--class", "3", "--guide", "apg:4", "--reward", "brightness", *SMALL)
SAME = ("config.toml", "metrics.jsonl", "samples.safetensors", "samples.png", "figures/states.json")
TABLES = ("before.png", *(f"figures/{name}.csv" for name in ("guidance", "population", "genealogy", "final")))


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steered") / "run"
    assert molsamp("image", *STEERED, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steered") / "run"
    assert molsamp("image", "--operator", "radon:6", *SMALL, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def y_file(tmp_path_factory) -> Path:
    """Projections of one held-out picture."""
    file = tmp_path_factory.mktemp("steered") / "y.npy"
    truth = data.digits().split()[1].x[:1]
    np.save(file, simulated(operator("radon:6", (1, 8, 8)), truth, 0.05, Noise(0))[0].numpy())
    return file


def test_a_reward_has_weights_lineage_and_what_was_before(rewarded):
    r = result(rewarded)
    assert (r["verb"], r["solver"], r["guide"], r["reward"]) == ("image", "ddpm", "apg:4", "brightness")
    assert r["network_calls"] == 3 * (8 + 2) and r["forwards"] == 60 and r["comparison"]["network_calls"] == 24
    assert set(r["results"]) == {
        *("reward", "reward_before", "log_z", "ess_share", "ancestors"),
        *("recognised", "recognised_before", "diverged"),
    }
    assert r["results"]["reward"]["interval"][0] < r["results"]["reward"]["value"]
    with safe_open(rewarded / "samples.safetensors", "pt") as f:
        x, logw, label = (f.get_tensor(name) for name in ("x", "logw", "label"))
    assert x.shape == (12, 1, 8, 8) and logw.dtype == torch.float64 and label.eq(3).all()
    rows = (rewarded / "figures" / "final.csv").read_text().splitlines()[1:]
    weights = np.array([[float(c) for c in row.split(",")] for row in rows])
    np.testing.assert_allclose(weights[:, 2].reshape(3, 4).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(weights[:, 3], x.flatten(1).mean(1), atol=1e-5)
    np.testing.assert_allclose(weights[:, 2].reshape(3, 4), torch.softmax(logw.view(3, 4), 1), atol=1e-5)
    lines = (rewarded / "figures" / "guidance.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in lines] == [["apg:4", str(k)] for k in range(8)]
    assert all(0.0 < float(line.split(",")[3]) < 2.0 for line in lines)
    lines = (rewarded / "figures" / "population.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2] for line in lines[::3]] == ["3", "6", "8"]
    assert "strength = 20.0" in (rewarded / "config.toml").read_text()


def test_a_measurement_has_truth_solution_and_cg_beside(solved):
    r = result(solved)
    assert r["solver"] == "renoising" and r["operator"] == "radon:6" and r["network_calls"] == 24
    results = r["results"]
    assert set(results) == {"psnr", "psnr_mean", "psnr_cg", "psnr_gain", "misfit", "diverged"}
    gain = results["psnr_mean"]["value"] - results["psnr_cg"]["value"]
    assert results["psnr_gain"]["value"] == pytest.approx(gain) and gain > 2.0
    with safe_open(solved / "samples.safetensors", "pt") as f:
        truth, y = f.get_tensor("truth"), f.get_tensor("y")
    assert torch.equal(truth, data.digits().split()[1].x[:3]) and y.shape == (3, 6, 12)
    assert {"solutions.png", "measurements.png"} <= {file.name for file in solved.iterdir()}
    assert not (solved / "before.png").exists()


def test_a_measurement_from_a_file_has_no_truth(y_file, tmp_path, capsys):
    """And a run is not resumed with another file under the same name."""
    asked = ("image", "--operator", "radon:6", "--measurement", y_file, "--set", "mode=bayes", *SMALL)
    assert molsamp(*asked, "--out", tmp_path / "r") == 0
    r = result(tmp_path / "r")
    assert set(r["results"]) == {"misfit", "diverged"} and r["solver"] == "dpm++2m"
    assert f'measurement = "{y_file}"' in (tmp_path / "r" / "config.toml").read_text()
    other, config = tmp_path / "y.npy", tmp_path / "c.toml"
    np.save(other, 2.0 * np.load(y_file))
    config.write_text((tmp_path / "r" / "config.toml").read_text().replace(str(y_file), str(other)))
    assert molsamp("image", "--config", config) == 2
    assert "measured:" in (said := capsys.readouterr().err) and "the settings were made for" in said


def test_all_three_at_once(y_file, tmp_path):
    """As issue 7 writes it."""
    asked = ("--guide", "apg:4.0", "--reward", "brightness", "--operator", "radon:6", "--measurement", y_file)
    assert molsamp("image", *asked, "--class", "1", *SMALL, "--out", tmp_path / "r") == 0
    assert {"reward", "misfit", "ess_share"} <= set(result(tmp_path / "r")["results"])


def test_config_given_back_gives_the_same_bytes(rewarded, solved, tmp_path):
    for k, (folder, more) in enumerate(((rewarded, TABLES), (solved, ("solutions.png", "measurements.png")))):
        assert molsamp("image", "--config", folder / "config.toml", "--out", tmp_path / f"{k}", "--quiet") == 0
        for name in (*SAME, *more):
            assert (tmp_path / f"{k}" / name).read_bytes() == (folder / name).read_bytes(), name
        assert result(tmp_path / f"{k}")["results"] == result(folder)["results"]


class Killed(BaseException):
    """Stands for a signal that cannot be caught."""


@pytest.mark.parametrize("unit", [1, 2])
def test_killed_and_resumed_gives_the_same_bytes(rewarded, tmp_path, monkeypatch, unit):
    advance = Populations.advance

    def fatal(job):
        if job.k == unit:
            raise Killed
        return advance(job)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "drive", partial(learning.drive, every=0.0))  # a checkpoint after every unit
        patch.setattr(Populations, "advance", fatal)
        patch.setattr(cli, "_explain", lambda error: 137)
        assert molsamp("image", *STEERED, "--out", tmp_path / "r") == 137
    assert molsamp("image", "--out", tmp_path / "r", "--resume", "--quiet") == 0
    for name in (*SAME, *TABLES):
        assert (tmp_path / "r" / name).read_bytes() == (rewarded / name).read_bytes(), name
    assert result(tmp_path / "r")["results"] == result(rewarded)["results"]


def test_without_these_options_the_settings_are_as_ever(tmp_path):
    """No key of steering in config.toml, and a config without them is no steered one."""
    few = ("--n", "4", "--steps", "3", "--set", "compare=0", "--quiet")
    assert molsamp("image", *few, "--out", tmp_path / "r") == 0
    text = (tmp_path / "r" / "config.toml").read_text()
    assert not re.search("guide =|reward|operator|particles", text) and "compare = 0" in text
    assert molsamp("image", "--config", tmp_path / "r" / "config.toml", "--out", tmp_path / "s", "--quiet") == 0
    assert (tmp_path / "s" / "samples.png").read_bytes() == (tmp_path / "r" / "samples.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guide", "agp:4"], "--guide: 'agp' is unknown; did you mean 'apg'?"),
        (["--guide", "apg"], "--guide: got 'apg'; allowed is cfg:W"),
        (["--guide", "cfg++:3"], "the weight of CFG++ is 3.0, it must lie in [0, 1]"),
        (["--guide", "apg:3", "--guidance", "2"], "--guidance: it and a guide of classes"),
        (["--reward", "brightnes"], "did you mean 'brightness'?"),
        (["--reward", "digit:11"], "K one of 0 to 9"),
        (["--reward", "brightness", "--solver", "ddim"], "draws no noise"),
        (["--reward", "brightness", "--solver", "edm"], "one prediction a row"),
        (["--reward", "brightness", "--n", "10"], "n: got 10; the pictures must make populations of 16"),
        (["--strength", "3"], "--strength: it is that of a reward"),
        (["--operator", "radon", "--strength", "3"], "--strength: it is that of a reward"),
        (["--operator", "rado:3"], "--operator: 'rado' is unknown; did you mean 'radon'?"),
        (["--operator", "radon:0.5"], "--operator: got 'radon:0.5'"),
        (["--operator", "downsample:3"], "do not fall into blocks of 3"),
        (["--operator", "mri", "--guide", "cfg:2"], "give --class"),
        (["--operator", "mri", "--set", "mode=exact"], "key 'mode': got 'exact'; should be 'published' or 'bayes'"),
        (["--operator", "mri", "--set", "data=mnist"], "data: pictures of 'mnist' are 1 x 16 x 16"),
        (["--measurement", "y.npy"], "by which operator was it made?"),
        (["--operator", "mri", "--measurement", "y.npy"], "y.npy: no such file"),
        (["--guide", "apg:3", "--set", "compare=3"], "key 'compare' is unknown"),
        (["--guide", "apg:3", "bench"], "--guide: options of `molsamp image bench` come after the word bench"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert molsamp("image", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_measurement_of_another_shape_is_one_line(y_file, capsys):
    for operator_, message in (("radon:7", "this operator gives 7 x 12"), ("mri:2", "this operator gives 2 x 8 x 8")):
        assert molsamp("image", "--operator", operator_, "--measurement", y_file) == 2
        assert message in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_population_that_dies_out_fails_loudly_and_keeps_the_others(tmp_path, monkeypatch, capsys):
    advance = Populations.advance

    def forbidden(job):
        if job.k == 1:
            object.__setattr__(job.wishes, "reward", lambda x: torch.full((len(x),), -torch.inf))
        return advance(job)

    monkeypatch.setattr(Populations, "advance", forbidden)
    assert molsamp("image", *STEERED, "--out", tmp_path / "r") == 1
    said = capsys.readouterr().err
    assert "failed at 1 of 3" in said and "has any weight left" in said and "the populations so far are in" in said
    assert (tmp_path / "r" / "samples.png").exists() and not (tmp_path / "r" / "result.json").exists()


def words(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL))


def test_the_reports_say_what_was_asked(rewarded, solved, capsys):
    text = words(rewarded)
    for expected in (
        "digits: apg:4; brightness × 20",
        "class 3",
        "p(x) exp(20 reward(x)) / Z",
        "Genealogy",
        "Before",
        "What guides add",
    ):
        assert expected in text, expected
    text = words(solved)
    for expected in ("digits: radon:6, simulated", "DDS as published", "PSNR of CG alone", "Truth, measurement"):
        assert expected in text, expected
    out = io.StringIO()
    summary.show(solved, out)  # type: ignore[arg-type]
    assert "radon:6" in out.getvalue() and "dB" in out.getvalue()


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium is installed")
def test_the_reports_open_without_errors(rewarded, solved, tmp_path):
    for folder, pictures, drawn in ((rewarded, 2, 4), (solved, 3, 1)):
        with chromium.Page((folder / "report.html").as_uri(), tmp_path) as page:
            assert page.evaluate("document.querySelectorAll('figure.panel svg').length") == drawn
            assert page.evaluate("[...document.images].filter(i => i.naturalWidth > 100).length") == pictures
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.errors == []
