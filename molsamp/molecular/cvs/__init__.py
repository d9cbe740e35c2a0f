"""Collective variables: batched, differentiable functions s(x) of positions, with names, units and periods.

Angles are in radians and lengths in nm; atom indices are 0-based (PLUMED input: 1-based). A CV maps x (n, A, 3) to
(n, k); gradients come from autograd and are finite wherever the CV is smooth.

base         CV, Stack, Component, Function (any torch callable), wrap
geometric    Distance, Distances, Angle, Torsion, RMSD, Coordinate
contacts     Switching, CoordinationNumber, ContactDistance
path         PathCV: progress along references and distance from them
combination  Combination: linear, or with powers
learned      TICA, DeepTDA (import them from there: they bring the training loop)
plumed       parse: PLUMED input lines
tables       named: the CVs of a system.toml
selection    select: atoms by mdtraj's words
"""

from molsamp.molecular.cvs.base import CV, Component, Function, Stack, wrap
from molsamp.molecular.cvs.combination import Combination
from molsamp.molecular.cvs.contacts import ContactDistance, CoordinationNumber, Switching
from molsamp.molecular.cvs.geometric import RMSD, Angle, Coordinate, Distance, Distances, Torsion
from molsamp.molecular.cvs.path import PathCV
from molsamp.molecular.cvs.selection import select

__all__ = [
    "CV",
    "RMSD",
    "Angle",
    "Combination",
    "Component",
    "ContactDistance",
    "Coordinate",
    "CoordinationNumber",
    "Distance",
    "Distances",
    "Function",
    "PathCV",
    "Stack",
    "Switching",
    "Torsion",
    "select",
    "wrap",
]
