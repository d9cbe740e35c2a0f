"""A particle in a harmonic well as a path problem: every law of its paths has a closed form."""

from dataclasses import fields
from pathlib import Path

import torch

from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.potentials import Harmonic
from molsamp.molecular.schema import Settings
from molsamp.molecular.system import State, System

RADIUS = 100.0


class Line(System):
    """A system on a line: in A below one edge, in B above the other; distances fall linearly towards a state."""

    def __init__(self, below: float, above: float, x0: float, mass: float | None):
        event = (1,) if mass is None else (1, 1)
        states = {
            name: State(name, torch.full(event, x, dtype=torch.float64), {}, RADIUS, "cvs")
            for name, x in {"A": x0, "B": above + 1.0}.items()
        }
        settings = Settings(kind="overdamped", kT=1.0, timestep=0.1, steps=1, start="A", end="B")
        masses = None if mass is None else torch.tensor([mass], dtype=torch.float64)
        parts = dict(name="line", title="a line", folder=Path(), event=event, masses=masses, states=states, cvs={})
        for field in fields(System):
            object.__setattr__(self, field.name, (parts | {"settings": settings}).get(field.name))
        object.__setattr__(self, "edges", {"A": (-1.0, below), "B": (1.0, above)})

    def distance(self, x, state):
        side, edge = self.edges[state]
        return RADIUS + side * (edge - x.flatten(1)[:, 0])


def line_problem(*, below=-1.0, above=1.0, x0=0.0, stiffness=1.0, kT=1.0, h=0.1, steps=20, mass=None, friction=1.0):
    system = Line(below, above, x0, mass)
    energy = Harmonic(stiffness, torch.zeros(system.event, dtype=torch.float64))
    return Problem(system, system.states["A"], system.states["B"], energy, kT, h, steps, friction, torch.float64)


def z_scores(samples, exact):
    """z of the mean over independent groups, samples (G, ...) against exact (...)."""
    return (samples.mean(0) - exact) / (samples.std(0) / len(samples) ** 0.5)
