"""With which order do the solvers converge, on which grid?

RMSE to the exact flow of a mixture of three Gaussians in the plane, 64 noises, float64, smooth VP schedule, no lower
order at the end; the slope is that between 720 and 1440 network calls. "expected" is the order the method has on a
smooth grid: of the published 3M 2, of iPNDM 2 whatever its weights say, of UniPC-p p + 1. Even steps in t change the
log-SNR by ever more towards the data, so that grid has no asymptotic slope at such sizes, and is shown without verdict.

    python benchmarks/image_orders.py
"""

from __future__ import annotations

import math
from dataclasses import replace

import pictures
import torch
from interleaved import ROOT, Results, code_version

from molsamp.engine import VP, Exponential, GaussianMixture, Noise, time_grid
from molsamp.engine.integrators import Integrator
from molsamp.engine.singlestep import DPMSolver
from molsamp.image.sampling import sample
from molsamp.image.solvers import SOLVERS

RESULTS = ROOT / "benchmarks" / "results" / "image_orders.json"
CODE = (*pictures.ENGINE, "molsamp/image/solvers.py", "molsamp/image/sampling.py", "benchmarks/image_orders.py")
CALLS = (24, 720, 1440)  # so that rows of 2, 3 and 4 calls leave none over
GRIDS = ("log-snr", "karras", "uniform")
WITHIN = 0.15


class Mixture:
    """The model."""

    schedule, event = VP(), (2,)

    def __init__(self):
        A = torch.tensor([[[0.5, 0.0], [0.2, 0.3]], [[0.3, 0.0], [-0.1, 0.4]], [[0.4, 0.0], [0.0, 0.4]]])
        means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
        self.law = GaussianMixture(means, A @ A.transpose(1, 2), torch.tensor([0.5, 0.3, 0.2]))

    def __call__(self, x, t):
        return self.law.denoise(self.schedule, x, t)


def errors(name: str, grid: str, exact: torch.Tensor) -> list[float]:
    """RMSE at each number of calls."""
    model, found = Mixture(), []
    for calls in CALLS:
        integrator, intervals = SOLVERS[name].plan(calls)
        solver: str | Integrator = name
        if isinstance(integrator, Exponential):
            solver = replace(integrator, short=0)
        elif isinstance(integrator, DPMSolver):
            order = integrator.orders[0]
            solver, intervals = replace(integrator, orders=(order,) * (calls // order)), calls // order
        times = time_grid(grid, model.schedule, intervals)
        steps = calls if solver == name else intervals
        x = sample(model, solver, steps, 64, noise=Noise(11), grid=times, dtype=torch.float64).final.x
        found.append(float((x - exact).square().mean().sqrt()))
    return found


def main() -> None:
    """The table."""
    torch.set_num_threads(1)
    model, results, code = Mixture(), Results(RESULTS, ("solver", "grid")), code_version(*CODE)
    fine = Exponential(4, corrects=4, rule="exact", short=0)
    exact = sample(model, fine, 9000, 64, noise=Noise(11), grid="log-snr", dtype=torch.float64).final.x
    print(f"{'solver':16} {'expected':>8} " + " ".join(f"{g + ': slope, RMSE at 24':>28}" for g in GRIDS))
    for name, solver in SOLVERS.items():
        if name in pictures.STOCHASTIC or name in ("unipc", "dc"):  # the second is unipc-2 with searched ratios
            continue
        cells = []
        for grid in GRIDS:
            if not results.has(code, solver=name, grid=grid):
                e = errors(name, grid, exact)
                slope = math.log2(e[1] / e[2])
                results.add(code, solver=name, grid=grid, expected=solver.converges, slope=slope, rmse=e)
            e = next(r for r in results.newest() if (r["solver"], r["grid"]) == (name, grid))
            off = abs(e["slope"] - solver.converges) > WITHIN and grid != "uniform"
            cells.append(f"{e['slope']:.2f}{' !' if off else '  '} {e['rmse'][0]:8.1e}".rjust(28))
        print(f"{name:16} {solver.converges:8} " + " ".join(cells), flush=True)


if __name__ == "__main__":
    main()
