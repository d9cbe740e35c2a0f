"""Edges of a planning tree: a batch of vehicles driven for a while from nodes of the tree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.planning.problems import Problem
from molsamp.planning.samplers import Sampler, uniform
from molsamp.planning.vehicles import RAN


class Edges(NamedTuple):
    """B motions and the controls behind them; of row b, steps[b] count.

    Args:
        states: the start first, (B, longest + 1, s).
        controls: (B, longest, m).
        steps: that stand, (B,).
        fate: as of a `Motion`, (B,).
        simulated: steps computed.
        calls: of the policy, one for each vehicle and chunk.
    """

    states: Float[Tensor, "B n+1 s"]
    controls: Float[Tensor, "B n m"]
    steps: Int[Tensor, " B"]
    fate: Int[Tensor, " B"]
    simulated: int
    calls: int

    def ends(self) -> Float[Tensor, "B s"]:
        """The last states that stand."""
        return self.states[torch.arange(len(self.steps)), self.steps]

    def lengths(self) -> Float[Tensor, " B"]:
        """Of each way, m."""
        steps = (self.states[:, 1:, :2] - self.states[:, :-1, :2]).norm(dim=-1)
        return steps.where(torch.arange(steps.shape[1]) < self.steps[:, None], 0.0).sum(1)


def held(states: Float[Tensor, "B s"], problem: Problem, u: Float[Tensor, "B draws"], longest: int) -> Edges:
    """One uniform control each, held for 1 to `longest` steps: the edges of uniform planners; u as for `uniform`."""
    controls, steps = uniform(problem.vehicle, u, longest)
    motion = problem.vehicle.propagate(states, controls, steps, problem)
    controls = controls.expand(-1, motion.states.shape[1] - 1, -1)
    return Edges(motion.states, controls, motion.steps, motion.fate, motion.simulated, 0)


def driven(
    states: Float[Tensor, "B s"],
    targets: Float[Tensor, "B 2"],
    problem: Problem,
    sampler: Sampler,
    noise: Noise,
    step: int,
    longest: int,
    execute: int,
) -> Edges:
    """A policy in closed loop, receding horizon: it is asked, the first `execute` of its controls are applied, and it
    is asked again, until `longest` steps are done.

    Args:
        states: where each begins.
        targets: where each is to go, m.
        problem: vehicle, walls and goal.
        sampler: the policy.
        noise: its stream.
        step: of the planner; the policy's calls are numbered from step x calls on.
        longest: steps of an edge.
        execute: steps between two calls.

    Raises:
        ValueError: if the policy gives fewer than `execute` controls, or of another shape.
    """
    B, m = len(states), problem.vehicle.controls
    x = states.new_zeros((B, longest + 1, states.shape[1]))
    u = states.new_zeros((B, longest, m))
    steps, fate = torch.zeros(B, dtype=torch.int64), torch.full((B,), RAN)
    x[:, 0] = states
    simulated = calls = 0
    for chunk, first in enumerate(range(0, longest, execute)):
        lanes = torch.nonzero(fate == RAN)[:, 0]
        if not len(lanes):
            break
        n = min(execute, longest - first)
        call = step * -(-longest // execute) + chunk
        controls = sampler(x[lanes, first], targets[lanes], problem, noise, call)
        if controls.shape[0] != len(lanes) or controls.shape[1] < n or controls.shape[2] != m:
            raise ValueError(f"the policy gave {tuple(controls.shape)}, ({len(lanes)}, {n} or more, {m}) is needed")
        motion = problem.vehicle.propagate(x[lanes, first], controls[:, :n], n, problem)
        x[lanes, first + 1 : first + n + 1] = motion.states[:, 1:]
        u[lanes, first : first + n] = controls[:, :n].to(u.dtype)
        steps[lanes], fate[lanes] = first + motion.steps, motion.fate
        simulated, calls = simulated + motion.simulated, calls + len(lanes)
    return Edges(x, u, steps, fate, simulated, calls)


def merge(parts: list[tuple[Tensor, Edges]], B: int) -> Edges:
    """Edges of some lanes each, as edges of lanes 0..B-1."""
    longest = max(e.controls.shape[1] for _, e in parts)
    x = parts[0][1].states.new_zeros((B, longest + 1, parts[0][1].states.shape[2]))
    u = x.new_zeros((B, longest, parts[0][1].controls.shape[2]))
    steps, fate = torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    for lanes, e in parts:
        n = e.controls.shape[1]
        x[lanes, : n + 1], u[lanes, :n], steps[lanes], fate[lanes] = e.states, e.controls, e.steps, e.fate
    return Edges(x, u, steps, fate, sum(e.simulated for _, e in parts), sum(e.calls for _, e in parts))
