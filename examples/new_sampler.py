"""How do I add a sampler? A constant push along x, written in a few lines, gets exact path weights for free."""

import torch

import molsamp as ms
from molsamp.engine import Controlled
from molsamp.molecular.paths.paths import Paths

task = ms.molecular.Problem.of(ms.load("double-well"), dtype=torch.float64)


def push(t: float, x: torch.Tensor, v: torch.Tensor | None) -> torch.Tensor:
    """A shift of the noise: towards +x until the end state is reached, nothing afterwards."""
    return 0.3 * torch.tensor([1.0, 0.0]).to(x) * (~task.inside(x))[:, None]


noise = ms.Noise(0)
start = task.initial(noise, torch.arange(512))
path = ms.rollout(Controlled(task.dynamics, push), task.integrator, start, task.times, noise=noise)
paths = Paths(task, path, path.log_ratio, method="push")

for name, estimate in paths.results().items():
    print(f"{name:10} {estimate}")
