"""A ring of training items: first in, first out, sampled uniformly with replacement."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


class Ring:
    """Holds the newest `capacity` items, each a dict of tensors of fixed shape.

    Args:
        capacity: number of items kept.
    """

    def __init__(self, capacity: int):
        self.capacity, self.pushed = capacity, 0
        self.items: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.pushed, self.capacity)

    def push(self, batch: dict[str, Tensor]) -> int:
        """Append a batch of items (leading axis), dropping any with a non-finite number.

        Returns:
            The number of items dropped.
        """
        finite = torch.stack([b.flatten(1).isfinite().all(1) if b.dim() > 1 else b.isfinite() for b in batch.values()])
        good = finite.all(0).nonzero().squeeze(1)
        dropped = len(finite[0]) - len(good)
        good = good[-self.capacity :]
        if not self.items:
            self.items = {k: b.new_zeros(self.capacity, *b.shape[1:]) for k, b in batch.items()}
        slots = (self.pushed + torch.arange(len(good))) % self.capacity
        for k, b in batch.items():
            self.items[k][slots] = b[good]
        self.pushed += len(good)
        return dropped

    def take(self, index: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """The items at `index`, each in [0, len(self))."""
        return {k: b[index] for k, b in self.items.items()}

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"pushed": torch.tensor(self.pushed), **{f"items.{k}": b for k, b in self.items.items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        self.pushed = int(state["pushed"])
        self.items = {k.removeprefix("items."): b.clone() for k, b in state.items() if k.startswith("items.")}
