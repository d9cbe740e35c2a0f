"""Walkers on the double well, whose free energies are integrals; the same bytes after a resume; honest refusals."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from molsamp import Noise
from molsamp.molecular import load
from molsamp.molecular.free_energy.analysis import analyse
from molsamp.molecular.free_energy.diffusion.adjoint import AS, ASBS, WTASBS
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.free_energy.umbrella import Umbrella
from molsamp.molecular.free_energy.walkers import OPES, Metadynamics, Walkers

TINY = {"walkers": 16, "settle": 0.2, "production": 0.8, "frame": 0.04, "record": 0.2, "snapshots": 2}
HILLS = {"build": 0.8, "stride": 0.02, "height": 0.02, "width": [0.15], "factor": 8.0}
GRID = {"nodes": 56, "ranges": [[-1.75, 1.75]]}


@pytest.fixture(scope="module")
def well():
    """The double well with steps short enough that Euler-Maruyama's own law is that of exp(-U/kT) to 1 %."""
    system = load("double-well")
    return dataclasses.replace(system, settings=system.settings.model_copy(update={"timestep": 0.004}))


def exact(well, grid, keep=0):
    """F(x) or F(y) at the nodes by quadrature over the other coordinate and over each cell, in kT, minimum 0."""
    fine = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    h = grid.spacing[0]
    inside = torch.linspace(-0.5 * h, 0.5 * h, 9, dtype=torch.float64)
    at = (torch.from_numpy(grid.nodes(0))[:, None] + inside).reshape(-1)
    mesh = torch.meshgrid(at, fine, indexing="ij")
    xy = torch.stack(mesh if keep == 0 else mesh[::-1], -1).reshape(-1, 2)
    p = torch.exp(-well.energy().energy(xy) / well.kT).view(len(grid.nodes(0)), -1).sum(1)
    F = -torch.log(p).numpy()
    return F - F.min()


def test_the_chains_of_the_player_carry_the_names_of_the_regions(tmp_path):
    """Two walkers in one state: a chain for its region, and none for the region nobody was in."""
    system = load("alanine-dipeptide")
    settings = {"walkers": 2, "settle": 0.01, "production": 0.02, "frame": 0.01, "record": 0.01, "snapshots": 2}
    job = Walkers(Task.of(system), noise=Noise(0), **settings).fit()
    analyse(job).save(tmp_path)
    chains = [line for line in (tmp_path / "player.pdb").read_text().splitlines() if "REMARK" in line]
    assert list(system.regions) == ["left", "right"] and chains == ["REMARK CHAIN A left"]


def test_metadynamics_gives_the_free_energy_of_the_double_well(well):
    """F(x) by weights within its errors of the integral, 10 kT of barrier included; seed fixed.

    Cells below 12 kT: the mean of (F - exact)^2 / error^2 is near 1 (0.6 to 2.2 for seeds 1 to 3; cells are correlated)
    and the mean difference 0.05 kT; V without gamma/(gamma - 1) is off by 0.35 kT, a wrong weight by several.
    The walkers start in both wells in turn; dF of the two halves is 0 by symmetry.
    """
    settings = {**HILLS, "walkers": 512, "settle": 2.0, "production": 12.0, "frame": 0.1, "record": 0.5, "build": 12.0}
    settings |= {"stride": 0.1, "height": 0.1}
    job = Metadynamics(Task.of(well, ["x"]), noise=Noise(1), grid=GRID, **settings).fit()
    surface, kT = job.histogram.surface(), well.kT
    F = exact(well, job.grid)
    low = F < 12
    d = surface.F[low] / kT - F[low]
    d -= np.average(d, weights=1 / surface.error[low] ** 2)
    assert np.isfinite(surface.error[low]).all()
    assert (d**2 / (surface.error[low] / kT) ** 2).mean() < 3
    assert np.abs(d).mean() < 0.12
    assert np.abs((job.bias.values.max() - job.bias.values) / kT - F)[low].mean() > 0.25
    dF = job.differences()["dF:left->right"]
    assert dF.interval[0] < 0 < dF.interval[1] and dF.interval[1] - dF.interval[0] < kT
    growing, low = job.growing.surface().F / kT - F, F < 8
    assert np.abs(growing[low] - growing[low].mean()).mean() < 0.18  # by c(t); 0.09 and 0.08 for seeds 1 and 2
    by_c = job.others()["dF_growing:left->right"]
    assert by_c.interval[0] < 0 < by_c.interval[1]
    analysis = analyse(job)
    assert analysis.results()["disagreement"].value < 0.3 * kT
    assert analysis.warnings() == []


def test_unbiased_walkers_know_nothing_of_where_they_never_went(well):
    """Plain dynamics from one well: the other stays unseen, the difference is unknown, and the report says so."""
    job = Walkers(Task.of(well, ["x"]), noise=Noise(2), grid=GRID, **TINY).fit()
    assert not np.isfinite(job.histogram.surface().F[job.regions["right"]]).any()
    assert math.isnan(job.differences()["dF:left->right"].value)
    assert "0 of 16 walkers were in both left and right" in analyse(job).warnings()[0]


def test_two_cvs_agree_with_one(well):
    """Of samples on a surface the profile of x is the one of a histogram of x alone."""
    both = Walkers(Task.of(well, ["x", "y"]), noise=Noise(3), grid={"nodes": 40, "ranges": [[-2, 2], [-2, 2]]}, **TINY)
    one = Walkers(Task.of(well, ["x"]), noise=Noise(3), grid={"nodes": 40, "ranges": [[-2, 2]]}, **TINY)
    assert np.allclose(both.fit().histogram.profile(0).F, one.fit().histogram.surface().F)


