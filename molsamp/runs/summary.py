"""Results in words and numbers, for the terminal and the report: names, roundings, intervals, the null beside."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, cast

Number = dict[str, Any]  # one entry of result.json's "results"

NAMES = {
    "hit_rate": "hit rate",
    "rmsd": "RMSD to the end state",
    "log_rn": "log dP_b/dP_0",
    "log_rn_bound": "log dP_b/dP_0, ideal at this hit rate",
    "path_ess": "path ESS",
    "ets": "highest energy of hits",
    "e_max": "highest energy of all paths",
    "log_z": "log Z",
    "log_p_hit": "log P_0(hit)",
    "channel": "share of the first channel",
    "disagreement": "weights against bias, mean difference",
    "ess": "effective samples",
    "ess_share": "effective share of the samples",
    "unusable": "samples diverged or of the wrong hand",
}
"""Results in the order they are shown, and what they are called; others follow under their own names."""
SHARES = ("hit_rate", "channel", "ess_share", "unusable")
"""Results between 0 and 1 that are shown in per cent."""


def show(folder: Path, stream: io.TextIOBase | None = None) -> None:
    """Print the results of a finished run, its warnings and the path of its report."""
    from rich.console import Console
    from rich.table import Table

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    results, null = result["results"], result.get("null") or {}
    console = Console(file=cast(Any, stream), highlight=False)
    table = Table(title=f"{result['system']}, {result['method']}, seed {result['seed']}", title_justify="left")
    for heading in ("", "value", "95 % interval", *(["untrained pull"] if null else [])):
        table.add_column(heading, justify="right" if heading else "left")
    for name in ordered(results):
        number = results[name]
        row = [NAMES.get(name, name), value(name, number), interval(name, number)]
        table.add_row(*row, *([value(name, null.get(name))] if null else []))
    console.print(table)
    for warning in result["warnings"]:
        console.print(f"[yellow]note:[/yellow] {warning}")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def ordered(results: dict[str, Number]) -> list[str]:
    """Return the names of the results, the known ones first and in the order of `NAMES`."""
    differences = [name for name in results if name.startswith("dF")]
    rest = [name for name in results if name not in NAMES and name not in differences]
    return [*differences, *(name for name in NAMES if name in results), *rest]


def value(name: str, number: Number | None) -> str:
    """Write a result with its unit, or a dash when there is none."""
    return " ".join(filter(None, parts(name, number)))


def parts(name: str, number: Number | None) -> tuple[str, str]:
    """Return a result as (rounded value, unit); ("–", "") when there is none."""
    if number is None or number.get("value") is None:
        return "–", ""
    unit = number.get("unit") or ""
    shown = "%" if name in SHARES else "" if unit in ("1", "paths") else unit
    return rounded(name, number["value"], number), shown


def interval(name: str, number: Number | None) -> str:
    """Write the interval of a result as "low to high", or a dash."""
    ends = None if number is None else number.get("interval")
    if number is None or number.get("value") is None or not ends or None in ends or name == "path_ess":
        return "–"
    return " to ".join(rounded(name, end, number) for end in ends)


def rounded(name: str, x: float, number: Number) -> str:
    """Round to the second digit of the interval's width; without an interval to three digits of the value."""
    factor = 100 if name in SHARES else 1
    ends = number.get("interval")
    width = abs(ends[1] - ends[0]) if ends and None not in ends and name != "path_ess" else 0.0
    width = width or abs(x) / 10
    digits = 1 - math.floor(math.log10(width * factor)) if width > 0 else 1
    return f"{x * factor:.{min(max(digits, 0), 4)}f}".replace("-", "−")
