"""Optimisation as conditional sampling: a diffusion model asked for draws whose reward is a wanted one.

A linear reward is fitted on few labelled points, y = theta.x + nu e, and the model is conditioned on y = target. From
x_t the reward of x_0 has mean theta.D(x_t) and variance theta.V theta, V = (sigma^2 / alpha) dD/dx (Tweedie), so that

    h(x_t) = N(target; theta.D, theta.V theta + nu^2)          for a Gaussian p(x_0) exactly p(y = target | x_t)

and `guides.Uphill` with weight 1 samples N(S theta y / q, S - S theta theta' S / q), q = theta'S theta + nu^2, from
N(0, S). For other laws V is that at x_t and its gradient is left out. A reward that is not linear is climbed by its
linearisations (`climb`).

Sources: Chen et al., "An overview of diffusion models", arXiv 2404.07771; Yuan et al., "Reward-directed conditional
diffusion", NeurIPS 2023; Guo et al., "Gradient guidance for diffusion models", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.guides import Guided, Uphill
from molsamp.engine.integrators import Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles

LogH = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class LinearReward:
    """y = theta.x + nu e.

    Args:
        theta: of the shape of one x.
        nu2: nu^2, not negative.

    Raises:
        ValueError: for a negative variance.
    """

    theta: Float[Tensor, " *event"]
    nu2: float

    def __post_init__(self):
        if not self.nu2 >= 0.0:
            raise ValueError(f"the variance of a reward is {self.nu2}, it must not be negative")

    @classmethod
    def fit(cls, x: Float[Tensor, "n *event"], y: Float[Tensor, " n"]) -> LinearReward:
        """Least squares of least norm; the variance is that of the residuals over n - rank.

        Where x = A z with z ~ N(0, S_z) in d dimensions, it is d that counts, not the length of x:
        E (theta' - theta).S (theta' - theta) = nu^2 d / (n - d - 1).

        Raises:
            ValueError: for as few points as x has independent directions, or fewer.
        """
        flat = x.flatten(1).double()
        rank = int(torch.linalg.matrix_rank(flat))
        if len(x) <= rank:
            raise ValueError(f"{len(x)} points of rank {rank} tell no linear reward with its noise, more are needed")
        theta = torch.linalg.pinv(flat, rtol=1e-10) @ y.double()
        nu2 = float((y - flat @ theta).square().sum()) / (len(x) - rank)
        return cls(theta.view(x.shape[1:]).to(x), nu2)

    def aims(self, sde: LinearSDE, target: float) -> LogH:
        """log h of the condition y = target, nats, for `guides.Uphill`.

        Args:
            sde: the model of p(x_0); its denoiser is asked once more at every step, with its gradient.
            target: wanted reward.
        """

        def log_h(x: Tensor, t: float) -> Tensor:
            mean, variance = _predicted(sde, self.theta, x, t)
            return -0.5 * (target - mean).square() / (variance + self.nu2)

        return log_h


def tilts(sde: LinearSDE, slope: Float[Tensor, " *event"]) -> LogH:
    """log E[exp(slope.x_0) | x_t] up to a constant for Gaussian laws: `guides.Uphill` samples p(x_0) exp(slope.x_0).

    Of N(m, S) that is N(m + S slope, S).
    """
    return lambda x, t: (sde.denoise(x, t) * slope).flatten(1).sum(1)


def climb(
    sde: LinearSDE,
    integrator: Integrator,
    start: Particles,
    times: Sequence[float],
    reward: Callable[[Tensor], Tensor],
    *,
    noise: Noise,
    weight: float,
    rounds: int,
    damping: float = 1.0,
) -> Float[Tensor, "rounds *event"]:
    """Means of draws guided by the reward's linearisation at the mean of the round before, the first at the model's.

        m_k+1 = (1 - damping) m_k + damping E[x_0] under p(x_0) exp(weight grad r(m_k).x_0)

    For N(m, S) it stops where m_k = m + weight S grad r(m_k): at the maximum of weight r(x) - |x - m|^2_S / 2, if
    1 - damping (1 + weight l) has modulus below 1 for all eigenvalues l of -S r''.

    Args:
        sde, integrator, times: as in `rollout`.
        start: x at the first time, the same in every round; its means lie on the start's own when it is symmetric.
        reward: (1, *event) -> (1,), differentiable.
        noise: keys of what the integrator draws.
        weight: of the reward, in nats of its unit.
        rounds: linearisations, 1 or more.
        damping: in (0, 1].

    Raises:
        ValueError: for no rounds, a damping outside (0, 1], or a gradient that is not finite, naming the round.

    Source: Guo et al., "Gradient guidance for diffusion models", NeurIPS 2024.
    """
    if rounds < 1 or not 0.0 < damping <= 1.0:
        raise ValueError(f"rounds {rounds} and damping {damping:g}: allowed are 1 or more and (0, 1]")

    def mean(rule: Integrator, k: int) -> Tensor:
        return rollout(sde, rule, start, times, noise=noise.child(f"round {k}"), save="last").final.x.mean(0)

    at, means = mean(integrator, 0), []
    for k in range(1, rounds + 1):
        with torch.enable_grad():
            x = at.detach()[None].requires_grad_()
            (slope,) = torch.autograd.grad(reward(x).sum(), x)
        if not bool(torch.isfinite(slope).all()):
            raise ValueError(f"the gradient of the reward is not finite in round {k}")
        guided = Guided(integrator, Uphill(tilts(sde, weight * slope[0])))
        at = torch.lerp(at, mean(guided, k), damping)
        means.append(at)
    return torch.stack(means)


def _predicted(sde: LinearSDE, theta: Tensor, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """theta.D with its graph, and theta.V theta without."""
    mean = (sde.denoise(x, t) * theta).flatten(1).sum(1)
    (uphill,) = torch.autograd.grad(mean.sum(), x, retain_graph=True)
    alpha, sigma = sde.schedule.alpha(t), sde.schedule.sigma(t)
    return mean, (sigma**2 / alpha) * (uphill * theta).flatten(1).sum(1)