@pytest.mark.parametrize("kind", [Walkers, Metadynamics, OPES, Umbrella, AS, ASBS, WTASBS])
def test_advice_names_settings_that_the_method_has(kind):
    """Every word in `...` is a setting of that method; with a bias, advice on how to let it converge names one."""
    named = re.findall(r"`(\w+)`", kind.advice + kind.longer)
    assert named and set(named) <= set(kind.Settings.model_fields)
    assert bool(re.search("`", kind.longer)) == (kind not in (Walkers, Umbrella))


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_resumed_run_is_the_same_run(well, stop):
    """Surfaces, lines of files and walkers are equal to the last bit wherever the run was cut."""

    def begin():
        return Metadynamics(Task.of(well, ["x"]), noise=Noise(4), grid=GRID, **TINY, **HILLS)

    whole, parts = begin(), begin()
    lines = []
    while whole.k < whole.total:
        whole.advance()
        lines.append(whole.lines())
    for _ in range(stop):
        parts.advance()
    saved = {k: b.clone() for k, b in parts.state().items()}
    again = begin()
    again.load(saved)
    for k in range(stop, again.total):
        again.advance()
        assert again.lines() == lines[k]
    assert torch.equal(again.p.x, whole.p.x) and np.array_equal(again.bias.values, whole.bias.values)
    assert torch.equal(again.histogram.weight, whole.histogram.weight)
    assert torch.equal(again.growing.weight, whole.growing.weight) and again.growing.count == whole.growing.count > 0
    assert np.array_equal(again.history, whole.history, equal_nan=True) and again.evaluations == whole.evaluations
    assert all(torch.equal(a, b) for a, b in zip(again.snapshots, whole.snapshots, strict=True))


def test_hills_in_the_file_are_the_bias(well, tmp_path):
    """The sum of the Gaussians in HILLS is -F by the bias, as PLUMED's sum_hills has it."""
    from molsamp.molecular.free_energy import plumed

    job = Metadynamics(Task.of(well, ["x"]), noise=Noise(5), grid=GRID, **TINY, **HILLS)
    text = ""
    while job.k < job.built:
        job.advance()
        text += job.lines()["HILLS"]
    (tmp_path / "HILLS").write_text(text)
    hills, _ = plumed.read(tmp_path / "HILLS")
    nodes = job.grid.nodes(0)[8:-8]  # away from the mirror images
    total = sum(h * np.exp(-0.5 * ((nodes - s) / 0.15) ** 2) for h, s in zip(hills["height"], hills["x"], strict=True))
    assert np.allclose(total, job.bias.scale * job.bias.values[8:-8], rtol=1e-6)


def test_a_walker_that_diverges_harms_no_other(well):
    job = Metadynamics(Task.of(well, ["x"]), noise=Noise(6), grid=GRID, **TINY, **HILLS)
    sound = Metadynamics(Task.of(well, ["x"]), noise=Noise(6), grid=GRID, **TINY, **HILLS)
    x = job.p.x.clone()
    x[3] = math.nan
    job.p = job.p.evolve(x=x)
    job.advance()
    sound.advance()
    assert job.lost == 1 and np.isfinite(job.bias.values).all()
    job.fit()
    assert float(job.histogram.weight[3].sum()) == 0.0 and float(job.histogram.weight.sum()) > 0.0
    assert "1 of 16 walkers diverged" in analyse(job).warnings()[0]


def test_files(well, tmp_path):
    job = Metadynamics(Task.of(well, ["x"]), noise=Noise(7), grid=GRID, **TINY, **HILLS).fit()
    analyse(job).save(tmp_path)
    from molsamp.molecular.free_energy import plumed

    grid, columns = plumed.read_grid(tmp_path / "fes.dat")
    assert grid == job.grid and columns["fes"].min() == 0.0
    rows = np.genfromtxt(tmp_path / "figures" / "weights.csv", delimiter=",", names=True)
    assert rows["share"].sum() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": [0.1]}, "hills of width 0.1 need nodes at most 0.05 apart"),
        ({"width": [0.15, 0.1]}, "as many widths"),
        ({"frame": 1e-9}, "frame: got 1e-09, which is less than the timestep"),
        ({"factor": 1.0}, "factor"),
    ],
)
def test_what_cannot_be_is_refused(well, change, message):
    with pytest.raises(ValueError, match=message):
        Metadynamics(Task.of(well, ["x"]), **{**TINY, **HILLS, "grid": GRID, **change})


def test_a_cv_without_period_needs_a_range(well):
    settings = {**TINY, **HILLS, "grid": {"nodes": 72}}
    assert Metadynamics(Task.of(well, ["x"]), **settings).grid.ranges == ((-1.75, 1.75),)  # the system's own
    with pytest.raises(ValueError, match="CV 'x' has no period and needs a range"):
        Metadynamics(Task.of(dataclasses.replace(well, ranges={}), ["x"]), **settings)


def test_cvs_are_checked_by_name(well):
    with pytest.raises(ValueError, match=r"no CV 'z'.*Allowed: x, y"):
        Task.of(well, ["z"])
    with pytest.raises(ValueError, match="one or two CVs, got x, x"):
        Task.of(well, ["x", "x"])
