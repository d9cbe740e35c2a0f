"""From a finished sampler to the numbers of result.json: estimates, the steered null, committors, warnings."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molsamp.engine.estimates import Estimate, mean
from molsamp.molecular.paths.committor import Committor, committor
from molsamp.molecular.paths.paths import Paths, divergence_bound
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.save import save
from molsamp.molecular.paths.settings import method_settings
from molsamp.molecular.paths.steered import steered_null
from molsamp.molecular.system import System
from molsamp.molecular.trajectories import write


@dataclass(frozen=True)
class Analysis:
    """Paths of a sampler, the untrained pull beside them, and the committors of the highest frames."""

    paths: Paths
    null: Paths
    committors: Committor

    def save(self, folder: str | FilePath) -> None:
        """Write the paths' files, and committor.csv where there was a hit to shoot from.

        Raises:
            OSError: if the folder cannot be written.
        """
        save(self.paths, folder)
        if len(self.committors.path):
            write(FilePath(folder) / "committor.csv", self._write_committors)

    def figures(self, folder: FilePath) -> dict[str, Any]:
        """Write landscape.npz for a picture of a toy: x, y and the potential (y, x); return the zero of energy."""
        problem = self.paths.problem
        if not problem.molecular:
            write(folder / "landscape.npz", lambda f: _write_landscape(problem.system, self.paths.path.x, f))
        return {"floor": problem.floor}

    def _write_committors(self, file: FilePath) -> None:
        c = self.committors
        with file.open("w", newline="") as f:
            rows = csv.writer(f, lineterminator="\n")
            rows.writerow(["path", "committor", "decided", "shots"])
            for i, value, decided in zip(c.path.tolist(), c.value.tolist(), c.decided.tolist(), strict=True):
                rows.writerow([i, "" if math.isnan(value) else f"{value:.4g}", decided, c.shots])

    def results(self) -> dict[str, Estimate]:
        """All estimates of the paths, with the mean committor."""
        table = self.paths.results()
        values = self.committors.value
        table["committor"] = mean(values[torch.isfinite(values)])
        p_hit = self.paths.problem.log_p_hit
        if p_hit is not None:
            bound = divergence_bound(table["hit_rate"].value, math.exp(p_hit))
            table["log_rn_bound"] = Estimate(bound, (bound, bound), "nats", len(self.paths))
        return table

    def summary(self) -> dict[str, Any]:
        """What result.json says of the sampler: engine, costs, results, null, warnings."""
        p, cost = self.paths.problem, self.paths.cost
        null = self.null.results()
        return {
            "engine": p.energy.tier,
            "energy_evaluations": cost.energy_evaluations,
            "network_calls": cost.network_calls,
            "results": {k: e.as_dict() for k, e in self.results().items()},
            "null": {k: e.as_dict() for k, e in null.items()},
            "warnings": self.paths.warnings(),
        }


def analyse(sampler: Sampler) -> Analysis:
    """Draw the paths, the null on as many, and the committors; the extra evaluations are not charged to the sampler."""
    paths = sampler.paths()
    spent = sampler.problem.energy.evaluations
    pull = method_settings("steered", sampler.problem.system.methods)
    null = steered_null(sampler.problem, len(paths), sampler.noise.child("null"), pull.stiffness, pull.hold)
    committors = committor(paths, sampler.noise.child("committor"))
    sampler.problem.energy.evaluations = spent
    return Analysis(paths, null, committors)


def _write_landscape(system: System, x: Tensor, file: FilePath, points: int = 120) -> None:
    """The potential of a toy on a grid around the frames x (..., 2)."""
    flat = x.reshape(-1, 2).double()
    flat = flat[torch.isfinite(flat).all(1)]
    low, high = flat.amin(0), flat.amax(0)
    margin = 0.1 * (high - low)
    axes = [torch.linspace(float(a), float(b), points) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).double()
    energy = system.energy().energy(grid.reshape(-1, 2)).reshape(points, points)
    with file.open("wb") as f:
        np.savez(f, x=axes[0].numpy(), y=axes[1].numpy(), energy=energy.numpy())
