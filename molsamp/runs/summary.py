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
    "rate": "rate A → B",
    "mfpt": "mean first-passage time A → B",
    "rate_back": "rate B → A",
    "flux": "flux",
    "flux_first": "flux through the first interface",
    "committor": "committor at",
    "mean": "mean of",
    "inside": "share inside",
    "reward": "reward, weighted",
    "ess_population": "effective ones of a replica",
    "ess_sampler": "effective ones of a replica, free",
    "log_partition": "log of the integral of exp(-E/kT)",
    "lineages": "starts that a replica descends from",
    "replicas_ess": "effective replicas",
    "disagreement": "weights against bias, mean difference",
    "ess": "effective samples",
    "ess_share": "effective share of the samples",
    "unusable": "samples diverged or of the wrong hand",
    "rmse_to_fine": "RMSE to fine",
    "fineness": "error of fine, at most",
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Fréchet, features of",
    "reward_before": "reward before",
    "ancestors": "starts that have offspring",
    "recognised": "recognised as their class",
    "recognised_before": "recognised before",
    "psnr": "PSNR of a solution",
    "psnr_mean": "PSNR of their mean",
    "psnr_cg": "PSNR of CG alone",
    "psnr_gain": "the mean above CG alone",
    "misfit": "misfit, in standard deviations",
    "diverged": "diverged",
    "call_time": "call of the model",
    "solver_time": "solver, a call",
    "success": "plan found",
    "path_length_ratio": "length over grid distance",
    "path_length": "length of the way",
    "duration": "duration of the way",
    "effort": "integral of the squared controls",
    "grid_distance": "grid distance",
    "nearest": "nearest node to the goal",
    "edges": "edges tried",
    "nodes": "nodes",
    "coverage": "cells that hold a node",
    "dynamics_steps": "dynamics steps",
    "policy_calls": "calls of the policy",
    "deviation": "plan against finer steps",
    "first_plan": "until the first plan",
    "planning": "planning",
}
"""Results in the order they are shown, and what they are called; others follow under their own names."""
ASKED = ("guide", "reward", "operator")
"""What steered pictures were asked for."""
SHARES = ("hit_rate", "channel", "ess_share", "unusable", "diverged", "coverage", "recognised", "recognised_before")
"""Results between 0 and 1 that are shown in per cent."""


