"""`molsamp VERB SYSTEM`: settings -> run folder -> job -> result.json and report.

Contract: everything that can be wrong with the input is found before the folder is made. Then the job is driven,
and what it found is written; each step can be repeated, so a run killed anywhere continues with `resume`.

A verb is a room of floor 2 that has `settings.METHODS` and `settings.PRESETS`, `make`, which returns a job, and
`analysis.analyse`, which returns what can `save` itself to a folder and give its `summary` and its `figures`.
"""

from __future__ import annotations

import json
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from molsamp.runs import config as settings
from molsamp.runs.checkpoint import Unusable, write_text
from molsamp.runs.config import Config, FreeEnergyConfig, PathsConfig
from molsamp.runs.folder import Run
from molsamp.runs.machine import machine, versions
from molsamp.runs.progress import progress
from molsamp.runs.stopped import Stopped


@dataclass(frozen=True)
class Verb:
    """What the command line can do with a system.

    Args:
        name: as on the command line.
        room: the module that does it.
        config: its settings.
    """

    name: str
    room: str
    config: type[Config]


PATHS = Verb("paths", "molsamp.molecular.paths", PathsConfig)
FREE_ENERGY = Verb("free-energy", "molsamp.molecular.free_energy", FreeEnergyConfig)


@dataclass(frozen=True)
class Request:
    """What the command line asked for; settings that were not given are None."""

    options: Mapping[str, Any]
    sets: list[str] = field(default_factory=list)
    out: Path | None = None
    file: Path | None = None
    resume: bool = False
    quiet: bool = False


def work(verb: Verb, request: Request) -> Path:
    """Do as asked and return the folder the results are in.

    Raises:
        ValueError, OSError: bad input, or a folder or disk that cannot be written, or not be resumed from.
        Stopped: interrupted after a checkpoint (130, 143), or failed (1).
    """
    config, system = _settings(verb, request)
    job = _job(verb, config, system)
    folder = request.out or _default_folder(config)
    with Run(folder, request.resume) as run:
        _pin(run, config)
        _drive(run, job, config, request.quiet)
        _write_results(verb, run, job, config, system)
    return folder


def _settings(verb: Verb, request: Request) -> tuple[Config, Any]:
    from molsamp.molecular.system import load

    if request.resume and request.out is None:
        raise ValueError("--resume: name the run folder with --out DIR")
    if request.resume and request.file is not None:
        raise ValueError("--resume: the settings are those in the run folder; leave --config out")
    file = request.out / "config.toml" if request.resume and request.out else request.file
    written = settings.read_toml(file) if file else {}
    if (other := written.get("verb", verb.name)) != verb.name:
        raise ValueError(f"{file}: key 'verb': got '{other}'; these are not settings of `molsamp {verb.name}`")
    name = request.options.get("system") or written.get("system")
    system = load(name) if name else None
    own = system.methods if system else {}
    room = import_module(f"{verb.room}.settings")
    config = settings.build(verb.config, request.options, request.sets, room.METHODS, room.PRESETS, file, own)
    return settings.with_system(config, system)


def _job(verb: Verb, config: Config, system: Any) -> Any:
    import torch

    torch.set_num_threads(config.threads)
    return import_module(verb.room).make(
        system,
        config.method,
        config.of_method,
        seed=config.seed,
        energy=config.energy,
        device=config.device,
        **config.arguments,
    )


def _default_folder(config: Config) -> Path:
    name = Path(config.system).stem if "/" in config.system else config.system
    return Path("runs") / f"{name}-{config.verb}-{datetime.now():%Y%m%d-%H%M%S}"


def _pin(run: Run, config: Config) -> None:
    """Write config.toml, or refuse to resume a run that was started with other settings or another version."""
    text, file = settings.to_toml(config), run.folder / "config.toml"
    if not file.exists():
        write_text(file, text)
        return
    changed = settings.differences(settings.read_toml(file), tomllib.loads(text))
    if changed:
        raise ValueError(f"{run.folder}: --resume needs the settings the run was started with; {'; '.join(changed)}")


def _drive(run: Run, job: Any, config: Config, quiet: bool) -> None:
    from molsamp.learn.drive import Interrupted, drive

    run.note("started")
    try:
        with run.signals(), progress(job, config.method, quiet=quiet) as each:
            drive(job, run, each)
        if run.interrupted:  # the signal came during the last unit
            raise Interrupted
    except Interrupted:
        run.note(f"interrupted at {job.k} of {job.total}")
        again = f"molsamp {config.verb} --out {run.folder} --resume"
        raise Stopped(f"interrupted at {job.k} of {job.total}; to continue: {again}", 128 + run.signal) from None
    except (OSError, Unusable):
        raise
    except Exception as error:
        run.note(traceback.format_exc())
        raise Stopped(f"failed at {job.k} of {job.total}: {error} (details in {run.folder}/log.txt)", 1) from error


def _write_results(verb: Verb, run: Run, job: Any, config: Config, system: Any) -> None:
    """Save what was found, and write result.json, the figures' data and the report."""
    from molsamp.runs.report import write_report

    analysis = import_module(f"{verb.room}.analysis").analyse(job)
    figures = run.folder / "figures"
    figures.mkdir(exist_ok=True)
    analysis.save(run.folder)
    summary = analysis.summary()
    cpu, wall = run.clock()
    result = {
        "verb": config.verb,
        "system": config.system,
        "method": config.method,
        "seed": config.seed,
        "versions": versions(),
        "machine": machine(),
        "engine": summary.pop("engine"),
        "energy_evaluations": summary.pop("energy_evaluations"),
        "network_calls": summary.pop("network_calls"),
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        **summary,
    }
    write_json(figures / "states.json", {**describe(system), **analysis.figures(figures)})
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
        {"title", "reduced", "cvs": [{"name", "period", "unit"}], "start", "end",
         "states": {name: {"values": {cv: centre}, "radius", "metric"}}}.
    """
    states = {
        name: {"values": dict(state.values), "radius": state.radius, "metric": state.metric}
        for name, state in system.states.items()
    }
    return {
        "title": system.title,
        "reduced": system.masses is None,
        "cvs": [{"name": name, "period": cv.period[0], "unit": cv.unit[0]} for name, cv in system.cvs.items()],
        "start": system.settings.start,
        "end": system.settings.end,
        "states": states,
    }
