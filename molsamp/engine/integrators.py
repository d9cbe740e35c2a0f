"""Integrators as tables of rows.

A `Row` carries the state over one interval [t0, t1] by a short program of three verbs:

    Evaluate(t)                     g <- dynamics at (t, x), pushed on the history
    Line(block, keep, weights, N)   block <- sum_b keep_b b + sum_k weights_k g_k + N z     (g_0 is the newest)
    Mix(weights)                    g_0 <- sum_k weights_k g_k, for this row and those that follow

so every scheme here, from Euler-Maruyama to DPM-Solver++, is the linear recurrence
state' = A state + sum_k W_k g_k + N z, with coefficients computed once in float64 (`Integrator.rows`).

A row knows its density when just one line is noisy and everything evaluated comes before the draw. That line,
solved for z, gives log p(state' | state) = log N(z; 0, 1) - log |N|; the other lines are deterministic and are
checked. The sampler and its density are the same lines, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Dynamics, Ito, Overdamped, Underdamped
from molsamp.engine.state import Memory, Particles

Coefficient = float | Tensor  # a Tensor broadcasts over the event, for example one entry per atom


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the dynamics at time t and the current x, and push what it answers on the history."""

    t: float

    def act(
        self, dyn: Dynamics, state: dict[str, Tensor], history: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """(the history after, the energy); a guide's evaluation (`guides`) sees its past there and may move x."""
        g, energy = dyn.evaluate(self.t, state["x"])
        return (g, *history), energy


@dataclass(frozen=True)
class Line:
    """block <- sum_b keep[b] b + sum_k weights[k] g_k + noise z."""

    block: str
    keep: dict[str, Coefficient]
    weights: tuple[Coefficient, ...] = ()
    noise: Coefficient | None = None

    def to(self, like: Tensor) -> Line:
        """The same line with its coefficients in the dtype and on the device of `like`."""

        def cast(a):
            return a.to(like) if isinstance(a, Tensor) else a

        return Line(
            self.block,
            {b: cast(a) for b, a in self.keep.items()},
            tuple(map(cast, self.weights)),
            cast(self.noise),
        )


@dataclass(frozen=True)
class Mix:
    """g_0 <- sum_k weights[k] g_k; weights that add up to 1 leave a constant history alone."""

    weights: tuple[Coefficient, ...]

    def to(self, like: Tensor) -> Mix:
        """The same with its weights in the dtype and on the device of `like`."""
        return Mix(tuple(a.to(like) if isinstance(a, Tensor) else a for a in self.weights))


Verb = Evaluate | Line | Mix


@dataclass(frozen=True)
class Row:
    """One step over [t0, t1]; `history` evaluations are kept for the rows that follow."""

    t0: float
    t1: float
    program: tuple[Verb, ...]
    history: int = 1

    def to(self, like: Tensor) -> Row:
        """The same row with its coefficients in the dtype and on the device of `like`."""
        if self._plain:
            return self
        program = tuple(p if isinstance(p, Evaluate) else p.to(like) for p in self.program)
        return Row(self.t0, self.t1, program, self.history)

    @cached_property
    def _plain(self) -> bool:
        """Whether all coefficients are numbers, which have no dtype and are on no device."""
        verbs = [p for p in self.program if not isinstance(p, Evaluate)]
        held = [a for p in verbs for a in (*p.weights, *((*p.keep.values(), p.noise) if isinstance(p, Line) else ()))]
        return not any(isinstance(a, Tensor) for a in held)

    @property
    def draws(self) -> bool:
        """Whether the row has a noisy line."""
        return any(isinstance(p, Line) and p.noise is not None for p in self.program)

    def split(self) -> tuple[tuple, Line, tuple]:
        """The program before, at and after the noisy line.

        Raises:
            ValueError: if the row has no density: no noisy line or several, or the noise is seen by an
                evaluation, or the noisy block is changed again after the draw.
        """
        noisy = [k for k, p in enumerate(self.program) if isinstance(p, Line) and p.noise is not None]
        if len(noisy) == 1:
            line, after = self.program[noisy[0]], self.program[noisy[0] + 1 :]
            assert isinstance(line, Line)
            if all(isinstance(p, Line) and p.block != line.block for p in after):
                return self.program[: noisy[0]], line, after
        raise ValueError(
            f"the row over [{self.t0}, {self.t1}] has no density: it needs exactly one noisy line, "
            "after every evaluation, whose block is not changed again"
        )


Table = list[Row]


class Info(NamedTuple):
    """What an observer may want of one row: total displacement z = u + noise, the control u, energy at the start."""

    z: Tensor | None
    u: Tensor | None
    energy: Tensor | None


@runtime_checkable
class Integrator(Protocol):
    """A pure function from a dynamics and a time grid to a table of rows."""

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table: ...


def step(
    row: Row,
    dyn: Dynamics,
    p: Particles,
    noise: Float[Tensor, "n *event"] | None,
    memory: Memory = Memory(),
    *,
    refresh: bool = True,
    heat: Coefficient = 1.0,
) -> tuple[Particles, Memory, Info]:
    """Carry the particles over one row.

    Args:
        row: the row.
        dyn: the dynamics; under a `Controlled` one the row's z becomes u + heat x noise.
        p: the particles at row.t0.
        noise: standard normals for the row's noisy line; None for a row without one.
        memory: what the previous row handed on.
        refresh: whether a held control is evaluated anew in this row.
        heat: sqrt(T_sampling / T) on the drawn noise, per particle if a Tensor; z stays in units of N at T.

    Returns:
        (particles at row.t1, memory, info).
    """
    u = None
    if isinstance(dyn, Controlled):
        u = dyn.control(row.t0, p.x, p.v) if refresh or memory.held is None else memory.held
    z = noise if noise is None or (isinstance(heat, float) and heat == 1.0) else _axpy(heat, noise, None)
    if u is not None and z is not None:
        z = u + z
    state = {b: getattr(p, b) for b in dyn.blocks}
    history, energy = _run(row.program, dyn, state, z, memory.history)
    return p.evolve(**state), Memory(history[: row.history], u), Info(z, u, energy)


def residual(
    row: Row, dyn: Dynamics, p0: Particles, p1: Particles, memory: Memory = Memory()
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, " n"], Memory]:
    """Solve a row for its z, given the states at both ends.

    Returns:
        (z in units of the row's N with any control counted in it, the largest mismatch per particle of the
        blocks that must follow from (p0, p1) without noise, memory).

    Raises:
        ValueError: if the row has no density (an evaluation sees this row's noise, or there is no noise).
    """
    before, line, after = row.split()
    state = {b: getattr(p0, b) for b in dyn.blocks}
    history, _ = _run(before, dyn, state, None, memory.history)
    target = getattr(p1, line.block)
    z = (target - _apply(line, state, None, history)) / line.to(target).noise
    state[line.block] = target
    _run(after, dyn, state, None, history)
    gaps = [(state[b] - getattr(p1, b)).abs().flatten(1).amax(1) for b in dyn.blocks]
    return z, torch.stack(gaps).amax(0), Memory(history[: row.history], memory.held)


