"""Ratios of path measures, and what follows from them: weights, effective sample size, log-variance.

Log weights are in nats and float64 throughout.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Controlled, Dynamics
from molsamp.engine.integrators import Integrator, rounding
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


def log_ratio(path: Path, target: Dynamics, proposal: Dynamics, integrator: Integrator) -> Float[Tensor, " n"]:
    """log dP_target/dP_proposal on paths saved at every row, for two models with the same noise coefficients.

    With z_t, z_p the noise that each would have had to draw (residual less control, where it is `Controlled`), the
    ratio is sum (z_p - z_t)(z_p + z_t) / 2: a product of differences, never a difference of two large sums.

    It is -inf where no noise of the target gives the path, as for two forces under LangevinMiddle, whose force moves
    x ahead of the noise; +inf where none of the proposal does.

    Raises:
        ValueError: if the path was not saved at every row or a row has no density.
    """
    (z_p, possible_p), (z_t, possible_t) = (_drawn(path, dyn, integrator) for dyn in (proposal, target))
    ratio = (0.5 * (z_p - z_t) * (z_p + z_t)).flatten(2).sum((0, 2))
    return torch.where(possible_t, torch.where(possible_p, ratio, torch.inf), -torch.inf)


def _drawn(path: Path, dyn: Dynamics, integrator: Integrator) -> tuple[Tensor, Tensor]:
    """The noise that `dyn` must have drawn in each row of a path that began at row 0, float64, and whether it could."""
    z, gaps = residuals(path, dyn, integrator)
    z = z.double()
    if isinstance(dyn, Controlled):
        for k in range(len(z)):
            if k % dyn.hold == 0:
                start = path.frame(k)
                u = dyn.control(float(path.times[k]), start.x, start.v).double()
            z[k] -= u
    return z, gaps.amax(0) <= rounding(gaps.dtype)


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
