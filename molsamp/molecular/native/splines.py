"""Bicubic splines as patches of polynomial coefficients: correction maps and grid biases."""

from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline


def patches(values: Float[np.ndarray, "*N"], periodic: tuple[bool, ...]) -> Float[np.ndarray, "R 4 4"]:
    """The twice continuously differentiable spline through a grid of nodes, patch by patch.

    E = (1, u, u^2, u^3) c (1, v, v^2, v^3)^T with u and v from 0 to 1 inside patch (i, j), row i n_2 + j. A periodic
    axis of N nodes has N patches, the last one back to node 0. An axis that is not has N - 1, and no curvature at its
    ends, so that its straight continuation is twice differentiable too.

    Args:
        values: at the nodes, (N1,) or (N1, N2), evenly spaced; (N1,) gives one patch along v, constant in v.
        periodic: one flag per axis.
    Raises:
        ValueError: not one or two axes, flags that do not fit, fewer than 2 nodes on an axis, or a value not finite.
    """
    if values.ndim not in (1, 2) or len(periodic) != values.ndim:
        raise ValueError(f"a grid has one or two axes and a flag for each, got {values.shape} and {periodic}")
    if min(values.shape) < 2:
        raise ValueError(f"a grid needs at least 2 nodes on each axis, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"grid values must be finite, got {values[~np.isfinite(values)][0]}")
    first = _pieces(values, periodic[0])  # 4, n1, N2
    if values.ndim == 1:
        c = np.zeros((first.shape[1], 4, 4))
        c[:, :, 0] = first.T
        return c
    both = _pieces(np.moveaxis(first, 2, 0), periodic[1])  # 4, n2, 4, n1: the spline is linear in its values
    return np.ascontiguousarray(both.transpose(3, 1, 2, 0)).reshape(-1, 4, 4)


def _pieces(values: Float[np.ndarray, "N *rest"], periodic: bool) -> Float[np.ndarray, "4 n *rest"]:
    """Coefficients of 1, u, u^2, u^3 of each piece of the cubic spline along the first axis."""
    slopes = np.tensordot(_slopes(len(values), periodic), values, 1)
    f, d = (np.concatenate([a, a[:1]]) if periodic else a for a in (values, slopes))
    rise = f[1:] - f[:-1]
    return np.stack([f[:-1], d[:-1], 3 * rise - 2 * d[:-1] - d[1:], d[:-1] + d[1:] - 2 * rise])


@cache
def _slopes(N: int, periodic: bool) -> Float[np.ndarray, "N N"]:
    """The slopes at the nodes of a cubic spline as a linear map of its values: a bias that grows is refitted often."""
    unit = np.eye(N)
    knots = np.concatenate([unit, unit[:1]]) if periodic else unit
    spline = CubicSpline(np.arange(len(knots)), knots, bc_type="periodic" if periodic else "natural")
    return spline(np.arange(N), 1)
