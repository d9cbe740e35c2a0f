"""Molecules that many tests of the native tiers share."""

import pytest
from material import molecule


@pytest.fixture(scope="module")
def vacuum():
    return molecule("alanine-dipeptide", 64)


@pytest.fixture(scope="module")
def gbn2():
    return molecule("alanine-dipeptide-gbn2", 40)
