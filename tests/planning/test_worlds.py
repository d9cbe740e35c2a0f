"""Worlds: where cells lie, how far they are apart, and what maps are refused."""

import math
from collections import deque

import pytest
import torch

from molsamp.engine import Noise
from molsamp.planning.generators import maze
from molsamp.planning.worlds import Pose, World, load_octile

F64 = torch.float64
DRAWING = "####\n#..#\n##.#\n####"
OCTILE = "type octile\nheight 3\nwidth 4\nmap\n.GS@\nTOW.\n....\n"


def test_the_drawing_is_the_picture():
    """The highest line is the highest row; a cell is its place times its side, from the corner."""
    world = World.parse(DRAWING, cell=2.0)
    assert world.text() == DRAWING and world.shape == (4, 4) and world.size == (8.0, 8.0)
    assert world.free.tolist() == [[1, 2], [2, 1], [2, 2]]
    assert world.centre(2, 1).tolist() == [3.0, 5.0]
    points = torch.tensor([[3.0, 5.0], [3.0, 3.0], [5.0, 3.9], [-0.1, 5.0], [9.0, 5.0]], dtype=F64)
    assert world.cells(points).tolist() == [[2, 1], [1, 1], [1, 2], [2, -1], [2, 4]]
    assert world.is_blocked(points).tolist() == [False, True, False, True, True]


def test_poses_are_a_group():
    a, b = Pose(0.7, 1.0, -2.0), Pose(-2.0, 0.3, 5.0)
    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=F64)
    torch.testing.assert_close(a.after(b).apply(x), a.apply(b.apply(x)))
    torch.testing.assert_close(a.inverse().apply(a.apply(x)), x)
    torch.testing.assert_close(Pose(math.pi / 2, 1.0, 0.0).apply(x[:1]), torch.tensor([[-1.0, 1.0]], dtype=F64))


def test_a_moved_world_has_its_cells_elsewhere():
    pose = Pose(0.3, 10.0, -4.0)
    world = World.parse(DRAWING, cell=0.5).moved(Pose(-1.0, 3.0, 0.0)).moved(pose)
    for i, j in world.free.tolist():
        assert world.cells(world.centre(i, j)).tolist() == [i, j]
    assert torch.allclose(world.centre(2, 1), pose.apply(Pose(-1.0, 3.0).apply(torch.tensor([0.75, 1.25], dtype=F64))))


def naive_distances(blocked, goal):
    far, queue = {goal: 0}, deque([goal])
    while queue:
        i, j = queue.popleft()
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if 0 <= a < len(blocked) and 0 <= b < len(blocked[0]) and not blocked[a][b] and (a, b) not in far:
                far[a, b] = far[i, j] + 1
                queue.append((a, b))
    return far


@pytest.mark.parametrize("seed", range(3))
def test_grid_distances_against_a_queue(seed):
    """Also for cells cut off, and cells at the edge of an open grid."""
    blocked = Noise(seed).uniform(0, torch.arange(15), (11,)) < 0.4
    blocked[7, 5] = False
    world = World(blocked, cell=0.5)
    far = naive_distances(blocked.tolist(), (7, 5))
    expected = [[0.5 * far.get((i, j), math.inf) for j in range(11)] for i in range(15)]
    assert world.distances(7, 5).tolist() == expected


def test_octile_maps(tmp_path):
    file = tmp_path / "small.map"
    file.write_text(OCTILE)
    world = load_octile(file, cell=0.5)
    assert world.text() == "...#\n###.\n...." and world.cell == 0.5 and world.name == "small"
    file.write_text(OCTILE.replace("\n", "\r\n"))
    assert load_octile(file).text() == world.text()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("type octile", "type tile", "line 1: type 'tile', only octile"),
        ("type octile\n", "", "line 1: got 'height', the header is type, height, width, map"),
        ("height 3", "height three", "line 2: height 'three' is not a positive whole number"),
        ("width 4", "width 0", "line 3: width '0' is not"),
        ("map\n", "", "line 4: got '.GS@'"),
        ("height 3", "height 4", "3 rows of cells from line 5 on, the header says height 4"),
        ("TOW.", "TOW", "line 6: 3 cells, the others have 4"),
        ("TOW.", "TxW.", "line 6, column 2: got 'x', allowed are '.' 'G' 'S' .free. and @ O T W"),
    ],
)
def test_malformed_maps_name_file_and_line(tmp_path, old, new, match):
    file = tmp_path / "bad.map"
    file.write_text(OCTILE.replace(old, new))
    with pytest.raises(ValueError, match=rf"bad\.map.*{match}"):
        load_octile(file)


@pytest.mark.parametrize("text", ["", "type octile", "type octile\nheight 3\nwidth 4\nmap"])
def test_torn_maps(tmp_path, text):
    file = tmp_path / "torn.map"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"torn\.map"):
        load_octile(file)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: World(torch.zeros((0, 3), dtype=torch.bool)), r"shape \(0, 3\)"),
        (lambda: World(torch.zeros((2, 3), dtype=torch.bool), cell=0.0), "cell=0.0 m must be positive"),
        (lambda: World.parse("..\n.?", name="w"), "w: line 2, column 2: got '\\?'"),
        (lambda: World.parse(DRAWING).distances(0, 0), r"cell \(row 0, column 0\) of world is not free"),
        (lambda: World.parse(DRAWING).distances(9, 0), "is not free"),
        (lambda: maze(Noise(0), 6, 7), "6 x 7 cells: both must be odd"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
