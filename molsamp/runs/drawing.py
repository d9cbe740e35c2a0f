"""What every figure of a report is made of: house style, axes, states, the SVG text and the data beside it.

Text and axes take the colour of the page around them (CSS currentColor), so one figure serves light and dark.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from molsamp.runs.checkpoint import write_text
from molsamp.runs.reading import Array, Columns, Finished

INK = "#010203"  # becomes currentColor
BLUE, ORANGE, GREY = "#2f7ebc", "#d9731a", "#8a8f98"


@contextlib.contextmanager
def canvas(name: str, size: tuple[float, float], layout: Any = "constrained") -> Iterator[tuple[Any, io.StringIO]]:
    """Give a figure in house style without touching pyplot, and write it as SVG text at the end."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "mathtext.default": "regular",
    }
    out = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout=layout)
        FigureCanvasSVG(figure)
        yield figure, out
        figure.savefig(out, format="svg", transparent=True, dpi=200, metadata={"Date": None, "Creator": None})


def finish(run: Finished, name: str, out: io.StringIO) -> str:
    """Write the SVG file and return the text for the page, coloured by it."""
    write_text(_folder(run) / f"{name}.svg", out.getvalue().replace(INK, "currentColor"))
    return inline(out)


def inline(out: io.StringIO) -> str:
    """The SVG text for a page, coloured by it."""
    svg = out.getvalue().replace(INK, "currentColor")
    return svg[svg.index("<svg") :]


def write_table(run: Finished, name: str, headings: list[str], rows: Array) -> None:
    """Write the numbers of a figure beside it, as CSV."""
    lines = [",".join(headings), *(",".join(f"{x:.6g}" for x in row) for row in rows)]
    write_text(_folder(run) / f"{name}.csv", "\n".join(lines) + "\n")


def columns(table: Columns, *names: str, **only: str) -> list[Array]:
    """Columns as numbers, of the rows whose other columns are as given."""
    rows = [i for i in range(len(table[names[0]])) if all(table[k][i] == v for k, v in only.items())]
    return [np.array([float(table[name][i] or "nan") for i in rows]) for name in names]


def _folder(run: Finished) -> Path:
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    return folder


def disc(ax: Any, name: str, state: dict[str, Any], axes: list[dict[str, Any]]) -> None:
    """Outline a state, on both sides of a periodic edge that it crosses."""
    from matplotlib.patches import Circle

    if state["metric"] != "cvs" or not all(a["name"] in state["values"] for a in axes):
        return
    centre = np.array([state["values"][a["name"]] for a in axes])
    shifts = [(-a["period"], 0.0, a["period"]) if a["period"] else (0.0,) for a in axes]
    for dx in shifts[0]:
        for dy in shifts[1]:
            ax.add_patch(
                Circle((centre[0] + dx, centre[1] + dy), state["radius"], fill=False, ec=INK, lw=1.1, zorder=4)
            )
    below = centre - (0, 1.12 * state["radius"])
    ax.annotate(name, below, ha="center", va="top", weight="bold", color=INK, zorder=5, annotation_clip=True)


def label_axis(axis: Any, cv: dict[str, Any], run: Finished) -> None:
    """Name an axis after its variable; an angle has one turn of ticks."""
    symbol = {"phi": "φ", "psi": "ψ"}.get(cv["name"], cv["name"])
    if cv["period"] and abs(cv["period"] - 2 * np.pi) < 1e-6:
        set_limits = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
        set_limits(-np.pi, np.pi)
        axis.set_ticks(np.pi * np.array([-1, -0.5, 0, 0.5, 1]), ["−π", "−π/2", "0", "π/2", "π"])
        axis.set_label_text(f"{symbol} / rad")
    else:
        bare = run.states.get("reduced") or cv.get("unit", "1") == "1"
        axis.set_label_text(symbol if bare else f"{symbol} / {cv['unit']}")


def unit(run: Finished, name: str) -> str:
    """The unit as an axis has it: toys have none."""
    return "reduced units" if run.states.get("reduced") else name


def legend(ax: Any) -> None:
    """A legend in house style."""
    ax.legend(frameon=False, fontsize=9)
