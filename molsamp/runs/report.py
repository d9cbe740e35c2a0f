"""The report: one HTML file that opens offline, made only from the files of a run folder."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from molsamp.runs import (
    report_bench,
    report_free_energy,
    report_image,
    report_paths,
    report_plan,
    report_rates,
    report_steer,
    report_steered,
)
from molsamp.runs.checkpoint import write_text
from molsamp.runs.page import grouped, symbols, table
from molsamp.runs.reading import Finished, read
from molsamp.runs.summary import called, interval, null_name, numbers, ordered, parts, subject, value

PAGES = {
    "paths": report_paths,
    "free-energy": report_free_energy,
    "rates": report_rates,
    "steer": report_steer,
    "image": report_image,
    "image bench": report_bench,
    "plan": report_plan,
}


OWN = "What is inside this file is molsamp's own (MIT)."
COUNTS = ("energy_evaluations", "network_calls", "forwards")


def write_report(folder: Path) -> Path:
    """Write report.html, and the figures with their data, from the files of a finished run.

    Returns:
        the path of the report.
    Raises:
        ValueError: no finished run in the folder, or a damaged file.
    """
    run = read(folder)
    shown = (report_steered if run.states.get("steered") else PAGES[run.result["verb"]]).page(run)
    page = Template(asset("report.html")).substitute(
        title=escape(" · ".join([*subject(run.result), "molsamp"])),
        css=asset("report.css"),
        eyebrow=escape(shown.eyebrow),
        heading=escape(shown.heading),
        lead=escape(shown.lead),
        tiles="\n".join(_tile(name, beside, run) for name, beside in shown.tiles.items()),
        warnings=_warnings(run.result["warnings"]),
        question=escape(shown.question),
        words=shown.words,
        wide=f"<section>{shown.wide}</section>" if shown.wide else "",
        left="\n".join(shown.left),
        right="\n".join(shown.right),
        table=shown.table or _results_table(run.result),
        settings=escape(run.settings),
        versions=_versions(run.result),
        licence=escape(asset("3Dmol-LICENSE.txt") if run.player else OWN),
        scripts=_scripts(run) + _animation(shown.data),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def asset(name: str) -> str:
    return (files("molsamp.runs") / "assets" / name).read_text(encoding="utf-8")


def _tile(name: str, beside: str, run: Finished) -> str:
    """Write one headline number, the words below it, and the untrained pull where there is one."""
    found, null = numbers(run.result), run.result.get("null") or {}
    number, unit = parts(name, found[name])
    lines = [
        f"<h3>{symbols(called(name))}</h3>",
        f'<div class="value">{number} <small>{escape(unit)}</small></div>',
        f"<p>{escape(beside)}</p>",
    ]
    if name in null:
        lines.append(f'<p class="null">{null_name(run.result)}: {escape(value(name, null[name]))}</p>')
    return f'<article class="tile">{"".join(lines)}</article>'


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<section class="warnings" role="note"><ul>{items}</ul></section>'


def _results_table(result: dict[str, Any]) -> str:
    found, null = numbers(result), result.get("null") or {}
    columns = ["", "value", "95 % interval", *([null_name(result), "95 % interval"] if null else [])]
    rows = []
    for name in ordered(found):
        cells = [value(name, found[name]), interval(name, found[name])]
        cells += [value(name, null.get(name)), interval(name, null.get(name))] if null else []
        rows.append([symbols(called(name)), *map(escape, cells)])
    return table(columns, rows)


def _versions(result: dict[str, Any]) -> str:
    costs = {
        "energy tier": result.get("engine"),
        **{name.replace("_", " "): grouped(result[name]) for name in COUNTS if name in result},
    }
    facts = {
        **result["versions"],
        **result["machine"],
        **{name: fact for name, fact in costs.items() if fact is not None},
        "CPU seconds": result["cpu_seconds"],
        "wall seconds": result["wall_seconds"],
    }
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<div class="scroll"><table>{rows}</table></div>'


def _scripts(run: Finished) -> str:
    if not run.player:
        return ""
    data = [{"name": p.name, "frames": p.frames, "pdb": p.pdb} for p in run.player]
    text = json.dumps(data).replace("</", "<\\/")
    return (
        f'<script type="application/json" id="player-data">{text}</script>\n'
        f"<script>{asset('3Dmol-min.js')}</script>\n<script>{asset('player.js')}</script>"
    )


def _animation(data: str | None) -> str:
    if data is None:
        return ""
    text = data.replace("</", "<\\/")
    return f'<script type="application/json" id="drive-data">{text}</script>\n<script>{asset("drive.js")}</script>'
