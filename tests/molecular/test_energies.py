"""The Energy contract: shapes, counting, sums."""

import pytest
import torch

from molsamp.molecular.energies import Sum
from molsamp.molecular.potentials import DoubleWell, Harmonic, MuellerBrown


def test_counts_configurations_whichever_method_is_called():
    energy, x = DoubleWell(), torch.zeros(5, 2)
    energy.energy_force(x)
    energy.energy(x)
    energy.force(x[:2])
    assert energy.evaluations == 12
    assert DoubleWell().evaluations == 0  # the counter is the object's, not the class's


def test_a_sum_adds_energies_and_forces_and_counts_once():
    well, spring = DoubleWell(), Harmonic(3.0, torch.tensor([0.5, -1.0]))
    both = well + spring + MuellerBrown()
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    E, F = both.energy_force(x)
    assert both.evaluations == 7 and well.evaluations == spring.evaluations == 0
    parts = [term.energy_force(x) for term in (well, spring, MuellerBrown())]
    assert torch.allclose(E, sum(e for e, _ in parts), rtol=1e-14)
    assert torch.allclose(F, sum(f for _, f in parts), rtol=1e-14)
    assert isinstance(both, Sum) and len(both.terms) == 3
    assert both.tier == "analytic + analytic + analytic"


def test_wrong_shapes_are_refused_with_the_shape_wanted():
    with pytest.raises(ValueError, match=r"DoubleWell takes x of shape \(n, 2\), got \(4, 3\)"):
        DoubleWell().energy(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="one event shape"):
        DoubleWell() + Harmonic(1.0, torch.zeros(3))


def test_an_empty_batch_is_a_batch():
    E, F = DoubleWell().energy_force(torch.zeros(0, 2))
    assert E.shape == (0,) and F.shape == (0, 2)
