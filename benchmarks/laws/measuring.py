"""How far weighted populations are from a law that is known: moments, log Z, a distance between laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

F64 = torch.float64
BEST = "best of n"


@dataclass(frozen=True)
class Truth:
    """A law.

    Args:
        mean: of what is observed, (k,).
        log_z: nats.
        distance: (x (groups, m, *event), w (groups, m)) -> distance of every population to the law, (groups,).
    """

    mean: Tensor
    log_z: float
    distance: Callable[[Tensor, Tensor], Tensor]


class Problem(Protocol):
    """What should have a law; those with particles also have `populations`, x (groups m, *event), logw (groups, m)."""

    truth: Truth

    def observed(self, x: Tensor) -> Tensor:
        """What has the mean of `Truth`, (n, k)."""


def errors(problem: Problem, x: Tensor, logw: Tensor) -> dict[str, float]:
    """Root mean squares over populations of the errors of weighted mean and log Z, and the mean distance."""
    w, groups = torch.softmax(logw, 1), len(logw)
    means = torch.einsum("gm,gmk->gk", w, problem.observed(x).view(groups, logw.shape[1], -1))
    log_z = torch.logsumexp(logw, 1) - math.log(logw.shape[1])
    return {
        "mean": float((means - problem.truth.mean).square().sum(1).mean().sqrt()),
        "log Z": float((log_z - problem.truth.log_z).square().mean().sqrt()),
        "distance": float(problem.truth.distance(x.view(groups, -1, *x.shape[1:]), w).mean()),
    }


def of_the_best(problem: Problem, x: Tensor, logw: Tensor) -> dict[str, float]:
    """The law of the one particle of every population that weighs most: it has no log Z."""
    at = logw.argmax(1) + logw.shape[1] * torch.arange(len(logw))
    return law(problem, x[at])


def law(problem: Problem, x: Tensor) -> dict[str, float]:
    """The law of equal draws: error of their mean, distance of them all."""
    mean = problem.observed(x).mean(0)
    return {
        "mean": float((mean - problem.truth.mean).norm()),
        "distance": float(problem.truth.distance(x[None], torch.full((1, len(x)), 1.0 / len(x), dtype=F64))[0]),
    }


def wasserstein(x: Tensor, w: Tensor, nodes: Tensor, cdf: Tensor) -> Tensor:
    """int |F_w - F| ds of every population (groups, m) on the line, by the trapezoidal rule on the nodes (k,)."""
    order = x.argsort(1)
    F = torch.cat([torch.zeros(len(x), 1, dtype=F64), w.gather(1, order).cumsum(1)], 1)
    at = torch.searchsorted(x.gather(1, order), nodes.expand(len(x), -1).contiguous(), right=True)
    return torch.trapezoid((F.gather(1, at) - cdf).abs(), nodes, dim=1)
