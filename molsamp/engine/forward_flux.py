"""Forward-flux sampling: the rate as a flux out of A times a chain of probabilities.

    k_AB = Phi_0 P_1 .. P_m

Phi_0 counts the crossings of the first interface by walkers that come from A, per time; P_i is the share of
trajectories from the crossings of interface i that reach the next one (at last B) before A. Each is a series of the
engine's rollouts, which go on until a trajectory is decided. Every replica is a forward flux of its own, so the scatter
of their products is the error, common ancestors included.

Source: Allen, Frenkel and ten Wolde, J. Chem. Phys. 124, 024102 (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Controlled
from molsamp.engine.ensembles import Motion, Restart, lost, refuse, restarted
from molsamp.engine.estimates import Estimate, ratio
from molsamp.engine.particles import BELOW_ONE
from molsamp.engine.state import Particles, Path


@dataclass(frozen=True)
class Cloud:
    """Walkers of replicas: in the basin, in flight, or caught at an interface.

    Args:
        particles: m of them.
        replica: (m,).
        root: the crossing of the first interface that each descends from, (m,).
    """

    particles: Particles
    replica: Int[Tensor, " m"]
    root: Int[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.particles)

    def take(self, index: Tensor) -> Cloud:
        """Those at `index`."""
        return Cloud(self.particles.take(index), self.replica[index], self.root[index])

    def at_frame(self, path: Path, j: int, index: Tensor) -> Cloud:
        """Those at `index` where they were at frame j."""
        v = None if path.v is None else path.v[j, index]
        return replace(self.take(index), particles=Particles.at(path.x[j, index], v, self.particles.ids[index]))

    def __add__(self, other: Cloud) -> Cloud:
        ours, theirs = self.particles.to_tensors(), other.particles.to_tensors()
        p = Particles.from_tensors({name: torch.cat([b, theirs[name]]) for name, b in ours.items()})
        return Cloud(p, torch.cat([self.replica, other.replica]), torch.cat([self.root, other.root]))


@dataclass(frozen=True)
class Ladder:
    """How far a forward flux has come, and what it counted; I interfaces, R replicas.

    Args:
        stage: 0 in the basin, i while trajectories are on their way from interface i, I + 1 at the end.
        step: of the noise, behind all.
        born: ids given so far.
        walkers: in the basin, or in flight.
        armed: seen in A since the last crossing, of walkers in the basin, (n,).
        caught: at the interface that is being reached.
        time: in the basin by replica, (R,).
        crossings: of the first interface, (R,).
        trials, successes: from each interface, (I, R).
        roots: first crossings with a descendant at each interface after the first, B the last, (I,).
        lost: walkers that diverged.
    """

    stage: int
    step: int
    born: int
    walkers: Cloud
    armed: Bool[Tensor, " n"]
    caught: Cloud
    time: Float[Tensor, " R"]
    crossings: Int[Tensor, " R"]
    trials: Int[Tensor, "I R"]
    successes: Int[Tensor, "I R"]
    roots: Int[Tensor, " I"]
    lost: int = 0

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        flat: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Cloud):
                flat |= {f"{f.name}.{k}": b for k, b in value.particles.to_tensors().items()}
                flat |= {f"{f.name}.replica": value.replica, f"{f.name}.root": value.root}
            else:
                flat[f.name] = torch.as_tensor(value)
        return flat

    @classmethod
    def from_tensors(cls, flat: dict[str, Tensor]) -> Ladder:
        """The inverse of `to_tensors`."""

        def cloud(name: str) -> Cloud:
            blocks = {k.removeprefix(name + "."): b for k, b in flat.items() if k.startswith(name + ".")}
            return Cloud(Particles.from_tensors(blocks), blocks["replica"], blocks["root"])

        blocks: dict[str, Any] = {name: int(flat[name]) for name in ("stage", "step", "born", "lost")}
        blocks |= {name: cloud(name) for name in ("walkers", "caught")}
        blocks |= {f.name: flat[f.name] for f in fields(cls) if f.name not in blocks}
        return cls(**blocks)


@dataclass(frozen=True)
class ForwardFlux:
    """How a forward flux goes.

    Args:
        levels: of progress, rising: I interfaces; beyond one is what has so much progress and is not in A, and B.
        trials: trajectories from each interface and replica.
        replicas: R.
        looks: of a rollout, the unit of `advance`.
        settle, count: rollouts in the basin that are not counted, and that are.
        restart: the source where walkers of the basin that reach B start again.
    """

    levels: tuple[float, ...]
    trials: int
    replicas: int
    looks: int
    settle: int
    count: int
    restart: Restart

    def begin(self, p: Particles) -> Ladder:
        """Walkers in A, the replicas in turn.

        Raises:
            TypeError: for anything but Particles, such as the nodes of a planner's tree.
            ValueError: interfaces that do not rise, particles without weight.
        """
        refuse(p, Particles)
        if not self.levels or any(b <= a for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"interfaces must rise, at least one is needed, got {list(self.levels)}")
        n, I, R = len(p), len(self.levels), self.replicas
        cloud = Cloud(p, torch.arange(n) % R, torch.full((n,), -1))
        none = torch.zeros(R, dtype=torch.int64)
        return Ladder(
            stage=0, step=0, born=int(p.ids.max()) + 1, walkers=cloud, armed=torch.ones(n, dtype=torch.bool),
            caught=cloud.take(none[:0]), time=none.double(), crossings=none, trials=none.repeat(I, 1),
            successes=none.repeat(I, 1), roots=torch.zeros(I, dtype=torch.int64),
        )  # fmt: skip

    def advance(self, motion: Motion, ladder: Ladder) -> Ladder:
        """One rollout further.

        Raises:
            TypeError: for anything but a `Ladder`.
            ValueError: for a controlled dynamics, whose weights a share of trajectories does not know.
        """
        refuse(ladder, Ladder)
        if isinstance(motion.dyn, Controlled):
            raise ValueError(
                "forward flux counts trajectories without weights: allowed are free dynamics, not Controlled"
            )
        ladder = self._basin(motion, ladder) if ladder.stage == 0 else self._fly(motion, ladder)
        if ladder.stage == 0:
            over = ladder.step >= (self.settle + self.count) * self.looks * motion.every
            return self._launch(motion, ladder) if over else ladder
        while 0 < ladder.stage <= len(self.levels) and len(ladder.walkers) == 0:
            ladder = self._launch(motion, ladder)
        return ladder

    def run(self, motion: Motion, p: Particles) -> Ladder:
        """All of it, from walkers in A.

        Raises:
            TypeError, ValueError: as `begin`.
        """
        ladder = self.begin(p)
        while ladder.stage <= len(self.levels):
            ladder = self.advance(motion, ladder)
        return ladder

    def _basin(self, motion: Motion, ladder: Ladder) -> Ladder:
        walkers, armed, caught = ladder.walkers, ladder.armed, ladder.caught
        path, sight = motion.carry(walkers.particles, self.looks, ladder.step)
        counted = ladder.step >= self.settle * self.looks * motion.every
        fine = ~lost(path.final)
        alive, time = fine, torch.zeros(len(walkers), dtype=torch.float64)
        for j, (s, a, b) in enumerate(zip(*sight, strict=True), 1):
            time += motion.interval * alive
            crossed = armed & alive & ~a & ((s >= self.levels[0]) | b)
            if counted and bool(crossed.any()):
                caught = caught + walkers.at_frame(path, j, crossed.nonzero()[:, 0])
            armed, alive = (armed & ~crossed) | a, alive & ~b
        step, back = ladder.step + self.looks * motion.every, fine & ~alive
        p = restarted(path.final, back, self.restart, step)
        if counted:
            ladder = replace(ladder, time=ladder.time + torch.bincount(walkers.replica, time, self.replicas))
        return replace(
            ladder, step=step, walkers=replace(walkers, particles=p), armed=armed | back, caught=caught,
            lost=int((~fine).sum()),
        )  # fmt: skip

    def _launch(self, motion: Motion, ladder: Ladder) -> Ladder:
        """From what was caught at one interface as many trajectories as are asked for; each is used equally often."""
        stage, caught, R = ladder.stage + 1, ladder.caught, self.replicas
        if ladder.stage == 0:
            caught = replace(caught, root=torch.arange(len(caught)))
            ladder = replace(ladder, crossings=torch.bincount(caught.replica, minlength=R))
        else:
            roots = ladder.roots.clone()
            roots[ladder.stage - 1] = len(caught.root.unique())
            ladder = replace(ladder, roots=roots)
        none = caught.take(torch.zeros(0, dtype=torch.int64))
        if stage > len(self.levels):
            return replace(ladder, stage=stage, walkers=none, caught=none)
        order = caught.replica.argsort(stable=True)
        found = torch.bincount(caught.replica, minlength=R)
        some = found.nonzero()[:, 0]
        u = motion.noise.child("launch").uniform(stage, some)[:, None]
        slot = ((torch.arange(self.trials) + u) / self.trials).clamp(max=BELOW_ONE) * found[some, None]
        begin = (found.cumsum(0) - found)[some, None]
        starts = caught.take(order[(begin + slot.long()).flatten()])
        ids = ladder.born + torch.arange(len(starts))
        starts = replace(starts, particles=starts.particles.evolve(ids=ids))
        trials, successes = ladder.trials.clone(), ladder.successes.clone()
        trials[stage - 1] = torch.bincount(starts.replica, minlength=R)
        arrived = self._beyond(stage, motion, starts)  # with one leap already
        successes[stage - 1] = torch.bincount(starts.replica[arrived], minlength=R)
        return replace(
            ladder, stage=stage, born=ladder.born + len(starts), walkers=starts.take((~arrived).nonzero()[:, 0]),
            armed=arrived[:0], caught=none + starts.take(arrived.nonzero()[:, 0]), trials=trials, successes=successes,
        )  # fmt: skip

    def _beyond(self, stage: int, motion: Motion, cloud: Cloud) -> Bool[Tensor, " m"]:
        if not len(cloud):
            return torch.zeros(0, dtype=torch.bool)
        sight = motion.look(cloud.particles.x)
        return self._reached(stage, sight.progress, sight.b)

    def _reached(self, stage: int, progress: Tensor, b: Tensor) -> Tensor:
        return b | (progress >= self.levels[stage]) if stage < len(self.levels) else b

    def _fly(self, motion: Motion, ladder: Ladder) -> Ladder:
        flying, caught, stage = ladder.walkers, ladder.caught, ladder.stage
        path, sight = motion.carry(flying.particles, self.looks, ladder.step)
        gone = lost(path.final)
        under_way, successes = ~gone, ladder.successes.clone()
        for j, (s, a, b) in enumerate(zip(*sight, strict=True), 1):
            arrived = under_way & ~a & self._reached(stage, s, b)
            if bool(arrived.any()):
                there = flying.at_frame(path, j, arrived.nonzero()[:, 0])
                successes[stage - 1] += torch.bincount(there.replica, minlength=self.replicas)
                caught = caught + there
            under_way = under_way & ~arrived & ~a
        on = replace(flying, particles=path.final).take(under_way.nonzero()[:, 0])
        step = ladder.step + self.looks * motion.every
        return replace(
            ladder, step=step, walkers=on, caught=caught, successes=successes, lost=ladder.lost + int(gone.sum())
        )


def fluxes(ladder: Ladder) -> Float[Tensor, "fluxes R"]:
    """Flux of each replica from A through each interface and into B: Phi_0, Phi_0 P_1, .., Phi_0 P_1 .. P_I.

    Raises:
        TypeError: for anything but a `Ladder`.
    """
    refuse(ladder, Ladder)
    P = ladder.successes.double() / ladder.trials.clamp(min=1)
    return torch.cat([(ladder.crossings / ladder.time)[None], P]).cumprod(0)


def rate(ladder: Ladder, unit: str = "1") -> Estimate:
    """k_AB, the mean of the replicas' products; interval of ln k by their scatter.

    Raises:
        TypeError: for anything but a `Ladder`.
    """
    k = fluxes(ladder)[-1]
    return ratio(k, torch.ones_like(k), unit)


def committor(ladder: Ladder) -> list[Estimate]:
    """Probability to reach B before A from the crossings of each interface: flux into B over flux through it.

    Raises:
        TypeError: for anything but a `Ladder`.
    """
    f, found = fluxes(ladder), []
    for through in f[:-1]:
        e = ratio(f[-1], through)
        found.append(replace(e, interval=(e.interval[0], min(e.interval[1], 1.0))))
    return found


def binomial_error(ladder: Ladder) -> float:
    """Standard error of ln k if all trajectories were independent: sqrt(1 / crossings + sum (1 - P) / (N P))."""
    refuse(ladder, Ladder)
    n, s = ladder.trials.sum(1).double(), ladder.successes.sum(1).double()
    return math.sqrt(1.0 / float(ladder.crossings.sum()) + float(((1.0 - s / n) / s).sum()))
