"""Every example runs, is short, and is listed in the README."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHORT = {"transition_paths.py": ["2"], "exact_ensemble.py": ["3"], "free_energy.py": ["0.02"]}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.name)
def test_it_runs(file):
    assert len(file.read_text().splitlines()) < 60
    assert file.name in (ROOT / "README.md").read_text()
    command = [sys.executable, str(file), *SHORT.get(file.name, [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout
