"""Feynman-Kac steering: particles of any dynamics, weighed on their way so that they end in p(x) exp(reward(x)) / Z.

It is `particles.smc` with a potential made of a reward. At every boundary k the reward that a particle may expect, R_k
(exactly: log E[exp reward | x_k], which costs no variance; often the reward of the predicted x_0), is turned into a
log-weight increment; at the end R is the reward itself. Whatever is expected on the way, the increments of a path add
up to its reward:

    difference   R_k - R_{k-1}                       R before the first boundary is 0
    max          max(R_1 .. R_k)                     and at the end reward - all increments so far
    sum          R_1 + .. + R_k                      likewise

so log Z is unbiased (as Z) and weighted averages are consistent at every number of particles. Log weights are carried
in float64, and resampling hands the mean weight on, so that none is lost where the population is not resampled.

Source: Singhal et al., "A general framework for inference-time scaling and steering of diffusion models", 2025; with
the weights carried, for both the choices of when to resample and of potentials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Dynamics, LinearSDE
from molsamp.engine.integrators import Integrator, Line, Row, Table, residual, rounding
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.particles import Scheme, grouped, live_weights, remembered, sizes, smc
from molsamp.engine.state import Memory, Particles, Path, Status

Kind = Literal["difference", "max", "sum"]
Reward = Callable[[Tensor], Tensor]
Value = Callable[[float, Particles], Tensor]


class Extinct(RuntimeError):
    """No particle of a population has any weight left."""


class Collapse(UserWarning):
    """A population was resampled from a single ancestor."""


def steer(
    dyn: Dynamics,
    integrator: Integrator,
    start: Particles,
    times: Sequence[float],
    reward: Reward,
    *,
    noise: Noise,
    value: Value,
    kind: Kind = "difference",
    every: int = 1,
    scheme: Scheme = "systematic",
    below: float = 0.5,
    groups: int = 1,
    base: Integrator | None = None,
    each: Callable[[int, Particles, Tensor], None] | None = None,
) -> Steered:
    """Weighted particles of p(x) exp(reward(x)) / Z, where p is the law in which the free rollout ends.

    At few particles this is a search; their law is the tilted one as their number grows, with an error like n^(-1/2).

    Args:
        dyn, integrator, start, times, noise: as in `rollout`; molecules, vehicles and pictures alike.
        reward: x (n, *event) -> log tilt of each at the end, nats; -inf forbids. It need not be differentiable.
        value: (t, particles) -> what log tilt each may expect, nats, at boundaries before the end; `foreseen`,
            `annealed` and `unforeseen` make one. Any is right; one that promises too much kills those who would arrive.
        kind: of potential, as above.
        every: rows between boundaries.
        scheme, below: as in `resample`.
        groups: populations of equal size that lie one after the other, each resampled within itself: independent
            problems, or replicas of one, whose scatter is the most honest error bar (`Steered.pooled`).
        base: where `integrator` is another than the model's own, for example guided, the integrator of the law p:
            the log ratio of every step's densities joins the weights. It costs another evaluation a row.
        each: observer called at every boundary with (row, weighted particles, index among them of the ancestor of
            each that goes on); what it raises ends the steering.

    Raises:
        ValueError: a reward or value that raises, has another shape, or is NaN or +inf, naming particle and row; an
            integrator that draws nothing, whose copies would stay copies; a base whose steps have other noise.
        Extinct: once no particle of a population has any weight, naming the last and the row.

    Warns:
        Collapse: a population resampled from one ancestor; also in `Steered.warnings`.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"potential {kind!r} is unknown, allowed are {', '.join(get_args(Kind))}")
    grouped(start.logw, groups)
    table = integrator.rows(dyn, times)
    if not any(row.draws for row in table):
        raise ValueError("no row of this integrator draws noise, so that resampled copies would stay copies; eta > 0")
    steering = _Steering(start, times, reward, value, kind, groups)
    work = None if base is None else _Work(dyn, table, base.rows(dyn, times))

    def potential(k: int, p: Particles) -> Tensor:
        increment = steering.increment(k, p)
        return increment if work is None else increment + work.ratio

    def follow(k: int, segment: Path, cloud: Particles, ancestors: Tensor) -> None:
        steering.resampled(k, cloud, ancestors)
        if work is not None:
            work.resampled(ancestors)
        if each is not None:
            each(k, cloud, ancestors)

    p, _ = smc(
        dyn,
        integrator,
        start,
        times,
        potential,
        noise=noise,
        every=every,
        scheme=scheme,
        below=below,
        groups=groups,
        watch=None if work is None else work.watch,
        each=follow,
    )
    return Steered(
        p,
        groups,
        tuple(steering.rows),
        torch.stack(steering.effective),
        torch.stack(steering.ancestors),
        tuple(steering.warnings),
    )


def foreseen(dyn: LinearSDE, reward: Reward) -> Value:
    """The reward of the predicted x_0, reward(E[x_0 | x_t]): one network call a boundary."""
    return lambda t, p: reward(dyn.denoise(p.x, t))


def annealed(reward: Reward, first: float, last: float) -> Value:
    """(t - first) / (last - first) reward(x): a walker that may still move is not yet judged by where it is.

    For rewards that are wide against how far a walker goes; a narrow one asks for what may be expected.
    """
    return lambda t, p: (t - first) / (last - first) * reward(p.x)


def unforeseen(t: float, p: Particles) -> Float[Tensor, " n"]:
    """Nothing is expected: all weight comes at the end, plain importance sampling."""
    return torch.zeros_like(p.logw)


class _Steering:
    """The reward's potential with what it carries of every particle, and the record of the populations."""

    def __init__(self, start: Particles, times: Sequence[float], reward: Reward, value: Value, kind, groups):
        self.times, self.reward, self.value, self.kind, self.groups = times, reward, value, kind, groups
        self.spent = torch.zeros_like(start.logw)  # log potentials of the path so far
        self.tally = torch.full_like(start.logw, -torch.inf if kind == "max" else 0.0)
        self.last = start
        self.rows: list[int] = []
        self.effective: list[Tensor] = []
        self.ancestors: list[Tensor] = []
        self.warnings: list[str] = []

    def increment(self, k: int, p: Particles) -> Float[Tensor, " n"]:
        """log G of the boundary after row k."""
        t, end = self.times[k], k == len(self.times) - 1
        if end:
            R = asked("reward", lambda q: self.reward(q.x), p, k, t)
        else:
            R = asked("value", lambda q: self.value(t, q), p, k, t)
        if end or self.kind == "difference":
            G = R - self.spent
        else:
            self.tally = G = torch.maximum(self.tally, R) if self.kind == "max" else self.tally + R
        G = torch.where(self.spent > -torch.inf, G, 0.0)  # what weighs nothing goes on weighing nothing
        self.spent = self.spent + G
        return G

    def resampled(self, k: int, cloud: Particles, ancestors: Tensor) -> None:
        """Take note of the weighted population, and follow the ancestors."""
        logw = grouped(live_weights(cloud), self.groups)
        effective, parents = sizes(logw), grouped(ancestors, self.groups)
        self._extinct(k, cloud, effective)
        changed = (parents != grouped(torch.arange(len(cloud), device=ancestors.device), self.groups)).any(1)
        single = (changed & (parents == parents[:, :1]).all(1)).nonzero()[:, 0].tolist()
        if single and parents.shape[1] > 1:
            g, others = single[0], f" (and so in {len(single) - 1} more)" if len(single) > 1 else ""
            text = (
                f"row {k}, t = {self.times[k]:g}: all {parents.shape[1]} particles of population {g} descend from "
                f"particle {int(parents[g, 0])} alone, ESS {float(effective[g]):.2f}{others}; more particles, a weaker "
                "reward or nearer boundaries help"
            )
            self.warnings.append(text)
            warnings.warn(text, Collapse, stacklevel=5)  # at the call of `steer`
        self.rows.append(k)
        self.effective.append(effective)
        self.ancestors.append(ancestors)
        self.spent, self.tally = self.spent[ancestors], self.tally[ancestors]
        self.last = cloud.take(ancestors)

    def _extinct(self, k: int, cloud: Particles, effective: Tensor) -> None:
        if bool((effective > 0.0).all()):
            return
        g = int((effective == 0.0).nonzero()[0])
        m = len(cloud) // self.groups
        i = g * m + int(grouped(live_weights(self.last), self.groups)[g].argmax())
        diverged = int((grouped(cloud.status, self.groups)[g] == Status.DIVERGED).sum())
        raise Extinct(
            f"row {k}, t = {self.times[k]:g}: none of the {m} particles of population {g} has any weight left "
            f"({diverged} diverged); the last that weighed most was particle {i}, id {int(cloud.ids[i])}"
        )


