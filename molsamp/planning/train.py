"""Training of the policy that is shipped: `python -m molsamp.planning.train` makes the file again.

The expert drives cars of several turning radii on ONE map, the public layout "large", to goals and from states drawn at
random; now and then it is disturbed, so that there is something to learn of coming back (Laskey et al., "DART", CoRL
2017). The target of a piece of its way is the goal it drove to, or a point that it came to later (Andrychowicz et al.,
"Hindsight experience replay", NeurIPS 2017). Half of the pieces are seen in a mirror.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from molsamp.engine.noise import Noise
from molsamp.learn import weights
from molsamp.learn.fit import fit
from molsamp.learn.networks import count
from molsamp.planning.expert import pursue, waypoint
from molsamp.planning.generators import layout
from molsamp.planning.policy import Observation, Policy, PolicyNetwork, flow_matching, observe
from molsamp.planning.problems import Problem
from molsamp.planning.vehicles import HIT, RAN, Car
from molsamp.planning.worlds import World

WEIGHTS = Path(__file__).parent / "weights"
TURNING = (4.0, 7.0, 11.0, 15.5)  # C2 of the cars that are driven
MIRROR = (1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0)  # signs of a car's `Observation.numbers` in a mirror
BODIES: dict[str, dict[str, int]] = {"mlp": {"width": 512, "depth": 3}, "unet": {"width": 32, "depth": 3}}
BEFORE = 40  # steps before a touch of a wall that teach nothing


@dataclass(frozen=True)
class Settings:
    """How much is driven, and how the network is trained.

    Args:
        goals: for each car.
        starts: for each goal.
        longest: steps of a drive.
        horizon: H, controls of an answer.
        body, width, depth: of the network.
        steps: gradient steps of AdamW.
        batch: pieces a step.
        rate: largest learning rate, which falls to 0 along half a cosine.
        average: decay of the running average of the weights, a step.
        hindsight: share of pieces whose target is a later point of the way.
        disturbed: share of the time in which a car is disturbed.
    """

    goals: int = 24
    starts: int = 32
    longest: int = 900
    horizon: int = 64
    body: str = "mlp"
    width: int = 512
    depth: int = 3
    steps: int = 12_000
    batch: int = 256
    rate: float = 1e-3
    average: float = 0.999
    hindsight: float = 0.6
    disturbed: float = 0.3


class Drives(NamedTuple):
    """Ways of the expert, one after the other: row i is a state, what the expert did there, and where it ended.

    Args:
        states: (N, s).
        controls: in units of the rates, within -1..1, (N, m).
        goal: m, (N, 2).
        last: row in which the way of row i ends, (N,).
        C2: of the car, (N,).
    """

    states: Float[Tensor, "N s"]
    controls: Float[Tensor, "N m"]
    goal: Float[Tensor, "N 2"]
    last: Int[Tensor, " N"]
    C2: Float[Tensor, " N"]


def drives(settings: Settings, noise: Noise, world: World) -> Drives:
    """Let the expert drive.

    Args:
        settings: how much.
        noise: goals, starts, disturbances.
        world: where.
    """
    parts: list[Drives] = []
    rows = 0
    for j, C2 in enumerate(TURNING):
        goals = noise.child("goals").integers(j, torch.arange(settings.goals), (), len(world.free))
        for k, goal in enumerate(goals.tolist()):
            car, stream = Car(C2), noise.child(f"{j}-{k}")
            centre = world.centre(*world.free[goal].tolist())
            problem = Problem(world, car, car.at(centre), centre)
            for way in _drive(problem, _starts(problem, settings.starts, stream), settings, stream):
                n = len(way[0])
                parts.append(Drives(*way, centre.expand(n, 2), torch.full((n,), rows + n - 1), torch.full((n,), C2)))
                rows += n
    return Drives(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _starts(problem: Problem, n: int, noise: Noise) -> Float[Tensor, "n s"]:
    """States anywhere in the free cells, headed along the way within 0.8 rad, clear of walls."""
    u = noise.child("starts").uniform(0, torch.arange(4 * n), (6,))
    cell = problem.world.free[(u[:, 0] * len(problem.world.free)).long()]
    x = problem.world.place((cell.flip(-1) + 0.5 + 0.5 * (u[:, 1:3] - 0.5)) * problem.world.cell)
    states = torch.zeros((len(u), 6), dtype=torch.float64)
    states[:, :2] = x
    way = waypoint(x, problem) - x
    states[:, 2] = torch.atan2(way[:, 1], way[:, 0]) + 1.6 * (u[:, 3] - 0.5)
    states[:, 3], states[:, 5] = 2.0 * u[:, 4], 0.6 * (u[:, 5] - 0.5)
    return states[problem.vehicle.clearance(states, problem.world) > 0.05][:n]


def _drive(
    problem: Problem, states: Tensor, settings: Settings, noise: Noise
) -> list[tuple[Float[Tensor, "n s"], Float[Tensor, "n m"]]]:
    """(states, controls) of each drive up to its goal, or to `BEFORE` steps before it touches a wall."""
    rate = torch.tensor(problem.vehicle.body.rate, dtype=torch.float64)
    ids, seen, done, fate = torch.arange(len(states)), [], [], []
    running = torch.ones(len(states), dtype=torch.bool)
    for k in range(settings.longest):
        u = (pursue(states, problem) / rate).clamp(-1.0, 1.0)
        burst = noise.child("burst").uniform(k // 25, ids, (3,))  # half a second each
        shift = torch.where((burst[:, 0] < settings.disturbed)[:, None], 1.2 * burst[:, 1:] - 0.6, 0.0)
        motion = problem.vehicle.propagate(states, ((u + shift) * rate)[:, None], 1, problem)
        seen.append(states)
        done.append(u)
        fate.append(torch.where(running, motion.fate, RAN))
        states = motion.ends()
        running &= motion.fate == RAN
        if not running.any():
            break
    x, u, f = torch.stack(seen, 1), torch.stack(done, 1), torch.stack(fate, 1)
    ways = []
    for b in range(len(x)):
        stop = torch.nonzero(f[b] != RAN)[:, 0]
        n = len(f[b]) if not len(stop) else int(stop[0]) + 1
        n = n - BEFORE if len(stop) and f[b, stop[0]] == HIT else n
        if n > 1:
            ways.append((x[b, :n], u[b, :n]))
    return ways


class Piece(NamedTuple):
    """A batch of training: what is seen, and the controls that follow."""

    o: Observation
    a: Float[Tensor, "B Hm"]


def pieces(
    data: Drives, rows: Int[Tensor, " B"], u: Float[Tensor, "B 3"], problem: Problem, settings: Settings
) -> Piece:
    """Pieces of ways that begin at rows, some with targets in hindsight, some in a mirror.

    Args:
        data: the ways.
        rows: where.
        u: uniform numbers, for the hindsight, how far it looks, and the mirror.
        problem: any on the map; its walls are looked at.
        settings: horizon, hindsight.
    """
    after = rows[:, None] + torch.arange(settings.horizon)
    ended = after > data.last[rows, None]
    a = torch.where(ended[..., None], 0.0, data.controls[after.minimum(data.last[rows, None])])
    later = (rows + 25 + (u[:, 1] * 400).long()).minimum(data.last[rows])
    target = torch.where((u[:, 0] < settings.hindsight)[:, None], data.states[later, :2], data.goal[rows])
    o = observe(data.states[rows], target, problem)
    numbers = torch.cat([o.numbers[:, :-1], data.C2[rows, None].log().float()], 1)
    return mirrored(Piece(Observation(o.walls, numbers), a.flatten(1).float()), u[:, 2] < 0.5)


def mirrored(piece: Piece, which: Bool[Tensor, " B"]) -> Piece:
    """A car's pieces, those of `which` with left and right exchanged."""
    walls = torch.where(which[:, None, None], piece.o.walls.flip(1), piece.o.walls)
    numbers = torch.where(which[:, None], piece.o.numbers * torch.tensor(MIRROR), piece.o.numbers)
    turned = piece.a * torch.tensor([1.0, -1.0]).repeat(piece.a.shape[1] // 2)
    return Piece(Observation(walls, numbers), torch.where(which[:, None], turned, piece.a))


def train(settings: Settings, noise: Noise, say: Callable[[str], None] = print) -> tuple[Policy, dict[str, Any]]:
    """A policy from nothing, and its notes."""
    world = layout("large")
    data = drives(settings, noise.child("drives"), world)
    spread = tuple(data.controls.std(0).tolist())
    data = data._replace(controls=data.controls / torch.tensor(spread, dtype=torch.float64))
    car = Car()
    centre = world.centre(*world.free[0].tolist())
    problem = Problem(world, car, car.at(centre), centre)
    H, m = settings.horizon, car.controls
    net = PolicyNetwork(H, m, len(MIRROR), settings.width, settings.depth, noise.child("weights"), settings.body)
    say(f"{len(data.states)} steps of {int((data.last[1:] != data.last[:-1]).sum()) + 1} drives; {count(net)} weights")
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    stream, ids = noise.child("batches"), torch.arange(settings.batch)

    def draw(k: int) -> dict[str, Tensor]:
        u = stream.uniform(k, ids, (5,))
        piece = pieces(data, (u[:, 0] * len(data.states)).long(), u[:, 1:4], problem, settings)
        z = stream.child("z").normal(k, ids, (H * m,), torch.float32)
        return {"walls": piece.o.walls, "numbers": piece.o.numbers, "a": piece.a, "z": z, "s": u[:, 4].float()}

    def miss(batch: dict[str, Tensor]) -> Tensor:
        o = Observation(batch["walls"], batch["numbers"])
        return flow_matching(net, o, batch["a"], batch["z"], batch["s"])

    def each() -> None:
        average.update_parameters(net)
        rates.step()

    began, tenth = time.process_time(), max(1, settings.steps // 10)
    for done in range(0, settings.steps, tenth):
        found = fit(miss, partial(lambda first, k: draw(first + k), done), optimiser, steps=tenth, each=each)
        say(f"step {done + tenth}: loss {found.loss:.4f}, {time.process_time() - began:.0f} CPU s")
    net.load_state_dict(average.module.state_dict())
    notes = {"settings": asdict(settings), "loss": found.loss, "spread": spread}
    return Policy(net.eval().requires_grad_(False), spread=spread), notes


def load(file: Path = WEIGHTS / "car.safetensors", calls: int = 1) -> Policy:
    """The policy that is shipped, or one of a file that `main` wrote.

    Raises:
        ValueError: as `learn.weights.read` and `install`.
    """
    told, tensors = weights.read(file, ("architecture", "spread"))
    net = PolicyNetwork(**told["architecture"], noise=Noise(0))
    weights.install(net, tensors, file)
    return Policy(net, calls, tuple(told["spread"]))


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--body", choices=BODIES, default="mlp", help="of the network; a U-Net takes 9 times as long")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "car.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(steps=args.steps, body=args.body, **BODIES[args.body])
    policy, notes = train(settings, Noise(args.seed))
    command = f"python -m molsamp.planning.train --seed {args.seed} --steps {args.steps} --body {args.body}"
    notes |= {"seed": args.seed, "command": command}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights.write(args.out, policy.net, {"architecture": policy.net.architecture, **notes})


if __name__ == "__main__":
    main()
