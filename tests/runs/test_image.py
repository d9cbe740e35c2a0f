"""`molsamp image` and `molsamp image bench`: folders, exit codes, one-line errors, same bytes after a kill, sheets."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shell import molsamp

from molsamp.engine.noise import Noise
from molsamp.engine.schedules import VP
from molsamp.image import models
from molsamp.image.bench import Bench, draws, entries, rmse
from molsamp.image.denoiser import Denoiser
from molsamp.image.job import Sampling, kept_frames
from molsamp.image.networks import make
from molsamp.image.sampling import sample
from molsamp.image.solvers import SOLVERS
from molsamp.image.subject import Subject
from molsamp.learn.drive import drive
from molsamp.runs import cli, summary
from molsamp.runs.sheet import pixels, sheet

SAME = ("config.toml", "metrics.jsonl", "samples.safetensors", "samples.png", "trajectory.png", "figures/calls.csv")
SMALL = ("--n", "40", "--set", "batch=10", "--set", "compare=12", "--set", "fine=64", "--seed", "3", "--quiet")


# Victims are forked from one server that has all but the molecules loaded, so that a test costs no import.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["molsamp.runs.pictures", "molsamp.runs.verbs", "molsamp.runs.report", "sklearn.datasets"]
)


def victim(said: Path, prepare: Callable[..., None], given: tuple, arguments: tuple) -> None:
    """The command line in a process of its own, its stderr in a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    prepare(*given)
    sys.argv = ["molsamp", *map(str, arguments)]
    cli.main()


def start(said: Path, prepare: Callable[..., None], given: tuple, *arguments: str | Path) -> multiprocessing.Process:
    process = SERVER.Process(target=victim, args=(said, prepare, given, arguments))
    process.start()
    return process  # type: ignore[return-value]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "run"
    assert molsamp("image", "--guidance", "2", "--out", folder, *SMALL) == 0
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "bench"
    few = ("--solvers", "ddim,dpm++2m,dpm-3", "--calls", "2,4,8", "--n", "12", "--set", "fine=32")
    assert molsamp("image", "bench", *few, "--out", folder, "--quiet") == 0
    return folder


@pytest.fixture
def tiny(tmp_path) -> Path:
    """An untrained network of pictures 1 x 4 x 4 in three classes, as a file."""
    event = {"event": [1, 4, 4], "classes": 3, "size": 0.5}
    architecture = {"kind": "mlp", "width": 8, "depth": 1, **event}
    file = tmp_path / "tiny.safetensors"
    models.save(models.Model(make(architecture, Noise(0)), architecture), file)
    return file


def test_the_run_folder_holds_what_design_section_7_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert {*SAME[:-1], "figures", "result.json", "report.html", "checkpoints", "lock", "log.txt"} <= names
    r = result(finished)
    assert list(r)[:8] == ["verb", "model", "solver", "seed", "versions", "machine", "network_calls", "forwards"]
    assert (r["verb"], r["model"], r["solver"], r["seed"]) == ("image", "digits", "unipc", 3)
    assert r["network_calls"] == 40 and r["forwards"] == 80  # 10 calls a batch of four; two passes under guidance
    for table in ("results", "times", "null"):
        for number in r[table].values():
            low, high = number["interval"]
            assert low <= number["value"] <= high and number["n"] > 0
    assert {"rmse_to_fine", "fineness", "sliced_wasserstein", "diverged"} == set(r["results"])
    assert r["warnings"] == ["no Frechet distance: it needs 64 pictures on either side, here are 40 and 179"]
    with safe_open(finished / "samples.safetensors", "pt") as f:
        x, way, times = (f.get_tensor(name) for name in ("x", "trajectory", "times"))
        assert x.shape == (40, 1, 8, 8) and way.shape == (11, 6, 1, 8, 8) and len(times) == 11
        start = VP().sigma(1.0) * Noise(3).child("start").normal(0, torch.arange(6), (1, 8, 8), torch.float32)
        assert torch.equal(way[-1], x[:6]) and torch.allclose(way[0], start) and times[0] == 1.0
        assert f.get_tensor("label").tolist() == [k % 10 for k in range(40)]


