"""Measurements of a model's pictures by the names of the command line: operators, y from a file or simulated, solving.

inpaint             the middle square, of half the side, is hidden
blur[:WIDTH]        convolution with a Gaussian of this standard deviation, 1 pixel unless given
downsample[:FACTOR] means of blocks, 2 pixels a side unless given
radon[:VIEWS]       so many projections over half a turn, 8 unless given (computed tomography)
mri[:COILS]         every fourth column of the frequencies and the lowest three, seen by 4 coils unless given
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.guides import Guide
from molsamp.engine.noise import Noise
from molsamp.engine.operators import Blur, Downsample, Mask, Operator, normal
from molsamp.engine.scanners import Fourier, Radon
from molsamp.image.inverse import DDS, Bayes, Isotropic, Measured
from molsamp.schema import nearest

Mode = Literal["published", "bayes"]
USUAL = {"inpaint": None, "blur": 1.0, "downsample": 2.0, "radon": 8.0, "mri": 4.0}
"""Operators, and the number behind the colon where none is given."""
FORMS = "inpaint | blur[:WIDTH] | downsample[:FACTOR] | radon[:VIEWS] | mri[:COILS]"
MOST = 4096  # projections, coils: more are a slip of the finger


def operator(text: str, event: tuple[int, ...]) -> Operator:
    """The operator of a name, on pictures of this shape; CT and MRI on those of one channel.

    Raises:
        ValueError: an unknown name, a number that is none or not allowed, or a shape that the operator has no place on.
    """
    name, colon, number = text.strip().partition(":")
    if name not in USUAL:
        raise ValueError(f"--operator: '{name}' is unknown;{nearest(name, USUAL)} Allowed: {FORMS}")
    usual = USUAL[name]
    try:
        value = (usual or 0.0) if not colon else float(number)
    except ValueError:
        value = math.nan
    whole = name == "blur" or value == math.floor(value) if math.isfinite(value) else False
    if not whole or (usual is None and colon) or (usual is not None and not 0.0 < value <= MOST):
        raise ValueError(f"--operator: got '{text}'; allowed is {FORMS}, numbers above 0 and, but WIDTH, whole")
    if len(event) != 3 or (name in ("radon", "mri") and (event[0] != 1 or event[1] != event[2])):
        raise ValueError(
            f"--operator: {name} has no place on pictures of {' x '.join(map(str, event))}; "
            f"wanted is {'1 x SIDE x SIDE' if name in ('radon', 'mri') else 'CHANNELS x HEIGHT x WIDTH'}"
        )
    try:
        return _made(name, value, event)
    except ValueError as error:
        raise ValueError(f"--operator: {error}") from None


def _made(name: str, value: float, event: tuple[int, ...]) -> Operator:
    H, W = event[-2:]
    if name == "inpaint":
        mask = torch.ones(event, dtype=torch.float64)
        mask[:, H // 4 : H - H // 4, W // 4 : W - W // 4] = 0.0
        return Mask(mask)
    if name == "blur":
        reach = min(math.ceil(3.0 * value), (min(H, W) - 1) // 2)
        g = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / value) ** 2)
        g = g / g.sum()
        return Blur(g[:, None] * g, event)
    if name == "downsample":
        return Downsample(int(value), event)
    if name == "radon":
        lines = H + 2 * math.ceil(0.5 * (math.sqrt(2.0) - 1.0) * H)
        return Radon(H, torch.linspace(0.0, math.pi, int(value) + 1, dtype=torch.float64)[:-1], lines)
    column = torch.arange(W)
    seen = (column % 4 == 0) | (torch.minimum(column, W - column) <= 1)
    return Fourier(seen.double().expand(H, W).contiguous(), coils(int(value), H), real=True)  # type: ignore[return-value]


def coils(count: int, size: int) -> Tensor:
    """Sensitivities (count, size, size), complex: Gaussians about a circle, a phase each, of unit sum of squares."""
    at, middle = torch.arange(size, dtype=torch.float64), 0.5 * (size - 1)
    turn = 2.0 * math.pi * torch.arange(count, dtype=torch.float64)[:, None] / count
    down, right = (at - middle - size / math.sqrt(2.0) * f(turn) for f in (torch.sin, torch.cos))
    maps = torch.exp(-(down[:, :, None] ** 2 + right[:, None, :] ** 2) / (1.28 * size**2))
    phase = torch.exp(1j * torch.arange(count, dtype=torch.float64))[:, None, None]
    return phase * maps / maps.square().sum(0).sqrt()


def read(file: Path, A: Operator) -> Tensor:
    """y of one picture, (*image), or of several, (m, *image), from a .npy file; as (m, *image) in double precision.

    Raises:
        ValueError: no such file, no array, another shape or kind of number than the operator's, or numbers not finite.
    """
    try:
        y = np.load(file, allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"--measurement: {file}: no such file") from None
    except (ValueError, EOFError, OSError):
        raise ValueError(f"--measurement: {file} holds no array of numbers as numpy.save writes it") from None
    shape, wanted = tuple(getattr(y, "shape", ())), tuple(A.image)
    of_numbers = isinstance(y, np.ndarray) and y.dtype.kind in "fiuc"
    if not of_numbers or shape[len(shape) - len(wanted) :] != wanted or len(shape) - len(wanted) not in (0, 1):
        got = f"{' x '.join(map(str, shape)) or 'nothing'} of {getattr(y, 'dtype', 'several arrays')}"
        raise ValueError(
            f"--measurement: {file} holds {got}; this operator gives {' x '.join(map(str, wanted))}, or several of them"
        )
    if (y.dtype.kind == "c") != A.image_complex or 0 in shape:
        kind = "complex" if A.image_complex else "real"
        raise ValueError(f"--measurement: {file} holds {y.size} of {y.dtype}; the numbers must be {kind}, one or more")
    found = torch.as_tensor(y.astype(np.complex128 if A.image_complex else np.float64)).view(-1, *wanted)
    if not bool(torch.isfinite(torch.view_as_real(found) if A.image_complex else found).all()):
        raise ValueError(f"--measurement: {file} holds numbers that are not finite")
    return found


def simulated(A: Operator, truth: Float[Tensor, "m *event"], spread: float, noise: Noise) -> Tensor:
    """y = A x + spread n of true pictures, float64; where y is complex, n has real and imaginary part of variance 1."""
    ids, shape = torch.arange(len(truth)), tuple(A.image)
    z = noise.normal(0, ids, shape)
    n = torch.complex(z, noise.normal(1, ids, shape)) if A.image_complex else z
    return A(truth.double().reshape(len(truth), *A.domain)) + spread * seen(A) * n


def seen(A: Operator) -> Float[Tensor, "*image"]:
    """1 for what is measured, 0 for entries of y that say nothing: hidden pixels, frequencies that were left out."""
    if isinstance(A, (Mask, Fourier)):
        return A.mask.double().expand(A.image)
    return torch.ones(A.image, dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """Measurements of some pictures and how they are solved; population k takes measurement k, in turn.

    Args:
        operator: A.
        y: (m, *image).
        spread: standard deviation of the noise in y, of each of real and imaginary part.
        truth: (m, *event) where it is known.
        mode: of DDS: "published" or "bayes".
        weight: gamma of the published mode.
        inner: steps of conjugate gradients in the published mode.
        deviation: standard deviation of a pixel, for V of the mode "bayes" and for `alone`.
    """

    operator: Operator
    y: Tensor
    spread: float
    truth: Tensor | None = None
    mode: Mode = "published"
    weight: float = 1.0
    inner: int = 5
    deviation: float = 0.5

    def __post_init__(self):
        Measured(self.operator, self.y)  # sees that y fits and the adjoint is right

    def guide(self, k: int) -> Guide:
        """DDS in its mode, with the measurement of population k."""
        measured = Measured(self.operator, self.y[k % len(self.y)][None])
        if self.mode == "published":
            return DDS(measured, self.weight, self.inner)
        return Bayes(measured, self.spread, Isotropic(self.deviation))

    def alone(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "m *event"]:
        """Without a model: argmin |A x - y|^2 / spread^2 + |x - mean|^2 / deviation^2, by conjugate gradients."""
        A, ridge = self.operator, (self.spread / self.deviation) ** 2
        start = mean.double().reshape(1, *A.domain)
        back = A.adjoint(self.y - A(start))
        x, _ = conjugate_gradients(lambda v: normal(A, v) + ridge * v, back, steps=200, tolerance=1e-6)
        return (start + x).reshape(-1, *mean.shape)

    def misfit(self, x: Float[Tensor, "n *event"], of: Tensor) -> Float[Tensor, " n"]:
        """Root mean square of (A x - y) / spread over the numbers measured; 1 for the truth, on average.

        Args:
            x: pictures.
            of: which measurement each belongs to, (n,).
        """
        m = seen(self.operator)
        gap = m * (self.operator(x.double().reshape(len(x), *self.operator.domain)) - self.y[of])
        numbers = float(m.sum()) * (2 if gap.is_complex() else 1)
        return (gap.abs().square().flatten(1).sum(1) / numbers).sqrt() / self.spread


def psnr(x: Float[Tensor, "n *event"], truth: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """10 log10(4 / mean squared error) of pictures in [-1, 1], dB."""
    return 10.0 * torch.log10(4.0 / (x.double() - truth.double()).square().flatten(1).mean(1))
