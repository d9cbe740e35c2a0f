"""Decomposable flow matching: the levels of a Laplacian pyramid flow from noise to data, each on its own clock.

A picture is the sum of its levels, coarse ones first: X_1 = down(X), X_s = down_s(X) - up(down_(s-1)(X)). On straight
lines x_s = (1 - t_s) X_s + t_s N_s, one network gives every dx_s/dt_s = N_s - X_s from all levels at their times.
Sampling follows a path of (t_1, .., t_S) through the cube from all 1 to all 0, for example a `staircase`.

All levels are packed in one vector, so that a row is that of any flow, with a Tensor of steps, one per entry, in place
of a number where levels do not step alike; with a single level it is plain flow matching, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Coefficient, Evaluate, Line, Row, Table, require
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path
from molsamp.learn.fit import fit
from molsamp.learn.networks import MLP

WAVES = 4  # cosines of every level's time that a network sees
Velocity = Callable[[Tensor, tuple[float, ...]], Tensor]
Times = tuple[float, ...]  # of the levels, coarsest first


@dataclass(frozen=True)
class Pyramid:
    """Pictures (n, C, H, W) as packed levels (n, D): down by means of 2 x 2 pixels, up by repeating.

    Args:
        event: (C, H, W).
        scales: what every level is divided by, coarsest first, so that noise of size 1 suits each; their number is S.

    Raises:
        ValueError: if height or width cannot be halved S - 1 times, or a scale is not positive.
    """

    event: tuple[int, int, int]
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        halved = 1 << (len(self.scales) - 1)
        if any(side % halved for side in self.event[1:]):
            raise ValueError(
                f"pictures of {self.event[1]} x {self.event[2]} cannot be halved {len(self.scales) - 1} times"
            )
        if not all(scale > 0.0 for scale in self.scales):
            raise ValueError(f"scales of levels are positive, got {self.scales}")

    @classmethod
    def of(cls, data: Float[Tensor, "n C H W"], levels: int) -> Pyramid:
        """With the standard deviation of each level as its scale; a single level is left as it is."""
        event = (data.shape[1], data.shape[2], data.shape[3])
        if levels == 1:
            return cls(event)
        plain = cls(event, (1.0,) * levels)
        return cls(event, tuple(float(part.std()) for part in plain.parts(plain.split(data))))

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Of the levels."""
        C, H, W = self.event
        halvings = range(len(self.scales) - 1, -1, -1)
        return [(C, H >> k, W >> k) for k in halvings]

    @property
    def sizes(self) -> list[int]:
        """Entries of the levels."""
        return [math.prod(shape) for shape in self.shapes]

    def split(self, x: Float[Tensor, "n C H W"]) -> Float[Tensor, "n D"]:
        """The levels of pictures."""
        levels = []
        for _ in self.scales[1:]:
            coarse = avg_pool2d(x, 2)
            levels.append(x - _up(coarse))
            x = coarse
        parts = zip([x, *levels[::-1]], self.scales, strict=True)
        return torch.cat([part.flatten(1) / scale for part, scale in parts], 1)

    def join(self, packed: Float[Tensor, "n D"]) -> Float[Tensor, "n C H W"]:
        """The pictures of levels: the inverse of `split`."""
        first, *finer = self.parts(packed)
        x = first * self.scales[0]
        for part, scale in zip(finer, self.scales[1:], strict=True):
            x = _up(x) + part * scale
        return x

    def parts(self, packed: Float[Tensor, "n D"]) -> list[Tensor]:
        """Every level (n, C, h, w)."""
        return [a.view(-1, *shape) for a, shape in zip(packed.split(self.sizes, 1), self.shapes, strict=True)]

    def spread(self, values: Float[Tensor, "*n S"]) -> Float[Tensor, "*n D"]:
        """A number a level as a number an entry."""
        return values.repeat_interleave(torch.tensor(self.sizes, device=values.device), -1)


