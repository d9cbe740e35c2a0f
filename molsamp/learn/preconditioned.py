"""A network as the prediction of the clean end at every noise level, scaled so that it always answers in order 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Field = Float[Tensor, "n *event"]
WAVES, STEPS = 8, 8  # sines, and as many cosines, of the log of the noise; smooth steps, one every factor e
FEATURES = 2 * WAVES + STEPS


class Preconditioned(nn.Module):
    """D(x, s) = skip x + out F(x, s), with x = X_1 + s z in mind (Karras et al. 2022, table 1):

        skip = d^2 / (d^2 + s^2),   out = s d / (d^2 + s^2)^(1/2)

    Args:
        F: (x, s, features of log s (n, FEATURES), *given) -> the shape of x; scales its own inputs.
        size: d, the standard deviation of a coordinate of the data; a buffer, which may be measured later.
        lowest, highest: noise levels between which the features turn.
    """

    size: Tensor

    def __init__(self, F: nn.Module, size: float, lowest: float, highest: float):
        super().__init__()
        self.F, self.lowest, self.span = F, lowest, math.log(highest / lowest)
        self.register_buffer("size", torch.tensor(size))

    def forward(self, x: Field, s: Float[Tensor, " n"], *given: Any) -> Field:
        """The prediction of the end; `given` (a class label) is handed on to F."""
        skip, out = self._weights(x, s)
        return skip * x + out * self._raw(x, s, *given)

    def loss(
        self, x: Field, s: Float[Tensor, " n"], target: Field, error: Float[Tensor, " n"] | None = None, *given: Any
    ) -> Tensor:
        """Mean squared error of D against a target in units of `out`: every noise level counts alike, but where the
        standard error of the target is known to be above those units it counts by its inverse variance.
        """
        skip, out = self._weights(x, s)
        miss = ((target - skip * x) / out - self._raw(x, s, *given)).square().flatten(1).mean(1)
        return miss.mean() if error is None else (miss / (1.0 + (error / out.flatten()) ** 2)).mean()

    def _raw(self, x: Tensor, s: Tensor, *given: Any) -> Tensor:
        up = torch.log(s.clamp(min=self.lowest) / self.lowest)[:, None]
        u = up / self.span * torch.arange(1, WAVES + 1).to(s) * (0.5 * math.pi)
        steps = (up - self.span + torch.arange(STEPS).to(s)).tanh()
        return self.F(x, s, torch.cat([u.sin(), u.cos(), steps], 1), *given)

    def _weights(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = s.view(-1, *[1] * (x.dim() - 1))
        total = self.size**2 + s**2
        return self.size**2 / total, s * self.size / total.sqrt()
