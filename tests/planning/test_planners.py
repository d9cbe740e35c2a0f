"""Trees that reach a goal: what every tree must satisfy, and what distinguishes the planners."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from molsamp.engine import Noise
from molsamp.planning.audit import audit, audits
from molsamp.planning.planners import Planner, plan
from molsamp.planning.problems import Problem, between, problem
from molsamp.planning.settings import PLANNERS, Settings
from molsamp.planning.vehicles import Car, DoubleIntegrator, Trailer, Unicycle
from molsamp.planning.worlds import Pose, World

F64 = torch.float64
UNIFORM = {"rrt": PLANNERS["rrt"], "sst": PLANNERS["sst"], "prefixes": replace(PLANNERS["rrt"], keep_prefix=True)}
DITREE = replace(PLANNERS["ditree"], batch=64, target_bias=0.85, execute=8)


def pursuit(states, targets, problem, noise, step):
    """A policy by hand: steer towards the target, keep 1 m/s; 16 controls, noise on the steering."""
    x, y, psi, v, D, delta = states.T
    bearing = torch.atan2(targets[:, 1] - y, targets[:, 0] - x) - psi
    bearing = torch.atan2(bearing.sin(), bearing.cos())
    wobble = noise.normal(step, torch.arange(len(states)), ())
    steer = (10 * (0.3 * bearing + 0.1 * wobble - delta)).clamp(-2, 2)
    drive = (10 * (0.5 * (1.0 - v) - D)).clamp(-10, 10)
    return torch.stack([drive, steer], 1)[:, None].expand(-1, 16, -1)


def grown(p, settings, batches=30, seed=0, sampler=None):
    planner = Planner(p, settings, Noise(seed), sampler)
    for _ in range(batches):
        planner.advance()
    return planner


def check(planner):
    """Everything that must be true of any tree of any planner."""
    tree, p, c = planner.tree, planner.problem, planner.counts
    vehicle, n = p.vehicle, len(tree)
    assert torch.equal(tree.x[0], p.start) and int(tree.parent[0]) == -1
    assert bool((tree.parent[1:] >= 0).all() and (tree.parent[1:] < torch.arange(1, n)).all())
    states, controls = (tree.trace(torch.arange(n))[name] for name in ("states", "controls"))
    steps = torch.tensor([len(tree.edge(i)["controls"]) for i in range(n)])
    assert steps[0] == 0 and int(steps[1:].min()) >= 1 and int(steps.max()) <= planner.settings.longest
    last = steps.cumsum(0)
    assert torch.equal(states[last[1:] - 1], tree.x[1:])
    for i in range(1, n):  # each edge replays from its parent, bit for bit, and without a wall
        u = controls[last[i - 1] : last[i]]
        motion = vehicle.propagate(tree.x[tree.parent[i]][None], u[None], len(u), p)
        assert torch.equal(motion.states[0, 1:], states[last[i - 1] : last[i]]) and int(motion.steps) == len(u)
    assert float(vehicle.clearance(states, p.world).min()) > 0
    seconds = steps.double() * vehicle.dt
    torch.testing.assert_close(tree.time[1:], tree.time[tree.parent[1:]] + seconds[1:], rtol=0, atol=1e-12)
    inside = (tree.x[:, :2] - p.goal).norm(dim=1) < p.radius
    if planner.best is not None:
        assert bool(inside[planner.best]) and tree.cost[planner.best] == tree.cost[inside].min()
    else:
        assert not inside.any()
    kept = n - 1 + c.hit * (not planner.settings.keep_prefix) + c.diverged + c.pruned + c.costly
    assert c.edges == planner.settings.batch * c.batches
    assert c.edges == kept if not planner.settings.keep_prefix else c.edges == kept + c.stuck


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("vehicle", [Car(C2=4.0), Trailer()], ids=["car", "trailer"])
def test_what_must_be_true_of_a_tree(name, vehicle):
    check(grown(problem("medium", vehicle, 1), UNIFORM[name]))


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_what_must_be_true_of_a_tree_with_a_policy(eps):
    planner = grown(problem("medium", Car(C2=4.0), 1), replace(DITREE, eps=eps), 12, sampler=pursuit)
    check(planner)
    assert planner.counts.calls > 0


PLANS = [
    ("medium", Car(), "sst"),
    ("boxes", Car(C2=4.0), "rrt"),
    ("medium", Unicycle(), "sst"),
    ("u-maze", Trailer(), "rrt"),
]


@pytest.mark.parametrize(("family", "vehicle", "name"), PLANS)
def test_plans_pass_the_audit(family, vehicle, name):
    """Found, and true at a tenth of the step by other code: no wall, in the goal, within 1 mm all along."""
    settings = replace(PLANNERS[name], improve=False)
    for seed in range(2):
        p = problem(family, vehicle, seed)
        result = plan(p, settings, noise=Noise(seed), cpu_seconds=60, steps=2_000_000)
        assert result.solved and result.diagnosis == "" and result.first_solution <= result.cpu_seconds
        verdict = audit(p, result.plan)
        assert verdict.passed and verdict.deviation < 1e-3
        assert result.length_ratio * p.grid_distance == pytest.approx(result.plan.length)
        assert len(result.plan.times) == len(result.plan.states) == len(result.plan.controls) + 1


def test_the_audit_sees_a_wall():
    """A plan whose world has lost its way: the goal's cell is closed off after planning."""
    p = problem("medium", Car(C2=4.0), 1)
    found = plan(p, "rrt", noise=Noise(0), cpu_seconds=60).plan
    middle = p.world.cells(found.states[len(found.states) // 2, :2])
    blocked = p.world.blocked.clone()
    blocked[tuple(middle.tolist())] = True
    other = replace(p, world=World(blocked))
    assert audit(p, found).passed and audit(other, found).touches > 0
    assert not audit(replace(p, goal=p.start[:2]), found).reaches


@pytest.mark.parametrize("vehicle", [Car(), Trailer()], ids=["car", "trailer"])
def test_plans_are_audited_side_by_side_as_one_by_one(vehicle):
    """Of different lengths and worlds, one of them with a wall put in its way."""
    tasks = [problem(family, vehicle, 0) for family in ("u-maze", "medium")]
    plans = [plan(p, "rrt", noise=Noise(0), cpu_seconds=60).plan for p in tasks]
    middle = tasks[1].world.cells(plans[1].states[len(plans[1].states) // 2, :2])
    blocked = tasks[1].world.blocked.clone()
    blocked[tuple(middle.tolist())] = True
    tasks, plans = [*tasks, replace(tasks[1], world=World(blocked))], [*plans, plans[1]]
    one, all_ = [audit(p, q) for p, q in zip(tasks, plans, strict=True)], audits(tasks, plans)
    assert [a.passed for a in all_] == [True, True, False] and audits([], []) == []
    for a, b in zip(one, all_, strict=True):
        assert (a.touches, a.reaches) == (b.touches, b.reaches) and a.deviation == pytest.approx(b.deviation, abs=1e-9)
    with pytest.raises(ValueError, match="several"):
        audits([tasks[0], problem("u-maze", Unicycle(), 0)], plans[:2])


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a if k != "seconds")


@pytest.mark.parametrize("name", UNIFORM)
def test_same_seed_same_bytes_and_after_resume(name):
    """Another run, a run that was cut in two, and not another seed."""
    p, settings = problem("maze", Car(), 3), UNIFORM[name]
    a, b = grown(p, settings, 40), grown(p, settings, 15)
    resumed = Planner(p, settings, Noise(0)).restore({k: v.clone() for k, v in b.to_tensors().items()})
    for _ in range(25):
        resumed.advance()
    assert same(a.to_tensors(), resumed.to_tensors()) and same(a.to_tensors(), grown(p, settings, 40).to_tensors())
    other = grown(p, settings, 15, seed=1).to_tensors()
    assert not torch.equal(other["tree.x"][:20], a.to_tensors()["tree.x"][:20])


@pytest.mark.parametrize("eps", [1.0, 1.0 - 1e-12])
def test_eps_1_is_the_uniform_planner(eps):
    """Decision for decision; just below 1 the mixture's own code makes the same decisions."""
    p = problem("maze", Car(C2=4.0), 2)
    ours = grown(p, replace(PLANNERS["rrt"], eps=eps), sampler=pursuit)
    assert same(ours.to_tensors(), grown(p, PLANNERS["rrt"]).to_tensors())
    assert (
        not same(grown(p, replace(PLANNERS["rrt"], eps=0.5), sampler=pursuit).to_tensors(), ours.to_tensors())
        if (eps == 1)
        else True
    )


def test_a_policy_of_zeros_never_moves():
    """No silent fall-back to other controls."""
    p = problem("medium", Car(), 0)

    def zeros(states, targets, problem, noise, step):
        return torch.zeros((len(states), 64, 2), dtype=F64)

    planner = grown(p, replace(DITREE, eps=0.0), 5, sampler=zeros)
    assert float((planner.tree.x - p.start).abs().max()) == 0.0 and planner.counts.calls == 5 * 64 * 8


def test_the_policy_is_told_where_to_go():
    """Targets: the goal with probability 0.85, else the state that chose the node; calls are numbered without a gap."""
    p, seen = problem("medium", Car(C2=4.0), 0), []

    def spy(states, targets, problem, noise, step):
        seen.append((step, targets))
        return pursuit(states, targets, problem, noise, step)

    grown(p, replace(DITREE, eps=0.0, goal_bias=0.0, batch=64), 20, sampler=spy)
    first = torch.cat([t for step, t in seen if step % 8 == 0])
    share = float((first == p.goal).all(1).double().mean())
    assert abs(share - 0.85) < 4 * (0.85 * 0.15 / 1280) ** 0.5  # 4 sigma: false alarm 6e-5
    assert len({step for step, _ in seen}) == len(seen) and {step // 8 for step, _ in seen} == set(range(20))
    others = first[(first != p.goal).any(1)]
    assert not p.world.is_blocked(others).any() and len(others.unique(dim=0)) == len(others)


def test_a_policy_of_the_wrong_shape():
    p = problem("medium", Car(), 0)
    for shape in ((5, 2), (64, 3)):
        with pytest.raises(ValueError, match=rf"the policy gave \(64, {shape[0]}, {shape[1]}\), \(64, 8 or more, 2\)"):
            grown(p, replace(DITREE, eps=0.0), 1, sampler=lambda s, *_, n=shape: torch.zeros((len(s), *n), dtype=F64))


@pytest.mark.parametrize("pose", [Pose(0.0, 30.0, -7.0), Pose(math.pi / 2, 1.0, 2.0), Pose(0.7, -3.0, 11.0)])
def test_a_moved_world_moves_the_plan(pose):
    """The same decisions, hence the same tree, moved: uniform controls and a policy alike."""
    p = problem("medium", Car(C2=4.0), 4)
    for settings, sampler in ((PLANNERS["sst"], None), (replace(DITREE, eps=0.5), pursuit)):
        a, b = (grown(q, settings, 12, sampler=sampler).tree for q in (p, p.moved(pose)))
        assert torch.equal(a.parent, b.parent) and len(a) > 30
        torch.testing.assert_close(p.vehicle.moved(a.x, pose), b.x, rtol=0, atol=1e-7)


def test_an_unreachable_goal():
    """Walled off: said at once. Reachable on the grid but not for this car: not solved within the budget and 5 %."""
    world = World.parse("#######\n#..#..#\n#######", name="two cells")
    p = between(world, Car(), (1, 1), (1, 2))
    shut = Problem(world, Car(), p.start, world.centre(1, 4))
    result = plan(shut, noise=Noise(0))
    assert not result.solved and "unreachable: walls cut the start off" in result.diagnosis and result.counts.edges == 0
    turn = replace(problem("u-maze", Car(C2=4.0), 0), start=Car().at(torch.tensor([1.5, 3.5], dtype=F64), math.pi))
    result = plan(replace(turn, goal=turn.world.centre(1, 1)), noise=Noise(0), steps=20_000)
    assert not result.solved and result.plan is None and 20_000 <= result.counts.steps < 20_000 + 64 * 64
    assert "within 30 CPU seconds and 20000 steps" in result.diagnosis and "touched a wall" in result.diagnosis
    assert result.nearest > 1.0 and 0 < result.coverage < 0.7 and math.isnan(result.length_ratio)
    timed = plan(replace(turn, goal=turn.world.centre(1, 1)), noise=Noise(0), cpu_seconds=1.0)
    assert not timed.solved and 1.0 <= timed.cpu_seconds < 1.05


def test_a_dead_end_that_faces_the_goal():
    """A policy that is always told to head for the goal stays in the dead end; never told so, it explores.

    Over corridors 0 to 3: 3 of 4 are solved within 500,000 steps when never told (corridor 1 after 151,581), none when
    always. Told so in 85 %, 3 of 0 to 5 are solved within 120,000 steps, against 1 of 6 when never: targets of the
    tree's own choice are no better on the way that is right.
    """
    p = problem("corridor", Car(C2=4.0), 1)
    always, never = (replace(DITREE, eps=0.0, target_bias=bias, batch=32) for bias in (1.0, 0.0))
    caught = plan(p, always, noise=Noise(1), sampler=pursuit, steps=60_000)
    free = plan(p, never, noise=Noise(1), sampler=pursuit, steps=60_000)
    assert not caught.solved and caught.coverage < 0.4 < 0.6 < free.coverage
    assert plan(p, never, noise=Noise(1), sampler=pursuit, steps=160_000).solved


def test_sst_improves_with_time_and_stays_sparse():
    """Costs of the best plan never rise, and fall in all; fewer nodes than edges; one active node at each witness."""
    p = problem("medium", Car(C2=4.0), 2)
    planner, costs, sizes = Planner(p, PLANNERS["sst"], Noise(0)), [], []
    for _ in range(10):
        for _ in range(40):
            planner.advance()
        costs.append(math.inf if planner.best is None else float(planner.tree.cost[planner.best]))
        sizes.append(int(planner.tree.active.sum()))
    assert all(b <= a for a, b in pairwise(costs)) and costs[-1] < 0.9 * min(c for c in costs[:3])
    points = p.vehicle.features(planner.tree.x[planner.tree.active])
    assert len(points) < 0.2 * planner.counts.edges and planner.counts.pruned > 0 and planner.counts.costly > 0
    assert float(planner.plan(planner.best).times[-1]) == pytest.approx(costs[-1])
    assert sizes[-1] <= planner._witnesses.to_tensors()["node"].shape[0]


def test_cost_by_length():
    p = problem("medium", Car(C2=4.0), 2)
    planner = grown(p, replace(PLANNERS["rrt"], cost="length", improve=True), 60)
    check(planner)
    assert planner.best is not None
    assert planner.plan(planner.best).length == pytest.approx(float(planner.tree.cost[planner.best]), abs=1e-9)


def test_double_integrator_in_an_empty_box():
    """RRT's success goes to 1 with the budget; no plan is faster than the exact minimum time, and SST comes near it."""
    box = World(torch.zeros((10, 10), dtype=torch.bool))
    vehicle = DoubleIntegrator(speed=2.0, force=2.0)
    p = Problem(box, vehicle, vehicle.at(torch.tensor([1.0, 5.0], dtype=F64)), torch.tensor([8.5, 5.0], dtype=F64))
    solved = [
        [plan(p, "rrt", noise=Noise(s), steps=steps).solved for s in range(12)] for steps in (4_000, 10_000, 60_000)
    ]
    rates = [sum(row) for row in solved]
    assert rates[0] < rates[1] <= rates[2] == 12
    fastest = 1.0 + (7.0 - 1.0) / 2.0  # 1 m in 1 s up to full speed, then 6 m at 2 m/s, to the disc's near edge
    times = []
    for steps in (30_000, 150_000):
        best = plan(p, PLANNERS["sst"], noise=Noise(1), steps=steps).plan
        times.append(float(best.times[-1]))
    assert fastest <= times[1] <= times[0] and times[1] < 1.3 * fastest


def test_ten_thousand_nodes():
    """Beyond them the tree still answers as brute force would, and nothing is lost."""
    p = problem("boxes", Unicycle(), 0)
    planner = Planner(p, replace(PLANNERS["rrt"], improve=True, batch=128, longest=16), Noise(0))
    planner.problem = replace(p, radius=1e-6)  # nobody gets there
    while len(planner.tree) < 10_500:
        planner.advance()
    aims = planner._aims(planner._draws()[0])
    f, g = planner._features(aims), planner._features(planner.tree.x)
    assert torch.equal(
        planner._nodes.nearest(f)[0][:, 0], torch.cdist(f, g, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    )
    rows = planner.tree.to_tensors()
    assert int(rows["end"][-1]) == len(rows["along.states"]) == len(rows["along.controls"])
    assert len(planner.tree) == 10_500 or len(planner.tree) < 10_500 + 128


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: plan(p, "prm", noise=Noise(0)), "planner 'prm': there are rrt, sst, ditree"),
        (lambda p: plan(p, "ditree", noise=Noise(0)), "eps=0.1 < 1 needs a sampler"),
        (lambda p: plan(p, noise=Noise(0), cpu_seconds=-1.0), "limits of -1.0 CPU seconds"),
        (lambda p: plan(p, noise=Noise(0), steps=0), "and 0 steps: they must be positive"),
        (lambda p: Settings(batch=0), "batch=0 must be at least 1"),
        (lambda p: Settings(eps=1.5), "eps=1.5 is not a probability"),
        (lambda p: Settings(near=-0.1), "near=-0.1 must not be negative"),
        (lambda p: Settings(metric="angle"), "metric='angle': there are state, position"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call(problem("medium", Car(), 0))


def test_patience_leaves_nodes_whose_edges_fail():
    """All aim at the goal beyond the wall that the car drives straight at: from the foremost node every edge fails."""
    p = between(World.parse("#########\n#....#..#\n#.......#\n#########"), Car(C2=4.0), (2, 1), (2, 7))

    def ahead(states, targets, problem, noise, step):
        return torch.tensor([1.0, 0.0]).expand(len(states), 16, 2).double()  # straight on

    shares = {}
    for patience in (0.0, 4.0):
        planner = grown(p, replace(DITREE, eps=0.0, goal_bias=1.0, patience=patience), 30, sampler=ahead)
        failed = planner.to_tensors()["failed"]
        assert len(failed) == len(planner.tree)
        shares[patience] = float(failed.max()) / planner.counts.hit
    assert shares[0.0] > 0.9 and shares[4.0] < 0.5


def test_the_policy_alone_drives_chains():
    """Every lane grows from its own last edge; after a failure, or `restart` edges, from the start."""
    p = problem("medium", Car(C2=4.0), 1)
    settings = replace(PLANNERS["policy"], batch=4, restart=5)
    planner = grown(p, settings, 40, sampler=pursuit)
    check(planner)
    children = planner.tree.parent[1:].bincount(minlength=len(planner.tree))
    assert int(children[1:].max()) == 1 and int(children[0]) > 4 and int(planner.tree.depth.max()) <= 5
    halves = grown(p, settings, 20, sampler=pursuit)
    resumed = Planner(p, settings, Noise(0), pursuit).restore(halves.to_tensors())
    for _ in range(20):
        resumed.advance()
    assert same(resumed.to_tensors(), planner.to_tensors())
