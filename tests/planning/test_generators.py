"""Families of worlds: connected, seeded, of the shape that is promised."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.planning.generators import LAYOUTS, boxes, corridor, layout, maze


def connected(world):
    return bool((world.distances(*world.free[0].tolist()).isfinite() == ~world.blocked).all())


@pytest.mark.parametrize("seed", range(4))
def test_a_maze_without_openings_is_a_tree(seed):
    """All rooms joined, by one way only: a passage less than there are rooms; openings are additional."""
    world = maze(Noise(seed), 9, 13, opened=0.0)
    rooms, inner = 4 * 6, 3 * 6 + 4 * 5
    assert connected(world) and len(world.free) == rooms + rooms - 1
    opened = maze(Noise(seed), 9, 13, opened=1.0)
    assert len(opened.free) == rooms + inner and bool((opened.blocked <= world.blocked).all())


def test_the_share_of_opened_walls():
    """Over 40 mazes of 13 x 13: 25 inner walls each of which 12 % open; false alarm 1e-4 (4 sigma of the binomial)."""
    more = sum(len(maze(Noise(s)).free) - 71 for s in range(40))
    assert abs(more - 1000 * 0.12) < 4 * (1000 * 0.12 * 0.88) ** 0.5


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_connected_and_closed(seed):
    world = boxes(Noise(seed))
    frame = torch.ones_like(world.blocked)
    frame[1:-1, 1:-1] = False
    assert connected(world) and bool(world.blocked[frame].all())
    assert 0.15 < float(world.blocked[1:-1, 1:-1].double().mean()) < 0.4


def test_same_seed_same_world_another_seed_another():
    for family in (maze, boxes):
        assert torch.equal(family(Noise(5)).blocked, family(Noise(5)).blocked)
        assert not torch.equal(family(Noise(5)).blocked, family(Noise(6)).blocked)


@pytest.mark.parametrize("kind", ["straight", "dogleg"])
@pytest.mark.parametrize("length", [8, 11, 14])
def test_a_corridor_has_a_dead_end_that_faces_the_goal(kind, length):
    world, (i, j), (goal_i, goal_j) = corridor(length, kind)
    far = world.distances(goal_i, goal_j)
    end = j
    while not world.blocked[i, end + 1]:
        end += 1
    assert i == goal_i and j < end < goal_j and connected(world)
    assert end == goal_j - 3  # one cell of wall before the goal's room
    assert float(far[i, end]) > float(far[i, j])  # who heads for the goal is led away from it
    assert int((~world.blocked[:, 4:end]).sum(0).min()) == 2  # dead end and corridor, each one wide
    assert float(far[i, j]) >= length


def test_public_layouts():
    """Free cells and the longest way, counted on the grids of gymnasium-robotics."""
    assert {name: len(layout(name).free) for name in LAYOUTS} == {"u-maze": 7, "medium": 26, "large": 46}
    assert all(connected(layout(name)) for name in LAYOUTS)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: maze(Noise(0), opened=1.5), "opened=1.5"),
        (lambda: boxes(Noise(0), share=0.6), "share=0.6"),
        (lambda: boxes(Noise(0), rows=2), "boxes in 2 x 20"),
        (lambda: corridor(7), "length=7"),
        (lambda: corridor(8, "bent"), "corridor kind 'bent': there are straight, dogleg"),
        (lambda: layout("giant"), "layout 'giant': there are u-maze, medium, large"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
