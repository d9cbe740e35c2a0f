"""What every Markov chain of paths shares: its acceptance test, and how many independent paths it is worth."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def metropolis(log_ratio: Float[Tensor, " n"], u: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Accept with probability min(1, exp(log_ratio)); NaN and -inf are refused.

    Args:
        log_ratio: log of target(new) q(new -> old) / (target(old) q(old -> new)).
        u: uniforms in (0, 1).
    """
    return u.log() < log_ratio


def effective_number(f: Float[Tensor, "T M k"], family: Int[Tensor, " M"]) -> float:
    """Number of independent samples that T sweeps of M chains are worth, the least over k observables.

    The smaller of M T / tau, tau = 1 + 2 sum_t rho_t with the sum ended at the first negative rho_{2t} + rho_{2t+1}
    (Geyer 1992), rho_t about the mean of *all* chains so that chains that never leave their own region are seen; and
    G var(f) / var(family means) for G families of chains with a common ancestor. A single family counts for one.
    """
    T, M, _ = f.shape
    families = [f[:, family == g] for g in family.unique()]
    counts = []
    for column in range(f.shape[2]):
        d = f[..., column].double() - f[..., column].double().mean()
        variance = float(d.square().mean())
        if variance == 0.0 or len(families) == 1:
            return 1.0
        rho = [float((d[: T - t] * d[t:]).mean()) / variance for t in range(T)]
        pairs = [a + b for a, b in zip(rho[::2], rho[1::2], strict=False)]
        positive = next((i for i, pair in enumerate(pairs) if pair < 0.0), len(pairs))
        tau = max(1.0, 2.0 * sum(pairs[:positive]) - 1.0)
        between = float(torch.stack([g[..., column].double().mean() for g in families]).var())
        counts.append(min(M * T / tau, len(families) * variance / between if between else math.inf))
    return max(1.0, min(counts))
