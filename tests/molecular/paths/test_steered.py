"""The pull's density, and the work of a moving restraint against its closed form."""

import math

import pytest
import torch
from linear import line_problem

from molsamp.engine.measures import log_ratio
from molsamp.engine.noise import Noise
from molsamp.molecular import load
from molsamp.molecular.cvs import Coordinate
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import SteeredSettings
from molsamp.molecular.paths.steered import Pull, Restraint, Steered, moving_pull, pull, steered_null, work_estimates


@pytest.fixture(scope="module")
def peptide():
    return Problem.of(load("alanine-dipeptide"), steps=20, dtype=torch.float64)


def run(job):
    while job.k < job.total:
        job.advance()
    return job


def test_the_pull_shifts_the_velocity_as_its_force_would(peptide):
    """s u = c h b / m with b = k (x_B - x), all atoms; x = x_B moved rigidly gives no pull at all."""
    k, end = 300.0, peptide.end.x
    x = peptide.start.x[None]
    u = Pull(peptide, k)(0.0, x, None)
    c = math.exp(-peptide.friction * peptide.timestep)
    s = (peptide.kT * (1.0 - c * c) / peptide.masses) ** 0.5
    b = u * s * peptide.masses / (c * peptide.timestep)
    assert torch.allclose(b.sum(1), torch.zeros(1, 3, dtype=torch.float64), atol=1e-9)  # the centre of mass stays
    R = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    R = R * torch.linalg.det(R)
    assert Pull(peptide, k)(0.0, (end @ R.T + 1.0)[None], None).abs().max() < 1e-6
    turned = Pull(peptide, k)(0.0, x @ R.T, None)
    assert torch.allclose(turned, u @ R.T, atol=1e-9)
    from molsamp.molecular.geometry import aligned

    y = aligned(end[None], peptide.start.x, peptide.system.heavy)
    force = k * (y - x)
    force = force - peptide.masses * force.sum(1, keepdim=True) / peptide.masses.sum()
    assert torch.allclose(b, force, atol=1e-6)


@pytest.mark.parametrize("hold", [1, 5])
def test_log_rn_of_the_pull_is_that_of_its_residuals(peptide, hold):
    from molsamp.engine.dynamics import Controlled

    path = pull(peptide, torch.arange(3), Noise(1), 300.0, hold)
    driven = Controlled(peptide.dynamics, Pull(peptide, 300.0), hold)
    exact = log_ratio(path, driven, peptide.dynamics, peptide.integrator)
    assert torch.allclose(path.log_ratio, exact, atol=1e-6)


def test_pulled_paths_reweight_to_p0():
    """<exp(-log dP_b/dP_0)> = 1, 20 000 paths of the OU process; |z| < 4.5, false alarm 7e-6."""
    problem = line_problem(x0=0.0, above=1.0, h=0.05, steps=20)
    paths = steered_null(problem, 20_000, Noise(2), stiffness=0.3, hold=1)
    w = (-paths.log_rn).exp()
    assert abs(float((w.mean() - 1.0) / (w.std() / len(w) ** 0.5))) < 4.5
    hit = (w * paths.hit).mean()
    free = steered_null(problem, 20_000, Noise(3), stiffness=1e-12, hold=1).hit_rate().value
    error = math.hypot(float((w * paths.hit).std()), (free * (1 - free)) ** 0.5) / 20_000**0.5
    assert abs(float(hit) - free) < 4.5 * error
    assert free + 4 * error < paths.hit_rate().value  # and the pull does pull


