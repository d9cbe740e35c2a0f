"""GridBias against OpenMM's tabulated functions; continuation, devices and dtypes, faults, its native form."""

import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch

from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import Angle, Coordinate, Distance, Stack, Torsion
from molsamp.molecular.energies import Sum
from molsamp.molecular.openmm_energy import OpenMMEnergy

sys.path.append(str(Path(__file__).parent / "native"))
import builders
import reference

PI = math.pi
PHI, PSI, LENGTH, WIDTH = (
    Torsion((0, 1, 2, 3), "phi"),
    Torsion((1, 2, 3, 4), "psi"),
    Distance((5, 6), "length"),
    Distance((0, 7), "width"),
)
RANGE = {"phi": (-PI, PI), "psi": (0.0, 2 * PI), "length": (0.24, 0.4), "width": (0.26, 0.42)}
GIVEN = [(PHI,), (LENGTH,), (PHI, PSI), (PSI, LENGTH), (LENGTH, PHI), (LENGTH, WIDTH)]


class DoubledDistance(Distance):
    """No distance, though derived from one."""

    def __call__(self, x):
        return 2 * super().__call__(x)


def _bias(*cvs, seed=0, size=(9, 12)):
    values = np.random.default_rng(seed).normal(size=size[: len(cvs)]) * 10
    return GridBias(cvs, values, [RANGE[cv.names[0]] for cv in cvs], (8, 3))


def _frames(n=60):
    return torch.tensor(builders.frames(n))


def _names(cvs):
    return "-".join(cv.names[0] for cv in cvs)


@pytest.mark.parametrize("cvs", GIVEN, ids=_names)
def test_native_grid_is_the_same_function(cvs):
    """The reference evaluator of Grids at frames on both sides of the range."""
    bias, x = _bias(*cvs), _frames()
    grid = bias.grids()
    E = [reference.grids(grid, frame) for frame in x.numpy()]
    assert torch.allclose(bias.energy(x), torch.tensor(E, dtype=torch.float64), rtol=1e-12, atol=1e-11)
    s = bias.cv(x)
    for k, (lo, hi) in enumerate(bias.grid.ranges):
        outside = int(((s[:, k] < lo) | (s[:, k] > hi)).sum())
        assert bias.cv.period[k] or 5 < outside < 55


@pytest.mark.parametrize("cvs", GIVEN, ids=_names)
def test_values_at_the_nodes(cvs):
    bias = _bias(*cvs)
    axes = [
        torch.linspace(lo, hi, N + (period is not None), dtype=torch.float64)[:N]
        for (lo, hi), N, period in zip(bias.grid.ranges, bias.values.shape, bias.cv.period, strict=True)
    ]
    nodes = torch.cartesian_prod(*axes).reshape(-1, len(cvs))
    assert torch.allclose(bias.at(nodes), torch.tensor(bias.values).reshape(-1), rtol=0, atol=1e-11)


def _tabulated(values, ranges, periodic):
    """OpenMM's spline: natural, or periodic with the first value repeated; x runs fastest."""
    if periodic:
        values = np.pad(values, [(0, 1)] * values.ndim, mode="wrap")
    if values.ndim == 1:
        return openmm.Continuous1DFunction(values, *ranges[0], periodic)
    return openmm.Continuous2DFunction(*values.shape, values.T.reshape(-1), *ranges[0], *ranges[1], periodic)


