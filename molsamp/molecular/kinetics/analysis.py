"""From a finished rate method to the numbers of result.json, and the tables its figures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molsamp.molecular.kinetics.rates import Rates
from molsamp.molecular.trajectories import write_tables


@dataclass(frozen=True)
class Analysis:
    """What a rate method says."""

    job: Rates

    def summary(self) -> dict[str, Any]:
        """What result.json says of it: engine, costs, results, warnings."""
        cost, task = self.job.cost, self.job.transition.task
        return {
            "engine": task.energy.tier,
            "energy_evaluations": cost.energy_evaluations,
            "network_calls": cost.network_calls,
            "results": {name: e.as_dict() for name, e in self.job.results().items()},
            "warnings": self.job.warnings(),
            "kT": task.kT,
        }

    def figures(self, folder: Path) -> dict[str, Any]:
        """What the pictures need besides the tables: A and B, and what the progress is."""
        t = self.job.transition
        return {"A": list(t.a), "B": list(t.b), "progress": t.progress or f"− distance to {' or '.join(t.b)}"}

    def save(self, folder: str | Path) -> None:
        """Write the tables of the figures.

        Raises:
            OSError: if the folder cannot be written.
        """
        write_tables(Path(folder), self.job.tables())


def analyse(job: Rates) -> Analysis:
    """The analysis of a finished method."""
    return Analysis(job)
