"""Semi-discrete optimal transport: closed forms on a line and for two targets, exact assignment, masses, the map."""

import math

import pytest
import torch

from molsamp.engine import VP, Noise
from molsamp.engine.grids import time_grid
from molsamp.image.ideal import ideal
from molsamp.image.sampling import sample
from molsamp.image.transport import Brenier, copies, draw, fit_heights, noised, transport

F64 = torch.float64


def normals(key, n, *event):
    return Noise(13).child(key).normal(0, torch.arange(n), event)


def potential(y, h=None):
    return Brenier(y, torch.zeros(len(y), dtype=F64) if h is None else h, 0.0, 0, 0, "most")


@pytest.fixture(scope="module")
def line():
    """Eight targets on a line and their heights."""
    y = normals("line", 8, 1).sort(0).values
    return fit_heights(y, Noise(2), points=1000)


def test_in_one_dimension_cells_are_intervals_of_equal_mass(line):
    """Edges at the normal quantiles q_j = j / n: h_(j+1) - h_j = -(y_(j+1) - y_j) q_j; then T sorts."""
    y, q = line.targets[:, 0], torch.special.ndtri(torch.arange(1, 8, dtype=F64) / 8)
    exact = torch.cat([torch.zeros(1, dtype=F64), (-(y[1:] - y[:-1]) * q).cumsum(0)])
    assert (line.h - (exact - exact.mean())).abs().max() < 0.01
    x = normals("x", 2000, 1)
    away = (x - q).abs().min(1).values > 0.05
    rank = torch.searchsorted(q, x[:, 0].contiguous())
    assert away.sum() > 1000 and torch.equal(line(x)[away, 0], y[rank[away]])


def test_every_target_gets_its_share(line):
    """Masses on 100000 points within 5 standard errors: the false alarm is 5e-6, the rest allows for the heights."""
    masses, n = line.masses(draw("normal", Noise(3), 0, 100_000, (1,), F64)), 8
    assert ((masses - 1 / n).abs() < 5.0 * math.sqrt((1 - 1 / n) / n / 100_000)).all(), masses
    assert line.empty == 0 and line.gradient < 4.0 / math.sqrt(1000)


def test_two_targets_are_parted_by_a_plane_through_the_middle():
    """Uniform in the cube: h_0 - h_1 = -<y_0 - y_1, centre>, here 0.9, within 0.01; normal: 0."""
    y = torch.tensor([[0.2, -0.7, 0.1], [1.0, 0.3, 0.1]], dtype=F64)
    gap = fit_heights(y, Noise(4), source="uniform", points=2000, rate=0.02, tolerance=1e-9).h
    assert float(gap[0] - gap[1]) == pytest.approx(0.9, abs=0.01)
    gap = fit_heights(y, Noise(4), points=2000, rate=0.02, tolerance=1e-9).h
    assert float(gap[0] - gap[1]) == pytest.approx(0.0, abs=0.02)


def test_it_is_the_exact_assignment():
    """30 targets in the plane and 20 points for each: the dual value bounds the assignment's, and nearly reaches it.

    sum_i max_j(<x_i, y_j> + h_j) - 20 sum_j h_j >= max over assignments of sum <x_i, y_j>, for any h. The heights are
    those of the law, not of these 600 points: the gap is O(1 / 20).
    """
    optimize = pytest.importorskip("scipy.optimize")
    y, x = normals("plane", 30, 2), normals("points", 600, 2)
    found = fit_heights(y, Noise(5), points=1000)
    gain = x @ y.repeat_interleave(20, 0).T
    rows, columns = optimize.linear_sum_assignment(gain.numpy(), maximize=True)
    exact = float(gain[rows, columns].mean())
    dual = float(found.value(x).mean() - found.h.mean())
    plain = float(potential(y).value(x).mean())
    assert exact - 1e-12 <= dual < exact + 0.02
    assert plain > exact + 0.1  # without heights the bound is loose: the test would fail


def test_gradient_of_the_energy_is_mass_minus_share():
    """E(h) = mean max_j(<y_j, x> + h_j) - mean h on fixed points, by central differences; E is convex."""
    y, x, h = normals("g", 5, 3), normals("gx", 400, 3), 0.3 * normals("h", 5)

    def E(h):
        return float(potential(y, h).value(x).mean() - h.mean())

    step, masses = 1e-7, potential(y, h).masses(x)
    for j in range(5):
        e = step * torch.eye(5, dtype=F64)[j]
        assert (E(h + e) - E(h - e)) / (2 * step) == pytest.approx(float(masses[j]) - 0.2, abs=1e-6)
    other = h + normals("h2", 5)
    assert E(0.5 * (h + other)) <= 0.5 * (E(h) + E(other))


