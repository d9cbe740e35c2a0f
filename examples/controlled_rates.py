"""How often is a barrier of 10 kT crossed? A weighted ensemble, with its walkers led uphill and without (10 seconds).

The control is made of a free-energy profile. It changes how walkers move, and their weights make up for it: both rates
are those of the free dynamics, at the same number of evaluations.
"""

import math

import torch

import molsamp as ms
from molsamp.engine import Climb, Controlled, EulerMaruyama
from molsamp.engine.ensembles import Ensemble, Motion, Sight
from molsamp.engine.exact_rates import Chain, DoubleWell
from molsamp.engine.weighted_ensemble import Scheme, rate

barrier, dt, replicas, walkers, settle = 10.0, 1e-3, 16, 8, 50
well = DoubleWell(barrier)  # between -1 and 1, kT = 1


def look(x):
    return Sight(progress=x[:, 0], a=x[:, 0] <= -1.0, b=x[:, 0] >= 1.0)


def source(ids, step):
    return ms.Particles.at(torch.full((len(ids), 1), -1.0, dtype=torch.float64), ids=ids)


s = torch.linspace(-1.0, 1.0, 201, dtype=torch.float64)
F = well.energy_force(s[:, None])[0]
climb = Climb(lambda x: x[:, 0], s, F, kT=1.0, noise=math.sqrt(2.0 * dt), floor=1e-3)
free = ms.Overdamped(well, kT=1.0)

exact = 1.0 / Chain(well, dt, (-2.6, -1.0, 1.0, 2.6)).mfpt(-1.0)
print(f"exact rate of these steps  {exact:.3e}")
scheme = Scheme(looks=10, edges=torch.linspace(-1.0, 1.0, 19).double(), target=walkers, restart=source)
for name, dyn in (("free", free), ("led uphill", Controlled(free, climb))):
    motion = Motion(dyn, EulerMaruyama(), dt, every=1, look=look, noise=ms.Noise(0))
    ids = torch.arange(replicas * walkers)
    start = Ensemble.of(source(ids, 0), ids % replicas, torch.zeros_like(ids))
    end, history = scheme.run(motion, start, segments=120)
    total = torch.bincount(end.replica, end.weight)
    print(f"{name:26} {rate(history.part(settle))}, weight of a replica {total.mean():.3f} +- {total.std() / 4:.3f}")
