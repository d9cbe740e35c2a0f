"""The figures of planning: SVG for the page; the data beside are tree.npz, plan.csv and figures/progress.csv."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from molsamp.runs.drawing import BLUE, INK, canvas, columns, finish, write_table
from molsamp.runs.reading import Array, Finished

GROWTH = ("#8fb8d9", "#4f8fc4", "#3b5fa8")  # of the tree, first to last; readable on white and on near-black
SPEED = ("#f0b429", "#e4572e", "#b5179e")  # of the plan, slow to fast
GOAL = "#1fa187"
OUTLINES = 9  # of the vehicle along the plan
FINENESS = 32_000  # steps of the whole numbers that the animation's positions are sent as
EDGES = 5000  # of the tree that are animated, at most


def world(run: Finished) -> str | None:
    """Draw the walls, the tree in the order in which it grew, the plan by its speed, the vehicle on its way."""
    if run.tree is None:
        return None
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    s = run.states
    width, height = size(s)
    with canvas("world", _figure_size(width, height, bool(run.plan)), "constrained") as (figure, out):
        ax = figure.subplots()
        _walls(ax, s)
        lines = ways(run.tree)
        shades = LinearSegmentedColormap.from_list("growth", GROWTH)(np.linspace(0, 1, max(len(lines), 1)))
        ax.add_collection(LineCollection(lines, colors=shades, lw=0.5, alpha=0.6, rasterized=True, zorder=2))
        _goal(ax, s)
        if run.plan:
            _plan(figure, ax, run)
        else:
            _vehicle(ax, s, np.array(s["start"]))
        x = _driven(run)
        _label(ax, "start", s["start"][:2], 0.0, height, "#4a515c", x[min(len(x) - 1, 40), 1] - x[0, 1])
        _label(ax, "goal", s["goal"], s["radius"], height, "#14705f", x[-1, 1] - s["goal"][1])
        ax.set(xlim=(0, width), ylim=(0, height), aspect="equal", xlabel="x / m", ylabel="y / m")
        ax.spines[:].set_visible(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
    return finish(run, "world", out)


def progress(run: Finished) -> str | None:
    """Draw nodes, the distance of the nearest one to the goal, and the cost of the plan, over the edges tried."""
    if len(run.metrics) < 2:
        return None
    unit = "s" if run.states["planner"]["cost"] == "time" else "m"
    panels = {"nodes": "nodes", "nearest": "nearest to goal / m", "cost": f"cost of plan / {unit}"}
    table = {
        name: np.array([np.nan if m[name] is None else m[name] for m in run.metrics]) for name in ("edges", *panels)
    }
    if len(set(table["cost"][np.isfinite(table["cost"])])) < 2:  # the first plan was the last
        panels.pop("cost")
    write_table(run, "progress", list(table), np.stack(list(table.values()), 1))
    with canvas("progress", (5.6, 1.0 + 1.35 * len(panels))) as (figure, out):
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (name, words) in zip(axes, panels.items(), strict=True):
            ax.plot(
                table["edges"], table[name], color=BLUE, lw=1.6, drawstyle="steps-post" if name != "nodes" else None
            )
            ax.set_ylabel(words)
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:,.6g}".replace(",", "\u2009"))
            if name != "cost":
                ax.set_ylim(bottom=0)
        axes[1].axhline(run.states["radius"], color=INK, lw=0.7, ls=":")
        axes[-1].set_xlabel("edges tried")
        axes[-1].set_xlim(0, table["edges"][-1])
        axes[-1].xaxis.set_major_formatter(lambda x, _: f"{x:,.6g}".replace(",", "\u2009"))
        figure.align_ylabels(axes)
    return finish(run, "progress", out)


def animation(run: Finished) -> str | None:
    """The data of the animation as JSON: walls, edges of the tree, states of the plan; positions as whole numbers."""
    if run.tree is None:
        return None
    s = run.states
    unit = max(size(s)) / FINENESS
    edges = ways(run.tree, EDGES)
    told: dict[str, Any] = {
        "size": size(s),
        "boxes": (np.array(wall_boxes(s["walls"]), dtype=float) * s["cell"]).tolist(),
        "goal": [*s["goal"], s["radius"]],
        "unit": unit,
        "lengths": _packed(np.array([len(e) for e in edges], dtype="<u2")),
        "points": _packed(np.round(np.concatenate([*edges, np.zeros((0, 2))]) / unit).astype("<i2")),
        "nodes": len(run.tree["parent"]),
        "bodies": s["bodies"],
        "start": s["start"],
        "states": [],
        "dt": s["dt"],
    }
    if run.plan:
        told["states"] = np.round(_driven(run), 4).tolist()
        told["speed"] = s["states"].index("v")
    return json.dumps(told)


def ways(tree: dict[str, Array], most: int | None = None) -> list[Array]:
    """The way of each edge, (points, 2) in m, its parent's position first; of `most` edges, evenly chosen, those of the
    plan among them.
    """
    ends, n = tree["way_end"], len(tree["parent"])
    nodes = np.arange(1, n)
    if most is not None and len(nodes) > most:
        nodes = np.unique(np.concatenate([np.linspace(1, n - 1, most).astype(int), tree["plan"][1:]]))
    first = tree["state"][tree["parent"][nodes], :2]
    return [np.vstack([a, tree["way"][ends[i - 1] : ends[i]]]) for i, a in zip(nodes, first, strict=True)]


def size(s: dict[str, Any]) -> tuple[float, float]:
    """Width and height of the world, m."""
    return len(s["walls"][0]) * s["cell"], len(s["walls"]) * s["cell"]


def wall_boxes(walls: list[str]) -> list[tuple[int, int, int, int]]:
    """Walls as (column, row, width, height) of few rectangles, row 0 the lowest: runs along rows, equal ones joined."""
    boxes: dict[tuple[int, int], tuple[int, int, int, int]] = {}  # (column, width) of a run that may go on -> its box
    done: list[tuple[int, int, int, int]] = []
    for row, line in enumerate(reversed(walls)):
        runs, column = {}, 0
        for part in line.replace("#.", "# .").replace(".#", ". #").split():
            if part[0] == "#":
                x, y, w, h = boxes.pop((column, len(part)), (column, row, len(part), 0))
                runs[column, len(part)] = (x, y, w, h + 1)
            column += len(part)
        done += boxes.values()
        boxes = runs
    return [*done, *boxes.values()]


def _packed(a: Array) -> str:
    return base64.b64encode(a.tobytes()).decode("ascii")


def _figure_size(width: float, height: float, bar: bool) -> tuple[float, float]:
    """Inches for a world of this size, as wide as a column, not too high; below it the bar of speeds."""
    across = 5.6
    return across, min((across - 0.6) * height / width + (1.1 if bar else 0.5), 9.0)


def _walls(ax: Any, s: dict[str, Any]) -> None:
    """All walls as one path, so that no seams show between its parts."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    def corners(x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
        return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]

    if boxes := wall_boxes(s["walls"]):
        paths = [Path(s["cell"] * np.array(corners(*box))[[0, 1, 2, 3, 0]], closed=True) for box in boxes]
        ax.add_patch(PathPatch(Path.make_compound_path(*paths), fc=INK, alpha=0.28, lw=0, zorder=1))


