"""Generalised Born in three passes over all pairs, as recorded operations.

    1  psi_i = o_i I_i,  I_i = sum_j H(r; o_i, s_j) + neck_ij(r)
       B_i = 1 / (1/o_i - tanh(al psi_i - be psi_i^2 + ga psi_i^3) / rho_i)
    2  P = -tau q_i q_j / f,  f^2 = r^2 + B_i B_j e,  e = exp(-w),  w = r^2 / (4 B_i B_j)
       the energies, the forces P (1 - e/4)/f^2 d, and dE/d ln B_i = -(1/2) sum_j (P/f^2) e (1 + w) B_i B_j + ...
    3  the forces -(dE/dI_i dI_i/dr + dE/dI_j dI_j/dr) d/r

    H = (1/2) [1/L - 1/U + (r - s^2/r)(1/U^2 - 1/L^2)/4 + ln(L/U)/(2r)],  L = max(o, |r - s|),  U = max(o, r + s)

With U = L = o, where the partner lies wholly inside o, H = 0 as it must be. What is directed (H, the neck) has a
leading axis of 2: for the head, for the tail. The sums of pass 2 are symmetric because they belong to ln B.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import Born
from molsamp.molecular.native.torch_rings import Chunk, Geometry, Rings
from molsamp.molecular.native.torch_tape import Tape

_NECK_CUT = 0.68  # nm between the surfaces, beyond which a neck is 0
_PROBE = 0.14  # nm


class BornTables:
    """Constants of atoms (A, 1), of pairs (K, A, 1), and of directed pairs (2, K, A, 1)."""

    def __init__(self, born: Born, tails: np.ndarray, ghosts: np.ndarray, place: Callable[[np.ndarray], Tensor]):
        heads = np.broadcast_to(np.arange(len(born.o)), tails.shape)
        own, other = np.stack([heads, tails]), np.stack([tails, heads])
        self.o_atom, self.inverse_o, self.inverse_rho = place(born.o), place(1 / born.o), place(1 / born.rho)
        self.alpha, self.beta, self.gamma, self.rho = map(place, (born.alpha, born.beta, born.gamma, born.rho))
        self.o_over_rho = place(born.o / born.rho)
        s = np.where(ghosts, 0, born.s[other])  # a ghost without extent has H = 0
        self.o, self.s, self.s2 = place(born.o[own]), place(s), place(s**2)
        self.swallowed = place(1 / born.o[own]) if born.swallowed else None
        self.qq = place(np.where(ghosts, 0, -born.tau * born.charge[heads] * born.charge[tails]))
        self.self_energy = place(-born.tau / 2 * born.charge**2)  # of 1/B
        self.surface = place(born.surface * (born.rho + _PROBE) ** 2) if born.surface else None  # of (rho/B)^6
        self.neck = None
        if born.neck is not None:
            m0, d0 = born.neck[:, own, other]
            cut = born.rho[heads] + born.rho[tails] + _NECK_CUT
            self.neck = place(np.where(ghosts, 0, m0)), place(d0), place(cut)


class BornPasses:
    """The passes on one tape. Of a pair three numbers are kept from pass to pass: dI/dr of its two atoms, and g.

    Args:
        geometry: records d, r^2 and 1/r of a chunk.
        scope: what a chunk is recorded in.
    """

    def __init__(self, tables: BornTables, tape: Tape, rings: Rings, geometry: Callable, scope: Callable):
        self.tables, self.tape, self.rings, self.geometry, self.scope = tables, tape, rings, geometry, scope
        self.B, self.slope = rings.new(), rings.new()  # Born radii; dE/dI
        self.inverse_B, self.chain = tape.new(tape.atoms), tape.new(tape.atoms)  # 1/B; d ln B/dI
        self.dI, self.g = tape.new(2, *tables.qq.shape[:-1]), tape.new(*tables.qq.shape[:-1])

    def radii(self, chunks: Sequence[Chunk]) -> None:
        """Pass 1: I, then B and d ln B/dI. A radius that is not positive becomes NaN."""
        t, tape, do = self.tables, self.tape, self.tape.do
        H, B, psi = self.rings.scalars, self.B[: tape.atoms], self.inverse_B  # psi for the time being
        do(psi.zero_)
        for chunk in chunks:
            with self.scope():
                self._descreen(chunk, self.geometry(chunk))
                self.rings.collect(H[0], H[1], chunk, psi)
        with tape.scratch():
            tanh, slope = tape.new(tape.atoms), tape.new(tape.atoms)
            do(psi.mul_, t.o_atom)
            do(torch.mul, psi, t.gamma, out=tanh)  # al - be psi + ga psi^2, and al - 2 be psi + 3 ga psi^2
            do(torch.mul, tanh, tape.number(3), out=slope)
            for polynomial, factor in ((tanh, -1), (slope, -2)):
                do(polynomial.add_, t.beta, alpha=factor)
                do(polynomial.mul_, psi)
                do(polynomial.add_, t.alpha)
            do(tanh.mul_, psi)
            do(tanh.tanh_)
            do(torch.mul, slope, t.o_over_rho, out=self.chain)
            do(torch.mul, tanh, tanh, out=psi)
            do(slope.copy_, self.chain)
            do(self.chain.addcmul_, slope, psi, value=-1)  # times 1 - tanh^2
            do(torch.addcmul, t.inverse_o, tanh, t.inverse_rho, value=-1, out=psi)
            do(psi.rsqrt_)
            do(torch.mul, psi, psi, out=B)
            do(torch.reciprocal, B, out=self.inverse_B)
            do(self.chain.mul_, B)
        self.rings.close(self.B)

    def slopes(self, chunks: Sequence[Chunk]) -> None:
        """Pass 2: the energies, and dE/dI = dE/d ln B d ln B/dI."""
        t, tape, do = self.tables, self.tape, self.tape.do
        slope, Z = self.slope[: tape.atoms], self.rings.scalars[0]
        do(slope.zero_)
        for chunk in chunks:
            with self.scope():
                self._screen(chunk, self.geometry(chunk).r2)
                self.rings.collect(Z, Z, chunk, slope)
        do(slope.mul_, tape.number(-1 / 2))
        tape.add_energy(t.self_energy, self.inverse_B)
        do(slope.addcmul_, self.inverse_B, t.self_energy, value=-1)
        if t.surface is not None:
            with tape.scratch():
                ratio = tape.mul(self.inverse_B, t.rho)
                square = tape.mul(ratio, ratio)
                do(torch.mul, square, square, out=ratio)
                do(ratio.mul_, square)
                tape.add_energy(t.surface, ratio)
                do(slope.addcmul_, ratio, t.surface, value=-6)
        do(slope.mul_, self.chain)
        self.rings.close(self.slope)

    def add_forces(self, chunk: Chunk, ir: Tensor, g: Tensor) -> None:
        """Pass 3: adds to g of the force g d on the head."""
        tape, do, dI = self.tape, self.tape.do, chunk.of(self.dI)
        with tape.scratch():
            G = tape.mul(dI[0], self.rings.heads(self.slope))
            do(G.addcmul_, dI[1], self.rings.tails(self.slope, chunk))
            do(g.add_, chunk.of(self.g))
            do(g.addcmul_, G, ir, value=-1)

    def _descreen(self, chunk: Chunk, pairs: Geometry) -> None:
        """H of both atoms of each pair, left in the padded scalars, and dI/dr.

        dH/dr = -(1 + s^2/r^2)(1/L^2 - 1/U^2)/8 + ln(U/L)/(4 r^2), + 1/L^2 where s swallows the atom, s - r > o: there
        L = s - r. GBSAOBCForce adds 1/o - 1/L to H of such an atom, which takes the last term away again.
        """
        t, tape, do = self.tables, self.tape, self.tape.do
        o, s, ir = chunk.of(t.o), chunk.of(t.s), pairs.ir
        H, dH = self.rings.rows(self.rings.scalars, chunk), chunk.of(self.dI)
        with tape.scratch():
            r, z = tape.mul(pairs.r2, ir), tape.mul(ir, ir)
            z = tape.mul(z, chunk.of(t.s2))
            L, U, inside, ln, c = (tape.new(*H.shape[:-1]) for _ in range(5))
            do(torch.sub, s, r, out=L)
            do(torch.gt, L, o, out=inside)  # swallowed: 1, otherwise 0
            do(L.abs_)
            do(torch.maximum, L, o, out=L)
            do(torch.add, r, s, out=U)
            do(torch.maximum, U, o, out=U)
            do(torch.div, U, L, out=ln)
            do(ln.log_)
            do(ln.mul_, ir)  # ln(U/L)/r
            do(L.reciprocal_)
            do(U.reciprocal_)
            do(torch.add, L, U, out=c)
            do(torch.sub, L, U, out=U)  # 1/L - 1/U
            do(c.mul_, U)
            do(c.mul_, tape.number(-1 / 8))  # -(1/L^2 - 1/U^2)/8
            do(z.mul_, c)
            do(torch.add, c, z, out=dH)
            do(dH.addcmul_, ln, ir, value=1 / 4)
            do(c.sub_, z)
            do(c.mul_, r)
            do(c.add_, U, alpha=1 / 2)
            do(torch.sub, c, ln, alpha=1 / 4, out=H)
            if t.swallowed is None:
                do(inside.mul_, L)
                do(dH.addcmul_, inside, L)
            else:
                do(torch.sub, chunk.of(t.swallowed), L, out=L)
                do(H.addcmul_, inside, L)
            if t.neck is not None:
                m0, d0, cut = (chunk.of(table) for table in t.neck)
                self._add_neck(m0, d0, cut, r, H, dH)

    def _add_neck(self, m0: Tensor, d0: Tensor, cut: Tensor, r: Tensor, H: Tensor, dH: Tensor) -> None:
        """N = m0 / (1 + 100 q^2 + 0.3e6 q^6) with q = r - d0, within the cut."""
        tape, do = self.tape, self.tape.do
        q, N, near = tape.new(*H.shape[:-1]), tape.new(*H.shape[:-1]), tape.new(*r.shape[:-1])
        do(torch.sub, r, d0, out=q)
        q2 = tape.mul(q, q)
        q4 = tape.mul(q2, q2)
        do(torch.add, tape.number(100), q4, alpha=0.3e6, out=N)
        do(torch.addcmul, tape.number(1), N, q2, out=N)
        do(N.reciprocal_)
        do(torch.add, tape.number(200), q4, alpha=1.8e6, out=q4)
        do(q.mul_, q4)
        do(q.mul_, N)
        do(N.mul_, m0)
        do(torch.le, r, cut, out=near)
        do(N.mul_, near)
        do(H.add_, N)
        do(dH.addcmul_, N, q, value=-1)

    def _screen(self, chunk: Chunk, r2: Tensor) -> None:
        """Adds E = P, keeps g = P (1 - e/4)/f^2, and leaves (P/f^2) e (1 + w) B_i B_j in the padded scalars."""
        tape, do = self.tape, self.tape.do
        qq, g = chunk.of(self.tables.qq), chunk.of(self.g)
        Z = self.rings.rows(self.rings.scalars[0], chunk)
        with tape.scratch():
            BB = tape.mul(self.rings.heads(self.B), self.rings.tails(self.B, chunk))
            w, e, f = (tape.new(*r2.shape[:-1]) for _ in range(3))
            do(torch.div, r2, BB, out=w)
            do(w.mul_, tape.number(-1 / 4))  # -w from here
            do(torch.exp, w, out=e)
            do(BB.mul_, e)
            do(torch.add, r2, BB, out=f)
            do(f.rsqrt_)  # 1/f from here
            tape.add_energy(qq, f)
            P = tape.mul(f, f)
            do(P.mul_, f)
            do(P.mul_, qq)  # P/f^2
            do(torch.mul, P, e, out=g)
            do(torch.add, P, g, alpha=-1 / 4, out=g)
            do(BB.mul_, P)
            do(torch.addcmul, BB, BB, w, value=-1, out=Z)
