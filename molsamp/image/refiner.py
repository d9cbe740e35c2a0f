"""FlowTurbo: sampling a flow dx/dt = v in blocks that get cheaper, the last ones without the model.

Three kinds of block carry x over an interval of h from s to t, all of them Heun's rule with other velocities:

    H   d = v(x, s)            d' = v(x + h d, t)              two calls of the model
    P   d = the last d'        d' = v(x + h d, t)              one call (pseudo corrector); order 2 like H
    R   d = v* + r(x, v*, s)   d' = d + r(x + h d, d, t)       none: a small network r corrects the last velocity v*
        x' = x + h (d + d') / 2

H and P are rows on the flow of a model; R is a row on the pair (x, v), which the refiner moves (`Refined`). The first
block is an H, R blocks come last: the velocity must have settled before it is only corrected.

The paper also compiles each kind of block. That is left out: in one measurement on a CPU thread `torch.compile` took 25
and 18 % off the time of the digits network (batches of 16 and 256) and slowed the refiner by 34 and 9 %. It needs a
C++ compiler and rounds otherwise, so that the same seed is other bytes. `Denoiser` takes a compiled network like any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.dynamics import Dynamics, Ito, LinearSDE, flow
from molsamp.engine.integrators import Coefficient, Evaluate, Line, Row, Table, Verb, require
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles
from molsamp.image.sampling import Model, grid_of, sample
from molsamp.learn.fit import fit
from molsamp.learn.networks import MLP

WAVES = 4  # cosines of the time that a refiner sees
Refine = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Blocks:
    """H and P blocks, a letter a row; an integrator for `sample` on the flow of a model.

    Args:
        names: for example "HPPP".

    Raises:
        ValueError: a letter that is neither, or a P that comes first.

    Source: Zhao et al., "FlowTurbo", NeurIPS 2024, section 3.
    """

    names: str
    form = "flow"

    def __post_init__(self):
        if not self.names or not set(self.names) <= set("HP") or self.names[0] != "H":
            raise ValueError(f"blocks on the flow are H and P, the first an H, got {self.names!r}")

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row a block.

        Raises:
            ValueError: another number of intervals than of blocks, or a dynamics that is no flow.
        """
        require(dyn, (Ito,), "Blocks")
        table = []
        for name, (s, t) in zip(self.names, pairwise(times), strict=True):
            h = t - s
            first: tuple[Verb, ...] = (Evaluate(s),) if name == "H" else ()
            predicts, corrects = Line("x", {"x": 1.0}, (h,)), Line("x", {"x": 1.0}, (0.5 * h, -0.5 * h))
            table.append(Row(s, t, (*first, predicts, Evaluate(t), corrects), history=1))
        return table


