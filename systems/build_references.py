"""Makes the references of the toys, whose free energies are integrals: fes.dat, result.json and config.toml of each.

    python systems/build_references.py               # all of them, two CPU seconds

By quadrature over the cells of the grid that `molsamp free-energy` has (see `molecular.free_energy.exact`), so that the
errors are 0. They are those of exp(-U/kT), which dynamics in finite steps samples approximately. The references of
molecules are long runs, `molsamp free-energy SYSTEM --preset full --seed 1`, of whose folder these files are kept.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from molsamp.molecular import load
from molsamp.molecular.free_energy import exact, plumed
from molsamp.molecular.free_energy.settings import GridSettings
from molsamp.molecular.free_energy.task import Task
from molsamp.runs.checkpoint import write_text
from molsamp.runs.work import write_json

HERE = Path(__file__).resolve().parent
TOYS = ("double-well", "gaussians-2d", "gaussians-50d", "mueller-brown")
WORD = "Exact for exp(-U/kT), which the system's dynamics samples but for what its timestep does; errors are 0."


def build(name: str, folder: Path) -> None:
    """Write the reference of a toy into a folder."""
    task = Task.of(load(name))
    grid = task.grid(GridSettings())
    F = exact.surface(task, grid)
    result = {
        "verb": "free-energy",
        "system": name,
        "method": "quadrature",
        "seed": 0,
        "versions": {"molsamp": version("molsamp")},
        "engine": task.energy.tier,
        "energy_evaluations": exact.ORDER ** len(grid.shape) * F.F.size,
        "network_calls": 0,
        "results": {k: e.as_dict() for k, e in exact.differences(task, F).items()},
        "warnings": [WORD],
        "kT": task.kT,
    }
    folder.mkdir(exist_ok=True)
    write_text(folder / "fes.dat", plumed.grid_text(grid, fes=F.F, error=F.error))
    write_json(folder / "result.json", result)
    made = f'version = "{version("molsamp")}"\nverb = "free-energy"\nsystem = "{name}"\nmethod = "quadrature"\n'
    write_text(folder / "config.toml", f"# python systems/build_references.py {name}\n{made}")


if __name__ == "__main__":
    for toy in sys.argv[1:] or TOYS:
        build(toy, HERE / toy / "reference")