def test_rmse_to_fine_is_that_of_the_samples_themselves(finished):
    """The samples in the file against fine trajectories made here, to the rounding of other batches."""
    with safe_open(finished / "samples.safetensors", "pt") as f:
        x = f.get_tensor("x")[:12]
    subject = Subject.of("digits", guidance=2.0)
    fine = sample(subject.model(torch.arange(12)), "unipc-3-bh1", 64, 12, noise=Noise(3), grid="log-snr").final.x
    expected = float((x - fine).square().mean().sqrt())
    assert result(finished)["results"]["rmse_to_fine"]["value"] == pytest.approx(expected, rel=1e-4)


def test_every_picture_depends_on_its_id_alone(finished):
    """Drawn one by one they are those of the run, to rounding: no picture's noise depends on its batch."""
    with safe_open(finished / "samples.safetensors", "pt") as f:
        x = f.get_tensor("x")
    subject = Subject.of("digits", guidance=2.0)
    for i in (0, 9, 10, 39):
        ids = torch.tensor([i])
        alone = sample(subject.model(ids), "unipc", 10, noise=Noise(3), ids=ids).final.x
        assert torch.allclose(alone[0], x[i], atol=1e-4)
    batches = (torch.arange(3), torch.tensor([2]))  # a solver that draws noise on the way
    noisy = [sample(subject.model(ids), "ddpm", 5, noise=Noise(3), ids=ids).final.x for ids in batches]
    assert torch.allclose(noisy[0][2], noisy[1][0], atol=1e-4)
    assert not torch.allclose(noisy[0][0], noisy[1][0], atol=0.1)


def test_config_given_back_gives_the_same_bytes(finished, tmp_path):
    again = tmp_path / "again"
    assert molsamp("image", "--config", finished / "config.toml", "--out", again, "--quiet") == 0
    for name in SAME:
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
    assert result(again)["results"] == result(finished)["results"]


def die_at(unit: int) -> None:
    """Checkpoint after every unit, and be killed before one of them."""
    drive.__kwdefaults__["every"] = 0.0
    advance = Sampling.advance
    Sampling.advance = lambda job: os.kill(os.getpid(), signal.SIGKILL) if job.k == unit else advance(job)  # type: ignore


@pytest.mark.parametrize("unit", [2, 9])  # among the batches, and within the comparison
def test_kill_9_and_resume_gives_the_same_bytes(finished, tmp_path, unit):
    folder = tmp_path / "r"
    process = start(tmp_path / "said", die_at, (unit,), "image", "--guidance", "2", "--out", folder, *SMALL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "checkpoints" / f"state-{unit:010d}.json").exists() and not (folder / "result.json").exists()
    assert molsamp("image", "--out", folder, "--resume", "--quiet") == 0
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert result(folder)["results"] == result(finished)["results"]
    assert result(folder)["network_calls"] == 40


def dawdle(working) -> None:
    """Take 0.2 s for every call on more than one picture, and tell of the first."""
    call = Denoiser.__call__

    def slowly(self, x, t, label=None):
        if len(x) > 1:
            working.set()
            time.sleep(0.2)
        return call(self, x, t, label)

    Denoiser.__call__ = slowly  # type: ignore[method-assign]


