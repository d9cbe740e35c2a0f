"""Vehicles: closed forms of their motion, and walls against a dense look at every point."""

import math

import numpy as np
import pytest
import torch

from molsamp.engine import Noise
from molsamp.planning.audit import resimulate, touching
from molsamp.planning.generators import boxes, maze
from molsamp.planning.problems import Problem
from molsamp.planning.vehicles import (
    DIVERGED,
    HIT,
    RAN,
    REACHED,
    Body,
    Car,
    DoubleIntegrator,
    OwnVehicle,
    Trailer,
    Unicycle,
)
from molsamp.planning.worlds import Pose, World

F64 = torch.float64
ALL = [Car(), Car(C2=4.0), Unicycle(), Trailer(), DoubleIntegrator()]
NAMES = ["agile car", "hard car", "unicycle", "trailer", "double integrator"]


def f64(values):
    return torch.tensor(values, dtype=F64)


def random_controls(vehicle, n, steps, hold=10, seed=3):
    u = 2 * Noise(seed).uniform(0, torch.arange(n), (-(-steps // hold), vehicle.controls)) - 1
    return (u * f64(vehicle.body.rate)).repeat_interleave(hold, 1)[:, :steps]


def random_states(vehicle, n, seed=4):
    """Anywhere within the bounds, positions in [0, 1]."""
    u = Noise(seed).uniform(0, torch.arange(n), (len(vehicle.body.names),))
    low, high = (
        f64([p if math.isfinite(p) else d for p in b]) for b, d in ((vehicle.body.low, 0), (vehicle.body.high, 1))
    )
    return low + u * (high - low)


def test_speed_on_a_straight_line():
    """Without rolling resistance and the motor's loss: v = V tanh(t sqrt(Cm1 D Cr2) / m), V = sqrt(Cm1 D / Cr2)."""
    car = Car(Cr0=0.0, Cm2=0.0)
    start = car.at(f64([1.0, 2.0]), 0.5)
    start[4] = D = 0.4
    x = car.propagate(start[None], torch.zeros(1, 1, 2, dtype=F64), 100).states[0]
    V, rate = (car.Cm1 * D / car.Cr2) ** 0.5, (car.Cm1 * D * car.Cr2) ** 0.5 / car.mass
    t = torch.arange(101, dtype=F64) * car.dt
    torch.testing.assert_close(x[:, 3], V * torch.tanh(rate * t), rtol=1e-7, atol=1e-9)
    way = V / rate * torch.log(torch.cosh(rate * t))
    torch.testing.assert_close(
        (x[:, :2] - f64([1.0, 2.0])) @ f64([math.cos(0.5), math.sin(0.5)]), way, rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("C2", [15.5, 4.0])
def test_a_steered_car_goes_in_a_circle(C2):
    """Without slip, of radius 1 / (C2 delta), whatever the speed."""
    car = Car(C2=C2, C1=0.0)
    start = car.at(f64([0.0, 0.0]))
    start[3:] = f64([1.5, 0.3, 0.25])
    x = car.propagate(start[None], torch.zeros(1, 1, 2, dtype=F64), 200).states[0]
    radius = 1 / (C2 * 0.25)
    gap = (x[:, :2] - f64([0.0, radius])).norm(dim=1) - radius
    assert float(gap.abs().max()) < 2e-5 and float(x[:, 2].max()) > 2


@pytest.mark.parametrize("vehicle", ALL, ids=NAMES)
def test_fourth_order(vehicle):
    """Half the step, a sixteenth of the error: between 11 and 28 (8 and 32 are orders 3 and 5)."""
    start, u = random_states(vehicle, 6), 0.05 * random_controls(vehicle, 6, 1)
    start[:, 3] = start[:, 3].abs() * 0.1 + 0.5  # no bound is met, and nobody stops
    start[:, 4:] *= 0.3
    make = type(vehicle)
    extra = {"C2": vehicle.C2} if isinstance(vehicle, Car) else {}

    def end(halvings):
        dt = 0.16 / 2**halvings
        return make(dt=dt, **extra).propagate(start, u, 4 * 2**halvings).ends()

    a, b, truth = end(0), end(1), end(4)
    error, finer = ((e - truth).abs().amax(0) for e in (a, b))
    matters = finer > 1e-11
    assert all(11 < float(r) < 28 for r in (error / finer)[matters])
    assert bool(matters.any()) != isinstance(vehicle, DoubleIntegrator)  # a parabola has no error at all


@pytest.mark.parametrize("vehicle", ALL, ids=NAMES)
def test_a_batch_is_its_members(vehicle):
    """Bit for bit, with durations of their own, one held control or one for each step."""
    x, u = random_states(vehicle, 9), random_controls(vehicle, 9, 30)
    n = torch.arange(9) * 3
    together = vehicle.propagate(x, u, n)
    for b in range(9):
        alone = vehicle.propagate(x[b : b + 1], u[b : b + 1, : 3 * b + 1], 3 * b)
        assert torch.equal(alone.states[0], together.states[b, : 3 * b + 1]) and int(together.steps[b]) == 3 * b
    held = vehicle.propagate(x, u[:, :1], 30).states
    assert torch.equal(held, vehicle.propagate(x, u[:, :1].expand(-1, 30, -1), 30).states)


@pytest.mark.parametrize("vehicle", ALL, ids=NAMES)
def test_against_a_tenth_of_the_step_by_other_code(vehicle):
    """Random controls, six seconds, bounds met, cars that stop and go: within 2e-4 in every state."""
    u = random_controls(vehicle, 6, 300)
    x = vehicle.at(f64([0.0, 0.0])).expand(6, -1).clone()
    motion = vehicle.propagate(x, u, 300)
    for b in range(6):
        fine = torch.from_numpy(resimulate(vehicle, x[b].numpy(), u[b].numpy())[::10])
        assert float((fine - motion.states[b]).abs().max()) < 2e-4
    if isinstance(vehicle, Car):
        assert bool((motion.states[:, 50:, 3] == 0).any())


@pytest.mark.parametrize("vehicle", ALL, ids=NAMES)
def test_bounds_are_kept(vehicle):
    """Also under controls a hundred times too large, which act as the largest that are allowed."""
    u = random_controls(vehicle, 20, 200)
    x = vehicle.propagate(random_states(vehicle, 20), 100 * u, 200).states
    for i, name in enumerate(vehicle.body.names):
        if i > 1 and i not in vehicle.body.headings:
            assert float(x[..., i].min()) >= vehicle.body.low[i], name
            assert float(x[..., i].max()) <= vehicle.body.high[i], name
    first = vehicle.body.actuators[0]
    jumps = (x[:, 1:, first] - x[:, :-1, first]).abs().max()
    assert float(jumps) == pytest.approx(vehicle.body.rate[0] * vehicle.dt, rel=1e-9)


@pytest.mark.parametrize("vehicle", ALL, ids=NAMES)
def test_motion_moves_with_the_frame(vehicle):
    """Start and walls moved and turned: so is the motion, and its fate (by a quarter for the double integrator)."""
    world, quarter = boxes(Noise(1)), isinstance(vehicle, DoubleIntegrator)
    pose = Pose(math.pi / 2 if quarter else 0.7, 3.0, -8.0)
    starts = torch.stack([vehicle.at(world.centre(*c), 0.3) for c in world.free.tolist()[:60]])
    u = random_controls(vehicle, 60, 60)
    problem = Problem(world, vehicle, starts[0], world.centre(*world.free[50].tolist()))
    a = vehicle.propagate(starts, u, 60, problem)
    turned = torch.stack([-u[..., 1], u[..., 0]], -1) if quarter else u
    b = vehicle.propagate(vehicle.moved(starts, pose), turned, 60, problem.moved(pose))
    assert torch.equal(a.steps, b.steps) and torch.equal(a.fate, b.fate)
    assert {RAN, HIT} <= set(a.fate.tolist())
    for i in range(60):
        k = int(a.steps[i]) + 1
        torch.testing.assert_close(vehicle.moved(a.states[i, :k], pose), b.states[i, :k], rtol=0, atol=1e-9)
    f, g = vehicle.features(a.ends()), vehicle.features(b.ends())
    torch.testing.assert_close(torch.cdist(f, f), torch.cdist(g, g), rtol=0, atol=1e-6)


def test_a_mirrored_car_mirrors():
    car, world = Car(), maze(Noise(2))
    mirror = World(world.blocked.flip(0))
    x = torch.stack([car.at(world.centre(*c), 0.4) for c in world.free.tolist()[:40]])
    u, image = random_controls(car, 40, 50), x.clone()
    image[:, 1], image[:, 2] = 13.0 - x[:, 1], -x[:, 2]
    goal = world.centre(*world.free[9].tolist())
    goal_image = torch.stack([goal[0], 13.0 - goal[1]])
    a = car.propagate(x, u, 50, Problem(world, car, x[0], goal))
    b = car.propagate(image, u * f64([1.0, -1.0]), 50, Problem(mirror, car, image[0], goal_image))
    assert torch.equal(a.steps, b.steps) and torch.equal(a.fate, b.fate)


@pytest.mark.parametrize("vehicle", [Car(), Trailer(), DoubleIntegrator()], ids=["car", "trailer", "double integrator"])
def test_clearance_against_every_point_of_the_rim(vehicle):
    """1e5 random poses: many points of each disc looked up in the grid, and the grid's corners in the discs."""
    world = boxes(Noise(3)).moved(Pose(0.4, -3.0, 1.0))
    x = random_states(vehicle, 100_000)
    x[:, :2] = world.place(torch.cat([x[:, :1] * 24 - 2, x[:, 1:2] * 24 - 2], 1))
    clearance = vehicle.clearance(x, world)
    problem = Problem(
        world, vehicle, vehicle.at(world.centre(*world.free[0].tolist())), world.centre(*world.free[9].tolist())
    )
    brute = torch.from_numpy(touching(problem, x.numpy()))
    assert torch.equal(brute, clearance < 0) and 0.2 < float(brute.double().mean()) < 0.8


def test_no_wall_is_jumped_over():
    """A wall thinner than a step, between two free cells: a vehicle at 20 m/s and dt = 0.1 s is stopped by it."""
    fast = DoubleIntegrator(speed=20.0, dt=0.1)
    blocked = torch.zeros((40, 400), dtype=torch.bool)
    blocked[:, 200] = True
    world = World(blocked, cell=0.25)
    x = torch.stack([f64([49.2 - 0.05 * k, 5.0, 20.0, 0.0]) for k in range(17)])
    problem = Problem(world, fast, x[0], world.centre(20, 300))
    motion = fast.propagate(x, torch.zeros(17, 1, 2, dtype=F64), 4, problem)
    assert bool((motion.fate == HIT).all()) and int(motion.steps.max()) == 0


def test_no_motion_that_runs_touches_a_wall():
    """Random motions in a maze, looked at ten times as finely by other code, up to where they were stopped."""
    car, world = Car(), maze(Noise(5))
    starts = torch.stack([car.at(world.centre(*c), 1.6 * k) for k in range(4) for c in world.free.tolist()])
    starts[:, 3:] = random_states(car, len(starts))[:, 3:]
    problem = Problem(world, car, starts[0], world.centre(*world.free[40].tolist()))
    free, hits = [], 0
    for seed in range(1500 // len(starts) + 1):
        u = random_controls(car, len(starts), 20, seed=seed)
        motion = car.propagate(starts, u, 20, problem)
        for b in range(0, len(starts), 10):
            k = int(motion.steps[b])
            fine = resimulate(car, starts[b].numpy(), u[b, : k + 1].numpy())
            assert not touching(problem, fine[: 10 * k + 1]).any()
            if motion.fate[b] == HIT:
                hits += 1
                free.append(not touching(problem, fine).any())
    assert hits > 25 and np.mean(free) < 0.1  # nor is a motion stopped that would not touch, but for the margin


def test_fates():
    """A goal ends a motion where it is first met; a state that is not a number ends it, and only it."""
    slow = DoubleIntegrator()
    world = World(torch.zeros((10, 10), dtype=torch.bool))
    problem = Problem(world, slow, f64([1.005, 5.0, 1.0, 0.0]), f64([3.0, 5.0]))
    motion = slow.propagate(problem.start[None], torch.zeros(1, 1, 2, dtype=F64), 300, problem)
    assert motion.fate.tolist() == [REACHED] and motion.steps.tolist() == [75]  # the first within 0.5 m
    assert motion.simulated == 75 and float(motion.ends()[0, 0]) == pytest.approx(2.505)
    own = OwnVehicle(lambda x, u: torch.where(x[:, :1] > 1.01, x * torch.nan, x + 0.01), slow.body)
    bad = own.propagate(f64([[1.0, 5.0, 0.0, 0.0], [0.5, 5.0, 0.0, 0.0]]), torch.zeros(2, 1, 2, dtype=F64), 5, problem)
    assert bad.fate.tolist() == [DIVERGED, RAN] and bad.steps.tolist() == [2, 5]


def test_a_vehicle_of_ones_own():
    """The double integrator written as a function: the same motion, hits and goals as the kernel's."""
    ours, world = DoubleIntegrator(), boxes(Noise(1))
    dt = ours.dt

    def step(x, u):
        return torch.cat([x[:, :2] + dt * x[:, 2:] + 0.5 * dt**2 * u, x[:, 2:] + dt * u], 1)

    own = OwnVehicle(step, Body(**{**vars(ours.body), "actuators": ()}))
    starts = torch.stack([ours.at(world.centre(*c)) for c in world.free.tolist()[:80]])
    u = random_controls(ours, 80, 1).expand(-1, 45, -1)
    goal = world.centre(*world.free[40].tolist())
    a = ours.propagate(starts, u, 45, Problem(world, ours, starts[0], goal))
    b = own.propagate(starts, u, 45, Problem(world, own, starts[0], goal))
    assert torch.equal(a.fate, b.fate) and torch.equal(a.steps, b.steps) and {RAN, HIT, REACHED} == set(a.fate.tolist())
    torch.testing.assert_close(a.ends(), b.ends(), rtol=0, atol=1e-12)


def test_too_few_controls():
    with pytest.raises(ValueError, match="3 controls for 5 steps"):
        Car().propagate(torch.zeros(1, 6, dtype=F64), torch.zeros(1, 3, 2, dtype=F64), 5)
