"""Markov chains on the noise: the exact ensemble of paths from a fixed start, conditioned on a hit, and log P_0(hit).

A path is a deterministic function of its noise zeta = (v_0, xi_1 .. xi_n) in units of standard normals, so P_0 given a
hit is a product of normals restricted to {hit}. Moves that keep the normals need no other test than the restriction:

    mix       zeta' = sqrt(1 - b^2) zeta + b eta          (preconditioned Crank-Nicolson)
    tail      xi_k .. xi_n redrawn, k uniform
    window    xi_k .. xi_{k+w-1} redrawn, k uniform
    guided    the mix, in the noise eta = z - u that is left when a learned control u is taken out; since it keeps
              P_u, it is accepted with min(1, w'/w), w = dP_0/dP_u; with b = 1 this is independence Metropolis-Hastings
              with the learned sampler as its proposal. The final ensemble is exact whatever the network learned.

All chains of a sweep share the move and its k. These are drawn independently of the paths, so that given their sequence
the chains are independent and each keeps the ensemble. The restriction is tightened through levels of the distance
to the end state, P_0(hit) = prod P(level_i | level_{i-1}) (Au and Beck, Probab. Eng. Mech. 16, 263 (2001); with paths:
Botev and Kroese 2008), each taken at a quantile of the chains, of which those beyond it are cloned.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Underdamped
from molsamp.engine.estimates import Estimate, student95
from molsamp.engine.noise import Tape
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path, Status
from molsamp.molecular.paths.free import concatenate
from molsamp.molecular.paths.learned import LearnedPaths
from molsamp.molecular.paths.markov import effective_number, metropolis
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.settings import ChainSettings


class LearnedProposal:
    """A learned sampler as the source of `guided` moves.

    Args:
        learned: trained; its control u and hold H are used as they stand.
        mixing: b of the mix in the noise that is left; 1 draws every proposal afresh from the learned sampler.
    """

    def __init__(self, learned: LearnedPaths, mixing: float = 1.0):
        self.dynamics = Controlled(learned.problem.dynamics, learned.control.drive, learned.settings.hold)
        self.mixing = mixing

    def controls(self, path: Path) -> Float[Tensor, "rows n *event"]:
        """u of every row along a path saved at every row."""
        hold, rows = self.dynamics.hold, len(path) - 1
        v = path.v
        u = [
            self.dynamics.control(float(path.times[k]), path.x[k], None if v is None else v[k])
            for k in range(0, rows, hold)
        ]
        return torch.stack(u).repeat_interleave(hold, 0)[:rows]


class Move(NamedTuple):
    """One sweep: its kind, and the first row it changes."""

    kind: str
    first: int


class NoiseChain(Sampler):
    """Chains on the noise: one unit is one move of every chain.

    The error of log P_0(hit) comes from `groups` independent groups of chains with levels of their own.

    Arguments as in `Sampler`, settings as in `ChainSettings`; the n paths are taken from the production sweeps at equal
    spacing. With a `proposal`, guided moves are as many as moves of every other kind.

    Raises:
        ValueError: if the chains cannot be shared out among the groups.
    """

    name = "chain"
    Settings = ChainSettings

    def __init__(self, *args: Any, proposal: LearnedProposal | None = None, **kwargs: Any):
        self.proposal = proposal
        super().__init__(*args, **kwargs)

    def _begin(self) -> None:
        problem, s = self.problem, self.settings
        if s.chains % s.groups or s.chains // s.groups < 2:
            raise ValueError(f"chains = {s.chains} is not a multiple of groups = {s.groups} with 2 or more chains each")
        self.total = s.levels * s.level_moves + s.moves
        self.production: int | None = None  # sweep at which every group had arrived
        self.group = torch.arange(s.chains) // (s.chains // s.groups)
        self.level = torch.full((s.groups,), math.inf, dtype=torch.float64)
        self.log_p = torch.zeros(s.groups, dtype=torch.float64)
        self.record: list[Tensor] = []
        self.kept: list[Tensor] = []
        ids, event = torch.arange(s.chains), problem.system.event
        draw = self.noise.child("start")
        self.zeta = draw.normal(range(problem.steps + 1), ids, event, problem.dtype)  # row 0: v_0, row k: xi_k
        self._replay()

    # ---------------------------------------------------------------- simulation

    def _start(self, zeta: Tensor) -> Particles:
        p = self.problem
        x = p.start.x.to(p.dtype).expand(zeta.shape[1], *p.system.event).clone()
        v = zeta[0] * p.dynamics.thermal_speed().to(x) if isinstance(p.dynamics, Underdamped) else None
        return Particles.at(x, v)

    def _roll(self, zeta: Tensor, first: int = 0) -> Path:
        """The path of noise zeta, from row `first` of the present paths on."""
        p = self.problem
        start = self.path.frame(first) if first else self._start(zeta)
        return rollout(p.dynamics, p.integrator, start, p.times[first:], noise=Tape(zeta[first + 1 :]))

    def _replay(self) -> None:
        self.path = self._roll(self.zeta)
        self.distance = self._distance(self.path)

    def _distance(self, path: Path) -> Float[Tensor, "F M"]:
        """Distance of every frame to the end state, infinite on diverged paths."""
        d = self.problem.distance(path.x).double()
        return torch.where(path.final.status == Status.DIVERGED, math.inf, d)

    def _reach(self, distance: Float[Tensor, "F M"]) -> Float[Tensor, " M"]:
        return distance.amin(0) if self.settings.arrival == "any" else distance[-1]

    # ---------------------------------------------------------------- moves

    def _advance(self) -> dict[str, Any]:
        """One move of every chain, and new levels when they are due."""
        s = self.settings
        move = self._choose()
        accepted = self._guided() if move.kind == "guided" else self._redraw(move)
        self.k += 1
        if self.production is None:
            if self.k % s.level_moves == 0:
                self._raise_levels()
        else:
            self._collect()
        return {
            "move": move.kind,
            "acceptance": float(accepted.double().mean()),
            "level": float(self.level.max()),
            "log_p": float(self.log_p.mean()),
            "hit_rate": float((self._reach(self.distance) < self.problem.end.radius).double().mean()),
        }

    def _choose(self) -> Move:
        """Kind and first row of this sweep, drawn without a look at the paths."""
        kinds = ["mix", "tail", "window"] + (["guided"] if self.proposal else [])
        draw, at = self.noise.child("choice"), torch.tensor([self.k])
        kind = kinds[int(draw.integers(0, at, (), len(kinds)))]
        first = int(draw.integers(1, at, (), self.problem.steps)) if kind in ("tail", "window") else 0
        return Move(kind, first)

    def _fresh(self, rows: range) -> Tensor:
        """Normals for rows of zeta in this sweep."""
        ids = self.k * self.settings.chains + torch.arange(self.settings.chains)
        return self.noise.child("moves").normal(rows, ids, self.problem.system.event, self.problem.dtype)

    def _redraw(self, move: Move) -> Bool[Tensor, " M"]:
        """mix, tail or window: accepted iff the new path keeps to its level."""
        n, k, b, zeta = self.problem.steps, move.first, self.settings.mixing, self.zeta.clone()
        if move.kind == "mix":
            zeta = math.sqrt(1.0 - b * b) * zeta + b * self._fresh(range(n + 1))
        else:
            last = n if move.kind == "tail" else min(n, k + self.settings.window)
            zeta[k + 1 : last + 1] = self._fresh(range(k + 1, last + 1))
        return self._accept(zeta, self._roll(zeta, k), k, torch.zeros(self.settings.chains, dtype=torch.float64))

    def _guided(self) -> Bool[Tensor, " M"]:
        """The mix in the noise left by the control: eta = z - u, accepted with min(1, w'/w)."""
        assert self.proposal is not None
        p, b, fresh = self.problem, self.proposal.mixing, self._fresh(range(self.problem.steps + 1))
        z = self.zeta[1:]
        u = self.proposal.controls(self.path)
        log_rn = (u * (z - 0.5 * u)).flatten(2).sum(2).double().sum(0)
        keep = math.sqrt(1.0 - b * b)
        eta, z0 = keep * (z - u) + b * fresh[1:], keep * self.zeta[0] + b * fresh[0]
        path = rollout(self.proposal.dynamics, p.integrator, self._start(z0[None]), p.times, noise=Tape(eta))
        assert path.z is not None
        return self._accept(torch.cat([z0[None], path.z]), path, 0, log_rn - path.log_ratio)

    def _accept(self, zeta: Tensor, path: Path, first: int, log_ratio: Float[Tensor, " M"]) -> Bool[Tensor, " M"]:
        """Take the proposals that keep to their level and pass the Metropolis test; splice them in from `first` on."""
        distance = torch.cat([self.distance[:first], self._distance(path)])
        within = self._reach(distance) < self.level[self.group]
        u = self.noise.child("accept").uniform(self.k, torch.arange(len(self.group)))
        yes = metropolis(torch.where(within, log_ratio, -math.inf), u)
        self.zeta[:, yes] = zeta[:, yes]
        self.distance[first:, yes] = distance[first:, yes]
        for mine, new in ((self.path.x, path.x), (self.path.v, path.v), (self.path.energy, path.energy)):
            if mine is not None and new is not None:
                mine[first:, yes] = new[:, yes]
        self.path.final.status[yes] = path.final.status[yes]
        return yes

    # ---------------------------------------------------------------- levels

    def _raise_levels(self) -> None:
        """Next level of every group on its way: log P += log p, the chains beyond it cloned over the others.

        The level is the distance of the best chain that is lost, not of the worst that is kept: F(level) of m out of N
        kept is then Beta(m + 1, N - m), and with E[m / (N F)] = 1 the choice by quantile adds no bias (as in adaptive
        multilevel splitting, Brehier et al., ESAIM P&S 19, 361 (2015)).
        """
        s = self.settings
        size = s.chains // s.groups
        ordered, chain = self._reach(self.distance).view(s.groups, size).sort(1)
        level = ordered[:, max(1, int(s.quantile * size))].clamp(min=self.problem.end.radius)
        kept = (ordered < level[:, None]).sum(1)
        moving = (self.level > self.problem.end.radius) & (kept > 0)
        self.log_p += torch.where(moving, (kept / size).log(), 0.0)
        self.level = torch.where(moving, level, self.level)
        u = self.noise.child("clones").uniform(self.k, torch.arange(s.chains)).view(s.groups, size)
        rank = torch.arange(size).expand(s.groups, size)
        lost = moving[:, None] & (rank >= kept[:, None])
        parent = chain.gather(1, torch.where(lost, (u * kept[:, None]).long(), rank))
        source = torch.empty_like(chain).scatter_(1, chain, parent) + size * torch.arange(s.groups)[:, None]
        self._clone(source.flatten())
        if bool((self.level <= self.problem.end.radius).all()):
            self.production, self.total = self.k, self.k + s.moves

    def _clone(self, source: Int[Tensor, " M"]) -> None:
        self.zeta, self.distance = self.zeta[:, source], self.distance[:, source]
        self.path = _take(self.path, source)

    # ---------------------------------------------------------------- production

    def _collect(self) -> None:
        """Observables of every chain, and now and then the noise that `paths()` will replay."""
        assert self.production is not None
        arrival = (self.distance < self.problem.end.radius).int().argmax(0)
        energy = self.path.energy
        peak = torch.zeros(len(arrival)) if energy is None else energy.amax(0)
        self.record.append(torch.stack([arrival.double(), peak.double()], 1))
        s, done = self.settings, self.k - self.production
        snapshots = min(s.moves, -(-self.n // s.chains))
        if done * snapshots // s.moves > (done - 1) * snapshots // s.moves:
            self.kept.append(self.zeta.clone())

    def log_p_hit(self) -> Estimate:
        """log P_0(hit) in nats: log of the mean over groups of their products, interval by Student's t of their logs.

        Each product is unbiased; while the logs scatter by sigma, the log of the mean of G errs low by sigma^2 / (2 G).
        """
        if self.production is None:
            return Estimate(math.nan, (-math.inf, 0.0), "nats", 0)
        G = len(self.log_p)
        value = float(torch.logsumexp(self.log_p, 0)) - math.log(G)
        half = student95(G - 1) * float(self.log_p.std()) / math.sqrt(G)
        return Estimate(value, (value - half, value + half), "nats", self.settings.chains)

    def paths(self) -> Paths:
        """The kept paths, replayed from their noise; they are draws from P_0 given a hit, correlated ones."""
        log_p, s = self.log_p_hit(), self.settings
        arrived = self.production is not None
        kept = self.kept or [self.zeta]
        count = min(s.chains, -(-self.n // len(kept)))
        some = torch.arange(count) * s.chains // count
        # replayed in the batch they were made in: rounding depends on its size, and a hit could be lost by it
        path = concatenate([_take(self._roll(zeta), some) for zeta in kept])
        record = torch.stack(self.record) if self.record else torch.zeros(1, s.chains, 1)
        effective = min(float(path.x.shape[1]), effective_number(record, self.group))
        notes = (f"Fixed start; worth {effective:.1f} independent paths by autocorrelation and scatter of groups.",)
        if not arrived:
            far = float(self.level.max())
            notes = (f"After {s.levels} levels the chains are still at distance {far:.3g}: give them more moves.",)
        log_rn = torch.full((path.x.shape[1],), -log_p.value, dtype=torch.float64)
        return Paths(
            self.problem,
            path,
            log_rn,
            self.name,
            exact=arrived,
            cost=self.cost,
            effective=effective,
            notes=notes,
            extra={"log_p_hit": log_p},
        )

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        """The noise of every chain (its path is a function of it), levels, records."""
        flat = {
            "counters": torch.tensor([self.total, -1 if self.production is None else self.production, len(self.kept)]),
            "zeta": self.zeta,
            "level": self.level,
            "log_p": self.log_p,
        }
        if self.record:
            flat["record"] = torch.stack(self.record)
        return flat | {f"kept{i}": zeta for i, zeta in enumerate(self.kept)}

    def _load(self, state: dict[str, Tensor]) -> None:
        self.total, production, kept = state["counters"].tolist()
        self.production = None if production < 0 else production
        self.zeta, self.level, self.log_p = (state[key].clone() for key in ("zeta", "level", "log_p"))
        self.record = list(state["record"]) if "record" in state else []
        self.kept = [state[f"kept{i}"] for i in range(kept)]
        self._replay()


def _take(path: Path, index: Int[Tensor, " m"]) -> Path:
    """The paths at `index`."""
    v, z, energy = (None if a is None else a[:, index] for a in (path.v, path.z, path.energy))
    return Path(path.times, path.x[:, index], v, z, energy, path.log_ratio[index], path.final.take(index), path.stride)
