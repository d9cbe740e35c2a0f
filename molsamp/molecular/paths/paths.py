"""Weighted paths and what is measured on them (card section 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.estimates import Estimate, mean, wilson
from molsamp.engine.measures import ess, log_mean_exp
from molsamp.engine.state import Path, Status
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.work import Cost


@dataclass(frozen=True)
class Paths:
    """n paths drawn by one sampler, with their weights towards P_0 conditioned on a hit.

    Args:
        problem: what was asked.
        path: frames; times in ps, x in nm, energies in kJ/mol.
        log_rn: log dP_b/dP_0 of each path under its sampler b, nats, (n,), float64; NaN where the sampler's
            ensemble has no density with respect to P_0 (thermal-start shooting).
        method: the sampler's name.
        exact: whether the paths are already distributed as P_0 given a hit (chains), so that weights are equal.
        cost: of training and sampling together.
        effective: for correlated paths of a chain, the number of independent ones it is worth; else None.
        notes: sentences for the reader of the result.
        extra: further estimates of the method, by name.
    """

    problem: Problem
    path: Path
    log_rn: Float[Tensor, " n"]
    method: str
    exact: bool = False
    cost: Cost = field(default_factory=Cost)
    effective: float | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Estimate] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.path.x.shape[1]

    @cached_property
    def distances(self) -> Float[Tensor, "F n"]:
        """Distance of every frame to the end state in its own metric."""
        return self.problem.distance(self.path.x)

    @cached_property
    def deviations(self) -> Float[Tensor, "F n"]:
        """RMSD of every frame to the end configuration, nm (plain distance for toys)."""
        return self.problem.deviation(self.path.x)

    @cached_property
    def hit(self) -> Bool[Tensor, " n"]:
        """Whether some frame lies in the end state; a diverged path is no hit."""
        return (self.distances < self.problem.end.radius).any(0) & (self.path.final.status != Status.DIVERGED)

    @cached_property
    def closest(self) -> Int[Tensor, " n"]:
        """Frame of least deviation from the end configuration: where a path is cut for all metrics."""
        return self.deviations.argmin(0)

    @cached_property
    def _cut(self) -> Bool[Tensor, "F n"]:
        return torch.arange(len(self.path))[:, None] <= self.closest[None]

    @cached_property
    def highest(self) -> Int[Tensor, " n"]:
        """Frame of highest energy up to the cut."""
        assert self.path.energy is not None
        return self.path.energy.masked_fill(~self._cut, -math.inf).argmax(0)

    @cached_property
    def peak(self) -> Float[Tensor, " n"]:
        """Highest energy up to the cut above the minimised start, kJ/mol."""
        assert self.path.energy is not None
        top = self.path.energy.gather(0, self.highest[None])[0]
        return top.double() - self.problem.floor

    @cached_property
    def logw(self) -> Float[Tensor, " n"]:
        """log weight towards P_0 conditioned on a hit, nats, -inf for paths that miss."""
        base = torch.zeros_like(self.log_rn) if self.exact else -self.log_rn
        return torch.where(self.hit, base, -torch.inf)

    def hit_rate(self) -> Estimate:
        """Fraction of paths that reach the end state, with its Wilson interval."""
        return wilson(int(self.hit.sum()), len(self))

    def rmsd(self) -> Estimate:
        """Mean over all paths, hits or not, of the least RMSD to the end configuration, nm."""
        unit = "nm" if self.problem.molecular else "1"
        return mean(self.deviations.amin(0), unit)

    def ets(self) -> Estimate:
        """Mean over hits of the highest energy up to the cut, above the start minimum, kJ/mol."""
        return mean(self.peak[self.hit], self._energy_unit)

    def e_max(self) -> Estimate:
        """As `ets`, over all paths that did not diverge."""
        return mean(self.peak[self.path.final.status != Status.DIVERGED], self._energy_unit)

    barrier = ets

    def divergence(self) -> Estimate:
        """Mean over all own paths of log dP_b/dP_0, nats; the ideal is -log P_0(hit)."""
        return mean(self.log_rn[torch.isfinite(self.log_rn)], "nats")

    def ess(self) -> float:
        """Kish effective number of paths for averages over P_0 conditioned on a hit."""
        return self.effective if self.effective is not None else ess(self.logw)

    def log_z(self) -> Estimate:
        """Importance-sampling estimate of log P_0(hit), nats; biased low while the ESS is near 1."""
        if self.exact or bool(torch.isnan(self.log_rn).any()):
            return Estimate(math.nan, (math.nan, math.nan), "nats", 0)
        value, error = log_mean_exp(self.logw)
        return Estimate(value, (value - 1.96 * error, value + 1.96 * error), "nats", len(self), ess(self.logw))

    def channels(self) -> Estimate | None:
        """Fraction of hits through the first of two channels, as system.toml defines them; None where it does not.

        rule "sign": the channel CV is positive at the highest frame; "winding": its net change to the cut is positive.
        """
        channel = self.problem.system.settings.channel
        if channel is None or self.path.energy is None:
            return None
        values = self.cvs[..., list(self.problem.system.cvs).index(channel.cv)]
        if channel.rule == "sign":
            first = values.gather(0, self.highest[None])[0] > 0
        else:
            from molsamp.molecular.cvs import wrap

            period = self.problem.system.cvs[channel.cv].period
            moves = wrap(values.diff(dim=0)[..., None], period)[..., 0]
            first = (moves * self._cut[1:]).sum(0) > 0
        return wilson(int((first & self.hit).sum()), int(self.hit.sum()))

    @cached_property
    def cvs(self) -> Float[Tensor, "F n k"]:
        """Collective variables of every frame."""
        x = self.path.x
        return self.problem.system.values(x.reshape(-1, *x.shape[2:])).view(*x.shape[:2], -1)

    @property
    def _energy_unit(self) -> str:
        return "kJ/mol" if self.problem.molecular else "1"

    def results(self) -> dict[str, Estimate]:
        """Every estimate under its documented name (DESIGN.md section 7)."""
        n = len(self)
        table = {
            "hit_rate": self.hit_rate(),
            "rmsd": self.rmsd(),
            "ets": self.ets(),
            "e_max": self.e_max(),
            "log_rn": self.divergence(),
            "path_ess": Estimate(self.ess(), (0.0, float(n)), "paths", n),
            "log_z": self.log_z(),
        }
        if (channel := self.channels()) is not None:
            table["channel"] = channel
        return table | self.extra

    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers, in words."""
        n, ess_ = len(self), self.ess()
        words = list(self.notes)
        diverged = int((self.path.final.status == Status.DIVERGED).sum())
        if diverged:
            words.append(f"{diverged} of {n} paths diverged and count as misses.")
        if not int(self.hit.sum()):
            words.append(f"None of {n} paths reached {self.problem.end.name}: there is no transition path here.")
        elif not self.exact and self.method != "shooting" and ess_ < 0.1 * n:
            words.append(
                f"ESS is {100 * ess_ / n:.2g} % of {n} paths: these are driven paths, not the equilibrium ensemble; "
                "averages over them are not thermal averages."
            )
        return words


def divergence_bound(hit_rate: float, p_hit: float) -> float:
    """Least log_rn (nats) any sampler with this hit rate can have: h ln(h/p) + (1-h) ln((1-h)/(1-p))."""

    def term(a: float, b: float) -> float:
        return 0.0 if a == 0.0 else a * math.log(a / b)

    return term(hit_rate, p_hit) + term(1.0 - hit_rate, 1.0 - p_hit)
