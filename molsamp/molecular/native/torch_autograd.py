"""The energy of Terms written plainly, for torch.autograd: forces, Hessians, gradients by parameters of what made x.

One line a formula, positions (n, A, 3), terms along the second axis. Slower than the recorded kernels and hungrier:
about 100 numbers a pair and replica with gradients, some 500 for each ordered pair of Born.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import DISTANCE, TORSION, Born, Grids, Terms

_TINY = 1e-30  # nm^4: |a x b|^2 of an angle that counts as collinear and has no force

Place = Callable[[np.ndarray], Tensor]


class PlainEnergy:
    """E (n,) in kJ/mol of x (n, A, 3) in nm, differentiable to any order.

    Derivatives are exact, also of almost straight angles, where the kernels and OpenMM damp the force below
    |a x b| = 1e-6 nm^2 (within 1e-4 of pi); a straight angle has none here as there.

    Args:
        terms: what a System amounts to.
        device, dtype: of the constants, and of every x.
    """

    def __init__(self, terms: Terms, device: torch.device, dtype: torch.dtype):
        place = partial(_placed, device=device, dtype=dtype)
        t, pairs, bonds, angles = terms, terms.pairs, terms.bonds, terms.angles
        self.constant = t.torsions.constant
        self.terms: list[Callable[[Tensor], Tensor]] = []
        if len(pairs.qq):
            self.terms.append(partial(_pairs, *map(place, (pairs.atoms.T, pairs.qq, pairs.c6, pairs.c12))))
        if len(bonds.k):
            self.terms.append(partial(_bonds, *map(place, (bonds.atoms.T, bonds.r0, bonds.k))))
        if len(angles.k):
            self.terms.append(partial(_angles, *map(place, (angles.atoms.T, angles.theta0, angles.k))))
        if len(t.torsions.atoms):
            self.terms.append(partial(_torsions, *map(place, (t.torsions.atoms.T, t.torsions.cosine, t.torsions.sine))))
        if len(t.springs.atoms):
            self.terms.append(partial(_springs, *map(place, (t.springs.atoms, t.springs.centre, t.springs.k))))
        if len(t.grids.kind):
            self.terms.append(PlainGrids(t.grids, place))
        if t.born is not None:
            self.terms.append(PlainBorn(t.born, place))

    def __call__(self, x: Tensor) -> Tensor:
        lost = (0 * x).sum((1, 2))  # NaN where any coordinate is not finite
        return sum((term(x) for term in self.terms), self.constant + lost)


def _placed(array: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.as_tensor(np.ascontiguousarray(array)).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor.long()


def _pairs(atoms: Tensor, qq: Tensor, c6: Tensor, c12: Tensor, x: Tensor) -> Tensor:
    i, j = atoms
    r2 = (x[:, i] - x[:, j]).square().sum(-1)
    return (c12 / r2**6 - c6 / r2**3 + qq / r2.sqrt()).sum(-1)


def _bonds(atoms: Tensor, r0: Tensor, k: Tensor, x: Tensor) -> Tensor:
    return (k / 2 * (_distance(x, *atoms) - r0) ** 2).sum(-1)


def _angles(atoms: Tensor, theta0: Tensor, k: Tensor, x: Tensor) -> Tensor:
    i, j, l = atoms
    a, b = x[:, i] - x[:, j], x[:, l] - x[:, j]
    sine = torch.linalg.cross(a, b).square().sum(-1).clamp(min=_TINY).sqrt()
    return (k / 2 * (torch.atan2(sine, (a * b).sum(-1)) - theta0) ** 2).sum(-1)


def _torsions(atoms: Tensor, cosine: Tensor, sine: Tensor, x: Tensor) -> Tensor:
    n = torch.arange(1, cosine.shape[1] + 1, device=x.device)
    phi = _torsion(x, *atoms)[..., None]
    return (cosine * (n * phi).cos() + sine * (n * phi).sin()).sum((1, 2))


def _springs(atoms: Tensor, centre: Tensor, k: Tensor, x: Tensor) -> Tensor:
    return (k / 2 * (x[:, atoms] - centre) ** 2).sum((1, 2))


def _distance(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (x[:, i] - x[:, j]).square().sum(-1).sqrt()


def _torsion(x: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """In (-pi, pi], IUPAC sign; NaN where three atoms are on a line."""
    b1, b2, b3 = x[:, B] - x[:, A], x[:, C] - x[:, B], x[:, D] - x[:, C]
    m, n = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
    scale = (m.square().sum(-1) * n.square().sum(-1)).rsqrt()
    sine = b2.square().sum(-1).sqrt() * (b1 * n).sum(-1)
    return torch.atan2(scale * sine, scale * (m * n).sum(-1))


class PlainGrids:
    """Bicubic functions of two variables; see `terms.Grids`."""

    def __init__(self, grids: Grids, place: Place):
        kind, atoms = grids.kind.ravel(), grids.atoms.reshape(-1, 4)  # of axes 2 g + axis
        self.torsion, self.distance = atoms[kind == TORSION].T, atoms[kind == DISTANCE].T
        self.torsion, self.distance = place(self.torsion), place(self.distance)
        self.order = place(np.argsort(np.argsort(kind, kind="stable")))  # from torsions | distances | none to axes
        self.origin, self.spacing = place(grids.origin), place(np.where(grids.kind <= DISTANCE, grids.spacing, 1))
        self.size, self.offset, self.patches = place(grids.size), place(grids.offset), place(grids.patches)
        self.periodic = place(grids.periodic).bool()
        self.none = place(grids.kind > DISTANCE).bool()

    def __call__(self, x: Tensor) -> Tensor:
        G = len(self.size)
        s = torch.cat([_torsion(x, *self.torsion), _distance(x, *self.distance[:2])], 1)
        s = torch.nn.functional.pad(s, (0, 2 * G - s.shape[1]))[:, self.order].view(-1, G, 2)
        t = torch.where(self.none, 0, (s - self.origin) / self.spacing)
        t = torch.where(self.periodic, t - self.size * (t / self.size).floor(), t)
        cell = t.detach().floor().nan_to_num().clamp(min=0).minimum(self.size - 1)
        u = t - cell
        inside = u.clamp(0, 1)
        one, zero = torch.ones_like(u), torch.zeros_like(u)
        power = torch.stack([one, inside, inside**2, inside**3], -1)
        tangent = torch.stack([zero, one, 2 * inside, 3 * inside**2], -1)
        p, q = (power + (u - inside)[..., None] * tangent).unbind(2)
        i, j = cell.long().unbind(2)
        c = self.patches[self.offset + i * self.size[:, 1] + j]
        return torch.einsum("ngk,ngkl,ngl->n", p, c, q)


class PlainBorn:
    """Generalised Born; see `terms.Born`. Row i of a matrix (A, A - 1) holds the pairs of atom i with all others."""

    def __init__(self, born: Born, place: Place):
        A = len(born.rho)
        i = np.arange(A)[:, None]
        j = (i + np.arange(1, A)) % A
        self.swallowed, self.tau, self.surface = born.swallowed, born.tau, born.surface
        self.j = place(j)
        self.q, self.rho, self.o, self.s = (place(v) for v in (born.charge, born.rho, born.o, born.s))
        self.alpha, self.beta, self.gamma = (place(v) for v in (born.alpha, born.beta, born.gamma))
        self.neck = None if born.neck is None else tuple(place(table[i, j]) for table in born.neck)

    def __call__(self, x: Tensor) -> Tensor:
        j, q, rho = self.j, self.q, self.rho
        r2 = (x[:, :, None] - x[:, j]).square().sum(-1)
        psi = self.o * self._integral(r2.sqrt()).sum(-1)
        bend = self.alpha * psi - self.beta * psi**2 + self.gamma * psi**3
        B = 1 / (1 / self.o - bend.tanh() / rho)
        B = torch.where(B > 0, B, torch.nan)
        BB = B[:, :, None] * B[:, j]
        f = (r2 + BB * (-r2 / (4 * BB)).exp()).sqrt()
        charges = -self.tau / 2 * ((q**2 / B).sum(-1) + (q[:, None] * q[j] / f).sum((1, 2)))
        return charges + self.surface * ((rho + 0.14) ** 2 * (rho / B) ** 6).sum(-1)

    def _integral(self, r: Tensor) -> Tensor:
        """What atom j takes from the surroundings of i: H(r; o_i, s_j) and the neck."""
        o, s = self.o[:, None], self.s[self.j]
        L, U = torch.maximum((r - s).abs(), o), torch.maximum(r + s, o)
        H = (1 / L - 1 / U + (r - s**2 / r) * (1 / U**2 - 1 / L**2) / 4 + (L / U).log() / (2 * r)) / 2
        if self.swallowed:
            H = H + torch.where(s - r > o, 1 / o - 1 / L, 0)
        if self.neck is not None:
            m0, d0 = self.neck
            neck = m0 / (1 + 100 * (r - d0) ** 2 + 0.3e6 * (r - d0) ** 6)
            H = H + torch.where(r <= self.rho[:, None] + self.rho[self.j] + 0.68, neck, 0)
        return H
