"""The evolutionary search: against brute force, and that what it finds holds on other noises."""

import math
from itertools import combinations, islice

import pytest
import torch

from molsamp.engine import VP, GaussianMixture, Noise, time_grid
from molsamp.image import ideal
from molsamp.image.denoiser import Denoiser
from molsamp.image.sampling import sample
from molsamp.image.search import Both, Found, Genes, Nodes, Settings, Times, _uniforms, evolve, per_step, search

F64, SCHEDULE = torch.float64, VP()
SMALL = Settings(population=20, mutants=10, crossings=4, parents=5, epochs=8, rate=0.3)


@pytest.fixture(scope="module")
def model():
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=F64)
    gaussians = GaussianMixture(means, torch.tensor([0.3, 0.2, 0.25], dtype=F64))
    return ideal.mixture(gaussians, SCHEDULE, (2,))


def errors(model, grids, noise, n=256, solver="ddim"):
    """RMSE to a fine trajectory of each grid on the same noises."""
    start = noise.normal(0, torch.arange(n), (2,))
    fine = sample(model, "rk4", 400, noise=noise, start=start, grid="log-snr").final.x
    found = [sample(model, solver, len(g) - 1, noise=noise, start=start, grid=g).final.x for g in grids]
    return [float((x - fine).square().mean().sqrt()) for x in found]


@pytest.mark.parametrize("k", [1, 2])
def test_brute_force(model, k):
    """One and two inner nodes of a fine grid of 50: the evolution ends where the best of all candidates is."""
    fine = Times(tuple(time_grid("uniform", SCHEDULE, 51)))
    start = Noise(1).normal(0, torch.arange(8), (2,))
    reference = sample(model, "rk4", 200, noise=Noise(1), start=start, grid="log-snr").final.x

    def fitness(one):
        x = sample(model, "ddim", k + 1, noise=Noise(1), start=start, grid=fine(one)).final.x
        return float((x - reference).square().mean())

    found = evolve(fitness, Nodes(50, k), Noise(2), Settings(population=50, epochs=10, rate=0.3))
    tried = combinations(range(50), k)
    if k == 2:  # around the optimum, and every fifth pair elsewhere: all 1225 would take a minute
        a, b = found.best
        near = [(a + i, b + j) for i in range(-3, 4) for j in range(-3, 4) if 0 <= a + i < b + j < 50]
        tried = [*near, *islice(tried, 0, None, 5)]
    assert found.fitness == min(map(fitness, tried))


def test_the_best_only_improves_and_nothing_is_tried_twice():
    seen = []

    def fitness(one):
        seen.append(one)
        return math.nan if one[0] == 0 else sum((a - 3 * i) ** 2 for i, a in enumerate(one))

    found = evolve(fitness, Nodes(30, 4), Noise(3), SMALL, begin=[(1, 2, 3, 4)], about={"solver": "x"})
    values = [value for _, value in found.history]
    assert values == sorted(values, reverse=True) and len(values) == SMALL.epochs
    assert len(seen) == len(set(seen)) == found.history[-1][0] <= 20 * 8
    assert found.best[0] != 0 and found.about["solver"] == "x"


def test_a_space_used_up():
    """Twenty candidates: all are tried, once, and the search ends."""
    found = evolve(lambda one: abs(one[0] - 7), Nodes(20, 1), Noise(0), SMALL)
    assert found.history[-1][0] == 20 and found.best == (7,)


def test_candidates_of_nodes():
    """Whatever is drawn is an increasing subset; a mutant differs; a child of one parent is that parent."""
    space, u = Nodes(9, 4), _uniforms(Noise(5))
    for _ in range(200):
        one, other = space.random(u), space.random(u)
        for c in (one, space.mutate(one, 0.1, u), space.cross(one, other, u)):
            assert list(c) == sorted(set(c)) and len(c) == 4 and c[0] >= 0 and c[-1] < 9
        assert space.mutate(one, 0.0, u) != one
        assert space.cross(one, one, u) == one
    with pytest.raises(ValueError, match="5 different nodes cannot be chosen from 4"):
        Nodes(4, 5)


def test_other_spaces():
    """A knapsack: genes with a bound on their sum, beside nodes; the optimum is known."""
    space = Both(Nodes(6, 2), Genes(((0, 1, 2),) * 4, lambda one: sum(one) >= 3))
    found = evolve(lambda one: sum(one[0]) + sum(a * (k + 1) for k, a in enumerate(one[1])), space, Noise(1), SMALL)
    assert found.best == ((0, 1), (2, 1, 0, 0)) and found.fitness == 5
    with pytest.raises(ValueError, match="is allowed"):
        evolve(sum, Genes(((0, 1),), lambda one: False), Noise(1), SMALL)


def test_times_of_nodes():
    fine = Times((1.0, 0.8, 0.6, 0.4, 0.2, 0.0))
    assert fine((0, 2)) == [1.0, 0.8, 0.4, 0.0]
    assert fine.nearest([1.0, 0.75, 0.35, 0.0]) == (0, 2)
    assert fine.nearest([1.0, 0.39, 0.38, 0.37, 0.0]) == (1, 2, 3)
    edit = per_step([1.0, 0.8, 0.4, 0.0], "abc")
    assert [edit(t) for t in (1.0, 0.9, 0.8, 0.5, 0.4, 0.1, 0.0)] == list("aabbccc")


@pytest.mark.parametrize("solver", ["ddim", "unipc-2"])
def test_it_holds_on_other_noises(model, solver):
    """Five steps, searched on 32 noises: on 256 others at most 0.8 of the error of the uniform grid."""
    found = search(model, solver, 5, noise=Noise(8), size=60, settings=SMALL, dtype=F64)
    searched, uniform = errors(
        model, [found.about["times"], time_grid("uniform", SCHEDULE, 5)], Noise(9), solver=solver
    )
    assert searched < 0.8 * uniform, (searched, uniform)


def test_blocks_left_out():
    """A model of two blocks, of which one does nothing: the search leaves that one out wherever it has to."""

    def edited(edit):
        def predict(x, t, label):
            return (x * SCHEDULE.alpha(t) - 0.3) * (0 not in edit(t).without)

        return Denoiser(SCHEDULE, predict, (2,))

    whole = edited(lambda t: type("E", (), {"without": ()}))
    found = search(
        whole,
        "ddim",
        3,
        noise=Noise(2),
        n=4,
        size=20,
        settings=SMALL,
        dtype=F64,
        edited=edited,
        leave=[(), (0,), (1,)],
        least=3,
    )
    assert found.about["without"] == ((1,), (1,), (1,))
    with pytest.raises(ValueError, match="4 blocks are to be left out, but 3 steps can leave out 3 at most"):
        search(whole, "ddim", 3, noise=Noise(2), edited=edited, leave=[(), (0,)], least=4)
    with pytest.raises(ValueError, match="needs edited"):
        search(whole, "ddim", 3, noise=Noise(2), leave=[(), (0,)])


def test_a_result_on_disk(tmp_path):
    found = evolve(
        lambda one: sum(one[0]), Both(Nodes(6, 2), Genes(((0, 1),))), Noise(1), SMALL, about={"solver": "ddim"}
    )
    found.save(tmp_path / "found.json")
    assert Found.read(tmp_path / "found.json") == found
    assert found.about["evolution"]["epochs"] == 8 and found.about["seed"] == 1
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json does not hold"):
        Found.read(tmp_path / "other.json")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="room for mutants"):
        Settings(population=10)
