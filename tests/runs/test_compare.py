"""`molsamp compare` on runs of the double well: the table, the page, the reference of a system, and every refusal."""

import json
import re
import shutil
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from test_free_energy import SETS, molsamp

from molsamp.molecular import system
from molsamp.molecular.free_energy.plumed import grid_text
from molsamp.molecular.grids import Grid

PLANE = [*SETS, "--set", "metadynamics.width=[0.4,0.4]", "--set", "grid.nodes=20"]
PLANE += ["--set", "metadynamics.grid.ranges=[[-1.75,1.75],[-1.75,1.75]]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders a and b, seeds 0 and 1 of x alone, and c, of x and y."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, options in (("a", 0, ["--cvs", "x", *SETS]), ("b", 1, ["--cvs", "x", *SETS]), ("c", 0, PLANE)):
        arguments = ("double-well", "--seed", seed, *options, "--out", folder / name, "--quiet")
        assert molsamp("free-energy", *arguments) == 0
    return folder


def text(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)))


def test_two_runs_are_a_table_and_a_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert molsamp("compare", runs / "a", runs / "b") == 0
    shown = capsys.readouterr().out
    for row in ("dF:left->right / kJ/mol", "mean |ΔF| below 25 kJ/mol", "noise alone makes at most", "JSD", "KL"):
        assert row in shown and row in text(tmp_path / "compare.html")
    assert "a (reference)" in shown and "page: compare.html" in shown
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 1 and "reduced units" in page and "there is one collective variable" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", page)
    assert [file.name for file in tmp_path.iterdir()] == ["compare.html"]


def test_three_runs_of_two_variables_have_maps(runs, tmp_path, capsys):
    shutil.copytree(runs / "c", tmp_path / "c")
    out = tmp_path / "maps.html"
    assert molsamp("compare", runs / "c", tmp_path / "c", runs / "c", "--out", out, "--quiet") == 0
    assert capsys.readouterr().out == ""
    page = out.read_text()
    assert page.count("<svg") == 3 and f"− {runs / 'c'}" in page  # of three folders called c the paths are the names
    assert "Profile of x" in page and "Profile of y" in page


def test_a_run_is_no_distance_from_itself(runs, tmp_path, capsys):
    shutil.copytree(runs / "a", tmp_path / "again")
    assert molsamp("compare", runs / "a", tmp_path / "again", "--out", tmp_path / "p.html", "--below", "9") == 0
    shown = capsys.readouterr().out
    assert "mean |ΔF| below 9 kJ/mol" in shown and "within the noise" in shown
    mae, jsd, kl = re.findall(r"[J|K|m][^│]*(?:kJ/mol|nats) *│ *│ +([0-9.]+) ±", shown)
    assert float(mae) == float(jsd) == float(kl) == 0 and "0 % and 0 %" in shown


def test_a_page_of_ours_is_replaced_and_nothing_else(runs, tmp_path, capsys):
    page, mine = tmp_path / "p.html", tmp_path / "mine.html"
    assert molsamp("compare", runs / "a", runs / "b", "--out", page, "--quiet") == 0
    before = page.read_text()
    assert molsamp("compare", runs / "b", runs / "a", "--out", page, "--quiet") == 0
    assert page.read_text() != before
    mine.write_text("<html>")
    for out in (mine, tmp_path, runs / "a" / "report.html"):
        assert molsamp("compare", runs / "a", runs / "b", "--out", out, "--quiet") == 2
        assert "choose another name" in capsys.readouterr().err
    assert mine.read_text() == "<html>"


