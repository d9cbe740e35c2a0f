"""What the tests of both native tiers work on: single forces, molecules, grids, and the plain energy as a judge."""

import math

import builders
import numpy as np
import torch

from molsamp.molecular.native.reading import read
from molsamp.molecular.native.splines import patches
from molsamp.molecular.native.terms import DISTANCE, NONE, TORSION, Grids
from molsamp.molecular.native.torch_tier import TorchForces
from molsamp.molecular.system import load


def by_autograd(terms, dtype=torch.float64):
    """E and F of the plain energy, through autograd."""
    energy = TorchForces(terms, dtype)

    def energy_force(x):
        x = x.detach().requires_grad_()
        E = energy.differentiable(x)
        return E.detach(), -torch.autograd.grad(E.sum(), x)[0]

    return energy_force


def frames(n, **options):
    return torch.tensor(builders.frames(n, **options))


def one_force(make, seed=0):
    return builders.system(make(np.random.default_rng(seed)))


def name(make):
    return make.__name__


def molecule(system, n, state=0):
    """Terms and n shaken frames of a bundled system."""
    system = load(system)
    x = list(system.states.values())[state].x
    return read(system.forcefield_system()), torch.tensor(builders.shaken(x.numpy(), n))


def empty(atoms):
    """Terms of nothing."""
    return read(builders.system(atoms=atoms))


def grid(rng, kind, periodic, atoms):
    """A grid of its own for each pair of variables."""
    size = [5 if k != NONE else 1 for k in kind]
    flags = [bool(p) for p, k in zip(periodic, kind, strict=True) if k != NONE]
    values = rng.normal(size=[s + (not p) for s, p, k in zip(size, periodic, kind, strict=True) if k != NONE]) * 10
    origin = [-math.pi if k == TORSION else 0.25 for k in kind]
    spacing = [2 * math.pi / 5 if k == TORSION else 0.02 for k in kind]
    return kind, atoms, origin, spacing, size, periodic, patches(values, tuple(flags))


def grids(rng):
    """Torsion-torsion, torsion-distance, distance alone, torsion that does not wrap; distances leave their range."""
    chain, other = [0, 1, 2, 3], [7, 5, 6, 4]
    rows = [
        grid(rng, (DISTANCE, TORSION), (0, 1), [[2, 6, 0, 0], other]),
        grid(rng, (TORSION, TORSION), (1, 1), [chain, other]),
        grid(rng, (DISTANCE, NONE), (0, 0), [[1, 4, 0, 0], [0] * 4]),
        grid(rng, (TORSION, DISTANCE), (0, 0), [[3, 0, 5, 6], [0, 7, 0, 0]]),
    ]
    *columns, coefficients = zip(*rows, strict=True)
    kind, atoms, origin, spacing, size, periodic = (np.array(c) for c in columns)
    offset = np.cumsum([0, *(len(c) for c in coefficients)])[:-1]
    return Grids(kind, atoms, origin, spacing, size, periodic, offset, np.concatenate(coefficients))
