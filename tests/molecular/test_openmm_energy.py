"""OpenMMEnergy: units, platforms, faults, and the refusal of systems without a path density."""

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from molsamp.molecular.openmm_energy import (
    OpenMMEnergy,
    context_properties,
    deserialise,
    platforms,
    refuse_constraints,
)
from molsamp.molecular.system import load


def _spring(atoms=2):
    """One bond, E = 500 (r - 0.15)^2 kJ/mol, and bystanders."""
    system, force = openmm.System(), openmm.HarmonicBondForce()
    for _ in range(atoms):
        system.addParticle(12.0)
    force.addBond(0, 1, 0.15, 1000.0)
    system.addForce(force)
    return system


def _stretched(n=5):
    x = torch.zeros(n, 2, 3, dtype=torch.float64)
    x[:, 1, 0] = 0.15 + 0.01 * torch.arange(n, dtype=torch.float64)
    return x


@pytest.mark.parametrize("platform", ["auto", "Reference", "CPU"])
def test_energy_and_force_of_a_spring_in_kj_per_mol_and_nm(platform):
    energy, x = OpenMMEnergy(_spring(), platform), _stretched()
    E, F = energy.energy_force(x)
    stretch = x[:, 1, 0] - 0.15
    assert torch.allclose(E, 500 * stretch**2, atol=1e-5)
    assert torch.allclose(F[:, 1, 0], -1000 * stretch, atol=1e-3)
    assert torch.allclose(F.sum(1), torch.zeros(5, 3, dtype=torch.float64), atol=1e-3)
    assert energy.evaluations == 5 and energy.event == (2, 3)


def test_dtype_follows_the_positions():
    energy = OpenMMEnergy(_spring(), "Reference")
    E, F = energy.energy_force(_stretched().float())
    assert E.dtype == F.dtype == torch.float32


def test_auto_picks_by_size_and_says_what_ran():
    if "CUDA" in platforms():
        pytest.skip("auto takes CUDA here")
    assert OpenMMEnergy(_spring()).tier == "openmm-Reference"
    assert OpenMMEnergy(_spring(200)).tier == "openmm-CPU"
    assert OpenMMEnergy(load("alanine-dipeptide-gbn2").forcefield_system()).tier == "openmm-CPU"


def test_cpu_platform_is_deterministic():
    energy = OpenMMEnergy(_spring(), "CPU", threads=2)
    assert torch.equal(energy.force(_stretched()), energy.force(_stretched()))
    context = energy._rows.context
    assert context.getPlatform().getPropertyValue(context, "DeterministicForces") == "true"
    assert context.getPlatform().getPropertyValue(context, "Threads") == "2"


def test_an_unknown_platform_lists_those_that_are():
    with pytest.raises(ValueError, match=r"'Abacus' is not available; allowed: auto, .*Reference"):
        OpenMMEnergy(_spring(), "Abacus")


def test_a_refused_configuration_is_nan_in_its_own_row():
    energy, x = OpenMMEnergy(_spring(), "Reference"), _stretched()
    good = energy.energy_force(x)
    bad = x.clone()
    bad[1, 0, 2], bad[3, 1, 0] = torch.nan, torch.inf
    E, F = energy.energy_force(bad)
    keep = [0, 2, 4]
    assert E[[1, 3]].isnan().all() and F[[1, 3]].isnan().all()
    assert torch.equal(E[keep], good[0][keep]) and torch.equal(F[keep], good[1][keep])


@pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="OpenMM before 8.4 has no force that can raise")
def test_an_error_inside_openmm_is_nan_in_its_own_row():
    def fragile(state):
        x = state.getPositions(asNumpy=True)._value
        if x[0, 0] > 1:
            raise ArithmeticError("too far")
        return x.sum(), -1 - 0 * x

    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(openmm.PythonForce(fragile))
    E = OpenMMEnergy(system, "Reference").energy(torch.tensor([[[0.5, 0, 0]], [[2.0, 0, 0]], [[0.25, 0, 0]]]))
    assert E[[0, 2]].tolist() == [0.5, 0.25] and E[1].isnan()


def test_later_changes_of_the_system_do_not_reach_the_energy():
    system = _spring()
    energy = OpenMMEnergy(system, "Reference")
    system.getForce(0).setBondParameters(0, 0, 1, 0.15, 5.0)
    assert energy.energy(_stretched())[1].item() == pytest.approx(500 * 0.01**2)


def test_constraints_and_motion_removers_have_no_path_density():
    refuse_constraints(_spring())
    constrained = _spring()
    constrained.addConstraint(0, 1, 0.15)
    with pytest.raises(ValueError, match=r"1 constraints .*constraints=None, rigidWater=False"):
        refuse_constraints(constrained)
    still = _spring()
    still.addForce(openmm.CMMotionRemover())
    with pytest.raises(ValueError, match=r"force 1 \(CMMotionRemover\).*removeCMMotion=False"):
        refuse_constraints(still)


def _water(model="tip3pfb", width=1.5, cutoff=0.7):
    """A box of rigid water with PME: constraints, and virtual sites where the model has four points."""
    field = app.ForceField(f"amber14/{model}.xml")
    modeller = app.Modeller(app.Topology(), [])
    points = "tip4pew" if model.startswith("tip4p") else "tip3p"
    modeller.addSolvent(field, model=points, boxSize=openmm.Vec3(width, width, width) * unit.nanometer)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=cutoff * unit.nanometer, removeCMMotion=False
    )
    return system, torch.tensor(np.array(modeller.positions.value_in_unit(unit.nanometer)))


@pytest.fixture(scope="module")
def water():
    return _water()


def _shaken(x, n, by=0.002):
    return x + by * torch.tensor(np.random.default_rng(0).standard_normal((n, *x.shape)))


