"""Ratios of path measures, and what follows from them: weights, effective sample size, log-variance.

Log weights are in nats and float64 throughout.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator
from molsamp.engine.rollout import residuals
from molsamp.engine.state import Path


def girsanov(
    u: Float[Tensor, "rows n *event"], z: Float[Tensor, "rows n *event"], hold: int = 1
) -> Float[Tensor, " n"]:
    """log dP_u/dP_0 = sum_k u_k z_k - hold |u_k|^2 / 2, the a r - a^2/2 form in noise units.

    Args:
        u: control of each block of `hold` rows.
        z: total displacement (control + noise) summed over each block, in units of N at the target temperature.
        hold: rows per block.
    """
    terms = (u.double() * (z.double() - 0.5 * hold * u.double())).flatten(2)
    return terms.sum((0, 2))


def log_ratio(
    path: Path, target: Dynamics, proposal: Dynamics, integrator: Integrator
) -> Float[Tensor, " n"]:
    """log dP_target/dP_proposal on paths saved at every row, for two models with the same noise coefficients.

    With residuals z_t, z_p the ratio is sum (z_p - z_t)(z_p + z_t) / 2: a product of differences, never a
    difference of two large sums.

    Raises:
        ValueError: if the path was not saved at every row or a row has no density.
    """
    z_p = residuals(path, proposal, integrator)[0].double()
    z_t = residuals(path, target, integrator)[0].double()
    return (0.5 * (z_p - z_t) * (z_p + z_t)).flatten(2).sum((0, 2))


def ess(logw: Float[Tensor, " n"]) -> float:
    """Kish effective sample size (sum w)^2 / sum w^2; 0 when no weight is positive."""
    if not bool(torch.isfinite(logw).any()):
        return 0.0
    w = torch.exp(logw.double() - logw.max())
    return float(w.sum() ** 2 / (w**2).sum())


def log_mean_exp(logw: Float[Tensor, " n"]) -> tuple[float, float]:
    """log of the mean weight and its standard error by the delta method, sd(w) / (mean(w) sqrt(n))."""
    n = len(logw)
    top = logw.max()
    if not bool(torch.isfinite(top)):
        return float("-inf"), float("inf")
    w = torch.exp(logw.double() - top)
    mean = w.mean()
    error = (w.std() / (mean * n**0.5)) if n > 1 else torch.tensor(float("inf"))
    return float(mean.log() + top), float(error)
