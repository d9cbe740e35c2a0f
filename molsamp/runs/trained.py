"""Finished runs that other runs start from: their samplers as they were left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molsamp.runs import checkpoint
from molsamp.runs.config import read_toml

SAMPLERS = ("as", "asbs", "wt-asbs")


def fingerprint(folder: Path) -> str:
    """sha256 of what a finished run has learnt.

    Raises:
        ValueError: no finished run.
    """
    from molsamp.learn.weights import digest

    return digest(_last(folder).file)


def sampler(folder: Path) -> Any:
    """The job of a finished run of a diffusion sampler.

    Raises:
        ValueError: no finished run, or one of another verb or method.
    """
    from molsamp.runs.verbs import FREE_ENERGY

    last, file = _last(folder), folder / "config.toml"
    written = read_toml(file)
    named = written.get("verb"), written.get("method")
    if named[0] != FREE_ENERGY.name or named[1] not in SAMPLERS:
        raise ValueError(
            f"--from: {folder} is a run of {named[0]}, method {named[1]}; allowed is one of `molsamp free-energy` "
            f"with method {' | '.join(SAMPLERS)}"
        )
    config, system = FREE_ENERGY.settle({}, [], file, written)
    job = FREE_ENERGY.make(config, system)
    job.load(last.load())
    return job


def _last(folder: Path) -> checkpoint.Generation:
    found = checkpoint.newest(folder / "checkpoints")[0] if (folder / "result.json").is_file() else None
    if found is None:
        raise ValueError(f"--from: {folder} holds no finished run; give the folder of a diffusion sampler's")
    return found
