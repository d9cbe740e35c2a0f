"""A picture model as one function, the prediction of x_0 from x_t, whatever its network was trained to predict.

With x = alpha x_0 + sigma eps and the schedule's forward SDE dx = f x dt + g dW, each prediction gives x_0 exactly:

    noise eps                             (x - sigma eps) / alpha
    data x_0                              x_0
    velocity v = alpha eps - sigma x_0    (alpha x - sigma v) / (alpha^2 + sigma^2)
    score -eps / sigma                    (x + sigma^2 score) / alpha
    flow u = alpha' x_0 + sigma' eps      the score's, with score = 2 (f x - u) / g^2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.schedules import Schedule

PREDICTIONS = ("noise", "data", "velocity", "score", "flow")
Pictures = Float[Tensor, "n *event"]
Label = int | Tensor | None  # of all pictures, or of each, (n,) int64


def data_from(prediction: str, schedule: Schedule, x: Pictures, t: float, y: Pictures) -> Pictures:
    """x_0 from a network's answer y at (x, t), by the table above; `prediction` is one of `PREDICTIONS`.

    Raises:
        ValueError: for another prediction, or where alpha(t) = 0 leaves x_0 out of noise or score.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction == "data":
        return y
    if prediction == "velocity":
        return (alpha * x - sigma * y) / (alpha**2 + sigma**2)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown, allowed are {', '.join(PREDICTIONS)}")
    if alpha == 0.0:
        raise ValueError(f"alpha is 0 at t = {t}, where {prediction} does not tell x_0; start below it")
    if prediction == "noise":
        return (x - sigma * y) / alpha
    if prediction == "score":
        return (x + sigma**2 * y) / alpha
    return (x + 2.0 * sigma**2 / schedule.g2(t) * (schedule.f(t) * x - y)) / alpha