def test_ctrl_c_leaves_in_the_middle_of_a_batch_and_says_how_to_go_on(finished, tmp_path):
    folder = tmp_path / "r"
    working = SERVER.Event()
    process = start(tmp_path / "said", dawdle, (working,), "image", "--guidance", "2", "--out", folder, *SMALL)
    assert working.wait(60) and process.pid is not None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == 130 and time.monotonic() - began < 1.8  # a batch would have taken two seconds
    said = (tmp_path / "said").read_text()
    assert said == f"molsamp: interrupted at 0 of 32; to continue: molsamp image --out {folder} --resume\n"
    assert molsamp("image", "--out", folder, "--resume", "--quiet") == 0
    assert (folder / "samples.safetensors").read_bytes() == (finished / "samples.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "unpc"], "solver 'unpc' is unknown; did you mean 'unipc'?"),
        (["--solver", "dpm-3", "--steps", "2"], "dpm-3 needs 3 network calls or more, got steps = 2"),
        (["--steps", "0"], "key 'steps': got 0; should be greater than or equal to 1"),
        (["--model", "digts"], "model 'digts' is unknown; did you mean 'digits'?"),
        (["--class", "12"], "class: got 12; model 'digits' has the classes 0 to 9"),
        (["--class", "-1"], "class: got -1"),
        (["--guidance", "x"], "Invalid value for '--guidance'"),
        (["--grid", "even"], "key 'grid': got 'even'; should be 'uniform'"),
        (["--set", "data=faces"], "data: got 'faces'; allowed are digits, mnist"),
        (["--set", "stps=3"], "key 'stps' is unknown; did you mean 'steps'?"),
        (["--set", "weights=0123"], "weights: digits has the sha256"),
        (["bnch"], "No such command 'bnch'"),
        (["--seed", "3", "bench"], "--seed: options of `molsamp image bench` come after the word bench"),
        (["bench", "--solvers", "ddpm"], "solver 'ddpm' draws noise on its way"),
        (["bench", "--solvers", "dpm-3", "--calls", "2"], "calls: got [2]; dpm-3 need more"),
        (["bench", "--calls", "x"], "key 'calls.0': got 'x'; should be a valid integer"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert molsamp("image", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_changed_settings_and_another_verb_are_refused(finished, capsys):
    for arguments, message in [
        (["image", "--out", finished], "exists already"),
        (["image", "--out", finished, "--resume", "--steps", "9"], "steps: was 10, now 9"),
        (
            ["image", "bench", "--out", finished, "--resume"],
            "got 'image'; these are not settings of `molsamp image bench`",
        ),
    ]:
        assert molsamp(*arguments) == 2
        assert message in capsys.readouterr().err


def test_data_of_another_shape_than_the_models_is_refused(tiny, capsys):
    assert molsamp("image", "--model", tiny, "--set", "data=digits") == 2
    assert f"pictures of 'digits' are 1 x 8 x 8, those of model '{tiny}' 1 x 4 x 4" in capsys.readouterr().err


def test_pickles_and_weights_of_another_shape_are_refused(tiny, tmp_path, capsys):
    pickles = [tmp_path / name for name in ("a.pt", "b.pkl", "zip.safetensors", "plain.safetensors")]
    for file in pickles[:3]:
        torch.save({"w": torch.zeros(2)}, file)
    torch.save({"w": torch.zeros(2)}, pickles[3], _use_new_zipfile_serialization=False)
    for file in pickles:
        assert molsamp("image", "--model", file) == 2
        assert f"{file} is a pickle, which can run any code" in capsys.readouterr().err
    with safe_open(tiny, "pt") as f:
        tensors, told = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118
    name = next(name for name, t in tensors.items() if t.dim() == 2)
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, tmp_path / "cut.safetensors", told)
    assert molsamp("image", "--model", tmp_path / "cut.safetensors") == 2
    assert f"the shape of weight {name} is" in capsys.readouterr().err


def stand_in(monkeypatch, predict, conditional: int | None = None) -> None:
    """Let every model be a denoiser of pictures 1 x 4 x 4 made here."""
    one = Denoiser(VP(), predict, (1, 4, 4), conditional=conditional)
    monkeypatch.setattr(models, "load", lambda name: one)


def test_guidance_wants_a_model_with_classes_and_answers_want_the_shape_of_the_question(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, lambda x, t, label: 0.5 * x)
    for arguments in (["--guidance", "2"], ["--class", "1"]):
        assert molsamp("image", *arguments) == 2
        assert "model 'digits' is unconditional, it knows no classes" in capsys.readouterr().err
    stand_in(monkeypatch, lambda x, t, label: x.expand(-1, 3, -1, -1))
    assert molsamp("image") == 2
    assert "answers with shape (1, 3, 4, 4) to x of shape (1, 1, 4, 4)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_network_that_returns_nan_fails_loudly_and_keeps_the_last_good_pictures(monkeypatch, tmp_path, capsys):
    """The network breaks off half-way: the pictures stay where they were before, finite."""
    stand_in(monkeypatch, lambda x, t, label: 0.5 * x if t > 0.4 else torch.full_like(x, math.nan))
    assert molsamp("image", "--out", tmp_path / "r", *SMALL) == 1
    said = capsys.readouterr().err
    assert "failed at 0 of" in said and "10 of 10 pictures diverged (100%)" in said and said.count("\n") == 1
    assert f"the last good states are in {tmp_path / 'r'}/samples.safetensors" in said
    with safe_open(tmp_path / "r" / "samples.safetensors", "pt") as f:
        x, status = f.get_tensor("x"), f.get_tensor("status")
    assert x.isfinite().all() and x[:10].abs().sum((1, 2, 3)).gt(0).all() and status[:10].eq(1).all()
    assert (tmp_path / "r" / "samples.png").exists() and not (tmp_path / "r" / "result.json").exists()
    few = ("--solvers", "ddim", "--calls", "4", "--n", "4")
    assert molsamp("image", "bench", *few, "--out", tmp_path / "b", "--quiet") == 1
    assert "4 of 4 fine trajectories diverged (100%)" in capsys.readouterr().err


def test_a_few_lost_pictures_are_counted_warned_of_and_not_scored(monkeypatch, tmp_path):
    """Those whose first pixel starts above 1.3 are lost: of 40 standard normals of seed 3 a few, not most."""
    lost = Noise(3).child("start").normal(0, torch.arange(40), (1, 4, 4), torch.float32)[:, 0, 0, 0] > 1.3
    assert 0 < lost.sum() < 12

    def predict(x, t, label):
        broken = (x[:, 0, 0, 0] > 1.3).view(-1, 1, 1, 1) & (t == VP().start)
        return torch.where(broken, math.nan, 0.5 * x)

    stand_in(monkeypatch, predict)
    assert molsamp("image", "--out", tmp_path / "r", *SMALL, "--set", "diverged=0.5", "--set", "compare=0") == 0
    r = result(tmp_path / "r")
    assert r["results"]["diverged"]["value"] == pytest.approx(float(lost.float().mean()))
    assert f"{int(lost.sum())} of 40 pictures diverged" in r["warnings"][0]


def test_a_solver_that_draws_noise_has_no_fine_trajectory(tiny, tmp_path):
    assert molsamp("image", "--model", tiny, "--solver", "ddpm", "--out", tmp_path / "r", *SMALL) == 0
    r = result(tmp_path / "r")
    assert set(r["results"]) == {"diverged"} and r["model"] == str(tiny)
    assert "ddpm draws noise on its way" in r["warnings"][0]
    assert "the solver draws noise, or no pictures were compared" in (tmp_path / "r" / "report.html").read_text()


def test_other_weights_under_the_same_name_are_noticed(tiny, tmp_path, capsys):
    assert molsamp("image", "--model", tiny, "--out", tmp_path / "r", *SMALL, "--set", "compare=0") == 0
    architecture = models.read(tiny).architecture
    models.save(models.Model(make(architecture, Noise(1)), architecture), tiny)
    assert molsamp("image", "--out", tmp_path / "r", "--resume") == 2
    assert "has the sha256" in capsys.readouterr().err


def test_the_comparison_agrees_with_sampling_by_hand(compared):
    found = summary.by_calls(result(compared)["results"])
    assert {solver: sorted(row) for solver, row in found.items()} == {
        "ddim": [2, 4, 8], "dpm++2m": [2, 4, 8], "dpm-3": [4, 8],
    }  # fmt: skip
    d = models.load("digits")
    fine = sample(d, "unipc-3-bh1", 32, 12, noise=Noise(0), grid="log-snr").final.x
    for solver, calls in (("ddim", 8), ("dpm-3", 4)):
        x = sample(d, solver, calls, 12, noise=Noise(0)).final.x
        expected = float((x - fine).square().mean().sqrt())
        assert found[solver][calls]["value"] == pytest.approx(expected, rel=1e-4)


def test_the_table_of_a_comparison_has_the_best_first(compared, capsys):
    summary.show(compared)
    shown = capsys.readouterr().out
    assert "network calls" in shown and "in brackets the 95 % half-width" in shown
    _, rows = summary.tabulated(result(compared))
    assert rows[0][0] == "dpm++2m" and [row[1] for row in rows if row[0] == "dpm-3"] == [""]
    assert summary.bracketed({"value": 0.0614, "interval": [0.0584, 0.0644]}) == "61(3)"
    assert summary.bracketed({"value": 0.00223, "interval": [0.00215, 0.00231]}) == "2.23(8)"
    assert summary.bracketed({"value": None, "interval": [None, None]}) == "diverged"


def test_solvers_that_draw_noise_are_told_apart():
    subject = Subject.of("digits")
    noisy = {name for name in SOLVERS if draws(subject, name, 12)}
    assert noisy == {"ddpm", "edm", "sde-dpm++1", "sde-dpm++2m"}


def test_rmse_leaves_out_what_is_unknown_and_shows_what_diverged():
    assert rmse(torch.tensor([4.0, math.nan, 4.0], dtype=torch.float64)).value == pytest.approx(2.0)
    assert math.isinf(rmse(torch.tensor([4.0, math.inf, 4.0], dtype=torch.float64)).value)


def test_a_loaded_job_goes_on_as_the_one_that_was_saved():
    """Interrupted at every unit in turn; the states at the end are the same to the last bit."""
    subject = Subject.of("digits")

    def job() -> Sampling:
        return Sampling(subject, "dpm++2m", 4, 7, batch=3, compare=4, fine=8, noise=Noise(1))

    whole = job()
    drive(whole)
    state = job().state()
    for k in range(whole.total):
        part = job()
        part.load(state)
        assert part.k == k
        part.advance()
        state = part.state()
    assert state.keys() == whole.state().keys()
    assert all(torch.equal(state[name].nan_to_num(-1), value.nan_to_num(-1)) for name, value in whole.state().items())


def test_a_bench_counts_its_calls():
    bench = Bench(Subject.of("digits"), entries(["ddim", "dpm-3"], [2, 3]), 4, fine=8, batch=2, noise=Noise(0))
    drive(bench)
    assert bench.total == 2 * (2 + 3) and bench.calls == 2 * (8 + 4 + 2 + 3 + 3)


@pytest.mark.parametrize(("times", "expected"), [(2, [0, 1]), (11, list(range(11))), (51, list(range(0, 51, 5)))])
def test_frames_are_even_and_have_both_ends(times, expected):
    assert kept_frames(times) == expected


def test_a_sheet_shows_every_pixel_as_a_square():
    from PIL import Image

    x = torch.linspace(-1.2, 1.2, 3 * 16).view(3, 1, 4, 4)
    with Image.open(io.BytesIO(sheet([x[:2], x[2:]]))) as image:
        shown = np.asarray(image)
    factor = (960 - 4) // 8
    assert shown.shape == (2 * 4 * factor + 4, 2 * 4 * factor + 4, 4)
    tile = shown[: 4 * factor, 4 * factor + 4 :]
    assert np.array_equal(tile[::factor, ::factor, :3], pixels(x)[1])
    assert np.array_equal(tile, tile[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
    assert not shown[: 4 * factor, 4 * factor : 4 * factor + 4].any()  # the gap is transparent
    assert pixels(x)[0, 0, 0, 0] == 0 and pixels(x)[2, 3, 3, 0] == 255


def test_help_names_every_solver_and_imports_no_torch():
    assert set(cli.SOLVERS.split(", ")) == set(SOLVERS)
    code = """
import sys
from molsamp.runs import cli
sys.argv = ["molsamp", "image", "--help"]
try:
    cli.main()
except SystemExit:
    assert "torch" not in sys.modules and "numpy" not in sys.modules, "slow import"
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    out = process.stdout
    assert "bench" in out and "unipc" in out


def look_for_molecules() -> None:
    """At the end, fail if anything molecular was loaded."""

    def look() -> None:
        rooms = {name for name in sys.modules if name.startswith("molsamp.molecular")}
        found = rooms | {"openmm", "mdtraj", "diffusers"} & set(sys.modules)
        os._exit(3 if found else 0)

    cli._flush = look


def test_no_molecule_is_imported(tmp_path):
    process = start(tmp_path / "said", look_for_molecules, (), "image", "--out", tmp_path / "r", *SMALL)
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "r" / "report.html").exists()


def words(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL))


def test_the_reports_say_what_was_done_and_hold_their_pictures(finished, compared):
    text = words(finished)
    for expected in ("digits: 40 pictures in 10 network calls each", "40 network calls (80 forward passes)",
                     "guidance 2", "training set", "it is not the FID", "All of them."):  # fmt: skip
        assert expected in text
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "3Dmol" not in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", page)
    assert "digits: 3 solvers at few network calls" in words(compared) and "dpm++2m, 8 calls" in words(compared)


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium is installed")
def test_the_reports_open_without_errors(finished, compared, tmp_path):
    for folder, images in ((finished, 2), (compared, 0)):
        with chromium.Page((folder / "report.html").as_uri(), tmp_path) as page:
            assert page.evaluate("document.querySelectorAll('figure.panel svg').length") == 1
            assert page.evaluate("[...document.images].filter(i => i.naturalWidth > 300).length") == images
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.errors == []