@dataclass(frozen=True)
class Refined:
    """Pairs (x, v) on the last axis of the state; an evaluation is (d, d), d = v + r(x, v, t)."""

    refine: Refine
    blocks = ("x",)

    def evaluate(self, t: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(the corrected velocity, twice; no energy)."""
        v = x[..., 1]
        d = v + self.refine(x[..., 0], v, t)
        return torch.stack([d, d], -1), None


@dataclass(frozen=True)
class Refining:
    """R blocks: Heun's rule for x, while v becomes the newest velocity."""

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """One row an interval, two calls of the refiner each."""
        require(dyn, (Refined,), "Refining")

        def both(of_x: float, of_v: float) -> Tensor:
            return torch.tensor([of_x, of_v], dtype=torch.float64)

        table = []
        keep: dict[str, Coefficient] = {"x": both(1.0, 0.0)}
        for s, t in pairwise(times):
            h = t - s
            predicts = Line("x", keep, (both(h, 1.0),))
            corrects = Line("x", keep, (both(0.5 * h, 1.0), both(-0.5 * h, 0.0)))
            table.append(Row(s, t, (Evaluate(s), predicts, Evaluate(t), corrects), history=0))
        return table


class Turbo(NamedTuple):
    """The samples, and the calls that they took of the model and of the refiner."""

    final: Particles
    calls: int
    refiner_calls: int


def ledger(blocks: str) -> tuple[int, int]:
    """(calls of the model, calls of the refiner) of a string of blocks."""
    return 2 * blocks.count("H") + blocks.count("P"), 2 * blocks.count("R")


def turbo(
    model: Model,
    refine: Refine,
    blocks: str = "HPPPPPRRR",
    n: int = 16,
    *,
    noise: Noise,
    grid: str | Sequence[float] | None = None,
    start: Float[Tensor, "n *event"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Turbo:
    """n samples by blocks in the order H .. P .. R: as `sample` does it, then on with the refiner.

    Args:
        model: a `Denoiser`, or anything alike; its `flow` is sampled.
        refine: (x, last velocity, t) -> what to add to the velocity, a `Refiner` or any function.
        blocks: letters, a grid interval each.
        n, noise, grid, start, dtype: as for `sample`; R blocks longer than the refiner's reach are not what it learned.

    Raises:
        ValueError: letters other than H, P, R, no H in front, or an R that is not at the end.
    """
    taught = blocks.rstrip("R")
    times = grid_of(model.schedule, grid, len(blocks))
    split = len(taught)
    path = sample(model, Blocks(taught), split, n, noise=noise, grid=times[: split + 1], start=start, dtype=dtype)
    final = path.final
    if split < len(blocks):
        both = final.evolve(x=torch.stack([final.x, path.memory.history[0]], -1))
        on = rollout(Refined(refine), Refining(), both, times[split:], noise=noise.child("refined"), save="last")
        final = on.final.evolve(x=on.final.x[..., 0])
    return Turbo(final, *ledger(blocks))


class Refiner(nn.Module):
    """r(x, v, t): a perceptron of one hidden layer that starts at zero, so that untrained it freezes the velocity.

    Args:
        event: shape of one picture.
        width: of the hidden layer.
        noise: keys of the initial weights.
    """

    def __init__(self, event: Sequence[int], width: int, noise: Noise):
        super().__init__()
        pixels = math.prod(event)
        self.net = MLP([2 * pixels + 1 + WAVES, width, pixels], noise)

    def forward(self, x: Tensor, v: Tensor, t: float | Float[Tensor, " n"]) -> Tensor:
        """What to add to v, the shape of x."""
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        waves = (math.pi * torch.arange(1, WAVES + 1).to(x) * time).cos()
        return self.net(torch.cat([x.flatten(1), v.flatten(1), time, waves], 1)).view_as(x)


def pairs(
    model: Model,
    data: Float[Tensor, "K *event"],
    noise: Noise,
    times: int = 512,
    batch: int = 64,
    reach: float = 0.12,
) -> dict[str, Tensor]:
    """What a refiner learns from: velocities of the model a step apart.

    From x_t of a picture, a step h along v = v(x_t, t): x = x_t + h v, t' = t + h, and the target v(x, t') - v.

    Args:
        model: the teacher; time runs down, so that h < 0.
        data: pictures.
        noise: keys of pictures, times and steps.
        times: how many times t, one in each of so many equal shares of the schedule's time.
        batch: pictures a time.
        reach: |h| is uniform up to this.

    Returns:
        "x", "v", "target" (times x batch, *event) and "t" (times x batch,).
    """
    teacher = flow(LinearSDE(model.schedule, model))
    start, end = model.schedule.start, model.schedule.end
    ids, found = torch.arange(batch), []
    for k in range(times):
        u, w = noise.child("times").uniform(k, torch.zeros(1, dtype=torch.int64), (2,))[0].tolist()
        s = start + (end - start) * (k + u) / times
        t = max(end, s - reach * w)
        x_0 = data[noise.child("rows").integers(k, ids, (), len(data))]
        eps = noise.normal(k, ids, tuple(data.shape[1:]), data.dtype)
        x = model.schedule.alpha(s) * x_0 + model.schedule.sigma(s) * eps
        v = teacher.drift(s, x)
        x = x + (t - s) * v
        found.append({"x": x, "v": v, "target": teacher.drift(t, x) - v, "t": torch.full((batch,), t).to(x)})
    return {key: torch.cat([f[key] for f in found]) for key in found[0]}


def train(
    model: Model,
    data: Float[Tensor, "K *event"],
    noise: Noise,
    *,
    width: int = 96,
    steps: int = 3000,
    batch: int = 256,
    rate: float = 2e-3,
    times: int = 512,
    reach: float = 0.12,
) -> Refiner:
    """A refiner of a model's velocity, the mean of |v + r(x, v, t) - v(x, t)|^2 over `pairs` made small.

    Args:
        model, data, noise, times, reach: as for `pairs`.
        width: of the hidden layer.
        steps: gradient steps of AdamW; the rate falls to 0 along half a cosine.
        batch: pairs a step.
        rate: largest learning rate.
    """
    known = pairs(model, data, noise.child("pairs"), times, reach=reach)
    refiner = Refiner(data.shape[1:], width, noise.child("weights")).to(data)
    optimiser = torch.optim.AdamW(refiner.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    ids, rows = torch.arange(batch), noise.child("batches")

    def draw(k: int) -> dict[str, Tensor]:
        chosen = rows.integers(k, ids, (), len(known["t"]))
        return {key: value[chosen] for key, value in known.items()}

    def miss(given: dict[str, Tensor]) -> Tensor:
        return (refiner(given["x"], given["v"], given["t"]) - given["target"]).square().mean()

    fit(miss, draw, optimiser, steps=steps, each=rates.step)
    return refiner.eval().requires_grad_(False)