def _up(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0)


def staircase(steps: Sequence[int], overlap: float = 0.0) -> list[Times]:
    """Times of the levels at the nodes of a path: level s falls from 1 to `overlap` in its own steps[s], then on to 0.

    Args:
        steps: of every level, coarsest first; network calls of Euler's method.
        overlap: the time at which the next level starts; the rest is done beside it, evenly. The last level goes to 0.

    Raises:
        ValueError: a level without a step, or an overlap outside [0, 1).
    """
    if not steps or min(steps) < 1 or not 0.0 <= overlap < 1.0:
        raise ValueError(f"every level needs a step and the overlap lies in [0, 1), got {list(steps)} and {overlap}")
    nodes = [(1.0,) * len(steps)]
    for s, count in enumerate(steps):
        low = overlap if s < len(steps) - 1 else 0.0
        for k in range(1, count + 1):
            before = (overlap * (1.0 - k / count),) if s else ()
            own = low + (1.0 - low) * (1.0 - k / count)
            nodes.append(((0.0,) * (s - 1) + before + (own,) + (1.0,) * len(steps))[: len(steps)])
    return nodes


@dataclass(frozen=True)
class Levels:
    """Packed levels on a path through the cube; its rows are counted by 0, 1, .. along the nodes.

    Args:
        velocity: (x (n, D), times of the levels) -> dx_s/dt_s of all levels, (n, D).
        pyramid: how they are packed.
        path: times of the levels at the nodes, none rising.

    Raises:
        ValueError: for a path with another number of levels, or one on which a time rises.
    """

    velocity: Velocity
    pyramid: Pyramid
    path: tuple[Times, ...]
    blocks = ("x",)

    def __post_init__(self):
        levels = len(self.pyramid.scales)
        if any(len(times) != levels for times in self.path):
            raise ValueError(f"the pyramid has {levels} levels, the path has {sorted({len(t) for t in self.path})}")
        if any(a < b for s, t in pairwise(self.path) for a, b in zip(s, t, strict=True)):
            raise ValueError("the time of a level rises on the path")

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(dx_s/dt_s of all levels, None)."""
        return self.velocity(x, self.path[int(t)]), None

    def step(self, a: int) -> Coefficient:
        """How far the levels' times go from node a to the next: a number if alike, else one per entry."""
        d = [t - s for s, t in zip(self.path[a], self.path[a + 1], strict=True)]
        return d[0] if len(set(d)) == 1 else self.pyramid.spread(torch.tensor(d, dtype=torch.float64))


