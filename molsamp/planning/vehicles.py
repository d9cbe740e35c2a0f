"""Vehicles: what moves, and where it touches a wall.

A vehicle's state begins with its position (x, y) in m. Each control is the rate of one state, its actuator; rates and
actuators are bounded, and both bounds are kept: a rate is cut to its limit, and held over a step at what the actuator
has left. `propagate` is the only motion in this room: planners, policies and experts all go through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.planning.worlds import Pose, World

if TYPE_CHECKING:
    from molsamp.planning.problems import Problem

MARGIN = 2e-3  # m that a vehicle keeps from walls, more than what its integration and collision check may miss
RAN, HIT, REACHED, DIVERGED = range(4)


@dataclass(frozen=True)
class Body:
    """What planners must know of a vehicle, state by state.

    Args:
        names: of the states, position first.
        low: least value of each state; those of x and y count for nothing.
        high: largest value.
        weights: of each state in the planner's metric, 1/unit (position in 1/m); a heading weighs by its cosine and
            sine.
        rate: largest size of each control.
        actuators: the state that each control is the rate of; an `OwnVehicle` needs none.
        headings: states that are angles of the plane, rad.
        vectors: first of two states that are a vector of the plane.
        discs: (heading that it follows or -1, offset along it in m, radius in m) of each disc the vehicle consists of.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    weights: tuple[float, ...]
    rate: tuple[float, ...]
    actuators: tuple[int, ...] = ()
    headings: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()
    discs: tuple[tuple[int, float, float], ...] = ((-1, 0.0, 0.1),)


class Motion(NamedTuple):
    """What became of B vehicles in at most n steps.

    Args:
        states: along the way, the start first, (B, n + 1, s); row b holds steps[b] + 1 of them, the rest is not to be
            read.
        steps: that stand: all of them, those before the first touch of a wall, or those up to the goal, (B,).
        fate: RAN, HIT (step steps + 1 touches a wall), REACHED (step steps is in the goal) or DIVERGED, (B,).
        simulated: steps that were computed, all vehicles together.
    """

    states: Float[Tensor, "B n+1 s"]
    steps: Int[Tensor, " B"]
    fate: Int[Tensor, " B"]
    simulated: int

    def ends(self) -> Float[Tensor, "B s"]:
        """The last state that stands."""
        return self.states[torch.arange(len(self.steps)), self.steps]


