"""Splitting and merging keep every walker's expected weight and the sum of all; what has no weight makes no rate."""

import pytest
import torch

from molsamp.engine import Noise, Particles, Status, Tree
from molsamp.engine import forward_flux as ff
from molsamp.engine import weighted_ensemble as we
from molsamp.engine.ensembles import Ensemble, Sight, colours, split_merge

TREE = Tree(torch.zeros(3, 1))
FLUX = ff.ForwardFlux((0.0,), 1, 1, 1, 1, 1, lambda ids, step: None)


def ensemble(n, replicas=1):
    ids = torch.arange(n)
    return Ensemble.of(Particles.at(ids.double()[:, None]), ids % replicas, torch.zeros_like(ids))


def weighted(w):
    return ensemble(len(w)).evolve(weight=torch.tensor(w, dtype=torch.float64))


@pytest.mark.parametrize("runs", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_resamplings_keep_the_weight_to_1e_12(runs):
    """Weights over thirty decades, cells that come and go: the total of each replica stays 1."""
    e, noise = ensemble(60, replicas=3), Noise(1)
    cells = noise.child("cell").integers(range(runs), torch.arange(72), (), 6)
    for k in range(runs):
        cell = cells[k, : len(e)]
        e, _ = split_merge(e, cell, e.particles.x[:, 0], 4, noise, k)
    totals = torch.zeros(3, dtype=torch.float64).index_add_(0, e.replica, e.weight)
    assert (totals - 1.0).abs().max() < 1e-12 and e.weight.min() > 0


@pytest.mark.parametrize("target", [1, 3, 7])
def test_every_walker_keeps_its_expected_weight(target):
    """4000 resamplings of two cells; each mean weight within 4 standard errors of its own (false alarm 5e-4 in all)."""
    w = torch.tensor([0.4, 0.05, 1e-6, 0.12, 0.33, 0.09999, 1e-9, 0.0], dtype=torch.float64)
    runs, n = 4000, len(w)  # as replicas of one ensemble
    e = ensemble(runs * n).evolve(weight=w.repeat(runs), replica=torch.arange(runs).repeat_interleave(n))
    cell = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).repeat(runs)
    out, ancestors = split_merge(e, cell, e.particles.x[:, 0], target, Noise(3), 0)
    found = torch.zeros(runs * n, dtype=torch.float64).index_add_(0, ancestors, out.weight).view(runs, n)
    z = (found.mean(0) - w) / (found.std(0) / runs**0.5).clamp(min=1e-15)
    seen = w > 1e-3  # of rarer ones a draw or two would decide
    assert z[seen].abs().max() < 4.0
    assert found[:, -1].max() == 0.0  # no weight, never drawn


def test_cells_fill_up_and_ids_stay_unique():
    e = weighted([0.7, 0.1, 0.1, 0.1])
    out, ancestors = split_merge(e, torch.tensor([0, 2, 2, 2]), e.particles.x[:, 0], 2, Noise(0), 5)
    assert ancestors.tolist()[:2] == [0, 0] and set(ancestors.tolist()[2:]) <= {1, 2, 3}
    assert len(out.particles.ids.unique()) == len(out) == 4
    assert out.weight.tolist() == pytest.approx([0.35, 0.35, 0.15, 0.15], abs=1e-16)
    assert out.root.tolist() == ancestors.tolist()


def test_replicas_do_not_depend_on_each_other():
    """One replica alone is resampled as it is beside others."""
    both = ensemble(8, replicas=2)
    cell, x = torch.zeros(8, dtype=torch.int64), both.particles.x[:, 0]
    both = both.evolve(weight=torch.linspace(0.1, 1.0, 8, dtype=torch.float64))
    first = both.replica == 0
    alone, a = split_merge(both.take(first.nonzero()[:, 0]), cell[first], x[first], 3, Noise(2), 0)
    together, b = split_merge(both, cell, x, 3, Noise(2), 0)
    assert torch.equal(first.nonzero()[:, 0][a], b[together.replica == 0])
    assert torch.equal(alone.weight, together.weight[together.replica == 0])


def test_colours_are_of_the_set_last_seen():
    a = torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()
    b = torch.tensor([[1, 0], [0, 0], [0, 0]]).bool()
    start, sight = torch.tensor([0, 1]), Sight(torch.zeros(3, 2), a, b)
    assert colours(start, sight, once=False).tolist() == [[0, 1], [1, 1], [0, 1], [0, 0]]
    assert colours(start, sight, once=True).tolist() == [[0, 1], [1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    "use",
    [
        lambda: Ensemble.of(TREE, torch.zeros(3).long(), torch.zeros(3).long()),
        lambda: Ensemble(TREE, torch.ones(3).double(), *torch.zeros(3, 3).long()),
        lambda: we.rate(TREE),
        lambda: we.brute_rate(TREE, 1),
        lambda: we.reactive_flux(TREE),
        lambda: we.committor(TREE),
        lambda: we.Scheme(1, torch.zeros(1), 1).advance(None, TREE, 0, 1),
        lambda: ff.rate(TREE),
        lambda: ff.committor(TREE),
        lambda: ff.binomial_error(TREE),
        lambda: FLUX.begin(TREE),
        lambda: ff.fluxes(TREE),
    ],
)
def test_nodes_of_a_planner_make_no_rate(use):
    """The nodes of a tree are where a search went: no estimator takes them."""
    with pytest.raises(TypeError, match="Tree"):
        use()


@pytest.mark.parametrize("use", [lambda p: Ensemble.of(p, torch.tensor([0]), torch.tensor([0])), FLUX.begin])
def test_particles_of_a_tree_have_no_weight(use):
    p = TREE.path(2).final
    with pytest.raises(ValueError, match="1 of 1"):
        use(p)
    use(Particles.at(p.x))  # as a start, weighed anew by whoever says so


def test_a_bad_target_is_refused():
    e = ensemble(2)
    with pytest.raises(ValueError, match="target=0"):
        split_merge(e, e.replica, e.particles.x[:, 0], 0, Noise(0), 0)


def test_checkpoint_form():
    e = ensemble(4, replicas=2).evolve(particles=Particles.at(torch.zeros(4, 1), torch.ones(4, 1)))
    e = e.evolve(particles=e.particles.evolve(status=torch.full((4,), Status.DIVERGED, dtype=torch.int8)))
    back = Ensemble.from_tensors(e.to_tensors())
    assert all(torch.equal(v, back.to_tensors()[k]) for k, v in e.to_tensors().items())
