"""The figures of paths: SVG for the page, and beside each the data it shows as CSV.

Contract: every function takes a `Finished` run and returns the SVG text, or None when there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molsamp.runs.drawing import BLUE, GREY, canvas, disc, finish, label_axis, legend, unit, write_table
from molsamp.runs.reading import Array, Finished

TIME_MAP = ("#3b1f6e", "#2f6db5", "#1fa187", "#e0a526")  # start to end; readable on white and on near-black
POINTS = 200
"""At most this many points of a path are drawn."""


def path_map(run: Finished) -> str | None:
    """Draw the paths in the plane of two collective variables: the Ramachandran map, or x and y of a toy."""
    if run.frames is None or len(run.frames.cvs) < 2:
        return None
    axes = _two_axes(run)
    stride = max(1, -(-len(run.frames.time) // POINTS))
    time = run.frames.time[::stride]
    tracks = [run.frames.cvs[a["name"]][:, ::stride] for a in axes]
    write_table(run, "map", ["path", "time", *(a["name"] for a in axes)], _long(time, *tracks))
    with canvas("map", (5.6, 4.6), "compressed") as (figure, out):
        ax = figure.subplots()
        if run.landscape is not None:
            _contours(ax, run.landscape)
        _tracks(figure, ax, run.frames.hit, time, tracks, [a["period"] for a in axes], run)
        for name, state in run.states.get("states", {}).items():
            disc(ax, name, state, axes)
        label_axis(ax.xaxis, axes[0], run)
        label_axis(ax.yaxis, axes[1], run)
        ax.set_aspect("equal", adjustable="box")
        ax.spines[:].set_visible(True)
    return finish(run, "map", out)


def energies(run: Finished) -> str | None:
    """Draw the energy along the paths: the median and the middle 80 % of the hits, and three single paths."""
    if run.frames is None:
        return None
    frames = run.frames
    chosen = frames.hit if frames.hit.any() else ~frames.hit
    low, middle, high = np.nanpercentile(frames.energy[chosen], (10, 50, 90), axis=0)
    write_table(run, "energy", ["time", "p10", "median", "p90"], np.stack([frames.time, low, middle, high], 1))
    with canvas("energy", (5.6, 3.6)) as (figure, out):
        ax = figure.subplots()
        ax.fill_between(frames.time, low, high, color=BLUE, alpha=0.22, lw=0, label="middle 80 %")
        for i in np.flatnonzero(chosen)[:3]:
            ax.plot(frames.time, frames.energy[i], color=GREY, lw=0.6, alpha=0.8, zorder=1)
        ax.plot(frames.time, middle, color=BLUE, lw=1.6, label="median")
        ax.plot([], [], color=GREY, lw=0.8, label="single paths")
        ax.set_xlabel(f"time / {unit(run, 'ps')}")
        ax.set_ylabel(f"energy / {unit(run, 'kJ/mol')}")
        ax.set_xlim(frames.time[0], frames.time[-1])
        which = "paths that hit" if frames.hit.any() else "paths, none of which hit"
        ax.set_title(f"above the start minimum; {int(chosen.sum())} {which}", loc="left")
        legend(ax)
    return finish(run, "energy", out)


def training(run: Finished) -> str | None:
    """Draw hit rate, log dP_b/dP_0 and ESS over the units of work."""
    panels = {"hit_rate": "hit rate / %", "log_rn": "log dP$_b$/dP$_0$ / nats", "ess": "path ESS"}
    shown = [name for name in panels if any(m.get(name) is not None for m in run.metrics)]
    if len(run.metrics) < 2 or not shown:
        return None
    columns = {name: np.array([_number(m.get(name)) for m in run.metrics]) for name in ("k", *shown)}
    write_table(run, "training", list(columns), np.stack(list(columns.values()), 1))
    with canvas("training", (5.6, 1.3 + 1.45 * len(shown))) as (figure, out):
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for ax, name in zip(axes, shown, strict=True):
            y = columns[name] * (100 if name == "hit_rate" else 1)
            ax.plot(columns["k"], y, color=BLUE, lw=0.8, alpha=0.45)
            ax.plot(columns["k"], _smooth(y), color=BLUE, lw=1.7)
            ax.set_ylabel(panels[name])
            positive = y[np.isfinite(y) & (y > 0)]
            if name != "hit_rate" and len(positive) == np.isfinite(y).sum() and positive.max() > 30 * positive.min():
                ax.set_yscale("log")
        axes[-1].set_xlabel("rollout" if run.result["method"] == "tps-dps" else "unit of work")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels(axes)
    return finish(run, "training", out)


def committor(run: Finished) -> str | None:
    """Draw the histogram of committors of the highest frames; at a good transition state they sit near 0.5."""
    if run.committor is None or not len(run.committor):
        return None
    counts, edges = np.histogram(run.committor, bins=10, range=(0.0, 1.0))
    write_table(run, "committor_histogram", ["low", "high", "paths"], np.stack([edges[:-1], edges[1:], counts], 1))
    with canvas("committor", (5.6, 3.2)) as (figure, out):
        ax = figure.subplots()
        ax.bar(edges[:-1], counts, width=0.1, align="edge", color=BLUE, alpha=0.8, lw=0)
        ax.set_xlim(0, 1)
        ax.set_xlabel("committor of the highest frame")
        ax.set_ylabel("paths")
        ax.yaxis.get_major_locator().set_params(integer=True)
    return finish(run, "committor", out)


# -- pieces of the map ----------------------------------------------------------------------------


def broken(x: Array, y: Array, periods: Sequence[float | None]) -> tuple[Array, Array]:
    """Join F points to segments, leaving out those that jump over the edge of a periodic axis.

    Returns:
        (segments (n, 2, 2), which of the F - 1 were kept).
    """
    points = np.stack([x, y], -1)
    segments = np.stack([points[:-1], points[1:]], 1)
    keep = np.isfinite(segments).all((1, 2))
    for axis, period in enumerate(periods):
        if period:
            keep &= np.abs(points[1:, axis] - points[:-1, axis]) < period / 2
    return segments[keep], keep


def _two_axes(run: Finished) -> list[dict[str, Any]]:
    assert run.frames is not None
    names = list(run.frames.cvs)
    known = {axis["name"]: axis for axis in run.states.get("cvs", [])}
    chosen = ["phi", "psi"] if {"phi", "psi"} <= set(names) else names[:2]
    return [known.get(name, {"name": name, "period": None}) for name in chosen]


def _tracks(
    figure: Any, ax: Any, hit: Array, time: Array, tracks: list[Array], periods: list[Any], run: Finished
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("time", TIME_MAP)
    thin = 0.9 if len(hit) <= 100 else 0.45
    for i in np.concatenate([np.flatnonzero(~hit), np.flatnonzero(hit)]):
        x, y = (_wrapped(track[i], period) for track, period in zip(tracks, periods, strict=True))
        segments, kept = broken(x, y, periods)
        shade = colours(time[:-1][kept] / max(time[-1], 1e-12)) if hit[i] else GREY
        lines = LineCollection(list(segments), colors=shade, lw=thin, alpha=0.7 if hit[i] else 0.35, rasterized=True)
        ax.add_collection(lines)
    ax.autoscale_view()
    bar = figure.colorbar(ScalarMappable(Normalize(time[0], time[-1]), colours), ax=ax, fraction=0.046, pad=0.03)
    bar.set_label(f"time / {unit(run, 'ps')}" + ("" if hit.all() else "   (grey: no hit)"))
    bar.outline.set_visible(False)


def _wrapped(x: Array, period: float | None) -> Array:
    return x if not period else (x + period / 2) % period - period / 2


def _contours(ax: Any, landscape: dict[str, Array]) -> None:
    energy = landscape["energy"] - np.nanmin(landscape["energy"])
    levels = np.linspace(0, np.nanpercentile(energy, 60), 14)
    ax.contour(landscape["x"], landscape["y"], energy, levels=levels, colors=GREY, linewidths=0.6, alpha=0.6)


def _long(time: Array, x: Array, y: Array) -> Array:
    """Stack tracks (P, F) to rows (path, time, x, y)."""
    n, frames = x.shape
    return np.stack([np.repeat(np.arange(n), frames), np.tile(time, n), x.ravel(), y.ravel()], 1)


def _smooth(y: Array) -> Array:
    """Average over a centred window of a twentieth of the curve, ends and gaps included."""
    width = max(1, len(y) // 20) | 1
    kernel, seen = np.ones(width), np.isfinite(y)
    total = np.convolve(np.where(seen, y, 0.0), kernel, "same")
    count = np.convolve(seen.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
