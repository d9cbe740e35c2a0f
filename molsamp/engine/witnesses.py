"""Which nodes of a tree are worth keeping: one for each witness, the cheapest that came near it.

Stable sparse trees, SST (Li, Littlefield and Bekris, "Asymptotically optimal sampling-based kinodynamic planning",
IJRR 2016, algorithms 8 and 9), for nodes that come in batches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.columns import Columns
from molsamp.engine.neighbours import Neighbours


class Admission(NamedTuple):
    """What `Witnesses.admit` decides.

    Args:
        rows: candidates that are kept.
        witness: whose representatives they become.
        displaced: nodes that were representatives and are so no longer.
    """

    rows: Int[Tensor, " kept"]
    witness: Int[Tensor, " kept"]
    displaced: Int[Tensor, " gone"]


class Witnesses:
    """Points no two of which lie within `radius`; each has the node of least cost that came within it.

    Args:
        radius: > 0.
        dimension: coordinates of a point.
    """

    def __init__(self, radius: float, dimension: int):
        if not radius > 0:
            raise ValueError(f"radius={radius} of witnesses must be positive")
        self.radius = radius
        self._rows = Columns(_fresh(torch.empty((0, dimension), dtype=torch.float64)))
        self._near = Neighbours(dimension)

    def __len__(self) -> int:
        return len(self._rows)

    def admit(self, points: Float[Tensor, "n f"], cost: Float[Tensor, " n"]) -> Admission:
        """Who of n candidates is kept: the cheapest at its witness, if cheaper than the node that is there.

        A candidate that is far from all witnesses becomes one. Give the nodes' numbers to `settle` afterwards.
        """
        witness = self._assign(points)
        order = torch.argsort(cost, stable=True)
        order = order[torch.argsort(witness[order], stable=True)]  # by witness, and by cost at each
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = witness[order][1:] != witness[order][:-1]
        rows = order[first].sort().values
        rows = rows[cost[rows] < self._rows["cost"][witness[rows]]]
        displaced = self._rows["node"][witness[rows]]
        return Admission(rows, witness[rows], displaced[displaced >= 0])

    def settle(self, witness: Int[Tensor, " n"], nodes: Int[Tensor, " n"], cost: Float[Tensor, " n"]) -> None:
        """Makes nodes, of these costs, the representatives of witnesses."""
        self._rows["node"][witness], self._rows["cost"][witness] = nodes, cost

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        return self._rows.to_tensors()

    @classmethod
    def from_tensors(cls, radius: float, state: dict[str, Tensor]) -> Witnesses:
        """The inverse of `to_tensors`."""
        out = cls(radius, state["points"].shape[1])
        out._add(state["points"])
        out.settle(torch.arange(len(out)), state["node"], state["cost"])
        return out

    def _assign(self, points: Tensor) -> Tensor:
        """The witness of each point; new ones are made in order, each for the points after it too."""
        if len(self):
            witness, d = (a[:, 0] for a in self._near.nearest(points))
        else:
            witness, d = (
                torch.zeros(len(points), dtype=torch.int64),
                torch.full((len(points),), torch.inf, dtype=torch.float64),
            )
        fresh: list[int] = []
        for i in torch.nonzero(d > self.radius)[:, 0].tolist():
            gap = (points[fresh] - points[i]).norm(dim=1)
            if len(fresh) and float(gap.min()) <= self.radius:
                witness[i] = len(self) + int(gap.argmin())
            else:
                witness[i] = len(self) + len(fresh)
                fresh.append(i)
        self._add(points[fresh])
        return witness

    def _add(self, points: Tensor) -> None:
        n, old = len(points), len(self)
        self._near.add(points, torch.arange(old, old + n))
        self._rows.append(_fresh(points))


def _fresh(points: Tensor) -> dict[str, Tensor]:
    """Rows of witnesses that nobody represents yet."""
    n = len(points)
    return {"points": points, "node": torch.full((n,), -1), "cost": torch.full((n,), torch.inf, dtype=torch.float64)}
