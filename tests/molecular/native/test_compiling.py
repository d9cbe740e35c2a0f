"""Compiled kernels on disk: found again, rebuilt when stale, done without where nothing can be written; lazy numba."""

import os
import re
import subprocess
import sys

import pytest

NOTICE = "molsamp: compiling {} force kernels"
STEP = """
import sys, torch
import molsamp as ms, openmm
system = openmm.System()
for _ in range(2): system.addParticle(12.0)
bond = openmm.HarmonicBondForce(); bond.addBond(0, 1, 0.1, 1e4); system.addForce(bond)
dtype = getattr(torch, sys.argv[1])
energy = ms.molecular.NativeEnergy.from_openmm(system, dtype, "lanes")
x = torch.tensor([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]], dtype=dtype)
dyn = ms.Underdamped(energy, torch.full((2, 1), 12.0), 2.5, 1.0)
path = ms.rollout(dyn, ms.LangevinMiddle(), ms.Particles.at(x, 0 * x), [0.001 * k for k in range(6)], noise=ms.Noise(1))
print(path.x[-1].flatten().tolist())
"""


def start(cache, *arguments, code=STEP, **environment):
    """A fresh Python that steps two atoms natively, its kernels kept in `cache`."""
    env = {**os.environ, "MOLSAMP_CACHE": str(cache), "MOLSAMP_THREADS": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "always", "-c", code, *(arguments or ("float32",))]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """(stdout, stderr) of a process that has to succeed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def test_numba_is_imported_by_nothing_but_lanes_at_work(tmp_path):
    """Not by the package, its command line, its systems or the class NativeEnergy."""
    code = """
import sys
for statement in (
    "import molsamp, molsamp.molecular, molsamp.engine",
    "molsamp.rollout, molsamp.molecular.System, molsamp.molecular.NativeEnergy, molsamp.molecular.Problem",
    "import molsamp.molecular.bias, molsamp.runs.cli",
    "molsamp.load('double-well').energy()",
):
    exec(statement)
    assert 'numba' not in sys.modules, statement
"""
    finish(start(tmp_path, code=code))
    assert not list(tmp_path.iterdir())


TWO_ENTRIES = """
from molsamp.molecular.native.compiling import entry
print([entry(f)(3) for f in (lambda a: a + 1, lambda a: 2 * a)])
"""


@pytest.mark.parametrize(
    "code, result",
    [(TWO_ENTRIES, "[4, 6]\n"), pytest.param(STEP, None, marks=pytest.mark.slow)],
    ids=["two functions", "a rollout"],
)
def test_a_cache_that_cannot_be_written_costs_one_warning(code, result, tmp_path):
    """Below a regular file, where not even root can write; all is compiled for this process and works."""
    (tmp_path / "file").write_text("")
    out, err = finish(start(tmp_path / "file" / "cache", code=code))
    assert len(re.findall("RuntimeWarning", err)) == 1 and "MOLSAMP_CACHE" in err
    assert out == (result or finish(start(tmp_path / "cache", code=code))[0])


@pytest.mark.slow
def test_a_cold_start_says_so_and_a_warm_one_is_silent(tmp_path):
    """Under 15 s and 2 s beyond a start without kernels, in CPU time, so that a busy machine does not show."""
    bare = "import molsamp as ms, openmm, torch; ms.rollout; ms.molecular.NativeEnergy"

    def cost(**options):
        before = os.times()
        out, err = finish(start(tmp_path, **options))
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return spent, out, err

    without = cost(code=bare)[0]
    cold, first, said = cost()
    warm, second, silent = cost()
    assert said.count(NOTICE.format("float32")) == 1 and not silent and first == second
    assert cold - without < 15.0 and warm - without < 2.0, (without, cold, warm)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("lanes-") and list(folder.rglob("*.nbi"))


@pytest.mark.slow
def test_processes_that_start_cold_together_do_not_spoil_the_cache(tmp_path):
    """Three at once, then one that finds everything compiled; the same numbers from all."""
    together = [finish(p) for p in [start(tmp_path, "float64") for _ in range(3)]]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")}
    out, err = finish(start(tmp_path, "float64"))
    assert not err and {o for o, _ in together} == {out}
    assert files and files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")}
