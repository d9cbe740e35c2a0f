"""OPES: one batch in closed form, its limit on an exact sampler, batches, edges and the seam; and walkers under it."""

import math

import numpy as np
import pytest
import torch

from molsamp import Noise
from molsamp.molecular import load
from molsamp.molecular.cvs import Coordinate, Torsion
from molsamp.molecular.free_energy import plumed
from molsamp.molecular.free_energy.opes import OPESBias
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.free_energy.walkers import OPES
from molsamp.molecular.grids import Grid

kT, BARRIER, GAMMA = 2.4943, 15 * 2.4943, 15.0
PI = math.pi
TINY = {"walkers": 16, "settle": 0.2, "production": 0.8, "frame": 0.04, "record": 0.2, "snapshots": 2}
GROW = {"build": 0.8, "stride": 0.02, "barrier": 1.6, "width": [0.15]}
GRID = {"nodes": 56, "ranges": [[-1.75, 1.75]]}


def one(nodes=161, width=0.1, ranges=(-2.0, 2.0)):
    grid = Grid(("x",), (None,), (ranges,), (nodes,))
    return OPESBias.empty([Coordinate(0)], grid, (2,), (width,), GAMMA, kT, BARRIER)


def torus(nodes=72, width=0.35):
    cvs = [Torsion((0, 1, 2, 3), "phi"), Torsion((1, 2, 3, 4), "psi")]
    grid = Grid(("phi", "psi"), (2 * PI, 2 * PI), ((-PI, PI),) * 2, (nodes, nodes))
    return OPESBias.empty(cvs, grid, (5, 3), (width, width), GAMMA, kT, BARRIER)


@pytest.fixture(scope="module")
def well():
    return load("double-well")


def test_two_batches_in_closed_form():
    """One walker at 0, then at 0.5, which counts exp(V/kT) of the bias that the first has made; Z is over two nodes.

    Across the whole grid the bias spans the barrier: epsilon where nobody has been, the mean of P at 1.
    """
    first, weight = one().deposit(torch.zeros(1, 1))
    x = first.grid.nodes(0)
    a = (1 - 1 / GAMMA) * kT
    epsilon = math.exp(-BARRIER / a)
    G = [np.exp(-0.5 * ((x - at) / 0.1) ** 2) for at in (0.0, 0.5)]
    assert weight.tolist() == [1.0] and np.allclose(first.values, a * np.log(G[0] + epsilon), atol=1e-9)
    assert first.values.min() == pytest.approx(-BARRIER) and first.values.max() == pytest.approx(0, abs=1e-5)
    second, weight = first.deposit(torch.full((1, 1), 0.5))
    w = math.exp(a * math.log(G[0][100] + epsilon) / kT)
    assert weight.item() == pytest.approx(w, rel=1e-6)
    P = G[0] + w * G[1]
    assert np.allclose(second.values, a * np.log(P / (0.5 * (P[80] + P[100])) + epsilon), atol=1e-6)
    assert np.allclose(second.free_energy()[60:121], (-kT * np.log(P / P.max()))[60:121], atol=1e-6)


def test_the_bias_does_not_depend_on_how_a_batch_is_shared():
    """Copies of the same configurations give the same bias, be there as many in every batch or not."""
    alone = shared = one()
    for k in range(5):
        s = 2 * Noise(2).uniform(k, torch.arange(32), (1,)) - 1
        alone, shared = alone.deposit(s)[0], shared.deposit(s.repeat(1 + k % 3, 1))[0]
    assert np.allclose(alone.values, shared.values, rtol=1e-12) and np.array_equal(alone.explored, shared.explored)