def rigid_shift(n, backward=False, k=2.0, distance=1.5, rows=12, h=0.05):
    """A free particle in a spring that moves by `distance`: dF = 0. Returns (problem, W, exact mean, exact variance).

    With e = x - lambda and d the centre's step, e' = (1 - k h) e - d + noise after row and switch, and the work of a
    switch is k (d^2/2 - d e): linear in Gaussians, so mean and variance follow from two recursions.
    """
    problem = line_problem(stiffness=0.0, h=h, steps=rows)
    restraint = Restraint(Coordinate(0), torch.zeros(1, dtype=torch.float64), k, (1,))
    share = torch.linspace(0.0, 1.0, rows + 1, dtype=torch.float64)[:, None]
    centres = distance * ((1.0 - share) if backward else share)
    noise = Noise(4 + backward)
    x = centres[0] + noise.child("x").normal(0, torch.arange(n), (1,)) / k**0.5
    _, W = moving_pull(problem, problem.initial(noise, torch.arange(n)).evolve(x=x), noise, restraint, centres)
    a, d, s2 = 1.0 - k * h, (1 - 2 * backward) * distance / rows, 2.0 * h
    mean, var, W_mean, W_var, cov = 0.0, 1.0 / k, 0.0, 0.0, 0.0
    for _ in range(rows):
        mean, var, cov = a * mean, a * a * var + s2, a * cov  # the row
        W_mean += k * (d * d / 2.0 - d * mean)  # the switch
        W_var += k * k * d * d * var - 2.0 * k * d * cov
        mean, cov = mean - d, cov - k * d * var
    return problem, W, W_mean, W_var


def test_work_of_a_rigid_shift_has_its_closed_form():
    """Mean and variance of W, 20 000 pulls: |z| < 4.5 twice, false alarm 1.4e-5."""
    n = 20_000
    _, W, mean, var = rigid_shift(n)
    assert abs(float(W.mean()) - mean) < 4.5 * (var / n) ** 0.5
    assert abs(float(W.var()) / var - 1.0) < 4.5 * (2.0 / n) ** 0.5
    assert abs(var - 2.0 * mean) / var < 0.2  # dissipation = variance / 2 kT but for the timestep


def test_free_energy_of_a_rigid_shift_is_zero():
    """Three estimators within 4.5 standard errors of 0, and 0.02 for the timestep's own error."""
    problem, forward, _, _ = rigid_shift(20_000)
    _, backward, _, _ = rigid_shift(20_000, backward=True)
    table, notes = work_estimates(forward, backward, problem)
    assert notes == ()
    for name in ("dF_jarzynski_forward", "dF_jarzynski_backward", "dF_bar"):
        low, high = table[name].interval
        assert abs(table[name].value) < 4.5 * (high - low) / 3.92 + 0.02, name
    assert table["work"].value > 0.3


def test_too_few_effective_pulls_are_said_to_be_too_few():
    problem = line_problem()
    W = torch.linspace(0.0, 200.0, 20, dtype=torch.float64)
    _, notes = work_estimates(W, W, problem)
    assert len(notes) == 2 and "1.0 effective pulls of 20" in notes[0]


@pytest.mark.parametrize("kind", ["pull", "cv"])
def test_resumed_steering_gives_the_same_bytes(kind):
    def job():
        problem = Problem.of(load("double-well"), steps=200, dtype=torch.float64)
        stiffness = 2.0 if kind == "pull" else 20.0
        return Steered(problem, SteeredSettings(kind=kind, stiffness=stiffness, equilibrate=50), Noise(1), 8)

    whole, half, again = run(job()), job(), job()
    half.advance()
    again.load(half.state())
    a, b = whole.paths(), run(again).paths()
    assert torch.equal(a.path.x, b.path.x) and str(a.extra) == str(b.extra)
    assert a.cost.energy_evaluations == b.cost.energy_evaluations
    assert a.hit_rate().value == 1.0
    assert bool(a.log_rn.isfinite().all()) == (kind == "pull")


def test_energies_of_restrained_paths_are_the_systems_own():
    problem = Problem.of(load("double-well"), steps=20, dtype=torch.float64)
    paths = run(Steered(problem, SteeredSettings(kind="cv", equilibrate=0, stiffness=20.0), Noise(1), 4)).paths()
    x = paths.path.x
    assert math.isnan(paths.extra["dF_bar"].value) and "do not overlap" in paths.notes[-1]
    assert torch.allclose(paths.path.energy, problem.energy.energy(x.flatten(0, 1)).view(x.shape[:2]), atol=1e-12)


def test_steering_by_rmsd_refuses_toys():
    problem = Problem.of(load("double-well"), dtype=torch.float64)
    with pytest.raises(ValueError, match="steering by 'rmsd' needs a molecule"):
        Steered(problem, SteeredSettings(kind="rmsd"), Noise(1), 4)
