"""NativeEnergy: many replicas of one openmm.System at once, in torch, with exact analytic forces.

Terms: HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, NonbondedForce (NoCutoff, with exceptions).
Everything else is refused by name. OpenMM stays the source of truth: parameters are read from its System, Coulomb's
constant is probed from a Context, and the Reference platform judges the result.

Inside, the replica is the last index, so every operation streams over contiguous memory, and all terms are functions
of difference vectors d = x_i - x_j, stacked in one array D (3, terms, n) in the order

    pairs | bonds | L | R        (L, R): the two arms of a corner

An angle i-j-l is one corner (x_i - x_j, x_l - x_j); a torsion A-B-C-D is two corners (b1, b2) and (b2, b3) with
b1 = B-A, b2 = C-B, b3 = D-C. With B the (terms, atoms) incidence matrix of +1 and -1, D = B x, and with
G = -dE/dD the force is F = B^T G. G overwrites D in place. Per-replica results depend on the replica alone.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from molsamp.molecular.energies import Energy
from molsamp.molecular.openmm_energy import refuse_constraints

_SINE_FLOOR = 1e-6  # nm^2: OpenMM's floor on |a x b| of a collinear angle
_DENSE_ATOMS = (
    64  # up to here the incidence matrix is applied densely by BLAS; at 138 atoms gather and scatter is 3x faster
)
_BLOCK_BYTES = 2**22  # size of D per block of replicas; 2^18 to 2^20 measured 1.3 to 2 times slower (more calls)
_LANES = 16  # batches are padded to a multiple, so that a shrinking batch does not ask for a new kernel each time
_KERNELS = 8  # block sizes whose buffers are kept


@cache
def coulomb_constant() -> float:
    """K of E = K q_i q_j / r in kJ/mol nm/e^2, measured once per process on OpenMM's Reference platform."""
    system, force = openmm.System(), openmm.NonbondedForce()
    for _ in range(2):
        system.addParticle(1.0)
        force.addParticle(1.0, 1.0, 0.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    return _md(context.getState(energy=True).getPotentialEnergy())


@dataclass(frozen=True)
class Terms:
    """Indices and constants of every term, columns (terms, 1) so that they broadcast over replicas."""

    atoms: int
    i: Tensor  # (T,) head atom of each row of D
    j: Tensor  # (T,) tail atom
    incidence: Tensor  # (T, A), or (0, A) when atoms are too many
    qq: Tensor  # (P, 1) K q_i q_j
    c6: Tensor  # (P, 1) 4 eps sigma^6
    c12: Tensor  # (P, 1) 4 eps sigma^12
    bond_k: Tensor
    bond_r0: Tensor
    angle_k: Tensor
    angle_0: Tensor
    cosine: Tensor  # (H, torsions, 1) k cos(phase) of harmonics 1..H
    sine: Tensor  # (H, torsions, 1) k sin(phase)
    constant: Tensor  # () sum of the torsion constants

    def to(self, device: torch.device, dtype: torch.dtype) -> "Terms":
        """The same terms on a device, real numbers in `dtype`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{k: v.to(dtype) if v.is_floating_point() else v for k, v in moved.items()})


class NativeEnergy(Energy):
    """Energy and forces of n replicas of one molecule, computed term by term in torch.

    Use `from_openmm`. The forces are exact derivatives; the results are not themselves differentiable. Singular
    geometries give inf or NaN in their own replica: coincident atoms, collinear torsions, float32 overflow at r below
    about 6e-4 nm. A collinear angle has zero force, as in OpenMM. Work buffers are reused: one object per thread.

    Against OpenMM Reference the relative error of the force is 2e-15 in float64 and 8e-7 in float32 (22 atoms), that
    of the energy 5e-13 and 4e-4 kJ/mol.
    """

    def __init__(self, terms: Terms, dtype: torch.dtype = torch.float64):
        self.event = (terms.atoms, 3)
        self.dtype = dtype
        self.tier = f"torch-{str(dtype).removeprefix('torch.')}"
        fitting = _BLOCK_BYTES // (3 * max(len(terms.i), 1) * dtype.itemsize)
        self.block = max(_LANES, 2 ** (fitting.bit_length() - 1))
        self._terms = terms
        self._kernels: dict[tuple[int, torch.device], _Kernel] = {}

    @classmethod
    def from_openmm(cls, system: openmm.System, dtype: torch.dtype = torch.float64) -> "NativeEnergy":
        """The native twin of an openmm.System.

        Args:
            system: flexible bonds, no cutoff, no motion remover.
            dtype: precision of the computation; positions are cast to it and results back to theirs.
        Raises:
            ValueError: the system holds anything not in this module's list; names the force class and its index.
        """
        return cls(read_terms(system), dtype)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = x.new_empty(len(x)), torch.empty_like(x, memory_format=torch.contiguous_format)
        with torch.no_grad():
            for start in range(0, len(x), self.block):
                part = x[start : start + self.block]
                stop = start + len(part)
                kernel = self._kernel(len(part), x.device)
                kernel(part)
                E[start:stop].copy_(kernel.E[: len(part)])
                F[start:stop].copy_(kernel.F[:, :, : len(part)].permute(2, 1, 0))
        return E, F

    def _kernel(self, n: int, device: torch.device) -> "_Kernel":
        """The recorded kernel for n replicas, rounded up to whole lanes; the few most recent sizes are kept."""
        n = -(-n // _LANES) * _LANES
        key = n, device
        kernel = self._kernels.pop(key, None)
        if kernel is None:
            with torch.inference_mode(False):  # buffers born in inference mode could not be written outside it
                kernel = _Kernel(self._terms.to(device, self.dtype), n)
        if len(self._kernels) >= _KERNELS:
            self._kernels.pop(next(iter(self._kernels)))
        self._kernels[key] = kernel
        return kernel


class _Kernel:
    """The computation for n replicas, recorded once as in-place operations on fixed buffers and replayed.

    A torch operation on 64 replicas takes about 2 us when it writes into a buffer; allocating its result triples
    that, and each slice of a buffer costs another 1 to 2 us. So buffers and slices are made here, once.
    """

    def __init__(self, terms: Terms, n: int):
        self.terms = terms
        self._steps: list[Callable[[], object]] = []
        P, B = len(terms.qq), len(terms.bond_k)
        self.x, self.E = self._new(3, terms.atoms, n).zero_(), self._new(n)
        D = self._new(3, len(terms.i), n)
        self._record_differences(D)
        r2 = self._dot(D, D)
        self._do(self.E.fill_, float(terms.constant))
        self._central(D[:, : P + B], r2[: P + B])
        if len(terms.i) > P + B:
            self._corners(D[:, P + B :], r2[P + B :])
        self.F = self._new(3, terms.atoms, n)
        self._record_forces(D)

    def __call__(self, x: Tensor) -> None:
        """Fills E and F (3, A, n) for at most n replicas x (k, A, 3); later columns hold leftovers."""
        self.x[:, :, : len(x)].copy_(x.permute(2, 1, 0))
        for step in self._steps:
            step()

    def _new(self, *shape: int) -> Tensor:
        return self.terms.qq.new_empty(shape)

    def _do(self, operation: Callable, *args: object, **options: object) -> None:
        self._steps.append(partial(operation, *args, **options))

    def _mul(self, a: Tensor, b: Tensor) -> Tensor:
        out = self._new(*torch.broadcast_shapes(a.shape, b.shape))
        self._do(torch.mul, a, b, out=out)
        return out

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        out = self._mul(a[0], b[0])
        self._do(out.addcmul_, a[1], b[1])
        self._do(out.addcmul_, a[2], b[2])
        return out

    def _cross(self, a: Tensor, b: Tensor) -> Tensor:
        out = self._new(*a.shape)
        for k, l, m in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            self._do(torch.mul, a[l], b[m], out=out[k])
            self._do(out[k].addcmul_, a[m], b[l], value=-1)
        return out

    def _add_energy(self, k: Tensor, e: Tensor, factor: float = 1.0) -> None:
        """E += factor * sum_terms k e."""
        self._do(self.E.addmv_, e.T, k[:, 0], alpha=factor)

    def _record_differences(self, D: Tensor) -> None:
        if len(self.terms.incidence):
            self._do(torch.bmm, self.terms.incidence.expand(3, -1, -1), self.x, out=D)
        else:
            tails = self._new(*D.shape)
            self._do(torch.index_select, self.x, 1, self.terms.i, out=D)
            self._do(torch.index_select, self.x, 1, self.terms.j, out=tails)
            self._do(D.sub_, tails)

    def _record_forces(self, G: Tensor) -> None:
        if len(self.terms.incidence):
            self._do(torch.bmm, self.terms.incidence.T.expand(3, -1, -1), G, out=self.F)
        else:
            self._do(self.F.zero_)
            self._do(self.F.index_add_, 1, self.terms.i, G)
            self._do(self.F.index_add_, 1, self.terms.j, G, alpha=-1)

    def _central(self, D: Tensor, r2: Tensor) -> None:
        """Pairs, E = c12/r^12 - c6/r^6 + qq/r, and bonds, E = k (r - r0)^2 / 2: forces along d, -dE/dd = g d."""
        terms, P = self.terms, len(self.terms.qq)
        ir, g = self._new(*r2.shape), self._new(*r2.shape)
        self._do(torch.rsqrt, r2, out=ir)
        ir2 = self._mul(ir[:P], ir[:P])
        ir6 = self._mul(ir2, ir2)
        self._do(ir6.mul_, ir2)
        ir12 = self._mul(ir6, ir6)
        self._add_energy(terms.qq, ir[:P])
        self._add_energy(terms.c6, ir6, -1)
        self._add_energy(terms.c12, ir12)
        self._do(torch.mul, ir[:P], terms.qq, out=g[:P])
        self._do(g[:P].addcmul_, ir6, terms.c6, value=-6)
        self._do(g[:P].addcmul_, ir12, terms.c12, value=12)
        self._do(g[:P].mul_, ir2)
        dr = self._mul(r2[P:], ir[P:])
        self._do(dr.sub_, terms.bond_r0)
        self._add_energy(terms.bond_k, self._mul(dr, dr), 0.5)
        self._do(dr.mul_, ir[P:])
        self._do(torch.mul, dr, terms.bond_k, out=g[P:])
        self._do(g[P:].neg_)
        self._do(D.mul_, g)

    def _corners(self, D: Tensor, r2: Tensor) -> None:
        """Angles and torsions, from C = L.R and W = L x R of every corner."""
        half, a, T = D.shape[1] // 2, len(self.terms.angle_k), self.terms.cosine.shape[1]
        L, R = D[:, :half], D[:, half:]
        C, W = self._dot(L, R), self._cross(L, R)
        W2 = self._dot(W, W)
        if a:
            self._angles(L[:, :a], R[:, :a], C[:a], W2[:a], r2[:a], r2[half : half + a])
        if T:
            self._torsions(L[:, a:], R[:, a:], C[a:], W[:, a:], W2[a:], r2[half + a : half + a + T])

    def _angles(self, L: Tensor, R: Tensor, C: Tensor, W2: Tensor, L2: Tensor, R2: Tensor) -> None:
        """E = k (theta - theta0)^2 / 2, theta = atan2(S, C), S = |W|.

        -dE/dL = h R - (h C / L^2) L with h = k (theta - theta0) / S, and the same with L and R exchanged.
        """
        terms, S, d, h, g = self.terms, W2, self._new(*C.shape), self._new(*C.shape), self._new(*C.shape)
        self._do(S.sqrt_)
        self._do(torch.atan2, S, C, out=d)
        self._do(S.clamp_, min=_SINE_FLOOR)
        self._do(d.sub_, terms.angle_0)
        self._add_energy(terms.angle_k, self._mul(d, d), 0.5)
        self._do(torch.div, d, S, out=h)
        self._do(h.mul_, terms.angle_k)
        hL, hR = self._mul(h, L), self._mul(h, R)
        self._do(C.mul_, h)
        self._do(torch.div, C, R2, out=g)
        self._do(R.mul_, g)
        self._do(torch.sub, hL, R, out=R)
        self._do(torch.div, C, L2, out=g)
        self._do(L.mul_, g)
        self._do(torch.sub, hR, L, out=L)

    def _torsions(self, L: Tensor, R: Tensor, C: Tensor, W: Tensor, W2: Tensor, b2: Tensor) -> None:
        """E = sum_n C_n cos n phi + S_n sin n phi for the corners (b1, b2), (b2, b3) with W = (m, n).

        cos phi = m.n / |m||n|, sin phi = |b2| b1.n / |m||n|. With E' = dE/dphi: -dE/db1 = -(E'|b2|/m^2) m,
        -dE/db3 = -(E'|b2|/n^2) n, and b2 gets (b1.b2/b2^2) and (b2.b3/b2^2) times the opposites of these.
        """
        T, n = b2.shape
        length, scale = self._new(T, n), self._mul(W2[:T], W2[T:])
        self._do(torch.sqrt, b2, out=length)
        self._do(scale.rsqrt_)
        cos, sin = self._dot(W[:, :T], W[:, T:]), self._dot(L[:, :T], W[:, T:])
        self._do(cos.mul_, scale)
        self._do(sin.mul_, scale)
        self._do(sin.mul_, length)
        slope = self._harmonics(cos, sin)  # -dE/dphi
        self._do(slope.mul_, length)
        end, mid = self._new(2, T, n), self._new(2, T, n)  # factors of m and n, for the outer arms and for b2
        self._do(torch.div, slope, W2.view(2, T, n), out=end)
        self._do(torch.div, C.view(2, T, n), b2, out=mid)
        self._do(mid.mul_, end)
        self._do(mid.neg_)
        self._do(torch.mul, W[:, :T], end[0], out=L[:, :T])
        self._do(torch.mul, W[:, :T], mid[0], out=R[:, :T])
        self._do(torch.mul, W[:, T:], mid[1], out=L[:, T:])
        self._do(torch.mul, W[:, T:], end[1], out=R[:, T:])

    def _harmonics(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Adds the torsion energy to E and returns -dE/dphi; cos n phi and sin n phi by angle addition."""
        c, s = cos, sin
        slope = self._new(*cos.shape)
        self._do(slope.zero_)
        for n, (C, S) in enumerate(zip(self.terms.cosine, self.terms.sine, strict=True), start=1):
            if n > 1:
                c_1, s_1 = c, s
                c, s = self._mul(c_1, cos), self._mul(s_1, cos)
                self._do(c.addcmul_, s_1, sin, value=-1)
                self._do(s.addcmul_, c_1, sin)
            self._add_energy(C, c)
            self._do(slope.addcmul_, s, C, value=n)
            if S.any():  # phases other than 0 and pi
                self._add_energy(S, s)
                self._do(slope.addcmul_, c, S, value=-n)
        return slope


# ---- reading an openmm.System ----


def read_terms(system: openmm.System) -> Terms:
    """The terms of a System in float64; see `NativeEnergy.from_openmm` for what is refused."""
    refuse_constraints(system)
    A = system.getNumParticles()
    if virtual := [i for i in range(A) if system.isVirtualSite(i)]:
        raise ValueError(f"particle {virtual[0]} is a virtual site, which NativeEnergy cannot do: use OpenMMEnergy")
    bonds, angles, torsions, pairs = [], [], defaultdict(list), []
    for index, force in enumerate(system.getForces()):
        _check(force, index)
        if isinstance(force, openmm.HarmonicBondForce):
            bonds += [_md(force.getBondParameters(k)) for k in range(force.getNumBonds())]
        elif isinstance(force, openmm.HarmonicAngleForce):
            angles += [_md(force.getAngleParameters(k)) for k in range(force.getNumAngles())]
        elif isinstance(force, openmm.PeriodicTorsionForce):
            for k in range(force.getNumTorsions()):
                *atoms, n, phase, strength = _md(force.getTorsionParameters(k))
                quadruple = min(tuple(atoms), tuple(reversed(atoms)))  # the reverse has the same angle
                torsions[quadruple].append((n, phase, strength))
        else:
            pairs += _pairs(force)
    return _pack(A, pairs, bonds, angles, torsions)


def _check(force: openmm.Force, index: int) -> None:
    """Refuses a force the native tier does not reproduce exactly."""
    name = type(force).__name__
    allowed = ("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce")
    found = None
    if name not in allowed:
        found = f"only {', '.join(allowed)} are native"
    elif name == "NonbondedForce":
        if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
            found = "its nonbonded method is not NoCutoff"
        elif force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
            found = "it has parameter offsets"
    elif force.usesPeriodicBoundaryConditions():
        found = "it uses periodic boundary conditions"
    if found:
        raise ValueError(f"force {index} ({name}): {found}; use OpenMMEnergy")


def _md(value):
    """Plain numbers in OpenMM's MD units (nm, ps, Da, e, kJ/mol, rad), also inside lists."""
    if isinstance(value, list | tuple):
        return [_md(v) for v in value]
    return value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value


def _pairs(force: openmm.NonbondedForce) -> list[tuple[int, int, float, float, float]]:
    """(i, j, qq, sigma, eps) of every interacting pair; an exception replaces its pair wholly."""
    q, sigma, eps = np.array([_md(force.getParticleParameters(k)) for k in range(force.getNumParticles())]).T
    table = {
        (i, j): (q[i] * q[j], (sigma[i] + sigma[j]) / 2, (eps[i] * eps[j]) ** 0.5)
        for i, j in combinations(range(len(q)), 2)
    }
    for k in range(force.getNumExceptions()):
        i, j, *parameters = _md(force.getExceptionParameters(k))
        table[min(i, j), max(i, j)] = tuple(parameters)
    return [(i, j, qq, s, e) for (i, j), (qq, s, e) in table.items() if qq != 0 or e != 0]


def _pack(A: int, pairs: list, bonds: list, angles: list, torsions: dict) -> Terms:
    p, b, a = (np.array(rows, dtype=float).reshape(-1, width) for rows, width in ((pairs, 5), (bonds, 4), (angles, 5)))
    quadruples = np.array(list(torsions), dtype=int).reshape(-1, 4)
    H = max((n for terms in torsions.values() for n, _, _ in terms), default=1)
    harmonics = np.zeros((2, H, len(quadruples), 1))
    constant = 0.0
    for t, terms in enumerate(torsions.values()):
        for n, phase, k in terms:
            harmonics[:, n - 1, t, 0] += k * np.cos(phase), k * np.sin(phase)
            constant += k
    qA, qB, qC, qD = quadruples.T
    heads = [p[:, 0], b[:, 0], a[:, 0], qB, qC, a[:, 2], qC, qD]
    tails = [p[:, 1], b[:, 1], a[:, 1], qA, qB, a[:, 1], qB, qC]
    i, j = (torch.as_tensor(np.concatenate(rows).astype(np.int64)) for rows in (heads, tails))
    incidence = torch.zeros(len(i) if A <= _DENSE_ATOMS else 0, A, dtype=torch.float64)
    if len(incidence):
        rows = torch.arange(len(i))
        incidence[rows, i], incidence[rows, j] = 1.0, -1.0
    six = p[:, 3:4] ** 6
    numbers = dict(
        qq=coulomb_constant() * p[:, 2:3], c6=4 * p[:, 4:] * six, c12=4 * p[:, 4:] * six**2,
        bond_k=b[:, 3:], bond_r0=b[:, 2:3], angle_k=a[:, 4:], angle_0=a[:, 3:4],
        cosine=harmonics[0], sine=harmonics[1], constant=np.array(constant),
    )  # fmt: skip
    return Terms(atoms=A, i=i, j=j, incidence=incidence, **{k: torch.as_tensor(v) for k, v in numbers.items()})
