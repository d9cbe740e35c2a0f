"""The report: one HTML file that opens offline, made only from the files of a run folder."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from molsamp.runs import report_free_energy, report_paths
from molsamp.runs.checkpoint import write_text
from molsamp.runs.page import grouped, symbols
from molsamp.runs.reading import Finished, read
from molsamp.runs.summary import NAMES, interval, ordered, parts, value

PAGES = {"paths": report_paths, "free-energy": report_free_energy}


def write_report(folder: Path) -> Path:
    """Write report.html, and the figures with their data, from the files of a finished run.

    Returns:
        the path of the report.
    Raises:
        ValueError: no finished run in the folder, or a damaged file.
    """
    run = read(folder)
    shown = PAGES[run.result["verb"]].page(run)
    page = Template(asset("report.html")).substitute(
        title=escape(f"{run.result['system']} · {run.result['method']} · molsamp"),
        css=asset("report.css"),
        eyebrow=escape(shown.eyebrow),
        heading=escape(shown.heading),
        lead=escape(shown.lead),
        tiles="\n".join(_tile(name, beside, run) for name, beside in shown.tiles.items()),
        warnings=_warnings(run.result["warnings"]),
        question=escape(shown.question),
        words=shown.words,
        wide="",
        left="\n".join(shown.left),
        right="\n".join(shown.right),
        table=_results_table(run),
        settings=escape(run.settings),
        versions=_versions(run.result),
        licence=escape(asset("3Dmol-LICENSE.txt")),
        scripts=_scripts(run),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def asset(name: str) -> str:
    return (files("molsamp.runs") / "assets" / name).read_text(encoding="utf-8")


def _tile(name: str, beside: str, run: Finished) -> str:
    """Write one headline number, the words below it, and the untrained pull where there is one."""
    results, null = run.result["results"], run.result.get("null") or {}
    number, unit = parts(name, results[name])
    lines = [
        f"<h3>{symbols(NAMES.get(name, name))}</h3>",
        f'<div class="value">{number} <small>{escape(unit)}</small></div>',
        f"<p>{escape(beside)}</p>",
    ]
    if name in null:
        lines.append(f'<p class="null">untrained pull: {escape(value(name, null[name]))}</p>')
    return f'<article class="tile">{"".join(lines)}</article>'


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<section class="warnings" role="note"><ul>{items}</ul></section>'


def _results_table(run: Finished) -> str:
    results, null = run.result["results"], run.result.get("null") or {}
    columns = ["", "value", "95 % interval", *(["untrained pull", "95 % interval"] if null else [])]
    head = "".join(f"<th>{heading}</th>" for heading in columns)
    rows = []
    for name in ordered(results):
        cells = [value(name, results[name]), interval(name, results[name])]
        cells += [value(name, null.get(name)), interval(name, null.get(name))] if null else []
        cells = [symbols(NAMES.get(name, name)), *map(escape, cells)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _versions(result: dict[str, Any]) -> str:
    facts = {
        **result["versions"],
        **result["machine"],
        "energy tier": result["engine"],
        "energy evaluations": grouped(result["energy_evaluations"]),
        "network calls": grouped(result["network_calls"]),
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
