"""The verb `image bench`: all solvers on one model at few network calls, against its own fine trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molsamp.engine.noise import Noise
from molsamp.image.bench import Bench, draws, entries, without_noise
from molsamp.image.subject import Subject
from molsamp.runs.pictures import write_curve


@dataclass(frozen=True)
class Compared:
    """A finished comparison."""

    job: Bench
    config: Any

    def save(self, folder: Path) -> None:
        """Nothing besides the figures' data: the pictures are not kept."""

    def figures(self, folder: Path) -> dict[str, Any]:
        """Write calls.csv; return what the report says of the settings."""
        write_curve(self.job.results(), folder)
        return {name: getattr(self.config, name) for name in ("n", "fine", "label", "guidance")}

    def summary(self) -> dict[str, Any]:
        """What result.json says: costs, the RMSE of every solver at every number of calls, warnings."""
        found = {f"rmse:{entry.solver}@{entry.calls}": e for entry, e in self.job.results()}
        return {
            "network_calls": self.job.calls,
            "forwards": self.job.forwards,
            "results": {k: e.as_dict() for k, e in {"fineness": self.job.fineness, **found}.items()},
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """Which solvers end nearer to the fine trajectories than these are known to be."""
        fine = self.job.fineness.value
        close = dict.fromkeys(entry.solver for entry, e in self.job.results() if not fine < 0.1 * e.value)
        return [f"the fine trajectories are not fine enough for {', '.join(close)}; take more with --set fine"] * bool(
            close
        )


def make(config: Any, subject: Subject) -> Bench:
    """The job.

    Raises:
        ValueError: an unknown solver, or one that draws noise and so has no fine trajectory; calls too few for all.
    """
    solvers = config.solvers or without_noise(subject, config.grid)
    wanted = entries(solvers, config.calls, config.grid)
    for entry in wanted:
        if draws(subject, entry.solver, entry.calls, entry.grid):
            raise ValueError(f"solver '{entry.solver}' draws noise on its way and has no fine trajectory to end near")
    if not wanted:
        raise ValueError(f"calls: got {list(config.calls)}; {', '.join(solvers)} need more")
    return Bench(subject, wanted, config.n, fine=config.fine, batch=config.batch, noise=Noise(config.seed))


def analyse(job: Bench, config: Any) -> Compared:
    """What was found."""
    return Compared(job, config)


def rescue(job: Bench, folder: Path, config: Any) -> str:
    """Nothing to save: there are no pictures."""
    return ""
