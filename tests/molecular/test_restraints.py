"""Restraints: nothing inside, continuous at the edge, forces by finite differences; the hand of alanine."""

import torch

from molsamp.engine.noise import Noise
from molsamp.molecular import load
from molsamp.molecular.restraints import chirality


def hand():
    system = load("alanine-dipeptide")
    elements = [a.element.symbol for a in system.topology.atoms()]
    bonds = [(b.atom1.index, b.atom2.index) for b in system.topology.bonds()]
    return system, chirality(elements, bonds, system.states["C5"].x)


def test_alanine_has_one_centre_and_the_mirror_image_is_out():
    """All states of the L form are inside with no force at all; their mirror images are out by 0.8 rad."""
    system, restraint = hand()
    x = torch.stack([s.x for s in system.states.values()])
    assert len(restraint.cv.names) == 2
    E, F = restraint.energy_force(x)
    assert not E.any() and not F.any() and not restraint.violated(x).any()
    mirror = x * torch.tensor([1.0, 1.0, -1.0], dtype=x.dtype)
    assert bool(restraint.violated(mirror).all()) and float(restraint.beyond(mirror).min()) > 0.5
    assert bool(restraint.violated(torch.full_like(x[:1], torch.nan)))


def test_the_force_is_the_slope_and_begins_at_zero():
    """Central differences of distorted frames, 1e-6 of the largest force; the energy just outside is quadratic."""
    system, restraint = hand()
    x = system.states["C5"].x + 0.04 * Noise(4).normal(0, torch.arange(20), (22, 3))
    E, F = restraint.energy_force(x)
    assert 5 < int((E > 0).sum()) < 20 and bool((F[E == 0] == 0).all())
    d = Noise(5).normal(0, torch.arange(20), (22, 3))
    h = 1e-6
    slope = (restraint.energy(x + h * d) - restraint.energy(x - h * d)) / (2 * h)
    assert torch.allclose(slope, -(F * d).flatten(1).sum(1), atol=1e-6 * float(F.abs().max()), rtol=1e-5)


def test_a_toy_or_glycine_has_no_hand():
    assert chirality(["C", "H", "H", "H", "H"], [(0, i) for i in range(1, 5)], torch.zeros(5, 3)) is None
