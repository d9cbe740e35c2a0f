"""Bonds, angles, torsions, grids and springs: functions of a few atoms each, as recorded operations.

All but springs are functions of difference vectors d = x_i - x_j, stacked in one array D (3, rows, n) in the order

    bonds | distances of grids | L | R        (L, R): the two arms of a corner

An angle i-j-l is one corner (x_i - x_j, x_l - x_j); a torsion A-B-C-D is two corners (b1, b2) and (b2, b3) with
b1 = B-A, b2 = C-B, b3 = D-C; corners stand in the order angles | torsions | torsions of grids. With M the (rows, atoms)
incidence matrix of +1 and -1, D = M x, and with G = -dE/dD the force is F = M^T G. G overwrites D in place.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import DISTANCE, TORSION, Terms
from molsamp.molecular.native.torch_grids import GridTables, record_grids
from molsamp.molecular.native.torch_tape import Tape

_SINE_FLOOR = 1e-6  # nm^2: OpenMM's floor on |a x b| of a collinear angle
_DENSE_ATOMS = 64  # up to here the incidence matrix is applied by BLAS; at 138 atoms gather and scatter are faster


class Bonded:
    """The constants of one System on one device, in columns (terms, 1)."""

    def __init__(self, terms: Terms, place: Callable[[np.ndarray], Tensor]):
        self.grids = GridTables(terms.grids, place)
        distances = terms.grids.atoms[terms.grids.kind == DISTANCE]
        torsions = np.concatenate([terms.torsions.atoms, terms.grids.atoms[terms.grids.kind == TORSION]])
        self.bonds, self.distances, self.angles = len(terms.bonds.k), len(distances), len(terms.angles.k)
        self.torsions = len(torsions)
        b, (i, j, l), (A, B, C, D) = terms.bonds.atoms, terms.angles.atoms.T, torsions.T
        heads = np.concatenate([b[:, 0], distances[:, 0], i, B, C, l, C, D])
        tails = np.concatenate([b[:, 1], distances[:, 1], j, A, B, j, B, C])
        self.rows = len(heads)
        self.i, self.j = place(heads), place(tails)
        self.incidence = None
        if terms.atoms <= _DENSE_ATOMS:
            matrix = np.zeros((self.rows, terms.atoms))
            matrix[np.arange(self.rows), heads], matrix[np.arange(self.rows), tails] = 1, -1
            self.incidence = place(matrix)[..., 0].expand(3, -1, -1)
        self.bond_k, self.r0 = place(terms.bonds.k), place(terms.bonds.r0)
        self.angle_k, self.theta0 = place(terms.angles.k), place(terms.angles.theta0)
        self.harmonics = [(place(c), place(s), bool(s.any())) for c, s in zip(terms.torsions.cosine.T, terms.torsions.sine.T)]
        self.constant = terms.torsions.constant
        ...
