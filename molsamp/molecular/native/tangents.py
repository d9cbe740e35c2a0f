"""Directions in which torsions turn, and what a control sees of them."""

import numpy as np

from molsamp.molecular.native.compiling import entry, kernel


@kernel
def cross(a, b):
    """a x b of tuples."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@kernel
def dot(a, b):
    """a . b of tuples."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@kernel
def atom(row, i):
    """Coordinates of atom i of a frame (3A)."""
    return np.float64(row[3 * i]), np.float64(row[3 * i + 1]), np.float64(row[3 * i + 2])


@kernel
def minus(a, b):
    """a - b of tuples."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@kernel
def inverse_inertia(row, root, centre):
    """Rows of the inverse of sum m (r^2 - r r^T) by cofactors."""
    xx = yy = zz = xy = xz = yz = 0.0
    for i in range(len(root)):
        m = root[i] ** 2
        X, Y, Z = minus(atom(row, i), centre)
        xx, yy, zz = xx + m * (Y * Y + Z * Z), yy + m * (X * X + Z * Z), zz + m * (X * X + Y * Y)
        xy, xz, yz = xy - m * X * Y, xz - m * X * Z, yz - m * Y * Z
    a, b, c = (xx, xy, xz), (xy, yy, yz), (xz, yz, zz)
    bc, ca, ab = cross(b, c), cross(c, a), cross(a, b)
    det = dot(a, bc)
    return (
        (bc[0] / det, ca[0] / det, ab[0] / det),
        (bc[1] / det, ca[1] / det, ab[1] / det),
        (bc[2] / det, ca[2] / det, ab[2] / det),
    )


@entry
def tangents(x, v, atoms, sides, root, kT, s, d):
    """Of frames x (n, 3A), velocities v: d (n, C, 3A) of torsions `atoms` (C, 4), whose bonds turn `sides` (C, A).

    d = sqrt(m) (turn of the side - overall motion), normalised; s[:, :3C] <- sin, cos, d . sqrt(m / kT) v of each.
    `root` holds sqrt(m).
    """
    A, C = len(root), len(atoms)
    total = np.sum(root * root)
    for n in range(len(x)):
        row, see = x[n], s[n]
        cx = cy = cz = 0.0
        for i in range(A):
            X, Y, Z = atom(row, i)
            w = root[i] ** 2 / total
            cx, cy, cz = cx + w * X, cy + w * Y, cz + w * Z
        centre = (cx, cy, cz)
        inverse = inverse_inertia(row, root, centre)
        for c in range(C):
            out = d[n, c]
            p0, p1, p2, p3 = (
                atom(row, atoms[c, 0]),
                atom(row, atoms[c, 1]),
                atom(row, atoms[c, 2]),
                atom(row, atoms[c, 3]),
            )
            b1, b2, b3 = minus(p1, p0), minus(p2, p1), minus(p3, p2)
            long = np.sqrt(dot(b2, b2))
            one, other = cross(b1, b2), cross(b2, b3)
            sine, cosine = long * dot(b1, other), dot(one, other)
            size = np.sqrt(sine * sine + cosine * cosine)
            see[c], see[C + c] = sine / size, cosine / size
            axis = (b2[0] / long, b2[1] / long, b2[2] / long)
            px = py = pz = lx = ly = lz = 0.0
            for i in range(A):
                if sides[c, i]:
                    m, here = root[i] ** 2, atom(row, i)
                    e = cross(axis, minus(here, p2))
                    l = cross(minus(here, centre), e)
                    px, py, pz = px + m * e[0], py + m * e[1], pz + m * e[2]
                    lx, ly, lz = lx + m * l[0], ly + m * l[1], lz + m * l[2]
            spin = (lx, ly, lz)
            omega = (dot(inverse[0], spin), dot(inverse[1], spin), dot(inverse[2], spin))
            square = along = 0.0
            for i in range(A):
                here = atom(row, i)
                e = cross(axis, minus(here, p2)) if sides[c, i] else (0.0, 0.0, 0.0)
                turn = cross(omega, minus(here, centre))
                rest = (e[0] - px / total - turn[0], e[1] - py / total - turn[1], e[2] - pz / total - turn[2])
                m = root[i]
                square += m * m * dot(rest, rest)
                along += m * m * dot(rest, atom(v[n], i))
                out[3 * i], out[3 * i + 1], out[3 * i + 2] = m * rest[0], m * rest[1], m * rest[2]
            norm = 1.0 / np.sqrt(square)
            see[2 * C + c] = along * norm / np.sqrt(kT)
            for k in range(3 * A):
                out[k] = out[k] * norm
