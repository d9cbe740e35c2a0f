"""Nearest neighbours among points that come and go, against looking at all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molsamp.engine import Noise
from molsamp.engine.neighbours import BASE, Neighbours

F64 = torch.float64


def points(step, n, f=4):
    """Spread over one or two coordinates and thin in the others, as nodes of a planning tree are."""
    scale = torch.tensor([3.0, 2.0, 0.15, 0.05, 0.05])[:f]
    return Noise(1).normal(step, torch.arange(n), (f,)) * scale


def brute(x, alive, q, k):
    d = (q[:, None] - x).square().sum(-1).sqrt()
    d[:, ~alive] = torch.inf
    return d.sort(dim=1, stable=True)  # stable: of equal distances the lower id


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=7),
    lost=st.lists(st.integers(0, 60), min_size=7, max_size=7),
    grid=st.booleans(),
)
def test_against_brute_force(sizes, lost, grid):
    """Any sequence of points that come and go; on a grid many distances are equal, and the lowest id is nearest."""
    forest, x = Neighbours(3), torch.empty((0, 3), dtype=F64)
    alive, queries = torch.empty(0, dtype=torch.bool), points(9, 5, 3)
    if grid:
        queries = queries.round()
    for step, (n, out) in enumerate(zip(sizes, lost, strict=False)):
        new = points(step, n, 3)
        new = new.round() if grid else new
        forest.add(new, len(x) + torch.arange(n))
        x, alive = torch.cat([x, new]), torch.cat([alive, torch.ones(n, dtype=torch.bool)])
        gone = Noise(2).integers(step, torch.arange(out + 1), (), len(x))[:out]
        forest.discard(gone)
        alive[gone] = False
        assert len(forest) == int(alive.sum())
        k = min(4, len(forest))
        if k:
            ids, d = forest.nearest(queries, k)
            expected = brute(x, alive, queries, k)
            assert torch.equal(ids, expected.indices[:, :k])
            torch.testing.assert_close(d, expected.values[:, :k], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("radius", [0.0, 0.3, 2.0, 100.0])
def test_the_cheapest_near_ones(radius):
    """Against brute force: within the radius the least cost counts, beyond it the distance."""
    forest, x, q = Neighbours(4), points(0, 700), points(1, 40)
    forest.add(x, torch.arange(700))
    gone = torch.arange(0, 700, 3)
    forest.discard(gone)
    cost = Noise(3).uniform(0, torch.arange(700))
    d = (q[:, None] - x).square().sum(-1).sqrt()
    d[:, gone] = torch.inf
    within = d <= radius
    expected = torch.where(within.any(1), cost.where(within, torch.inf).argmin(1), d.argmin(1))
    assert torch.equal(forest.cheapest(q, radius, cost), expected)


def test_ten_thousand_points_are_moved_log_n_times(monkeypatch):
    """Counting the points of all trees ever built: each lies in log2(n / BASE) of them at most."""
    from molsamp.engine import kd

    built, build = [], kd.build
    monkeypatch.setattr(kd, "build", lambda p, i, boxes, a, b: (built.append(b - a), build(p, i, boxes, a, b)))
    n, forest, x = 10_000, Neighbours(5), points(0, 10_000, 5)
    for a in range(0, n, 25):
        forest.add(x[a : a + 25], torch.arange(a, a + 25))
    assert n <= sum(built) <= n * (n // BASE).bit_length()
    ids, _ = forest.nearest(points(1, 30, 5), 3)
    assert torch.equal(ids, brute(x, torch.ones(n, dtype=torch.bool), points(1, 30, 5), 3).indices[:, :3])


def test_points_that_go_are_forgotten_in_the_end():
    """1000 points, 900 go: the arrays are searched without them."""
    forest = Neighbours(4)
    forest.add(points(0, 1000), torch.arange(1000))
    forest.discard(torch.arange(900))
    forest.discard(torch.arange(900))  # who is gone is not counted again
    assert len(forest) == 100 and forest._size < 250
    ids, _ = forest.nearest(points(0, 1000)[950:951])
    assert ids.tolist() == [[950]]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: f.nearest(points(0, 1), 3), "k=3 nearest of 2 points"),
        (lambda f: f.nearest(points(0, 1), 0), "k=0 nearest of 2 points"),
        (lambda f: f.add(points(0, 1, 3), torch.tensor([2])), "points of 3 coordinates, expected 4"),
        (lambda f: Neighbours(4).cheapest(points(0, 1), 1.0, torch.zeros(1, dtype=F64)), "the cheapest of 0"),
    ],
)
def test_errors(call, match):
    forest = Neighbours(4)
    forest.add(points(0, 2), torch.arange(2))
    with pytest.raises(ValueError, match=match):
        call(forest)
