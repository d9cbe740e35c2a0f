"""Estimates against scipy and textbook values, and the coverage of their intervals."""

import math

import pytest
import torch
from scipy import stats

from molsamp.engine import Noise
from molsamp.engine.estimates import Estimate, mean, student95, wilson


def test_wilson_is_scipys():
    for k, n in ((0, 10), (3, 10), (10, 10), (500, 512)):
        low, high = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n).interval == pytest.approx((low, high), abs=1e-12)
    assert wilson(0, 0).interval == (0.0, 1.0)


def test_student_is_scipys():
    for nu in (1, 2, 3, 5, 10, 63, 1000):
        assert student95(nu) == pytest.approx(stats.t.ppf(0.975, nu), rel=2e-3)


def test_the_interval_of_a_mean_covers():
    """95 % intervals of 8 normals, 4000 runs: coverage within 0.95 +- 0.0125 (false alarm 3e-4); z for t gives 0.91."""
    z = Noise(0).normal(0, torch.arange(4000), (8,))
    covered = sum(low <= 0 <= high for low, high in (mean(row).interval for row in z)) / 4000
    assert abs(covered - 0.95) < 0.0125


def test_no_data_and_one_datum_say_so():
    assert math.isnan(mean(torch.zeros(0)).value)
    assert mean(torch.ones(1)).interval == (-math.inf, math.inf)
    assert mean(torch.zeros(0)).as_dict()["value"] is None


def test_it_prints_with_its_unit():
    assert str(Estimate(1.5, (1.0, 2.0), "kJ/mol")) == "1.5 [1, 2] kJ/mol"
