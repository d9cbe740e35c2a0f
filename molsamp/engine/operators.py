"""Linear measurements of a batch: y = A x with the adjoint, <A x, y> = <x, A^H y>, for pictures and molecules alike.

Inner products are <a, b> = sum conj(a) b. Where x is real and y complex (`Fourier` of a real picture), A is linear over
the reals and its adjoint is that of Re <a, b>: the real part of A^H y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float, Int, Shaped
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


@dataclass(frozen=True)
class Fourier:
    """Multi-coil magnetic resonance: y_c = m FFT(s_c x), unitary, over the last two axes.

    Args:
        mask: m, which frequencies are measured, zero frequency first, (H, W).
        maps: s_c, sensitivities of the coils, (C, H, W).
        real: whether pictures are of real numbers; the adjoint then gives the real part.
    """

    mask: Float[Tensor, "H W"] | Bool[Tensor, "H W"]
    maps: Complex[Tensor, "C H W"]
    real: bool = False
    image_complex = True

    @property
    def domain_complex(self) -> bool:  # type: ignore[override]
        """Unless real."""
        return not self.real

    @property
    def domain(self) -> tuple[int, ...]:
        """(H, W)."""
        return tuple(self.mask.shape)

    @property
    def image(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.maps.shape)

    def __call__(self, x: Batch) -> Image:
        """m FFT(s_c x)."""
        dtype = torch.promote_types(x.dtype, torch.complex64)
        y = torch.fft.fft2(self.maps.to(x.device, dtype) * x[:, None], norm="ortho")
        return self.mask.to(y) * y

    def adjoint(self, y: Image) -> Batch:
        """sum_c conj(s_c) IFFT(m y_c)."""
        x = (self.maps.to(y).conj() * torch.fft.ifft2(self.mask.to(y) * y, norm="ortho")).sum(1)
        return x.real if self.real else x


class Radon:
    """Integrals of a square picture along parallel lines (computed tomography), as a sparse matrix and its transpose.

    Line (angle, s) is {s (cos, sin) + l (-sin, cos)} about the picture's middle, in pixels; the picture is interpolated
    bilinearly at steps of one pixel along it, nothing lies outside.

    Args:
        size: pixels a side.
        angles: radians, one projection each.
        lines: of a projection, one pixel apart; `size` unless given.
    """

    domain_complex = image_complex = False

    def __init__(self, size: int, angles: Float[Tensor, " views"], lines: int | None = None):
        self.size, self.angles, self.lines = size, angles.double(), size if lines is None else lines
        self.domain, self.image = (size, size), (len(angles), self.lines)
        self.matrix = self._build()
        self._copies: dict[tuple[torch.device, torch.dtype, bool], Tensor] = {}

    def _build(self) -> Tensor:
        half, reach = 0.5 * (self.size - 1), math.ceil(self.size / math.sqrt(2.0))
        s = torch.arange(self.lines, dtype=torch.float64) - 0.5 * (self.lines - 1)
        l = torch.arange(-reach, reach + 1, dtype=torch.float64)
        cos, sin = self.angles.cos()[:, None, None], self.angles.sin()[:, None, None]
        column = half + s[:, None] * cos - l * sin  # (views, lines, points)
        row = half + s[:, None] * sin + l * cos
        ray = torch.arange(row[..., 0].numel()).view(*row.shape[:2], 1).expand_as(row)
        at, weights = [], []
        for down in (0, 1):
            for right in (0, 1):
                i, j = row.floor() + down, column.floor() + right
                w = (1.0 - (row - i).abs()) * (1.0 - (column - j).abs())
                inside = (i >= 0) & (i < self.size) & (j >= 0) & (j < self.size) & (w > 0.0)
                at.append(torch.stack([ray[inside], (i * self.size + j)[inside].long()]))
                weights.append(w[inside])
        shape = (len(self.angles) * self.lines, self.size**2)
        return torch.sparse_coo_tensor(torch.cat(at, 1), torch.cat(weights), shape, check_invariants=True).coalesce()

    def _on(self, x: Tensor, transposed: bool) -> Tensor:
        key = (x.device, x.dtype, transposed)
        if key not in self._copies:
            self._copies[key] = (self.matrix.t() if transposed else self.matrix).to(x).coalesce()
        return self._copies[key]

    def __call__(self, x: Batch) -> Image:
        """Line integrals, in units of a pixel."""
        return (self._on(x, False) @ x.flatten(1).T).T.reshape(len(x), *self.image)

    def adjoint(self, y: Image) -> Batch:
        """Back-projection without a filter: the transpose."""
        return (self._on(y, True) @ y.flatten(1).T).T.reshape(len(y), *self.domain)


@dataclass(frozen=True)
class Channels:
    """An operator on complex pictures, for models whose first two channels are the real and the imaginary part.

    Args:
        of: what acts on Re + i Im.

    Raises:
        ValueError: for an operator on real pictures.
    """

    of: Operator
    domain_complex = False

    def __post_init__(self):
        if not self.of.domain_complex:
            raise ValueError(f"{type(self.of).__name__} acts on real pictures, they have no imaginary channel")

    @property
    def image_complex(self) -> bool:  # type: ignore[override]
        """As the operator's."""
        return self.of.image_complex

    @property
    def domain(self) -> tuple[int, ...]:
        """(2, ..)."""
        return (2, *self.of.domain)

    @property
    def image(self) -> tuple[int, ...]:
        """The operator's."""
        return self.of.image

    def __call__(self, x: Batch) -> Image:
        """A (x_0 + i x_1)."""
        return self.of(torch.complex(x[:, 0], x[:, 1]))

    def adjoint(self, y: Image) -> Batch:
        """Real and imaginary part of A^H y."""
        x = self.of.adjoint(y)
        return torch.stack([x.real, x.imag], 1)
