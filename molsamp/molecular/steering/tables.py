"""The tables that steering leaves: every walker at its end, and the data of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.lineage import Steered
from molsamp.engine.particles import live_weights
from molsamp.molecular.cvs import CV, wrap
from molsamp.molecular.steering.job import Aim
from molsamp.molecular.steering.populations import Population

BINS = 40  # of a histogram
SHOWN = 128  # walkers in the drawing of a replica, at most

Table = tuple[Sequence[str], list[list[Any]]]
"""Headings and rows."""


def ends(found: Steered, aim: Aim) -> Table:
    """Every walker at its end: replica, start that it descends from, log weight, reward, quantities."""
    x, starts = found.particles.x, found.starts()
    s, reward, logw = aim.quantities(x).double(), aim.tilt(x), live_weights(found.particles)
    m = starts.shape[1]
    rows = [
        [i // m, i % m, int(starts[i // m, i % m]), float(logw[i]), float(reward[i]), *s[i].tolist()]
        for i in range(len(x))
    ]
    return ("replica", "particle", "start", "log_weight", "reward", *aim.quantities.names), rows


def effective(found: Steered, times: Sequence[float]) -> Table:
    """Effective sizes of the populations at every boundary: their mean, the least, the most."""
    sizes = zip(times[1:], found.effective, strict=True)
    rows = [[t, float(e.mean()), float(e.min()), float(e.max())] for t, e in sizes]
    return ("time", "mean", "low", "high"), rows


def genealogy(p: Population, times: Sequence[float]) -> Table:
    """Steps of a population from boundary to boundary: times, places of parent and child, first quantity, fate.

    Of more than `SHOWN` walkers those are shown whose lines lead to every k-th end, and every k-th of the others.
    """
    B, m = p.ancestors.shape
    every = -(-m // SHOWN)
    line = p.line[:, ::every]
    rows: list[list[Any]] = []
    for b in range(B):
        parents = torch.arange(m) if b == 0 else p.ancestors[b - 1]
        alive = torch.zeros(m, dtype=torch.bool)
        alive[line[b]] = True
        for child in range(m):
            if bool(alive[child]) or child % every == 0:
                parent = int(parents[child])
                s0, s1 = float(p.s[b, parent, 0]), float(p.s[b + 1, child, 0])
                rows.append([times[b], times[b + 1], parent, child, s0, s1, int(alive[child])])
    return ("t0", "t1", "parent", "child", "s0", "s1", "alive"), rows


def distribution(laws: Sequence[Steered], cv: CV) -> Table:
    """Densities of each quantity: of the free walkers, of these weighed at the end, of the steered ones."""
    values = [cv(law.particles.x).double() for law in laws]
    shares = [torch.softmax(live_weights(law.particles), 0) for law in laws]
    rows: list[list[Any]] = []
    for j, (name, period) in enumerate(zip(cv.names, cv.period, strict=True)):
        columns = [wrap(v[:, j : j + 1], (period,))[:, 0].contiguous() for v in values]
        seen = torch.cat(columns)
        low, high = (float(seen.min()), float(seen.max())) if period is None else (-0.5 * period, 0.5 * period)
        edges = torch.linspace(low, high if high > low else low + 1.0, BINS + 1, dtype=torch.float64)
        counts = [_histogram(column, w, edges) for column, w in zip(columns, shares, strict=True)]
        rows += [[name, float(edges[b]), float(edges[b + 1]), *(float(c[b]) for c in counts)] for b in range(BINS)]
    return ("quantity", "low", "high", "free", "weighed", "steered"), rows


def _histogram(s: Float[Tensor, " n"], w: Float[Tensor, " n"], edges: Float[Tensor, " e"]) -> Float[Tensor, " b"]:
    """Weight per bin and width."""
    found = torch.zeros(len(edges) - 1, dtype=torch.float64)
    place = (torch.searchsorted(edges, s, right=True) - 1).clamp(0, len(found) - 1)
    return found.index_add(0, place, w) / (edges[1] - edges[0])
