"""The fused loop samples the canonical ensemble at 0.5, 1 and 2 fs: kinetic, potential and configurational, torsions.

Alanine dipeptide in vacuum, flexible, float32 lanes, LangevinMiddle at 5/ps: 2048 replicas from C5, 10 ps to forget
it, then 8 frames 1 ps apart; at 290 K and 310 K. Every statistic takes a replica as one independent block.
v is recorded right after the noise: there its marginal law is Maxwell's in a harmonic well at any step, as that of x
is Boltzmann's; half a kick later, at the time of x, it is not. Measured at 310 K:

    step    kinetic T, K: H, heavy          configurational T: H, heavy     slope of log p_310/p_290
    0.5 fs  309.6 +- 0.6, 309.9 +- 0.6      311.0 +- 0.8, 309.2 +- 0.8      0.0 errors off
    1 fs    311.0 +- 0.6, 309.7 +- 0.6      311.3 +- 0.8, 310.2 +- 0.8      1.4
    2 fs    311.4 +- 0.6, 309.3 +- 0.6      314.6 +- 0.8, 309.6 +- 0.8      0.1
"""

from functools import cache

import numpy as np
import openmm
import pytest
import torch

from molsamp.engine import LangevinMiddle, Noise, Particles, Underdamped, rollout
from molsamp.molecular import NativeEnergy, load
from molsamp.molecular.system import kB

pytestmark = pytest.mark.slow
pv = pytest.importorskip("physical_validation")
N, EQUILIBRATION, FRAMES, BETWEEN, FRICTION = 2048, 10.0, 8, 1.0, 5.0
every_step = pytest.mark.parametrize("h", [0.0005, 0.001, 0.002], ids=["0.5 fs", "1 fs", "2 fs"])


@cache
def molecule():
    return load("alanine-dipeptide")


@cache
def energy(dtype=torch.float64):
    return NativeEnergy.from_openmm(molecule().forcefield_system(), dtype, "lanes")


def masses():
    return molecule().masses[:, None]


def times(length, h):
    return [h * k for k in range(round(length / h) + 1)]


@cache
def ensemble(h, T):
    """(x, v) of FRAMES frames of N replicas, (FRAMES, N, A, 3), float64."""
    dyn = Underdamped(energy(torch.float32), masses(), kB * T, FRICTION)
    noise = Noise(round(1e6 * h) + round(T))
    x = molecule().states["C5"].x.float().expand(N, -1, -1).contiguous()
    v = (dyn.thermal_speed() * noise.child("v").normal(0, torch.arange(N), (22, 3))).float()
    at = Particles.at(x, v)
    warm = rollout(dyn, LangevinMiddle(), at, times(EQUILIBRATION, h), noise=noise, save="last").final
    path = rollout(
        dyn, LangevinMiddle(), warm, times(FRAMES * BETWEEN, h), noise=noise.child("sample"), save=round(BETWEEN / h)
    )
    assert not path.final.status.any()
    return path.x[1:].double(), path.v[1:].double()


def potential(x):
    return energy().energy(x.flatten(0, 1)).view(x.shape[:2])


def simulation(h, T, frames=slice(None)):
    """For physical_validation: frames of all replicas behind one another."""
    x, v = (a[frames] for a in ensemble(h, T))
    kinetic, U = 0.5 * (masses() * v**2).sum((2, 3)), potential(x)
    flat = [a.flatten().numpy() for a in (kinetic, U, kinetic + U)]
    return pv.data.SimulationData(
        units=pv.data.UnitData.units("GROMACS"),
        dt=h,
        system=pv.data.SystemData(
            natoms=22, nconstraints=0, ndof_reduction_tra=0, ndof_reduction_rot=0, mass=masses()[:, 0].numpy(),
            molecule_idx=np.array([0]), nconstraints_per_molecule=np.array([0]),
        ),
        ensemble=pv.data.EnsembleData("NVT", natoms=22, volume=1.0, temperature=T),
        observables=pv.data.ObservableData(kinetic_energy=flat[0], potential_energy=flat[1], total_energy=flat[2]),
        trajectory=pv.data.TrajectoryData(x.flatten(0, 1).numpy(), v.flatten(0, 1).numpy()),
    )  # fmt: skip


@every_step
def test_kinetic_energy_has_its_gamma_distribution(h):
    """Kolmogorov-Smirnov on 2048 independent replicas above p = 1e-4; mean and width of all frames within 4 errors.

    The same data are not those of a temperature 4 % off.
    """
    last = simulation(h, 310.0, slice(-1, None))
    assert pv.kinetic_energy.distribution(last, strict=True, verbosity=0, data_is_uncorrelated=True) > 1e-4
    every = simulation(h, 310.0)
    off = pv.kinetic_energy.distribution(every, verbosity=0, data_is_uncorrelated=True, bootstrap_seed=1)
    assert max(off) < 4.0
    last.ensemble = pv.data.EnsembleData("NVT", natoms=22, volume=1.0, temperature=298.0)
    assert pv.kinetic_energy.distribution(last, strict=True, verbosity=0, data_is_uncorrelated=True) < 1e-6


