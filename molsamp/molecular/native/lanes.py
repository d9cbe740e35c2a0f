"""Forces of one block of replicas, one replica a SIMD lane: the formulas of `terms` as numba kernels.

Positions x and forces f of a block are flat, [atom][xyz][lane]; an atom is named by 3W times its index, the place
where its lanes begin. Every kernel adds to f and returns its energy, a vector. What numba compiles is kept on disk;
see `compiling`.
"""

from typing import NamedTuple

import numpy as np

from molsamp.molecular.native.compiling import kernel
from molsamp.molecular.native.terms import DISTANCE, TORSION
from molsamp.molecular.native.terms import Terms as TermsOfSystem
from molsamp.molecular.native.vector import (
    any_lane,
    atan2,
    exp,
    fabs,
    full,
    load,
    log,
    maximum,
    select,
    sqrt,
    store,
)

SINE_FLOOR = 1e-6  # nm^2: OpenMM's floor on |a x b| of a collinear angle


class Packed(NamedTuple):
    """`terms.Terms` in the type of the lanes; atoms as places, pairs grouped by their first atom."""

    atoms: int
    row: np.ndarray  # first atoms of pairs
    start: np.ndarray  # where the pairs of each begin in `column`
    column: np.ndarray  # second atoms
    pair: np.ndarray  # (P, 3): qq, c6, c12
    bond_atoms: np.ndarray
    bond: np.ndarray  # (B, 2): r0, k
    angle_atoms: np.ndarray
    angle: np.ndarray  # (N, 2): theta0, k
    torsion_atoms: np.ndarray
    torsion: np.ndarray  # (T, H, 2): n cosine_n / n and sine_n
    constant: float
    spring_atoms: np.ndarray
    spring: np.ndarray  # (S, 6): centre, k
    grid_atoms: np.ndarray  # (G, 2, 4)
    grid_shape: np.ndarray  # (G, 2, 3): kind, size, periodic
    grid_offset: np.ndarray
    grid_scale: np.ndarray  # (G, 2, 2): origin, 1 / spacing
    patches: np.ndarray  # (R, 4, 4)
    born: np.ndarray  # (A, 7): charge, rho, o, s, alpha, beta, gamma; no rows without Born
    born_scalars: np.ndarray  # tau, surface
    neck: np.ndarray  # (A, A, 2): m0, d0; no rows without necks
    swallowed: bool


def pack(terms: TermsOfSystem, dtype: type, lanes: int) -> Packed:
    """Terms for lanes of `dtype`."""

    def places(atoms) -> np.ndarray:
        return np.ascontiguousarray(3 * lanes * np.asarray(atoms), dtype=np.uint32)

    def reals(*columns) -> np.ndarray:
        return np.ascontiguousarray(np.stack(columns, -1), dtype=dtype)

    p, b, a, t, g, s, born = (
        terms.pairs, terms.bonds, terms.angles, terms.torsions, terms.grids, terms.springs, terms.born,
    )  # fmt: skip
    row, start = np.unique(p.atoms[:, 0], return_index=True)
    none = np.zeros((0, 0, 2))
    return Packed(
        atoms=terms.atoms,
        row=places(row), start=np.append(start, len(p.qq)).astype(np.int64), column=places(p.atoms[:, 1]),
        pair=reals(p.qq, p.c6, p.c12),
        bond_atoms=places(b.atoms), bond=reals(b.r0, b.k),
        angle_atoms=places(a.atoms), angle=reals(a.theta0, a.k),
        torsion_atoms=places(t.atoms), torsion=reals(t.cosine, t.sine), constant=t.constant,
        spring_atoms=places(s.atoms), spring=np.hstack([s.centre, s.k]).astype(dtype),
        grid_atoms=places(g.atoms), grid_shape=np.stack([g.kind, g.size, g.periodic], -1).astype(np.int64),
        grid_offset=g.offset.astype(np.int64), grid_scale=reals(g.origin, 1.0 / g.spacing),
        patches=np.ascontiguousarray(g.patches, dtype=dtype),
        born=np.zeros((0, 7), dtype) if born is None else reals(
            born.charge, born.rho, born.o, born.s, born.alpha, born.beta, born.gamma),
        born_scalars=np.array([0.0, 0.0] if born is None else [born.tau, born.surface], dtype=dtype),
        neck=(none if born is None or born.neck is None else reals(*born.neck)).astype(dtype),
        swallowed=born is not None and born.swallowed,
    )  # fmt: skip


