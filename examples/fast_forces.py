"""How fast and how exact are native forces on a System of my own? Any openmm.System without cutoff will do."""

import math
import time

import numpy as np
import torch

import molsamp as ms
from molsamp.molecular.bias import GridBias

ala = ms.load("alanine-dipeptide-gbn2")
system = ala.forcefield_system()  # an ordinary openmm.System: make yours with createSystem(constraints=None)
energy = ms.molecular.NativeEnergy.from_openmm(system, dtype=torch.float32)
judge = ms.molecular.OpenMMEnergy(system, platform="Reference")
print("tier:", energy.tier)

noise, n = ms.Noise(0), 256
shaken = 0.003 * noise.normal(0, torch.arange(n), ala.event, torch.float32)
x = ala.states[ala.settings.start].x.float() + shaken
force, exact = energy.force(x), judge.force(x.double())
error = (force - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
print(f"largest relative error of the force over {n} frames: {float(error.max()):.1e}")

# an umbrella on phi (of a grid on phi and psi) joins the energy, and the whole rollout stays native
nodes = -math.pi + 2 * math.pi * np.arange(36) / 36
umbrella = 100 * (1 - np.cos(nodes[:, None] + 1)) + 0 * nodes
biased = energy + GridBias([ala.cvs["phi"], ala.cvs["psi"]], umbrella, [(-math.pi, math.pi)] * 2, ala.event)
for name, field in (("free", energy), ("umbrella at phi = -1", biased)):
    dynamics = ms.Underdamped(field, ala.masses[:, None], ala.kT, friction=1.0)
    start = ms.Particles.at(x, torch.zeros_like(x))
    began = time.perf_counter()
    path = ms.rollout(dynamics, ms.LangevinMiddle(), start, [0.001 * k for k in range(501)], noise=noise, save=500)
    rate = 500 * n / (time.perf_counter() - began)
    near = float((ala.cvs["phi"](path.x[-1]) + 1).cos().mean())
    print(f"{name:20} {rate / 1e3:6.0f} thousand steps a second; mean cos(phi + 1) after 0.5 ps = {near:+.2f}")
