"""The verb `image`: pictures of a model by a solver, in a run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.estimates import Estimate
from molsamp.engine.noise import Noise
from molsamp.engine.state import Status
from molsamp.image.analysis import Analysis
from molsamp.image.analysis import analyse as scored
from molsamp.image.bench import Entry
from molsamp.image.job import Sampling
from molsamp.image.subject import Subject
from molsamp.runs.checkpoint import replace, write_tensors, write_text
from molsamp.runs.sheet import sheet

SHOWN = 100  # pictures on a sheet at most


@dataclass(frozen=True)
class Drawn:
    """Finished sampling and what was found about it."""

    job: Sampling
    found: Analysis
    config: Any

    def save(self, folder: Path) -> None:
        """Write samples.safetensors, samples.png and trajectory.png.

        Raises:
            OSError: if the folder cannot be written.
        """
        save(self.job, folder, self.config)

    def figures(self, folder: Path) -> dict[str, Any]:
        """Write calls.csv, the error against calls; return what the report says of the settings."""
        write_curve(self.found.curve, folder)
        told = ("steps", "n", "label", "guidance", "fine")
        compared = {"compared": self.job.bench.n, "shown": min(SHOWN, self.config.n)}
        return {**{name: getattr(self.config, name) for name in told}, **compared}

    def summary(self) -> dict[str, Any]:
        """What result.json says: costs, results, the same of training pictures, times, warnings."""
        found = self.found
        tables = {"results": found.results, "null": found.null, "times": found.times}
        return {
            "network_calls": self.job.calls,
            "forwards": self.job.forwards,
            **{name: {k: e.as_dict() for k, e in table.items()} for name, table in tables.items()},
            "comparison": {"network_calls": self.job.bench.calls, "forwards": self.job.bench.forwards},
            "warnings": found.warnings,
        }


def make(config: Any, subject: Subject) -> Sampling:
    """The job.

    Raises:
        ValueError: an unknown solver, fewer calls than it needs, or data of other pictures than the model's.
    """
    if config.data is not None:
        subject.pictures(config.data)
    return Sampling(
        subject,
        config.solver,
        config.steps,
        config.n,
        grid=config.grid,
        batch=config.batch,
        compare=config.compare,
        fine=config.fine,
        diverged=config.diverged,
        noise=Noise(config.seed),
    )


def analyse(job: Sampling, config: Any) -> Drawn:
    """Score the pictures."""
    return Drawn(job, scored(job, config.data), config)


def rescue(job: Sampling, folder: Path, config: Any) -> str:
    """Save the pictures so far, those of the batch that failed included; a remark that says where."""
    if not bool(job.x.any()):
        return ""
    save(job, folder, config)
    return f"; the last good states are in {folder}/samples.safetensors"


def save(job: Sampling, folder: Path, config: Any) -> None:
    """Write samples.safetensors, samples.png and trajectory.png."""
    labels, times = job.labels, torch.tensor([job.times[k] for k in job.frames], dtype=torch.float64)
    tensors = {"x": job.x, "status": job.status, "trajectory": job.way, "times": times}
    tensors |= {} if labels is None else {"label": labels}
    told = ("model", "solver", "steps", "seed", "guidance")
    write_tensors(folder / "samples.safetensors", tensors, {name: getattr(config, name) for name in told})
    _write(folder / "samples.png", samples_sheet(job, config))
    _write(folder / "trajectory.png", trajectory_sheet(job))


def samples_sheet(job: Sampling, config: Any) -> bytes:
    """The first pictures as a PNG: a column for each class where they come in turn, else about a square."""
    shown, labels, classes = min(SHOWN, job.n), job.labels, job.subject.denoiser.conditional
    in_turn = labels is not None and job.subject.label is None and classes is not None and classes <= SHOWN
    columns = classes if in_turn and classes is not None else math.ceil(math.sqrt(shown))
    rows = [job.x[k : min(k + columns, shown)] for k in range(0, shown, columns)]
    words = [f"{config.model}", f"{config.solver}", f"{config.steps} calls", f"seed {config.seed}"]
    words += [f"class {job.subject.label}"] if labels is not None and not in_turn else []
    words += [f"guidance {config.guidance:g}"] if config.guidance is not None else []
    words += [f"{shown} of {job.n}"] if shown < job.n else []
    lost = int((job.status[:shown] == Status.DIVERGED).sum())
    words += [f"{lost} of these diverged"] if lost else []
    return sheet(rows, [str(k) for k in range(columns)] if in_turn else [], "  ·  ".join(words))


def trajectory_sheet(job: Sampling) -> bytes:
    """The way of the first pictures from noise as a PNG: a row a picture, a column a time."""
    schedule = job.subject.denoiser.schedule
    times = [job.times[k] for k in job.frames]
    sizes = [max(1.0, math.hypot(schedule.alpha(t), schedule.sigma(t))) for t in times]  # 1 for VP, sigma for EDM
    way = job.way / torch.tensor(sizes).view(-1, *[1] * (job.way.dim() - 1))
    rows: list[Tensor] = list(way.transpose(0, 1))
    return sheet(rows, [f"t = {times[0]:.2g}", *(f"{t:.2g}" for t in times[1:])])


def write_curve(curve: list[tuple[Entry, Estimate]], folder: Path) -> None:
    """Write calls.csv: RMSE to the fine trajectories by solver and calls, with 95 % intervals."""
    lines = ["solver,calls,rmse,low,high"]
    for entry, e in curve:
        numbers = (e.value, *e.interval) if math.isfinite(e.value) else ()
        cells = [*(f"{x:.6g}" for x in numbers), "", "", ""][:3]
        lines.append(",".join([entry.solver, str(entry.calls), *cells]))
    write_text(folder / "calls.csv", "\n".join(lines) + "\n")


def _write(file: Path, png: bytes) -> None:
    replace(file, lambda temporary: temporary.write_bytes(png))
