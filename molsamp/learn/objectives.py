"""Losses that pull a controlled path measure P_u towards a tilted one, Q = P_0 exp(log_reward) / Z.

All are functions of two numbers a path: `log_rn` = log dP_u/dP_0 (differentiable in the control, evaluated on
stored paths) and `log_reward`. Losses are in nats^2 or nats, before `loss_scale`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.measures import ess

Batch = Float[Tensor, " n"]


def log_variance(log_rn: Batch, log_reward: Batch, log_z: Tensor | None = None) -> Tensor:
    """Log-variance loss, E[(log_rn - log_reward + c)^2] with c = log Z at its optimum (Richter et al. 2020).

    Args:
        log_z: None takes the batch mean as control variate ("local": the batch variance, (n-1)/n of the true one
            in expectation); a learnable scalar is "global"; a constant zero is "zero" (ablation).
    """
    d = log_rn - log_reward
    c = -d.mean() if log_z is None else log_z
    return ((d + c) ** 2).mean()


def cross_entropy(log_rn: Batch, log_reward: Batch, log_behaviour: Batch) -> Tensor:
    """Cross entropy E_Q[-log dP_u/dP_0] with self-normalised weights (PIPS; Holdijk et al. 2023).

    Args:
        log_behaviour: log dP_r/dP_0 of the policy that drew the paths; weights are exp(log_reward - log_behaviour).
    """
    w = torch.softmax(log_reward - log_behaviour, 0).detach()
    return -(w * log_rn).sum()


def relative_entropy(log_rn: Batch, log_reward: Batch) -> Tensor:
    """Reverse KL(P_u || Q) by the score-function gradient, for paths drawn by the present control itself.

    The value is a surrogate: its gradient is E[(f - mean f) grad log p_u], f = log_rn - log_reward, since on paths
    held fixed grad log_rn = grad log p_u, whose mean vanishes.
    """
    f = (log_rn - log_reward).detach()
    return ((f - f.mean()) * log_rn).mean()


def trust_region_target(log_old: Batch, log_reward: Batch, floor: float) -> tuple[Tensor, float]:
    """The geometric step from the old policy towards Q that keeps a stated effective sample size.

    target = log_old + lam (log_reward - log_old), the largest lam in (0, 1] for which the weights
    exp(lam (log_reward - log_old)) have ESS >= floor n (Blessing et al., NeurIPS 2025, with ESS in place of KL).

    Returns:
        (target log dQ_lam/dP_0 up to a constant, lam), by bisection to 1e-6.
    """
    gain = log_reward - log_old
    goal = floor * len(gain)
    if ess(gain) >= goal:
        return log_old + gain, 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-6 * high:
        lam = 0.5 * (low + high)
        low, high = (lam, high) if ess(lam * gain) >= goal else (low, lam)
    return log_old + low * gain, low


def moderate(log_w: Batch, log_mean: Tensor | float) -> Batch:
    """asinh(log w - log E[w]): log weights of a step, drawn together logarithmically beyond a nat.

    On paths whose goal lies A nats below the present policy, the log-variance loss has curvature H |d|^2 (1 - A) in a
    change d of the control: where A > 1, as on misses, it drives the control to its bound, whatever the direction.
    Order and fixed point (all weights equal) stay as they are.

    Args:
        log_w: log weights of the step, nats.
        log_mean: log of their mean over paths of the present policy.
    """
    return torch.asinh(log_w - log_mean)