@pytest.mark.parametrize("where", [-2.0, 2.0])
def test_at_an_end_kernels_are_mirrored_and_finite(where):
    """On the last node: no slope across, no NaN; beyond the end, and of a walker that is lost, nothing is deposited."""
    bias, weights = one().deposit(torch.tensor([[where], [1.2 * where], [math.nan]]))
    assert weights.tolist() == [1.0, 0.0, 0.0] and bias.explored.sum() == 1
    s = torch.tensor([[where], [1.3 * where]], dtype=torch.float64, requires_grad=True)
    V = bias.at(s)
    (slope,) = torch.autograd.grad(V.sum(), s)
    assert np.isfinite(bias.values).all() and V[0].item() == pytest.approx(0.0, abs=1e-5)
    assert slope.abs().max() < 4.0  # of 200 at its steepest: the spline has no curvature at its ends
    nothing, weights = one().deposit(torch.full((2, 1), math.nan))
    assert not nothing.values.any() and not weights.any()


def test_force_is_the_slope_of_the_energy_at_node_centre_and_seam():
    bias, _ = torus().deposit(torch.tensor([[3.1, -3.1], [0.0, 0.2]]))
    h = bias.grid.spacing[0]
    places = [(0.0, 0.0), (0.5 * h, 0.5 * h), (PI, -PI), (-PI, PI - 0.3 * h), (-PI + 1e-9, 0.0), (1.5, 1.5)]
    s = torch.tensor(places, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bias.at(s).sum(), s)
    assert torch.isfinite(slope).all() and bias.at(s)[2] > -0.2 * BARRIER  # the kernel beside the seam is felt across
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = 1e-5
        difference = (bias.at(s.detach() + step) - bias.at(s.detach() - step)) / 2e-5
        assert torch.allclose(slope[:, axis], difference, atol=1e-6)


@pytest.mark.parametrize("batch, calls", [(512, 60), (64, 480)])
def test_limit_on_an_exact_sampler(batch, calls):
    """1-D double well of 10 kT, exact draws from exp(-(F + V)/kT) by inversion: -kT log P tends to F.

    Mean error over F < 10 kT below 0.1 kT: 0.06 as measured, of which the kernels' width makes 0.05. Against F as these
    kernels smooth it, it is below 0.04. Fixed seed. Weights exp(V/kT) left out, or V in their place, miss by 2 kT.
    """
    bias = one(nodes=401, width=0.02)
    x = bias.grid.nodes(0)
    F = 10 * kT * (x**2 - 1) ** 2
    draws, ids = Noise(3), torch.arange(batch)
    for k in range(calls):
        p = np.exp(-(F + bias.values) / kT)
        cdf = np.concatenate([[0.0], np.cumsum(0.5 * (p[1:] + p[:-1]))])
        s = np.interp(draws.uniform(k, ids, ()).double().numpy(), cdf / cdf[-1], x)
        bias, _ = bias.deposit(torch.from_numpy(s)[:, None])
    smooth = np.exp(-F / kT) @ np.exp(-0.5 * ((x[:, None] - x) / 0.02) ** 2)
    low = 10 * kT > F
    for exact, within in ((F, 0.1), (-kT * np.log(smooth), 0.04)):
        for estimate in (bias.free_energy(), -bias.scale * bias.values):
            d = (estimate - exact)[low]
            assert np.abs(d - np.median(d)).mean() < within * kT
    assert np.abs((-bias.values - F)[low] - np.median((-bias.values - F)[low])).mean() > 0.15 * kT


