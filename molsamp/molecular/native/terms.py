"""What an openmm.System amounts to: indices and constants of every term, in numpy float64 and MD units.

Both tiers are built from `Terms`, and nothing else knows where the numbers came from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Pairs:
    """E = c12/r^12 - c6/r^6 + qq/r for every pair of atoms that interacts, sorted by (i, j), i < j."""

    atoms: Int[np.ndarray, "P 2"]
    qq: Float[np.ndarray, " P"]  # K q_i q_j, kJ/mol nm
    c6: Float[np.ndarray, " P"]  # 4 eps sigma^6
    c12: Float[np.ndarray, " P"]  # 4 eps sigma^12


@dataclass(frozen=True)
class Bonds:
    """E = k (r - r0)^2 / 2."""

    atoms: Int[np.ndarray, "B 2"]
    r0: Float[np.ndarray, " B"]
    k: Float[np.ndarray, " B"]


@dataclass(frozen=True)
class Angles:
    """E = k (theta - theta0)^2 / 2 at the middle atom."""

    atoms: Int[np.ndarray, "N 3"]
    theta0: Float[np.ndarray, " N"]
    k: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Torsions:
    """E = constant + sum over torsions and n of cosine_n cos(n phi) + sine_n sin(n phi); one row a quadruple."""

    atoms: Int[np.ndarray, "T 4"]
    cosine: Float[np.ndarray, "T H"]  # column n - 1 belongs to harmonic n
    sine: Float[np.ndarray, "T H"]
    constant: float  # kJ/mol, the sum over all torsions


@dataclass(frozen=True)
class Grids:
    """Bicubic functions of two variables: correction maps (CMAP) and grid biases.

    E = (1, u, u^2, u^3) c (1, v, v^2, v^3)^T in patch (i, j), i + u = (s_1 - origin_1) / spacing_1, likewise j + v.
    Patch (i, j) of grid g is row offset + i size_2 + j of `patches`. A periodic axis wraps; outside an axis that does
    not, E goes on as E + E_u du + E_v dv + E_uv du dv from the edge. A grid of one variable has a second axis "none"
    of one patch on which E does not depend.
    """

    kind: Int[np.ndarray, "G 2"]  # TORSION, DISTANCE or NONE for each variable
    atoms: Int[np.ndarray, "G 2 4"]  # unused places hold 0
    origin: Float[np.ndarray, "G 2"]
    spacing: Float[np.ndarray, "G 2"]
    size: Int[np.ndarray, "G 2"]  # patches along each axis
    periodic: Int[np.ndarray, "G 2"]  # 1 or 0
    offset: Int[np.ndarray, " G"]
    patches: Float[np.ndarray, "R 4 4"]

    def joined(self, other: Grids) -> Grids:
        """Both sets of grids."""
        shifted = replace(other, offset=other.offset + len(self.patches))
        columns = [[getattr(g, field.name) for g in (self, shifted)] for field in fields(Grids)]
        return Grids(*map(np.concatenate, columns))


TORSION, DISTANCE, NONE = 0, 1, 2


@dataclass(frozen=True)
class Springs:
    """E = k |x - centre|^2 / 2 of single atoms, an axis at a time."""

    atoms: Int[np.ndarray, " S"]
    centre: Float[np.ndarray, "S 3"]
    k: Float[np.ndarray, "S 3"]


@dataclass(frozen=True)
class Born:
    """Generalised Born of the OBC form: B = 1 / (1/o - tanh(al psi - be psi^2 + ga psi^3)/rho), psi = o I.

    E = -(tau/2) sum q^2/B - tau sum_{i<j} q_i q_j / f_ij + surface sum (rho + 0.14)^2 (rho/B)^6.
    """

    charge: Float[np.ndarray, " A"]
    rho: Float[np.ndarray, " A"]  # radius, nm
    o: Float[np.ndarray, " A"]  # rho - offset
    s: Float[np.ndarray, " A"]  # scale x o
    alpha: Float[np.ndarray, " A"]
    beta: Float[np.ndarray, " A"]
    gamma: Float[np.ndarray, " A"]
    tau: float  # K' (1/eps_in - 1/eps_out), kJ/mol nm/e^2
    surface: float  # kJ/mol/nm^2; 0 without the surface term
    neck: Float[np.ndarray, "2 A A"] | None  # (neckScale m0[i, j], d0[i, j]); entry (i, j) enters I_i only
    swallowed: bool  # GBSAOBCForce: I_i gets (1/o_i - 1/L) of an atom inside s_j, no surface term where B <= 0


@dataclass(frozen=True)
class Terms:
    """Everything in one System; a kind of term that is absent has no rows (Born: None)."""

    atoms: int
    pairs: Pairs
    bonds: Bonds
    angles: Angles
    torsions: Torsions
    grids: Grids
    springs: Springs
    born: Born | None
