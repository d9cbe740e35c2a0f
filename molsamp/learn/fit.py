"""The gradient loop: every parameter that is ever trained is trained here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class FitResult(NamedTuple):
    """Mean loss over the steps taken (NaN if none was), last gradient norm before clipping, steps skipped."""

    loss: float
    gradient: float
    skipped: int


def fit(
    objective: Callable[[dict[str, Tensor]], Tensor],
    draw: Callable[[int], dict[str, Tensor]],
    optimiser: torch.optim.Optimizer,
    *,
    steps: int,
    clip: float = 1.0,
    each: Callable[[], None] | None = None,
) -> FitResult:
    """Take `steps` gradient steps of `objective` on batches from `draw`.

    Args:
        objective: batch -> scalar loss.
        draw: step index -> batch.
        optimiser: keeps its moments between calls; each of its parameter groups is clipped to norm `clip`.
        steps: gradient steps.
        clip: largest gradient norm of a group.
        each: called after every step that was taken (averages of parameters).

    Returns:
        `FitResult`; a step whose loss or gradient is not finite is skipped and counted.
    """
    total, norm, skipped = 0.0, 0.0, 0
    for k in range(steps):
        loss = objective(draw(k))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norms = [float(torch.nn.utils.clip_grad_norm_(g["params"], clip)) for g in optimiser.param_groups]
        norm = max(norms)
        if not all(map(math.isfinite, (float(loss.detach()), *norms))):
            skipped += 1
            continue
        optimiser.step()
        if each is not None:
            each()
        total += float(loss.detach())
    taken = steps - skipped
    return FitResult(total / taken if taken else math.nan, norm, skipped)