@dataclass(frozen=True)
class Along:
    """Euler's or Heun's method along a path, each level with its own step."""

    method: Literal["euler", "heun"] = "euler"

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval between nodes."""
        levels = require(dyn, (Levels,), "Along")
        table = []
        for a, b in pairwise(times):
            d = levels.step(int(a))
            half = 0.5 * d
            corrects = (Evaluate(b), Line("x", {"x": 1.0}, (half, -half)))
            program = (Evaluate(a), Line("x", {"x": 1.0}, (d,)), *(corrects if self.method == "heun" else ()))
            table.append(Row(a, b, program, history=0))
        return table


def climb(
    velocity: Velocity,
    pyramid: Pyramid,
    path: Sequence[Times],
    n: int = 16,
    *,
    noise: Noise,
    start: Float[Tensor, "n D"] | None = None,
    method: Literal["euler", "heun"] = "euler",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """n samples as packed levels, `pyramid.join(path.final.x)` being the pictures.

    Args:
        velocity, pyramid, path: as for `Levels`; a path is for example a `staircase`.
        n, dtype: of the start, unless that is given.
        noise: keys of the start.
        start: packed noise at the first node.
        method: Heun's takes two calls a step.
    """
    if start is None:
        start = noise.child("start").normal(0, torch.arange(n), (sum(pyramid.sizes),), dtype)
    nodes = [float(k) for k in range(len(path))]
    dyn = Levels(velocity, pyramid, tuple(path))
    return rollout(dyn, Along(method), Particles.at(start), nodes, noise=noise, save="last")


class LevelsMLP(nn.Module):
    """A perceptron for the velocities of packed levels.

    Args:
        pyramid: of the levels.
        width: of its three hidden layers.
        noise: keys of the initial weights.
    """

    def __init__(self, pyramid: Pyramid, width: int, noise: Noise):
        super().__init__()
        D, S = sum(pyramid.sizes), len(pyramid.scales)
        self.net = MLP([D + S * (1 + WAVES), width, width, width, D], noise)

    def forward(self, x: Float[Tensor, "n D"], t: Float[Tensor, "n S"]) -> Float[Tensor, "n D"]:
        """dx_s/dt_s of all levels."""
        waves = (math.pi * torch.arange(1, WAVES + 1).to(x) * t[:, :, None]).cos()
        return self.net(torch.cat([x, t, waves.flatten(1)], 1))

    def velocity(self, x: Float[Tensor, "n D"], times: Times) -> Float[Tensor, "n D"]:
        """The same at one time of each level for all, without a graph."""
        with torch.no_grad():
            return self(x, torch.tensor(times).to(x).expand(len(x), -1))


def batch(pyramid: Pyramid, X: Float[Tensor, "K D"], noise: Noise, k: int, n: int, near: float) -> dict[str, Tensor]:
    """Levels on their way, and which of them counts: one stage a picture, every level as likely.

    The stage's own level is at a logit-normal time, those below nearly done, at times uniform up to `near`, those above
    pure noise.

    Returns:
        "x" (n, D), "t" (n, S), "target" N - X (n, D), "active" (n, D), 1 for the entries of the stage's own level.
    """
    S, ids = len(pyramid.scales), torch.arange(n)
    X = X[noise.child("rows").integers(k, ids, (), len(X))]
    N = noise.normal(k, ids, (X.shape[1],), X.dtype)
    level, stage = torch.arange(S), noise.child("stage").integers(k, ids, (1,), S)
    own = noise.child("time").normal(k, ids, (1,), X.dtype).sigmoid()
    below = near * noise.child("near").uniform(k, ids, (S,), X.dtype)
    t = torch.where(level == stage, own, torch.where(level < stage, below, 1.0))
    tau = pyramid.spread(t)
    active = pyramid.spread((level == stage).to(X.dtype))
    return {"x": (1.0 - tau) * X + tau * N, "t": t, "target": N - X, "active": active}


def matching(net: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the velocities over the entries that count."""
    miss = given["active"] * (net(given["x"], given["t"]) - given["target"]).square()
    return miss.sum() / given["active"].sum()


def train(
    data: Float[Tensor, "K C H W"],
    levels: int,
    noise: Noise,
    *,
    width: int = 256,
    steps: int = 2500,
    size: int = 256,
    rate: float = 2e-3,
    near: float = 0.1,
) -> tuple[LevelsMLP, Pyramid]:
    """A network for the levels of pictures; one level is plain flow matching.

    Args:
        data: pictures.
        levels: S.
        noise: keys of everything random.
        width: of the network.
        steps, size, rate: gradient steps of AdamW, pictures a step, largest rate, which falls to 0 along half a cosine.
        near: as for `batch`.

    Source: Haji-Ali et al., "Decomposable flow matching", NeurIPS 2025; laws of times and stages by the card.
    """
    pyramid = Pyramid.of(data, levels)
    X, net = pyramid.split(data), LevelsMLP(pyramid, width, noise.child("weights")).to(data)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    batches = noise.child("batches")
    fit(
        lambda given: matching(net, given),
        lambda k: batch(pyramid, X, batches, k, size, near),
        optimiser,
        steps=steps,
        each=rates.step,
    )
    return net.eval().requires_grad_(False), pyramid
