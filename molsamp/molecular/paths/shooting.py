"""Shooting moves between a *thermal* start state and the end state (Dellago, Bolhuis and Chandler 1998).

The ensemble: x_0 and v_0 + h F/2m Boltzmann in the start state A, then the rows of the integrator; of fixed length
with a visit to B, or of flexible length from the last frame in A to the first in B. P_0 starts at one point instead.

A move picks a frame j that is in neither state, one of N, and redraws the rows after it by the forward dynamics and
the rows before it by the time-reversed dynamics, whose shadow work S_j (see `reversal`) enters the acceptance

    min(1, (N_old / N_new) exp(S_new - S_old)),    S at j, only where the rows before j were redrawn,

which makes the move exact at any timestep. Two-way moves draw a fresh velocity and redraw both sides; one-way moves
keep the velocity and redraw one side, either with probability one half.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Controlled
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path, Status
from molsamp.engine.trees import Tree
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.paths.exploration import Exploration
from molsamp.molecular.paths.markov import effective_number, metropolis
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.reversal import Frames, Recording, Reversal, side_by_side
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.settings import ShootingSettings
from molsamp.molecular.paths.steered import Pull

CHUNK = 50  # rows between two looks at which branches have ended
DOUBLINGS = 20  # of the pull that finds the first paths
SHOTS = 200  # of every chain from the branch of a tree, before giving up


class Proposed(NamedTuple):
    """New paths, one for every chain.

    Args:
        frames, length, free: as the chains have them.
        log_ratio: of the Metropolis test, -inf where a path does not belong to the ensemble.
        at: frame of the present path that it was made from, kept in the genealogy.
    """

    frames: Frames
    length: Int[Tensor, " M"]
    free: Bool[Tensor, "F M"]
    log_ratio: Float[Tensor, " M"]
    at: Int[Tensor, " M"]


class Shooting(Sampler):
    """Chains of shooting moves: one unit is one move of every chain.

    The first paths come from an untrained pull, as weak as will do, or are shot from structures that a tree found (see
    `exploration`), which costs more and follows the free dynamics. Chains that have taken no move by the end of the
    burn-in are restarted from ones that have.

    Arguments as in `Sampler`, settings as in `ShootingSettings`; the n paths are equally spaced after the burn-in.

    Raises:
        ValueError: if no pull connects the states, or no tree does.
    """

    name = "shooting"
    Settings = ShootingSettings

    def _begin(self) -> None:
        M = self.settings.chains
        self.total = self.settings.burn_in + self.settings.moves
        self.reversal = Reversal(self.problem)
        self.node = torch.arange(M)  # of each chain's present path in the genealogy
        self.settled = torch.zeros(M, dtype=torch.int64)  # its depth there when production began
        self.frames: Frames | None = None
        self.length = torch.full((M,), self.problem.steps)
        self.record: list[Tensor] = []
        self.kept: list[Frames] = []

    # ---------------------------------------------------------------- first paths

    def _first_paths(self) -> None:
        """Paths that belong to the ensemble, for half of the chains or more, which take them in turn."""
        f, length = self._pulled() if self.settings.initial == "pull" else self._seeded()
        self.node = torch.arange(self.settings.chains) % len(length)
        self.tree = Tree(f.x[0])  # a node is a path: the frame it was shot from, its parent the path before
        self.frames, self.length = f.columns(self.node), length[self.node]
        self.free = self._free(self.frames)

    def _pulled(self) -> tuple[Frames, Int[Tensor, " m"]]:
        """Pulled paths, by the weakest pull that carries half of the chains."""
        p, M = self.problem, self.settings.chains
        k = 2.0 * p.kT / float(p.deviation(p.start.x.to(p.dtype)[None])[0]) ** 2
        for attempt in range(DOUBLINGS):
            noise = self.noise.child(f"pull {attempt}")
            f, _ = self._roll(p.initial(noise, torch.arange(M)), p.steps, noise, pull=k * 2.0**attempt)
            f, length = self._trim(f)
            good = torch.nonzero(self._member(f, length, self._free(f)))[:, 0]
            if 2 * len(good) >= M:
                return f.columns(good), length[good]
        raise ValueError(
            f"{p.system.name}: no pull up to {k * 2.0 ** (DOUBLINGS - 1):.3g} kJ/mol/nm^2 carries half of {M} paths "
            f"from {p.start.name} to {p.end.name} in {p.steps} steps; allow longer paths"
        )

    def _seeded(self) -> tuple[Frames, Int[Tensor, " m"]]:
        """Two-way shots of the free dynamics from structures on the branch of a tree that grew from A to B.

        The branch is no trajectory: it gives structures to shoot from and nothing else. Every other chain shoots from
        one that a path has come of before, each as often as one did: an urn, which finds the top of the barrier.
        """
        p, M, noise = self.problem, self.settings.chains, self.noise.child("seeds")
        branch = Exploration(p, self.settings.tree, self.noise.child("tree")).run(self._check).branch()
        points = branch[~(p.inside(branch) | p.inside(branch, p.start))]
        urn, found, lengths = points[:0], [], torch.zeros(0, dtype=torch.int64)
        for attempt in range(SHOTS if len(points) else 0):
            self._check()
            u = noise.child("points").uniform(attempt, torch.arange(M), (2,))
            x = points[(u[:, 0] * len(points)).long()]
            if len(urn):
                x[1::2] = urn[(u[1::2, 0] * len(urn)).long()]
            f, length, fine = self._shots(x, 1 + (u[:, 1] * (p.steps - 1)).long(), attempt * M, noise)
            good = torch.nonzero(self._member(f, length, self._free(f)) & fine)[:, 0]
            found.append(f.columns(good))
            urn, lengths = torch.cat([urn, x[good]]), torch.cat([lengths, length[good]])
            if 2 * len(urn) >= M:
                return side_by_side(found), lengths
        raise ValueError(
            f"{p.system.name}: {len(urn)} of {SHOTS * M} shots from {len(points)} structures on the tree's branch join "
            f"{p.start.name} and {p.end.name} in {p.steps} steps, {-(-M // 2)} are needed; allow longer paths"
        )

    def _shots(
        self, x: Float[Tensor, "M *event"], j: Int[Tensor, " M"], first: int, noise: Noise
    ) -> tuple[Frames, Int[Tensor, " M"], Bool[Tensor, " M"]]:
        """Two-way shots from single structures, at frame j where the length is fixed.

        Returns:
            (trajectories, length, whether they stayed finite and short enough).
        """
        n, M = self.problem.steps, len(x)
        v = None if self.problem.friction is None else torch.zeros_like(x)  # drawn when it is shot
        at = Frames(x, v, *self.problem.energy.energy_force(x))
        still = Frames(*(None if a is None else a.expand(n + 1, *a.shape) for a in at))  # type: ignore[arg-type]
        both, ids = torch.ones(M, dtype=torch.bool), first + torch.arange(M)
        f, length, _, finite = self._shoot(still, torch.full((M,), n), j, both, both, ids, noise)
        return f, length, finite & (length <= n)

    def _trim(self, f: Frames) -> tuple[Frames, Int[Tensor, " M"]]:
        """Flexible length: the part from the last frame in A to the first in B, which is then repeated to the end."""
        n = self.problem.steps
        if self.settings.length == "fixed":
            return f, torch.full((f.x.shape[1],), n)
        t = torch.arange(n + 1)[:, None]
        there = self.problem.inside(f.x)
        last = torch.where(there.any(0), there.int().argmax(0), n)
        before = self.problem.inside(f.x, self.problem.start) & (t < last)
        first = torch.where(before, t, 0).amax(0)
        return f.gather(torch.minimum(first + t, last)), last - first

    # ---------------------------------------------------------------- the ensemble

    def _free(self, f: Frames) -> Bool[Tensor, "F M"]:
        """Frames in neither state: those that can be shot from."""
        return ~(self.problem.inside(f.x) | self.problem.inside(f.x, self.problem.start))

    def _member(self, f: Frames, length: Int[Tensor, " M"], free: Bool[Tensor, "F M"]) -> Bool[Tensor, " M"]:
        """Whether trajectories belong to the ensemble."""
        p, N = self.problem, free.sum(0)
        starts = p.inside(f.x[0], p.start) & (N > 0)
        if self.settings.length == "fixed" and self.settings.arrival == "any":
            return starts & p.inside(f.x).any(0)
        ends = starts & p.inside(f.x[-1])
        return ends if self.settings.length == "fixed" else ends & (length == N + 1)

    # ---------------------------------------------------------------- simulation

    def _roll(
        self, start: Particles, rows: int, noise: Noise, first: int = 0, pull: float = 0.0
    ) -> tuple[Frames, Particles]:
        """Frames of `rows` rows, and the particles at the end."""
        p, recording = self.problem, Recording(self.problem.energy)
        dyn = replace(p.dynamics, field=recording)
        driven = Controlled(dyn, Pull(p, pull)) if pull else dyn
        path = rollout(driven, p.integrator, start, p.times[first : first + rows + 1], noise=noise, first=first)
        assert path.energy is not None
        return Frames(path.x, path.v, path.energy, torch.stack(recording.forces)), path.final

    def _branches(
        self, start: Particles, rows: Int[Tensor, " m"], noise: Noise
    ) -> tuple[Frames, Int[Tensor, " m"], Bool[Tensor, " m"]]:
        """Forward dynamics of m branches for `rows` rows each, or until they enter a state (flexible length).

        Finished branches leave the batch every `CHUNK` rows.

        Returns:
            (frames, garbage beyond a branch's length; length in rows; whether the branch stayed finite).
        """
        n, m = self.problem.steps, len(rows)
        out, length, finite, alive, k = None, rows.clone(), torch.ones(m, dtype=torch.bool), torch.arange(m), 0
        while len(alive):
            c = min(CHUNK, n - k)
            f, start = self._roll(start, c, noise, first=k)
            if out is None:
                out = Frames(*(None if a is None else a.new_zeros(n + 1, *a.shape[1:]) for a in f))  # type: ignore
            Frames(*(None if a is None else a[k : k + c + 1] for a in out)).put(alive, f)  # type: ignore[arg-type]
            finite[alive] = start.status != Status.DIVERGED
            if self.settings.length == "flexible":
                entered = ~self._free(f)[1:]
                length[alive] = torch.where(entered.any(0), k + 1 + entered.int().argmax(0), length[alive])
            k += c
            going = (length[alive] > k) & finite[alive]
            alive, start = alive[going], start.take(going)
        assert out is not None
        return out, length, finite

    # ---------------------------------------------------------------- moves

    def _advance(self) -> dict[str, Any]:
        s = self.settings
        if self.frames is None:
            self._first_paths()
        assert self.frames is not None
        u = self.noise.child("choice").uniform(self.k, torch.arange(s.chains), (3,))
        new = self._proposed(self.frames, u)
        yes = metropolis(new.log_ratio, u[:, 2])
        self.node[yes] = self.tree.extend(self.node[yes], self.frames.gather(new.at[None]).x[0, yes])
        self.frames.put(yes, new.frames.columns(yes))
        self.length[yes], self.free[:, yes] = new.length[yes], new.free[:, yes]
        self.k += 1
        self._collect()
        return {"acceptance": float(yes.double().mean()), "length": float(self.length.double().mean())}

    def _proposed(self, old: Frames, u: Float[Tensor, "M 3"]) -> Proposed:
        """A shot from every path, by the first two uniforms."""
        s, N = self.settings, self.free.sum(0)
        chain = torch.arange(s.chains)
        j = (self.free.cumsum(0) > (u[:, 0] * N).long()).int().argmax(0)  # the free frame of a uniform rank
        both = torch.full_like(chain, s.kind == "two-way", dtype=torch.bool)
        back, ahead = both | (u[:, 1] < 0.5), both | (u[:, 1] >= 0.5)
        ids = self.k * s.chains + chain
        new, length, pivot, finite = self._shoot(old, self.length, j, back, ahead, ids, self.noise)
        free, shadow = self._free(new), self.reversal.shadow(new)
        member = self._member(new, length, free) & finite & (length <= self.problem.steps)
        redrawn = shadow.gather(0, pivot[None])[0] - self.reversal.shadow(old).gather(0, j[None])[0]
        ratio = (N / free.sum(0)).double().log() + torch.where(back, redrawn, 0.0)
        return Proposed(new, length, free, torch.where(member, ratio, -math.inf), j)

    def _shoot(
        self,
        old: Frames,
        length: Int[Tensor, " M"],
        j: Int[Tensor, " M"],
        back: Bool[Tensor, " M"],
        ahead: Bool[Tensor, " M"],
        ids: Int[Tensor, " M"],
        noise: Noise,
    ) -> tuple[Frames, Int[Tensor, " M"], Int[Tensor, " M"], Bool[Tensor, " M"]]:
        """New trajectories with the rows before and/or after frame j redrawn; after a fresh velocity, where both are.

        Args:
            old, length: the present ones.
            j: the frames to shoot from.
            back, ahead: which rows are redrawn; all chains both, or each one of them.
            ids, noise: keys of the shots.

        Returns:
            (trajectories, length, index of the shooting frame in them, whether all branches stayed finite).
        """
        n, M = self.problem.steps, len(j)
        at = old.gather(j[None])
        x, v, F = at.x[0], None if at.v is None else at.v[0], at.force[0]
        if bool((back & ahead).all()):
            v = self.reversal.fresh(F, noise.child("velocities").normal(0, ids, x.shape[1:], x.dtype))
        turned = self.reversal.turned(v, F)
        ends = torch.cat([back.nonzero()[:, 0], M + ahead.nonzero()[:, 0]])
        both_v = None if v is None or turned is None else torch.cat([turned, v])[ends]
        start = Particles.at(torch.cat([x, x])[ends], both_v, torch.cat([2 * ids, 2 * ids + 1])[ends])
        cap = torch.cat([j, n - j]) if self.settings.length == "fixed" else torch.full((2 * M,), n)
        f, rows, ok = self._branches(start, cap[ends], noise.child("branches"))
        m = int(back.sum())
        before, after, finite = j.clone(), length - j, torch.ones(M, dtype=torch.bool)
        before[back], after[ahead] = rows[:m], rows[m:]
        finite[back] &= ok[:m]
        finite[ahead] &= ok[m:]
        before, t = before.clamp(max=n), torch.arange(n + 1)[:, None]
        left, past = (before - t).clamp(min=0), torch.minimum((t - before).clamp(min=0), after)
        head, tail = old.gather((j - left).clamp(min=0)), old.gather((j + past).clamp(max=n))
        branch = f.columns(torch.arange(m)).gather(left[:, back])
        head.put(back, branch._replace(v=self.reversal.turned(branch.v, branch.force)))
        tail.put(ahead, f.columns(torch.arange(m, len(ends))).gather(past[:, ahead]))
        for a, b in zip(head, tail, strict=True):
            if a is not None and b is not None:
                late = (t > before).view(n + 1, M, *[1] * (a.dim() - 2))
                a.copy_(torch.where(late, b, a))
        return head, before + after, before, finite

    # ---------------------------------------------------------------- results

    @property
    def taken(self) -> Int[Tensor, " M"]:
        """Moves each chain has accepted since production began (before that: since the first paths)."""
        return self.tree.depth[self.node] - self.settled

    @property
    def family(self) -> Int[Tensor, " M"]:
        """First path each chain descends from; chains of one family are not independent."""
        return torch.stack([self.tree.backtrack(int(i))[0] for i in self.node])

    def _collect(self) -> None:
        """After the burn-in: observables of every chain, and now and then the paths that will be returned."""
        s, done = self.settings, self.k - self.settings.burn_in
        assert self.frames is not None
        if done == 0 and bool((self.taken > 0).any()):
            idle, moved = (self.taken == 0).nonzero()[:, 0], (self.taken > 0).nonzero()[:, 0]
            source = torch.arange(s.chains)
            source[idle] = moved[
                self.noise.child("restart").integers(0, torch.arange(len(idle) + 1), (), len(moved))[1:]
            ]
            self.frames, self.length, self.node = self.frames.columns(source), self.length[source], self.node[source]
            self.free = self.free[:, source]
            self.settled = self.tree.depth[self.node].clone()
        if done <= 0:
            return
        arrival = self.problem.inside(self.frames.x).int().argmax(0)
        self.record.append(torch.stack([arrival.double(), self.frames.energy.amax(0).double()], 1))
        snapshots = min(s.moves, -(-self.n // s.chains))
        if done * snapshots // s.moves > (done - 1) * snapshots // s.moves:
            count = min(s.chains, -(-self.n // snapshots))
            self.kept.append(self.frames.columns(torch.arange(count) * s.chains // count))

    def paths(self) -> Paths:
        """The kept paths: equal weights, correlated, of the thermal-start ensemble."""
        x, v, energy = (
            None if parts[0] is None else torch.cat(parts, 1)
            for parts in ([getattr(f, b) for f in self.kept] for b in ("x", "v", "energy"))
        )
        assert x is not None and energy is not None
        n, p, s = x.shape[1], self.problem, self.settings
        zero = torch.zeros(n, dtype=torch.float64)
        final = Particles.at(x[-1], None if v is None else v[-1])
        path = Path(torch.tensor(p.times, dtype=torch.float64), x, v, None, energy, zero, final, 1)
        effective = min(float(n), effective_number(torch.stack(self.record), self.family))
        notes = [
            f"Thermal ensemble: the first frame is Boltzmann in {p.start.name}, not its minimum, so there is no "
            f"log dP_b/dP_0; worth {effective:.1f} independent paths."
        ]
        if s.length == "flexible":
            notes.append(f"Paths end on arrival in {p.end.name}; their last frame is repeated to {p.steps} steps.")
        if s.initial == "tree":
            notes.append(
                "All paths descend from one branch of a tree, which may cross where the dynamics hardly ever does, and "
                "shooting may not find another channel within the run: compare seeds, and with initial = 'pull'."
            )
        if idle := int((self.taken == 0).sum()):
            notes.append(
                f"{idle} of {s.chains} chains took no move after the burn-in: these figures are not converged."
            )
        log_rn = torch.full((n,), math.nan, dtype=torch.float64)
        return Paths(p, path, log_rn, self.name, exact=True, cost=self.cost, effective=effective, notes=tuple(notes))

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = {
            "kept": torch.tensor(len(self.kept)),
            "node": self.node,
            "settled": self.settled,
        }
        if self.frames is not None:
            flat |= {
                "length": self.length,
                **_named("frames", self.frames),
                **flatten_state("tree", self.tree.to_tensors()),
            }
        if self.record:
            flat["record"] = torch.stack(self.record)
        for i, f in enumerate(self.kept):
            flat |= _named(f"kept{i}", f)
        return flat

    def _load(self, state: dict[str, Tensor]) -> None:
        self.node, self.settled = state["node"].clone(), state["settled"].clone()
        self.record = list(state["record"]) if "record" in state else []
        self.kept = [_frames(f"kept{i}", state) for i in range(int(state["kept"]))]
        if "length" in state:
            self.length, self.frames = state["length"].clone(), _frames("frames", state)
            self.tree = Tree.from_tensors(with_prefix("tree", state))
            self.free = self._free(self.frames)


def _named(name: str, f: Frames) -> dict[str, Tensor]:
    return {f"{name}.{key}": a for key, a in f._asdict().items() if a is not None}


def _frames(name: str, state: dict[str, Tensor]) -> Frames:
    blocks = {key: state.get(f"{name}.{key}") for key in Frames._fields}
    return Frames(*(None if a is None else a.clone() for a in blocks.values()))  # type: ignore[arg-type]
