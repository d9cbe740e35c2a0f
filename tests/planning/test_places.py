"""Worlds by name and by file, starts and goals by cell: what is read, what is drawn, what is refused."""

import math

import pytest
import torch

from molsamp.planning.places import fingerprint, place
from molsamp.planning.problems import between, problem
from molsamp.planning.vehicles import VEHICLES, Car
from molsamp.planning.worlds import World

ROOM = "#####\n#...#\n#.#.#\n#...#\n#####\n"


def cell(p, point) -> tuple[int, ...]:
    return tuple(p.world.cells(point).tolist())


@pytest.fixture
def room(tmp_path) -> str:
    (tmp_path / "room.txt").write_text(ROOM)
    return str(tmp_path / "room.txt")


def test_a_family_is_the_problem_of_that_number():
    p, q = place("maze", Car(), 5), problem("maze", Car(), 5)
    assert (
        torch.equal(p.start, q.start) and torch.equal(p.goal, q.goal) and torch.equal(p.world.blocked, q.world.blocked)
    )
    assert place("maze", Car(), 5, radius=0.3).radius == 0.3 and fingerprint("maze") is None


def test_a_drawing_and_a_map_are_the_same_world(room, tmp_path):
    (tmp_path / "room.map").write_text(f"type octile\nheight 5\nwidth 5\nmap\n{ROOM.replace('#', '@')}")
    drawing, octile = (place(str(file), Car(), 2, cell=2.0) for file in (room, tmp_path / "room.map"))
    assert (
        torch.equal(drawing.world.blocked, octile.world.blocked) and drawing.world.name == octile.world.name == "room"
    )
    assert torch.equal(drawing.start, octile.start) and drawing.world.cell == 2.0
    assert drawing.grid_distance >= 6.0  # the room has no two cells 12 m of way apart


def test_cells_are_kept_and_what_is_left_out_is_drawn(room):
    p = place(room, Car(), 0, start=(1, 1), goal=(3, 3))
    assert cell(p, p.start[:2]) == (1, 1) and cell(p, p.goal) == (3, 3)
    for number in range(4):
        p, q = place(room, Car(), number, start=(1, 1)), place(room, Car(), number, goal=(3, 1))
        assert cell(p, p.start[:2]) == (1, 1) and p.grid_distance >= 3.0
        assert cell(q, q.goal) == (3, 1) and q.grid_distance >= 3.0
    assert len({cell(p, p.goal) for p in (place(room, Car(), n, start=(1, 1)) for n in range(9))}) > 1


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ("maz", "world 'maz' is unknown; did you mean 'maze'\\?"),
        ("#####\n#...#\n#.x.#", "line 3, column 3: got 'x'"),
        ("\n\n###\n#.\n###", "line 4: 2 cells, the others have 3"),
        ("", "no cells"),
        ("###\n#.#\n###", "no two free cells lie 1 m of way apart"),
    ],
)
def test_what_is_no_world_is_refused_by_name_and_line(tmp_path, world, message):
    file = tmp_path / "w.txt"
    file.write_text(world)
    with pytest.raises(ValueError, match=message):
        place(world if world == "maz" else str(file), Car(), 0)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "w.txt").write_bytes(b"\xff\xfe#")
    with pytest.raises(ValueError, match="not a drawing of walls in text"):
        place(str(tmp_path / "w.txt"), Car(), 0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"start": (2, 2)}, "--start: cell 2,2 of room is wall"),
        ({"goal": (5, 1)}, "--goal: cell 5,1 is outside room, whose rows are 0 to 4"),
        ({"start": (1, 1), "goal": (1, 1)}, "the start lies in the goal already"),
        ({"start": (1, 1), "goal": (1, 2), "radius": 1.5}, "the start lies in the goal already"),
    ],
)
def test_cells_that_cannot_be_are_refused(room, where, message):
    with pytest.raises(ValueError, match=message):
        place(room, Car(), 0, **where)


def test_the_vehicle_stands_along_the_way_at_the_edge_of_a_grid_without_a_frame():
    """Beyond the first row lies nothing, not the last one."""
    world = World.parse("...\n...\n...")
    assert between(world, Car(), (0, 0), (2, 0)).start[2] == pytest.approx(math.pi / 2)
    assert between(world, Car(), (2, 2), (2, 0)).start[2] == pytest.approx(math.pi)


def test_vehicles_by_name():
    assert VEHICLES["car"].parameters[2] == 15.5 and VEHICLES["hard-car"].parameters[2] == 4.0
