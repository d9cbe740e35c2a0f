"""From finished walkers to the numbers of result.json, the surface, its profiles and what to doubt about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molsamp.engine.estimates import Estimate
from molsamp.molecular.free_energy import plumed
from molsamp.molecular.free_energy.surface import Surface
from molsamp.molecular.free_energy.walkers import Walkers
from molsamp.molecular.trajectories import pdb, player, save_dcd, write, write_tables

LOW = 10.0  # kT: two surfaces are compared below it, at 300 K below 25 kJ/mol
AGREE = 0.4  # kT of mean difference between the two estimators that is worth a word
BINS = 40  # of the histogram of weights


@dataclass(frozen=True)
class Analysis:
    """What finished walkers say."""

    job: Walkers

    @cached_property
    def surface(self) -> Surface:
        """F at the nodes, by weights."""
        return self.job.histogram.surface()

    @cached_property
    def by_bias(self) -> np.ndarray | None:
        """F at the nodes by the bias; None without one."""
        return self.job.by_bias()

    def results(self) -> dict[str, Estimate]:
        """Differences of free energy, effective samples, disagreement of the estimators."""
        h, table = self.job.histogram, self.job.differences() | self.job.others()
        table["ess"] = Estimate(h.ess, (h.ess, h.ess), "samples", h.count)
        share = h.ess / max(h.count, 1)
        table["ess_share"] = Estimate(share, (share, share), "1", h.count)
        if self.by_bias is not None:
            low = LOW * self.job.task.kT
            apart = self.surface.deviation(self.by_bias, low)
            table["disagreement"] = Estimate(apart, (apart, apart), "kJ/mol", int((low > self.surface.F).sum()))
        return table

    def warnings(self) -> list[str]:
        """What a reader should doubt, in words."""
        job, found = self.job, self.job.warnings()
        table = self.results()
        for name, estimate in table.items():
            if name.startswith("dF:"):
                found += self._doubts(name, estimate)
        if self.by_bias is not None and (apart := table["disagreement"].value / job.task.kT) > AGREE:
            found.append(
                f"The free energy by weights and the one by the bias differ by {apart:.1f} kT on average below "
                f"{LOW:.0f} kT: the bias had not converged. The weights hold all the same; {job.longer} would make the "
                "production more efficient."
            )
        return found

    def _doubts(self, name: str, estimate: Estimate) -> list[str]:
        """Too few crossings, or a drift between the first half of the production and all of it."""
        a, b = name.removeprefix("dF:").split("->")
        crossed = self.job.histogram.crossings(self.job.regions[a], self.job.regions[b])
        if math.isnan(estimate.value):
            return [
                f"{crossed} of {len(self.job.p)} walkers were in both {a} and {b} during the production: too few to "
                f"tell their difference. {self.job.advice}"
            ]
        history = np.array(self.job.history)
        column = 1 + 3 * list(self.job.differences()).index(name)
        middle, end = history[(len(history) - 1) // 2], history[-1]
        half = [row[column + 2] - row[column] for row in (middle, end)]
        spread = (
            math.sqrt(max(half[0] ** 2 - half[1] ** 2, 0.25 * half[1] ** 2)) if math.isfinite(half[0]) else math.inf
        )
        moved = end[column] - middle[column]
        if abs(moved) > 1.5 * spread:
            return [
                f"{name} moved by {moved:.2g} kJ/mol over the second half of the production, more than its error "
                "allows: it was still drifting. Let it run longer (`production`), or `settle` longer."
            ]
        return []

    def summary(self) -> dict[str, Any]:
        """What result.json says of the walkers: engine, costs, results, warnings, kT in kJ/mol."""
        cost = self.job.cost
        return {
            "engine": self.job.task.energy.tier,
            "energy_evaluations": cost.energy_evaluations,
            "network_calls": cost.network_calls,
            "results": {k: e.as_dict() for k, e in self.results().items()},
            "warnings": self.warnings(),
            "kT": self.job.task.kT,
        }

    def figures(self, folder: Path) -> dict[str, Any]:
        """What the pictures need besides the files of `save`: the CVs of this free energy."""
        return {"axes": list(self.job.grid.names), "kT": self.job.task.kT}

    # ---------------------------------------------------------------- files

    def save(self, folder: str | Path) -> None:
        """Write fes.dat, the figures' data, and the structures: samples.dcd, topology.pdb, player.pdb.

        Raises:
            OSError: if the folder cannot be written.
        """
        folder = Path(folder)
        text = plumed.grid_text(self.job.grid, fes=self.surface.F, error=self.surface.error)
        write(folder / "fes.dat", lambda f: f.write_text(text))
        write_tables(folder, self._tables())
        if self.job.task.system.masses is not None and self.job.snapshots:
            self._structures(folder)

    def _tables(self) -> dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]]:
        return {
            "profiles": (("cv", "s", "F", "low", "high", "bias"), self._profiles()),
            "convergence": (("evaluations", "name", "value", "low", "high"), self._convergence()),
            "weights": (("low", "high", "share"), self._weights()),
        }

    def _profiles(self) -> Iterable[Sequence[Any]]:
        """F of each CV alone with its 95 % interval, and by the bias."""
        kT, grid = self.job.task.kT, self.job.grid
        for axis, name in enumerate(grid.names):
            one = self.job.histogram.profile(axis)
            bias = np.full(grid.shape[axis], np.nan)
            if self.by_bias is not None:
                other = tuple(a for a in range(len(grid.shape)) if a != axis)
                bias = -kT * np.log(np.exp(-self.by_bias / kT).sum(other))
                bias -= bias.min()
            half = np.where(np.isfinite(one.F), one.half, np.nan)
            yield from zip([name] * len(bias), one.grid.nodes(0), one.F, one.F - half, one.F + half, bias, strict=True)

    def _convergence(self) -> Iterable[Sequence[Any]]:
        names = list(self.job.differences())
        for evaluations, *numbers in self.job.grown:
            for name, value in zip(names, numbers, strict=True):
                yield evaluations, f"{name} by the bias", value, math.nan, math.nan
        for evaluations, *numbers in self.job.history:
            for i, name in enumerate(names):
                yield evaluations, name, *numbers[3 * i : 3 * i + 3]

    def _weights(self) -> Iterable[Sequence[Any]]:
        """Share of the production's samples by the log of their weight relative to the largest."""
        if (found := self.job.log_weights()) is None:
            return
        logw, visits = found
        shares, edges = np.histogram(logw, BINS, (logw.min(), 0.0), weights=visits / visits.sum())
        yield from zip(edges[:-1], edges[1:], shares, strict=True)

    def _structures(self, folder: Path) -> None:
        """All snapshots as a DCD, and the frames of three regions for the report."""
        system, x = self.job.task.system, torch.cat(self.job.snapshots)
        write(folder / "topology.pdb", lambda f: f.write_text(pdb(system, [next(iter(system.states.values())).x])))
        write(folder / "samples.dcd", lambda f: save_dcd(x, f))
        cell = self.job.grid.cell(self.job.task.values(x))
        regions = self.job.regions.items()
        inside = {k: torch.from_numpy(m.ravel())[cell.clamp(min=0)] & (cell >= 0) for k, m in regions}
        tracks = {name: x[m][:24] for name, m in inside.items() if bool(m.any())} or {"walkers": x[:24]}
        write(folder / "player.pdb", lambda f: f.write_text(player(system, tracks, x[0].double())))


def analyse(job: Walkers) -> Analysis:
    """The analysis of finished walkers."""
    return Analysis(job)
