"""Bonds, angles, torsions, grids and springs: functions of a few atoms each, as recorded operations.

All but springs are functions of difference vectors d = x_i - x_j, stacked in one array D (3, rows, n) in the order

    bonds | distances of grids | L | R        (L, R): the two arms of a corner

An angle i-j-l is one corner (x_i - x_j, x_l - x_j); a torsion A-B-C-D is two corners (b1, b2) and (b2, b3) with
b1 = B-A, b2 = C-B, b3 = D-C. Torsions of harmonics stand before torsions of grids. With M the (rows, atoms) incidence
matrix of +1 and -1, D = M x, and with G = -dE/dD the force is F = M^T G. G overwrites D in place. Beyond 64 atoms the
force is scattered; on a GPU that adds in no fixed order, so that the last bits may differ from call to call.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import DISTANCE, TORSION, Terms
from molsamp.molecular.native.torch_grids import GridTables
from molsamp.molecular.native.torch_tape import Tape

SINE_FLOOR = 1e-6  # nm^2: OpenMM's floor on |a x b| of a collinear angle
_DENSE_ATOMS = 64  # up to here the incidence matrix is applied by BLAS; at 138 atoms gather and scatter are faster


class Bonded:
    """The terms of one System on one device, constants in columns (terms, 1); `record` writes them on a tape."""

    def __init__(self, terms: Terms, place: Callable[[np.ndarray], Tensor]):
        grids = terms.grids
        distances = grids.atoms[grids.kind == DISTANCE]
        torsions = np.concatenate([terms.torsions.atoms, grids.atoms[grids.kind == TORSION]])
        self.bonds, self.distances, self.angles = len(terms.bonds.k), len(distances), len(terms.angles.k)
        self.harmonic, self.torsions = len(terms.torsions.atoms), len(torsions)
        b, (i, j, l), (A, B, C, D) = terms.bonds.atoms, terms.angles.atoms.T, torsions.T
        heads = np.concatenate([b[:, 0], distances[:, 0], i, B, C, l, C, D])
        tails = np.concatenate([b[:, 1], distances[:, 1], j, A, B, j, B, C])
        self.i, self.j, self.rows = place(heads), place(tails), len(heads)
        self.incidence = None
        if terms.atoms <= _DENSE_ATOMS:
            rows, matrix = np.arange(self.rows), np.zeros((self.rows, terms.atoms))
            matrix[rows, heads], matrix[rows, tails] = 1, -1
            self.incidence = place(matrix)[..., 0].expand(3, -1, -1)
        self.minus_k, self.r0 = place(-terms.bonds.k), place(terms.bonds.r0)
        self.angle_k, self.theta0 = place(terms.angles.k), place(terms.angles.theta0)
        harmonics = np.stack([terms.torsions.cosine.T, terms.torsions.sine.T])  # (2, H, T), of cos n phi and sin n phi
        more = (0, 0), (0, 0 if harmonics.shape[1] else 1), (0, self.torsions - self.harmonic)  # none on those of grids
        harmonics = np.pad(harmonics, more)
        self.phases = phases = bool(harmonics[1].any())  # other than 0 and pi
        self.H = harmonics.shape[1]
        order = np.arange(1, self.H + 1)[:, None]
        self.slopes = place(np.stack([-order * harmonics[1], order * harmonics[0]])[0 if phases else 1 :])
        k = [terms.bonds.k / 2, terms.angles.k / 2, *(h.ravel() for h in harmonics[: 2 if phases else 1])]
        self.energies = place(np.concatenate(k))
        self.grids = GridTables(grids, place) if len(grids.kind) else None

    @property
    def numbers(self) -> int:
        """About how many numbers of one replica the buffers take."""
        return 20 * self.rows

    def record(self, tape: Tape) -> None:
        """Adds to E and F."""
        if not self.rows:
            return
        B, arms = self.bonds, self.bonds + self.distances
        with tape.scratch():
            D = tape.new(3, self.rows)
            self._differences(tape, D)
            r2 = tape.dot(D, D)
            e = tape.new(B + self.angles + 2 * self.H * self.torsions)  # stretch^2 | bend^2 | cos n phi | sin n phi
            if B:
                self._bonds(tape, D[:, :B], r2[:B], e[:B])
            self._corners(tape, D[:, arms:], r2[arms:], D[:, B:arms], r2[B:arms], e[B:])
            tape.add_energy(self.energies, e[: len(self.energies)])
            self._forces(tape, D)

    def _differences(self, tape: Tape, D: Tensor) -> None:
        if self.incidence is not None:
            tape.do(torch.bmm, self.incidence, tape.x, out=D)
            return
        with tape.scratch():
            tails = tape.new(*D.shape[:-1])
            tape.do(torch.index_select, tape.x, 1, self.i, out=D)
            tape.do(torch.index_select, tape.x, 1, self.j, out=tails)
            tape.do(D.sub_, tails)

    def _forces(self, tape: Tape, G: Tensor) -> None:
        if self.incidence is not None:
            tape.do(tape.F.baddbmm_, self.incidence.mT, G)
            return
        for F, g in zip(tape.F, G, strict=True):  # an index_add of all three at once takes three times as long
            tape.do(F.index_add_, 0, self.i, g)
            tape.do(F.index_add_, 0, self.j, g, alpha=-1)

    def _bonds(self, tape: Tape, D: Tensor, r2: Tensor, e: Tensor) -> None:
        """E = k (r - r0)^2 / 2: the force on the head is -k (1 - r0/r) d."""
        with tape.scratch():
            r, stretch = tape.new(self.bonds), tape.new(self.bonds)
            tape.do(torch.sqrt, r2, out=r)
            tape.do(torch.sub, r, self.r0, out=stretch)
            tape.do(torch.mul, stretch, stretch, out=e)
            tape.do(stretch.div_, r)
            tape.do(stretch.mul_, self.minus_k)
            tape.do(D.mul_, stretch)

    def _corners(self, tape: Tape, D: Tensor, r2: Tensor, D_grid: Tensor, r2_grid: Tensor, e: Tensor) -> None:
        """Angles and torsions, from C = L.R and W = L x R of every corner, and grids."""
        a, T, half = self.angles, self.torsions, D.shape[1] // 2
        z = e[a:].view(2, self.H, T, tape.n)  # cos n phi, sin n phi
        slope = tape.new(T)  # -dE/dphi
        L, R = D[:, :half], D[:, half:]
        if half:
            C, W = tape.dot(L, R), tape.cross(L, R)
            W2 = tape.dot(W, W)
        if a:
            self._angles(tape, L[:, :a], R[:, :a], C[:a], W2[:a], r2[:a], r2[half : half + a], e[:a])
        if T:
            b2, length = r2[half + a : half + a + T], tape.new(T)
            tape.do(torch.sqrt, b2, out=length)
            self._harmonics(tape, L[:, a : a + T], W[:, a:], W2[a:], length, z, slope)
        if self.grids is not None:
            self._grids(tape, self.grids, z[:, 0, self.harmonic :], slope[self.harmonic :], D_grid, r2_grid)
        if T:
            tape.do(slope.mul_, length)
            self._twist(tape, slope, L[:, a:], R[:, a:], C[a:], W[:, a:], W2[a:], b2)

    def _angles(
        self, tape: Tape, L: Tensor, R: Tensor, C: Tensor, W2: Tensor, L2: Tensor, R2: Tensor, e: Tensor
    ) -> None:
        """E = k (theta - theta0)^2 / 2, theta = atan2(S, C), S = |W|.

        -dE/dL = h R - (h C / L^2) L with h = k (theta - theta0) / S, and the same with L and R exchanged.
        """
        do, S = tape.do, W2
        with tape.scratch():
            h, g = tape.new(self.angles), tape.new(self.angles)
            do(S.sqrt_)
            do(torch.atan2, S, C, out=h)
            do(torch.maximum, S, tape.number(SINE_FLOOR), out=S)
            do(h.sub_, self.theta0)
            do(torch.mul, h, h, out=e)
            do(h.div_, S)
            do(h.mul_, self.angle_k)
            do(C.mul_, h)
            hL, hR = tape.mul(h, L), tape.mul(h, R)
            for arm, arm2, other in ((L, L2, hR), (R, R2, hL)):
                do(torch.div, C, arm2, out=g)
                do(arm.mul_, g)
                do(torch.sub, other, arm, out=arm)

    def _harmonics(
        self, tape: Tape, b1: Tensor, W: Tensor, W2: Tensor, length: Tensor, z: Tensor, slope: Tensor
    ) -> None:
        """z = (cos n phi, sin n phi) by angle addition, and the -dE/dphi of E = sum_n C_n cos n phi + S_n sin n phi.

        With W = (m, n): cos phi = m.n / |m||n| and sin phi = |b2| b1.n / |m||n|.
        """
        do, T = tape.do, self.torsions
        cos, sin = z[:, 0]
        tape.dot(W[:, :T], W[:, T:], out=cos)
        tape.dot(b1, W[:, T:], out=sin)
        do(sin.mul_, length)
        with tape.scratch():
            scale = tape.mul(cos, cos)
            do(scale.addcmul_, sin, sin)
            do(scale.rsqrt_)
            do(z[:, 0].mul_, scale)
            for n in range(1, self.H):
                do(torch.mul, z[:, n - 1], cos, out=z[:, n])
                do(z[0, n].addcmul_, z[1, n - 1], sin, value=-1)
                do(z[1, n].addcmul_, z[0, n - 1], sin)
            products = tape.mul(self.slopes, z if self.phases else z[1:])
            do(torch.sum, products, (0, 1), out=slope)

    def _twist(
        self, tape: Tape, slope: Tensor, L: Tensor, R: Tensor, C: Tensor, W: Tensor, W2: Tensor, b2: Tensor
    ) -> None:
        """Forces of torsions from slope = -E'|b2|, E' = dE/dphi.

        -dE/db1 = -(E'|b2|/m^2) m, -dE/db3 = -(E'|b2|/n^2) n, and b2 gets (b1.b2/b2^2) and (b2.b3/b2^2) times the
        opposites of these.
        """
        do, T, n = tape.do, self.torsions, tape.n
        with tape.scratch():
            end, mid = tape.new(2, T), tape.new(2, T)  # factors of m and n, for the outer arms and for b2
            do(torch.div, slope, W2.view(2, T, n), out=end)
            do(torch.div, C.view(2, T, n), b2, out=mid)
            do(torch.addcmul, tape.number(0), mid, end, value=-1, out=mid)
            for arm, w, factor in ((L, 0, end[0]), (R, 0, mid[0]), (L, 1, mid[1]), (R, 1, end[1])):
                rows = slice(w * T, (w + 1) * T)
                do(torch.mul, W[:, rows], factor, out=arm[:, rows])

    def _grids(self, tape: Tape, grids: GridTables, z: Tensor, slope: Tensor, D: Tensor, r2: Tensor) -> None:
        """Grids of torsions and distances: their -dE/dphi, and D turned into forces."""
        do, T, d = tape.do, len(slope), len(r2)
        with tape.scratch():
            s = tape.new(2 * grids.G)  # torsions | distances | none
            do(s.zero_)
            do(torch.atan2, z[1], z[0], out=s[:T])
            do(torch.sqrt, r2, out=s[T : T + d])
            g = grids.record(tape, s)
            do(slope.copy_, g[:T])
            do(D.mul_, g[T : T + d])
            do(D.div_, s[T : T + d])


class Springs:
    """E = k |x - centre|^2 / 2 of single atoms, an axis at a time."""

    def __init__(self, terms: Terms, place: Callable[[np.ndarray], Tensor]):
        self.atoms = place(terms.springs.atoms)
        self.centre, self.k = place(terms.springs.centre.T), place(terms.springs.k.T)

    def record(self, tape: Tape) -> None:
        """Adds to E and F."""
        do = tape.do
        if not len(self.atoms):
            return
        with tape.scratch():
            d = tape.new(3, len(self.atoms))
            do(torch.index_select, tape.x, 1, self.atoms, out=d)
            do(d.sub_, self.centre)
            tape.add_energy(self.k, tape.mul(d, d), 0.5)
            do(d.mul_, self.k)
            for F, g in zip(tape.F, d, strict=True):
                do(F.index_add_, 0, self.atoms, g, alpha=-1)