@pytest.mark.parametrize(
    ("cvs", "expression"),
    [
        ((PHI,), "f(dihedral(p1,p2,p3,p4))"),
        ((PHI, PSI), "f(dihedral(p1,p2,p3,p4), dihedral(p2,p3,p4,p5))"),
        ((LENGTH,), "f(distance(p6,p7))"),
        ((LENGTH, WIDTH), "f(distance(p6,p7), distance(p1,p8))"),
    ],
    ids=["phi", "phi-psi", "length", "length-width"],
)
def test_energy_and_force_are_those_of_openmms_splines(cvs, expression):
    """Inside the range; OpenMM's function is zero outside."""
    bias = _bias(*cvs)
    force = openmm.CustomCompoundBondForce(8, expression)
    force.addTabulatedFunction("f", _tabulated(bias.values, bias.grid.ranges, bias.cv.period[0] is not None))
    force.addBond(range(8), [])
    x = _frames(400)
    s = bias.cv(x)
    inside = torch.ones(len(x), dtype=torch.bool)
    for k, (lo, hi) in enumerate(bias.grid.ranges):
        inside &= (s[:, k] > lo) & (s[:, k] < hi) | (bias.cv.period[k] is not None)
    x = x[inside]
    assert len(x) > 40
    E, F = OpenMMEnergy(builders.system(force), "Reference").energy_force(x)
    assert torch.allclose(bias.energy(x), E, rtol=1e-9, atol=1e-9)
    assert torch.linalg.vector_norm(bias.force(x) - F) < 1e-9 * torch.linalg.vector_norm(F)


def test_goes_on_along_its_tangents_and_stays_twice_differentiable_there():
    """V at (lo - a, hi + b) from the value and derivatives at the corner; second differences across the end vanish."""
    bias = _bias(LENGTH, WIDTH)
    corner = torch.tensor([[0.24, 0.42]], dtype=torch.float64, requires_grad=True)
    V = bias.at(corner)
    (slope,) = torch.autograd.grad(V.sum(), corner, create_graph=True)
    (mixed,) = torch.autograd.grad(slope[:, 0].sum(), corner)
    for a, b in product((0.0, 0.13, 4.0), repeat=2):
        far = bias.at(corner.detach() + torch.tensor([[-a, b]], dtype=torch.float64))
        expected = V - a * slope[0, 0] + b * slope[0, 1] - a * b * mixed[0, 1]
        assert torch.allclose(far, expected, rtol=1e-11)
    h = 1e-5
    line = bias.at(torch.tensor([[0.24 + k * h, 0.4] for k in (-1, 0, 1)], dtype=torch.float64))
    inner = bias.at(torch.tensor([[0.26 + k * h, 0.4] for k in (-1, 0, 1)], dtype=torch.float64))
    curvature, elsewhere = ((V[0] - 2 * V[1] + V[2]) / h**2 for V in (line, inner))
    assert abs(curvature) < 1e-2 * abs(elsewhere)


def test_a_period_more_or_less_changes_nothing():
    bias = _bias(PHI, PSI)
    s = torch.tensor(np.random.default_rng(0).uniform(-PI, PI, size=(50, 2)))
    for turns in (-3, 1, 2):
        assert torch.allclose(bias.at(s + turns * 2 * PI), bias.at(s), rtol=0, atol=1e-11)


@pytest.mark.parametrize("cvs", GIVEN, ids=_names)
def test_force_is_minus_the_gradient(cvs):
    """Central differences with h = 1e-6 nm."""
    bias, x, h = _bias(*cvs), _frames(4), 1e-6
    steps = torch.eye(24, dtype=torch.float64).view(24, 8, 3) * h
    plus, minus = (bias.energy((x[:, None] + sign * steps).reshape(-1, 8, 3)).view(4, 24) for sign in (1, -1))
    F = bias.force(x)
    slope = ((plus - minus) / (2 * h)).view_as(F)
    assert torch.linalg.vector_norm(slope + F) < 1e-6 * torch.linalg.vector_norm(F)


def test_float32_inference_mode_and_no_grad():
    bias, x = _bias(PHI, LENGTH), _frames()
    E, F = bias.energy_force(x)
    assert E.dtype == F.dtype == torch.float64 and not E.requires_grad and not F.requires_grad
    E_single, F_single = bias.energy_force(x.float())
    assert E_single.dtype == F_single.dtype == torch.float32
    assert torch.allclose(E_single.double(), E, rtol=1e-4, atol=1e-3)
    assert torch.linalg.vector_norm(F_single - F) < 1e-4 * torch.linalg.vector_norm(F)
    with torch.inference_mode():
        assert torch.equal(bias.force(x.clone()), F)
    with torch.no_grad():
        assert torch.equal(bias.force(x), F)


