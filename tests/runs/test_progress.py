"""Progress: a line per interval where there is no terminal, a bar where there is one, nothing when quiet."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from molsamp.runs.progress import _duration, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, quiet: bool = False) -> str:
    job = SimpleNamespace(k=10, total=13)
    with progress(job, "tps-dps", quiet=quiet, stream=stream) as each:
        for _ in range(3):
            job.k += 1
            each({"hit_rate": 0.5, "loss": 1.0})
    return stream.getvalue()


def test_lines_for_the_first_and_the_last_unit():
    lines = run(io.StringIO()).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"tps-dps  11/13  \S+/s  ETA 0:00  hit rate 50%", lines[0])
    assert "13/13" in lines[1]


def test_a_bar_on_a_terminal_with_rate_eta_and_hit_rate():
    shown = run(Terminal())
    for part in ("tps-dps", "13/13", "/s", "ETA", "hit rate 50%"):
        assert part in shown


def test_quiet_is_silent():
    assert run(io.StringIO(), quiet=True) == run(Terminal(), quiet=True) == ""


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert _duration(seconds) == text


def test_the_rate_counts_units_that_were_not_printed(monkeypatch):
    """Ten units a second, a line every five seconds: the rate is ten, not one line in five seconds."""
    now = iter(i * 0.1 for i in range(10_000))
    monkeypatch.setattr("molsamp.runs.progress.time.monotonic", lambda: next(now))
    job, stream = SimpleNamespace(k=0, total=1000), io.StringIO()
    with progress(job, "tps-dps", stream=stream) as each:
        for k in range(1, 200):
            job.k = k
            each({})
    rates = [float(line.split()[2].removesuffix("/s")) for line in stream.getvalue().splitlines()]
    assert 4 < rates[-1] < 12
