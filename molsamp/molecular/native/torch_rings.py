"""Rings: every pair of A atoms once, without gathers and scatters.

Put the atoms on a circle. Pair (k, i) joins atom i, its head, to atom i + k + 1 (mod A), its tail; the shells
k = 0 .. A // 2 - 1 meet every pair once. (With A even, the last shell meets its pairs twice: those with i >= A / 2 are
ghosts, whose parameters must contribute nothing.) A ring is a value of each atom written once round the circle and half
on again; the tails of all pairs are a strided view of it. A sum over pairs onto their heads is a sum over shells, and
onto their tails it is the same sum of a sheared view, if the rows are padded with zeros.

At 138 atoms and 16 replicas in float32, differences and force sums of all pairs take 160 us this way, 1800 us with
index_select and index_add; on a GPU they are free of atomic additions, so the same bytes come out each time.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.torch_tape import Tape


def partners(A: int) -> tuple[np.ndarray, np.ndarray]:
    """The tails of all pairs, (K, A) with K = A // 2, and which pairs are ghosts."""
    tails = (np.arange(A) + np.arange(1, A // 2 + 1)[:, None]) % max(A, 1)
    ghosts = np.zeros(tails.shape, bool)
    if A % 2 == 0:
        ghosts[-1:, A // 2 :] = True
    return tails, ghosts


def placement(A: int, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shell and head of the pairs i < j, the ghosts never."""
    far = j - i > A // 2
    return np.where(far, A - j + i, j - i) - 1, np.where(far, j, i)


@dataclass(frozen=True)
class Chunk:
    """The shells first <= k < stop."""

    first: int
    stop: int

    def of(self, table: Tensor) -> Tensor:
        """Their rows of a table (..., K, A, 1)."""
        return table[..., self.first : self.stop, :, :]


class Geometry(NamedTuple):
    """Of the pairs in a chunk: d = x_head - x_tail (3, shells, A, n), r^2, and 1/r with room for two higher powers."""

    d: Tensor
    r2: Tensor
    powers: Tensor  # (3, shells, A, n)

    @property
    def ir(self) -> Tensor:
        """1/r, (shells, A, n)."""
        return self.powers[0]


class Rings:
    """Views and sums on one tape, and the two padded buffers that sums onto tails need.

    Args:
        most: number of shells in the largest chunk.
    """

    def __init__(self, tape: Tape, most: int):
        self.tape, self.A = tape, tape.atoms
        self.vectors = tape.zeros(3, most, self.A + most)
        self.scalars = tape.zeros(2, most, self.A + most)

    def new(self) -> Tensor:
        """A ring, (A + A // 2, n): write its first A rows, then `close` it."""
        return self.tape.new(self.A + self.A // 2)

    def close(self, ring: Tensor) -> None:
        """Repeats the first half of the circle at the end."""
        self.tape.do(ring[..., self.A :, :].copy_, ring[..., : self.A // 2, :])

    def heads(self, ring: Tensor) -> Tensor:
        """(..., 1, A, n), the same for every shell."""
        return ring[..., None, : self.A, :]

    def tails(self, ring: Tensor, chunk: Chunk) -> Tensor:
        """(..., shells, A, n)."""
        *lead, row, one = ring.stride()
        size = *ring.shape[:-2], chunk.stop - chunk.first, self.A, ring.shape[-1]
        return ring.as_strided(size, (*lead, row, row, one), (chunk.first + 1) * row)

    def rows(self, padded: Tensor, chunk: Chunk) -> Tensor:
        """The pairs in a padded buffer, (..., shells, A, n)."""
        return padded[..., : chunk.stop - chunk.first, : self.A, :]

    def collect(self, heads: Tensor, tails: Tensor, chunk: Chunk, out: Tensor, sign: int = 1) -> None:
        """out (..., A, n) += sums of `heads` onto heads + sign x sums of `tails` onto tails, both padded buffers.

        The first chunk overwrites out.
        """
        do, C, A = self.tape.do, chunk.stop - chunk.first, self.A
        *lead, shell, row, one = tails.stride()
        size = *tails.shape[:-3], C, A + C - 1, tails.shape[-1]
        # column m of the sheared view meets the pairs with k - first + i = m, whose tail is m + first + 1 (mod A)
        sheared = tails.as_strided(size, (*lead, shell - row, row, one), tails.storage_offset())
        turn = A - chunk.first - 1
        with self.tape.scratch():
            onto_heads = out if chunk.first == 0 else self.tape.new(*out.shape[:-1])
            onto_tails = self.tape.new(*size[:-3], size[-2])
            do(torch.sum, self.rows(heads, chunk), -3, out=onto_heads)
            do(torch.sum, sheared, -3, out=onto_tails)
            if chunk.first:
                do(out.add_, onto_heads)
            do(out[..., chunk.first + 1 :, :].add_, onto_tails[..., :turn, :], alpha=sign)
            do(out[..., : chunk.stop, :].add_, onto_tails[..., turn:, :], alpha=sign)