class Vehicle:
    """What all vehicles share; a vehicle is a `Body`, a step `dt` in s, and a kernel or a function that moves it."""

    kind: ClassVar[int]
    dt: float
    parameters: tuple[float, ...] = ()

    @cached_property
    def body(self) -> Body:
        """States, bounds, weights and discs."""
        raise NotImplementedError  # each vehicle tells its own; a field of `OwnVehicle`, so not an abstract method

    @property
    def controls(self) -> int:
        """How many controls there are."""
        return len(self.body.rate)

    def features(self, states: Float[Tensor, "*n s"]) -> Float[Tensor, "*n f"]:
        """Coordinates in which the distance of two states is Euclidean: weighted, headings as cosine and sine."""
        columns = []
        for i, w in enumerate(self.body.weights):
            angle = i in self.body.headings
            columns += [w * states[..., i].cos(), w * states[..., i].sin()] if angle else [w * states[..., i]]
        return torch.stack(columns, -1)

    def moved(self, states: Float[Tensor, "*n s"], pose: Pose) -> Float[Tensor, "*n s"]:
        """States after a rigid motion of the plane."""
        out = states.clone()
        out[..., :2] = pose.apply(states[..., :2])
        for i in self.body.vectors:
            out[..., i : i + 2] = pose.turn(states[..., i : i + 2])
        for i in self.body.headings:
            out[..., i] += pose.angle
        return out

    def at(self, position: Float[Tensor, "2"], heading: float = 0.0) -> Float[Tensor, " s"]:
        """The vehicle at rest somewhere."""
        state = torch.zeros(len(self.body.names), dtype=torch.float64)
        state[:2] = position
        state[list(self.body.headings)] = heading
        return state

    def propagate(
        self,
        states: Float[Tensor, "B s"],
        controls: Float[Tensor, "B h m"],
        n: int | Int[Tensor, " B"],
        problem: Problem | None = None,
    ) -> Motion:
        """Move B vehicles, each until its steps are done, it touches a wall, or is in the goal.

        Args:
            states: at the start, taken to be free of walls.
            controls: by step, h >= n; or one that is held for all steps, h = 1.
            n: steps of each.
            problem: walls and goal; None for the empty plane.

        Raises:
            ValueError: if there are fewer controls than steps.
        """
        steps = torch.full((len(states),), n) if isinstance(n, int) else n
        last = int(steps.max()) if len(steps) else 0
        if 1 != controls.shape[1] < last:
            raise ValueError(f"{controls.shape[1]} controls for {last} steps: give one that is held, or one for each")
        x = np.zeros((len(states), last + 1, states.shape[1]))
        x[:, 0] = states.numpy()
        fate, done = np.zeros(len(states), np.int8), np.zeros(len(states), np.int64)
        self._fill(x, controls.contiguous().numpy(), steps.numpy(), self.walls(problem), fate, done)
        simulated = int(done.sum() + (fate == HIT).sum() + (fate == DIVERGED).sum())
        return Motion(torch.from_numpy(x), torch.from_numpy(done), torch.from_numpy(fate).long(), simulated)

    def clearance(self, states: Float[Tensor, "B s"], world: World) -> Float[Tensor, " B"]:
        """Distance between the vehicle and the nearest wall, m, cut at about a cell; negative where they overlap."""
        from molsamp.planning import kernels

        discs, _, blocked, pose, reach, _ = self.walls(world)
        out = np.empty(len(states))
        kernels.clearances(discs, blocked, pose, reach, states.contiguous().numpy(), out)
        return torch.from_numpy(out)

    def walls(self, where: Problem | World | None) -> tuple[Any, ...]:
        """What the kernels' collision check reads: discs, margin, walls, pose, cells to look at, goal."""
        discs = np.array(self.body.discs, dtype=np.float64)
        if where is None:  # one free cell without an end
            return discs, MARGIN, np.zeros((1, 1), np.bool_), np.array([-1e12, -1e12, 1.0, 0.0, 2e12]), 1, _goal(None)
        world = where if isinstance(where, World) else where.world
        angle, x, y = world.pose
        pose = np.array([x, y, math.cos(angle), math.sin(angle), world.cell])
        reach = math.ceil(1.5 * (discs[:, 2].max() + MARGIN) / world.cell)  # 1.5: discs are widened between steps
        return discs, MARGIN, world.blocked.numpy(), pose, reach, _goal(None if isinstance(where, World) else where)

    def _fill(self, x, u, n, walls, fate, done) -> None:
        from molsamp.planning import kernels

        kernels.propagate(self.kind, *self._constants, *walls, x, u, n, fate, done)

    @cached_property
    def _constants(self) -> tuple[Any, ...]:
        b = self.body
        floats = [np.array(values, dtype=np.float64) for values in (b.rate, b.low, b.high)]
        return np.array(self.parameters, dtype=np.float64), self.dt, np.array(b.actuators, dtype=np.int64), *floats


@dataclass(frozen=True)
class Car(Vehicle):
    """The 1:43 race car of DiTree (methods/ditree.md, section 5): x, y, psi, v, throttle D and steering angle delta.

    F = (Cm1 - Cm2 v) D - Cr2 v^2 - Cr0 tanh(5 v),  v' = F cos(C1 delta) / mass,  psi' = C2 v delta,
    (x', y') = v (cos, sin)(psi + C1 delta),  D' = u1,  delta' = u2.

    It has no reverse: its brakes stop it.

    Args:
        C2: turning, 1/m: the turning radius at full steering is 1 / (0.4 C2); 15.5 is agile, 4 hard.
        dt: s.
        mass: kg.
        C1: slip.
        Cm1: force of the motor at rest, N.
        Cm2: its loss with speed, N s/m.
        Cr0: rolling resistance, N.
        Cr2: drag, N s^2/m^2.
    """

    C2: float = 15.5
    dt: float = 0.02
    mass: float = 0.043
    C1: float = 0.5
    Cm1: float = 0.28
    Cm2: float = 0.05
    Cr0: float = 0.011
    Cr2: float = 0.006
    kind = 0

    @cached_property
    def parameters(self) -> tuple[float, ...]:  # type: ignore[override]
        """In the order of the kernel."""
        return self.mass, self.C1, self.C2, self.Cm1, self.Cm2, self.Cr0, self.Cr2

    @cached_property
    def body(self) -> Body:
        """Speed in [0, 5] m/s, throttle in [-1, 1], steering in [-0.4, 0.4] rad; two discs."""
        return Body(
            names=("x", "y", "psi", "v", "D", "delta"),
            low=(-math.inf, -math.inf, -math.pi, 0.0, -1.0, -0.4),
            high=(math.inf, math.inf, math.pi, 5.0, 1.0, 0.4),
            weights=(1.0, 1.0, 0.15, 0.1, 0.05, 0.1),
            rate=(10.0, 2.0),
            actuators=(4, 5),
            headings=(2,),
            discs=((2, 0.075, 0.1), (2, -0.075, 0.1)),
        )


