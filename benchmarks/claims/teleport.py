"""Teleportation by a fitted Gaussian against the same solver from the prior, on the two trained networks.

Both take the same network calls and the grid that suits them best; grid and rho were chosen by `choose` on 128 other
noises (`python benchmarks/claims/teleport.py` prints the choice again). The paper drops 15 to 30 % of the steps at
unchanged quality: the extras "kept calls" do so on the default grid.
"""

from __future__ import annotations

import math

import torch

from molsamp.engine import Noise
from molsamp.image import data
from molsamp.image.models import load
from molsamp.image.sampling import sample
from molsamp.image.teleport import fit_gaussian, teleport

CLAIM = (
    "a jump by the exact flow of the data's Gaussian, its saved calls spent after it, is nearer to the fine trajectory "
    "than the same solver from the prior (UniPC-3, 8 calls, MNIST U-Net)"
)
UNIT = "RMSE to the fine trajectory from the same noise, pixels in [-1, 1]"
CALLS = 8
# grid and rho of the jump; the grid of the baseline
CHOSEN = {
    "mnist": ("quadratic", 10.0, "quadratic"),
    "digits": ("log-snr", 5.0, "quadratic"),
}  # grid, rho; the baseline's grid
FINE = {"mnist": 60, "digits": 200}
DROP = 10.0  # rho down to which "kept calls" begins


class Case:
    """A model, its Gaussian, noises and their fine ends."""

    def __init__(self, name: str, noise: Noise, n: int):
        self.model = load(name)
        self.gaussian = fit_gaussian({"mnist": data.mnist, "digits": data.digits}[name]().split()[0].x)
        self.schedule = self.model.schedule
        sigma = self.schedule.sigma(self.schedule.start)
        self.x = noise.normal(0, torch.arange(n), self.model.event, torch.float32) * sigma
        self.fine = self.end(self.x, "log-snr", FINE[name])

    def end(self, start, grid, calls: int) -> torch.Tensor:
        """Pictures by UniPC."""
        return sample(self.model, "unipc-3", calls, noise=Noise(0), grid=grid, start=start).final.x

    def error(self, grid: str, rho: float = math.inf, rest: str = "spread", calls: int = CALLS) -> float:
        """RMSE with a jump to rho, or without one."""
        start, times = self.x, grid
        if rho < math.inf:
            start, times = teleport(self.gaussian, self.schedule, self.x, rho, calls, grid, rest)
            calls = len(times) - 1
        return float((self.end(start, times, calls) - self.fine).square().mean().sqrt())


def choose(name: str) -> tuple[str, float, str]:
    """(grid, rho) of the jump and the grid without one, on noises that are never scored."""
    case, grids = Case(name, Noise(1 << 40).child("choose"), 128), ("uniform", "quadratic", "log-snr", "karras")
    jump = min((case.error(grid, rho), grid, rho) for grid in grids for rho in (40.0, 20.0, 10.0, 5.0, 2.5))
    return jump[1], jump[2], min((case.error(grid), grid) for grid in grids)[1]


def measure(seed: int) -> dict[str, float]:
    """About 20 CPU seconds."""
    figures = {}
    for name, mark in (("mnist", ""), ("digits", ", digits")):
        case, (grid, rho, plain) = Case(name, Noise(seed), 256), CHOSEN[name]
        figures["method" + mark] = case.error(grid, rho)
        figures["baseline" + mark] = case.error(plain)
    _, times = teleport(case.gaussian, case.schedule, case.x[:1], DROP, 10, "uniform", "drop")
    figures[f"{len(times) - 1} kept calls of 10, digits"] = case.error("uniform", DROP, "drop", 10)
    figures["all 10 calls, digits"] = case.error("uniform", calls=10)
    return figures


if __name__ == "__main__":
    for name in CHOSEN:
        print(name, choose(name))
