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
from typing import Literal

import numpy as np

from molsamp.engine.schedules import Schedule

Form = Literal["data", "noise"]
Variable = Literal["lam", "rho", "t"]
POINTS = 48


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(POINTS)
    return 0.5 * (x + 1.0), 0.5 * w


def total(form: Form, schedule: Schedule, s: float, t: float, c: float = 0.0) -> float:
    """The sum of all weights: what a constant evaluation gets."""
    h = lam(schedule, t) - lam(schedule, s)
    if form == "data":
        return -schedule.alpha(t) * math.expm1(-(1.0 + c) * h)
    return -(1.0 + c) * schedule.sigma(t) * math.expm1(h)


def lagrange(
    form: Form,
    schedule: Schedule,
    s: float,
    t: float,
    nodes: Sequence[float],
    c: float = 0.0,
    variable: Variable = "lam",
) -> list[float]:
    """Weights of the evaluations at the times `nodes`, in their order.

    A node without signal (lam = -inf) tells nothing and has weight 0. A step to sigma = 0 is of order 1.
    """
    whole = total(form, schedule, s, t, c)
    known = [k for k, node in enumerate(nodes) if math.isfinite(lam(schedule, node))] or [0]
    start, end = lam(schedule, s), lam(schedule, t)
    if len(known) == 1 or not math.isfinite(end - start):
        return [whole if k == known[0] else 0.0 for k in range(len(nodes))]
    u, weight = _gauss()
    l, h = start + u * (end - start), end - start
    if form == "data":
        kernel = schedule.alpha(t) * (1.0 + c) * h * np.exp(-(1.0 + c) * (end - l)) * weight
    else:
        kernel = -schedule.sigma(t) * (1.0 + c) * h * np.exp(end - l) * weight
    place = _place(schedule, variable)
    x, at = np.array([place(a) for a in l]), [place(lam(schedule, nodes[k])) for k in known]
    found = [0.0] * len(nodes)
    for j, a in enumerate(at):
        basis = np.prod([(x - b) / (a - b) for b in at[:j] + at[j + 1 :]], axis=0)
        found[known[j]] = float((kernel * basis).sum())
    newest = known[0]  # the weights' sum is known without quadrature
    found[newest] = whole - sum(w for k, w in enumerate(found) if k != newest)
    return found


def lam(schedule: Schedule, t: float) -> float:
    """Half log-SNR, infinite where there is no noise or no signal."""
    if schedule.sigma(t) == 0.0:
        return math.inf
    return -math.inf if schedule.alpha(t) == 0.0 else schedule.lam(t)


def _place(schedule: Schedule, variable: Variable) -> Callable[[float], float]:
    return {"lam": lambda l: l, "rho": lambda l: math.exp(-l), "t": schedule.time}[variable]
