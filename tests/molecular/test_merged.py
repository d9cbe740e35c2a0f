"""MergedEnergy: the forces of one molecule in the company of its copies, for every force that can be merged."""

import numpy as np
import openmm
import pytest
import torch

from molsamp.molecular.merged import MergedEnergy, merge
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.system import load

A = 9


def positions(n):
    x = torch.tensor(np.random.default_rng(1).standard_normal((n, A, 3))) * 0.02
    zigzag = 0.13 * torch.arange(A, dtype=torch.float64)
    return x + torch.stack([zigzag, 0.08 * torch.cos(2.0 * zigzag / 0.13), 0.05 * torch.sin(zigzag * 9)], dim=-1)


def custom(force, parameters, terms):
    for name in parameters:
        (getattr(force, "addPerBondParameter", None) or getattr(force, "addPerAngleParameter", None)
         or getattr(force, "addPerTorsionParameter", None) or force.addPerParticleParameter)(name)  # fmt: skip
    for add, *arguments in terms:
        getattr(force, add)(*arguments)
    return force


def filled(force, add, *terms):
    for term in terms:
        getattr(force, add)(*term)
    return force


def cmap():
    force = openmm.CMAPTorsionForce()
    for size in (4, 6):
        force.addMap(size, np.random.default_rng(size).standard_normal(size**2).tolist())
    force.addTorsion(1, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(0, 3, 4, 5, 6, 4, 5, 6, 7)
    return force


def charges():
    force = openmm.NonbondedForce()
    for i in range(A):
        force.addParticle(0.3 * (i % 3 - 1), 0.2 + 0.01 * i, 0.1 * ((i + 3) % 5))
    force.addException(0, 1, 0, 1, 0)  # excluded
    force.addException(3, 2, 0.05, 0.25, 0.4)  # scaled, the larger index first
    return force


def nonbonded(*groups):
    force = custom(
        openmm.CustomNonbondedForce("depth*sqrt(w1*w2)/(r+table(r))"),
        ["w"],
        [("addParticle", [1.0 + i]) for i in range(A)],
    )
    force.addGlobalParameter("depth", 3.0)
    force.addTabulatedFunction("table", openmm.Continuous1DFunction([0.1, 0.5, 0.2, 0.3], 0, 3))
    force.addExclusion(0, 1)
    force.addExclusion(2, 3)  # the same as in `charges`, which the CPU platform insists on
    for pair in groups:
        force.addInteractionGroup(*pair)
    return force


def swung():
    return custom(
        openmm.CustomCompoundBondForce(3, "k*(distance(p1,p2)-angle(p1,p2,p3))^2"),
        ["k"],
        [("addBond", [0, 4, 7], [20.0]), ("addBond", [1, 2, 3], [30.0])],
    )


FORCES = {
    "bond": lambda: filled(openmm.HarmonicBondForce(), "addBond", (0, 1, 0.1, 900.0), (4, 2, 0.2, 500.0)),
    "angle": lambda: filled(openmm.HarmonicAngleForce(), "addAngle", (0, 1, 2, 1.9, 80.0), (3, 5, 4, 2.0, 70.0)),
    "torsion": lambda: filled(openmm.PeriodicTorsionForce(), "addTorsion", (0, 1, 2, 3, 3, 0.5, 4.0)),
    "rb": lambda: filled(openmm.RBTorsionForce(), "addTorsion", (2, 3, 4, 5, 1.0, 2.0, -3.0, 4.0, -5.0, 6.0)),
    "cmap": cmap,
    "nonbonded": charges,
    "custom bond": lambda: custom(openmm.CustomBondForce("k*(r-0.1)^4"), ["k"], [("addBond", 0, 5, [9.0])]),
    "custom angle": lambda: custom(openmm.CustomAngleForce("k*theta^3"), ["k"], [("addAngle", 0, 5, 6, [9.0])]),
    "custom torsion": lambda: custom(
        openmm.CustomTorsionForce("k*cos(theta-1)"), ["k"], [("addTorsion", 0, 5, 6, 7, [9.0])]
    ),
    "compound": swung,
    "external": lambda: custom(openmm.CustomExternalForce("k*x*(y+z)"), ["k"], [("addParticle", 8, [5.0])]),
    "custom nonbonded": nonbonded,
    "custom nonbonded in groups": lambda: nonbonded(([0, 1, 2], [5, 6]), ([3], [7, 8])),
}


def system_of(*forces):
    system = openmm.System()
    for i in range(A):
        system.addParticle(12.0 + i)
    for force in forces:
        system.addForce(force)
    return system


@pytest.mark.parametrize("kind", FORCES)
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_each_force_is_copied_exactly(kind, platform):
    """Five rows in blocks of three; the tolerance is float64 rounding on Reference, float32 on CPU."""
    system, x = system_of(FORCES[kind]()), positions(5)
    alone = OpenMMEnergy(system, platform).force(x)
    merged = MergedEnergy(system, 3, platform)
    error = (merged.force(x) - alone).norm(dim=(1, 2)) / alone.norm(dim=(1, 2))
    assert alone.abs().max() > 0.1 and error.max() < (1e-12 if platform == "Reference" else 1e-5)
    assert merged.evaluations == 5


def test_a_whole_molecule_and_its_energy():
    system = load("alanine-dipeptide")
    x0 = system.states[system.settings.start].x
    x = x0 + 0.003 * torch.tensor(np.random.default_rng(0).standard_normal((7, *x0.shape)))
    alone, merged = system.energy("openmm:Reference"), MergedEnergy(system.forcefield_system(), 4, "Reference")
    E, F = alone.energy_force(x)
    assert torch.allclose(merged.force(x), F, rtol=0, atol=1e-9 * F.abs().max().item())
    assert torch.equal(merged.energy(x), E) and merged.evaluations == 14
    assert merged.tier == "openmm-Reference-merged" and merged.force(x.float()).dtype == torch.float32


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_the_same_bits_in_any_slot_and_company(platform):
    merged, x = MergedEnergy(system_of(*(make() for make in FORCES.values())), 4, platform), positions(6)
    F = merged.force(x)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    assert torch.equal(merged.force(x[order]), F[order])
    assert torch.equal(merged.force(x[2:3]), F[2:3])


def test_a_bad_row_is_nan_alone():
    """Atoms 0 and 5 in one place: the custom bond's force is 0/0 there, and the energy of the others is finite."""
    merged, x = MergedEnergy(system_of(*(make() for make in FORCES.values())), 3, "Reference"), positions(7)
    good = merged.force(x)
    x[1, 0, 0], x[4, 5] = torch.inf, x[4, 0]
    F = merged.force(x)
    keep = [0, 2, 3, 5, 6]
    assert F[[1, 4]].isnan().all()
    assert torch.allclose(F[keep], good[keep], rtol=1e-12, atol=1e-9)
    assert merged.force(x[1:2]).isnan().all() and len(merged.force(x[:0])) == 0


def ewald():
    force = charges()
    force.setNonbondedMethod(force.PME)
    return force


def with_offsets():
    force = charges()
    force.addGlobalParameter("scale", 1.0)
    force.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0)
    return force


