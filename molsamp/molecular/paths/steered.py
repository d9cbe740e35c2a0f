"""Untrained steering: the harmonic pull of every atom (the null beside every result) and the moving restraint.

The pull b = k (x_B - x) acts as a *control*: it shifts the noise, so that log dP_b/dP_0 is exact. The moving
restraint k (s(x) - lambda(t))^2 / 2 is an *energy term*: it changes the dynamics itself and has no density with
respect to P_0; what it has is work. With lambda switched between rows,

    W = sum_k V(x_{k+1}; lambda_{k+1}) - V(x_{k+1}; lambda_k),      <exp(-W/kT)> = exp(-dF/kT)   (Jarzynski 1997),

dF = F(lambda_n) - F(lambda_0) between the two restrained ensembles, and Crooks' P_F(W)/P_R(-W) = exp((W - dF)/kT).
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Controlled, centred
from molsamp.engine.estimates import Estimate, mean
from molsamp.engine.integrators import Info
from molsamp.engine.measures import ess, log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.cvs import CV, RMSD, Stack, wrap
from molsamp.molecular.energies import Energy, Sum
from molsamp.molecular.geometry import Superposition
from molsamp.molecular.paths.free import Batches, concatenate
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import SteeredSettings
from molsamp.molecular.work import Cost

FEW = 10.0  # effective work values below which an exponential average is called biased


class Pull:
    """u of the pull b = k (x_B - x) per atom, x_B superposed on x by its heavy atoms; the centre of mass is left alone.

    A force b adds h b/m to v before LangevinMiddle's noise line v' = c v + s z, hence u = b c h / (s m); in
    Euler-Maruyama, x' = x + h b + sqrt(2 kT h) z, it is u = b sqrt(h / (2 kT)) (unit mobility).

    Args:
        problem: end state, masses and temperature.
        stiffness: k, kJ/mol/nm^2.
    """

    def __init__(self, problem: Problem, stiffness: float):
        self.problem, h = problem, problem.timestep
        self.end = problem.end.x.to(problem.dtype)
        if problem.molecular:
            self.superposition = Superposition(problem.end.x, problem.system.heavy)
            assert problem.friction is not None  # underdamped
            c = math.exp(-problem.friction * h)
            s = (problem.kT / problem.masses) ** 0.5 * math.sqrt(1.0 - c * c)
            self.scale = (stiffness * c * h / (s * problem.masses)).to(problem.dtype)
        else:
            self.scale = torch.tensor(stiffness * math.sqrt(h / (2.0 * problem.kT)), dtype=problem.dtype)

    def __call__(self, t: float, x: Tensor, v: Tensor | None) -> Float[Tensor, "n *event"]:
        """u in noise units."""
        if not self.problem.molecular:
            return self.scale * (self.end - x)
        R, shift = self.superposition(x)
        u = self.scale * ((self.end - shift[:, None]) @ R - x)
        return centred(u, self.problem.masses)


def pull(problem: Problem, ids: Int[Tensor, " n"], noise: Noise, stiffness: float, hold: int = 10) -> Path:
    """Paths under the pull, saved at every row; `log_ratio` is log dP_b/dP_0.

    Args:
        problem: what to sample.
        ids: keys of the paths.
        noise: of the velocities and the rows.
        stiffness: kJ/mol/nm^2.
        hold: rows for which one u is kept (exact for any value).
    """
    dyn = Controlled(problem.dynamics, Pull(problem, stiffness), hold)
    start = problem.initial(noise, ids)
    return rollout(dyn, problem.integrator, start, problem.times, noise=noise)


def steered_null(problem: Problem, n: int, noise: Noise, stiffness: float = 500.0, hold: int = 10) -> Paths:
    """What steering without learning reaches: the line that stands beside every learned result."""
    before = problem.energy.evaluations
    path = pull(problem, torch.arange(n), noise, stiffness, hold)
    cost = Cost(energy_evaluations=problem.energy.evaluations - before)
    note = f"Untrained pull of every atom, k = {stiffness:g} kJ/mol/nm^2, held for {hold} rows."
    return Paths(problem, path, path.log_ratio, "steered", cost=cost, notes=(note,))


class Restraint(Energy):
    """V(x; lambda) = k |s(x) - lambda|^2 / 2 with a centre lambda that moves between rows.

    Args:
        cv: s, of c components.
        centre: lambda, (c,) or (n, c), one of each configuration, where it is now; assigned to by whoever moves it.
        stiffness: k, kJ/mol per squared unit of s.
        event: shape of one configuration.
    """

    def __init__(self, cv: CV, centre: Float[Tensor, "*n c"], stiffness: float, event: tuple[int, ...]):
        self.cv, self.centre, self.stiffness, self.event = cv, centre, stiffness, event

    def at(self, s: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """V at CV values s, kJ/mol."""
        d = wrap(s - self.centre.to(s), self.cv.period)
        return 0.5 * self.stiffness * d.square().sum(-1)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            V = self.at(self.cv(at))
            (g,) = torch.autograd.grad(V.sum(), at)
        return V.detach(), -g


def moving_pull(
    problem: Problem,
    start: Particles,
    noise: Noise,
    restraint: Restraint,
    centres: Float[Tensor, "F c"],
    first: int = 0,
) -> tuple[Path, Float[Tensor, " n"]]:
    """Carry particles over rows 0 .. n-1 while the centre moves; row k sees centres[k].

    Returns:
        (path with the energies of the molecule alone, work W in kJ/mol, (n,), float64).
    """
    work = torch.zeros(len(start), dtype=torch.float64)
    restraint.centre = centres[0]
    bias = [restraint.at(restraint.cv(start.x))]

    def switch(k: int, p: Particles, info: Info) -> None:
        s = restraint.cv(p.x)
        before = restraint.at(s).double()
        restraint.centre = centres[k + 1]
        bias.append(restraint.at(s))
        work.add_(bias[-1].double() - before)

    joint = Sum(problem.energy, restraint)
    dyn = replace(problem.dynamics, field=joint)
    times = [k * problem.timestep for k in range(len(centres))]
    path = rollout(dyn, problem.integrator, start, times, noise=noise, each=switch, first=first)
    problem.energy.evaluations += joint.evaluations
    assert path.energy is not None
    return replace(path, energy=path.energy - torch.stack(bias)), work


class Steered(Batches):
    """Steered dynamics: the untrained pull, or the moving restraint, forward (even units) and backward (odd units).

    Arguments as in `Sampler`, settings as in `SteeredSettings`.
    """

    name = "steered"
    Settings = SteeredSettings

    def _begin(self) -> None:
        self.batch, self.drawn, self.total = self.n, [], 1
        self.work: dict[str, Tensor] = {}
        if self.settings.kind != "pull":
            self.total = 2
            self.cv = _variable(self.problem, self.settings.kind)

    def _advance(self) -> dict[str, Any]:
        metrics = super()._advance()
        if self.settings.kind == "pull":
            return metrics
        metrics["log_rn"] = math.nan
        return metrics | {"work": float(self.work[self._direction(self.k - 1)].mean())}

    def _draw(self, ids: Int[Tensor, " m"]) -> Path:
        s = self.settings
        if s.kind == "pull":
            return pull(self.problem, torch.arange(self.n), self.noise, s.stiffness, s.hold)
        direction = self._direction(self.k)
        path, self.work[direction] = self._restrained(direction)
        return path

    @staticmethod
    def _direction(k: int) -> str:
        return ("forward", "backward")[k]

    def _restrained(self, direction: str) -> tuple[Path, Tensor]:
        """Equilibrate at the first centre, then move it in a straight line (the short way round) to the last."""
        p, s = self.problem, self.settings
        noise, ids = self.noise.child(direction), torch.arange(self.n)
        begin, finish = (p.start, p.end) if direction == "forward" else (p.end, p.start)
        ends = [self.cv(state.x.double()[None])[0] for state in (begin, finish)]
        share = torch.linspace(0.0, 1.0, p.steps + 1, dtype=torch.float64)[:, None]
        centres = ends[0] + share * wrap(ends[1] - ends[0], self.cv.period)
        restraint = Restraint(self.cv, centres[0], s.stiffness, p.system.event)
        start = p.initial(noise, ids).evolve(x=begin.x.to(p.dtype).expand(self.n, *p.system.event).clone())
        if s.equilibrate:
            held = centres[:1].expand(s.equilibrate + 1, -1)
            start = moving_pull(p, start, noise, restraint, held)[0].final
        return moving_pull(p, start, noise, restraint, centres, first=s.equilibrate)

    def paths(self) -> Paths:
        """The forward paths; of a moving restraint also the free energy between its first and last ensemble."""
        path, s = concatenate(self.drawn[:1]), self.settings
        if s.kind == "pull":
            note = f"Untrained pull of every atom, k = {s.stiffness:g} kJ/mol/nm^2, held for {s.hold} rows."
            return Paths(self.problem, path, path.log_ratio, self.name, cost=self.cost, notes=(note,))
        extra, notes = work_estimates(self.work["forward"], self.work["backward"], self.problem)
        notes = (
            f"A moving restraint changes the dynamics and has no log dP_b/dP_0. Its free energies lie between the "
            f"ensembles restrained at the two ends, each reached by {s.equilibrate} rows of equilibration.",
            *notes,
        )
        log_rn = torch.full_like(path.log_ratio, math.nan)
        return Paths(self.problem, path, log_rn, self.name, cost=self.cost, notes=notes, extra=extra)

    def _state(self) -> dict[str, Tensor]:
        return super()._state() | flatten_state("work", self.work)

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        self.work = with_prefix("work", state)


def _variable(problem: Problem, kind: str) -> CV:
    """The CV a restraint moves along.

    Raises:
        ValueError: for "cv" where the system has none, or "rmsd" for a toy.
    """
    system = problem.system
    if kind == "rmsd":
        if not problem.molecular:
            raise ValueError(f"{system.name}: steering by 'rmsd' needs a molecule; a toy is steered by 'cv' or 'pull'")
        return RMSD(problem.end.x, system.heavy.tolist())
    if not system.cvs:
        raise ValueError(f"{system.name}: steering by 'cv' needs collective variables, and its system.toml has none")
    return Stack(list(system.cvs.values()))


def work_estimates(
    forward: Float[Tensor, " n"], backward: Float[Tensor, " m"], problem: Problem
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """dF in kJ/mol from forward work, from backward work, and from both by Bennett's ratio (Crooks 1999).

    Jarzynski's average is dominated by the few least dissipative pulls: forward it errs high and backward low by
    about the dissipated work less kT ln n until n outgrows exp(W_diss/kT). Its interval covers that error only while
    the effective number of pulls is large, so a note says when it is not; the ratio needs overlap alone.

    Args:
        forward, backward: W of each pull, kJ/mol.
        problem: for kT.
    """
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it greets with warnings on import
    from pymbar.other_estimators import bar
    from pymbar.utils import BoundsError, ConvergenceError

    kT, unit = problem.kT, "kJ/mol" if problem.molecular else "1"
    table, notes = {"work": mean(forward, unit)}, []
    for name, sign, W in (("dF_jarzynski_forward", 1.0, forward), ("dF_jarzynski_backward", -1.0, backward)):
        logw = -W.double() / kT
        value, error = log_mean_exp(logw)
        dF, half, n_eff = -sign * kT * value, 1.96 * kT * error, ess(logw)
        table[name] = Estimate(dF, (dF - half, dF + half), unit, len(W), n_eff)
        if n_eff < FEW:
            notes.append(
                f"{name} rests on {n_eff:.1f} effective pulls of {len(W)}: its error is a bias, not in its interval."
            )
    w_F, w_R = (forward.double() / kT).numpy(), (backward.double() / kT).numpy()
    dF, half = math.nan, math.nan
    try:
        both = bar(w_F, w_R, method="bisection")
        dF, half = kT * float(both["Delta_f"]), 1.96 * kT * float(both["dDelta_f"])
    except (BoundsError, ConvergenceError):
        notes.append("dF_bar does not exist: forward and backward work do not overlap; pull more slowly.")
    table["dF_bar"] = Estimate(dF, (dF - half, dF + half), unit, len(forward) + len(backward))
    return table, tuple(notes)
