"""Where diffusion samplers start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.noise import Noise


@dataclass(frozen=True)
class Point:
    """X_0 = 0: memoryless, so that the corrector is known (adjoint sampling)."""

    event: tuple[int, ...]

    def draw(self, noise: Noise, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n *event"]:
        """Zeros."""
        return torch.zeros(len(ids), *self.event, dtype=dtype)


@dataclass(frozen=True)
class Gaussian:
    """X_0 = L z with z standard normal; for molecules L has no part that moves the centre.

    Args:
        event: shape of a configuration.
        root: L, (A, A) over atoms, or a number.
    """

    event: tuple[int, ...]
    root: Float[Tensor, "A A"] | float

    def draw(self, noise: Noise, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n *event"]:
        """Independent draws."""
        z = noise.normal(0, ids, self.event, dtype)
        if isinstance(self.root, float):
            return self.root * z
        return torch.einsum("ab,nbd->nad", self.root.to(dtype), z)


def isotropic(event: tuple[int, ...], width: float) -> Gaussian:
    """Every coordinate of variance width^2, the centre of atoms at 0."""
    if len(event) == 1:
        return Gaussian(event, width)
    A = event[0]
    return Gaussian(event, width * (torch.eye(A, dtype=torch.float64) - 1.0 / A))


def harmonic(event: tuple[int, ...], bonds: Int[Tensor, "B 2"], width: float) -> Gaussian:
    """A chain of springs: exp(-sum over bonds of |x_i - x_j|^2 / (2 width^2)), bonded atoms start together.

    The precision is the graph's Laplacian L / width^2; its pseudo-inverse has no part that moves a connected molecule.

    Raises:
        ValueError: the bonds do not connect all atoms.
    """
    i, j = bonds.T
    L = torch.zeros(event[0], event[0], dtype=torch.float64)
    one = torch.ones(len(bonds), dtype=torch.float64)
    L.index_put_((i, j), -one, accumulate=True)
    L = L + L.T
    L = L - torch.diag(L.sum(1))
    l, Q = torch.linalg.eigh(L)
    if int((l < 1e-9).sum()) != 1:
        raise ValueError(f"source.kind = 'harmonic': the bonds leave {int((l < 1e-9).sum())} pieces, 1 is needed")
    return Gaussian(event, width * (Q[:, 1:] * l[1:].rsqrt()) @ Q[:, 1:].T)
