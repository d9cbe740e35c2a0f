"""Combinations: the formula, its period, its unit."""

import math

import pytest
import torch

from molsamp.molecular.cvs import Angle, Combination, Coordinate, Distance, Torsion

X = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
XY = [Coordinate(0, "x"), Coordinate(1, "y")]


def test_the_formula():
    cv = Combination(XY, [2.0, -1.0], [0.5, 1.0], [2, 3])
    assert cv(X)[:, 0].tolist() == pytest.approx([2 * 0.25 - 1, 2 * 12.25 + 0.125])
    assert cv.gradient(X)[:, 0].tolist() == [[pytest.approx(2.0), pytest.approx(-3.0)], [-14.0, -0.75]]
    assert Combination(XY)(X)[:, 0].tolist() == [3.0, -2.5]
    at_offset = Combination(XY, offsets=[1.0, 2.0])
    assert at_offset.gradient(X)[0, 0].tolist() == [1, 1], "the slope of (x - a)^1 at x = a is 1"


def test_a_periodic_combination_stays_in_its_domain():
    cv = Combination(XY, [1.0, 4.0], domain=(-math.pi, math.pi))
    assert cv.period == (2 * math.pi,)
    assert cv(X)[:, 0].tolist() == pytest.approx([9 - 4 * math.pi + 2 * math.pi, -1.0])
    assert cv.gradient(X)[0, 0].tolist() == [1, 4]
    edge = Combination(XY[:1], domain=(0.0, 2.0))
    assert edge(torch.tensor([[0.0, 0], [2.0, 0], [-0.5, 0]]))[:, 0].tolist() == [0, 0, 1.5]


def test_units():
    phi, theta, d = Torsion((0, 1, 2, 3), "phi"), Angle((0, 1, 2), "theta"), Distance((0, 1), "d")
    assert Combination([phi, theta], [1, -1]).unit == ("rad",)
    assert Combination([phi, theta], [1, -1], powers=[1, 2]).unit == ("1",)
    assert Combination([phi, d]).unit == ("1",)


def test_errors():
    with pytest.raises(ValueError, match=r"CV 'c': powers: got \(1.0,\); allowed are 2 numbers, for \('x', 'y'\)"):
        Combination(XY, powers=[1], name="c")
    with pytest.raises(ValueError, match=r"CV 'c': coefficients: got \(1.0, inf\)"):
        Combination(XY, [1, math.inf], name="c")
    with pytest.raises(ValueError, match=r"CV 'c': domain: got \(1.0, 1.0\); allowed is \(lo, hi\) with lo < hi"):
        Combination(XY, domain=(1.0, 1.0), name="c")
