"""Trees in flat arrays, against a tree of Python objects."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molsamp.engine import EulerMaruyama, Noise, Overdamped, Particles, residuals, rollout
from molsamp.engine import trees as trees_module
from molsamp.engine.trees import Tree

F64 = torch.float64


def f64(values):
    return torch.tensor(values, dtype=F64)


class Naive:
    """The obvious tree: a list of (parent, x, time, cost)."""

    def __init__(self, roots):
        self.nodes = [(-1, x, 0.0, 0.0) for x in roots]

    def add(self, parent, x, duration, cost):
        _, _, time, total = self.nodes[parent]
        self.nodes.append((parent, x, time + duration, total + cost))

    def line(self, node):
        return [*(self.line(self.nodes[node][0]) if self.nodes[node][0] >= 0 else []), node]


number = st.floats(-8, 8, width=32)
batch = st.lists(st.tuples(st.integers(0, 10**6), number, st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(roots=st.lists(number, min_size=1, max_size=3), batches=st.lists(batch, max_size=5), query=number)
def test_against_the_naive_tree(roots, batches, query):
    """Any sequence of batches: the same arrays, lines of descent, distances and round trip."""
    naive, tree = Naive(roots), Tree(f64(roots)[:, None])
    for rows in batches:
        parents = [seed % len(tree) for seed, *_ in rows]
        columns = [f64([row[j] for row in rows]) for j in (1, 2, 3)]
        nodes = tree.extend(torch.tensor(parents), columns[0][:, None], duration=columns[1], cost=columns[2])
        assert nodes.tolist() == list(range(len(naive.nodes), len(naive.nodes) + len(rows)))
        for parent, (_, x, duration, cost) in zip(parents, rows, strict=True):
            naive.add(parent, x, duration, cost)
    parent, x, time, cost = (list(column) for column in zip(*naive.nodes, strict=True))
    assert tree.parent.tolist() == parent and tree.x[:, 0].tolist() == x
    assert tree.time.tolist() == time and tree.cost.tolist() == cost
    for node in range(len(tree)):
        line = naive.line(node)
        assert tree.backtrack(node).tolist() == line and int(tree.depth[node]) == len(line) - 1
    _, d = tree.nearest(f64([[query]]), k=len(tree))
    assert d[0].tolist() == pytest.approx(sorted(abs(query - a) for a in x), abs=1e-12)
    back = Tree.from_tensors(tree.to_tensors())
    assert all(torch.equal(a, back.to_tensors()[name]) for name, a in tree.to_tensors().items())


def grown(n=700, event=(2, 3)):
    noise, tree = Noise(5), Tree(torch.zeros(1, *event, dtype=F64))
    for k in range(n // 7):
        ids = torch.arange(7)
        tree.extend(noise.integers(k, ids, (), len(tree)), noise.normal(k, ids, event))
    return tree


@pytest.mark.parametrize("chunk", [1 << 14, 100, 3])
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_against_brute_force(monkeypatch, chunk, k):
    """In any chunks, with fewer nodes in a chunk than neighbours asked for."""
    monkeypatch.setattr(trees_module, "CHUNK", chunk)
    tree, x = grown(), Noise(6).normal(0, torch.arange(9), (2, 3))
    nodes, d = tree.nearest(x, k)
    brute = (x[:, None] - tree.x).flatten(2).square().sum(-1).sqrt()
    expected = brute.sort(dim=1)
    torch.testing.assert_close(d, expected.values[:, :k], rtol=0, atol=1e-14)
    assert torch.equal(nodes, expected.indices[:, :k])


def test_nearest_on_a_circle():
    """Angles through their cosine and sine: -3.1 is nearer to 3.1 than 2 is."""
    tree = Tree(f64([[2.0], [-3.1], [0.0]]))

    def circle(x):
        return torch.cat([x.cos(), x.sin()], 1)

    assert tree.nearest(f64([[3.1]]))[0].tolist() == [[0]]
    assert tree.nearest(f64([[3.1]]), metric=circle)[0].tolist() == [[1]]


def test_growth_copies_each_node_a_bounded_number_of_times():
    """Adding 1000 nodes one by one reallocates 10 times, to capacities 2, 4, .., 1024."""
    tree, capacities = Tree(torch.zeros(1, 1)), set()
    for _ in range(1000):
        tree.extend(torch.tensor([len(tree) - 1]), torch.ones(1, 1))
        capacities.add(tree._columns.capacity)
    assert sorted(capacities) == [2**k for k in range(1, 11)]


def test_roots_are_copied():
    x = torch.zeros(1, 2)
    tree = Tree(x)
    x += 1.0
    assert float(tree.x.abs().max()) == 0.0


class Harmonic:
    def energy_force(self, x):
        return 0.5 * x.square().sum(1), -x


def test_grafted_rollouts_come_back_as_paths():
    """3 chains of 4 nodes, then 2 branches off their middles; a line of descent is a path with a density."""
    dyn, integrator = Overdamped(Harmonic(), 1.0), EulerMaruyama()
    tree = Tree(torch.zeros(1, 2, dtype=F64))

    def shoot(nodes, first):
        p = Particles.at(tree.x[nodes], ids=first + torch.arange(len(nodes)))
        times = (float(tree.time[nodes[0]]) + f64([0.0, 0.1, 0.2, 0.3, 0.4])).tolist()
        path = rollout(dyn, integrator, p, times, noise=Noise(3))
        return tree.graft(nodes, path, cost=torch.ones(4, len(nodes), dtype=F64)), path

    nodes, path = shoot(torch.zeros(3, dtype=torch.int64), 0)
    assert nodes.shape == (4, 3)
    assert torch.equal(tree.x[nodes], path.x[1:])
    later, branch = shoot(nodes[1, :2], 10)
    line = tree.path(int(later[-1, 1]))
    torch.testing.assert_close(line.times, f64([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert torch.equal(line.x[:, 0], torch.cat([path.x[:3, 1], branch.x[1:, 1]]))
    z, _ = residuals(line, dyn, integrator)
    torch.testing.assert_close(z[:, 0], torch.cat([path.z[:2, 1], branch.z[:, 1]]))
    assert float(tree.cost[later[-1, 1]]) == 6.0 and int(tree.depth[later[-1, 1]]) == 6


def test_velocities_travel():
    tree = Tree(torch.zeros(1, 2), torch.ones(1, 2))
    (node,) = tree.extend(torch.tensor([0]), torch.zeros(1, 2), torch.full((1, 2), 3.0)).tolist()
    path = tree.path(node)
    assert path.v[:, 0, 0].tolist() == [1.0, 3.0]
    assert path.log_ratio.isnan().all() and path.final.logw.isnan().all()  # nodes have no weight
    assert torch.equal(Tree.from_tensors(tree.to_tensors()).v, tree.v)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: t.extend(torch.tensor([0, 2]), torch.zeros(2, 1)), "node 2 does not exist"),
        (lambda t: t.extend(torch.tensor([-1]), torch.zeros(1, 1)), "node -1 does not exist"),
        (lambda t: t.extend(torch.tensor([0]), torch.zeros(1, 1), torch.zeros(1, 1)), "velocities"),
        (lambda t: t.backtrack(2), "node 2 does not exist"),
        (lambda t: t.nearest(torch.zeros(1, 1), k=3), "k=3 nearest of a tree of 2"),
        (lambda t: Tree.from_tensors({**t.to_tensors(), "parent": torch.tensor([1, 0])}), "parent of node 0 is 1"),
    ],
)
def test_errors_name_the_node(call, match):
    tree = Tree(torch.zeros(1, 1))
    tree.extend(torch.tensor([0]), torch.ones(1, 1))
    with pytest.raises(ValueError, match=match):
        call(tree)


def edged():
    """A root, two edges of 2 and 0 rows, one of 3 after the first."""
    along = {"u": torch.zeros(1, 2), "x": torch.zeros(1, 1)}
    tree = Tree(torch.zeros(1, 1), along=along)
    rows = torch.arange(2 * 4 * 2.0).view(2, 4, 2)
    tree.extend(
        torch.tensor([0, 0]), torch.ones(2, 1), along={"u": rows, "x": rows[..., :1]}, steps=torch.tensor([2, 0])
    )
    rows = 100 + torch.arange(3 * 2.0).view(1, 3, 2)
    tree.extend(torch.tensor([1]), torch.ones(1, 1), along={"u": rows, "x": rows[..., :1]}, steps=torch.tensor([3]))
    return tree


def test_edges_keep_what_lies_along_them():
    """Rows beyond an edge's steps are dropped, and a line of descent strings edges together."""
    tree = edged()
    assert [len(tree.edge(i)["u"]) for i in range(4)] == [0, 2, 0, 3]
    assert tree.edge(1)["u"].tolist() == [[0, 1], [2, 3]] and tree.edge(3)["x"].tolist() == [[100], [102], [104]]
    assert tree.trace(tree.backtrack(3))["x"][:, 0].tolist() == [0, 2, 100, 102, 104]
    back = Tree.from_tensors(tree.to_tensors())
    assert torch.equal(back.edge(3)["u"], tree.edge(3)["u"])
    assert all(torch.equal(a, back.to_tensors()[name]) for name, a in tree.to_tensors().items())


def test_pruned_nodes_stay_and_are_marked():
    tree = edged()
    tree.prune(torch.tensor([1]))
    assert tree.active.tolist() == [True, False, True, True] and tree.backtrack(3).tolist() == [0, 1, 3]
    assert Tree.from_tensors(tree.to_tensors()).active.tolist() == tree.active.tolist()


def test_rows_along_edges_are_given_where_the_tree_keeps_them():
    with pytest.raises(ValueError, match="rows along"):
        edged().extend(torch.tensor([0]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="rows along"):
        bare = Tree(torch.zeros(1, 1))
        bare.extend(torch.tensor([0]), torch.zeros(1, 1), along={"u": torch.zeros(1, 1, 1)}, steps=torch.tensor([1]))
    with pytest.raises(ValueError, match="keep nothing along them"):
        Tree(torch.zeros(1, 1)).edge(0)