def scratch_size(t: Packed, lanes: int) -> int:
    """Elements of scratch that `forces` needs: 4 vectors a pair and 5 an atom for Born, 6 for a grid."""
    A = len(t.born)
    return lanes * max(4 * (A * (A - 1) // 2) + 5 * A, 6)


@kernel
def forces(x, f, t, scratch):
    """f <- -dE/dx of one block; returns E of its lanes, without the constant."""
    W = len(x) // (3 * t.atoms)
    zero = full(load(x, 0), 0.0)
    E = zero
    for k in range(0, len(f), W):
        store(f, k, zero)
        E += 0.0 * load(x, k)  # NaN where any coordinate is not finite
    E += bonds(x, f, t.bond_atoms, t.bond, W, zero)
    E += angles(x, f, t.angle_atoms, t.angle, W, zero)
    E += torsions(x, f, t.torsion_atoms, t.torsion, W, zero)
    E += pairs(x, f, t.row, t.start, t.column, t.pair, W, zero)
    if len(t.born):
        E += born(x, f, t.born, t.born_scalars, t.neck, t.swallowed, scratch, W, zero)
    E += springs(x, f, t.spring_atoms, t.spring, W, zero)
    for g in range(len(t.grid_offset)):
        patches = t.patches[t.grid_offset[g] :]
        E += grid(x, f, t.grid_atoms[g], t.grid_shape[g], t.grid_scale[g], patches, scratch, W, zero)
    return E


@kernel
def point(x, i, W):
    """The three coordinates at a place."""
    return load(x, i), load(x, i + W), load(x, i + 2 * W)


@kernel
def push(f, i, W, gx, gy, gz):
    """f_i += g."""
    store(f, i, load(f, i) + gx)
    store(f, i + W, load(f, i + W) + gy)
    store(f, i + 2 * W, load(f, i + 2 * W) + gz)


@kernel
def arm(x, i, j, W):
    """x_i - x_j."""
    return load(x, i) - load(x, j), load(x, i + W) - load(x, j + W), load(x, i + 2 * W) - load(x, j + 2 * W)


@kernel
def dot(ax, ay, az, bx, by, bz):
    return ax * bx + ay * by + az * bz


@kernel
def cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@kernel
def pairs(x, f, row, start, column, pair, W, zero):
    """E = c12/r^12 - c6/r^6 + qq/r; x_i and F_i stay in registers along a row."""
    E = zero
    for r in range(len(row)):
        i = row[r]
        xi, yi, zi = point(x, i, W)
        fx, fy, fz, e = zero, zero, zero, zero
        for p in range(start[r], start[r + 1]):
            j = column[p]
            dx, dy, dz = xi - load(x, j), yi - load(x, j + W), zi - load(x, j + 2 * W)
            ir = 1.0 / sqrt(dx * dx + dy * dy + dz * dz)
            ir2 = ir * ir
            ir6 = ir2 * ir2 * ir2
            coulomb, six, twelve = pair[p, 0] * ir, pair[p, 1] * ir6, pair[p, 2] * (ir6 * ir6)
            e += coulomb + (twelve - six)
            g = (coulomb + (12.0 * twelve - 6.0 * six)) * ir2
            gx, gy, gz = g * dx, g * dy, g * dz
            fx, fy, fz = fx + gx, fy + gy, fz + gz
            push(f, j, W, -gx, -gy, -gz)
        push(f, i, W, fx, fy, fz)
        E += e
    return E


@kernel
def bonds(x, f, atoms, bond, W, zero):
    """E = k (r - r0)^2 / 2."""
    E = zero
    for b in range(len(bond)):
        i, j = atoms[b, 0], atoms[b, 1]
        dx, dy, dz = arm(x, i, j, W)
        r = sqrt(dot(dx, dy, dz, dx, dy, dz))
        stretch = r - bond[b, 0]
        pull = bond[b, 1] * stretch
        E += 0.5 * pull * stretch
        g = -pull / r
        push(f, i, W, g * dx, g * dy, g * dz)
        push(f, j, W, -g * dx, -g * dy, -g * dz)
    return E


@kernel
def angles(x, f, atoms, angle, W, zero):
    """E = k (theta - theta0)^2 / 2; with a = x_i - x_j, b = x_l - x_j, S = |a x b|, C = a.b, theta = atan2(S, C):

    F_i = h (b - C/a^2 a), F_l = h (a - C/b^2 b), h = k (theta - theta0)/S.
    """
    E = zero
    for n in range(len(angle)):
        i, j, l = atoms[n, 0], atoms[n, 1], atoms[n, 2]
        ax, ay, az = arm(x, i, j, W)
        bx, by, bz = arm(x, l, j, W)
        C = dot(ax, ay, az, bx, by, bz)
        wx, wy, wz = cross(ax, ay, az, bx, by, bz)
        S = sqrt(dot(wx, wy, wz, wx, wy, wz))
        bend = atan2(S, C) - angle[n, 0]
        torque = angle[n, 1] * bend
        E += 0.5 * torque * bend
        h = torque / maximum(full(S, SINE_FLOOR), S)
        p, q = C / dot(ax, ay, az, ax, ay, az), C / dot(bx, by, bz, bx, by, bz)
        ix, iy, iz = h * (bx - p * ax), h * (by - p * ay), h * (bz - p * az)
        lx, ly, lz = h * (ax - q * bx), h * (ay - q * by), h * (az - q * bz)
        push(f, i, W, ix, iy, iz)
        push(f, l, W, lx, ly, lz)
        push(f, j, W, -ix - lx, -iy - ly, -iz - lz)
    return E


@kernel
def corner(x, a, b, c, d, W):
    """What a torsion A-B-C-D needs: b1, b2, b3 (B-A, C-B, D-C), m = b1 x b2 and n = b2 x b3."""
    b1, b2, b3 = arm(x, b, a, W), arm(x, c, b, W), arm(x, d, c, W)
    return b1, b2, b3, cross(*b1, *b2), cross(*b2, *b3)


@kernel
def twist(f, a, b, c, d, W, slope, b1, b2, b3, m, n):
    """Adds the forces of a torsion whose energy has slope dE/dphi."""
    b22 = dot(*b2, *b2)
    D, ib22 = slope * sqrt(b22), 1.0 / b22
    u, v = D / dot(*m, *m), -D / dot(*n, *n)
    p, q = dot(*b1, *b2) * ib22, dot(*b3, *b2) * ib22
    ax, ay, az = u * m[0], u * m[1], u * m[2]
    dx, dy, dz = v * n[0], v * n[1], v * n[2]
    ux, uy, uz = p * ax - q * dx, p * ay - q * dy, p * az - q * dz
    push(f, a, W, ax, ay, az)
    push(f, d, W, dx, dy, dz)
    push(f, b, W, -ax - ux, -ay - uy, -az - uz)
    push(f, c, W, ux - dx, uy - dy, uz - dz)


@kernel
def torsions(x, f, atoms, torsion, W, zero):
    """E = sum_n C_n cos n phi + S_n sin n phi, cosines and sines of multiples by angle addition: no acos, no atan2."""
    E, H = zero, torsion.shape[1]
    for k in range(len(torsion)):
        a, b, c, d = atoms[k, 0], atoms[k, 1], atoms[k, 2], atoms[k, 3]
        b1, b2, b3, m, n = corner(x, a, b, c, d, W)
        scale = 1.0 / sqrt(dot(*m, *m) * dot(*n, *n))
        c1, s1 = dot(*m, *n) * scale, sqrt(dot(*b2, *b2)) * dot(*b1, *n) * scale
        unit = 1.5 - 0.5 * (c1 * c1 + s1 * s1)  # back to the circle: powers of its rounding would follow below
        c1, s1 = unit * c1, unit * s1
        cn, sn, slope = c1, s1, zero
        for h in range(H):
            C, S = torsion[k, h, 0], torsion[k, h, 1]
            E += C * cn + S * sn
            slope += (h + 1.0) * (S * cn - C * sn)
            cn, sn = cn * c1 - sn * s1, sn * c1 + cn * s1
        twist(f, a, b, c, d, W, slope, b1, b2, b3, m, n)
    return E


@kernel
def springs(x, f, atoms, spring, W, zero):
    """E = sum_axes k (x - centre)^2 / 2."""
    E = zero
    for s in range(len(spring)):
        for axis in range(3):
            i, k = atoms[s] + axis * W, spring[s, 3 + axis]
            d = load(x, i) - spring[s, axis]
            E += 0.5 * k * d * d
            store(f, i, load(f, i) - k * d)
    return E


@kernel
def grid(x, f, atoms, shape, scale, patches, scratch, W, zero):
    """One bicubic function of two variables. Every lane has a patch of its own, so the middle part is scalar."""
    for axis in range(2):
        i, j, k, l = atoms[axis, 0], atoms[axis, 1], atoms[axis, 2], atoms[axis, 3]
        value = zero
        if shape[axis, 0] == TORSION:
            b1, b2, _, m, n = corner(x, i, j, k, l, W)
            value = atan2(sqrt(dot(*b2, *b2)) * dot(*b1, *n), dot(*m, *n))
        elif shape[axis, 0] == DISTANCE:
            d = arm(x, i, j, W)
            value = sqrt(dot(*d, *d))
        store(scratch, axis * W, value)
    for w in range(W):
        i, u, du = patch(scratch[w], shape[0], scale[0])
        j, v, dv = patch(scratch[W + w], shape[1], scale[1])
        c = patches[i * shape[1, 1] + j]
        p = pu = pv = puv = 0.0 * u
        for k in range(3, -1, -1):
            row = ((c[k, 3] * v + c[k, 2]) * v + c[k, 1]) * v + c[k, 0]
            row_v = (3.0 * c[k, 3] * v + 2.0 * c[k, 2]) * v + c[k, 1]
            pu, puv = pu * u + p, puv * u + pv
            p, pv = p * u + row, pv * u + row_v
        scratch[2 * W + w] = p + pu * du + (pv + puv * du) * dv
        scratch[3 * W + w] = (pu + puv * dv) * scale[0, 1]
        scratch[4 * W + w] = (pv + puv * du) * scale[1, 1]
    for axis in range(2):
        i, j, k, l = atoms[axis, 0], atoms[axis, 1], atoms[axis, 2], atoms[axis, 3]
        slope = load(scratch, (3 + axis) * W)
        if shape[axis, 0] == TORSION:
            b1, b2, b3, m, n = corner(x, i, j, k, l, W)
            twist(f, i, j, k, l, W, slope, b1, b2, b3, m, n)
        elif shape[axis, 0] == DISTANCE:
            dx, dy, dz = arm(x, i, j, W)
            g = -slope / sqrt(dot(dx, dy, dz, dx, dy, dz))
            push(f, i, W, g * dx, g * dy, g * dz)
            push(f, j, W, -g * dx, -g * dy, -g * dz)
    return load(scratch, 2 * W)


@kernel
def patch(value, shape, scale):
    """(index, place u inside the patch, overhang du) of one value along one axis; NaN falls into patch 0."""
    size = shape[1]
    u = (value - scale[0]) * scale[1]
    if not abs(u) < 1e9:
        return 0, u, 0.0 * u
    if shape[2]:
        u -= size * np.floor(u / size)
    # outside an axis that does not wrap the function goes on from the edge; u = size is a rounding of the last patch
    inside = min(max(u, 0.0), size)
    index = min(int(inside), size - 1)
    return index, inside - index, u - inside


@kernel
def descreening(r, ir, ir2, o, s, swallowed, zero):
    """Hd(r; o, s) and its derivative: what atom j of scaled radius s takes from the integral of atom i."""
    d = r - s
    gap = fabs(d)
    U = r + s
    L = select(gap > o, gap, full(r, o))
    iL, iU = 1.0 / L, 1.0 / U
    iL2, iU2, ratio = iL * iL, iU * iU, log(L * iU)
    s2 = s * s
    H = 0.5 * (iL - iU) + 0.125 * (r - s2 * ir) * (iU2 - iL2) + 0.25 * ratio * ir
    slope = -0.125 * (1.0 + s2 * ir2) * (iL2 - iU2) - 0.25 * ratio * ir2
    inside = d < -o  # atom i lies inside the sphere s_j
    if swallowed:
        H += select(inside, 1.0 / o - iL, zero)
    else:
        slope += select(inside, iL2, zero)
    apart = o < U  # otherwise atom j lies inside atom i
    return select(apart, H, zero), select(apart, slope, zero)


@kernel
def necks(r, m0, d0, near, zero):
    """m0 / (1 + 100 q^2 + 0.3e6 q^6), q = r - d0, and its derivative, where near."""
    q = r - d0
    q2 = q * q
    q4 = q2 * q2
    n = 1.0 / (1.0 + 100.0 * q2 + 0.3e6 * (q4 * q2))
    value, slope = m0 * n, -m0 * (200.0 * q + 1.8e6 * (q4 * q)) * (n * n)
    return select(near, value, zero), select(near, slope, zero)


@kernel
def born(x, f, atom, scalars, neck, swallowed, scratch, W, zero):
    """Generalised Born in three passes over pairs: Born radii; energy and dE/dB; forces.

    The first pass leaves 1/r, dI_i/dr / r and dI_j/dr / r of each pair in `scratch`, the second the radial part.
    """
    A, tau, surface = len(atom), scalars[0], scalars[1]
    I = 4 * W * (A * (A - 1) // 2)
    B, iB, dB, dE = I + A * W, I + 2 * A * W, I + 3 * A * W, I + 4 * A * W
    for k in range(A):
        store(scratch, I + k * W, zero)
    p = 0
    for i in range(A - 1):
        xi, yi, zi = point(x, 3 * W * i, W)
        rho, o, s = atom[i, 1], atom[i, 2], atom[i, 3]
        total = load(scratch, I + i * W)
        for j in range(i + 1, A):
            xj, yj, zj = point(x, 3 * W * j, W)
            dx, dy, dz = xi - xj, yi - yj, zi - zj
            r2 = dx * dx + dy * dy + dz * dz
            ir = 1.0 / sqrt(r2)
            r, ir2 = r2 * ir, ir * ir
            Hi, Si = descreening(r, ir, ir2, o, atom[j, 3], swallowed, zero)
            Hj, Sj = descreening(r, ir, ir2, atom[j, 2], s, swallowed, zero)
            if len(neck):
                near = r < rho + atom[j, 1] + 0.68
                if any_lane(near):
                    n, dn = necks(r, neck[i, j, 0], neck[i, j, 1], near, zero)
                    Hi, Si = Hi + n, Si + dn
                    n, dn = necks(r, neck[j, i, 0], neck[j, i, 1], near, zero)
                    Hj, Sj = Hj + n, Sj + dn
            total += Hi
            store(scratch, I + j * W, load(scratch, I + j * W) + Hj)
            store(scratch, p, r2)
            store(scratch, p + W, Si * ir)
            store(scratch, p + 2 * W, Sj * ir)
            p += 4 * W
        store(scratch, I + i * W, total)
    E = zero
    for k in range(A):
        q, rho, o, al, be, ga = atom[k, 0], atom[k, 1], atom[k, 2], atom[k, 4], atom[k, 5], atom[k, 6]
        psi = load(scratch, I + k * W) * o
        arc = ((ga * psi - be) * psi + al) * psi
        # tanh from the decaying exponential of |arc|, which cannot overflow
        e = exp(maximum(-2.0 * fabs(arc), full(arc, -80.0)))
        th = (1.0 - e) / (1.0 + e)
        th = select(arc < 0.0, -th, th)
        inverse = 1.0 / o - th * (1.0 / rho)
        inverse = select(inverse > 0.0, inverse, full(inverse, np.nan))  # no such radius: a status, not a number
        radius = 1.0 / inverse
        store(scratch, iB + k * W, inverse)
        store(scratch, B + k * W, radius)
        slope = (1.0 - th * th) * ((3.0 * ga * psi - 2.0 * be) * psi + al)
        store(scratch, dB + k * W, radius * radius * slope * (o / rho))
        x2 = rho * inverse
        x2 = x2 * x2
        skin = x2 * x2 * x2 * (surface * (rho + 0.14) * (rho + 0.14))
        own = (0.5 * tau * q * q) * inverse
        E += skin - own
        store(scratch, dE + k * W, (own - 6.0 * skin) * inverse)
    p = 0
    for i in range(A - 1):
        Bi, iBi, di, e_row = load(scratch, B + i * W), load(scratch, iB + i * W), load(scratch, dE + i * W), zero
        qi = -tau * atom[i, 0]
        for j in range(i + 1, A):
            Bj, iBj = load(scratch, B + j * W), load(scratch, iB + j * W)
            r2, BB = load(scratch, p), Bi * Bj
            w = 0.25 * r2 * (iBi * iBj)
            e = exp(maximum(-w, full(w, -80.0)))
            g = 1.0 / sqrt(r2 + BB * e)
            P = (qi * atom[j, 0]) * g
            e_row += P
            h = P * (g * g)
            store(scratch, p + 3 * W, h * (1.0 - 0.25 * e))
            h = -0.5 * h * e * (1.0 + w)
            di += h * Bj
            store(scratch, dE + j * W, load(scratch, dE + j * W) + h * Bi)
            p += 4 * W
        store(scratch, dE + i * W, di)
        E += e_row
    for k in range(A):
        store(scratch, dE + k * W, load(scratch, dE + k * W) * load(scratch, dB + k * W))
    p = 0
    for i in range(A - 1):
        xi, yi, zi = point(x, 3 * W * i, W)
        fx, fy, fz, ci = zero, zero, zero, load(scratch, dE + i * W)
        for j in range(i + 1, A):
            place = 3 * W * j
            dx, dy, dz = xi - load(x, place), yi - load(x, place + W), zi - load(x, place + 2 * W)
            g = (
                load(scratch, p + 3 * W)
                - ci * load(scratch, p + W)
                - load(scratch, dE + j * W) * load(scratch, p + 2 * W)
            )
            gx, gy, gz = g * dx, g * dy, g * dz
            fx, fy, fz = fx + gx, fy + gy, fz + gz
            push(f, place, W, -gx, -gy, -gz)
            p += 4 * W
        push(f, 3 * W * i, W, fx, fy, fz)
    return E
