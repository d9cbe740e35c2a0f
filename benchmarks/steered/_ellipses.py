"""Phantoms of ellipses: Shepp and Logan's head, and others drawn at random that are not it.

Pictures are (1, 1, side, side) on [-1, 1]^2, their values 2 density - 1; a pixel is the mean over 4 x 4 points.

Source of the table: Shepp, Logan, "The Fourier reconstruction of a head section", IEEE Trans. Nucl. Sci. 21, 21 (1974),
table 1; densities of higher contrast from Toft, "The Radon transform", PhD thesis, Technical University of Denmark
(1996), appendix B.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molsamp.engine import Noise

SHEPP_LOGAN = (  # density, half axes along x and y, centre x and y, turned by degrees
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)
FINER = 4


def drawn(table: Tensor, side: int) -> Tensor:
    """The sum of ellipses of each table (n, ellipses, 6), densities cut to [0, 1], as pictures (n, 1, side, side)."""
    fine = side * FINER
    at = (torch.arange(fine, dtype=torch.float64) + 0.5) * (2.0 / fine) - 1.0
    x, y = at, -at[:, None]
    pictures = []
    for ellipses in table.double():
        density = torch.zeros(fine, fine, dtype=torch.float64)
        for rho, a, b, x0, y0, turn in ellipses:
            cos, sin = torch.deg2rad(turn).cos(), torch.deg2rad(turn).sin()
            u, v = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
            density += rho * ((u / a) ** 2 + (v / b) ** 2 <= 1.0)
        pictures.append(density.clamp(0.0, 1.0).view(side, FINER, side, FINER).mean((1, 3)))
    return 2.0 * torch.stack(pictures)[:, None] - 1.0


def head(side: int) -> Tensor:
    """Shepp and Logan's phantom."""
    return drawn(torch.tensor([SHEPP_LOGAN], dtype=torch.float64), side)


def others(n: int, side: int, noise: Noise, ellipses: int = 12) -> Tensor:
    """n phantoms of a body with a rim of any width and smaller ellipses in it, denser or thinner: none is the head."""
    ids = torch.arange(n)
    rho, a, b, x0, y0, turn = noise.uniform(0, ids, (ellipses, 6)).unbind(-1)
    size = 0.03 * (0.5 / 0.03) ** rho.roll(1, 1)
    inside = [rho - 0.5, size * (0.5 + a), size * (0.5 + b), 1.2 * (x0 - 0.5), 1.2 * (y0 - 0.5), 180.0 * turn]
    table = torch.stack(inside, -1)
    body = torch.stack(
        [0.2 + 0.8 * rho, 0.6 + 0.35 * a, 0.6 + 0.35 * b, 0.1 * (x0 - 0.5), 0.1 * (y0 - 0.5), 90.0 * turn], -1
    )[:, 0]
    core = body.clone()
    core[:, 0] *= -0.9 * rho[:, 1]
    core[:, 1:3] -= 0.02 + 0.15 * a[:, 1:2]
    table[:, 0], table[:, 1] = body, core
    return drawn(table, side)
