"""Models without training: the exact denoiser of a data set, and that of a Gaussian mixture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.schedules import Schedule
from molsamp.image.denoiser import Denoiser

CHUNK = 1 << 21  # squared distances held at a time


def ideal(
    data: Float[Tensor, "K *event"],
    schedule: Schedule,
    width: float = 0.1,
    labels: Tensor | None = None,
    log_w: Float[Tensor, "n *K"] | None = None,
) -> Denoiser:
    """The exact denoiser of sum_k N(m_k, width^2 I) / K, a Gaussian about every picture m_k of a data set.

        D(x) = (alpha width^2 x + sigma^2 sum_k r_k m_k) / c,   c = alpha^2 width^2 + sigma^2,
        r_k proportional to exp(-|x - alpha m_k|^2 / (2 c))

    The exponents are in float64, the rest in the dtype of x; a batch is worked off in chunks of `CHUNK` distances.

    Args:
        data: m_k.
        schedule: alpha and sigma.
        width: standard deviation of a pixel about its picture; below 0.05 the flow is stiff near the data.
        labels: class of every picture, (K,) int64; the model is then conditional, its sum over pictures of the class.
        log_w: log weights of the pictures for each particle of a batch that is then always of length n, for example
            what an observation of each says of them: with `observed_log_w` the model is the exact posterior.

    Raises:
        ValueError: for a width that is not positive, no pictures, as many labels as there are no pictures, or weights
            of another shape.
    """
    if not width > 0.0:
        raise ValueError(f"the width of the pictures is {width}, it must be positive")
    if not len(data) or (labels is not None and len(labels) != len(data)):
        raise ValueError(f"{len(data)} pictures with {None if labels is None else len(labels)} labels make no model")
    if log_w is not None and (log_w.dim() != 2 or log_w.shape[1] != len(data)):
        raise ValueError(f"weights of shape {tuple(log_w.shape)} do not fit {len(data)} pictures, allowed is (n, K)")
    classes = None if labels is None else int(labels.max()) + 1
    kept = _Pictures(data.flatten(1), torch.zeros(len(data)) if labels is None else labels)

    def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        c = alpha**2 * width**2 + sigma**2
        if log_w is not None and len(log_w) != len(x):
            raise ValueError(f"{len(log_w)} particles have weights, the batch is of {len(x)}")
        m, half_norms, centre, pictures, of = kept.on(x)
        flat, means = x.flatten(1), []
        rows = max(1, CHUNK // len(m))
        for a in range(0, len(x), rows):
            some = slice(a, a + rows)
            log_r = (alpha / c) * ((flat[some].double() - alpha * centre) @ m.T - alpha * half_norms)
            if log_w is not None:
                log_r = log_r + log_w[some].to(log_r)
            if label is not None:
                log_r = log_r.masked_fill(of != label[some, None], -torch.inf)
            means.append(torch.softmax(log_r, 1).to(x) @ pictures)
        mean = torch.cat(means) if means else flat
        return ((alpha * width**2 / c) * flat + (sigma**2 / c) * mean).view_as(x)

    return Denoiser(schedule, predict, tuple(data.shape[1:]), conditional=classes)


def observed_log_w(y: Float[Tensor, "n *shape"], of: Float[Tensor, "K *shape"], spread: float) -> Float[Tensor, "n K"]:
    """log N(y; o_k, spread^2 I) up to a constant: what observations y say of pictures that would be observed as o_k.

    Raises:
        ValueError: for observations of two shapes, or a spread that is not positive.
    """
    if y.shape[1:] != of.shape[1:] or not spread > 0.0:
        raise ValueError(
            f"observations of shape {tuple(y.shape[1:])} and {tuple(of.shape[1:])} with spread {spread:g}; the shapes "
            f"must be the same, the spread positive"
        )
    return -0.5 * torch.cdist(y.flatten(1).double(), of.flatten(1).double()).square() / spread**2


class _Pictures:
    """A data set (K, d) and its labels, with what the exponents need, where and as the pictures to denoise are."""

    def __init__(self, data: Tensor, labels: Tensor):
        self.data, self.labels = data, labels
        self.centre = data.double().mean(0)  # distances from it are the same, their rounding is not
        self.m = data.double() - self.centre
        self.half_norms = 0.5 * self.m.square().sum(1)
        self.copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def on(self, x: Tensor) -> tuple[Tensor, ...]:
        """(m, |m|^2 / 2, centre) in float64, pictures in the dtype of x, labels."""
        key = (x.device, x.dtype)
        if key not in self.copies:
            exact = (self.m.to(x.device), self.half_norms.to(x.device), self.centre.to(x.device))
            self.copies[key] = (*exact, self.data.to(x), self.labels.to(x.device))
        return self.copies[key]


def mixture(gaussians: GaussianMixture, schedule: Schedule, event: tuple[int, ...]) -> Denoiser:
    """The exact denoiser of a Gaussian mixture over flattened pictures."""

    def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        return gaussians.denoise(schedule, x.flatten(1), t).view_as(x)

    return Denoiser(schedule, predict, event)
