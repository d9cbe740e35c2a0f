"""Without friction the fused loop is leapfrog: energy, momenta and time reversal of real molecules.

`LangevinMiddle` records x at full steps and v right after the noise; at friction 0 that v is half a step older than
x. What is conserved is the energy with v at x, v + h F(x) / 2m. Measured, 256 replicas at 300 K for 10 ps:

    alanine dipeptide       rms fluctuation, kJ/mol      drift a replica, kJ/mol/ns
                            1 fs      0.5 fs             1 fs           0.5 fs
    vacuum, float64         0.399     0.092              -1.0 +- 0.8    -0.22 +- 0.26
    vacuum, float32         0.392     0.094              -0.3 +- 0.8     0.93 +- 0.36
    GBn2, float64           0.379     0.091               0.1 +- 0.8    -0.16 +- 0.25
    GBn2, float32           0.382     0.094               2.2 +- 0.8     0.01 +- 0.36
"""

from functools import cache

import pytest
import torch

from molsamp.engine import LangevinMiddle, Noise, Particles, Underdamped, rollout
from molsamp.molecular import NativeEnergy, load

EVERY = 0.02  # ps between frames, whatever the step
FINE, COARSE = 0.0005, 0.001  # ps
VACUUM = "alanine-dipeptide"
both = pytest.mark.parametrize("name", [VACUUM, pytest.param("alanine-dipeptide-gbn2", marks=pytest.mark.slow)])


@cache
def molecule(name, dtype, n=64):
    """(energy, masses (A, 1), n replicas after 2 ps at 300 K and 10/ps)."""
    system = load(name)
    energy = NativeEnergy.from_openmm(system.forcefield_system(), dtype, "lanes")
    masses = system.masses[:, None]
    dyn = Underdamped(energy, masses, system.kT, 10.0)
    x = next(iter(system.states.values())).x.to(dtype).expand(n, -1, -1).contiguous()
    v = dyn.thermal_speed() * Noise(1).normal(0, torch.arange(n), system.event)
    times = [0.001 * k for k in range(2001)]
    warm = rollout(dyn, LangevinMiddle(), Particles.at(x, v.to(dtype)), times, noise=Noise(2), save="last")
    return energy, masses, warm.final


@cache
def calm(name, h, dtype=torch.float64, n=64, length=4.0):
    """A path at friction 0 from the warm replicas."""
    energy, masses, warm = molecule(name, dtype, n)
    times = [h * k for k in range(round(length / h) + 1)]
    dyn = Underdamped(energy, masses, 0.0, 0.0)
    return rollout(dyn, LangevinMiddle(), warm, times, noise=Noise(3), save=round(EVERY / h))


def total_energy(name, path, h, ahead=0.5):
    """E (F, n) of every frame but the first, in float64, v moved on by `ahead` steps."""
    energy, masses, _ = molecule(name, torch.float64)
    x, v = path.x[1:].double(), path.v[1:].double()
    potential, force = energy.energy_force(x.flatten(0, 1))
    v = v + ahead * h * force.view_as(v) / masses
    return potential.view(x.shape[:2]) + 0.5 * (masses * v**2).sum((2, 3))


def fluctuation(E):
    """Root mean square of the energy about each replica's mean."""
    return float((E - E.mean(0)).square().mean().sqrt())


def drift(E):
    """Slope of E in time, kJ/mol/ns: mean over replicas and its standard error."""
    t = EVERY * torch.arange(len(E), dtype=torch.float64)
    t = t - t.mean()
    slope = 1000.0 * (t @ E) / (t @ t)
    return float(slope.mean()), float(slope.std() / len(slope) ** 0.5)


@both
def test_energy_fluctuates_as_the_square_of_the_step(name):
    """Twice the step, 4 times the fluctuation; 1 fs is 1/9 of the fastest period, so it is 4.3 with terms in h^4.

    With v as recorded it would be first order in h and more than ten times larger.
    """
    E = {h: total_energy(name, calm(name, h), h) for h in (FINE, COARSE)}
    assert 3.9 < fluctuation(E[COARSE]) / fluctuation(E[FINE]) < 4.6
    old = {h: fluctuation(total_energy(name, calm(name, h), h, ahead=0.0)) for h in (FINE, COARSE)}
    assert old[FINE] > 10.0 * fluctuation(E[FINE]) and 1.8 < old[COARSE] / old[FINE] < 2.2


@pytest.mark.slow
def test_physical_validation_finds_second_order():
    """`integrator.convergence` over 1, 0.5 and 0.25 fs: ratios of fluctuations within 10 % of 4."""
    pv = pytest.importorskip("physical_validation")

    def simulation(h):
        E = total_energy(VACUUM, calm(VACUUM, h), h)
        observed = pv.data.ObservableData(constant_of_motion=(E - E.mean(0)).T.flatten().numpy())
        ensemble = pv.data.EnsembleData("NVE", natoms=22, volume=1.0, energy=0.0)
        units = pv.data.UnitData.units("GROMACS")
        return pv.data.SimulationData(units=units, dt=h, ensemble=ensemble, observables=observed)

    assert pv.integrator.convergence([simulation(h) for h in (COARSE, FINE, FINE / 2)], verbose=False) < 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("h", [FINE, COARSE], ids=["0.5 fs", "1 fs"])
@pytest.mark.parametrize(
    "name, n, length",
    [
        (VACUUM, 64, 4.0),
        *(pytest.param(s, 256, 10.0, marks=pytest.mark.slow) for s in (VACUUM, "alanine-dipeptide-gbn2")),
    ],
)
def test_energy_does_not_drift(name, n, length, h, dtype):
    """Within 4 standard errors (false alarm 6e-5) and, in float32, 3 kJ/mol/ns for rounding: 0.006 K at 1/ps."""
    slope, error = drift(total_energy(name, calm(name, h, dtype, n, length), h))
    assert abs(slope) < 4.0 * error + (3.0 if dtype == torch.float32 else 0.0), (slope, error)


@both
def test_momenta_are_conserved(name):
    """Total momentum and, for this pairing of x with the older v, angular momentum: to rounding, over 4000 steps."""
    path, masses = calm(name, COARSE), molecule(name, torch.float64)[1]
    p = masses * path.v
    for a in (p.sum(2), torch.linalg.cross(path.x, p).sum(2)):
        assert (a[1:] - a[1]).abs().max() < 1e-9 * p.abs().max()


@both
def test_time_can_be_turned_back(name):
    """From the last frame with -(v + h F/m), the velocity half a step later reversed, every frame is visited again."""
    energy, masses, warm = molecule(name, torch.float64)
    dyn, times = Underdamped(energy, masses, 0.0, 0.0), [COARSE * k for k in range(201)]
    there = rollout(dyn, LangevinMiddle(), warm, times, noise=Noise(4))
    turned = -(there.v[-1] + COARSE * energy.force(there.x[-1]) / masses)
    back = rollout(dyn, LangevinMiddle(), Particles.at(there.x[-1], turned), times, noise=Noise(5))
    assert (back.x.flip(0) - there.x).abs().max() < 1e-9
