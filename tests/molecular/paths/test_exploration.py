"""Trees that explore CVs: their metric, their pieces, that they arrive, and what shooting makes of them."""

import math
from itertools import pairwise

import pytest
import torch
from linear import line_problem

from molsamp.engine.neighbours import Neighbours
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import residuals, rollout
from molsamp.engine.state import Particles, Path
from molsamp.molecular import Problem, load
from molsamp.molecular.paths.exploration import Box, Exploration
from molsamp.molecular.paths.settings import ShootingSettings, TreeSettings
from molsamp.molecular.paths.shooting import Shooting

ALANINE, WELL, BROWN = load("alanine-dipeptide"), load("double-well"), load("mueller-brown")


def problem(system):
    return Problem.of(system, dtype=torch.float32 if system.masses is not None else torch.float64)


def explore(system, seed=0, **settings):
    return Exploration(problem(system), TreeSettings(**settings), Noise(seed))


def batch(e, k):
    """Nodes of batch k."""
    return 1 + k * e.settings.lanes + torch.arange(e.settings.lanes)


def test_the_metric_goes_round():
    """A target at +179 degrees is nearer to a node at -179 degrees than to one at 170: 2 degrees to 9."""
    box, degree = Box(ALANINE), math.pi / 180.0
    nodes = degree * torch.tensor([[170.0, 60.0], [-179.0, 60.0], [0.0, 60.0]]).double()
    target = degree * torch.tensor([[179.0, 60.0]]).double()
    near = Neighbours(4)
    near.add(box.features(nodes), torch.arange(3))
    ids, d = near.nearest(box.features(target), k=3)
    assert ids.tolist() == [[1, 0, 2]]
    chords = torch.tensor([[math.sin(degree * a) / math.pi for a in (1.0, 4.5, 89.5)]]).double()
    torch.testing.assert_close(d, chords)


def test_lengths_are_in_widths_of_the_box():
    """Of Mueller-Brown 2.7 by 2.5; a tenth of a circle and of a line are alike but for the chord."""
    box = Box(BROWN)
    a, b = box.features(torch.tensor([[-1.5, 0.75], [1.2, 0.75]]).double())
    assert float((a - b).norm()) == pytest.approx(1.0)
    assert box.coverage(torch.tensor([[-1.49, -0.49], [-1.48, -0.48], [1.19, 1.99], [1.3, 0.0]]).double(), 10) == 0.02
    assert Box(ALANINE).coverage(torch.tensor([[-3.1, 0.0], [math.tau - 3.1, 0.0]]).double(), 10) == 0.01


def test_targets_fill_the_box_and_the_end():
    """19200 targets: a share of 0.3 +- 0.013 (four sigma) in the disc besides the box's own 2 %, none outside."""
    e = explore(WELL, goal_bias=0.3, lanes=19200)
    s = e.targets(0)
    assert bool((s.abs() <= 1.75).all())
    inside = (s - WELL.states["right"].x).norm(dim=1) < 0.5
    disc = math.pi * 0.25 / 3.5**2
    share = 0.3 + 0.7 * disc
    assert float(inside.double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(s)))
    r = (s[inside] - WELL.states["right"].x).norm(dim=1) / 0.5
    assert float(r.square().mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / int(inside.sum())))


@pytest.mark.parametrize("stiffness", [0.0, 1.0])
@pytest.mark.parametrize("system", [WELL, BROWN], ids=lambda s: s.name)
def test_it_arrives_where_plain_dynamics_does_not(system, stiffness):
    """Three seeds of at most 40 000 evaluations; 100 walkers see nothing of B in 400 000 (a crossing takes > 10 kT)."""
    for seed in range(3):
        e = explore(system, seed, evaluations=40_000, stiffness=stiffness).run()
        assert e.reached is not None and e.evaluations < 40_000 + 64 * 51
        branch = e.branch()
        p = e.problem
        assert torch.equal(branch[0], p.start.x) and torch.equal(branch[-1], e.tree.x[e.reached])
        assert p.inside(branch).tolist() == [False] * (len(branch) - 1) + [True]
    start = p.initial(Noise(1), torch.arange(100))
    plain = rollout(p.dynamics, p.integrator, start, [k * p.timestep for k in range(4001)], noise=Noise(1), save=10)
    assert not bool(p.inside(plain.x).any())