def test_the_map_is_the_gradient_of_the_potential():
    found = potential(normals("m", 6, 3), 0.2 * normals("mh", 6))
    x = normals("mx", 20, 3)
    wiggle = torch.stack([(found.value(x + 1e-7 * e) - found.value(x - 1e-7 * e)) / 2e-7 for e in torch.eye(3)], 1)
    torch.testing.assert_close(wiggle, found(x), rtol=0, atol=1e-6)


def test_why_it_stops():
    y = normals("s", 6, 2)
    assert fit_heights(y, Noise(6), most=3).stopped == "most"
    met = fit_heights(y, Noise(6), points=4000, tolerance=0.02)
    assert met.stopped == "tolerance" and met.empty == 0
    stalled = fit_heights(y, Noise(6), patience=5)
    assert stalled.stopped == "stalled" and 20 <= stalled.iterations < 400
    assert float(stalled.h.mean()) == pytest.approx(0.0, abs=1e-12)
    again = fit_heights(y, Noise(6), patience=5)
    assert torch.equal(stalled.h, again.h)


# ---- blends ----


def test_blends_keep_to_cells_on_the_same_side_of_a_ridge():
    """Targets at (1, 0), (1, 0.2) and (-1, 0): the planes of the first two are 0.14 apart, the third is 1.57 away."""
    y = torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.0], [-4.0, 0.0]], dtype=F64)
    found, x = potential(y), torch.tensor([[0.5, 0.1], [0.01, -0.3]], dtype=F64)
    s = x @ y.T
    w = s[0, :2] - s[0, 2]
    torch.testing.assert_close(found(x, 2)[0], (w @ y[:2]) / w.sum())
    torch.testing.assert_close(found(x, 2)[1], y[0])  # second best is across the ridge
    assert not torch.allclose(found(x, 2, angle=3.0)[1], y[0])
    torch.testing.assert_close(found(x, 2, angle=0.1), found(x))
    with pytest.raises(ValueError, match="k = 4 of 4"):
        found(x, 4)


def test_blends_are_continuous_where_cells_change_places():
    """At an edge of two cells the map jumps by |y_0 - y_1|, the blend of two by nothing."""
    y = normals("c", 12, 2)
    found, path = (
        potential(y, 0.3 * normals("ch", 12)),
        torch.linspace(-2.0, 2.0, 8001, dtype=F64)[:, None] * torch.ones(1, 2, dtype=F64),
    )
    jump = (found(path)[1:] - found(path)[:-1]).norm(dim=1).max()
    smooth = (found(path, 3, angle=math.pi)[1:] - found(path, 3, angle=math.pi)[:-1]).norm(dim=1).max()
    assert jump > 0.3 and smooth < 0.05, (jump, smooth)


# ---- as a start of sampling ----


def test_targets_have_the_law_of_time_t():
    """alpha x_0 and sigma, by 4 standard errors of 4000 values; false alarm 1.3e-4."""
    data = torch.full((4000, 1), 0.7, dtype=F64)
    y, alpha, sigma = noised(data, VP(), 0.4, Noise(7)), VP().alpha(0.4), VP().sigma(0.4)
    assert abs(float(y.mean()) - 0.7 * alpha) < 4.0 * sigma / 4000**0.5
    assert float(y.std()) == pytest.approx(sigma, rel=4.0 / 8000**0.5)


def test_few_steps_from_the_jump_end_at_the_data():
    """Twelve points of the plane as data: five calls from t = 0.1 end within 3 widths of a datum, all in use."""
    data, width = 3.0 * normals("data", 12, 1, 1, 2), 0.05
    model, z = ideal(data, VP(), width), normals("z", 600, 1, 1, 2)
    found = fit_heights(noised(data, VP(), 0.1, Noise(8)), Noise(9), points=500, most=300)
    start, times = transport(found, VP(), z, 0.1, 5)
    assert times == time_grid("quadratic", VP(), 5, 0.1) and torch.equal(start, found(z))
    x = sample(model, "dpm++2m", 5, noise=Noise(0), grid=times, start=start, dtype=F64).final.x
    report = copies(x, data)
    assert float(report.distance.max()) < 3 * width and report.share > 0.95
    reached = torch.cdist(x.flatten(1), data.flatten(1)).argmin(1)
    assert torch.bincount(reached, minlength=12).min() > 20


def test_copies():
    data = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], dtype=F64)
    x = torch.tensor([[0.0, 0.0], [0.9, 0.0], [2.0, 0.0]], dtype=F64)
    report = copies(x, data)
    torch.testing.assert_close(report.distance, torch.tensor([0.0, 0.9, 2.0], dtype=F64) / 2**0.5)
    assert report.spacing == pytest.approx(3.0 / 2**0.5) and report.share == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="two pictures"):
        copies(x, data[:1])


@pytest.mark.parametrize("change", [{"rate": 0.0}, {"most": 0}, {"points": -1}, {"targets": torch.zeros(0, 2)}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ValueError, match="positive settings"):
        fit_heights(**{"targets": torch.ones(2, 2), "noise": Noise(0), **change})