def asked(what: str, of: Callable[[Particles], Tensor], p: Particles, k: int, t: float) -> Float[Tensor, " n"]:
    """What a function of the user says of every particle, float64, checked.

    Raises:
        ValueError: if it raises, has another shape, or is NaN or +inf where the particle is OK; names particle and row.
    """
    try:
        said = of(p)
    except Exception as error:
        who = f"particle {i}, id {int(p.ids[i])}" if (i := _culprit(of, p)) is not None else "no particle by itself"
        raise ValueError(
            f"the {what} raised {type(error).__name__} after row {k}, t = {t:g}, at {who}: {error}"
        ) from error
    if not isinstance(said, Tensor) or said.shape != (len(p),):
        got = f"shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
        raise ValueError(
            f"the {what} gave {got} after row {k}, t = {t:g}, for particles 0 .. {len(p) - 1}; "
            f"allowed is a tensor of shape ({len(p)},), one number a particle"
        )
    said = said.detach().to(p.logw)
    bad = (p.status != Status.DIVERGED) & ~(said < torch.inf)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"the {what} of particle {i}, id {int(p.ids[i])}, is {float(said[i])} after row {k}, t = {t:g} ("
            f"{int(bad.sum())} of {len(p)} are so); allowed are numbers and -inf"
        )
    return torch.where(p.status == Status.DIVERGED, 0.0, said)


def _culprit(of: Callable[[Particles], Tensor], p: Particles) -> int | None:
    """The first particle of which the function raises by itself."""
    for i in range(len(p)):
        try:
            of(p.take(torch.tensor([i], device=p.x.device)))
        except Exception:
            return i
    return None


class _Work:
    """log density of every step under the base less that under the table that made it: 1/2 sum (z^2 - z_base^2)."""

    def __init__(self, dyn: Dynamics, table: Table, base: Table):
        self.dyn, self.base, self.memory, self.done = dyn, base, Memory(), 0
        self.ratio = torch.zeros(())
        for k, (row, own) in enumerate(zip(table, base, strict=True)):
            if not (row.draws and own.draws and _same(_noise(row), _noise(own))):
                raise ValueError(f"row {k} over [{row.t0:g}, {row.t1:g}] has no noise, or other noise than its base's")

    def watch(self, k: int, segment: Path) -> None:
        ratio = torch.zeros_like(segment.log_ratio)
        assert segment.z is not None
        for j, row in enumerate(self.base[self.done : k]):
            z, gap, self.memory = residual(row, self.dyn, segment.frame(j), segment.frame(j + 1), self.memory)
            own = segment.z[j]
            ratio += (0.5 * (own - z) * (own + z)).flatten(1).sum(1).double()
            ratio = torch.where(gap <= rounding(gap.dtype), ratio, -torch.inf)
        self.ratio, self.done = ratio, k

    def resampled(self, ancestors: Tensor) -> None:
        self.memory = remembered(self.memory, ancestors)


def _noise(row: Row) -> list[Tensor]:
    return [torch.as_tensor(v.noise) for v in row.program if isinstance(v, Line) and v.noise is not None]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(u.double(), w.double(), rtol=1e-12) for u, w in zip(a, b, strict=True)
    )
