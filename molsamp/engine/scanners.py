"""What scanners measure of a picture: frequencies seen by several coils (MRI), integrals along lines (CT).

They are `operators.Operator`s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from molsamp.engine.operators import Batch, Image, Operator


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
