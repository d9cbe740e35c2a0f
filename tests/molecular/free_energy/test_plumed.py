"""PLUMED's file forms: what is written reads back, and what is wrong is named with its line."""

import math

import numpy as np
import pytest

from molsamp.molecular.free_energy import plumed
from molsamp.molecular.grids import Grid

PI = math.pi
TORUS = Grid(("phi", "psi"), (2 * PI, 2 * PI), ((-PI, PI), (-PI, PI)), (6, 4))
LINE = Grid(("d",), (None,), ((0.1, 0.4),), (7,))


@pytest.mark.parametrize("grid", [TORUS, LINE])
def test_a_grid_comes_back(tmp_path, grid):
    F = np.arange(math.prod(grid.shape), dtype=float).reshape(grid.shape)
    F.flat[2] = np.inf
    (tmp_path / "fes.dat").write_text(plumed.grid_text(grid, fes=F, error=F / 10))
    again, columns = plumed.read_grid(tmp_path / "fes.dat")
    assert again == grid
    assert np.array_equal(columns["fes"], F) and np.allclose(columns["error"], F / 10)


def test_first_cv_runs_fastest_and_blocks_are_parted():
    lines = plumed.grid_text(TORUS, fes=np.zeros((6, 4))).splitlines()
    assert lines[:3] == ["#! FIELDS phi psi fes", "#! SET min_phi -pi", "#! SET max_phi pi"]
    numbers = [line.split() for line in lines if not line.startswith("#!")]
    assert numbers[0][0] != numbers[1][0] and numbers[0][1] == numbers[1][1]
    assert [i for i, words in enumerate(numbers) if not words] == [6, 13, 20]


def test_files_joined_end_to_end_are_one(tmp_path):
    head = plumed.header(["time", "phi", "height"], None, extra=1)
    text = head + plumed.rows(np.array([1.0, 2.0]), np.array([0.5, PI]), np.array([1e-9, 3.0]))
    (tmp_path / "HILLS").write_text(text + text)
    table, sets = plumed.read(tmp_path / "HILLS")
    assert sets == {"extra": "1"} and table["time"].tolist() == [1, 2, 1, 2]
    assert table["phi"][1] == pytest.approx(PI, rel=1e-8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 2\n", "line 1: numbers before a line '#! FIELDS"),
        ("#! FIELDS a b\n1 2\n3\n", "line 3: got 1 numbers, FIELDS names 2"),
        ("#! FIELDS a b\n1 x\n", "line 2: got '1 x', allowed are numbers"),
        ("#! FIELDS a b\n#! FIELDS a c\n", "line 2: FIELDS a c after a b"),
        ("", "no line '#! FIELDS"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "COLVAR"
    file.write_text(text)
    with pytest.raises(ValueError, match="COLVAR.*" + message):
        plumed.read(file)


def test_a_grid_with_missing_lines_is_refused(tmp_path):
    text = plumed.grid_text(LINE, fes=np.zeros(7))
    (tmp_path / "fes.dat").write_text(text[: text.rindex("\n", 0, -1) + 1])
    with pytest.raises(ValueError, match="got 6 lines, 7 are needed"):
        plumed.read_grid(tmp_path / "fes.dat")