def _equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_explicit_water_has_the_force_of_its_energy(water):
    """PME, rigid water: central differences at h = 1e-5 nm, where E ~ 1e4 kJ/mol leaves 1e-7 of noise."""
    system, x = water
    assert system.getNumConstraints() > 0
    energy, i, axis, h = OpenMMEnergy(system, "Reference"), 4, 1, 1e-5
    step = torch.zeros_like(x)
    step[i, axis] = h
    E, F = energy.energy_force(torch.stack([x, x + step, x - step]))
    assert F[0, i, axis].item() == pytest.approx((E[2] - E[1]).item() / (2 * h), rel=1e-4, abs=0.1)


def test_four_point_water_moves_its_virtual_sites_along():
    """E is a function of the atoms that have mass; x of a virtual site is overruled and feels no force of its own."""
    system, x = _water("tip4pew")
    energy, h = OpenMMEnergy(system, "Reference"), 1e-5
    site = next(i for i in range(len(x)) if system.isVirtualSite(i))
    step, lost = torch.zeros_like(x), x.clone()
    step[site - 3, 2], lost[site] = h, x[site] + 0.1
    E, F = energy.energy_force(torch.stack([x, x + step, x - step, lost]))
    assert F[0, site - 3, 2].item() == pytest.approx((E[2] - E[1]).item() / (2 * h), rel=1e-4, abs=0.1)
    assert E[3] == E[0] and torch.equal(F[3], F[0]) and (F[0, site] == 0).all()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_the_same_bits_in_any_company_and_for_any_number_of_workers(water, platform):
    """Without a fresh Context the CPU platform's neighbour list of the row before leaks into the sums of the next."""
    system, x = water
    x = _shaken(x, 5)
    whole = OpenMMEnergy(system, platform).energy_force(x)
    alone = [OpenMMEnergy(system, platform).energy_force(row[None]) for row in x]
    assert _equal(whole, [torch.cat(parts) for parts in zip(*alone, strict=True)])
    shared = OpenMMEnergy(system, platform, workers=2)
    assert _equal(whole, shared.energy_force(x)) and shared.evaluations == 5
    assert _equal([part[[3, 0]] for part in whole], shared.energy_force(x[[3, 0]]))


@pytest.mark.parametrize("name", ["alanine-dipeptide", "alanine-dipeptide-gbn2"])
def test_workers_carry_custom_forces_and_nan_rows(name):
    """GBn2 is a CustomGBForce with tables. Two atoms in one place make E NaN, and in vacuum F of these two alone."""
    system = load(name)
    x = _shaken(system.states[system.settings.start].x, 6)
    x[1, 3] = torch.nan
    x[4, 1] = x[4, 0]
    one = OpenMMEnergy(system.forcefield_system(), "Reference").energy_force(x)
    two = OpenMMEnergy(system.forcefield_system(), "Reference", workers=2).energy_force(x)
    assert all(part[[1, 4]].isnan().all() and part[[0, 2, 3, 5]].isfinite().all() for part in one)
    assert _equal([part.nan_to_num() for part in one], [part.nan_to_num() for part in two])


def test_a_box_too_small_for_its_cutoff_is_refused_with_the_numbers(water):
    system = openmm.XmlSerializer.clone(water[0])
    system.setDefaultPeriodicBoxVectors(openmm.Vec3(1.5, 0, 0), openmm.Vec3(0, 1.3, 0), openmm.Vec3(0, 0, 1.5))
    with pytest.raises(ValueError, match=r"\(NonbondedForce\): .*1.5 x 1.3 x 1.5 nm .*cutoff 0.7 nm; .* 1.4 nm"):
        OpenMMEnergy(system)


def test_what_openmm_refuses_is_a_value_error():
    system = _spring()
    force = openmm.NonbondedForce()
    force.addParticle(0, 1, 0)  # one of two
    system.addForce(force)
    for workers in (1, 2):
        with pytest.raises(ValueError, match="OpenMM refuses this System on platform Reference: Nonbonded"):
            OpenMMEnergy(system, "Reference", workers=workers)


def test_each_platform_gets_the_properties_it_knows():
    """Names as in OpenMM's manual: no GPU is here to be asked."""
    cuda = ("DeviceIndex", "Precision", "UseCpuPme", "TempDirectory", "DisablePmeStream", "DeterministicForces")
    assert context_properties(cuda, precision="double", device=1) == {
        "DeterministicForces": "true",
        "Precision": "double",
        "DeviceIndex": "1",
    }
    opencl = ("DeviceIndex", "OpenCLPlatformIndex", "Precision", "UseCpuPme", "DisablePmeStream")
    assert context_properties(opencl) == {"Precision": "mixed"}
    assert context_properties(openmm.Platform.getPlatformByName("Reference").getPropertyNames()) == {}
    with pytest.raises(ValueError, match="'half' is unknown; allowed: single, mixed, double"):
        OpenMMEnergy(_spring(), precision="half")


@pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="OpenMM before 8.4")
def test_code_of_this_process_is_not_sent_to_workers_nor_read_from_a_file():
    system = _spring()
    system.addForce(openmm.PythonForce(_nothing))
    with pytest.raises(ValueError, match=r"force 1 \(PythonForce\).*workers = 1"):
        OpenMMEnergy(system, workers=2)
    with pytest.raises(ValueError, match="PythonForce, which is code that reading would run"):
        deserialise(openmm.XmlSerializer.serialize(system))
    with pytest.raises(ValueError, match="no XML"):
        deserialise("<System")
    assert deserialise(openmm.XmlSerializer.serialize(_spring())).getNumParticles() == 2


def _nothing(state):
    return 0.0, np.zeros((2, 3))
