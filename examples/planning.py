"""How do I plan for a vehicle of my own? A boat in a current by RRT and SST; a car by the policy that is shipped."""

import math

import torch

import molsamp as ms
from molsamp.planning import Car, OwnVehicle, plan, problem
from molsamp.planning.train import load
from molsamp.planning.vehicles import Body

CURRENT = torch.tensor([0.2, 0.0], dtype=torch.float64)


def drift(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """A boat over 0.05 s: heading and speed change as told, and the water moves."""
    speed, heading = (x[:, 3] + 0.05 * u[:, 0]).clamp(0.0, 1.0), x[:, 2] + 0.05 * u[:, 1]
    way = torch.stack([speed * heading.cos(), speed * heading.sin()], 1) + CURRENT
    return torch.cat([x[:, :2] + 0.05 * way, heading[:, None], speed[:, None]], 1)


boat = OwnVehicle(
    drift,
    Body(
        names=("x", "y", "psi", "v"),
        low=(-math.inf, -math.inf, -math.pi, 0.0),
        high=(math.inf, math.inf, math.pi, 1.0),
        weights=(1.0, 1.0, 0.2, 0.2),
        rate=(1.0, 2.0),
        actuators=(3, 2),
        headings=(2,),
    ),
    dt=0.05,
)

for vehicle, planner in ((boat, "rrt"), (boat, "sst"), (Car(C2=4.0), "rrt"), (Car(C2=4.0), "ditree")):
    task = problem("medium", vehicle, seed=1)
    found = plan(task, planner, noise=ms.Noise(0), sampler=load(), cpu_seconds=2.0)
    print(
        f"{type(vehicle).__name__:10} {planner:6} {'found' if found.solved else found.diagnosis}, "
        f"{found.counts.edges} edges, length over grid distance {found.length_ratio:.2f}"
    )