@pytest.mark.parametrize(
    ("force", "message"),
    [
        (openmm.GBSAOBCForce, r"force 1 \(GBSAOBCForce\) is not among what is copied exactly: HarmonicBondForce, "),
        (openmm.CustomGBForce, r"force 1 \(CustomGBForce\) .*use OpenMMEnergy"),
        (ewald, r"force 1 \(NonbondedForce\) has a cutoff or Ewald sum, allowed is NoCutoff; use OpenMMEnergy"),
        (with_offsets, r"force 1 \(NonbondedForce\) has parameter offsets"),
    ],
)
def test_what_couples_the_copies_is_refused_by_name(force, message):
    with pytest.raises(ValueError, match=message):
        merge(system_of(FORCES["bond"](), force()), 2)


def test_copies_virtual_sites_and_shapes():
    with pytest.raises(ValueError, match="copies = 0; allowed is 1 or more"):
        merge(system_of(), 0)
    system = system_of(openmm.CMMotionRemover())
    assert merge(system, 3).getNumParticles() == 3 * A and merge(system, 3).getNumForces() == 0
    assert merge(system, 2).getParticleMass(A + 1)._value == 13.0
    system.setParticleMass(2, 0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match="particle 2 is a virtual site"):
        merge(system, 2)
    with pytest.raises(ValueError, match="MergedEnergy takes x of shape"):
        MergedEnergy(system_of(FORCES["bond"]()), 2).force(torch.zeros(2, 3, 3))