def test_second_derivatives_for_positions_that_require_them():
    bias, x = _bias(PHI, LENGTH), _frames(2).requires_grad_()
    E, F = bias.energy_force(x)
    (slope,) = torch.autograd.grad(E.sum(), x, retain_graph=True)
    assert torch.allclose(-slope, F)
    direction = torch.randn(2, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (product_,) = torch.autograd.grad((F * direction).sum(), x)
    h, y = 1e-5, x.detach()
    difference = (bias.force(y + h * direction) - bias.force(y - h * direction)) / (2 * h)
    assert torch.linalg.vector_norm(product_ - difference) < 1e-6 * torch.linalg.vector_norm(difference)


def test_a_poisoned_replica_harms_no_other():
    bias, x = _bias(PHI, LENGTH), _frames()
    E, F = bias.energy_force(x)
    bad = x.clone()
    bad[3, 1, 2], bad[7, 5, 0], bad[9, 6, 0] = torch.nan, torch.inf, 1e30
    E_bad, F_bad = bias.energy_force(bad)
    keep = [k for k in range(60) if k not in (3, 7, 9)]
    assert torch.equal(E_bad[keep], E[keep]) and torch.equal(F_bad[keep], F[keep])
    assert E_bad[3].isnan() and not E_bad[7].isfinite() and E_bad[9].abs() > 1e20


def test_as_one_term_of_a_sum_and_on_other_cvs():
    """Any CV will do for torch: an angle, two columns in one Stack, a coordinate of a toy."""
    x = _frames()
    stack = GridBias([Stack([PHI, LENGTH])], _bias(PHI, LENGTH).values, [RANGE["phi"], RANGE["length"]], (8, 3))
    assert torch.equal(stack.energy(x), _bias(PHI, LENGTH).energy(x))
    angle = GridBias([Angle((0, 1, 2), "bend")], np.arange(5.0), [(0.0, PI)], (8, 3))
    assert torch.allclose(angle.energy(x), Angle((0, 1, 2))(x)[:, 0] * 4 / PI)
    both = Sum(stack, angle)
    assert torch.allclose(both.force(x), stack.force(x) + angle.force(x))
    toy = GridBias([Coordinate(1, "y")], torch.tensor([0.0, 1.0, 2.0]), [(-1.0, 1.0)], (2,))
    assert torch.allclose(toy.energy(torch.tensor([[0.3, 0.5]])), torch.tensor([1.5]))
    doubled = GridBias([DoubledDistance((0, 1), "twice")], np.arange(5.0), [(0.0, 1.0)], (8, 3))
    cases = (angle, "'bend'.*Angle"), (stack, "'phi'.*Stack"), (toy, "'y'.*Coordinate"), (doubled, "'twice'.*Doubled")
    for bias, name in cases:
        assert not bias.native
        with pytest.raises(ValueError, match=name):
            bias.grids()


@pytest.mark.parametrize(
    ("cvs", "shape", "ranges", "event", "words"),
    [
        ([PHI], (5, 5), [(-PI, PI)], (8, 3), r"\('phi',\).*shape \(5, 5\)"),
        ([PHI, PSI], (5, 5), [(-PI, PI)], (8, 3), "1 ranges"),
        ([PHI, PSI, LENGTH], (5, 5, 5), 3 * [(-PI, PI)], (8, 3), "one or two axes"),
        ([PHI], (5,), [(-3.0, 3.0)], (8, 3), r"'phi'.*one period, 6.28.*\(-3.0, 3.0\)"),
        ([LENGTH], (5,), [(0.5, 0.2)], (8, 3), r"'length'.*lo < hi, got \(0.5, 0.2\)"),
        ([LENGTH], (5,), [(0.0, math.inf)], (8, 3), "'length'.*lo < hi"),
        ([LENGTH], (1,), [(0.0, 1.0)], (8, 3), "at least 2 nodes"),
        ([LENGTH], (5,), [(0.0, 1.0)], (6, 3), "'length'.*atom 6 does not exist; 0 to 5"),
        ([PHI, PHI], (5, 5), 2 * [(-PI, PI)], (8, 3), "distinct"),
    ],
)
def test_misfits_are_refused_by_name(cvs, shape, ranges, event, words):
    with pytest.raises(ValueError, match=words):
        GridBias(cvs, np.zeros(shape), ranges, event)
