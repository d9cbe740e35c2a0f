"""Restraints: nothing inside, continuous at the edge, forces by finite differences; the hand of alanine."""

import pytest
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_walls_of_a_system_are_part_of_its_energy(tmp_path, dtype):
    """One-sided on x at 1.2, two-sided on y: k/2 (beyond)^2 more at points outside, nothing inside; 1e-6 relative."""
    text = (load("double-well").folder / "system.toml").read_text()
    (tmp_path / "system.toml").write_text(
        text.replace("[settings]", "[walls.x]\nhigh = 1.2\nstiffness = 40\n[walls.y]\nlow = -1\nhigh = 0.5\n[settings]")
    )
    walled, plain = load(tmp_path), load("double-well")
    x = torch.tensor([[1.0, 0.2], [-3.0, 0.0], [1.5, 0.2], [0.3, 0.7], [1.3, -1.1]], dtype=dtype)
    extra = walled.energy().energy(x) - plain.energy().energy(x)
    beyond = torch.tensor([0.0, 0.0, 20 * 0.3**2, 5e4 * 0.2**2, 20 * 0.1**2 + 5e4 * 0.1**2], dtype=dtype)
    assert torch.allclose(extra, beyond, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wall", ["", "low = 2\nhigh = 1", "high = 1\nstiffness = -1"])
def test_an_impossible_wall_is_refused(tmp_path, wall):
    text = (load("double-well").folder / "system.toml").read_text()
    (tmp_path / "system.toml").write_text(text.replace("[settings]", f"[walls.x]\n{wall}\n[settings]"))
    with pytest.raises(ValueError, match=r"walls\.x"):
        load(tmp_path)
