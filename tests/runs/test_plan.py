"""`molsamp plan`: folders, exit codes, one-line errors, same bytes after Ctrl-C, pictures, the animation."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import chromium
import numpy as np
import pytest
import torch
from shell import molsamp

from molsamp.learn.drive import drive
from molsamp.planning.job import Growing
from molsamp.planning.problems import problem
from molsamp.planning.settings import PLANNERS, Settings
from molsamp.planning.train import WEIGHTS
from molsamp.planning.vehicles import VEHICLES
from molsamp.runs import figures_plan, plans, summary
from molsamp.runs.config_plan import METHODS, Growth, seconds

SAME = ("config.toml", "metrics.jsonl", "tree.npz", "plan.csv")
SMALL = (
    "medium",
    "--planner",
    "rrt",
    "--vehicle",
    "hard-car",
    "--seed",
    "1",
    "--steps",
    "60000",
    "--time-limit",
    "60s",
)
CLOSED = "#########\n#....#..#\n#....#..#\n#########\n"


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def words(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "run"
    assert molsamp("plan", *SMALL, "--out", folder, "--quiet") == 0
    return folder


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "closed.txt").write_text(CLOSED)
    where = ("--start", "1,1", "--goal", "2,7", "--planner", "rrt")
    assert molsamp("plan", folder / "closed.txt", *where, "--out", folder / "run", "--quiet") == 0
    return folder / "run"


def test_the_run_folder_holds_what_design_section_7_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert {*SAME, "figures", "result.json", "report.html", "checkpoints", "lock", "log.txt"} == names
    assert {"states.json", "world.svg", "progress.svg", "progress.csv"} == {
        p.name for p in (finished / "figures").iterdir()
    }
    r = result(finished)
    assert list(r)[:7] == ["verb", "world", "method", "vehicle", "seed", "versions", "machine"]
    assert (r["verb"], r["world"], r["method"], r["vehicle"], r["seed"]) == ("plan", "medium", "rrt", "hard-car", 1)
    found = {name: number["value"] for name, number in r["results"].items()}
    assert found["success"] == 1 and r["diagnosis"] == "" and r["warnings"] == [] and r["audit"]["passed"]
    assert found["path_length_ratio"] == pytest.approx(found["path_length"] / found["grid_distance"])
    assert found["edges"] == r["counts"]["edges"] == 64 * r["counts"]["batches"] and found["policy_calls"] == 0
    assert 0 < r["times"]["first_plan"]["value"] <= r["times"]["planning"]["value"]


def test_plan_csv_can_be_driven_again(finished):
    """The controls of the file lead from its first line to its last, into the goal."""
    with (finished / "plan.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["t", "x", "y", "psi", "v", "D", "delta", "D_rate", "delta_rate"]
    states = torch.tensor([[float(row[name]) for name in list(row)[1:7]] for row in rows], dtype=torch.float64)
    controls = torch.tensor(
        [[float(row["D_rate"]), float(row["delta_rate"])] for row in rows[:-1]], dtype=torch.float64
    )
    assert rows[-1]["D_rate"] == "" and float(rows[-1]["t"]) == pytest.approx(0.02 * len(controls))
    p = problem("medium", VEHICLES["hard-car"], 1)
    motion = p.vehicle.propagate(states[:1], controls[None], len(controls), p)
    assert torch.equal(motion.states[0], states) and int(motion.steps) == len(controls)
    length = float((states[1:, :2] - states[:-1, :2]).norm(dim=1).sum())
    assert length == pytest.approx(result(finished)["results"]["path_length"]["value"])


def test_tree_npz_is_the_tree(finished):
    with np.load(finished / "tree.npz") as data:
        tree = dict(data)
    n = result(finished)["results"]["nodes"]["value"]
    assert len(tree["parent"]) == len(tree["way_end"]) == n and tree["parent"][0] == -1
    assert (tree["parent"][1:] < np.arange(1, n)).all() and tree["way_end"][-1] == len(tree["way"])
    last = tree["way"][tree["way_end"][1:] - 1]
    np.testing.assert_allclose(last, tree["state"][1:, :2], atol=1e-5)  # every way ends in its node
    assert (tree["parent"][tree["plan"][1:]] == tree["plan"][:-1]).all() and tree["plan"][0] == 0
    for points in figures_plan.ways(tree):  # at 5 m/s four steps of 0.02 s are 0.4 m
        assert np.hypot(*np.diff(points, axis=0).T).max() < 0.41
    few = figures_plan.ways(tree, 10)
    assert len(few) < 10 + len(tree["plan"])
    ends = {tuple(points[-1]) for points in few}
    assert {tuple(tree["way"][tree["way_end"][i] - 1]) for i in tree["plan"][1:]} <= ends


def test_config_given_back_gives_the_same_bytes(finished, tmp_path):
    again = tmp_path / "again"
    assert molsamp("plan", "--config", finished / "config.toml", "--out", again, "--quiet") == 0
    for name in SAME:
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
    assert result(again)["results"] == result(finished)["results"]


def test_another_seed_grows_another_tree_in_the_world_of_that_number(finished, tmp_path):
    folder = tmp_path / "r"
    assert molsamp("plan", *SMALL, "--seed", "2", "--set", "number=1", "--out", folder, "--quiet") == 0
    assert (folder / "tree.npz").read_bytes() != (finished / "tree.npz").read_bytes()
    worlds = [json.loads((f / "figures" / "states.json").read_text()) for f in (folder, finished)]
    assert worlds[0] == worlds[1]


def test_after_ctrl_c_the_resumed_run_has_the_same_bytes(finished, tmp_path, monkeypatch, capsys):
    """The signal comes during the fifth batch."""
    advance, folder = Growing.advance, tmp_path / "r"

    def watched(job):
        if job.k == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(job)

    with monkeypatch.context() as patched:
        patched.setattr(Growing, "advance", watched)
        assert molsamp("plan", *SMALL, "--out", folder, "--quiet") == 130
    expected = rf"molsamp: interrupted at 5 of \d+; to continue: molsamp plan --out {folder} --resume\n"
    assert re.fullmatch(expected, capsys.readouterr().err) and not (folder / "result.json").exists()
    assert molsamp("plan", "--out", folder, "--resume", "--quiet") == 0
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert result(folder)["results"] == result(finished)["results"]


def test_a_goal_behind_walls_is_a_finished_run_that_says_so(closed, capsys):
    r = result(closed)
    assert r["diagnosis"] == "unreachable: walls cut the start off from the goal" and r["warnings"] == [r["diagnosis"]]
    assert r["results"]["success"]["value"] == 0 and r["results"]["grid_distance"]["value"] is None
    assert r["audit"] is None and not (closed / "plan.csv").exists() and (closed / "tree.npz").exists()
    text = words(closed)
    assert "closed: no way found" in text and r["diagnosis"] in text and "What was tried" in text
    summary.show(closed)
    shown = capsys.readouterr().out
    assert re.search(r"plan found\W+no\W", shown) and f"note: {r['diagnosis']}" in shown


def test_limits_too_small_are_a_diagnosis_too(tmp_path):
    folder = tmp_path / "r"
    assert molsamp("plan", "maze", "--planner", "rrt", "--steps", "2000", "--out", folder, "--quiet") == 0
    assert "not solved within 20 CPU seconds and 2000 steps" in words(folder)


def test_a_world_from_a_file_that_has_changed_is_not_resumed(tmp_path, capsys):
    file, folder = tmp_path / "room.txt", tmp_path / "r"
    file.write_text("#####\n#...#\n#.#.#\n#...#\n#####\n")
    arguments = ("plan", file, "--planner", "rrt", "--vehicle", "unicycle", "--out", folder, "--quiet")
    assert molsamp(*arguments) == 0
    assert result(folder)["world"] == str(file) and "room: a way to the goal" in words(folder)
    file.write_text("#####\n#...#\n#...#\n#...#\n#####\n")
    assert molsamp("plan", "--out", folder, "--resume", "--quiet") == 2
    assert "cells: the file has the sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which world? maze | boxes"),
        (["maz"], "world 'maz' is unknown; did you mean 'maze'?"),
        (["bad.txt"], "bad.txt: line 2, column 2: got 'S'"),
        (["bad.map"], "bad.map: 1 rows of cells from line 5 on, the header says height 2"),
        (["maze", "--planner", "rtt"], "--planner: 'rtt' is unknown; did you mean 'rrt'?"),
        (["maze", "--vehicle", "bike"], "key 'vehicle': got 'bike'; should be 'car', 'hard-car'"),
        (["maze", "--vehicle", "trailer", "--planner", "ditree"], "drives car and hard-car, not trailer"),
        (["maze", "--vehicle", "trailer", "--set", "eps=0.5"], "planner sst with eps = 0.5 needs a policy"),
        (
            ["maze", "--set", "network=gone.safetensors"],
            "gone.safetensors does not exist; without a policy there are rrt",
        ),
        (["maze", "--time-limit", "-3s"], "key 'time_limit': got -3.0; should be greater than 0"),
        (["maze", "--time-limit", "3h"], "got '3h'; allowed is a number in s, or with a unit: ms, s, min"),
        (["maze", "--steps", "-1"], "key 'steps': got -1; should be greater than or equal to 1"),
        (["maze", "--start", "0,0"], "--start: cell 0,0 of maze 13 x 13 is wall"),
        (["maze", "--start", "1;2"], "--start: got '1;2'; allowed is ROW,COLUMN"),
        (["maze", "--goal", "-1,2"], "--goal: got '-1,2'; allowed is ROW,COLUMN"),
        (["maze", "--planner", "rrt", "--set", "goal_bias=2"], "key 'rrt.goal_bias': got '2'; should be less than"),
        (["maze", "--set", "btch=3"], "key 'btch' is unknown; did you mean 'batch'?"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("###\n#S#\n###")
    Path("bad.map").write_text("type octile\nheight 2\nwidth 3\nmap\n...\n")
    assert molsamp("plan", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"bad.txt", "bad.map"}


def ahead(states, targets, problem, noise, step):
    """A policy that steers towards its target at 1 m/s."""
    x, y, psi, v, D, delta = states.T
    bearing = torch.atan2(targets[:, 1] - y, targets[:, 0] - x) - psi
    steer = (10 * (0.3 * torch.atan2(bearing.sin(), bearing.cos()) - delta)).clamp(-2, 2)
    return torch.stack([10 * (0.5 * (1.0 - v) - D), steer], 1)[:, None].expand(-1, 16, -1)


@pytest.mark.parametrize("planner", [name for name, settings in PLANNERS.items() if settings.eps < 1])
def test_planners_with_a_policy(planner, tmp_path, monkeypatch):
    """The network's place is taken by a policy made by hand; the file that is asked for is the one that was given."""
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    asked = []
    monkeypatch.setattr("molsamp.planning.train.load", lambda file, calls: asked.append((file, calls)) or ahead)
    chosen = ("--set", f"network={file}", "--set", "calls=2", "--steps", "20000", "--seed", "4")
    assert molsamp("plan", "u-maze", "--planner", planner, *chosen, "--out", tmp_path / "r", "--quiet") == 0
    assert asked == [(file, 2)] and result(tmp_path / "r")["counts"]["calls"] > 0
    assert "policy" in words(tmp_path / "r") and result(tmp_path / "r")["method"] == planner


