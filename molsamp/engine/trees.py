"""Trees of states in flat arrays: what planners, shooting moves and splitting methods grow.

Node i is a row: its parent (always a lower row, -1 for a root), its state x (and v), and time, cost and depth summed
along the edges from its root. Rows are only ever added; the arrays double when full, so that adding m nodes one by
one costs O(m).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.state import Particles, Path

CHUNK = 1 << 14  # nodes compared with the queries at a time


class Tree:
    """One tree, or a forest where several roots are given.

    Args:
        x: states of the roots, (r, *event).
        v: their velocities, (r, *event), or None for a tree without.
    """

    def __init__(self, x: Float[Tensor, "r *event"], v: Float[Tensor, "r *event"] | None = None):
        r = len(x)
        zeros = torch.zeros(r, dtype=torch.float64, device=x.device)
        rootless = torch.full((r,), -1, dtype=torch.int64, device=x.device)
        self._columns = {
            "parent": rootless,
            "x": x.clone(),
            "time": zeros,
            "cost": zeros.clone(),
            "depth": rootless + 1,
        }
        if v is not None:
            self._columns["v"] = v.clone()
        self._size = r

    def __len__(self) -> int:
        return self._size

    @property
    def parent(self) -> Int[Tensor, " N"]:
        """Parent of each node, -1 for a root."""
        return self._columns["parent"][: self._size]

    @property
    def x(self) -> Float[Tensor, "N *event"]:
        """States."""
        return self._columns["x"][: self._size]

    @property
    def v(self) -> Float[Tensor, "N *event"] | None:
        """Velocities, or None."""
        return self._columns["v"][: self._size] if "v" in self._columns else None

    @property
    def time(self) -> Float[Tensor, " N"]:
        """Time since the root."""
        return self._columns["time"][: self._size]

    @property
    def cost(self) -> Float[Tensor, " N"]:
        """Cost since the root."""
        return self._columns["cost"][: self._size]

    @property
    def depth(self) -> Int[Tensor, " N"]:
        """Edges since the root."""
        return self._columns["depth"][: self._size]

    def extend(
        self,
        parents: Int[Tensor, " n"],
        x: Float[Tensor, "n *event"],
        v: Float[Tensor, "n *event"] | None = None,
        *,
        duration: Float[Tensor, " n"] | float = 0.0,
        cost: Float[Tensor, " n"] | float = 0.0,
    ) -> Int[Tensor, " n"]:
        """Add n nodes, each on an edge from a node that exists.

        Args:
            parents: existing nodes; one may have several new children.
            x: states.
            v: velocities, given if and only if the tree has them.
            duration: of each edge, added to the parent's time.
            cost: of each edge, added to the parent's cost.

        Returns:
            the new nodes.

        Raises:
            ValueError: for a parent that does not exist, or velocities where the tree has none (or the reverse).
        """
        wrong = parents[(parents < 0) | (parents >= len(self))]
        if len(wrong):
            raise ValueError(f"node {int(wrong[0])} does not exist: the tree has nodes 0 to {len(self) - 1}")
        if (v is None) != (self.v is None):
            raise ValueError("the tree and its new nodes must both have velocities, or neither")
        rows = {
            "parent": parents,
            "x": x,
            "time": self.time[parents] + duration,
            "cost": self.cost[parents] + cost,
            "depth": self.depth[parents] + 1,
        }
        return self._append(rows if v is None else {**rows, "v": v})

    def graft(
        self, parents: Int[Tensor, " n"], path: Path, cost: Float[Tensor, "edges n"] | None = None
    ) -> Int[Tensor, "edges n"]:
        """Add the n branches of a rollout that began at `parents` as chains of F - 1 nodes; frame 0 is the parent.

        Args:
            parents: the nodes whose states the path started from.
            path: F frames of n particles.
            cost: of each edge; 0 unless given.

        Returns:
            the new nodes by frame and branch.

        Raises:
            ValueError: as `extend`.
        """
        tips, nodes = parents, []
        for j in range(1, len(path)):
            duration = float(path.times[j] - path.times[j - 1])
            edge = 0.0 if cost is None else cost[j - 1]
            v = None if path.v is None else path.v[j]
            tips = self.extend(tips, path.x[j], v, duration=duration, cost=edge)
            nodes.append(tips)
        return torch.stack(nodes) if nodes else parents.new_empty((0, len(parents)))

    def nearest(
        self, x: Float[Tensor, "m *event"], k: int = 1, metric: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)
    ) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m k"]]:
        """The k nodes nearest to each query, nearest first.

        Args:
            x: queries.
            k: neighbours.
            metric: states (n, *event) to features (n, f) whose Euclidean distance counts, for example cosines and
                sines of angles; the coordinates themselves unless given.

        Returns:
            (nodes, distances).

        Raises:
            ValueError: if the tree has fewer than k nodes, or k < 1.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} nearest of a tree of {len(self)} nodes")
        query = metric(x)
        best = query.new_empty((len(x), 0))
        nodes = torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
        for a in range(0, len(self), CHUNK):
            block = metric(self.x[a : a + CHUNK])
            d = torch.cdist(query, block, compute_mode="donot_use_mm_for_euclid_dist")
            ids = torch.arange(a, a + len(block), device=x.device).expand(len(x), -1)
            d, ids = torch.cat([best, d], 1), torch.cat([nodes, ids], 1)
            best, pick = d.topk(min(k, d.shape[1]), largest=False)
            nodes = ids.gather(1, pick)
        return nodes, best

    def backtrack(self, node: int) -> Int[Tensor, " nodes"]:
        """The nodes from the root to `node`, both included.

        Raises:
            ValueError: for a node that does not exist.
        """
        if not 0 <= node < len(self):
            raise ValueError(f"node {node} does not exist: the tree has nodes 0 to {len(self) - 1}")
        nodes = [node]
        while (above := int(self.parent[nodes[-1]])) >= 0:
            nodes.append(above)
        return torch.tensor(nodes[::-1], device=self.x.device)

    def path(self, node: int) -> Path:
        """The states from the root to `node` as a Path of one particle."""
        nodes = self.backtrack(node)
        x, v = self.x[nodes, None], None if self.v is None else self.v[nodes, None]
        final = Particles.at(x[-1], None if v is None else v[-1])
        return Path(self.time[nodes], x, v, None, None, torch.zeros_like(final.logw), final, 1)

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        return {name: column[: self._size].clone() for name, column in self._columns.items()}

    @classmethod
    def from_tensors(cls, columns: dict[str, Tensor]) -> Tree:
        """The inverse of `to_tensors`.

        Raises:
            ValueError: if a node's parent is not a lower row, so that the arrays are not a tree.
        """
        parent = columns["parent"]
        wrong = torch.nonzero((parent >= torch.arange(len(parent), device=parent.device)) | (parent < -1))[:, 0]
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(f"not a tree: the parent of node {i} is {int(parent[i])}, it must lie in -1 to {i - 1}")
        tree = cls(columns["x"], columns.get("v"))
        tree._columns = {name: column.clone() for name, column in columns.items()}
        return tree

    def _append(self, rows: dict[str, Tensor]) -> Tensor:
        first, size = self._size, self._size + len(rows["parent"])
        capacity = len(self._columns["parent"])
        if size > capacity:
            self._grow(max(size, 2 * capacity))
        for name, column in self._columns.items():
            column[first:size] = rows[name]
        self._size = size
        return torch.arange(first, size, device=rows["parent"].device)

    def _grow(self, capacity: int) -> None:
        for name, column in self._columns.items():
            wider = column.new_empty((capacity, *column.shape[1:]))
            wider[: self._size] = column[: self._size]
            self._columns[name] = wider
