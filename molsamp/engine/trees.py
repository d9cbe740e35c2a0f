"""Trees of states in flat arrays: what planners, shooting moves and splitting methods grow.

Node i is a row: its parent (always a lower row, -1 for a root), its state x (and v), and time, cost and depth summed
along the edges from its root. Rows are only ever added; a node that is pruned stays, since others may hang from it, and
is marked. An edge may keep what lies along it, such as the controls that were applied and the states they led through:
a number of rows for each edge, all edges one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.columns import Columns
from molsamp.engine.state import Particles, Path

CHUNK = 1 << 14  # nodes compared with the queries at a time
ALONG = "along."  # begins the names, in a checkpoint, of what edges keep


class Tree:
    """One tree, or a forest where several roots are given.

    Args:
        x: states of the roots, (r, *event).
        v: their velocities, (r, *event), or None for a tree without.
        along: a row, (1, *shape), of each thing that edges keep along them, by name; its values do not matter.
    """

    def __init__(
        self,
        x: Float[Tensor, "r *event"],
        v: Float[Tensor, "r *event"] | None = None,
        along: dict[str, Tensor] | None = None,
    ):
        r = len(x)
        zeros = torch.zeros(r, dtype=torch.float64, device=x.device)
        rootless = torch.full((r,), -1, dtype=torch.int64, device=x.device)
        columns = {"parent": rootless, "x": x, "time": zeros, "cost": zeros, "depth": rootless + 1}
        if v is not None:
            columns["v"] = v
        self._along = None
        if along is not None:
            self._along = Columns({name: row[:0] for name, row in along.items()})
            columns |= {"end": rootless + 1, "active": rootless < 0}
        self._columns = Columns(columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def parent(self) -> Int[Tensor, " N"]:
        """Parent of each node, -1 for a root."""
        return self._columns["parent"]

    @property
    def x(self) -> Float[Tensor, "N *event"]:
        """States."""
        return self._columns["x"]

    @property
    def v(self) -> Float[Tensor, "N *event"] | None:
        """Velocities, or None."""
        return self._columns.get("v")

    @property
    def time(self) -> Float[Tensor, " N"]:
        """Time since the root."""
        return self._columns["time"]

    @property
    def cost(self) -> Float[Tensor, " N"]:
        """Cost since the root."""
        return self._columns["cost"]

    @property
    def depth(self) -> Int[Tensor, " N"]:
        """Edges since the root."""
        return self._columns["depth"]

    def extend(
        self,
        parents: Int[Tensor, " n"],
        x: Float[Tensor, "n *event"],
        v: Float[Tensor, "n *event"] | None = None,
        *,
        duration: Float[Tensor, " n"] | float = 0.0,
        cost: Float[Tensor, " n"] | float = 0.0,
        along: dict[str, Tensor] | None = None,
        steps: Int[Tensor, " n"] | None = None,
    ) -> Int[Tensor, " n"]:
        """Add n nodes, each on an edge from a node that exists.

        Args:
            parents: existing nodes; one may have several new children.
            x: states.
            v: velocities, given if and only if the tree has them.
            duration: of each edge, added to the parent's time.
            cost: of each edge, added to the parent's cost.
            along: what edges keep, (n, longest, *shape) by name, if and only if the tree was made with it.
            steps: how many rows of it belong to each edge.

        Returns:
            the new nodes.

        Raises:
            ValueError: for a parent that does not exist, or velocities or rows along edges where the tree has none
                (or the reverse).
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
        if v is not None:
            rows["v"] = v
        if (self._along is None) != (along is None or steps is None):
            raise ValueError("the tree and its new edges must both keep rows along them, or neither")
        if self._along is not None and along is not None and steps is not None:
            rows |= {"end": len(self._along) + steps.cumsum(0), "active": torch.ones_like(parents, dtype=torch.bool)}
            longest = next(iter(along.values())).shape[1]
            belongs = torch.arange(longest, device=x.device) < steps[:, None]
            self._along.append({name: values[belongs] for name, values in along.items()})
        first = len(self)
        self._columns.append(rows)
        return torch.arange(first, len(self), device=x.device)

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
        """The states from the root to `node` as a Path of one particle, whose weights are NaN: a node has none."""
        nodes = self.backtrack(node)
        x, v = self.x[nodes, None], None if self.v is None else self.v[nodes, None]
        final = Particles.at(x[-1], None if v is None else v[-1])
        none = torch.full_like(final.logw, torch.nan)
        return Path(self.time[nodes], x, v, None, None, none, final.evolve(logw=none), 1)

    @property
    def active(self) -> Bool[Tensor, " N"]:
        """Nodes that have not been pruned; of a tree that keeps rows along its edges."""
        return self._columns["active"]

    def prune(self, nodes: Int[Tensor, " n"]) -> None:
        """Mark nodes as no longer to be grown from."""
        self._columns["active"][nodes] = False

    def edge(self, node: int) -> dict[str, Tensor]:
        """What the edge to a node keeps along it, (steps, *shape) by name; nothing for a root."""
        return self.trace(torch.tensor([node]))

    def trace(self, nodes: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """What the edges to these nodes keep, one after the other; of `backtrack`'s nodes, the whole way from the root.

        Raises:
            ValueError: for a tree whose edges keep nothing.
        """
        if self._along is None:
            raise ValueError("the edges of this tree keep nothing along them")
        end = self._columns["end"]
        pieces = [slice(int(end[i - 1]) if i else 0, int(end[i])) for i in nodes.tolist()]
        return {name: torch.cat([self._along[name][piece] for piece in pieces]) for name in self._along.names}

    def to_tensors(self) -> dict[str, Tensor]:
        """The flat dict of tensors that checkpoints hold."""
        along = {} if self._along is None else self._along.to_tensors()
        return self._columns.to_tensors() | {ALONG + name: rows for name, rows in along.items()}

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
        along = {name.removeprefix(ALONG): rows for name, rows in columns.items() if name.startswith(ALONG)}
        tree._columns = Columns({name: rows for name, rows in columns.items() if not name.startswith(ALONG)})
        tree._along = Columns(along) if along else None
        return tree
