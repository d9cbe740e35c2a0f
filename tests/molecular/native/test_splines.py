"""Bicubic patches against scipy: nodes, derivatives, smoothness across patches, ends and seams."""

from itertools import product

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from scipy.interpolate import CubicSpline

from molsamp.molecular.native.splines import patches

FLAGS = list(product((True, False), repeat=2))


def at(c, u, v, du=0, dv=0):
    """The derivative d^(du + dv) E / du^du dv^dv of one patch (4, 4)."""
    U, V = (np.array([Polynomial(p).deriv(d)(z) for p in np.eye(4)]) for z, d in ((u, du), (v, dv)))
    return float(U @ c @ V)


def table(values, periodic):
    """Patches as (n1, n2, 4, 4)."""
    n1, n2 = (N if wraps else N - 1 for N, wraps in zip(values.shape, periodic, strict=True))
    return patches(values, periodic).reshape(n1, n2, 4, 4)


def spline(values, periodic):
    nodes = np.concatenate([values, values[:1]]) if periodic else values
    return CubicSpline(np.arange(len(nodes)), nodes, bc_type="periodic" if periodic else "natural")


@pytest.mark.parametrize("periodic", [True, False])
def test_one_axis_is_scipys_spline_and_constant_in_v(periodic):
    values = np.random.default_rng(0).normal(size=7)
    c = patches(values, (periodic,))
    assert c.shape == (7 if periodic else 6, 4, 4) and (c[:, :, 1:] == 0).all()
    for i, u, d in product(range(len(c)), (0.0, 0.3, 1.0), range(3)):
        assert at(c[i], u, 0.7, d) == pytest.approx(float(spline(values, periodic)(i + u, d)), abs=1e-12)


@pytest.mark.parametrize("periodic", FLAGS)
def test_values_and_derivatives_at_the_nodes(periodic):
    """d1 and d2 are those of scipy's splines along the grid lines, d12 the spline along axis 1 of d2."""
    values = np.random.default_rng(1).normal(size=(5, 6))
    c = table(values, periodic)
    d1 = spline(values, periodic[0])(np.arange(5), 1)
    d2 = spline(values.T, periodic[1])(np.arange(6), 1).T
    d12 = spline(d2, periodic[0])(np.arange(5), 1)
    for i, j in product(range(c.shape[0]), range(c.shape[1])):
        assert at(c[i, j], 0, 0) == pytest.approx(values[i, j], abs=1e-13)
        assert at(c[i, j], 0, 0, 1, 0) == pytest.approx(d1[i, j], abs=1e-12)
        assert at(c[i, j], 0, 0, 0, 1) == pytest.approx(d2[i, j], abs=1e-12)
        assert at(c[i, j], 0, 0, 1, 1) == pytest.approx(d12[i, j], abs=1e-12)


@pytest.mark.parametrize("periodic", FLAGS)
def test_twice_differentiable_across_patches_seams_and_ends(periodic):
    """All derivatives up to the second in each variable agree from both sides; beyond an end there is no curvature."""
    c = table(np.random.default_rng(2).normal(size=(4, 5)), periodic)
    n1, n2 = c.shape[:2]
    for i, j, z, du, dv in product(range(n1), range(n2), (0.0, 0.4, 1.0), range(3), range(3)):
        if i + 1 < n1 or periodic[0]:
            assert at(c[i, j], 1, z, du, dv) == pytest.approx(at(c[(i + 1) % n1, j], 0, z, du, dv), abs=1e-11)
        elif du == 2:
            assert at(c[i, j], 1, z, du, dv) == pytest.approx(0, abs=1e-12)
        if j + 1 < n2 or periodic[1]:
            assert at(c[i, j], z, 1, du, dv) == pytest.approx(at(c[i, (j + 1) % n2], z, 0, du, dv), abs=1e-11)
        elif dv == 2:
            assert at(c[i, j], z, 1, du, dv) == pytest.approx(0, abs=1e-12)


def test_error_falls_with_the_fourth_power_of_the_spacing():
    """A smooth periodic function: 16 times less error at half the spacing."""
    errors = []
    for N in (16, 32):
        a = 2 * np.pi * np.arange(N) / N
        c = table(np.sin(a)[:, None] * np.exp(np.cos(a)), (True, True))
        middles = a + np.pi / N
        exact = np.sin(middles)[:, None] * np.exp(np.cos(middles))
        errors.append(max(abs(at(c[i, j], 0.5, 0.5) - exact[i, j]) for i, j in product(range(N), range(N))))
    assert 13 < errors[0] / errors[1] < 20 and errors[1] < 1e-4


def test_two_nodes_are_enough():
    assert patches(np.array([1.0, 3.0]), (False,))[0, :, 0] == pytest.approx([1, 2, 0, 0], abs=1e-14)
    c = patches(np.array([1.0, 3.0]), (True,))
    assert at(c[0], 0.5, 0) == pytest.approx(2) and at(c[0], 0, 0, 1) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("values", "periodic", "words"),
    [
        (np.zeros((3, 3, 3)), (True, True, True), "one or two axes"),
        (np.zeros((3, 3)), (True,), "a flag for each"),
        (np.zeros((3, 1)), (True, False), "at least 2 nodes"),
        (np.array([0.0, np.nan, 1.0]), (True,), "finite, got nan"),
    ],
)
def test_unfit_grids_are_refused(values, periodic, words):
    with pytest.raises(ValueError, match=words):
        patches(values, periodic)