def _goal(ax: Any, s: dict[str, Any]) -> None:
    from matplotlib.patches import Circle

    ax.add_patch(Circle(s["goal"], s["radius"], fc=GOAL, alpha=0.35, lw=0, zorder=3))
    ax.add_patch(Circle(s["goal"], s["radius"], fill=False, ec=GOAL, lw=1.6, zorder=3))


def _label(ax: Any, text: str, point: list[float], beside: float, height: float, colour: str, plan: float) -> None:
    """A word on a ground of its own, above a point or below it: not where the `plan` lies, and within the world."""
    up = -1 if plan > 0 else 1
    if not 0.0 < point[1] + up * (beside + 0.08 * height) < height:
        up = -up
    ax.annotate(
        text,
        (point[0], point[1] + up * beside),
        xytext=(0, 9 * up),
        textcoords="offset points",
        ha="center",
        va="bottom" if up > 0 else "top",
        fontsize=9,
        weight="bold",
        color="white",
        bbox={"boxstyle": "round,pad=0.2", "fc": colour, "ec": "none", "alpha": 0.9},
        zorder=7,
    )


def _plan(figure: Any, ax: Any, run: Finished) -> None:
    """The way by its speed, with outlines of the vehicle at even times."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    s = run.states
    x = _driven(run)
    v = x[:, s["states"].index("v")]
    colours, norm = LinearSegmentedColormap.from_list("speed", SPEED), Normalize(0.0, max(float(v.max()), 1e-9))
    segments = np.stack([x[:-1, :2], x[1:, :2]], 1)
    ax.add_collection(
        LineCollection(list(segments), colors=colours(norm(v[1:])), lw=2.6, capstyle="round", rasterized=True, zorder=4)
    )
    for i in np.unique(np.linspace(0, len(x) - 1, OUTLINES).round().astype(int)):
        _vehicle(ax, s, x[i])
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=ax, location="bottom", fraction=0.04, pad=0.02, aspect=40)
    bar.set_label("speed of the plan / (m/s)")
    bar.outline.set_visible(False)


def _driven(run: Finished) -> Array:
    """The states of the plan, or the start alone."""
    names = run.states["states"]
    return np.stack(columns(run.plan, *names), 1) if run.plan else np.array([run.states["start"]])


def _vehicle(ax: Any, s: dict[str, Any], state: Array) -> None:
    """The outline of each part of the vehicle, and what joins a part to its position."""
    from matplotlib.patches import Polygon

    for body in s["bodies"]:
        angle = state[body["heading"]] if body["heading"] >= 0 else 0.0
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = np.array(body["outline"]) @ turn + state[:2]
        ax.add_patch(Polygon(corners, closed=True, fill=False, ec=INK, lw=1.0, zorder=6))
        ax.plot(*np.stack([state[:2], corners.mean(0)], 1), color=INK, lw=1.0, zorder=6)
