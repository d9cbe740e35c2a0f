"""Contestants measured in turns in one process, so that a busy machine slows them alike; and the record of it."""

from __future__ import annotations

import datetime
import hashlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from molsamp.runs.machine import machine

ROOT = Path(__file__).parents[1]
Work = Callable[[int], float]
"""work(k) does k portions and returns what it did: steps, evaluations, ..."""


def rates(
    contestants: dict[str, Work],
    *,
    turns: int = 5,
    seconds: float = 0.3,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median over the turns of what each contestant does in a second of `clock`, each turn `seconds` long or more."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    portions = {name: _portions(work, seconds, clock) for name, work in contestants.items()}
    for _ in range(turns):
        for name, work in contestants.items():
            began = clock()
            found[name].append(work(portions[name]) / (clock() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def _portions(work: Work, seconds: float, clock: Callable[[], float]) -> int:
    """How many portions last `seconds`; a first call warms up (compiles, allocates)."""
    work(1)
    k, spent = 1, 0.0
    while spent < 0.1 * seconds:
        k, began = 4 * k if spent else k, clock()
        work(k)
        spent = clock() - began
    return max(1, round(k * seconds / spent))


class Results:
    """A JSON list on disk, a line an entry; an entry stands while the code that it measured stands."""

    def __init__(self, file: Path, keys: tuple[str, ...]):
        self.file, self.keys = file, keys
        self.entries: list[dict] = json.loads(file.read_text()) if file.exists() else []

    def has(self, code: str, **entry) -> bool:
        """Whether an entry with these keys was measured on this code."""
        return any(e["code"] == code and all(e.get(k) == entry[k] for k in entry) for e in self.entries)

    def add(self, code: str, **entry) -> None:
        """Append an entry with code, commit, machine and date, and write the file."""
        self.entries.append(
            {**entry, "code": code, "commit": commit(), "machine": machine(), "date": f"{datetime.date.today()}"}
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(entry, allow_nan=False) for entry in self.entries)
        self.file.write_text("[\n" + ",\n".join(lines) + "\n]\n")

    def newest(self) -> list[dict]:
        """The last entry of every set of keys, in the order they first came."""
        return list({repr([e.get(k) for k in self.keys]): e for e in self.entries}.values())


def code_version(*places: str) -> str:
    """Hash of the files, and of the folders' code, settings and structures, that a figure exercises."""
    files: list[Path] = []
    for place in map(ROOT.joinpath, places):
        files += [f for f in place.rglob("*") if f.suffix in {".py", ".toml", ".pdb"}] if place.is_dir() else [place]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:12]


def commit() -> str:
    """The commit checked out, with + where the tree differs from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
