"""The report: one HTML file that opens offline, made only from the files of a run folder."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from molsamp.runs import figures
from molsamp.runs.checkpoint import write_text
from molsamp.runs.reading import Finished, read
from molsamp.runs.summary import NAMES, interval, ordered, parts, value

HEADLINES = ("hit_rate", "rmsd", "log_rn", "path_ess", "ets")
WORDS = {
    "tps-dps": (
        "Every path starts at {origin} and was driven by a control trained for this transition. Such paths show how "
        "{body} can get from {start} to {end} in this short time, and at what energy. They are not what it does by "
        "itself: log dP_b/dP_0 says by how many nats the driving departs from free dynamics, and unless the path ESS "
        "comes close to the number of paths, averages over them are not thermal averages and their timing is no rate."
    ),
    "steered": (
        "Every path starts at {origin} and was pulled towards {end} by a force that was not trained. It is the null "
        "to compare with: a pull reaches the end state often, far away from free dynamics. Averages over these paths "
        "are not thermal averages."
    ),
    "md": (
        "Nothing was driven: these are free trajectories from {origin}. A hit is a spontaneous crossing; in this "
        "short time one expects next to none."
    ),
    "shooting": (
        "A Markov chain of shooting moves drew these paths from free dynamics, given that they go from {start} to "
        "{end}. They start thermally inside {start}, not at its minimum, so they belong to another ensemble than "
        "paths from the fixed start. Neighbours in the chain are correlated: the effective number is below the count."
    ),
    "chain": (
        "A Markov chain on the noise drew these paths from free dynamics that starts at {origin}, given that {end} is "
        "reached. The ensemble is exact once the chain has mixed; neighbours are correlated, so the effective number "
        "of paths is below the count."
    ),
    "twisted": (
        "Populations of free dynamics from {origin}, thinned and multiplied on the way by a learned probability to "
        "reach {end}, left these lines of descent: draws from free dynamics given that {end} is reached, exact "
        "whatever was learned. The scatter of independent populations gives the errors and the effective number."
    ),
}


def write_report(folder: Path) -> Path:
    """Write report.html, and the figures with their data, from the files of a finished run.

    Returns:
        the path of the report.
    Raises:
        ValueError: no finished run in the folder, or a damaged file.
    """
    run = read(folder)
    left, right = _columns(run)
    page = Template(_asset("report.html")).substitute(
        title=escape(f"{run.result['system']} · {run.result['method']} · molsamp"),
        css=_asset("report.css"),
        heading=_heading(run),
        lead=_lead(run),
        tiles="\n".join(_tile(name, run) for name in HEADLINES if name in run.result["results"]),
        warnings=_warnings(run.result["warnings"]),
        words=_words(run),
        left="\n".join(left),
        right="\n".join(right),
        table=_results_table(run),
        settings=escape(run.settings),
        versions=_versions(run.result),
        licence=escape(_asset("3Dmol-LICENSE.txt")),
        scripts=_scripts(run),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _asset(name: str) -> str:
    return (files("molsamp.runs") / "assets" / name).read_text(encoding="utf-8")


def _heading(run: Finished) -> str:
    title = escape(str(run.states.get("title") or run.result["system"]))
    return f"{title}: {escape(str(run.states['start']))} → {escape(str(run.states['end']))}" if run.states else title


def _lead(run: Finished) -> str:
    r = run.result
    n = r["results"].get("hit_rate", {}).get("n", "")
    cost = f"{_grouped(r['energy_evaluations'])} energy evaluations, {_grouped(round(r['cpu_seconds']))} CPU seconds"
    return escape(f"{n} paths by {r['method']}, seed {r['seed']}; {cost}.")


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


def _symbols(text: str) -> str:
    """Escape text for the page and set subscripts: dP_b becomes dP with a small b."""
    return re.sub(r"P_([b0])", r"P<sub>\1</sub>", escape(text))


def _tile(name: str, run: Finished) -> str:
    """Write one headline number with its interval and the untrained pull below it."""
    results, null = run.result["results"], run.result["null"] or {}
    number, unit = parts(name, results[name])
    lines = [
        f"<h3>{_symbols(NAMES[name])}</h3>",
        f'<div class="value">{number} <small>{escape(unit)}</small></div>',
        f"<p>{escape(_beside(name, results))}</p>",
    ]
    if name in null:
        lines.append(f'<p class="null">untrained pull: {escape(value(name, null[name]))}</p>')
    return f'<article class="tile">{"".join(lines)}</article>'


def _beside(name: str, results: dict[str, Any]) -> str:
    if name == "path_ess":
        return f"of {results[name]['n']} paths"
    if name == "log_rn" and "log_rn_bound" in results:
        ideal = value("log_rn_bound", results["log_rn_bound"])
        return f"{interval(name, results[name])}; ideal {ideal}"
    return f"95 %: {interval(name, results[name])}" if results[name]["value"] is not None else "no such paths"


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<section class="warnings" role="note"><ul>{items}</ul></section>'


def _words(run: Finished) -> str:
    start, end = (str(run.states.get(name, f"the {name} state")) for name in ("start", "end"))
    toy = bool(run.states.get("reduced"))
    origin = f"the minimum of {start}" if toy else f"the minimised {start} structure with thermal velocities"
    body = "the particle" if toy else "the molecule"
    return _symbols(WORDS[run.result["method"]].format(start=start, end=end, origin=origin, body=body))


def _columns(run: Finished) -> tuple[list[str], list[str]]:
    """Lay out the panels: where, at what energy, how committed | how it looks, how it went."""
    left = [
        _panel(
            "Where the paths run",
            figures.path_map(run),
            "Circles: the states. Colour: time along the path; misses are grey.",
            "there are no two collective variables to draw",
        ),
        _panel(
            "Energy along the paths",
            figures.energies(run),
            "The highest point decides a crossing; thermal motion alone lifts the curve above zero.",
            "no frames were written",
        ),
    ]
    history = _panel(
        "Over the run",
        figures.training(run),
        "Thin: every unit of work; thick: moving average.",
        "this method records no history",
    )
    committor = _panel(
        "Committor of the highest frame",
        figures.committor(run),
        "The share of free trajectories from that frame that reach the end state first.",
        "committors were not computed in this run; they cost many free trajectories a frame",
    )
    return [*left, committor], [_player(run), history]


def _panel(title: str, svg: str | None, caption: str, absent: str) -> str:
    body = svg if svg else ""
    text = f"<figcaption>{caption}</figcaption>" if svg else f'<p class="absent">Not shown: {absent}.</p>'
    return f'<figure class="panel"><h2>{title}</h2>{body}{text}</figure>'


def _player(run: Finished) -> str:
    if not run.player:
        return _panel("In three dimensions", None, "", "there is no molecule to look at in this system")
    buttons = "".join(
        f'<button type="button" data-path="{i}" aria-pressed="false">{escape(p.name)}</button>'
        for i, p in enumerate(run.player)
    )
    return f"""<figure class="panel"><h2>In three dimensions</h2>
