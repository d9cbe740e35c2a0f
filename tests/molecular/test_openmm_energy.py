"""OpenMMEnergy: units, platforms, faults, and the refusal of systems without a path density."""

import openmm
import pytest
import torch

from molsamp.molecular.openmm_energy import OpenMMEnergy, platforms, refuse_constraints


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


def test_cpu_platform_is_deterministic():
    energy = OpenMMEnergy(_spring(), "CPU", threads=2)
    assert torch.equal(energy.force(_stretched()), energy.force(_stretched()))
    context = energy._context
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