def test_one_run_is_compared_with_the_reference_of_its_system(runs, tmp_path, monkeypatch, capsys):
    """A reference of fes.dat and result.json alone; without one, advice."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(system.bundled() / "double-well", tmp_path / "systems" / "double-well")
    kept = tmp_path / "systems" / "double-well" / "reference"
    shutil.rmtree(kept)
    monkeypatch.setattr(system, "bundled", lambda: tmp_path / "systems")
    assert molsamp("compare", runs / "b") == 2
    said = capsys.readouterr().err
    assert "system 'double-well' has no reference run; name a second run" in said and said.count("\n") == 1
    kept.mkdir()
    for name in ("fes.dat", "result.json"):
        shutil.copy(runs / "a" / name, kept)
    assert molsamp("compare", runs / "b") == 0
    assert "reference of double-well" in text(tmp_path / "compare.html") and "seed" in text(tmp_path / "compare.html")


def test_a_reference_by_quadrature_has_no_noise(runs, tmp_path, capsys):
    """An F that is an integral has errors of 0 and samples without end: the floor is that of the run alone."""
    shutil.copytree(runs / "c", tmp_path / "exact")
    rows = (tmp_path / "exact" / "fes.dat").read_text().splitlines()
    rows = [row if row.startswith("#") or not row else row.rpartition(" ")[0] + " 0" for row in rows]
    (tmp_path / "exact" / "fes.dat").write_text("\n".join(rows) + "\n")
    results = json.loads((runs / "c" / "result.json").read_text())["results"]
    value = results["dF:left->right"]["value"]
    only = {"dF:left->right": {"value": value, "interval": [value, value], "unit": "kJ/mol", "n": 0}}
    edit_result(tmp_path / "exact", method="quadrature", results=only)
    page = tmp_path / "p.html"
    assert molsamp("compare", tmp_path / "exact", runs / "c", "--out", page) == 0
    shown = capsys.readouterr().out
    floor = re.findall(r"floor at this ESS[ │]+([0-9.e-]+)", shown)
    assert len(floor) == 1 and float(floor[0]) > 0 and "exact" in text(page)


def test_profiles_of_a_folder_without_the_figures_data_come_from_its_surface(runs, tmp_path):
    """F of x is the same to the digits of the files, its error larger or the same: it holds for any correlation."""
    from molsamp.runs.compare import _open

    own = _open(runs / "c", "c").profiles
    shutil.copytree(runs / "c", tmp_path / "c")
    (tmp_path / "c" / "figures" / "profiles.csv").unlink()
    bare = _open(tmp_path / "c", "c").profiles
    for one, other in zip(own, bare, strict=True):
        seen = np.isfinite(one.F)
        assert np.allclose(one.F[seen], other.F[seen], atol=1e-4)
        known = np.isfinite(one.error)
        assert (other.error[known] > 0.5 * one.error[known]).all()


def edit_result(folder: Path, **changes) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def regrid(folder: Path, names=("x",), ranges=((-1.75, 1.75),), nodes=40, fes=0.0) -> None:
    grid = Grid(names, (None,), ranges, (nodes,))
    (folder / "fes.dat").write_text(grid_text(grid, fes=np.full(nodes, fes), error=np.ones(nodes)))


REFUSALS = {
    "another verb": (lambda f: edit_result(f, verb="paths"), "is a run of `molsamp paths`"),
    "another system": (lambda f: edit_result(f, system="mueller-brown"), "system: double-well and mueller-brown"),
    "another temperature": (lambda f: edit_result(f, kT=9.0), "differ in kT: "),
    "other CVs": (lambda f: regrid(f, names=("y",)), "differ in CVs: x and y"),
    "another grid": (lambda f: regrid(f, nodes=50), "differ in nodes: 40 and 50"),
    "other ranges": (lambda f: regrid(f, ranges=((-1.0, 1.75),)), "ranges: -1.75 to 1.75 and -1 to 1.75"),
    "two things": (lambda f: (regrid(f, nodes=50), edit_result(f, kT=9.0)), "kJ/mol and 9 kJ/mol; nodes: 40 and 50"),
    "unfinished": (lambda f: (f / "result.json").unlink(), "no result.json; the run is not finished"),
    "no surface": (lambda f: (f / "fes.dat").unlink(), "fes.dat and result.json with its results are needed"),
    "torn surface": (lambda f: (f / "fes.dat").write_text((f / "fes.dat").read_text()[:700]), "fes.dat"),
    "no header": (lambda f: (f / "fes.dat").write_text("#! FIELDS x fes error\n#! SET nbins_x 3\n 1 2 3\n"), "min_x"),
    "no columns": (lambda f: (f / "fes.dat").write_text((f / "fes.dat").read_text().replace("error", "e")), "'error'"),
    "no JSON": (lambda f: (f / "result.json").write_text("{"), "result.json: not JSON"),
    "no result": (lambda f: (f / "result.json").write_text("[]"), "result.json: is no result of a run"),
    "nothing": (shutil.rmtree, "no result.json"),
    "never anywhere": (lambda f: regrid(f, fes=np.inf), "no node with a free energy"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path, capsys, case):
    damage, message = REFUSALS[case]
    shutil.copytree(runs / "a", tmp_path / "other")
    damage(tmp_path / "other")
    assert molsamp("compare", runs / "a", tmp_path / "other", "--out", tmp_path / "p.html") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("below", ["0", "-3", "nan"])
def test_below_is_above_0(runs, tmp_path, capsys, below):
    assert molsamp("compare", runs / "a", runs / "b", "--below", below, "--out", tmp_path / "p.html") == 2
    assert "--below: got" in capsys.readouterr().err and sys.argv[1] == "compare"
