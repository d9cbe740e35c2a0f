"""Problems: what is refused at the door, and what is promised of the families."""

import math

import pytest
import torch

from molsamp.engine import Noise
from molsamp.planning.problems import FAMILIES, Problem, between, drawn, problem
from molsamp.planning.vehicles import Car, DoubleIntegrator
from molsamp.planning.worlds import Pose, World

F64 = torch.float64
WORLD = World.parse("#####\n#...#\n###.#\n#.#.#\n#####", name="bend")


def f64(*values):
    return torch.tensor(values, dtype=F64)


def car(x, y, psi=0.0):
    return Car().at(f64(x, y), psi)


@pytest.mark.parametrize(
    ("start", "goal", "radius", "match"),
    [
        (car(1.5, 2.5), f64(3.5, 1.5), 0.5, r"the start \(1.5, 2.5\) m, row 2 column 1 of bend, is in a wall"),
        (car(9.0, 2.5), f64(3.5, 1.5), 0.5, "row 2 column 9 of bend, is in a wall"),
        (car(1.9, 3.5, math.pi), f64(0.5, 1.5), 0.5, r"the goal \(0.5, 1.5\) m, row 1 column 0 of bend, is in a wall"),
        (car(1.15, 3.5), f64(3.5, 1.5), 0.5, "vehicle overlaps a wall by 0.025 m"),
        (car(1.5, 3.5), f64(3.5, 1.5), 0.0, "goal radius 0.0 m must be positive"),
        (car(1.5, 3.5)[:5], f64(3.5, 1.5), 0.5, "the start has 5 numbers, the states are x, y, psi, v, D, delta"),
        (car(1.5, 3.5) + f64(0, 0, 0, 6, 0, 0), f64(3.5, 1.5), 0.5, r"start: v=6 is not in \[0, 5\]"),
        (car(1.5, 3.5, math.nan), f64(3.5, 1.5), 0.5, "start: psi=nan"),
    ],
)
def test_refused_at_the_door(start, goal, radius, match):
    with pytest.raises(ValueError, match=match):
        Problem(WORLD, Car(), start, goal, radius)


def test_headings_may_be_any_number_of_turns():
    Problem(WORLD, Car(), car(1.5, 3.5, 100.0), f64(3.5, 1.5))


def test_a_goal_that_is_walled_off_is_known():
    """Cut off: closed. The goal's disc reaches through a wall into the start's component: not closed."""
    assert not Problem(WORLD, Car(), car(1.5, 3.5), f64(3.5, 1.5)).closed
    away = Problem(WORLD, Car(), car(1.5, 3.5), f64(1.5, 1.5))
    assert away.closed and math.isinf(away.grid_distance)
    assert away.moved(Pose(0.6, 4.0, -2.0)).closed
    assert not Problem(WORLD, Car(), car(1.5, 3.5), f64(1.5, 1.5), radius=1.51).closed
    assert Problem(WORLD, Car(), car(1.5, 3.5), f64(1.5, 1.5), radius=1.49).closed


def test_a_vehicle_stands_along_the_shortest_way():
    p = between(WORLD, Car(), (1, 3), (3, 1))
    assert p.start.tolist() == pytest.approx([3.5, 1.5, math.pi / 2, 0, 0, 0]) and p.grid_distance == 4.0
    q = between(WORLD.moved(Pose(1.0, 2.0, 3.0)), Car(), (1, 3), (3, 1))
    torch.testing.assert_close(q.start, p.moved(Pose(1.0, 2.0, 3.0)).start)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    """Solvable on the grid, as far apart as promised, the same from the same seed, not from another."""
    least = {"u-maze": 4.0, "medium": 8.0}.get(family, 12.0)
    problems = [problem(family, Car(C2=4.0), seed) for seed in range(6)]
    for p in problems:
        assert least <= p.grid_distance < math.inf and not p.closed
    again = problem(family, DoubleIntegrator(), 3)
    assert torch.equal(again.world.blocked, problems[3].world.blocked) and torch.equal(again.goal, problems[3].goal)
    different = {(p.world.text(), *p.start.tolist(), *p.goal.tolist()) for p in problems}
    assert len(different) >= 5  # of the twelve corridors two may be drawn alike


def test_unknown_families_and_worlds_too_small():
    with pytest.raises(ValueError, match="family 'labyrinth': there are maze, boxes, corridor, u-maze"):
        problem("labyrinth", Car(), 0)
    with pytest.raises(ValueError, match="bend: no two free cells lie 12 m of way apart"):
        drawn(WORLD, Car(), Noise(0))


def test_every_public_name_is_where_it_is_said_to_be():
    from molsamp import planning

    assert all(hasattr(planning, name) for name in planning.__all__)
    with pytest.raises(AttributeError, match="no attribute 'PRM'"):
        _ = planning.PRM
