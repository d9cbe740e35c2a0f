"""Films between two pictures, from a model that knows only how films go on from one: ViBiDSampler.

A half step of each row is conditioned on the first frame and pins the last, the other on the last frame, asked
backwards, and pins the first (`engine.alternating.Alternating`). The same makes proposals of molecular paths between
two states: positions are even in time, velocities odd, and what comes out must be weighed or corrected by shooting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.alternating import Alternating, Condition, Reversal
from molsamp.engine.guides import Chain, Guide
from molsamp.engine.operators import Selection
from molsamp.image.inverse import DDS, Measured

Onward = Callable[[Tensor, float, Tensor], Tensor]


def between(
    onward: Onward,
    start: Float[Tensor, "*frame"],
    end: Float[Tensor, "*other"],
    frames: int,
    *,
    weight: float = 1.0,
    reversal: Reversal = Reversal(),
    inner: int = 5,
) -> Alternating:
    """The solver of films from `start` to `end`, for `sample` of the unconditional model of films (frames, *frame).

    Four calls of the network a row: two without a condition, one on either end. For w = 1 the aim is the conditional
    prediction itself, and only the re-noising is the unconditional one's.

    Args:
        onward: (x, t, frame) -> prediction of the film, given that its first frame is `frame`.
        start, end: the two frames.
        frames: of the film, two or more; its first axis is time.
        weight: of the conditions (CFG++), in [0, 1].
        reversal: what running backwards does to a film.
        inner: steps of conjugate gradients that pin a frame; one does, since the selection is a projector.

    Raises:
        ValueError: for ends of two shapes, or fewer than two frames.

    Source: Yang et al., "ViBiDSampler: enhancing video interpolation using bidirectional diffusion sampler", ICLR 2025.
    """
    if start.shape != end.shape or frames < 2:
        raise ValueError(
            f"ends of shape {tuple(start.shape)} and {tuple(end.shape)} in {frames} frames; the shapes must be the "
            "same, the frames two or more"
        )

    def pinned(index: int, frame: Tensor) -> Guide:
        selection = Selection(torch.tensor([index]), (frames, *frame.shape))
        return DDS(Measured(selection, frame[None, None]), steps=inner)

    turned = reversal(end[None, None])[0, 0]  # what the model sees of the end
    first = Chain((Condition(lambda x, t: onward(x, t, start), weight), pinned(frames - 1, end)))
    second = Chain((Condition(reversal.of(lambda x, t: onward(x, t, turned)), weight), pinned(0, start)))
    return Alternating(first, second)
