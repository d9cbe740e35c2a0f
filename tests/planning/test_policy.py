"""Policies: flow matching tells modes apart, what is seen moves with the world, the expert drives, files of weights."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from molsamp.engine import Noise
from molsamp.learn import weights
from molsamp.learn.fit import fit
from molsamp.planning import Car, Pose, Unicycle, planners, problem
from molsamp.planning.expert import pursue, seen
from molsamp.planning.generators import layout
from molsamp.planning.policy import Observation, Policy, PolicyNetwork, exponential_times, flow_matching, observe
from molsamp.planning.problems import Problem
from molsamp.planning.train import MIRROR, Piece, Settings, drives, load, mirrored, pieces
from molsamp.planning.vehicles import REACHED
from molsamp.planning.worlds import World

NUMBERS = len(MIRROR)


def states(p, n, seed=0):
    """Cars around the start, in any state."""
    u = Noise(seed).uniform(0, torch.arange(n), (6,))
    scale = torch.tensor([0.2, 0.2, 6.0, 2.0, 1.0, 0.6], dtype=torch.float64)
    shift = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.5, 0.5], dtype=torch.float64)
    return (u - shift) * scale + torch.cat([p.start[:2], torch.zeros(4, dtype=torch.float64)])


@pytest.fixture(scope="module")
def untrained():
    """A network of small random weights, its last layer too."""
    net = PolicyNetwork(64, 2, NUMBERS, 32, 1, Noise(3))
    last = net.answer[-1]
    last.weight.data = 0.05 * Noise(4).normal(0, torch.arange(len(last.weight)), last.weight.shape[1:], torch.float32)
    return Policy(net.requires_grad_(False), 2, (0.3, 0.4))


def test_one_call_gives_the_mean_and_many_give_the_modes():
    """Controls of -1 or 1, half each: one step of Euler ends near 0, sixteen end near -1 and 1, 50 +- 8 % each.

    Seed fixed; 4 standard errors of a share of 600 are 8 %.
    """
    net = PolicyNetwork(1, 1, 3, 64, 2, Noise(0))
    net.see = lambda o: torch.zeros(len(o.walls), 67)  # nothing
    blank = Observation(torch.zeros(256, 20, 20), torch.zeros(256, 3))
    stream, ids = Noise(1), torch.arange(256)

    def draw(k):
        u = stream.uniform(k, ids, (2,), torch.float32)
        return {
            "a": (u[:, :1] < 0.5).float() * 2.0 - 1.0,
            "s": u[:, 1],
            "z": stream.normal(k, ids, (1,), torch.float32),
        }

    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    fit(lambda b: flow_matching(net, blank, b["a"], b["z"], b["s"]), draw, optimiser, steps=500)
    p = problem("large", Car(), 0)
    many = states(p, 600)
    net.requires_grad_(False)
    one, modes = (
        Policy(net, K, (1.0, 1.0))(many, many[:, :2], p, Noise(2), 0)[..., 0] / Car().body.rate[0] for K in (1, 16)
    )
    assert float(one.abs().mean()) < 0.25
    assert float((modes.abs() - 1.0).abs().mean()) < 0.25 and abs(float((modes > 0).double().mean()) - 0.5) < 0.08


def test_a_unet_in_place_of_the_perceptron():
    """It begins as no control, learns in a few steps what it is told, and is made again from its architecture."""
    net = PolicyNetwork(16, 2, NUMBERS, 8, 3, Noise(0), "unet")
    o = Observation(torch.zeros(64, 20, 20), Noise(1).normal(0, torch.arange(64), (NUMBERS,), torch.float32))
    a = torch.stack([o.numbers[:, 0], -o.numbers[:, 1]], 1).repeat(1, 16)
    z, s = Noise(2).normal(0, torch.arange(64), (32,), torch.float32), torch.linspace(0.0, 1.0, 64)
    assert torch.equal(net(z, s, net.see(o)), torch.zeros(64, 32))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    before = flow_matching(net, o, a, z, s).item()
    fit(lambda b: flow_matching(net, o, a, z, s), lambda k: {}, optimiser, steps=60)
    assert flow_matching(net, o, a, z, s).item() < 0.4 * before
    again = PolicyNetwork(**net.architecture, noise=Noise(9))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(z, s, again.see(o)), net(z, s, net.see(o)))


def test_networks_that_cannot_be():
    for sizes, told in (((10, 2, 3, 8, 3), "halved 2 times"), ((16, 2, 3, 12, 2), "multiple of 8")):
        with pytest.raises(ValueError, match=told):
            PolicyNetwork(*sizes, Noise(0), "unet")
    with pytest.raises(ValueError, match="there are mlp, unet"):
        PolicyNetwork(16, 2, 3, 8, 2, Noise(0), "transformer")


def test_the_steps_of_a_flow_are_those_of_the_paper():
    times = exponential_times(4)
    sizes = [a - b for a, b in pairwise(times)]
    assert times[0] == 1.0 and times[-1] == 0.0 and len(times) == 5
    assert sizes[1] / sizes[0] == pytest.approx(math.exp(-1.0)) == sizes[3] / sizes[2]


@pytest.mark.parametrize("vehicle", [Car(4.0), Unicycle()])
def test_what_is_seen_moves_and_turns_with_the_world(vehicle):
    """The same observation, hence the same controls, from everything moved and turned together."""
    p = problem("boxes", vehicle, 7)
    x = p.start.expand(5, -1).clone()
    x[:, :2] += 0.0137  # off the sides of cells, where rounding decides
    x[:, 2] += torch.linspace(0.0, 5.0, 5)
    pose = Pose(1.1, 3.0, -8.0)
    a, b = (observe(y, q.goal.expand(5, 2), q) for y, q in ((x, p), (vehicle.moved(x, pose), p.moved(pose))))
    assert torch.equal(a.walls, b.walls) and 0.0 < float((a.walls > 0).float().mean()) < 1.0
    torch.testing.assert_close(a.numbers, b.numbers, rtol=0, atol=1e-5)


def test_the_map_has_the_left_in_its_last_rows():
    """A wall on the left of a car that looks along y."""
    world = World.parse("\n".join(["#........"] * 9))
    car = Car()
    p = Problem(world, car, car.at(torch.tensor([2.5, 4.5], dtype=torch.float64), 0.5 * math.pi), world.centre(8, 8))
    walls = observe(p.start[None], p.goal[None], p).walls[0]
    assert bool((walls[-2:] == 1).all()) and bool((walls[:16] == -1).all())


def test_a_mirror_exchanges_left_and_right():
    """What a mirrored car sees in the mirrored world is the mirror image of what it sees."""
    p = problem("maze", Car(4.0), 5)
    world = p.world
    x = states(p, 8)
    flipped = World(world.blocked.flip(0), world.cell)
    height = world.size[1]
    y = x * torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    y[:, 1] += height
    goal = torch.stack([p.goal[0], height - p.goal[1]])
    q = replace(
        p, world=flipped, start=y[0] * 0 + p.vehicle.at(flipped.centre(*flipped.cells(goal).tolist())), goal=goal
    )
    a = observe(x, p.goal.expand(8, 2), p)
    b = mirrored(Piece(observe(y, goal.expand(8, 2), q), torch.ones(8, 4)), torch.ones(8, dtype=torch.bool))
    assert torch.equal(a.walls, b.o.walls)
    torch.testing.assert_close(a.numbers, b.o.numbers, rtol=0, atol=1e-6)
    assert b.a[0].tolist() == [1.0, -1.0, 1.0, -1.0]


def test_the_expert_reaches_its_goal():
    """The agile car, from eight states along a way of the training map."""
    p = problem("large", Car(), 0)
    x = p.start.expand(8, -1).clone()
    x[:, 2] += torch.linspace(-0.6, 0.6, 8)
    fate = torch.zeros(8, dtype=torch.int64)
    for _ in range(1200):
        motion = p.vehicle.propagate(x, pursue(x, p)[:, None], 1, p)
        x, fate = motion.ends(), torch.where(fate == 0, motion.fate, fate)
        if bool((fate > 0).all()):
            break
    assert fate.tolist() == [REACHED] * 8


def test_no_line_of_sight_goes_through_a_wall():
    world = World.parse("...\n.#.\n...")
    car = Car()
    p = Problem(world, car, car.at(world.centre(0, 0)), world.centre(2, 2))
    a = world.centre(0, 0)[None]
    assert seen(a, world.centre(0, 2)[None], p).tolist() == [True]
    assert seen(a, world.centre(2, 2)[None], p).tolist() == [False]


def test_pieces_follow_their_way():
    """Controls after the end of a way are none; the target in hindsight is on the way."""
    s = Settings(goals=1, starts=4, longest=120, horizon=16, hindsight=1.0)
    data = drives(s, Noise(0), layout("large"))
    assert float(data.controls.abs().max()) <= 1.0
    end = int(data.last[0])
    p = problem("large", Car(), 0)
    u = torch.tensor([[0.0, 0.5, 0.9]], dtype=torch.float64)
    piece = pieces(data, torch.tensor([end - 5]), u, p, s)
    a = piece.a.view(16, 2)
    torch.testing.assert_close(a[:6].double(), data.controls[end - 5 : end + 1], rtol=0, atol=1e-6)
    assert float(a[6:].abs().max()) == 0.0 and float(piece.o.numbers[0, 2]) < 0.5


def test_a_tree_grows_by_a_policy(untrained):
    """Same noise, same tree; the policy is asked for every chunk of eight."""
    p = problem("large", Car(), 3)
    s = planners.Settings(eps=0.1, metric="position", batch=8)
    a, b = (planners.Planner(p, s, Noise(5), untrained) for _ in range(2))
    for tree in (a, b):
        tree.advance()
        tree.advance()
    assert torch.equal(a.tree.x, b.tree.x) and a.counts.calls > 0


def test_weights_go_to_a_file_and_back(untrained, tmp_path):
    file = tmp_path / "policy.safetensors"
    weights.write(file, untrained.net, {"architecture": untrained.net.architecture, "spread": untrained.spread})
    back = load(file, calls=2)
    p = problem("large", Car(), 0)
    x = states(p, 4)
    a, b = (f(x, p.goal.expand(4, 2), p, Noise(0), 0) for f in (untrained, back))
    assert back.spread == untrained.spread
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)  # half precision
    weights.write(file, untrained.net, {"architecture": untrained.net.architecture})
    with pytest.raises(ValueError, match=r"policy\.safetensors has no spread"):
        load(file)
