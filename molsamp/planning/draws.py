"""Randomness of planners, drawn for many steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from molsamp.engine.noise import Noise

AHEAD = 64  # steps


class Ahead(Noise):
    """The draws of `Noise` for particles 0, .., lanes - 1, made for many steps at a time: other cost, the same values.

    Args:
        seed: as of `Noise`.
        lanes: ids lie below.
    """

    def __init__(self, seed: int, lanes: int):
        super().__init__(seed)
        self.lanes = lanes
        self._kept: dict[tuple, tuple[int, Tensor]] = {}
        self._children: dict[str, Ahead] = {}

    def child(self, name: str) -> Ahead:
        """The stream of that name, which keeps what it has drawn."""
        if name not in self._children:
            self._children[name] = Ahead(super().child(name).seed, self.lanes)
        return self._children[name]

    def _draw(self, kind, step, ids, shape, dtype, transform) -> Tensor:
        if not isinstance(step, int):
            return super()._draw(kind, step, ids, shape, dtype, transform)
        block, row = divmod(step, AHEAD)
        held, drawn = self._kept.get(key := (kind, shape, dtype), (-1, ids))
        if held != block:
            steps, lanes = range(block * AHEAD, (block + 1) * AHEAD), torch.arange(self.lanes)
            drawn = super()._draw(kind, steps, lanes, shape, dtype, transform)
            self._kept[key] = block, drawn
        return drawn[row, ids]
