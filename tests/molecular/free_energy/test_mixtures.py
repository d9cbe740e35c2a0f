"""Gaussian mixtures: free energies are logarithms of known weights, in two dimensions and in fifty."""

import math

import pytest

from molsamp.molecular import load
from molsamp.molecular.free_energy import make
from molsamp.molecular.free_energy.settings import method_settings


@pytest.mark.slow
@pytest.mark.parametrize("method", ["metadynamics", "wt-asbs"])
@pytest.mark.parametrize("name", ["gaussians-2d", "gaussians-50d"])
def test_free_energies_are_logarithms_of_weights(name, method):
    """Every difference within 1.6 times its 95 % interval (3.1 sigma) and 0.05 kT, what the timestep does to widths.

    Eight differences a method, so a true program fails one time in 60; the seed is fixed. Weights exchanged between two
    modes (0.7 kT and more) fail.
    """
    system = load(name)
    job = make(system, method, method_settings(method, system.methods), seed=1).fit()
    weights = system.energy().weights
    found = list(job.differences().values())
    assert len(found) == len(weights) - 1
    for w, estimate in zip(weights[1:], found, strict=True):
        exact = -system.kT * math.log(w / weights[0])
        half = estimate.interval[1] - estimate.value
        assert abs(estimate.value - exact) < 1.6 * half + 0.05 * system.kT and half < 0.5 * system.kT, estimate


def test_wt_asbs_takes_what_a_system_has_for_asbs():
    methods = load("gaussians-2d").methods
    assert methods["wt-asbs"] == {**methods["asbs"], "height": 0.3, "width": [0.2, 0.2], "factor": 6.0}