<div id="viewer" class="viewer" role="img" aria-label="Molecule moving along a path"></div>
<div class="controls"><button type="button" id="play" aria-pressed="false">Play</button>
<input type="range" id="frame" min="0" max="{run.player[0].frames - 1}" value="0" aria-label="Frame">
<output id="counter">frame 1 of {run.player[0].frames}</output></div>
<div class="controls">{buttons}</div>
<figcaption>Drag to turn, scroll to zoom.</figcaption></figure>"""


def _results_table(run: Finished) -> str:
    results, null = run.result["results"], run.result["null"] or {}
    columns = ["", "value", "95 % interval", *(["untrained pull", "95 % interval"] if null else [])]
    head = "".join(f"<th>{heading}</th>" for heading in columns)
    rows = []
    for name in ordered(results):
        cells = [value(name, results[name]), interval(name, results[name])]
        cells += [value(name, null.get(name)), interval(name, null.get(name))] if null else []
        cells = [_symbols(NAMES.get(name, name)), *map(escape, cells)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _versions(result: dict[str, Any]) -> str:
    facts = {
        **result["versions"],
        **result["machine"],
        "energy tier": result["engine"],
        "energy evaluations": _grouped(result["energy_evaluations"]),
        "network calls": _grouped(result["network_calls"]),
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
        f"<script>{_asset('3Dmol-min.js')}</script>\n<script>{_asset('player.js')}</script>"
    )