@pytest.mark.parametrize(
    "e",
    [
        explore(WELL, evaluations=20_000),
        explore(BROWN, evaluations=20_000, stiffness=1.0, keep="last"),
        explore(ALANINE, evaluations=8000),
        explore(ALANINE, evaluations=8000, stiffness=50.0, lanes=16),
    ],
    ids=("well", "brown-pulled", "alanine", "alanine-pulled"),
)
def test_every_edge_replays_from_its_node(e):
    """Bit for bit: of the branch to B, or to the deepest node."""
    e.run()
    node = int(e.tree.depth.argmax()) if e.reached is None else e.reached
    way = e.tree.backtrack(node).tolist()
    assert len(way) > 3
    for parent, child in pairwise(way):
        k, lane = divmod(child - 1, e.settings.lanes)
        assert int(e.tree.parent[child]) == parent
        path = e.pieces(k, e.tree.parent[batch(e, k)])
        kept = e.tree.edge(child)["x"]
        assert torch.equal(path.x[0, lane], e.tree.x[parent])
        assert torch.equal(path.x[1 : len(kept) + 1, lane], kept) and torch.equal(kept[-1], e.tree.x[child])
        other = e.pieces(k + 1, e.tree.parent[batch(e, k)])
        assert not torch.equal(other.x[1, lane], kept[0])


def test_pieces_without_a_pull_are_the_dynamics():
    """x' = x + h F + sqrt(2 kT h) z with the piece's own normals, to rounding; a pull breaks it."""
    for stiffness in (0.0, 1.0):
        e = explore(WELL, look=1, stiffness=stiffness, keep="last")
        for _ in range(3):
            e.advance()
        h, kT = e.problem.timestep, e.problem.kT
        for node in batch(e, 2)[:8].tolist():
            x = torch.cat([e.tree.x[e.tree.parent[node], None], e.tree.edge(node)["x"]])
            z = e.noise.normal(range(len(x) - 1), torch.tensor([node - 1]), (2,))[:, 0]
            law = x[:-1] + h * e.problem.energy.force(x[:-1]) + math.sqrt(2 * kT * h) * z
            assert torch.allclose(law, x[1:], rtol=0, atol=1e-12) == (stiffness == 0.0)


def test_the_kept_frame_is_the_nearest():
    e = explore(WELL, look=1)
    e.advance()
    target, nodes = e.targets(0), batch(e, 0)
    path = e.pieces(0, e.tree.parent[nodes])
    kept = (e.tree.x[nodes] - target).norm(dim=1)
    assert torch.equal(kept, (path.x[1:] - target).norm(dim=2).amin(0))
    assert torch.allclose(e.tree.time[nodes], 0.01 * ((path.x[1:] - target).norm(dim=2).argmin(0) + 1).double())


def first_paths(initial, kind="two-way", length="flexible"):
    settings = ShootingSettings(kind=kind, length=length, initial=initial, chains=32, moves=1, burn_in=0)
    job = Shooting(Problem.of(WELL, steps=500, dtype=torch.float64), settings, Noise(3))
    job._first_paths()
    return job


def test_shooting_starts_from_the_free_dynamics():
    """Residuals under the free rows have a mean square of 1 within 0.06, four sigma (and the O(h) by which rows that
    were drawn backwards differ); on pulled paths it is off by more."""
    square = {}
    for initial in ("tree", "pull"):
        job = first_paths(initial)
        p, n = job.problem, len(job.tree)
        x = job.frames.x[:, :n]
        ends = Particles.at(x[-1])
        whole = Path(torch.tensor(p.times).double(), x, None, None, None, ends.logw, ends, 1)
        z = residuals(whole, p.dynamics, p.integrator)[0]
        moving = torch.arange(len(z))[:, None] < job.length[:n]
        square[initial] = float(z[moving].square().mean())
    assert square["tree"] == pytest.approx(1.0, abs=0.06)
    assert square["pull"] > 1.06


@pytest.mark.parametrize("kind, length", [("two-way", "flexible"), ("one-way", "fixed")])
def test_first_paths_join_the_states(kind, length):
    job = first_paths("tree", kind, length)
    p, f, n = job.problem, job.frames, len(job.tree)
    assert 16 <= n <= 32 and torch.equal(job.node, torch.arange(32) % n)
    assert bool(p.inside(f.x[0], p.start).all()) and bool(p.inside(f.x).any(0).all())
    assert len(f.x[:, :n].flatten(2).transpose(0, 1).flatten(1).unique(dim=0)) == n
    assert bool((job.length == 500).all()) == (length == "fixed")


def test_the_same_seed_starts_alike_and_goes_on_alike():
    def job():
        settings = ShootingSettings(initial="tree", chains=16, moves=2, burn_in=0)
        return Shooting(problem(WELL), settings, Noise(5), 16)

    a, b = job(), job()
    a.advance()
    b.load(a.state())
    a.advance()
    b.advance()
    a_x, b_x = a.paths().path.x, b.paths().path.x
    assert any("compare seeds" in note for note in a.paths().notes)
    assert torch.equal(a_x, b_x) and a.evaluations == b.evaluations
    assert bool(a.paths().hit.all())


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"look = 7 does not divide tree.rows = 50"):
        explore(WELL, look=7)
    with pytest.raises(ValueError, match="line: a tree grows in the space of the CVs"):
        Box(line_problem().system)
    with pytest.raises(ValueError, match=r"none of 65 nodes .* from C5 lies in C7ax after \d+ evaluations; allow more"):
        explore(ALANINE, evaluations=1).run().branch()