@pytest.mark.skipif(not (WEIGHTS / "car.safetensors").is_file(), reason="no weights are shipped")
def test_a_car_is_planned_for_by_the_policy_that_is_shipped(tmp_path):
    folder = tmp_path / "r"
    assert molsamp("plan", "u-maze", "--steps", "100000", "--out", folder, "--quiet") == 0
    assert result(folder)["method"] == "ditree" and result(folder)["results"]["success"]["value"] == 1
    assert re.search(r'weights = "[0-9a-f]{16}"', (folder / "config.toml").read_text())


def test_every_setting_of_a_planner_can_be_set_and_has_the_planner_s_own_default():
    assert set(Growth.model_fields) == {field.name for field in fields(Settings)}
    for name, settings in PLANNERS.items():
        assert Settings(**METHODS[name]().model_dump()) == settings


def test_without_a_car_the_planner_is_sst_and_full_goes_on_to_the_limit(tmp_path):
    few = ("u-maze", "--steps", "4000", "--quiet")
    assert molsamp("plan", *few, "--vehicle", "unicycle", "--out", tmp_path / "a") == 0
    assert result(tmp_path / "a")["method"] == "sst"
    spent = {}
    for preset in ("demo", "full"):
        arguments = ("--planner", "rrt", "--seed", "4", "--preset", preset, "--steps", "30000")
        assert molsamp("plan", "u-maze", *arguments, "--out", tmp_path / preset, "--quiet") == 0
        spent[preset] = result(tmp_path / preset)["counts"]["steps"]
    assert spent["demo"] < 30_000 <= spent["full"]