def test_walkers_find_the_free_energy_of_the_double_well(well):
    """F(x) by weights within its errors of the integral and by the bias near it in the wells; dF is 0. Fixed seed.

    Cells below 12 kT: the mean of (F - exact)^2 / error^2 is 0.8 to 1.3 for seeds 1 to 3, the mean difference 0.1 kT.
    By the bias it is 0.35 kT below 8 kT, which the kernels' width makes; without weights both are off by 2 kT and more.
    """
    settings = {"walkers": 512, "build": 12.0, "stride": 0.1, "settle": 2.0, "production": 12.0, "frame": 0.1}
    job = OPES(Task.of(well, ["x"]), noise=Noise(1), grid=GRID, record=0.5, **settings).fit()
    h, fine = job.grid.spacing[0], torch.linspace(-3, 3, 1201, dtype=torch.float64)
    at = torch.from_numpy(job.grid.nodes(0))[:, None] + torch.linspace(-0.5, 0.5, 9, dtype=torch.float64) * h
    xy = torch.stack(torch.meshgrid(at.reshape(-1), fine, indexing="ij"), -1).view(-1, 2)
    F = -torch.exp(-well.energy().energy(xy) / well.kT).view(len(at), -1).sum(1).log().numpy()
    F, kT = F - F.min(), well.kT
    surface = job.histogram.surface()
    low = (F < 12) & np.isfinite(surface.error)
    d = surface.F[low] / kT - F[low]
    d -= np.average(d, weights=1 / surface.error[low] ** 2)
    assert low.sum() > 40 and (d**2 / (surface.error[low] / kT) ** 2).mean() < 3 and np.abs(d).mean() < 0.2
    by_bias = (job.by_bias() / kT - F)[F < 8]
    assert np.abs(by_bias - np.median(by_bias)).mean() < 0.5
    for estimate in (job.differences()["dF:left->right"], job.others()["dF_growing:left->right"]):
        assert estimate.interval[0] < 0 < estimate.interval[1] and estimate.interval[1] - estimate.interval[0] < 2 * kT


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_same_run(well, stop):
    def begin():
        return OPES(Task.of(well, ["x"]), noise=Noise(4), grid=GRID, **TINY, **GROW)

    whole, parts, again, lines = begin(), begin(), begin(), []
    while whole.k < whole.total:
        whole.advance()
        lines.append(whole.lines())
    for _ in range(stop):
        parts.advance()
    again.load({k: b.clone() for k, b in parts.state().items()})
    for k in range(stop, again.total):
        again.advance()
        assert again.lines() == lines[k]
    assert torch.equal(again.p.x, whole.p.x) and np.array_equal(again.bias.values, whole.bias.values)
    assert torch.equal(again.histogram.weight, whole.histogram.weight)
    assert torch.equal(again.growing.weight, whole.growing.weight) and again.grown == whole.grown


def test_kernels_in_the_file_are_the_bias(well, tmp_path):
    """The sum of the Gaussians in KERNELS is P; its header has what a reader needs for V."""
    job, text = OPES(Task.of(well, ["x"]), noise=Noise(5), grid=GRID, **TINY, **GROW), ""
    while job.k < job.built:
        job.advance()
        text += job.lines()["KERNELS"]
    (tmp_path / "KERNELS").write_text(text)
    rows, sets = plumed.read(tmp_path / "KERNELS")
    assert list(rows) == ["time", "x", "sigma_x", "height", "logweight"]
    assert np.allclose(np.log(rows["height"]), rows["logweight"], atol=1e-7)
    x = job.grid.nodes(0)[8:-8]  # away from the mirror images
    kernels = zip(*(rows[k] for k in ("x", "sigma_x", "height")), strict=True)
    P = sum(h * np.exp(-0.5 * ((x - s) / w) ** 2) for s, w, h in kernels)
    assert np.allclose(P / P.max(), job.bias.kernels[8:-8] / job.bias.kernels[8:-8].max(), rtol=1e-6)
    assert float(sets["biasfactor"]) == pytest.approx(1.6 / well.kT)
    assert -math.log(float(sets["epsilon"])) * well.kT * (1 - well.kT / 1.6) == pytest.approx(1.6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"barrier": 0.05}, "bias factor must be above 1"),
        ({"width": [0.05]}, "kernels of width 0.05 need nodes at most 0.05 apart"),
        ({"height": 1.0}, "height"),
    ],
)
def test_what_cannot_be_is_refused(well, change, message):
    with pytest.raises(ValueError, match=message):
        OPES(Task.of(well, ["x"]), grid=GRID, **{**TINY, **GROW, **change})


def test_opes_takes_the_times_that_a_system_has_for_metadynamics():
    methods = load("gaussians-2d").methods
    times = ("walkers", "build", "stride", "settle", "production", "frame", "record")
    assert methods["opes"] == {name: methods["metadynamics"][name] for name in times}
