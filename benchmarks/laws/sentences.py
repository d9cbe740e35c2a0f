"""Sentences of six tokens, two to choose from, each drawn after the one before: all 64 are counted."""

from __future__ import annotations

import math
from itertools import pairwise, product

import torch
from laws.measuring import BEST, F64, Truth
from torch import Tensor

from molsamp.engine import Ito, Noise, Particles
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.engine.steering import steer, unforeseen

LENGTH = 6
PREFERS = torch.tensor([[0.8, 0.2], [0.35, 0.65]], dtype=F64)  # p(token | token before); the first follows 0
ALL = torch.tensor(list(product((0, 1), repeat=LENGTH)))
PLACES = 2 ** torch.arange(LENGTH - 1, -1, -1)


def tokens(x: Tensor) -> Tensor:
    """Token j is 1 where Phi(x_j) exceeds p(0 | token before)."""
    u, before, out = torch.special.ndtr(x), torch.zeros(len(x), dtype=torch.int64), []
    for j in range(x.shape[1]):
        before = (u[:, j] > PREFERS[before, 0]).long()
        out.append(before)
    return torch.stack(out, 1)


def score(s: Tensor) -> Tensor:
    """Log tilt of a sentence: 0.7 a one, and 1.5 more if it ends in two of them."""
    return 0.7 * s.sum(1).double() + 1.5 * (s[:, -1] * s[:, -2]).double()


class Writing:
    """Row k draws the normal of position k and leaves the others."""

    def rows(self, dyn, times):
        """One row a token."""
        eye = torch.eye(LENGTH, dtype=F64)
        return [
            Row(a, b, (Evaluate(a), Line("x", {"x": 1.0 - eye[k]}, (0.0,), eye[k])))
            for k, (a, b) in enumerate(pairwise(times))
        ]


class Sentences:
    """The tilted law by enumeration; the distance is total variation, what is observed the number of ones."""

    methods = ("difference", "max", "sum", "at the end", BEST)

    def __init__(self, seed: int):
        log_p, before = torch.zeros(len(ALL), dtype=F64), torch.zeros(len(ALL), dtype=torch.int64)
        for j in range(LENGTH):
            log_p, before = log_p + PREFERS[before, ALL[:, j]].log(), ALL[:, j]
        log_z = torch.logsumexp(log_p + score(ALL), 0)
        exact = (log_p + score(ALL) - log_z).exp()

        def distance(x: Tensor, w: Tensor) -> Tensor:
            code = (tokens(x.flatten(0, 1)) * PLACES).sum(1).view(w.shape)
            return 0.5 * (torch.zeros(len(w), len(ALL), dtype=F64).scatter_add(1, code, w) - exact).abs().sum(1)

        self.truth = Truth((exact @ ALL.sum(1).double())[None], float(log_z), distance)

    def observed(self, x: Tensor) -> Tensor:
        """Number of ones."""
        return tokens(x).sum(1, keepdim=True).double()

    def populations(self, method: str, m: int, groups: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """A boundary a token; what is expected are the ones so far, 0.3 of it for max and sum."""
        share = 0.7 if method == "difference" else 0.21
        own = {"kind": method, "value": lambda t, p: share * tokens(p.x)[:, : int(t)].sum(1).double()}
        if method in ("at the end", BEST):
            own = {"every": LENGTH, "value": unforeseen, "below": 0.0}
        still, times = Ito(lambda t, x: 0.0 * x, lambda t: 1.0), [float(k) for k in range(LENGTH + 1)]
        start = Particles.at(torch.zeros(m * groups, LENGTH, dtype=F64))
        found = steer(still, Writing(), start, times, lambda x: score(tokens(x)), noise=noise, groups=groups, **own)
        assert math.isfinite(float(found.logw.max()))
        return found.particles.x, found.logw
