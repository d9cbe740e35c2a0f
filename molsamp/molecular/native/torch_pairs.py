"""All pairs of atoms: E = c12/r^12 - c6/r^6 + qq/r and generalised Born, over chunks of shells (see `torch_rings`).

Chunks keep the buffers within a given size, whatever the number of atoms. When all pairs are one chunk, their geometry
is kept for the later passes of Born; otherwise it is computed again.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.native.terms import Terms
from molsamp.molecular.native.torch_born import BornPasses, BornTables
from molsamp.molecular.native.torch_rings import Chunk, Geometry, Rings, partners, placement
from molsamp.molecular.native.torch_tape import Tape


class AllPairs:
    """The pair terms of one System on one device, in tables (K, A, 1)."""

    def __init__(self, terms: Terms, place: Callable[[np.ndarray], Tensor]):
        self.A, self.K = terms.atoms, terms.atoms // 2
        table = np.zeros((3, self.K, self.A))  # of 1/r, 1/r^6 and 1/r^12
        table[:, *placement(self.A, *terms.pairs.atoms.T)] = terms.pairs.qq, -terms.pairs.c6, terms.pairs.c12
        self.k = place(table)
        self.born = None if terms.born is None else BornTables(terms.born, *partners(self.A), place)
        # pairs without interaction may coincide: their r^2 is moved away from 0, unless Born needs it
        self.apart = place((table == 0).all(0).astype(float)) if self.born is None else None

    @property
    def numbers(self) -> int:
        """About how many numbers of one replica all pairs take in buffers, were they one chunk."""
        return (12 if self.born is None else 36) * self.K * self.A

    @property
    def kept(self) -> int:
        """How many of them there are whatever the chunks."""
        return 0 if self.born is None else 3 * self.K * self.A

    def record(self, tape: Tape, budget: int) -> None:
        """Adds to E and overwrites F; what is not kept takes about `budget` numbers, or one shell if that is more."""
        most = max(1, min(self.K, budget * self.K // max(self.numbers * tape.n, 1)))
        chunks = [Chunk(k, min(k + most, self.K)) for k in range(0, self.K, most)]
        whole = len(chunks) == 1
        scope = nullcontext if whole else tape.scratch
        if not chunks:
            tape.do(tape.F.zero_)
        rings = Rings(tape, most)
        rings.close(tape.ring)
        geometry: Callable[[Chunk], Geometry] = partial(self._geometry, tape, rings)
        if whole:
            geometry = cache(geometry)
        with tape.scratch():
            born = None
            if self.born is not None:
                born = BornPasses(self.born, tape, rings, geometry, scope)
                born.radii(chunks)
                born.slopes(chunks)
            for chunk in chunks:
                with scope():
                    pairs = geometry(chunk)
                    g = self._central(tape, chunk, pairs.powers)
                    if born is not None:
                        born.add_forces(chunk, pairs.ir, g)
                    tape.do(pairs.d.mul_, g)
                    rings.collect(rings.vectors, rings.vectors, chunk, tape.F, sign=-1)

    def _geometry(self, tape: Tape, rings: Rings, chunk: Chunk) -> Geometry:
        d = rings.rows(rings.vectors, chunk)
        tape.do(torch.sub, rings.heads(tape.ring), rings.tails(tape.ring, chunk), out=d)
        r2 = tape.dot(d, d)
        if self.apart is not None:
            tape.do(r2.add_, chunk.of(self.apart))
        powers = tape.new(3, *r2.shape[:-1])
        tape.do(torch.rsqrt, r2, out=powers[0])
        return Geometry(d, r2, powers)

    def _central(self, tape: Tape, chunk: Chunk, powers: Tensor) -> Tensor:
        """Adds the energies c12/r^12 - c6/r^6 + qq/r; returns g of the force g d on the head."""
        do, k = tape.do, chunk.of(self.k)
        ir, ir6, ir12 = powers
        ir2 = tape.mul(ir, ir)
        do(torch.mul, ir2, ir2, out=ir6)
        do(ir6.mul_, ir2)
        do(torch.mul, ir6, ir6, out=ir12)
        tape.add_energy(k, powers)
        g = tape.mul(ir, k[0])
        do(g.addcmul_, ir6, k[1], value=6)
        do(g.addcmul_, ir12, k[2], value=12)
        do(g.mul_, ir2)
        return g
