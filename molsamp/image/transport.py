"""DPM-OT: a start far down the chain, by semi-discrete optimal transport from noise to stored noised pictures.

Given n targets y_j, draws of the model at a time t, the optimal map from the source mu (the prior) to them at cost
-<x, y> is T(x) = grad u(x), with the Brenier potential

    u(x) = max_j (<y_j, x> + h_j),        T(x) = y_j on the cell j where the maximum is reached.

The heights minimise the convex E(h) = integral u dmu - mean_j h_j, whose gradient is mu(cell_j) - 1/n: every target is
reached by the same share of the noise. A solver goes on from T(x) at time t. An ordinary differential equation ends at
one of n pictures then; a stochastic one, or the blend of several cells, at more. Either way look at `copies`.

Source: Li et al., "DPM-OT: a new diffusion probabilistic model based on optimal transport", ICCV 2023, algorithm 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.grids import Kind
from molsamp.engine.noise import Noise
from molsamp.engine.schedules import Schedule
from molsamp.image.sampling import grid_of
from molsamp.learn.fit import fit

CHUNK = 1 << 24  # scores held at a time
DOUBLINGS, SLOWER = 3, 0.8  # of the points, when nothing gets better; and what the rate is multiplied by then
COPY = 1.0 / 3.0  # a sample is a copy if its nearest picture is so much nearer than the second

Source = Literal["normal", "uniform"]
Pictures = Float[Tensor, "n *event"]


@dataclass(frozen=True)
class Brenier:
    """u(x) = max_j (<y_j, x> + h_j) and how its heights were found.

    Args:
        targets: y_j.
        h: heights of mean 0, float64.
        gradient: norm of mu(cell) - 1/n on fresh points; at the very optimum it is 1 / sqrt(points).
        empty: targets that none of them reached.
        iterations: of Adam.
        stopped: why: the "tolerance" was met, it "stalled", or it took the "most" iterations.
    """

    targets: Float[Tensor, "K *event"]
    h: Float[Tensor, " K"]
    gradient: float
    empty: int
    iterations: int
    stopped: Literal["tolerance", "stalled", "most"]

    def cell(self, x: Pictures) -> Int[Tensor, " n"]:
        """The cell of each point."""
        return _cells(self.targets.flatten(1), self.h, x.flatten(1))

    def value(self, x: Pictures) -> Float[Tensor, " n"]:
        """u(x)."""
        j = self.cell(x)
        return (self.targets[j].flatten(1) * x.flatten(1)).sum(1) + self.h[j]

    def masses(self, x: Pictures) -> Float[Tensor, " K"]:
        """Share of points in each cell."""
        return torch.bincount(self.cell(x), minlength=len(self.h)).double() / len(x)

    def __call__(self, x: Pictures, k: int = 1, angle: float = 0.7) -> Pictures:
        """T(x), or a blend of the k best targets.

        A cell takes part in the blend if its plane <y_j, x> + h_j is at an angle below `angle` with the best cell's;
        farther ones lie across a ridge of u, where blends are in no mode. Its weight is by how much its score exceeds
        the (k + 1)-th, so that the blend changes continuously where cells change places.

        Args:
            x: draws of the source.
            k: 1 is the map itself.
            angle: radians.

        Raises:
            ValueError: if k is not in 1 .. n - 1, unless n = 1, or the angle not in (0, pi].
        """
        if k == 1:
            return self.targets[self.cell(x)].to(x)
        if not 1 < k < len(self.targets):
            raise ValueError(f"a blend of k = {k} of {len(self.targets)} targets is not allowed, k is in 1 .. n - 1")
        if not 0.0 < angle <= math.pi:
            raise ValueError(f"the angle of blends is {angle:g}, it must lie in (0, pi]")
        y = self.targets.flatten(1)
        blends = [self._blend(y, part, k, angle) for part in x.flatten(1).split(max(1, CHUNK // len(y)))]
        return torch.cat(blends).view_as(x)

    def _blend(self, y: Tensor, x: Tensor, k: int, angle: float) -> Tensor:
        score, j = _scores(y, self.h, x).topk(k + 1, 1)
        normal = torch.cat([y, -y.new_ones(len(y), 1)], 1).double()
        normal = normal / normal.norm(dim=1, keepdim=True)
        cosine = torch.einsum("nd,nkd->nk", normal[j[:, 0]], normal[j[:, :k]])
        w = torch.where(cosine > math.cos(angle), score[:, :k] - score[:, k:], 0.0)
        w[:, 0] = (score[:, 0] - score[:, k]).clamp(min=torch.finfo(w.dtype).tiny)
        return torch.einsum("nk,nkd->nd", (w / w.sum(1, keepdim=True)).to(y), y[j[:, :k]]).to(x)


def fit_heights(
    targets: Float[Tensor, "K *event"],
    noise: Noise,
    *,
    source: Source = "normal",
    points: int | None = None,
    rate: float = 0.1,
    patience: int = 50,
    tolerance: float = 8e-4,
    most: int = 10_000,
) -> Brenier:
    """Heights by Adam on Monte-Carlo gradients.

    Fresh points are drawn in every iteration, and h is brought back to mean 0. It ends when the norm of the gradient
    is below the tolerance with no cell empty. When the norm has reached no new minimum for `patience` iterations, the
    points are doubled and the rate falls by a fifth, three times at most. The paper then goes on to the most
    iterations; but counts of M points have a gradient of norm 1 / sqrt(M) at the very optimum, and a tolerance below
    that is met by luck or never: here it ends, with the mean of the last `patience` heights, nearer the optimum than
    the last.

    Args:
        targets: y_j.
        noise: keys of the points.
        source: standard normal, or uniform in [0, 1].
        points: in the first iterations; 10 for each target unless given.
        rate: Adam's, in units of <y, x>.
        patience: iterations.
        tolerance: of the norm of the gradient.
        most: iterations in all.

    Raises:
        ValueError: without targets, or for settings that are not positive.
    """
    K, event = len(targets), tuple(targets.shape[1:])
    M = 10 * K if points is None else points
    if K < 1 or min(M, rate, patience, tolerance, most) <= 0:
        raise ValueError(
            f"heights need targets and positive settings, got {K} targets, points {M}, rate {rate:g}, "
            f"patience {patience}, tolerance {tolerance:g}, most {most}"
        )
    y, h = targets.flatten(1), torch.zeros(K, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([h], lr=rate)

    def energy(drawn: dict[str, Tensor]) -> Tensor:
        x = drawn["x"].flatten(1)
        j = _cells(y, h.detach(), x)
        return ((y[j] * x).sum(1) + h[j]).mean() - h.mean()  # the gradient of a maximum is that of its winner

    def batch(k: int, M: int, _: int) -> dict[str, Tensor]:
        return {"x": draw(source, noise, k, M, event, targets.dtype)}

    def stop(k: int, why: Literal["tolerance", "stalled", "most"]) -> Brenier:
        heights = recent[-1] if why == "tolerance" else torch.stack(list(recent)).mean(0)
        found = Brenier(targets, heights, math.nan, K, k + 1, why)
        masses = found.masses(draw(source, noise, k + 1, M, event, targets.dtype))
        return replace(found, gradient=float((masses - 1.0 / K).norm()), empty=int((masses == 0.0).sum()))

    recent: deque[Tensor] = deque(maxlen=patience)
    best, since, doubled = math.inf, 0, 0
    for k in range(most):
        recent.append(h.detach().clone())
        norm = fit(energy, partial(batch, k, M), optimiser, steps=1, clip=math.inf).gradient
        assert h.grad is not None
        if norm < tolerance and float(h.grad.min()) + 1.0 / K > 0.5 / M:  # no cell is empty
            return stop(k, "tolerance")
        with torch.no_grad():
            h -= h.mean()
        best, since = (norm, 0) if norm < best else (best, since + 1)
        if since >= patience:
            if doubled == DOUBLINGS:
                return stop(k, "stalled")
            doubled, M, since = doubled + 1, 2 * M, 0
            for group in optimiser.param_groups:
                group["lr"] *= SLOWER
    return stop(most - 1, "most")


def draw(
    source: Source, noise: Noise, step: int, n: int, event: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n *shape"]:
    """n points of a source."""
    kind = noise.normal if source == "normal" else noise.uniform
    return kind(step, torch.arange(n), event, dtype)


def noised(data: Pictures, schedule: Schedule, t: float, noise: Noise) -> Pictures:
    """Targets at time t: alpha x_0 + sigma eps of every picture."""
    eps = noise.normal(0, torch.arange(len(data)), tuple(data.shape[1:]), data.dtype)
    return schedule.alpha(t) * data + schedule.sigma(t) * eps


def transport(
    potential: Brenier,
    schedule: Schedule,
    x: Pictures,
    t: float,
    intervals: int,
    grid: Kind | Sequence[float] | None = None,
    k: int = 1,
    angle: float = 0.7,
) -> tuple[Pictures, list[float]]:
    """The jump: (T(x), times from t on) for `sample(start=..., grid=...)`; no call, n d multiplications a picture.

    Args:
        potential: to targets that are draws of the model at time t.
        schedule: of the model.
        x: draws of the potential's source.
        t: time of the targets.
        intervals: from t to the end.
        grid: a kind of grid, or the times themselves from t on.
        k, angle: of the map.

    Raises:
        ValueError: as `grid_of` and the map.
    """
    return potential(x, k, angle), grid_of(schedule, grid, intervals, t)


class Copies(NamedTuple):
    """How near samples lie to stored pictures, root mean square over pixels.

    Attributes:
        distance: of each sample to its nearest picture.
        spacing: median distance of a picture to its nearest other one.
        share: of samples that are copies: nearer to a picture than a third of the distance to any other.
    """

    distance: Float[Tensor, " n"]
    spacing: float
    share: float


def copies(x: Pictures, data: Float[Tensor, "K *event"]) -> Copies:
    """Nearest-neighbour distances of samples to a data set.

    Raises:
        ValueError: for fewer than two pictures.

    Source of the share: Yoon et al., "Diffusion probabilistic models generalize when they fail to memorize", 2023.
    """
    if len(data) < 2:
        raise ValueError(f"nearest neighbours need two pictures or more, got {len(data)}")
    flat = data.flatten(1).double()
    scale = math.sqrt(flat.shape[1])
    two = _nearest(x.flatten(1).double(), flat, 2) / scale
    spacing = _nearest(flat, flat, 2)[:, 1].median() / scale
    return Copies(two[:, 0], float(spacing), float((two[:, 0] < COPY * two[:, 1]).double().mean()))


def _nearest(x: Tensor, data: Tensor, k: int) -> Tensor:
    """Distances to the k nearest, (n, k)."""
    parts = x.split(max(1, CHUNK // len(data)))
    exact = "donot_use_mm_for_euclid_dist"  # the other way a picture is not at distance 0 from itself
    return torch.cat([torch.cdist(part, data, compute_mode=exact).topk(k, 1, largest=False).values for part in parts])


def _scores(y: Tensor, h: Tensor, x: Tensor) -> Tensor:
    """<y_j, x> + h_j, (n, K)."""
    return torch.addmm(h.to(x), x, y.T.to(x))


def _cells(y: Tensor, h: Tensor, x: Tensor) -> Tensor:
    """The best cell of every point."""
    return torch.cat([_scores(y, h, part).argmax(1) for part in x.split(max(1, CHUNK // len(y)))])
