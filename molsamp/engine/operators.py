"""Linear measurements of a batch: y = A x with the adjoint, <A x, y> = <x, A^H y>, for pictures and molecules alike.

Inner products are <a, b> = sum conj(a) b. Where x is real and y complex (`Fourier` of a real picture), A is linear over
the reals and its adjoint is that of Re <a, b>: the real part of A^H y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from molsamp.engine.noise import Noise

Batch = Shaped[Tensor, "n *event"]
Image = Shaped[Tensor, "n *image"]


@runtime_checkable
class Operator(Protocol):
    """A linear map of every particle of a batch, from shape `domain` to shape `image`.

    `domain_complex` and `image_complex` tell which of the two are of complex numbers.
    """

    domain_complex: bool
    image_complex: bool

    @property
    def domain(self) -> tuple[int, ...]: ...
    @property
    def image(self) -> tuple[int, ...]: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...
    def adjoint(self, y: Tensor, /) -> Tensor: ...


def inner(a: Batch, b: Batch) -> Shaped[Tensor, " n"]:
    """sum conj(a) b of every particle."""
    return (a.conj() * b).flatten(1).sum(1)


def normal(A: Operator, x: Batch) -> Batch:
    """A^H A x."""
    return A.adjoint(A(x))


def check_adjoint(A: Operator, noise: Noise, *, draws: int = 4, tolerance: float = 1e-6) -> float:
    """The largest |<A x, y> - <x, A^H y>| / (|A x| |y|) over random x and y, float64.

    Raises:
        ValueError: if it exceeds the tolerance, or a shape is not what the operator says.
    """
    ids = torch.arange(draws)
    x = _gaussian(noise.child("domain"), ids, A.domain, A.domain_complex)
    y = _gaussian(noise.child("image"), ids, A.image, A.image_complex)
    Ax, AHy = A(x), A.adjoint(y)
    for name, a, wanted in (("A x", Ax, y), ("the adjoint's answer", AHy, x)):
        if a.shape != wanted.shape or a.is_complex() != wanted.is_complex():
            raise ValueError(
                f"{type(A).__name__}: {name} has shape {tuple(a.shape)} and {a.dtype}, "
                f"it must have {tuple(wanted.shape)} and {wanted.dtype}"
            )
    gap = inner(Ax, y) - inner(x, AHy)
    gap = gap.abs() if A.domain_complex else gap.real.abs() if gap.is_complex() else gap.abs()
    scale = (inner(Ax, Ax).abs() * inner(y, y).abs()).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    worst, at = (gap / scale).max(0)
    if not float(worst) <= tolerance:
        raise ValueError(
            f"{type(A).__name__}: the adjoint is wrong, <A x, y> = {complex(inner(Ax, y)[at]):.6g} but <x, A^H y> = "
            f"{complex(inner(x, AHy)[at]):.6g}, off by {float(worst):.2g} of |A x| |y|, allowed is {tolerance:g}"
        )
    return float(worst)


def _gaussian(noise: Noise, ids: Tensor, shape: tuple[int, ...], is_complex: bool) -> Tensor:
    if not is_complex:
        return noise.normal(0, ids, shape)
    return torch.complex(noise.normal(0, ids, shape), noise.normal(1, ids, shape))


@dataclass(frozen=True)
class Mask:
    """y = m x, entry by entry: what is seen of a picture (inpainting); A^T A is a projector for m of 0 and 1.

    Args:
        mask: m, (*event).
    """

    mask: Float[Tensor, "*event"] | Bool[Tensor, "*event"]
    domain_complex = image_complex = False

    @property
    def domain(self) -> tuple[int, ...]:
        """The shape of m."""
        return tuple(self.mask.shape)

    image = domain

    def __call__(self, x: Batch) -> Image:
        """m x."""
        return self.mask.to(x) * x

    adjoint = __call__


@dataclass(frozen=True)
class Selection:
    """y = some entries of x along its first axis: atoms of a molecule, frames of a film.

    Args:
        index: which, in any order, none twice.
        domain: shape of x, (entries, ..).

    Raises:
        ValueError: for an index outside the axis, or one that comes twice.
    """

    index: Int[Tensor, " m"]
    domain: tuple[int, ...]
    domain_complex = image_complex = False

    def __post_init__(self):
        size, index = self.domain[0], self.index
        if len(index.unique()) != len(index) or not bool(((index >= 0) & (index < size)).all()):
            raise ValueError(f"a selection of {size} entries has indices 0 .. {size - 1}, each once: {index.tolist()}")

    @property
    def image(self) -> tuple[int, ...]:
        """(chosen, ..)."""
        return (len(self.index), *self.domain[1:])

    def __call__(self, x: Batch) -> Image:
        """x[:, index]."""
        return x[:, self.index.to(x.device)]

    def adjoint(self, y: Image) -> Batch:
        """y put back, zeros elsewhere."""
        x = y.new_zeros(len(y), *self.domain)
        x[:, self.index.to(y.device)] = y
        return x


@dataclass(frozen=True)
class Matrix:
    """y = M x along the first axis of x: any small operator, and the map of atoms onto coarse-grained beads.

    Args:
        M: (rows, entries).
        domain: shape of x, (entries, ..).
    """

    M: Float[Tensor, "rows entries"]
    domain: tuple[int, ...]
    domain_complex = image_complex = False

    def __post_init__(self):
        if self.M.shape[1] != self.domain[0]:
            raise ValueError(f"a matrix of shape {tuple(self.M.shape)} does not act on x of shape {self.domain}")

    @property
    def image(self) -> tuple[int, ...]:
        """(rows, ..)."""
        return (len(self.M), *self.domain[1:])

    def __call__(self, x: Batch) -> Image:
        """sum_j M_ij x_j."""
        return torch.einsum("ij,nj...->ni...", self.M.to(x), x)

    def adjoint(self, y: Image) -> Batch:
        """sum_i M_ij y_i."""
        return torch.einsum("ij,ni...->nj...", self.M.to(y), y)


def beads(atoms: Sequence[Sequence[int]], masses: Float[Tensor, " A"], event: tuple[int, ...] | None = None) -> Matrix:
    """The coarse-graining map: bead b is the centre of mass of its atoms, y_b = sum_a m_a x_a / sum_a m_a.

    Args:
        atoms: indices of every bead's atoms.
        masses: of all atoms, Da.
        event: shape of x, (A, 3) unless given.

    Raises:
        ValueError: for a bead without atoms or an atom that there is not.
    """
    A = len(masses)
    M = torch.zeros(len(atoms), A, dtype=torch.float64)
    for b, group in enumerate(atoms):
        if not group or min(group) < 0 or max(group) >= A:
            raise ValueError(f"bead {b} has atoms {list(group)}, allowed are one or more of 0 .. {A - 1}")
        M[b, list(group)] = masses.double()[list(group)]
    return Matrix(M / M.sum(1, keepdim=True), (A, 3) if event is None else event)


@dataclass(frozen=True)
class Blur:
    """Circular convolution of the last two axes with a kernel, centred on its middle entry.

    Args:
        kernel: (odd height, odd width).
        domain: shape of a picture, (.., H, W).

    Raises:
        ValueError: for a kernel larger than the picture or without a middle.
    """

    kernel: Float[Tensor, "h w"]
    domain: tuple[int, ...]
    domain_complex = image_complex = False

    def __post_init__(self):
        (h, w), size = self.kernel.shape, self.domain[-2:]
        if h % 2 == 0 or w % 2 == 0 or h > size[0] or w > size[1]:
            raise ValueError(f"a kernel of {h} x {w} has no place on pictures of {size}; its sides are odd, not larger")

    @property
    def image(self) -> tuple[int, ...]:
        """The same."""
        return self.domain

    def _spectrum(self, x: Tensor) -> Tensor:
        h, w = self.kernel.shape
        full = x.new_zeros(self.domain[-2:])
        full[:h, :w] = self.kernel.to(x)
        return torch.fft.rfft2(full.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _times(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.domain[-2:])

    def __call__(self, x: Batch) -> Image:
        """k * x."""
        return self._times(x, self._spectrum(x))

    def adjoint(self, y: Image) -> Batch:
        """Correlation with k."""
        return self._times(y, self._spectrum(y).conj())


@dataclass(frozen=True)
class Downsample:
    """Means of blocks of factor x factor pixels (super-resolution).

    Args:
        factor: 1 or more.
        domain: shape of a picture, (.., H, W), both sides multiples of the factor.

    Raises:
        ValueError: for sides that are not.
    """

    factor: int
    domain: tuple[int, ...]
    domain_complex = image_complex = False

    def __post_init__(self):
        if self.factor < 1 or any(side % self.factor for side in self.domain[-2:]):
            raise ValueError(f"pictures of shape {self.domain} do not fall into blocks of {self.factor}")

    @property
    def image(self) -> tuple[int, ...]:
        """(.., H / factor, W / factor)."""
        return (*self.domain[:-2], *(side // self.factor for side in self.domain[-2:]))

    def __call__(self, x: Batch) -> Image:
        """Means of blocks."""
        k = self.factor
        return x.unflatten(-2, (-1, k)).unflatten(-1, (-1, k)).mean((-3, -1))

    def adjoint(self, y: Image) -> Batch:
        """Every mean, over its block, / factor^2."""
        k = self.factor
        return y.repeat_interleave(k, -2).repeat_interleave(k, -1) / k**2
