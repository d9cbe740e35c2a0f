"""F with errors from weighted samples: closed cases, and the coverage of every interval."""

import math

import numpy as np
import pytest
import torch

from molsamp import Noise
from molsamp.molecular.free_energy.surface import Histogram, free_energy
from molsamp.molecular.grids import Grid

kT = 2.0
LINE = Grid(("x",), (None,), ((-2.5, 2.5),), (26,))


def chains(noise: Noise, runs: int, B: int = 32, T: int = 120, a: float = 0.9, sigma: float = 1.0):
    """Stationary AR(1) chains of standard deviation sigma, correlation a from frame to frame: (runs, T, B)."""
    z = noise.normal(range(T), torch.arange(runs * B), (), torch.float64).reshape(T, runs, B)
    x = [sigma * z[0]]
    for k in range(1, T):
        x.append(a * x[-1] + sigma * math.sqrt(1 - a * a) * z[k])
    return torch.stack(x, 1)


def cells_of_a_gaussian(sigma: float) -> np.ndarray:
    """-kT log of the exact probability of every cell."""
    edges = np.append(LINE.nodes(0) - 0.1, LINE.nodes(0)[-1] + 0.1)
    cdf = np.array([0.5 * math.erfc(-e / (sigma * math.sqrt(2))) for e in edges])
    return -kT * np.log(np.diff(cdf) / (cdf[-1] - cdf[0]))


def covered(hits: int, runs: int, tests: int) -> None:
    """95 % intervals: under-coverage at 1 % family-wise by the exact binomial tail; above 99.5 % is too wide."""
    from scipy.stats import binom

    assert binom.cdf(hits, runs, 0.95) > 0.01 / tests, f"covered only {hits} of {runs}"
    assert hits <= 0.995 * runs, f"too wide: {hits} of {runs}"


@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_cover(weighted):
    """400 runs of 32 correlated walkers; cells and a difference of regions, plain and reweighted from a wider law.

    The intervals of cells are those of F against all space. Were the walkers' frames taken as independent samples the
    intervals would be a third of that and cover about half.
    """
    runs, sigma = 400, 1.3 if weighted else 1.0
    x = chains(Noise(11), runs, sigma=sigma)
    logw = 0.5 * x**2 * (1 / sigma**2 - 1) if weighted else torch.zeros_like(x)
    exact = cells_of_a_gaussian(1.0)
    left, right = LINE.nodes(0) < -1.05, LINE.nodes(0) > 0.05
    dF = -kT * math.log(np.exp(-exact / kT)[right].sum() / np.exp(-exact / kT)[left].sum())
    watched = {6: 0, 9: 0, 12: 0, 17: 0, 20: 0}
    differences = 0
    for run in range(runs):
        h = Histogram.empty(LINE, kT, 32).add(x[run, :, :, None], logw[run])
        with np.errstate(divide="ignore"):
            F = -kT * np.log((h.weight.sum(0) / h.weight.sum()).numpy())
        half = h.surface().half
        for cell in watched:
            watched[cell] += abs(F[cell] - exact[cell]) < half[cell]
        low, high = h.difference(left, right).interval
        differences += low < dF < high
    for hits in (*watched.values(), differences):
        covered(int(hits), runs, 2 * (len(watched) + 1))


def test_two_axes_add_up_to_one():
    """The profile of one CV is the surface summed over the other, and the weights of cells are as given."""
    grid = Grid(("a", "b"), (None, 2.0), ((0.0, 1.0), (-1.0, 1.0)), (3, 4))
    s = torch.tensor([[[0.1, 0.9], [1.0, -0.4]], [[0.55, -1.0], [0.0, 2.1]], [[3.0, 0.0], [0.4, math.nan]]])
    logw = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    h = Histogram.empty(grid, kT, 2).add(s, logw)
    cells = h.weight.view(2, 3, 4)
    assert cells[0, 0, 0] == 1 and cells[0, 1, 0] == 1  # 0.9 is nearest to the seam
    assert cells[1, 2, 1] == pytest.approx(math.e) and cells[1, 0, 2] == pytest.approx(math.e**2)
    assert h.count == 4 and h.ess == pytest.approx((2 + math.e + math.e**2) ** 2 / (2 + math.e**2 + math.e**4))
    p = np.exp(-h.profile(0).F / kT)
    assert np.allclose(p / p.sum(), cells.sum((0, 2)).numpy() / float(cells.sum()))
    p = np.exp(-h.profile(1).F / kT)
    assert np.allclose(p / p.sum(), cells.sum((0, 1)).numpy() / float(cells.sum()))


def test_what_was_never_seen_is_infinite_and_what_one_walker_saw_has_no_error():
    s = torch.zeros(5, 16, 1)
    s[:, 3] = 1.0
    surface = free_energy(s, grid=LINE, kT=kT)
    cell = {x: int(LINE.cell(torch.tensor([[x]]))[0]) for x in (0.0, 1.0, 2.0)}
    assert surface.F[cell[2.0]] == math.inf
    assert surface.error[cell[1.0]] == math.inf and surface.F[cell[1.0]] == pytest.approx(kT * math.log(15))
    assert math.isfinite(surface.error[cell[0.0]])


def test_a_region_without_samples_has_no_difference():
    h = Histogram.empty(LINE, kT, 4).add(torch.zeros(3, 4, 1), torch.zeros(3, 4))
    e = h.difference(LINE.nodes(0) < 0.5, LINE.nodes(0) > 0.5)
    assert math.isnan(e.value) and e.interval == (-math.inf, math.inf)