@dataclass(frozen=True)
class Unicycle(Vehicle):
    """x, y, psi, speed v and turning speed omega; controls are the accelerations of both."""

    dt: float = 0.02
    kind = 1

    @cached_property
    def body(self) -> Body:
        """Speed in [0, 2] m/s, turning in [-3, 3] rad/s."""
        return Body(
            names=("x", "y", "psi", "v", "omega"),
            low=(-math.inf, -math.inf, -math.pi, 0.0, -3.0),
            high=(math.inf, math.inf, math.pi, 2.0, 3.0),
            weights=(1.0, 1.0, 0.15, 0.1, 0.05),
            rate=(2.0, 6.0),
            actuators=(3, 4),
            headings=(2,),
        )


@dataclass(frozen=True)
class Trailer(Vehicle):
    """A car that pulls a trailer: x, y, psi, v, delta and the trailer's heading theta, hitched at the car's rear axle.

    psi' = v tan(delta) / wheelbase, theta' = v sin(psi - theta) / hitch. It does not reverse.

    Args:
        wheelbase: m.
        hitch: from the rear axle to the trailer's axle, m.
        dt: s.
    """

    wheelbase: float = 0.25
    hitch: float = 0.3
    dt: float = 0.02
    kind = 2

    @cached_property
    def parameters(self) -> tuple[float, ...]:  # type: ignore[override]
        """Wheelbase and hitch."""
        return self.wheelbase, self.hitch

    @cached_property
    def body(self) -> Body:
        """Speed in [0, 2] m/s, steering in [-0.6, 0.6] rad; one disc for the car, one for the trailer."""
        return Body(
            names=("x", "y", "psi", "v", "delta", "theta"),
            low=(-math.inf, -math.inf, -math.pi, 0.0, -0.6, -math.pi),
            high=(math.inf, math.inf, math.pi, 2.0, 0.6, math.pi),
            weights=(1.0, 1.0, 0.15, 0.1, 0.1, 0.1),
            rate=(2.0, 2.0),
            actuators=(3, 4),
            headings=(2, 5),
            discs=((2, 0.5 * self.wheelbase, 0.12), (5, -self.hitch, 0.1)),
        )


@dataclass(frozen=True)
class DoubleIntegrator(Vehicle):
    """x'' = u in the plane, each component bounded; its bounds are a box of fixed axes, so a plan moves with the world
    but does not turn with it.

    Args:
        speed: largest size of each component of the velocity, m/s.
        force: largest size of each component of u, m/s^2.
        dt: s.
    """

    speed: float = 2.0
    force: float = 2.0
    dt: float = 0.02
    kind = 3

    @cached_property
    def body(self) -> Body:
        """One disc."""
        inf, v = math.inf, self.speed
        return Body(
            names=("x", "y", "vx", "vy"),
            low=(-inf, -inf, -v, -v),
            high=(inf, inf, v, v),
            weights=(1.0, 1.0, 0.2, 0.2),
            rate=(self.force, self.force),
            actuators=(2, 3),
            vectors=(2,),
        )


@dataclass(frozen=True)
class OwnVehicle(Vehicle):
    """A vehicle of one's own, moved by a function.

    Args:
        step: (states (B, s), controls (B, m)) -> states after dt, in float64; a pure function, as of a gym environment.
        body: states, bounds, discs; the controls that planners draw lie within its rates.
        dt: s.
    """

    step: Callable[[Tensor, Tensor], Tensor]
    body: Body = field()  # type: ignore[assignment]
    dt: float = 0.02

    def _fill(self, x, u, n, walls, fate, done) -> None:
        from molsamp.planning import kernels

        for t in range(x.shape[1] - 1):
            control = torch.from_numpy(u[:, min(t, u.shape[1] - 1)])
            x[:, t + 1] = self.step(torch.from_numpy(x[:, t]), control).numpy()
        kernels.judge_states(*walls, x, n, fate, done)


VEHICLES: dict[str, Vehicle] = {"car": Car(), "hard-car": Car(C2=4.0), "unicycle": Unicycle(), "trailer": Trailer()}
"""What the command line can drive, by name."""


def _goal(problem: Problem | None) -> np.ndarray:
    """(x, y, radius) for the kernels; a radius that no vehicle comes under where there is no goal."""
    return np.array([0.0, 0.0, -1.0] if problem is None else [*problem.goal.tolist(), problem.radius])
