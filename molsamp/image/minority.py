"""Minority guidance: how rare a diffusion model finds a picture, and sampling towards a chosen rarity.

    l(x_0) = E_eps d(x_0, D(alpha x_0 + sigma eps, t))

is small for what the model restores and large for what it takes for something commoner. Cut at quantiles into bins
it makes labels, a classifier that knows noise learns p(bin | x_t), and `Towards` climbs its gradient
(`engine.guides.Uphill`; no gradient goes through the denoiser). With the exact p(bin | x_t) and weight 1 that samples
p(x_0 | bin); with a weight above 1 it samples no law of this form, and is unbiased only by the weights of `steer` with
its `base`.

Source: Um, Lee, Ye, "Don't play favorites: minority guidance for diffusion models", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molsamp.engine.guides import Prediction, State, Uphill
from molsamp.engine.noise import Noise
from molsamp.engine.schedules import Schedule
from molsamp.image.sampling import Model
from molsamp.learn.fit import fit
from molsamp.learn.networks import MLP

Distance = Callable[[Tensor, Tensor], Tensor]
SHORT = 4  # wave numbers of the noise level that the classifier sees


def squared(a: Float[Tensor, "n *event"], b: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """|a - b|^2 of every picture, float64."""
    return (a - b).double().square().flatten(1).sum(1)


def rarity_score(
    model: Model,
    x0: Float[Tensor, "n *event"],
    t: float,
    *,
    noise: Noise,
    distance: Distance = squared,
    draws: int = 5,
    batch: int = 256,
) -> Float[Tensor, " n"]:
    """l(x_0) of every picture, the mean over draws of eps; without gradients.

    A middle t tells most: near 0 everything is restored, at the end nothing. Take the one where held-out labels, or
    the scores themselves, spread most.

    Args:
        model: the denoiser D, with its schedule.
        x0: pictures, or samples of the model.
        t: time.
        noise: keys of eps; picture i has the same whichever batch it is in.
        distance: d, (n, *event) twice -> (n,): of features, of torsions, of aligned atoms.
        draws: of eps.
        batch: pictures side by side.

    Raises:
        ValueError: for no draw, or a distance of another shape.
    """
    if draws < 1:
        raise ValueError(f"draws: got {draws}, a score is the mean of 1 or more")
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    found = torch.zeros(len(x0), dtype=torch.float64)
    with torch.no_grad():
        for first in range(0, len(x0), batch):
            some = x0[first : first + batch]
            ids = torch.arange(first, first + len(some))
            for k in range(draws):
                x = alpha * some + sigma * noise.normal(k, ids, tuple(some.shape[1:]), some.dtype).to(some.device)
                d = distance(some, model(x, t))
                if d.shape != (len(some),):
                    raise ValueError(f"the distance gave shape {tuple(d.shape)} for {len(some)} pictures")
                found[ids] += d.double().cpu() / draws
    return found


def quantile_labels(score: Float[Tensor, " n"], bins: int) -> Int[Tensor, " n"]:
    """Bins of equal counts, to within 1, the last the rarest; among equal scores the earlier picture is the commoner.

    Raises:
        ValueError: for fewer scores than bins, no bin, or a score that is not finite.
    """
    n = len(score)
    if not 1 <= bins <= n or not bool(torch.isfinite(score).all()):
        raise ValueError(f"{n} scores, which must be finite, make 1 to {n} bins, not {bins}")
    labels = torch.empty(n, dtype=torch.int64)
    labels[score.argsort(stable=True)] = torch.arange(n) * bins // n
    return labels


class RarityClassifier(nn.Module):
    """log p(bin | x_t) of any forward process x_t = alpha (x_0 + rho eps), a perceptron on x_t / alpha and log rho.

    Args:
        event: shape of a picture.
        bins: of rarity.
        size: root mean square of a pixel.
        noise: keys of the initial weights.
        width, depth: of the hidden layers.
    """

    def __init__(
        self, event: tuple[int, ...], bins: int, size: float, noise: Noise, *, width: int = 128, depth: int = 2
    ):
        super().__init__()
        self.bins, self.size = bins, size
        self.net = MLP((math.prod(event) + 1 + 2 * SHORT, *[width] * depth, bins), noise)

    def forward(self, y: Float[Tensor, "n *event"], log_rho: Float[Tensor, " n"]) -> Float[Tensor, "n bins"]:
        """Log-probabilities of the bins for pictures y = x_0 + rho eps."""
        scale = (self.size**2 + torch.exp(2.0 * log_rho)).rsqrt()[:, None]
        waves = 0.4 * log_rho[:, None] * torch.arange(1, SHORT + 1).to(log_rho)
        told = torch.cat([y.flatten(1) * scale, 0.2 * log_rho[:, None], waves.sin(), waves.cos()], 1)
        return torch.log_softmax(self.net(told), 1)

    def log_p(self, schedule: Schedule, target: int) -> Callable[[Tensor, float], Tensor]:
        """(x, t) -> log p(target | x_t), for `Towards`.

        Raises:
            ValueError: for a bin that there is not.
        """
        if not 0 <= target < self.bins:
            raise ValueError(f"bin {target} of rarity is not one of 0 to {self.bins - 1}")

        def of(x: Tensor, t: float) -> Tensor:
            alpha = schedule.alpha(t)
            y = (x / alpha).to(next(self.parameters()).dtype)
            return self(y, y.new_full((len(x),), math.log(schedule.sigma(t) / alpha)))[:, target].to(x.dtype)

        return of


def fit_rarity(
    x0: Float[Tensor, "n *event"],
    labels: Int[Tensor, " m"],
    *,
    noise: Noise,
    levels: tuple[float, float] = (0.02, 100.0),
    steps: int = 2000,
    batch: int = 256,
    rate: float = 3e-3,
    width: int = 128,
    depth: int = 2,
) -> RarityClassifier:
    """Train a classifier of rarity at all noise levels alike: cross-entropy, AdamW, a rate that falls to 0.

    Args:
        x0: pictures.
        labels: their bins, 0 to the largest.
        noise: keys of weights, batches and noise.
        levels: smallest and largest rho = sigma / alpha; log rho is uniform between.
        steps, batch, rate: of the training.
        width, depth: of the network.

    Raises:
        ValueError: as many labels as there are no pictures.
    """
    if len(labels) != len(x0) or not len(x0):
        raise ValueError(f"{len(x0)} pictures with {len(labels)} labels train no classifier")
    net = RarityClassifier(
        tuple(x0.shape[1:]),
        int(labels.max()) + 1,
        float(x0.double().square().mean().sqrt()),
        noise.child("weights"),
        width=width,
        depth=depth,
    )
    low, high = map(math.log, levels)
    ids, data = torch.arange(batch), x0.float()

    def draw(k: int) -> dict[str, Tensor]:
        which = noise.child("pictures").integers(k, ids, (), len(data))
        log_rho = (low + (high - low) * noise.child("levels").uniform(k, ids)).float()
        eps = noise.child("eps").normal(k, ids, tuple(data.shape[1:]), torch.float32)
        rho = log_rho.exp().view(-1, *[1] * (data.dim() - 1))
        return {"y": data[which] + rho * eps, "log_rho": log_rho, "label": labels[which]}

    def loss(drawn: dict[str, Tensor]) -> Tensor:
        return nn.functional.nll_loss(net(drawn["y"], drawn["log_rho"]), drawn["label"])

    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    fit(loss, draw, optimiser, steps=steps, each=falling.step)
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Towards:
    """Classifier guidance within a window of times: x_0 + weight sigma^2 / alpha grad_x log p(bin | x_t).

    Args:
        log_p: (x, t) -> log p(bin | x_t), nats, differentiable.
        weight: of the gradient.
        window: (first, last) time between which it acts; always unless given. The middle third has most of the effect.

    Raises:
        ValueError: for a window that is none.
    """

    log_p: Callable[[Tensor, float], Tensor]
    weight: float = 1.0
    window: tuple[float, float] | None = None
    slots = 0

    def __post_init__(self):
        if self.window is not None and not self.window[0] >= self.window[1]:
            raise ValueError(f"window {self.window}: times fall, the first is not below the last")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Both aim and origin, or nothing."""
        if self.window is not None and not self.window[0] >= p.t >= self.window[1]:
            return p, ()
        return Uphill(self.log_p, self.weight)(p, None)