@every_step
def test_kinetic_energy_is_shared_equally(h):
    """Translation, rotation and internal motion (five groups): p-values above 1e-4; and hydrogens and heavy atoms.

    Half a kick later, at the time of x, hydrogens would be colder: at 2 fs by far.
    """
    last = simulation(h, 310.0, slice(-1, None))
    values = pv.kinetic_energy.equipartition(last, strict=True, verbosity=0, data_is_uncorrelated=True)
    assert min(values) > 1e-4
    x, v = ensemble(h, 310.0)
    kick = 0.5 * h * energy().force(x.flatten(0, 1)).view_as(x) / masses()
    T, later = ((masses() * a**2).mean(3) / kB for a in (v, v + kick))  # frames, replicas, atoms
    light = molecule().masses < 1.1
    for part in (light, ~light):
        mean, error = blocks(T[:, :, part].mean(2))
        assert abs(mean - 310.0) < 4.0 * error < 3.0
    cooling, error = blocks((T - later)[:, :, light].mean(2))
    assert cooling > 10.0 * error and (h < 0.002 or cooling > 20.0)


@every_step
def test_potential_energy_of_two_temperatures(h):
    """log p_310(U)/p_290(U) is linear in U with slope 1/k290 - 1/k310: within 4 of its standard errors (6e-5)."""
    low, high = simulation(h, 290.0), simulation(h, 310.0)
    off = pv.ensemble.check(low, high, verbosity=0, data_is_uncorrelated=True)
    assert max(map(abs, off)) < 4.0
    high.ensemble = pv.data.EnsembleData("NVT", natoms=22, volume=1.0, temperature=320.0)
    assert max(map(abs, pv.ensemble.check(low, high, verbosity=0, data_is_uncorrelated=True))) > 8.0


def blocks(a):
    """Mean of a (frames, replicas) and its standard error, a replica one block."""
    each = a.mean(0)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def laplacian(x, size=1e-5):
    """-dF_i/dx_i of every coordinate by central differences in float64, the shape of x (n, A, 3), kJ/mol/nm^2."""
    out = torch.empty_like(x)
    for a in range(x.shape[1]):
        for axis in range(3):
            shift = torch.zeros_like(x[0])
            shift[a, axis] = size
            out[:, a, axis] = -(energy().force(x + shift) - energy().force(x - shift))[:, a, axis] / (2.0 * size)
    return out


@every_step
def test_configurational_temperature(h):
    """<F_i^2> = kT <-dF_i/dx_i> for every coordinate, integrating by parts; summed over hydrogens and heavy atoms.

    4 standard errors and 1.5 K at 1 fs for the step, as h^2: the wells of hydrogens are not quite harmonic.
    """
    x, _ = ensemble(h, 310.0)
    F2 = energy().force(x.flatten(0, 1)).square().view_as(x).sum(3)
    H = laplacian(x.flatten(0, 1)).view_as(x).sum(3)
    light = molecule().masses < 1.1
    for part in (light, ~light):
        f, g = F2[:, :, part].sum(2), H[:, :, part].sum(2)
        T = float(f.mean() / g.mean()) / kB
        error = blocks(f - kB * T * g)[1] / float(kB * g.mean())
        assert abs(T - 310.0) < 4.0 * error + 1.5 * (h / 0.001) ** 2 and error < 2.0


def openmm_angles(h, T, replicas=160):
    """(phi, psi) (FRAMES, replicas, 2) by OpenMM's own LangevinMiddleIntegrator, same protocol."""
    integrator = openmm.LangevinMiddleIntegrator(T, FRICTION, h)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule().forcefield_system(), integrator, platform)
    frames = np.empty((FRAMES, replicas, 22, 3))
    for r in range(replicas):
        context.setPositions(molecule().states["C5"].x.numpy())
        context.setVelocitiesToTemperature(T, r + 1)
        integrator.step(round(EQUILIBRATION / h))
        for frame in frames:
            integrator.step(round(BETWEEN / h))
            frame[r] = context.getState(positions=True).getPositions(asNumpy=True)._value
    return angles(torch.from_numpy(frames))


def angles(x):
    return molecule().values(x.flatten(0, 1)).view(*x.shape[:2], 2)


def populations(values, bins):
    """Share of each bin of (phi, psi), (bins phi, bins psi) flattened, a replica: (replicas, bins)."""
    cell = ((values + torch.pi) / (2 * torch.pi) * torch.tensor(bins)).long()
    index = cell[..., 0].clamp(0, bins[0] - 1) * bins[1] + cell[..., 1].clamp(0, bins[1] - 1)
    return torch.nn.functional.one_hot(index, bins[0] * bins[1]).double().mean(0)


def deviations(a, b):
    """z-scores of the bins that hold 2 % or more, of both marginals and of the plane."""
    scores = []
    for bins in ((24, 1), (1, 24), (6, 6)):
        p, q = populations(a, bins), populations(b, bins)
        error = (p.var(0) / len(p) + q.var(0) / len(q)).sqrt()
        filled = 0.5 * (p.mean(0) + q.mean(0)) > 0.02
        scores.append(((p.mean(0) - q.mean(0)) / error)[filled])
    return torch.cat(scores)


@every_step
def test_torsions_are_those_of_openmm(h):
    """22 bins of phi, psi and both: z below 4.5, false alarm 1.5e-4; 10.7 where torsions are 30 % weaker."""
    z = deviations(angles(ensemble(h, 310.0)[0]), openmm_angles(h, 310.0))
    assert len(z) > 15 and float(z.abs().max()) < 4.5
