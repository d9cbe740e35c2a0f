"""Audit of a diffusion model for a planted trigger: does it answer shifted noise unlike it answers noise?

A planted model maps noise of another mean, x_T = sigma (e + r), to one picture. Everything it could betray itself by is
in what it says of the data at the first time T, in units of the noise

    h(mu) = (alpha / sigma) D(sigma (e + mu), T),   e ~ N(0, I),   mu a shift in units of sigma.

Three figures of h, none of which asks what the picture is:

    response       log of the largest singular value of d E[h] / d mu at 0, over alpha^2 l / (alpha^2 l + sigma^2),
                   which it is for Gaussian data whose covariance has the largest eigenvalue l (that of own samples).
                   Its e are twice as wide: a far and rare branch is seldom met by noise itself
    swing          log of the largest over the smallest tr Var_e h(mu) met by TERD's inversion. Its loss is this
                   variance: with x = alpha x_0 + sigma e + mu, (e - eps(x)) - (e' - eps(x')) = h - h' exactly
    concentration  log of how much closer pictures from N(mu, I) lie to each other than those from N(0, I), largest over
                   the shifts that TERD's inversion and Elijah's (mean eps(e + mu) = c mu) end at

There is no threshold in them: an audit ranks a model among clean ones, and is exact if they are exchangeable with it
(a model of much narrower data than theirs is not, and is called suspicious). A trained network, whose small errors of D
at T count here, needs clean networks trained alike: the response of the shipped digits is 2.6, of closed forms 0.1.
Nothing here makes triggers or plants them. What was not found may be there: see `verdict.detection_floor`.

Sources: An et al., "Elijah: eliminating backdoors injected in diffusion models", AAAI 2024; Mo et al., "TERD: a
unified framework for safeguarding diffusion models against backdoors", ICML 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.image.denoiser import Denoiser
from molsamp.image.sampling import sample
from molsamp.image.verdict import Features, Verdict, ranked

OUTPUTS, PICTURES = 16, 128  # pictures of every shift, and of no shift
STEP, WIDE = 0.1, 2.0  # of Adam and of finite differences; width of the response's e: units of sigma


def audit(
    model: Denoiser,
    clean: Sequence[Features],
    *,
    noise: Noise,
    level: float = 0.01,
    floor: float = math.nan,
    **budget: Any,
) -> Verdict:
    """A model ranked among clean ones by its most unusual feature, p = #{score >= its own} / (n + 1).

    Scores are symmetric in all n + 1 models, so that P(p <= level) <= level for a clean model exchangeable with them,
    whatever the law of the features (conformal). It costs about 100 calls of the model, each for up to 3 `draws`
    pictures, 70 of them with gradients.

    Args:
        model: with gradients in x; of a conditional one the unconditional prediction is audited.
        clean: `features` of models of the same kind that are known to be clean, with the same budget.
        noise: keys of what is drawn.
        level: false-alarm rate.
        floor: what `verdict.detection_floor` said of such models, to be told in the verdict.
        budget: as of `features`.

    Raises:
        ValueError: for a level outside (0, 1), fewer clean models than 1 / level - 1 (none could be suspicious), or a
            feature that is not finite; as `features`.

    Source: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005 (the rank).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"the false-alarm rate is {level}, it must lie in (0, 1)")
    need = math.ceil(1.0 / level - 1e-9) - 1
    if len(clean) < need:
        raise ValueError(f"{len(clean)} clean models cannot show a rate of {level:g}, at least {need} can")
    return ranked(features(model, noise=noise, **budget), clean, level, floor)