def show(folder: Path, stream: io.TextIOBase | None = None) -> None:
    """Print the results of a finished run, its warnings and the path of its report."""
    from rich.console import Console
    from rich.table import Table

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    console = Console(file=cast(Any, stream), highlight=False)
    table = Table(title=", ".join([*subject(result), f"seed {result['seed']}"]), title_justify="left")
    headings, rows = tabulated(result)
    for heading in headings:
        table.add_column(heading, justify="right" if rows and heading != headings[0] else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if result["verb"] == "image bench":
        console.print(CELLS)
    for warning in result["warnings"]:
        console.print(f"[yellow]note:[/yellow] {warning}")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def subject(result: dict[str, Any]) -> list[str]:
    """What was worked on, and how: system and method, or model and solver."""
    names = ("system", "world", "method", "vehicle", "model", "solver", *ASKED)
    named = [result[name] for name in names if name in result]
    return [*named, "solvers"] if result["verb"] == "image bench" else named


def null_name(result: dict[str, Any]) -> str:
    """What the numbers beside the results are."""
    if result["verb"] == "steer":
        return "free samples" if result["method"] == "diffusion" else "free walkers"
    return {"image": "training set"}.get(result["verb"], "untrained pull")


def numbers(result: dict[str, Any]) -> dict[str, Number]:
    """Results and times."""
    return {**result["results"], **result.get("times", {})}


def called(name: str) -> str:
    """A result in words."""
    first, _, rest = name.partition(":")
    if first == "rmse":
        return "{}, {} calls".format(*rest.rsplit("@", 1))
    return f"{NAMES[first]} {rest}".rstrip() if first in NAMES else name


def tabulated(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The results as (headings, rows)."""
    if result["verb"] == "image bench":
        return _by_calls(by_calls(result["results"]))
    found, null = numbers(result), result.get("null") or {}
    bands = any(number.get("interval") for number in found.values())  # a plan has none: it is one draw
    headings = ["", "value", *(["95 % interval"] if bands else []), *([null_name(result)] if null else [])]
    rows = []
    for name in ordered(found):
        row = [called(name), value(name, found[name]), *([interval(name, found[name])] if bands else [])]
        rows.append([*row, *([value(name, null.get(name))] if null else [])])
    return headings, rows


def by_calls(results: dict[str, Number]) -> dict[str, dict[int, Number]]:
    """RMSE of a comparison: solver -> network calls -> number."""
    table: dict[str, dict[int, Number]] = {}
    for name, number in results.items():
        if name.startswith("rmse:"):
            solver, _, calls = name.removeprefix("rmse:").rpartition("@")
            table.setdefault(solver, {})[int(calls)] = number
    return table


def _by_calls(table: dict[str, dict[int, Number]]) -> tuple[list[str], list[list[str]]]:
    """A row a solver, the best first, a column a number of calls."""
    calls = sorted({n for row in table.values() for n in row})

    def merit(solver: str) -> float:
        found = [table[solver][n]["value"] for n in calls if n in table[solver]]
        return math.inf if None in found else sum(math.log(max(x, 1e-300)) for x in found) / len(found)

    rows = [[solver, *(bracketed(table[solver].get(n)) for n in calls)] for solver in sorted(table, key=merit)]
    return ["network calls", *map(str, calls)], rows


CELLS = "RMSE to fine trajectories / 10⁻³; in brackets the 95 % half-width in the last digit"


def bracketed(number: Number | None) -> str:
    """A value in thousandths with its half-width in brackets: 0.0614 and 0.0025 are 61(3)."""
    if number is None:
        return ""
    if number["value"] is None:
        return "diverged"
    x, half = 1e3 * number["value"], 500.0 * (number["interval"][1] - number["interval"][0])
    digits = min(max(-math.floor(math.log10(half)), 0), 6) if half > 0 else 3
    return f"{x:.{digits}f}({round(half * 10**digits)})"


def ordered(results: dict[str, Number]) -> list[str]:
    """Return the names of the results, the known ones first and in the order of `NAMES`."""
    differences = [name for name in results if name.startswith("dF")]
    known = list(NAMES)
    places = {name: known.index(first) for name in results if (first := name.partition(":")[0]) in known}
    rest = [name for name in results if name not in places and name not in differences]
    return [*differences, *sorted(places, key=places.__getitem__), *rest]


def value(name: str, number: Number | None) -> str:
    """Write a result with its unit, or a dash when there is none."""
    return " ".join(filter(None, parts(name, number)))


def parts(name: str, number: Number | None) -> tuple[str, str]:
    """Return a result as (rounded value, unit); ("–", "") when there is none."""
    if number is None or number.get("value") is None:
        return "–", ""
    if name == "success":
        return "yes" if number["value"] else "no", ""
    unit = number.get("unit") or ""
    shown = "%" if name in SHARES else "" if unit in ("1", "paths") else unit
    return rounded(name, number["value"], number), shown


def interval(name: str, number: Number | None) -> str:
    """Write the interval of a result as "low to high", "above low" or "below high", or a dash."""
    ends = None if number is None else number.get("interval")
    if number is None or number.get("value") is None or not ends or name == "path_ess":
        return "–"
    low, high = (None if end is None else rounded(name, end, number) for end in ends)
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"below {high}" if high is not None else f"above {low}" if low is not None and ends[0] != 0.0 else "–"


def rounded(name: str, x: float, number: Number) -> str:
    """Round to the second digit of the interval's width; without an interval to three digits of the value."""
    factor = 100 if name in SHARES else 1
    ends = number.get("interval")
    if isinstance(x, int) and ends is None:  # a count
        return f"{x:,}".replace(",", "\u2009")
    width = abs(ends[1] - ends[0]) if ends and None not in ends and name != "path_ess" else 0.0
    width = width or abs(x) / 10
    digits = 1 - math.floor(math.log10(width * factor)) if width > 0 else 1
    if digits > 6 and x != 0.0:  # a rate
        return f"{x * factor:.3g}".replace("-", "−")
    return f"{x * factor:.{min(max(digits, 0), 6)}f}".replace("-", "−")