class Denoiser:
    """d(x, t) = E[x_0 | x_t = x]: what every solver of pictures evaluates.

    Gradients flow through it only where x asks for them, so that sampling keeps no graph.

    Args:
        schedule: alpha and sigma of x_t.
        predict: (x (n, *event), t, label (n,) or None) -> prediction of x_0; None asks for the unconditional one.
        event: shape of one picture.
        conditional: number of classes, None for a model without labels.
        passes: passes through a network in one prediction.

    Members `calls` (predictions for a batch at one time, the NFE of papers) and `forwards` (passes through the
    network: two under guidance) count since the object was made.
    """

    def __init__(
        self,
        schedule: Schedule,
        predict: Callable[[Tensor, float, Tensor | None], Tensor],
        event: tuple[int, ...],
        *,
        conditional: int | None = None,
        passes: int = 1,
    ):
        self.schedule, self.predict, self.event, self.conditional = schedule, predict, tuple(event), conditional
        self.passes, self.calls, self.forwards = passes, 0, 0

    @classmethod
    def wrapping(
        cls,
        prediction: str,
        net: Callable[..., Tensor],
        schedule: Schedule,
        event: tuple[int, ...],
        conditional: int | None = None,
    ) -> Denoiser:
        """A denoiser around net(x, t (n,)), or net(x, t, label (n,)) with label `conditional` for no class."""

        def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
            time = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            if conditional is None:
                y = net(x, time)
            else:
                y = net(x, time, torch.full_like(time, conditional, dtype=torch.int64) if label is None else label)
            return data_from(prediction, schedule, x, t, _fitting(y, x))

        return cls(schedule, predict, event, conditional=conditional)

    @classmethod
    def from_eps(cls, net: Callable[..., Tensor], schedule: Schedule, event: tuple[int, ...], **how: Any) -> Denoiser:
        """From a network that predicts the noise; see `wrapping`."""
        return cls.wrapping("noise", net, schedule, event, **how)

    @classmethod
    def from_data(cls, net: Callable[..., Tensor], schedule: Schedule, event: tuple[int, ...], **how: Any) -> Denoiser:
        """From a network that predicts x_0; see `wrapping`."""
        return cls.wrapping("data", net, schedule, event, **how)

    @classmethod
    def from_velocity(
        cls, net: Callable[..., Tensor], schedule: Schedule, event: tuple[int, ...], **how: Any
    ) -> Denoiser:
        """From a network that predicts v = alpha eps - sigma x_0 (Salimans, Ho, ICLR 2022); see `wrapping`."""
        return cls.wrapping("velocity", net, schedule, event, **how)

    @classmethod
    def from_score(cls, net: Callable[..., Tensor], schedule: Schedule, event: tuple[int, ...], **how: Any) -> Denoiser:
        """From a network that predicts the score; see `wrapping`."""
        return cls.wrapping("score", net, schedule, event, **how)

    @classmethod
    def from_flow(cls, net: Callable[..., Tensor], schedule: Schedule, event: tuple[int, ...], **how: Any) -> Denoiser:
        """From a network that predicts dx/dt of the probability flow, alpha' x_0 + sigma' eps; see `wrapping`."""
        return cls.wrapping("flow", net, schedule, event, **how)

    def __call__(self, x: Pictures, t: float, label: Label = None) -> Pictures:
        """The prediction of x_0.

        Args:
            x: pictures at time t.
            t: time.
            label: class of all pictures or of each; None for the unconditional prediction.

        Raises:
            ValueError: if the shape of x is not (n, *event), the prediction has not that of x, or a label is none of
                the model's.
        """
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x has shape {tuple(x.shape)}, the model is for {('n', *self.event)}")
        self.calls += 1
        self.forwards += self.passes
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return _fitting(self.predict(x, t, self._labels(x, label)), x)

    def guided(self, label: Label, weight: float, threshold: float | None = None) -> Denoiser:
        """Classifier-free guidance, D_u + weight (D_c - D_u): 0 is unconditional, 1 conditional.

        Args:
            label: class of all pictures, or of each of a batch that is then always of this length.
            weight: w.
            threshold: quantile of `thresholded`, None for none.

        Raises:
            ValueError: for a model without labels, a label that is none of the model's, or no label.

        Source: Ho, Salimans, "Classifier-free diffusion guidance", 2022 (w here is their 1 + w).
        """
        if self.conditional is None or label is None:
            raise ValueError(f"guidance needs a model with classes and a label; got {self.conditional} and {label}")
        self._labels(torch.zeros(1 if isinstance(label, int) else len(label)), label)

        def predict(x: Tensor, t: float, _: Tensor | None) -> Tensor:
            if weight == 0.0:
                return self.predict(x, t, None)
            conditional = self.predict(x, t, self._labels(x, label))
            if weight == 1.0:
                return conditional
            return torch.lerp(self.predict(x, t, None), conditional, weight)

        guided = Denoiser(self.schedule, predict, self.event, passes=self.passes * (1 if weight in (0.0, 1.0) else 2))
        return guided if threshold is None else guided.thresholded(threshold)

    def thresholded(self, quantile: float = 0.995) -> Denoiser:
        """Dynamic thresholding of every picture, x_0 -> clip(x_0, -s, s) / s, s = max(1, quantile of its |x_0|).

        Raises:
            ValueError: for a quantile outside (0, 1).

        Source: Saharia et al., "Photorealistic text-to-image diffusion models", NeurIPS 2022, section 2.3.
        """
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"the quantile of thresholding is {quantile}, it must lie in (0, 1)")

        def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
            return _threshold(self.predict(x, t, label), quantile)

        return Denoiser(self.schedule, predict, self.event, conditional=self.conditional, passes=self.passes)

    def sde(self, stores: Literal["data", "noise"] = "data") -> LinearSDE:
        """The dynamics that an integrator takes; `stores` is what its evaluations are."""
        return LinearSDE(self.schedule, self, stores)

    def _labels(self, x: Tensor, label: Label) -> Tensor | None:
        """One label a picture, checked."""
        if label is None:
            return None
        labels = torch.as_tensor(label, device=x.device)
        if self.conditional is None:
            raise ValueError(f"label {labels.tolist()} was given to a model without labels")
        if labels.dim() == 1 and len(labels) != len(x):
            raise ValueError(f"{len(labels)} labels were given for {len(x)} pictures")
        if not bool(((labels >= 0) & (labels < self.conditional)).all()):
            raise ValueError(f"label {labels.tolist()} is not in 0 .. {self.conditional - 1}")
        return labels.expand(len(x))


def _fitting(y: Tensor, x: Tensor) -> Tensor:
    if y.shape != x.shape:
        raise ValueError(f"the network answers with shape {tuple(y.shape)} to x of shape {tuple(x.shape)}")
    return y


def _threshold(x0: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding; the quantile interpolates linearly between two order statistics."""
    size = x0[0].numel()
    at = quantile * (size - 1)
    below = int(at)
    top = x0.abs().flatten(1).topk(size - below, 1).values  # falling; the last is the order statistic at `below`
    s = torch.lerp(top[:, -1], top[:, max(0, size - below - 2)], at - below).clamp(min=1.0)
    s = s.view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-s, s) / s
