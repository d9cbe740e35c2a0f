"""`molsamp paths`: settings -> run folder -> job -> paths -> result.json and report.

Contract: everything that can be wrong with the input is found before the folder is made. Then the job is driven,
and what it found is written; each step can be repeated, so a run killed anywhere continues with `resume`.
"""

from __future__ import annotations

import json
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from molsamp.runs import config as settings
from molsamp.runs.checkpoint import replace, write_text
from molsamp.runs.config import PathsConfig
from molsamp.runs.folder import Run
from molsamp.runs.machine import machine, versions
from molsamp.runs.progress import progress
from molsamp.runs.stopped import Stopped


@dataclass(frozen=True)
class Request:
    """What the command line asked for; settings that were not given are None."""

    options: Mapping[str, Any]
    sets: list[str] = field(default_factory=list)
    out: Path | None = None
    file: Path | None = None
    resume: bool = False
    quiet: bool = False


def transition_paths(request: Request) -> Path:
    """Draw transition paths as asked and return the folder they are in.

    Raises:
        ValueError, OSError: bad input, or a folder or disk that cannot be written.
        Stopped: interrupted after a checkpoint (130, 143), or failed (1).
    """
    config, system = _settings(request)
    job = _job(config, system)
    folder = request.out or _default_folder(config)
    with Run(folder, request.resume) as run:
        _pin(run, config)
        _drive(run, job, config, request.quiet)
        _write_results(run, job, config, system)
    return folder


def _settings(request: Request) -> tuple[PathsConfig, Any]:
    from molsamp.molecular.paths.settings import METHODS, PRESETS
    from molsamp.molecular.system import load

    if request.resume and request.out is None:
        raise ValueError("--resume: name the run folder with --out DIR")
    if request.resume and request.file is not None:
        raise ValueError("--resume: the settings are those in the run folder; leave --config out")
    file = request.out / "config.toml" if request.resume and request.out else request.file
    name = request.options.get("system") or (settings.read_toml(file).get("system") if file else None)
    system = load(name) if name else None
    own = system.methods if system else {}
    config = settings.build(request.options, request.sets, METHODS, PRESETS, file, own)
    return settings.with_system(config, system)


def _job(config: PathsConfig, system: Any) -> Any:
    import torch

    from molsamp.molecular.paths import make

    torch.set_num_threads(config.threads)
    return make(
        system,
        config.method,
        config.of_method,
        seed=config.seed,
        paths=config.paths,
        energy=config.energy,
        device=config.device,
    )


def _default_folder(config: PathsConfig) -> Path:
    name = Path(config.system).stem if "/" in config.system else config.system
    return Path("runs") / f"{name}-paths-{datetime.now():%Y%m%d-%H%M%S}"


def _pin(run: Run, config: PathsConfig) -> None:
    """Write config.toml, or refuse to resume a run that was started with other settings or another version."""
    text, file = settings.to_toml(config), run.folder / "config.toml"
    if not file.exists():
        write_text(file, text)
        return
    changed = settings.differences(settings.read_toml(file), tomllib.loads(text))
    if changed:
        raise ValueError(f"{run.folder}: --resume needs the settings the run was started with; {'; '.join(changed)}")


def _drive(run: Run, job: Any, config: PathsConfig, quiet: bool) -> None:
    from molsamp.learn.drive import Interrupted, drive

    run.note("started")
    try:
        with run.signals(), progress(job, config.method, quiet=quiet) as each:
            drive(job, run, each)
        if run.interrupted:  # the signal came during the last unit
            raise Interrupted
    except Interrupted:
        run.note(f"interrupted at {job.k} of {job.total}")
        again = f"molsamp paths --out {run.folder} --resume"
        raise Stopped(f"interrupted at {job.k} of {job.total}; to continue: {again}", 128 + run.signal) from None
    except OSError:
        raise
    except Exception as error:
        run.note(traceback.format_exc())
        raise Stopped(f"failed at {job.k} of {job.total}: {error} (details in {run.folder}/log.txt)", 1) from error


def _write_results(run: Run, job: Any, config: PathsConfig, system: Any) -> None:
    """Draw and save the paths, and write result.json, the figures' data and the report."""
    from molsamp.molecular.paths.analysis import analyse
    from molsamp.runs.report import write_report

    analysis = analyse(job)
    analysis.save(run.folder)
    paths, summary = analysis.paths, analysis.summary()
    cpu, wall = run.clock()
    result = {
        "verb": config.verb,
        "system": config.system,
        "method": config.method,
        "seed": config.seed,
        "versions": versions(),
        "machine": machine(),
        "engine": summary["engine"],
        "energy_evaluations": summary["energy_evaluations"],
        "network_calls": summary["network_calls"],
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "results": summary["results"],
        "null": summary["null"],
        "warnings": summary["warnings"],
    }
    figures = run.folder / "figures"
    figures.mkdir(exist_ok=True)
    write_json(figures / "states.json", {**describe(system), "floor": paths.problem.floor})
    if system.masses is None:
        write_landscape(figures / "landscape.npz", system, paths.path.x)
    write_json(run.folder / "result.json", result)
    write_report(run.folder)
    run.note("finished")


def write_json(file: Path, value: Any) -> None:
    """Write JSON in one step; numbers that are not finite are refused, since JSON has none.

    Raises:
        ValueError: a NaN or an infinity.
    """
    write_text(file, json.dumps(value, indent=1, allow_nan=False) + "\n")


def describe(system: Any) -> dict[str, Any]:
    """What the figures need of a system: title, axes with periods, start and end, discs of the states.

    Returns:
        {"title", "reduced", "cvs": [{"name", "period"}], "start", "end",
         "states": {name: {"values": {cv: centre}, "radius", "metric"}}}.
    """
    states = {
        name: {"values": dict(state.values), "radius": state.radius, "metric": state.metric}
        for name, state in system.states.items()
    }
    return {
        "title": system.title,
        "reduced": system.masses is None,
        "cvs": [{"name": name, "period": cv.period[0]} for name, cv in system.cvs.items()],
        "start": system.settings.start,
        "end": system.settings.end,
        "states": states,
    }


def write_landscape(file: Path, system: Any, x: Any, points: int = 120) -> None:
    """Write the potential of a toy on a grid around the frames x (..., 2): arrays x, y and energy (y, x)."""
    import numpy as np
    import torch

    flat = x.reshape(-1, 2).double()
    flat = flat[torch.isfinite(flat).all(1)]
    low, high = flat.amin(0), flat.amax(0)
    margin = 0.1 * (high - low)
    axes = [torch.linspace(float(a), float(b), points) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).double()
    energy = system.energy().energy(grid.reshape(-1, 2)).reshape(points, points)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as f:
            np.savez(f, x=axes[0].numpy(), y=axes[1].numpy(), energy=energy.numpy())

    replace(file, fill)
