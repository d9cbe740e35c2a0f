"""The report of made-up runs: complete, self-contained, and its player plays in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import chromium
import numpy as np
import pytest
import synthetic

from molsamp.runs import figures
from molsamp.runs.reading import read
from molsamp.runs.report import write_report
from molsamp.runs.summary import interval, show, value


@pytest.fixture(scope="module")
def peptide(tmp_path_factory) -> Path:
    folder = synthetic.peptide(tmp_path_factory.mktemp("runs") / "peptide")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = synthetic.toy(tmp_path_factory.mktemp("runs") / "toy")
    write_report(folder)
    return folder


def text(folder: Path) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL))


def test_headline_numbers_stand_beside_the_untrained_pull(peptide):
    words = text(peptide)
    for expected in (
        "0.0262 nm",
        "untrained pull: 7516 nats",
        "160.3 to 169.3; ideal 16.6 nats",
        "untrained pull: 96 %",
    ):
        assert expected in words
    assert "ESS is 1.7 % of 64 paths: these are driven paths" in words
    assert "C5 → C7ax" in words and "driven by a control trained" in words


def test_the_page_needs_nothing_from_outside(peptide, toy):
    for folder in (peptide, toy):
        page = (folder / "report.html").read_text(encoding="utf-8")
        without_3dmol = page.replace((Path(figures.__file__).parent / "assets" / "3Dmol-min.js").read_text(), "")
        assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']+", without_3dmol)
        assert "@import" not in page
        assert ("University of Pittsburgh" in page) == (folder == peptide)  # the licence of the player, where it is


def test_what_is_absent_is_said_in_words(toy, peptide):
    assert "committors were not computed in this run" in text(toy)
    assert "there is no molecule to look at in this system" in text(toy)
    assert "committors were not computed" not in text(peptide)
    assert "untrained pull" not in text(toy)


def test_data_lie_beside_every_figure(peptide, toy):
    pairs = {"map": "map", "energy": "energy", "training": "training", "committor": "committor_histogram"}
    for figure, data in pairs.items():
        assert (peptide / "figures" / f"{figure}.svg").exists()
        assert len((peptide / "figures" / f"{data}.csv").read_text().splitlines()) > 10
    assert not (toy / "figures" / "committor.svg").exists()


def test_energies_are_counted_from_the_start_minimum(peptide):
    frames = read(peptide).frames
    assert frames is not None
    assert abs(np.median(frames.energy[:, 0])) < 5
    table = np.loadtxt(peptide / "figures" / "energy.csv", delimiter=",", skiprows=1)
    low, middle, high = np.percentile(frames.energy[frames.hit], (10, 50, 90), axis=0)
    assert np.allclose(table[:, 1:], np.stack([low, middle, high], 1), atol=1e-3)


def test_lines_break_at_the_edge_of_periodic_axes():
    x, y = np.array([3.0, 3.1, -3.1, -3.0, -2.9]), np.array([0.0, 0.1, 0.2, np.nan, 0.4])
    segments, kept = figures.broken(x, y, [2 * np.pi, 2 * np.pi])
    assert kept.tolist() == [True, False, False, False] and segments.shape == (1, 2, 2)
    assert figures.broken(x, y, [None, None])[1].tolist() == [True, True, False, False]


def test_players_come_from_chains_in_either_order_of_models(tmp_path):
    """One MODEL may hold all three chains, or each chain its own run of MODELs: the movies are the same."""
    interleaved = read(synthetic.peptide(tmp_path / "a")).player
    text_ = (tmp_path / "a" / "player.pdb").read_text().splitlines()
    models = [[line for line in text_ if line.startswith("ATOM") and line[21] == chain] for chain in "ABC"]
    size = len(synthetic.ATOMS)
    sequential = [
        "\n".join(["MODEL        1", *atoms[i : i + size], "ENDMDL"])
        for atoms in models
        for i in range(0, len(atoms), size)
    ]
    (tmp_path / "a" / "player.pdb").write_text("\n".join(sequential))
    assert read(tmp_path / "a").player == interleaved
    assert [p.frames for p in interleaved] == [101, 101, 101]
    assert [p.name for p in interleaved] == ["path A", "path B", "path C"]


def test_chains_have_the_names_that_the_file_gives_them(tmp_path):
    """Of a free energy they are regions, as `trajectories.player` writes them."""
    player = synthetic.peptide(tmp_path / "a") / "player.pdb"
    player.write_text("REMARK CHAIN A C7eq\nREMARK CHAIN B phi > 0\n" + player.read_text())
    assert [p.name for p in read(tmp_path / "a").player] == ["C7eq", "phi > 0", "path C"]


def test_a_cut_off_last_line_of_metrics_is_passed_over(peptide):
    assert len(read(peptide).metrics) == 200


def test_damaged_and_unfinished_runs_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="the run is not finished"):
        write_report(tmp_path)
    folder = synthetic.toy(tmp_path / "toy", n=4)
    (folder / "frames.csv").write_text("path,frame,time_ps,x,energy,log_rn,hit\n0,0,zero,1,1,1,1\n")
    with pytest.raises(ValueError, match=r"frames\.csv"):
        write_report(folder)
    (folder / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: not JSON"):
        write_report(folder)


def test_a_second_report_is_the_same_and_shows_unknown_results_under_their_own_names(tmp_path):
    folder = synthetic.toy(tmp_path / "toy", n=8)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    result = json.loads((folder / "result.json").read_text())
    result["results"]["acceptance"] = {"value": 0.3, "interval": [0.2, 0.4], "unit": "1", "n": 10}
    (folder / "result.json").write_text(json.dumps(result))
    write_report(folder)
    assert "acceptance" in text(folder)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"value": 0.859375, "interval": [0.754, 0.924], "unit": "1"}, ("86 %", "75 to 92")),
        ({"value": 0.0262, "interval": [0.0241, 0.0283], "unit": "nm"}, ("0.0262 nm", "0.0241 to 0.0283")),
        ({"value": -121.93, "interval": [-124.0, -119.8], "unit": "nats"}, ("−121.9 nats", "−124.0 to −119.8")),
        ({"value": 3.0, "interval": [None, None], "unit": "nats"}, ("3.00 nats", "–")),
        ({"value": 2.236, "interval": [2.236, 2.236], "unit": "nm"}, ("2.24 nm", "2.24 to 2.24")),
        ({"value": None, "interval": [0.0, 1.0], "unit": "1"}, ("–", "–")),
        (None, ("–", "–")),
    ],
)
def test_numbers_are_rounded_by_their_interval(entry, expected):
    name = "hit_rate" if entry and entry["unit"] == "1" else "any"
    assert (value(name, entry), interval(name, entry)) == expected


def test_the_table_at_the_end_shows_the_null_and_the_warnings(peptide, capsys):
    show(peptide)
    out = capsys.readouterr().out
    assert "untrained pull" in out and "7516 nats" in out and "note: ESS is 1.7 %" in out
    assert str(peptide / "report.html") in out.replace("\n", "")


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium is installed")
def test_the_player_plays_in_a_browser(peptide, tmp_path):
    with chromium.Page((peptide / "report.html").as_uri(), tmp_path) as page:
        counter = "document.getElementById('counter').value"
        assert page.evaluate(counter) == "frame 1 of 101"
        assert page.evaluate("document.querySelectorAll('#viewer canvas').length") >= 1
        page.click("#play")
        page.wait(f"parseInt({counter}.split(' ')[1]) > 3")
        assert page.evaluate("document.getElementById('play').textContent") == "Pause"
        page.click("#play")
        stopped = page.evaluate(counter)
        page.click("[data-path='2']")
        assert page.evaluate(counter) == "frame 1 of 101" != stopped
        page.evaluate("(s => { s.value = 60; s.dispatchEvent(new Event('input')); })(document.getElementById('frame'))")
        assert page.evaluate(counter) == "frame 61 of 101"
        assert page.errors == []


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium is installed")
def test_the_report_of_a_toy_opens_without_errors(toy, tmp_path):
    with chromium.Page((toy / "report.html").as_uri(), tmp_path) as page:
        assert page.evaluate("document.querySelectorAll('figure.panel svg').length") == 3
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.errors == []


def test_an_interval_that_is_open_tells_the_end_that_it_has():
    number = {"value": -10.4, "unit": "nats", "n": 16}
    assert interval("log_z", {**number, "interval": [-13.4, None]}) == "above −13.4"
    assert interval("dF:a->b", {**number, "value": 10.4, "interval": [None, 13.4]}) == "below 13.4"
    assert interval("log_z", {**number, "interval": [None, None]}) == "–"
    assert interval("rate", {**number, "value": 0.0, "interval": [0.0, None]}) == "–"
    assert interval("log_z", {**number, "interval": [-12.0, -9.0]}) == "−12.0 to −9.0"
