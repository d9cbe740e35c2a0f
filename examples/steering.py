"""What comes out when samples are steered: the same function for pictures and for walkers, against the exact answer.

A mixture is tilted by a reward without a gradient (share of a rare mode, closed form), and Langevin walkers in a well
are steered uphill (log Z of the tilt, closed form).
"""

import math

import torch

import molsamp as ms
from molsamp.engine import DDIM, GaussianMixture, annealed, foreseen, steer, time_grid
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck

schedule, strength = ms.VP(), 3.0
means = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.0, -1.5]], dtype=torch.float64)
shares = torch.tensor([0.6, 0.35, 0.05], dtype=torch.float64)
model = GaussianMixture(means, torch.full((3,), 0.1, dtype=torch.float64), shares).sde(schedule)
grid = time_grid("log-snr", schedule, 50, 1.0, 1e-3)


def rare(x):
    return (torch.cdist(x, means).argmin(1) == 2).double()


def tilt(x):
    return strength * rare(x)


exact = 0.05 * math.exp(strength) / (1.0 + 0.05 * (math.exp(strength) - 1.0))
print(f"share of the rare mode: 0.05 in the model, {exact:.3f} in the tilted law")
for n in (4, 16, 64):
    start = ms.Particles.at(ms.Noise(0).normal(0, torch.arange(20 * n), (2,)))
    out = steer(
        model, DDIM(1.0), start, grid, tilt, noise=ms.Noise(1), value=foreseen(model, tilt), every=10, groups=20
    )
    print(f"  20 populations of {n:3d}: {out.pooled(rare(out.particles.x))}")


def far(x):
    return 4.0 * x[:, 0]


well = ornstein_uhlenbeck(rate=1.0, D=0.6, h=0.05, steps=40, x0=0.0)
log_z = 0.5 * 4.0**2 * float(well.moments()[1][-1])  # of exp(4 x) where x is N(0, S)
walkers = ms.Particles.at(torch.zeros(640, 1, dtype=torch.float64))
dyn, value = ms.Overdamped(Harmonic(1.0), kT=0.6), annealed(far, 0.0, well.times[-1])
out = steer(dyn, ms.EulerMaruyama(), walkers, well.times, far, noise=ms.Noise(2), value=value, every=2, groups=20)
print(f"walkers uphill: log Z {out.pooled_log_z()}, exact {log_z:.3f}; x {out.pooled(out.particles.x[:, 0], 'nm')}")
