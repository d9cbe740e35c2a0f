"""PythonForce: a torch energy inside OpenMM gives OpenMM's own trajectories."""

import openmm
import pytest
import torch

from molsamp.molecular.cvs import Torsion
from molsamp.molecular.openmm_bias import Differentiated, python_force
from molsamp.molecular.openmm_energy import OpenMMEnergy
from molsamp.molecular.potentials import Harmonic
from molsamp.molecular.system import load

pytestmark = pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="OpenMM before 8.4 has no PythonForce")
PHI = (4, 6, 8, 14)


@pytest.fixture(scope="module")
def alanine():
    system = load("alanine-dipeptide")
    return system, system.states[system.settings.start].x


def biased():
    """V = 30 (1 - cos(phi - 1)), kJ/mol, as a function of phi that is smooth across the seam."""
    phi = Torsion(PHI)
    return Differentiated(lambda x: 30 * (1 - torch.cos(phi(x)[:, 0] - 1.0)), (22, 3))


def openmms_own():
    force = openmm.CustomTorsionForce("30*(1-cos(theta-1))")
    force.addTorsion(*PHI, [])
    return force


def trajectory(source, force, integrator, x, steps):
    source.addForce(force)
    context = openmm.Context(source, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x.numpy())
    context.setVelocitiesToTemperature(300, 3)
    energies = []
    for _ in range(steps):
        integrator.step(1)
        state = context.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    final = context.getState(positions=True).getPositions(asNumpy=True)._value
    return torch.tensor(final), torch.tensor(energies)


def test_force_and_energy_are_those_of_openmms_own_force(alanine):
    x = alanine[1] + 0.003 * torch.sin(torch.arange(4 * 66, dtype=torch.float64)).view(4, 22, 3)
    values = []
    for force in (python_force(biased()), openmms_own()):
        source = openmm.System()
        for _ in range(22):
            source.addParticle(1.0)
        source.addForce(force)
        values.append(OpenMMEnergy(source, "Reference").energy_force(x))
    (E, F), (E_own, F_own) = values
    assert E_own.abs().min() > 1 and torch.allclose(E, E_own, rtol=1e-10)
    assert torch.allclose(F, F_own, rtol=0, atol=1e-9 * F_own.abs().max().item())


@pytest.mark.parametrize("langevin", [False, True])
def test_trajectories_equal_those_with_openmms_own_force(alanine, langevin):
    """NVE and Langevin on Reference; 200 steps of 0.5 fs let rounding grow to 1e-9 nm or so. NVE keeps its energy."""
    system, x = alanine
    energy, runs = biased(), []
    for force in (python_force(energy), openmms_own()):
        if langevin:
            integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
            integrator.setRandomNumberSeed(7)
        else:
            integrator = openmm.VerletIntegrator(0.0005)
        runs.append(trajectory(system.forcefield_system(), force, integrator, x, 200))
    (a, total), (b, _) = runs
    assert (a - x).abs().max() > 0.005 and torch.allclose(a, b, rtol=0, atol=1e-7)
    assert energy.evaluations >= 200
    if not langevin:
        assert total.std() < 0.5, "kJ/mol; 10 % of the bias off would be ten times as much"


def test_a_native_energy_drives_openmm(alanine):
    system, x = alanine
    source = openmm.System()
    for mass in system.masses.tolist():
        source.addParticle(mass)
    native = system.energy("torch")
    a, _ = trajectory(source, python_force(native), openmm.VerletIntegrator(0.0005), x, 50)
    b, _ = trajectory(
        system.forcefield_system(), openmm.CustomExternalForce("0"), openmm.VerletIntegrator(0.0005), x, 50
    )
    assert torch.allclose(a, b, rtol=0, atol=1e-8)


def test_a_few_particles_only():
    source, force = openmm.System(), python_force(Harmonic(10.0, torch.ones(2, 3)))
    for _ in range(5):
        source.addParticle(1.0)
    force.setParticles([3, 1])
    source.addForce(force)
    F = OpenMMEnergy(source, "Reference").force(torch.zeros(1, 5, 3, dtype=torch.float64))
    assert torch.equal(F[0, [3, 1]], torch.full((2, 3), 10.0).double()) and (F[0, [0, 2, 4]] == 0).all()


def test_errors_inside_reach_openmm():
    source = openmm.System()
    source.addParticle(1.0)
    source.addForce(python_force(Harmonic(1.0, torch.zeros(2, 3))))  # two particles, and there is one
    context = openmm.Context(source, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[0, 0, 0]])
    with pytest.raises(openmm.OpenMMException, match=r"takes x of shape \(n, 2, 3\)"):
        context.getState(energy=True)


def test_differentiated_wants_one_energy_for_each_configuration():
    x = torch.arange(6.0).view(2, 1, 3)
    E, F = Differentiated(lambda y: (y**2).sum((1, 2)), (1, 3)).energy_force(x)
    assert torch.equal(E, (x**2).sum((1, 2))) and torch.equal(F, -2 * x) and not F.requires_grad
    with pytest.raises(ValueError, match=r"energies of shape \(\); allowed is \(2,\)"):
        Differentiated(lambda y: (y**2).sum(), (1, 3)).energy(x)
