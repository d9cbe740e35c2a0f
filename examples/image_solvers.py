"""The same engine for images: how fast do DDIM and DPM-Solver++ 2M converge on a mixture whose score is exact?"""

import torch

import molsamp as ms
from molsamp.engine import GaussianMixture, time_grid

schedule = ms.VP()
mixture = GaussianMixture(
    means=torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.0, -1.5]], dtype=torch.float64),
    covs=torch.tensor([0.1, 0.2, 0.1], dtype=torch.float64),
    weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
)
model = mixture.sde(schedule)
start = ms.Particles.at(ms.Noise(0).normal(0, torch.arange(256), (2,)))


def sample(order: int, steps: int) -> torch.Tensor:
    grid = time_grid("log-snr", schedule, steps, 1.0, 1e-3)
    return ms.rollout(model, ms.Exponential(order=order), start, grid, noise=ms.Noise(1), save="last").final.x


exact = sample(2, 2000)
print("steps  DDIM      DPM-Solver++ 2M   (RMSE to 2000 steps)")
for steps in (5, 10, 20, 40):
    errors = [(sample(order, steps) - exact).square().mean().sqrt().item() for order in (1, 2)]
    print(f"{steps:5d}  {errors[0]:.2e}  {errors[1]:.2e}")