def rounding(dtype: torch.dtype) -> float:
    """Allowed mismatch of a deterministic block, nm: schemes differ by as little as 1e-5 nm a step at 1 fs."""
    return 1e-9 if dtype == torch.float64 else 1e-5


def log_prob(
    row: Row, dyn: Dynamics, p0: Particles, p1: Particles, memory: Memory = Memory(), *, atol: float | None = None
) -> tuple[Float[Tensor, " n"], Memory]:
    """Exact log density (nats, float64) of the step p0 -> p1; -inf where a deterministic block is off by > atol.

    The default atol is `rounding`. Under a `Controlled` dynamics the density is that of the controlled step;
    `memory.held` supplies u when set.
    """
    z, gap, after = residual(row, dyn, p0, p1, memory)
    if isinstance(dyn, Controlled):
        u = dyn.control(row.t0, p0.x, p0.v) if memory.held is None else memory.held
        z = z - u
    z = z.double()
    log_n = torch.as_tensor(row.split()[1].noise, dtype=torch.float64).log().expand(z.shape[1:]).sum()
    density = -0.5 * (z**2).flatten(1).sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi) - log_n.to(z.device)
    atol = rounding(gap.dtype) if atol is None else atol
    return torch.where(gap <= atol, density, -torch.inf), after


def _run(program, dyn, state: dict[str, Tensor], z: Tensor | None, history: tuple[Tensor, ...]):
    """Run verbs on `state` in place; returns (history, energy at the first evaluation)."""
    energy = None
    first = True
    for verb in program:
        if isinstance(verb, Evaluate):
            history, e = verb.act(dyn, state, history)
            energy, first = (e if first else energy), False
        elif isinstance(verb, Mix):
            history = (_added(None, verb.weights, history), *history[1:])
        else:
            state[verb.block] = _apply(verb, state, z, history)
    return history, energy


