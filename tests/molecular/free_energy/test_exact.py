"""F of toys by quadrature: closed forms, the files in systems/, and a run that agrees with them."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from molsamp import Noise
from molsamp.molecular import load
from molsamp.molecular.free_energy import exact
from molsamp.molecular.free_energy.comparison import compare
from molsamp.molecular.free_energy.settings import GridSettings
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.free_energy.walkers import Metadynamics
from molsamp.molecular.system import bundled, reference
from molsamp.runs.reading import read

TOYS = ("double-well", "gaussians-2d", "gaussians-50d", "mueller-brown")


def of(name):
    task = Task.of(load(name))
    return task, exact.surface(task, task.grid(GridSettings()))


def test_a_mixture_in_fifty_dimensions_is_two_error_functions():
    """P of a cell is sum_k w_k [Phi((b - c_k)/sigma_k) - Phi((a - c_k)/sigma_k)], up to its far tails."""
    task, F = of("gaussians-50d")
    h, nodes = F.grid.spacing[0], torch.from_numpy(F.grid.nodes(0))
    P = torch.zeros_like(nodes)
    for w, c, sigma in ((0.75, -1.5, 0.4), (0.25, 1.5, 0.5)):
        upper, lower = (torch.special.ndtr((nodes + side * h / 2 - c) / sigma) for side in (1, -1))
        P += w * (upper - lower)
    known = P > 1e-6
    d = F.F + np.log(P.numpy())
    assert np.ptp(d[known]) < 1e-8 and not F.error.any()
    (dF,) = exact.differences(task, F).values()
    inside = [float(P[torch.from_numpy(m)].sum()) for m in task.regions(F.grid).values()]
    assert dF.value == pytest.approx(-math.log(inside[1] / inside[0]), abs=1e-9)
    assert dF.value == pytest.approx(math.log(3), abs=2e-3)  # some of the wide one lies below 0


def test_double_well_against_a_sum_over_a_fine_mesh():
    """A plain sum over 40 x 40 points in each of three cells; U in their middles alone is off by 0.02 kT."""
    task, F = of("double-well")
    h, (i, j) = F.grid.spacing[0], np.unravel_index(F.F.argmin(), F.F.shape)
    fine = torch.linspace(-0.5 + 1 / 80, 0.5 - 1 / 80, 40, dtype=torch.float64) * h
    mesh = torch.stack(torch.meshgrid(fine, fine, indexing="ij"), -1).reshape(-1, 2)
    logs, middles = [], []
    for a, b in ((i, j), (36, 14), (20, 50)):
        at = torch.tensor([F.grid.nodes(0)[a], F.grid.nodes(1)[b]]) + mesh
        logs.append((float(torch.exp(-task.energy.energy(at) / task.kT).mean().log()), F.F[a, b] / task.kT))
        middles.append(float(task.energy.energy(at.mean(0, keepdim=True))) / task.kT)
    for (log, value), middle in zip(logs[1:], middles[1:], strict=True):
        assert logs[0][0] - log == pytest.approx(value, abs=1e-4)
        assert abs(middle - middles[0] - value) > 5e-3


def test_molecules_and_marginals_are_refused():
    for task in (Task.of(load("alanine-dipeptide")), Task.of(load("double-well"), ["x"])):
        with pytest.raises(ValueError, match="F is known of toys, along all their coordinates"):
            exact.surface(task, task.grid(GridSettings()))


@pytest.mark.parametrize("name", TOYS)
def test_references_are_what_their_script_writes(name, tmp_path):
    spec = importlib.util.spec_from_file_location("build_references", bundled() / "build_references.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.build(name, tmp_path)
    made, kept = read(tmp_path), read(reference(name))
    assert np.allclose(made.surface.F, kept.surface.F, atol=1e-6, rtol=1e-8)
    assert made.surface.grid == kept.surface.grid and made.settings == kept.settings
    for key, entry in made.result["results"].items():
        assert kept.result["results"][key]["value"] == pytest.approx(entry["value"], abs=1e-9)


def test_metadynamics_agrees_with_quadrature_within_its_errors():
    """dF within its interval, F below 9.7 kT and the JSD within the noise of the run alone; the seed is fixed.

    All three held for seeds 1 to 3; a weight left out moves the barrier by 8 kT.
    """
    task, F = of("double-well")
    settings = {"walkers": 512, "build": 16.0, "settle": 1.0, "production": 10.0, "frame": 0.1, "record": 1.0}
    job = Metadynamics(task, noise=Noise(1), stride=0.1, height=0.05, factor=8.0, **settings).fit()
    found = compare(F, job.histogram.surface(), task.kT, 1.0, (math.inf, job.histogram.ess))
    assert found.mae.verdict == found.jsd.verdict == "within the noise" and found.mae.expected < 0.3 * task.kT
    (dF,), (true,) = job.differences().values(), exact.differences(task, F).values()
    assert dF.interval[0] < true.value < dF.interval[1] and dF.interval[1] - dF.interval[0] < task.kT
