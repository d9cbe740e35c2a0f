"""The optimal boundary condition: one noise x_T, chosen once, from which a conditional model restores every input well.

The flow of a conditional model is a map x_0 = h(x_T, y). How good x_0 is varies with x_T, and a good x_T is good for
nearly every y; so choose

    x_T* = argmin over candidates of sum over reference pairs (y, x) of d(h(x_T, y), x)

and start from it always. The best of many candidates looks better on the references than it is: what is reported is how
it does on other pairs. With the mean squared error as d the choice tends to the posterior mean, which is blurred.

Source: Ma et al., "Solving diffusion ODEs with optimal boundary conditions for better image super-resolution", ICLR
2024, eq. 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.image.sampling import Model, sample

BATCH = 1024  # pictures that are solved for at a time

Pictures = Float[Tensor, "n *event"]
Restore = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


class Pairs(NamedTuple):
    """Degraded pictures and what they were."""

    y: Float[Tensor, "R *shape"]
    x: Float[Tensor, "R *event"]


@dataclass(frozen=True)
class Choice:
    """The noise that was chosen, and how it does.

    Args:
        start: x_T*, of the shape of one picture.
        index: which candidate it is.
        reference: mean of the metric over the reference pairs, (K,).
        held_out: the same over the pairs held out.
    """

    start: Float[Tensor, "*event"]
    index: int
    reference: Float[Tensor, " K"]
    held_out: Float[Tensor, " K"]

    @property
    def better(self) -> float:
        """Share of the other candidates that do better on the pairs held out: 0 is the best, 1/2 is chance."""
        return float((self.held_out < self.held_out[self.index]).sum()) / max(1, len(self.held_out) - 1)

    @property
    def gain(self) -> float:
        """1 - metric of x_T* / mean metric of the candidates, on the pairs held out."""
        return 1.0 - float(self.held_out[self.index] / self.held_out.mean())

    @property
    def agreement(self) -> float:
        """Spearman's correlation of the candidates' ranks on the references and on the pairs held out."""
        return spearman(self.reference, self.held_out)


def squared_error(x: Pictures, truth: Pictures) -> Float[Tensor, " n"]:
    """Mean squared difference of each picture."""
    return (x - truth).square().flatten(1).mean(1)


def distance_in(features: Callable[[Tensor], Tensor]) -> Metric:
    """Mean squared difference in a space of features, for example `models.features("mnist")`."""
    return lambda x, truth: (features(x) - features(truth)).square().flatten(1).mean(1)


def restorer(
    model: Callable[[Tensor], Model],
    solver: str | Integrator = "ddim",
    steps: int = 10,
    grid: str | Sequence[float] | None = None,
) -> Restore:
    """h(x_T, y) by a solver without noise of its own.

    Args:
        model: degraded pictures y (n, *shape) -> the model whose particle i is conditioned on y_i.
        solver, steps, grid: as `sample` takes them.
    """

    def restore(start: Tensor, y: Tensor) -> Tensor:
        path = sample(model(y), solver, steps, noise=Noise(0), grid=grid, start=start, dtype=start.dtype)
        return path.final.x

    return restore


def choose_start(
    restore: Restore,
    candidates: Float[Tensor, "K *event"],
    references: Pairs,
    held_out: Pairs,
    metric: Metric = squared_error,
) -> Choice:
    """The candidate that restores the references best, with its standing on pairs that had no say.

    Every candidate meets every pair, references and held out: K (R + H) solutions.

    Args:
        restore: h(x_T (n, *event), y (n, *shape)) -> x_0 (n, *event), see `restorer`.
        candidates: noises, at the first time of the solver.
        references: pairs that choose.
        held_out: pairs that judge.
        metric: (x_0, truth) -> (n,), smaller is better.

    Raises:
        ValueError: without candidates or pairs, if a pair is in both sets, or if a candidate's metric is not finite.
    """
    if not len(candidates) or not len(references.x) or not len(held_out.x):
        sizes = len(candidates), len(references.x), len(held_out.x)
        raise ValueError("a choice needs candidates, references and held-out pairs, got {}, {} and {}".format(*sizes))
    shared = _shared(references.x, held_out.x)
    if shared is not None:
        raise ValueError(f"held-out picture {shared[1]} is reference {shared[0]} too; the choice would judge itself")
    on = [mean_metric(restore, candidates, pairs, metric) for pairs in (references, held_out)]
    for scores in on:
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(f"the metric of candidate {int((~torch.isfinite(scores)).nonzero()[0])} is not finite")
    index = int(on[0].argmin())
    return Choice(candidates[index], index, *on)


def mean_metric(
    restore: Restore, candidates: Float[Tensor, "K *event"], pairs: Pairs, metric: Metric
) -> Float[Tensor, " K"]:
    """Mean metric of each candidate over the pairs, float64."""
    R, K = len(pairs.x), len(candidates)
    scores = []
    for some in torch.arange(K * R).split(BATCH):
        k, r = some // R, some % R
        scores.append(metric(restore(candidates[k], pairs.y[r]), pairs.x[r]).double())
    return torch.cat(scores).view(K, R).mean(1)


def spearman(a: Float[Tensor, " K"], b: Float[Tensor, " K"]) -> float:
    """Correlation of ranks; nan where one of the two is constant."""
    p, q = (r - r.mean() for r in (_ranks(a), _ranks(b)))
    return float((p @ q) / (p.norm() * q.norm()))


def _ranks(a: Tensor) -> Float[Tensor, " K"]:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = torch.unique(a, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - 0.5 * (counts + 1.0)).double()[inverse]


def _shared(a: Tensor, b: Tensor) -> Int[Tensor, " 2"] | None:
    """Indices of the first picture that is in both."""
    same = (a.flatten(1)[:, None] == b.flatten(1)[None]).all(-1).nonzero()
    return same[0] if len(same) else None
