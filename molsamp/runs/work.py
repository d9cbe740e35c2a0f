"""`molsamp VERB ...`: settings -> run folder -> job -> result.json and report.

Contract: everything that can be wrong with the input is found before the folder is made. Then the job is driven,
and what it found is written; each step can be repeated, so a run killed anywhere continues with `resume`.
What a verb is: `verbs`.
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
from molsamp.runs.checkpoint import Unusable, write_text
from molsamp.runs.config import Config
from molsamp.runs.folder import Run
from molsamp.runs.machine import machine, versions
from molsamp.runs.progress import progress
from molsamp.runs.stopped import Stopped
from molsamp.runs.verbs import Verb

COSTS = ("engine", "energy_evaluations", "network_calls", "forwards")
"""What a verb says of its costs, where it has them."""


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
    config, subject = _settings(verb, request)
    job = _job(verb, config, subject)
    folder = request.out or _default_folder(config)
    with Run(folder, request.resume) as run:
        _pin(run, config)
        _drive(verb, run, job, config, request.quiet)
        _write_results(verb, run, job, config, subject)
    return folder


def _settings(verb: Verb, request: Request) -> tuple[Config, Any]:
    if request.resume and request.out is None:
        raise ValueError("--resume: name the run folder with --out DIR")
    if request.resume and request.file is not None:
        raise ValueError("--resume: the settings are those in the run folder; leave --config out")
    file = request.out / "config.toml" if request.resume and request.out else request.file
    written = settings.read_toml(file) if file else {}
    if (other := written.get("verb", verb.name)) != verb.name:
        raise ValueError(f"{file}: key 'verb': got '{other}'; these are not settings of `molsamp {verb.name}`")
    return verb.settle(request.options, request.sets, file, written)


def _job(verb: Verb, config: Config, subject: Any) -> Any:
    import torch

    torch.set_num_threads(config.threads)
    return verb.make(config, subject)


def _default_folder(config: Config) -> Path:
    subject = next(iter(config.named.values()))
    name = Path(subject).stem if "/" in subject else subject
    words = f"{name}-{config.verb}".replace(" ", "-").replace(":", "-")
    return Path("runs") / f"{words}-{datetime.now():%Y%m%d-%H%M%S}"


def _pin(run: Run, config: Config) -> None:
    """Write config.toml, or refuse to resume a run that was started with other settings or another version."""
    text, file = settings.to_toml(config), run.folder / "config.toml"
    if not file.exists():
        write_text(file, text)
        return
    changed = settings.differences(settings.read_toml(file), tomllib.loads(text))
    if changed:
        raise ValueError(f"{run.folder}: --resume needs the settings the run was started with; {'; '.join(changed)}")


def _drive(verb: Verb, run: Run, job: Any, config: Config, quiet: bool) -> None:
    from molsamp.learn.drive import Interrupted, drive

    run.note("started")
    try:
        with run.signals(), progress(job, config.title, quiet=quiet) as each:
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
        kept = verb.rescue(job, run.folder, config)
        raise Stopped(
            f"failed at {job.k} of {job.total}: {error}{kept} (details in {run.folder}/log.txt)", 1
        ) from error


def _write_results(verb: Verb, run: Run, job: Any, config: Config, subject: Any) -> None:
    """Save what was found, and write result.json, the figures' data and the report."""
    from molsamp.runs.report import write_report

    analysis = verb.analyse(job, config)
    figures = run.folder / "figures"
    figures.mkdir(exist_ok=True)
    analysis.save(run.folder)
    summary = analysis.summary()
    costs = {name: summary.pop(name) for name in COSTS if name in summary}
    cpu, wall = run.clock()
    result = {
        "verb": config.verb,
        **config.named,
        "seed": config.seed,
        "versions": versions(),
        "machine": machine(),
        **costs,
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        **summary,
    }
    write_json(figures / "states.json", {**verb.describe(subject), **analysis.figures(figures)})
    write_json(run.folder / "result.json", result)
    write_report(run.folder)
    run.note("finished")


def write_json(file: Path, value: Any) -> None:
    """Write JSON in one step; numbers that are not finite are refused, since JSON has none.

    Raises:
        ValueError: a NaN or an infinity.
    """
    write_text(file, json.dumps(value, indent=1, allow_nan=False) + "\n")
