"""The one-dimensional double well as the rate methods see it, for tests: A: x <= -1, B: x >= 1, D = kT = 1."""

import torch

from molsamp.engine import EulerMaruyama, Noise, Overdamped, Particles
from molsamp.engine.ensembles import Ensemble, Motion, Sight
from molsamp.engine.exact_rates import Chain, DoubleWell
from molsamp.engine.forward_flux import ForwardFlux
from molsamp.engine.weighted_ensemble import Scheme

DT = 1e-3
LEVELS = {2: (-0.8, -0.4, 0.0), 5: (-0.85, -0.7, -0.5, -0.3, 0.0), 10: (-0.87, -0.75, -0.64, -0.53, -0.42, -0.3, -0.1)}


def look(x):
    return Sight(x[:, 0], x[:, 0] <= -1.0, x[:, 0] >= 1.0)


def motion(b, seed, every=1, dt=DT):
    return Motion(Overdamped(DoubleWell(b), 1.0), EulerMaruyama(), dt, every, look, Noise(seed))


def source(ids, step):
    return Particles.at(torch.full((len(ids), 1), -1.0, dtype=torch.float64), ids=ids)


def start(replicas, walkers, both=False):
    ids = torch.arange(replicas * walkers)
    colour = ids // replicas % 2 if both else torch.zeros_like(ids)
    x = torch.where(colour == 0, -1.0, 1.0).double()[:, None]
    return Ensemble.of(Particles.at(x), ids % replicas, colour)


def scheme(recycle=True, bins=20, target=20, looks=10):
    return Scheme(looks, torch.linspace(-1, 1, bins - 1).double(), target, source if recycle else None)


def ladder(b, replicas, trials, count=300):
    return ForwardFlux(LEVELS[b], trials, replicas, looks=20, settle=20, count=count, restart=source)


def chain(b, every=1, levels=(), dt=DT):
    return Chain(DoubleWell(b), dt, (-2.6, -1.0, *levels, 1.0, 2.6), every, nodes=60 if levels else 160)
