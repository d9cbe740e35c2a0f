"""What is measured on paths, on paths made by hand and on pulled ones; files; committors."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch

from molsamp.engine import Noise, Particles, Path, Status
from molsamp.molecular import Problem, load
from molsamp.molecular.paths import make
from molsamp.molecular.paths.analysis import analyse
from molsamp.molecular.paths.committor import committor
from molsamp.molecular.paths.paths import Paths, divergence_bound
from molsamp.molecular.paths.save import save
from molsamp.molecular.paths.settings import METHODS, PRESETS, method_settings
from molsamp.molecular.paths.steered import steered_null


@pytest.fixture(scope="module")
def problem():
    return Problem.of(load("double-well"), dtype=torch.float64)


def by_hand(problem, tracks, log_rn, **changes):
    """Paths through given points, one list of (x, y) a path, with their true energies."""
    x = torch.tensor(tracks, dtype=torch.float64).transpose(0, 1)
    energy = torch.stack([problem.energy.energy(f) for f in x])
    log_rn = torch.tensor(log_rn, dtype=torch.float64)
    times = torch.arange(len(x), dtype=torch.float64)
    path = Path(times, x, None, None, energy, log_rn, Particles.at(x[-1]), 1)
    return dataclasses.replace(Paths(problem, path, log_rn, "hand"), **changes)


LEFT, UP, DOWN, RIGHT = (-1.118, 0.0), (0.0, 1.0), (0.0, -1.0), (1.118, 0.0)


def test_metrics_of_three_paths(problem):
    """Two hits through the two saddles and one miss: every number by hand."""
    paths = by_hand(problem, [[LEFT, UP, RIGHT], [LEFT, DOWN, RIGHT], [LEFT, LEFT, UP]], [1.0, 2.0, 0.0])
    assert paths.hit.tolist() == [True, True, False]
    assert paths.hit_rate().value == pytest.approx(2 / 3)
    assert paths.closest.tolist() == [2, 2, 2]
    assert paths.ets().value == pytest.approx(1.0 - (-1 / 12), abs=1e-6)
    assert paths.divergence().value == pytest.approx(1.0)
    assert paths.channels().value == pytest.approx(0.5)
    w = torch.tensor([math.exp(-1), math.exp(-2)])
    assert paths.ess() == pytest.approx(float(w.sum() ** 2 / (w**2).sum()))
    assert paths.log_z().value == pytest.approx(math.log(float(w.sum()) / 3))


def test_the_path_is_cut_at_its_closest_frame(problem):
    """An excursion after the arrival does not raise the barrier: U(0.5, 1.5) = 12.5 is not counted."""
    paths = by_hand(problem, [[LEFT, UP, RIGHT, (0.5, 1.5)]], [0.0])
    assert paths.ets().value == pytest.approx(1 + 1 / 12, abs=1e-6)
    assert paths.rmsd().value < 1e-3


def test_a_diverged_path_is_no_hit(problem):
    paths = by_hand(problem, [[LEFT, UP, RIGHT]], [0.0])
    final = paths.path.final.evolve(status=torch.tensor([int(Status.DIVERGED)], dtype=torch.int8))
    paths = dataclasses.replace(paths, path=dataclasses.replace(paths.path, final=final))
    assert paths.hit_rate().value == 0.0
    assert any("diverged" in w for w in paths.warnings())


def test_warnings_are_in_words(problem):
    driven = by_hand(problem, [[LEFT, UP, RIGHT]] * 20, [10.0 * i for i in range(20)])
    assert any("driven paths" in w for w in driven.warnings())
    assert not by_hand(problem, [[LEFT, UP, RIGHT]] * 20, [0.0] * 20).warnings()
    assert any("no transition path" in w for w in by_hand(problem, [[LEFT, LEFT, LEFT]], [0.0]).warnings())


def test_an_exact_ensemble_has_equal_weights(problem):
    paths = by_hand(problem, [[LEFT, UP, RIGHT]] * 2, [20.0, 20.0], exact=True, effective=1.5)
    assert paths.ess() == 1.5 and math.isnan(paths.log_z().value)
    assert paths.logw.tolist() == [0.0, 0.0]


def test_the_bound_is_attained_by_conditioning():
    assert divergence_bound(1.0, math.exp(-18.0)) == pytest.approx(18.0)
    assert divergence_bound(0.3, 0.3) == pytest.approx(0.0)
    assert divergence_bound(0.0, 0.1) == pytest.approx(-math.log(0.9))


def test_committors_of_symmetric_saddles_are_one_half(problem):
    """64 saddles x 40 shots, no memory of velocity: 0.5 +- 5 x 0.01 (false alarm 6e-7), and 0 or 1 at the wells."""
    saddle = by_hand(problem, [[LEFT, UP, RIGHT], [LEFT, DOWN, RIGHT]] * 32, [0.0] * 64)
    c = committor(saddle, Noise(0), shots=40, steps=300)
    assert abs(float((c.value * c.decided).sum() / c.decided.sum()) - 0.5) < 0.05
    near = by_hand(problem, [[LEFT, (0.6, 0.6), RIGHT]] * 4, [0.0] * 4)
    assert float(committor(near, Noise(0), shots=40, steps=300).value.mean()) > 0.9
    none = by_hand(problem, [[LEFT, LEFT, LEFT]], [0.0])
    assert not len(committor(none, Noise(0)).path)


@pytest.fixture(scope="module")
def pulled():
    problem = Problem.of(load("alanine-dipeptide"), steps=200)
    return steered_null(problem, 4, Noise(1), stiffness=3000.0)


def test_files_are_read_back_by_others(pulled, tmp_path):
    """mdtraj reads the trajectory with its topology, and sees the CVs of frames.csv."""
    import mdtraj

    save(pulled, tmp_path)
    t = mdtraj.load_dcd(str(tmp_path / "paths.dcd"), top=str(tmp_path / "topology.pdb"))
    assert t.n_frames == 4 * 101
    phi = mdtraj.compute_dihedrals(t, [[4, 6, 8, 14]])[:, 0]
    with (tmp_path / "frames.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["path", "frame", "time_ps", "phi", "psi", "energy", "log_rn", "hit"]
    written = np.array([float(r["phi"]) for r in rows])
    assert np.abs(np.angle(np.exp(1j * (phi - written)))).max() < 1e-4
    assert float(rows[-1]["time_ps"]) == pytest.approx(0.2)


def test_same_paths_are_same_bytes(pulled, tmp_path):
    for name in ("a", "b"):
        save(pulled, tmp_path / name)
    names = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert names == ["frames.csv", "paths.dcd", "paths.safetensors", "player.pdb", "topology.pdb"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_saved_tensors_reproduce_the_density(pulled, tmp_path):
    """x, v, z of paths.safetensors are enough to recompute every residual."""
    from safetensors.torch import load_file

    from molsamp.engine import residuals

    save(pulled, tmp_path)
    t = load_file(tmp_path / "paths.safetensors")
    path = dataclasses.replace(pulled.path, x=t["x"], v=t["v"], times=t["times"])
    z, _ = residuals(path, pulled.problem.dynamics, pulled.problem.integrator)
    assert float((z - t["z"]).abs().max()) < 2e-4


def test_every_method_ends_in_results():
    """Each method runs through the common door on a tiny problem, with its null and committors."""
    small = {
        "tps-dps": {"rollouts": 2, "samples": 8, "gradient_steps": 2, "batch": 4, "validation": 4},
        "shooting": {"chains": 4, "moves": 2, "burn_in": 1},
        "chain": {"chains": 4, "groups": 2, "moves": 2, "levels": 1, "level_moves": 2},
        "steered": {},
        "md": {},
        "twisted": {
            "particles": 32,
            "populations": 2,
            "levels": 2,
            "refinements": 1,
            "pairs": 16,
            "classify_steps": 5,
            "refine_steps": 5,
        },
        "vibid": {"chains": 4, "moves": 2, "burn_in": 2},
    }
    assert small.keys() == METHODS.keys()
    system = load("double-well")
    for method, settings in small.items():
        sampler = make(system, method, METHODS[method](**settings), seed=0, paths=8).fit()
        summary = analyse(sampler).summary()
        assert {"hit_rate", "rmsd", "ets", "log_rn", "path_ess"} <= summary["results"].keys(), method
        assert summary["null"]["hit_rate"]["n"] == summary["results"]["hit_rate"]["n"], method


def test_presets_fit_their_schemas():
    for preset in PRESETS:
        for method in METHODS:
            method_settings(method, {}, preset)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no state 'C7'"):
        Problem.of(load("alanine-dipeptide"), end="C7")
    with pytest.raises(ValueError, match="they must differ"):
        Problem.of(load("alanine-dipeptide"), end="C5")
    with pytest.raises(ValueError, match="method 'tsp' is not one of"):
        make(load("double-well"), "tsp", None, seed=0)
    with pytest.raises(ValueError, match="did you mean 'rollouts'"):
        from molsamp.molecular import LearnedPaths

        LearnedPaths(Problem.of(load("double-well")), rolouts=3)


def test_a_measured_hit_probability_counts_for_its_own_problem_only():
    ala = load("alanine-dipeptide")
    assert Problem.of(ala).log_p_hit == ala.settings.log_p_hit
    assert Problem.of(ala, steps=500).log_p_hit is None
    assert Problem.of(ala, temperature=400).log_p_hit is None


def test_a_device_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match="paths run on 'cpu'"):
        make(load("double-well"), "md", METHODS["md"](), seed=0, device="cuda")
