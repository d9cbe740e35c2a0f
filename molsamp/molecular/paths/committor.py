"""Committor of the highest frames: is the top of a path a transition state?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles
from molsamp.molecular.paths.paths import Paths


class Committor(NamedTuple):
    """Fraction of free trajectories from each highest frame that reach the end before the start.

    Args:
        path: index of the path, (m,).
        value: fraction among the trajectories that reached either, (m,); NaN where none did.
        decided: number that reached either, (m,).
        shots: trajectories per frame.
    """

    path: Int[Tensor, " m"]
    value: Float[Tensor, " m"]
    decided: Int[Tensor, " m"]
    shots: int


def committor(paths: Paths, noise: Noise, *, shots: int = 10, most: int = 64, steps: int | None = None) -> Committor:
    """Shoot `shots` free trajectories with fresh thermal velocities from the highest frame of up to `most` hits.

    Args:
        paths: with energies.
        noise: keys of the trajectories.
        shots: trajectories per frame; the standard error of one committor is at most 1 / (2 sqrt(shots)).
        most: frames shot from.
        steps: rows of a trajectory, by default those of a path; one that reaches neither state does not count.
    """
    p = paths.problem
    chosen = paths.hit.nonzero()[:most, 0]
    if not len(chosen):
        return Committor(chosen, torch.zeros(0), chosen, shots)
    x = paths.path.x[paths.highest[chosen], chosen].repeat_interleave(shots, 0)
    ids = torch.arange(len(x))
    start = Particles.at(x, p.velocities(noise, ids), ids)

    def arrived(q: Particles) -> Tensor:
        return p.inside(q.x) | p.inside(q.x, p.start)

    times = [k * p.timestep for k in range((steps or p.steps) + 1)]
    final = rollout(p.dynamics, p.integrator, start, times, noise=noise, save="last", stop=arrived).final
    at_end = p.inside(final.x).view(-1, shots).sum(1)
    decided = at_end + p.inside(final.x, p.start).view(-1, shots).sum(1)
    return Committor(chosen, at_end.double() / decided, decided, shots)
