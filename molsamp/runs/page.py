"""What a verb puts into its report, and the pieces that all verbs share."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

from molsamp.runs.reading import Finished


class Page(NamedTuple):
    """The parts of a report that depend on the verb.

    Args:
        eyebrow: the verb in words.
        heading, lead: plain text.
        tiles: headline results, and the words below each.
        question: heading of the words.
        words: what the numbers are and are not, HTML.
        left, right: panels of the two columns, HTML.
        table: of all results, HTML; None for the usual one.
        wide: a panel over both columns, HTML.
        data: what assets/drive.js animates, JSON; None where nothing drives.
    """

    eyebrow: str
    heading: str
    lead: str
    tiles: dict[str, str]
    question: str
    words: str
    left: list[str]
    right: list[str]
    table: str | None = None
    wide: str = ""
    data: str | None = None


def grouped(number: int) -> str:
    """A number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u2009")


def symbols(text: str) -> str:
    """Escape text for the page and set subscripts: dP_b becomes dP with a small b."""
    return re.sub(r"P_([b0])", r"P<sub>\1</sub>", escape(text))


def panel(title: str, svg: str | None, caption: str, absent: str) -> str:
    """A figure with its caption, or why it is absent."""
    body = svg if svg else ""
    text = f"<figcaption>{caption}</figcaption>" if svg else f'<p class="absent">Not shown: {absent}.</p>'
    return f'<figure class="panel"><h2>{title}</h2>{body}{text}</figure>'


def picture(title: str, file: Path, caption: str) -> str:
    """A PNG inside the page, with its caption, or that it is absent."""
    if not file.exists():
        return panel(title, None, "", f"{file.name} is missing")
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return panel(title, f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">', caption, "")


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def player(run: Finished) -> str:
    """The 3D view of the run's structures."""
    if not run.player:
        return panel("In three dimensions", None, "", "there is no molecule to look at in this system")
    buttons = "".join(
        f'<button type="button" data-path="{i}" aria-pressed="false">{escape(p.name)}</button>'
        for i, p in enumerate(run.player)
    )
    return f"""<figure class="panel"><h2>In three dimensions</h2>
<div id="viewer" class="viewer" role="img" aria-label="The molecule"></div>
<div class="controls"><button type="button" id="play" aria-pressed="false">Play</button>
<input type="range" id="frame" min="0" max="{run.player[0].frames - 1}" value="0" aria-label="Frame">
<output id="counter">frame 1 of {run.player[0].frames}</output></div>
<div class="controls">{buttons}</div>
<figcaption>Drag to turn, scroll to zoom.</figcaption></figure>"""