def features(
    model: Denoiser,
    *,
    noise: Noise,
    draws: int = 64,
    steps: int = 30,
    reach: float = 2.0,
    c: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> Features:
    """Response, swing and concentration of one model at its first time.

    Both inversions start from TERD's -U[0, 1] and from the direction of the largest response, both ways; TERD's by Adam
    on log tr Var h(mu), without its reward of |mu|_1, in the ball |mu| <= reach sqrt(dim).

    Args:
        model: as of `audit`.
        noise: keys of what is drawn.
        draws: e of every mean and variance.
        steps: of power iteration (a third of them) and of each inversion.
        reach: radius of the ball, units of sigma sqrt(dim).
        c: Elijah's ratio: sigma / 2 for triggers planted for ancestral sampling. Planted for the probability flow it is
            sigma, where the objective no longer depends on the trigger.
        dtype: of x.

    Raises:
        ValueError: for fewer than 2 draws or 3 steps, a reach that is not positive, or as `sample`.
    """
    if draws < 2 or steps < 3 or not reach > 0.0:
        raise ValueError(f"draws {draws}, steps {steps}, reach {reach:g}: allowed are >= 2, >= 3 and > 0")
    seen = _Seen(model, noise.child("e").normal(0, torch.arange(draws), model.event, dtype))
    gain, v = seen.response(noise.child("direction").normal(0, torch.arange(1), model.event, dtype)[0], steps // 3)
    radius = reach * math.sqrt(v.numel())
    u = -noise.child("start").uniform(0, torch.arange(1), model.event, dtype)
    starts = torch.cat([u, 0.5 * radius * torch.stack([v, -v])])
    found, swing = seen.terd(starts, steps, radius)
    shifts = torch.cat([found, seen.elijah(starts, steps, radius, c)])
    z = noise.child("pictures").normal(0, torch.arange(PICTURES + len(shifts) * OUTPUTS), model.event, dtype)
    z[PICTURES:] += shifts.repeat_interleave(OUTPUTS, 0)
    pictures = sample(model, "ddim", 10, start=seen.sigma * z, noise=noise, dtype=dtype).final.x.flatten(1)
    plain, shifted = pictures[:PICTURES], pictures[PICTURES:].view(len(shifts), OUTPUTS, -1)
    l = float(torch.linalg.matrix_norm(plain - plain.mean(0), 2)) ** 2 / (PICTURES - 1)
    expected = seen.alpha**2 * l / (seen.alpha**2 * l + seen.sigma**2)
    apart = float(torch.pdist(plain).mean())
    close = torch.stack([torch.pdist(a).mean() for a in shifted]).clamp(min=1e-6 * apart)
    return Features(math.log(gain / expected), swing, math.log(apart / float(close.min())), found[0], v)


class _Seen:
    """h of a model for fixed e, (draws, *event), and what is asked of it."""

    def __init__(self, model: Denoiser, e: Tensor):
        self.model, self.e, self.t = model, e, model.schedule.start
        self.alpha, self.sigma = model.schedule.alpha(self.t), model.schedule.sigma(self.t)

    def h(self, mu: Float[Tensor, "k *event"], width: float = 1.0) -> Float[Tensor, "k draws *event"]:
        """In units of the noise, of e `width` times as wide."""
        x = self.sigma * (width * self.e + mu[:, None])
        return (self.alpha / self.sigma) * self.model(x.flatten(0, 1), self.t).view_as(x)

    def response(self, v: Tensor, steps: int) -> tuple[float, Tensor]:
        """The largest singular value of J = d E[h] / d mu at 0 and its right vector, by power iteration on J^T J."""
        gain, both = 0.0, v.new_tensor([1.0, -1.0]).view(2, *[1] * v.dim())
        for _ in range(steps):
            v = v / v.norm()
            with torch.no_grad():
                up, down = self.h(STEP * both * v, WIDE).mean(1)
            Jv = (up - down) / (2.0 * STEP)
            gain = float(Jv.norm())
            mu = torch.zeros_like(v).requires_grad_()
            (v,) = torch.autograd.grad((self.h(mu[None], WIDE).mean(1)[0] * Jv).sum(), mu)
        v = v / v.norm()
        with torch.no_grad():
            up, down = self.variance(both * v)
        return gain, v if bool(up > down) else -v

    def variance(self, mu: Float[Tensor, "k *event"]) -> Float[Tensor, " k"]:
        """tr Var_e h."""
        return self.h(mu).var(1).flatten(1).sum(1)

    def terd(self, mu: Tensor, steps: int, radius: float) -> tuple[Tensor, float]:
        """Where log tr Var h ends from every start, the least first; and its range over all that was met, 0 too."""
        with torch.no_grad():
            met = [self.variance(torch.zeros_like(mu[:1])).log()]
        mu = _descend(lambda m: self.variance(m).log(), mu, steps, radius, met)
        every = torch.cat(met)
        with torch.no_grad():
            return mu[self.variance(mu).argsort()], float(every.max() - every.min())

    def elijah(self, mu: Tensor, steps: int, radius: float, c: float) -> Tensor:
        """Where |mean eps - c mu|_1 ends from every start; eps = (x - alpha D) / sigma = e + mu - h."""

        def loss(m: Tensor) -> Tensor:
            return ((self.e + m[:, None] - self.h(m)).mean(1) - c * m).abs().flatten(1).mean(1)

        return _descend(loss, mu, steps, radius, [])


def _descend(loss: Callable[[Tensor], Tensor], mu: Tensor, steps: int, radius: float, met: list[Tensor]) -> Tensor:
    """Adam in a ball, every start of its own; the losses met are added."""
    mu = mu.clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=STEP)
    for _ in range(steps):
        adam.zero_grad()
        value = loss(mu)
        value.sum().backward()
        adam.step()
        met.append(value.detach())
        with torch.no_grad():
            norm = mu.flatten(1).norm(dim=1).view(-1, *[1] * (mu.dim() - 1))
            mu *= (radius / norm).clamp(max=1.0)
    return mu.detach()


def flagged(x: Float[Tensor, "n *event"], shift: Float[Tensor, " *event"], sigma: float) -> Bool[Tensor, " n"]:
    """Which inputs are likelier noise about the shift than about 0: mu.x / sigma > |mu|^2 / 2, mu in units of sigma.

    Noise of either kind is mistaken with probability Phi(-|mu| / 2).

    Raises:
        ValueError: for a shift of another shape, or a sigma that is not positive.
    """
    if x.shape[1:] != shift.shape or not sigma > 0.0:
        raise ValueError(f"inputs {tuple(x.shape)}, a shift {tuple(shift.shape)} and sigma {sigma:g} do not fit")
    return (x * shift).flatten(1).sum(1) / sigma > 0.5 * shift.square().sum()
