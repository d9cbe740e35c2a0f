"""Nearest neighbours among points that come and go.

A forest of kd-trees whose sizes are BASE times the powers of two in the number of points (Bentley and Saxe 1980): when
points come, only the smallest trees are rebuilt, so that a point is moved O(log n) times in all; and a search costs
O(log^2 n). A point that goes is passed over, until those are half of all.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BASE = 32


class Neighbours:
    """Points with ids, to be searched by Euclidean distance.

    Args:
        dimension: coordinates of a point.
    """

    def __init__(self, dimension: int):
        self._points = np.empty((BASE, dimension))
        self._ids = np.empty(BASE, np.int64)
        self._boxes = np.empty((BASE, 2, dimension))
        self._alive = np.zeros(BASE, np.bool_)  # by id
        self._blocks = np.zeros(1, np.int64)
        self._size = self._gone = 0

    def __len__(self) -> int:
        return self._size - self._gone

    def add(self, points: Float[Tensor, "n f"], ids: Int[Tensor, " n"]) -> None:
        """Let points come.

        Args:
            points: coordinates.
            ids: a number >= 0 for each that no point has had before; tables by id are kept, so let them be dense.

        Raises:
            ValueError: for points of another dimension.
        """
        if points.shape[1] != self._points.shape[1]:
            raise ValueError(f"points of {points.shape[1]} coordinates, expected {self._points.shape[1]}")
        if not len(ids):
            return
        old, self._size = self._size, self._size + len(points)
        self._points, self._ids, self._boxes = (_room(a, self._size) for a in (self._points, self._ids, self._boxes))
        self._alive = _room(self._alive, int(ids.max()) + 1)
        self._points[old : self._size], self._ids[old : self._size] = points.numpy(), ids.numpy()
        self._alive[ids.numpy()] = True
        self._arrange()

    def discard(self, ids: Int[Tensor, " n"]) -> None:
        """Let points go."""
        leaving = np.unique(ids.numpy())
        self._gone += int(self._alive[leaving].sum())
        self._alive[leaving] = False
        if 2 * self._gone > self._size:
            keep = self._alive[self._ids[: self._size]]
            n = int(keep.sum())
            self._points[:n], self._ids[:n] = self._points[: self._size][keep], self._ids[: self._size][keep]
            self._size, self._gone, self._blocks = n, 0, np.zeros(1, np.int64)
            self._arrange()

    def nearest(self, queries: Float[Tensor, "m f"], k: int = 1) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m k"]]:
        """(ids, distances) of the k nearest points of each query, nearest first; the lower id where they are equal.

        Raises:
            ValueError: if there are fewer than k points, or k < 1.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} nearest of {len(self)} points")
        found, best = self._search(queries, k, -1.0, np.empty(0))
        return found, best.sqrt()

    def cheapest(self, queries: Float[Tensor, "m f"], radius: float, cost: Float[Tensor, " ids"]) -> Int[Tensor, " m"]:
        """Of the points within `radius` of each query the one of least cost, or the nearest where there is none.

        SST's selection of the best near node (Li, Littlefield and Bekris 2016, algorithm 7).

        Args:
            queries: where.
            radius: >= 0.
            cost: by id.

        Raises:
            ValueError: if there is no point.
        """
        if not len(self):
            raise ValueError("the cheapest of 0 points")
        return self._search(queries, 1, radius**2, cost.numpy())[0][:, 0]

    def _search(self, queries: Tensor, k: int, near: float, cost: np.ndarray) -> tuple[Tensor, Tensor]:
        from molsamp.engine import kd

        best, found = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        args = (self._points, self._ids, self._boxes, self._blocks, self._size, self._alive)
        kd.search(*args, queries.contiguous().numpy(), near, cost, best, found)
        return torch.from_numpy(found), torch.from_numpy(best)

    def _arrange(self) -> None:
        """Builds the trees that the present number of points asks for and that are not there yet."""
        from molsamp.engine import kd

        count, blocks = self._size // BASE, [0]
        for bit in reversed(range(count.bit_length())):
            if count >> bit & 1:
                blocks.append(blocks[-1] + (BASE << bit))
        same = 1
        while same < min(len(blocks), len(self._blocks)) and blocks[same] == self._blocks[same]:
            same += 1
        for a, b in pairwise(blocks[same - 1 :]):
            kd.build(self._points, self._ids, self._boxes, a, b)
        self._blocks = np.array(blocks, np.int64)


def _room(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a copy with at least twice its room and zeros at its end, where `size` does not fit."""
    if size <= len(array):
        return array
    wider = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), array.dtype)
    wider[: len(array)] = array
    return wider
