"""Coefficients of exponential integrators: a polynomial through the model's past, against an exponential kernel.

A step from s to t of x_t = alpha_t x_0 + sigma_t eps, with lam = log(alpha / sigma), h = lam_t - lam_s, and noise whose
share of the reverse SDE is c (0: the probability-flow ODE, 1: the reverse SDE), is exactly

    data    x_t = (sigma_t/sigma_s) e^(-c h) x_s + alpha_t int (1 + c) e^(-(1 + c)(lam_t - l)) x_0(l) dl + noise
    noise   x_t = (alpha_t/alpha_s) x_s - sigma_t int (1 + c) e^(lam_t - l) eps(l) dl + noise

over l from lam_s to lam_t. Put for x_0(l), or eps(l), the Lagrange polynomial through stored evaluations: in lam it is
DPM-Solver++ and UniPC (whose B(h) cancels as soon as its linear system is solved), in t or rho DEIS. The weights are
integrals of basis polynomials, by Gauss-Legendre quadrature in float64, exact to rounding for the steps of any sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from molsamp.engine.schedules import Schedule

Form = Literal["data", "noise"]
Variable = Literal["lam", "rho", "t"]
POINTS = 48


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(POINTS)
    return 0.5 * (x + 1.0), 0.5 * w


class Node(NamedTuple):
    """A time of a grid with what a step needs of it; lam is infinite where there is no noise or no signal."""

    t: float
    alpha: float
    sigma: float
    lam: float

    @classmethod
    def at(cls, schedule: Schedule, t: float) -> Node:
        """The node of a time."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if sigma == 0.0 or alpha == 0.0:
            return cls(t, alpha, sigma, math.inf if sigma == 0.0 else -math.inf)
        return cls(t, alpha, sigma, schedule.lam(t))

    @property
    def rho(self) -> float:
        """sigma / alpha."""
        return math.exp(-self.lam)


def total(form: Form, s: Node, t: Node, c: float = 0.0) -> float:
    """The sum of all weights: what a constant evaluation gets."""
    h = t.lam - s.lam
    if form == "data":
        return -t.alpha * math.expm1(-(1.0 + c) * h)
    return -(1.0 + c) * t.sigma * math.expm1(h)


def lagrange(
    form: Form,
    schedule: Schedule,
    s: Node,
    t: Node,
    nodes: Sequence[Node],
    c: float = 0.0,
    variable: Variable = "lam",
) -> list[float]:
    """Weights of the evaluations at `nodes`, in their order, for a step from s to t.

    A node without signal (lam = -inf) tells nothing and has weight 0. A step to sigma = 0 is of order 1.
    """
    whole, h = total(form, s, t, c), t.lam - s.lam
    known = [k for k, node in enumerate(nodes) if math.isfinite(node.lam)] or [0]
    if len(known) == 1 or not math.isfinite(h):
        return [whole if k == known[0] else 0.0 for k in range(len(nodes))]
    u, weight = _gauss()
    l = s.lam + u * h
    if form == "data":
        kernel = t.alpha * (1.0 + c) * h * np.exp(-(1.0 + c) * (t.lam - l)) * weight
    else:
        kernel = -t.sigma * (1.0 + c) * h * np.exp(t.lam - l) * weight
    place: Callable[[float], float] = {"lam": float, "rho": lambda l: math.exp(-l), "t": schedule.time}[variable]
    x, at = np.array([place(a) for a in l]), [place(nodes[k].lam) for k in known]
    found = [0.0] * len(nodes)
    for j, a in enumerate(at):
        basis = np.prod([(x - b) / (a - b) for b in at[:j] + at[j + 1 :]], axis=0)
        found[known[j]] = float((kernel * basis).sum())
    newest = known[0]  # the weights' sum is known without quadrature
    found[newest] = whole - sum(w for k, w in enumerate(found) if k != newest)
    return found