@pytest.mark.parametrize(("text", "value"), [("20s", 20.0), ("1.5 min", 90.0), ("200ms", 0.2), ("7", 7.0), (3, 3.0)])
def test_times_have_units(text, value):
    assert seconds(text) == pytest.approx(value)


def test_help_names_every_planner_and_world(capsys):
    assert molsamp("plan", "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*PLANNERS, *VEHICLES, "maze", "u-maze", "large", "octile"))


def test_a_plan_that_the_audit_does_not_pass_is_warned_of():
    """A plan through a wall that was put there after planning."""
    p = problem("u-maze", VEHICLES["unicycle"], 0)
    config = SimpleNamespace(
        of_method=METHODS["rrt"](), method="rrt", seed=0, time_limit=60.0, steps=10**6, vehicle="unicycle"
    )
    job = plans.make(config, p)
    drive(job)
    assert plans.analyse(job, config).summary()["warnings"] == []
    way = job.result.plan.states[:, :2]
    blocked = p.world.blocked.clone()
    blocked[tuple(p.world.cells(way[len(way) // 2]).tolist())] = True
    job.planner.problem = replace(p, world=replace(p.world, blocked=blocked))
    found = plans.analyse(job, config).summary()
    assert not found["audit"]["passed"] and "does not pass the audit" in found["warnings"][0]


def test_walls_are_rectangles_that_cover_each_cell_once():
    walls = problem("boxes", VEHICLES["car"], 3).world
    covered = np.zeros(walls.shape, dtype=int)
    boxes = figures_plan.wall_boxes(walls.text().split("\n"))
    for x, y, w, h in boxes:
        covered[y : y + h, x : x + w] += 1
    assert np.array_equal(covered, walls.blocked.numpy().astype(int)) and len(boxes) < 0.8 * covered.sum()


def test_the_outline_of_a_vehicle_holds_its_discs():
    car, trailer = (plans.bodies(VEHICLES[name].body.discs) for name in ("car", "trailer"))
    assert [body["heading"] for body in car] == [2] and [body["heading"] for body in trailer] == [2, 5]
    corners = np.array(car[0]["outline"])
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [[-0.175, -0.1], [0.175, 0.1]], atol=1e-3)
    assert np.array(trailer[1]["outline"]).mean(0) == pytest.approx([-0.3, 0.0], abs=1e-3)


def test_the_report_says_what_was_done(finished):
    text, found = words(finished), result(finished)
    for expected in ("medium: a way to the goal", "Planner: RRT, seed 1", "LaValle and Kuffner", "touches no wall"):
        assert expected in text
    c, kept = found["counts"], found["results"]["nodes"]["value"] - 1
    assert c["edges"] == kept + c["hit"]
    assert f"kept as nodes{kept}" in text.replace("\u2009", "") and f"touched a wall{c['hit']}" in text.replace(
        "\u2009", ""
    )
    page = (finished / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", page) and len(page) < 1.5e6


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium is installed")
def test_the_animation_plays_in_a_browser(finished, closed, tmp_path):
    pixels = (
        "(() => { const c = document.getElementById('drive'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let sum = 0; for (const a of d) sum += a; return sum; })()"
    )
    for folder in (finished, closed):
        with chromium.Page((folder / "report.html").as_uri(), tmp_path) as page:
            assert page.evaluate("document.getElementById('drive').width") > 300 and page.errors == []
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            end, shown = page.evaluate(pixels), page.evaluate("document.getElementById('counter').value")
            assert shown.endswith(" s") if folder is finished else shown == "1 of 1 nodes"
            page.click("#play")
            page.wait("document.getElementById('play').textContent === 'Pause'")
            if folder is finished:
                page.wait(f"Math.abs({pixels} - {end}) > 1e-2 * {end}")  # after the first frame
            page.click("#play")
            page.evaluate(
                "(() => { const s = document.getElementById('frame'); s.value = s.max - 200; "
                "s.dispatchEvent(new Event('input')); })()"
            )
            page.click("#play")
            page.wait("document.getElementById('play').textContent === 'Play'")
            assert page.evaluate(pixels) == pytest.approx(end, rel=1e-4)  # lines that grew one by one, or all at once
            assert page.evaluate("document.getElementById('counter').value") == shown
            assert page.errors == []