def _apply(line: Line, state: dict[str, Tensor], z: Tensor | None, history: tuple[Tensor, ...]) -> Tensor:
    out = None
    for b, a in line.keep.items():
        out = _axpy(a, state[b], out)
    out = _added(out, line.weights, history)
    return out if z is None or line.noise is None else _axpy(line.noise, z, out)


def _added(out: Tensor | None, weights: Sequence[Coefficient], history: tuple[Tensor, ...]) -> Tensor:
    """out + sum_k weights_k g_k."""
    for w, g in zip(weights, history, strict=False):
        out = _axpy(w, g, out)
    assert out is not None
    return out


def _axpy(a: Coefficient, x: Tensor, y: Tensor | None) -> Tensor:
    """a x + y in the dtype of x."""
    if isinstance(a, Tensor):
        return a.to(x) * x if y is None else torch.addcmul(y, a.to(x), x)
    if y is None:
        return x if a == 1.0 else a * x
    return torch.add(y, x, alpha=a)


def _base(dyn: Dynamics) -> Dynamics:
    return dyn.base if isinstance(dyn, Controlled) else dyn


def require(dyn: Dynamics, kinds: tuple[type, ...], name: str):
    base = _base(dyn)
    if not isinstance(base, kinds):
        allowed = ", ".join(k.__name__ for k in kinds)
        raise ValueError(f"{name} integrates {allowed}, not {type(base).__name__}")
    return base


class EulerMaruyama:
    """x' = x + h drift + diffusion sqrt|h| z (Maruyama 1955); h < 0 runs a reversed diffusion down in time."""

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval."""
        base = require(dyn, (Overdamped, Ito), "EulerMaruyama")
        return [
            Row(
                a,
                b,
                (
                    Evaluate(a),
                    Line("x", {"x": 1.0}, (b - a,), _spread(base.diffusion(a) * abs(b - a) ** 0.5)),
                ),
            )
            for a, b in _intervals(times)
        ]


class Heun:
    """Trapezoidal predictor-corrector of order 2 for an ODE: x~ = x + h g0, x' = x~ + h (g1 - g0) / 2."""

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval, two evaluations each; no noise, so no density."""
        require(dyn, (Ito,), "Heun")
        return [
            Row(
                a,
                b,
                (
                    Evaluate(a),
                    Line("x", {"x": 1.0}, (b - a,)),
                    Evaluate(b),
                    Line("x", {"x": 1.0}, (0.5 * (b - a), 0.5 * (a - b))),
                ),
            )
            for a, b in _intervals(times)
        ]


class SemiImplicitEuler:
    """v' = (1 - gamma h) v + h F/m + s z, x' = x + h v', with s^2 = 2 gamma kT h / m."""

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval."""
        base = require(dyn, (Underdamped,), "SemiImplicitEuler")
        table = []
        for a, b in _intervals(times):
            h = b - a
            s = base.thermal_speed() * (2.0 * base.friction * h) ** 0.5
            table.append(
                Row(
                    a,
                    b,
                    (
                        Evaluate(a),
                        Line("v", {"v": 1.0 - base.friction * h}, (h,), s),
                        Line("x", {"x": 1.0, "v": h}),
                    ),
                )
            )
        return table


class LangevinMiddle:
    """Kick, half drift, Ornstein-Uhlenbeck, half drift; v is recorded right after the noise.

    v* = v + h F/m;  x* = x + h v*/2;  v' = c v* + s z;  x' = x* + h v'/2;  c = exp(-gamma h), s^2 = (1 - c^2) kT/m.
    Source: Zhang et al., J. Phys. Chem. A 123, 6056 (2019).
    """

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval."""
        base = require(dyn, (Underdamped,), "LangevinMiddle")

        @cache
        def lines(h: float) -> tuple[Line, ...]:
            c = math.exp(-base.friction * h)
            kick = Line("v", {"v": 1.0}, (h,))
            drift = Line("x", {"x": 1.0, "v": 0.5 * h})
            ornstein_uhlenbeck = Line("v", {"v": c}, (), base.thermal_speed() * (1.0 - c * c) ** 0.5)
            return kick, drift, ornstein_uhlenbeck, drift

        return [Row(a, b, (Evaluate(a), *lines(b - a))) for a, b in _intervals(times)]


def _spread(n: float) -> float | None:
    """A noise coefficient, or None where it vanishes: then the line draws nothing."""
    return n if n > 0.0 else None


def _intervals(times: Sequence[float]) -> list[tuple[float, float]]:
    return list(pairwise(times))
