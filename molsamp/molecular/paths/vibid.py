"""ViBiDSampler as a proposer of transition paths: moves of whole paths with a Metropolis test on their weight.

The ensemble is that of shooting moves of fixed length, x_0 Boltzmann in A, n rows of overdamped dynamics, B visited:

    pi(x_0 .. x_n) = exp(-U(x_0) / kT) prod_k p(x_{k+1} | x_k) on its members,

p the density of the integrator's own row, and a move q (see `alternation`) is accepted with

    min(1, pi(x') q(x | x') / (pi(x) q(x' | x))),

so that the ensemble is exact for any model of paths, level and number of rows; those decide how fast it is found. All
frames of a proposal are evaluated at once: a move is one call of the energy, where a shot is as many as it has rows.
The burn-in is one-way shots, to whose paths the model (`gaussian`) is fitted; in production all moves are ViBiD's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Overdamped
from molsamp.engine.integrators import log_prob
from molsamp.engine.state import Particles
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.paths.alternation import Move
from molsamp.molecular.paths.gaussian import GaussMarkov, Moments
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.reversal import Frames, Recalled
from molsamp.molecular.paths.settings import ViBiDSettings
from molsamp.molecular.paths.shooting import Proposed, Shooting


class ViBiDPaths(Shooting):
    """Chains of ViBiD moves: one unit is one move of every chain, all at the same level.

    First paths come from an untrained pull. Arguments as in `Sampler`, settings as in `ViBiDSettings`.

    Raises:
        ValueError: for underdamped dynamics, or if no pull connects the states.
    """

    name = "vibid"
    Settings = ViBiDSettings  # type: ignore[assignment]

    def _begin(self) -> None:
        p = self.problem
        if not isinstance(p.dynamics, Overdamped):
            raise ValueError(
                f"{p.system.name} is underdamped: vibid moves paths of overdamped dynamics, noisy in every frame; "
                "allowed for this system are shooting, chain and twisted"
            )
        super()._begin()
        self.stride = next(s for s in range(1, p.steps + 1) if p.steps % s == 0 and p.steps // s < self.settings.frames)
        self.seen: Moments | None = None  # in the second half of the burn-in
        self.kernels: list[Move] = []

    # ---------------------------------------------------------------- the model

    def _collect(self) -> None:
        super()._collect()
        first, last = self.settings.burn_in // 2, self.settings.burn_in
        if first < self.k <= last:
            assert self.frames is not None
            present = Moments.of(self.frames.x.flatten(2))
            self.seen = present if self.seen is None else self.seen.plus(present)
        if self.k == last:
            self._learn()

    def _learn(self) -> None:
        """The model of the paths seen, and a kernel for every level."""
        p, s = self.problem, self.settings
        assert self.seen is not None
        (row,) = p.integrator.rows(p.dynamics, p.times[:2])
        noise = row.split()[1].noise
        assert isinstance(noise, float)  # the same for every coordinate
        model = GaussMarkov.fit(self.seen, noise**2, self.stride)
        spread = model.frames.spread
        self.kernels = [Move(model, level * spread, s.rows, s.floor) for level in s.levels]

    # ---------------------------------------------------------------- moves

    @property
    def _turn(self) -> int:
        """Which level is due."""
        return self.k % len(self.settings.levels)

    def _advance(self) -> dict[str, Any]:
        level = self.settings.levels[self._turn] if self.kernels else 0.0
        return {"level": level, **super()._advance()}

    def _proposed(self, old: Frames, u: Float[Tensor, "M 3"]) -> Proposed:
        if not self.kernels:
            return super()._proposed(old, u)
        move = self.kernels[self._turn]
        x = old.x.flatten(2).transpose(0, 1).double()
        z, fine = self._normals(x)
        to = move.propose(x, z, fine)
        f = self._frames_of(to.transpose(0, 1).view_as(old.x).to(old.x))
        free = self._free(f)
        ratio = log_weight(self.problem, f) - log_weight(self.problem, old)
        ratio = ratio + move.log_prob(to, x) - move.log_prob(x, to)
        member = self._member(f, self.length, free)
        at = torch.zeros_like(self.length)
        return Proposed(f, self.length, free, torch.where(member, ratio, -math.inf), at)

    def _normals(self, x: Float[Tensor, "M F d"]) -> tuple[Tensor, Tensor]:
        """Of the frames of the model, and of all rows."""
        M, F, d = x.shape
        ids, C = self.k * M + torch.arange(M), (F - 1) // self.stride
        noise = self.noise.child("moves")
        return noise.normal(0, ids, (C + 1, d)), noise.normal(1, ids, (C, self.stride, d))

    def _frames_of(self, x: Float[Tensor, "F M *event"]) -> Frames:
        """Whole paths evaluated in one call."""
        E, force = self.problem.energy.energy_force(x.flatten(0, 1))
        return Frames(x, None, E.view(x.shape[:2]), force.view_as(x))

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        return super()._state() | ({} if self.seen is None else flatten_state("seen", self.seen._asdict()))

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        if seen := with_prefix("seen", state):
            self.seen = Moments(**{key: a.clone() for key, a in seen.items()})
        if self.k >= self.settings.burn_in:
            self._learn()


def log_weight(problem: Problem, f: Frames) -> Float[Tensor, " M"]:
    """log pi of whole paths but for a constant, nats, float64, from their energies and forces.

    The rows of a uniform grid are one row: all steps of all paths are particles of it.
    """
    (row,) = problem.integrator.rows(problem.dynamics, problem.times[:2])
    before, after = (Particles.at(x.flatten(0, 1)) for x in (f.x[:-1], f.x[1:]))
    recalled = Recalled(f.energy[:-1].flatten(), f.force[:-1].flatten(0, 1))
    steps, _ = log_prob(row, replace(problem.dynamics, field=recalled), before, after)
    return steps.view(len(f.x) - 1, -1).sum(0) - f.energy[0].double() / problem.kT
