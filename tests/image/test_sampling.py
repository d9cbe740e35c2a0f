"""`sample` is one rollout; solvers spend exactly the calls they are given; a new solver is one short function."""

import math
from itertools import pairwise

import pytest
import torch

from molsamp import engine
from molsamp.engine import EDM, VP, Exponential, Flow, GaussianMixture, Noise, time_grid
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.image import sampling
from molsamp.image.sampling import fitted, sample
from molsamp.image.solvers import SOLVERS, dpm_orders
from molsamp.molecular.free_energy import walkers


class Mixture:
    """Two modes in the plane; counts its calls."""

    event = (2,)
    law = GaussianMixture(
        torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    )

    def __init__(self, schedule=None):
        self.schedule, self.calls = schedule or VP(), 0

    def __call__(self, x, t):
        self.calls += 1
        return self.law.denoise(self.schedule, x, t)


def test_images_and_peptides_share_one_rollout(monkeypatch):
    """The very function that moves molecular walkers is called once for a batch of images."""
    assert sampling.rollout is walkers.rollout is engine.rollout
    seen = []
    monkeypatch.setattr(sampling, "rollout", lambda *a, **k: seen.append(a) or engine.rollout(*a, **k))
    sample(Mixture(), "unipc", 5, 4, noise=Noise(0))
    assert len(seen) == 1


class Midpoint:
    """A toy solver: DDIM with every evaluation averaged with the one before."""

    def rows(self, dyn, times):
        a, s, table = dyn.schedule.alpha, dyn.schedule.sigma, []
        for i, (u, v) in enumerate(pairwise(times)):
            keep = s(v) / s(u)
            w = a(v) - a(u) * keep
            table.append(Row(u, v, (Evaluate(u), Line("x", {"x": keep}, (w,) if i == 0 else (0.5 * w, 0.5 * w))), 1))
        return table


def test_a_solver_of_ones_own():
    """It samples, and differs from DDIM."""
    toy, ddim = (sample(Mixture(), s, 8, 64, noise=Noise(1)).final.x for s in (Midpoint(), "ddim"))
    assert 1e-3 < float((toy - ddim).square().mean().sqrt()) < 0.5


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_are_network_calls(name):
    for steps in range(SOLVERS[name].least, 13):
        solver, model = fitted(Mixture(), name, steps, noise=Noise(0)), Mixture()
        if solver != name:  # searched: the name would search first
            assert isinstance(solver, Exponential) and solver.mixes
        assert bool(sample(model, solver, steps, 2, noise=Noise(0)).final.x.isfinite().all())
        assert model.calls == steps


@pytest.mark.parametrize("calls", range(1, 31))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_rows_of_dpm_solver_spend_the_budget(calls, order):
    if calls >= order:
        orders = dpm_orders(calls, order)
        assert sum(orders) == calls and max(orders) <= order


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=repr)
def test_samples_have_the_law_in_every_schedule(schedule):
    """Mean and variance of 4000 draws in 60 calls, 4.5 standard errors and 0.01; false alarm below 5e-5."""
    x = sample(Mixture(schedule), "dpm++2m", 60, 4000, noise=Noise(3), dtype=torch.float64).final.x
    mean, cov = Mixture.law.moments()
    assert float(((x.mean(0) - mean).abs() - 0.01).max()) < 4.5 * float(cov.diagonal().max().sqrt()) / 4000**0.5
    assert float((x.var(0) / cov.diagonal() - 1.0).abs().max()) < 4.5 * (2.0 / 4000) ** 0.5 + 0.01


def test_same_seed_same_bytes():
    a, b = (sample(Mixture(), "ddpm", 6, 8, noise=Noise(5)).final.x for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sample(Mixture(), "ddpm", 6, 8, noise=Noise(6)).final.x)


def test_a_start_and_a_grid_of_ones_own():
    grid, start = time_grid("karras", VP(), 5, 0.5), torch.zeros(3, 2)
    path = sample(Mixture(), "dpm++2m", 5, noise=Noise(0), grid=grid, start=start, save="all")
    assert path.x.shape == (6, 3, 2) and path.times.tolist() == grid


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(solver="unipk"), "unipc"),
        (dict(solver="dpm-3", steps=2), "dpm-3 needs 3 network calls or more, got steps = 2"),
        (dict(start=torch.zeros(4, 3)), r"shape \(3,\), the model takes \(2,\)"),
        (dict(grid=[1.0, 0.5]), "2 times was given, this solver needs 11"),
        (dict(grid="cubic"), "allowed are uniform"),
        (dict(steps=0), "1 network calls or more"),
    ],
)
def test_bad_requests_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        sample(Mixture(), **{"noise": Noise(0), **arguments})


@pytest.mark.parametrize("name", SOLVERS)
def test_memory_is_of_the_order(name):
    """Rows hand on at most as many evaluations as the order asks for, however many there are."""
    needed = {"ipndm": 3, "dc": 3}.get(name, math.ceil(SOLVERS[name].converges))
    kept = []
    for steps in (12, 60):
        solver = fitted(Mixture(), name, 12, noise=Noise(0)) if name == "dc" else name
        integrator, intervals, frame = sampling.plan(solver, 12 if name == "dc" else steps)
        rows = integrator.rows(sampling.dynamics(Mixture(), frame), time_grid("quadratic", VP(), intervals))
        kept.append(max(row.history for row in rows))
    assert kept[0] == kept[1] <= needed
