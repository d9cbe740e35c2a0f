"""Superposition of many frames on one reference, eight float64 lanes at a time, and the frame of the body.

Horn's symmetric 4x4 matrix N of every frame is diagonalised by cyclic Jacobi rotations: a fixed number of them, no
branch, no trouble with equal eigenvalues, and full precision also where the quartic of N has a double root.
"""

import numpy as np

from molsamp.molecular.native.compiling import entry, kernel
from molsamp.molecular.native.vector import full, load, select, sqrt, store

W = 8
SWEEPS = 6
TINY = 1e-300


@kernel
def rotate(a, b, c, s):
    """(a, b) turned by the angle with cosine c and sine s."""
    return c * a - s * b, s * a + c * b


@kernel
def top_eigenvector(N):
    """The eigenvector of the largest eigenvalue of symmetric N [4][4][lane], which is overwritten; 4 vectors."""
    one = full(load(N, 0), 1.0)
    Q = np.zeros(16 * W)
    for k in range(4):
        store(Q, 5 * k * W, one)
    for _ in range(SWEEPS):
        for p in range(3):
            for q in range(p + 1, 4):
                pq = load(N, (4 * p + q) * W)
                h = load(N, 5 * q * W) - load(N, 5 * p * W)
                root = sqrt(h * h + 4.0 * pq * pq) + TINY
                t = select(h < 0.0, -2.0 * pq / (root - h), 2.0 * pq / (root + h))
                c = 1.0 / sqrt(t * t + 1.0)
                s = t * c
                for k in range(4):
                    i, j = (4 * k + p) * W, (4 * k + q) * W
                    a, b = rotate(load(N, i), load(N, j), c, s)
                    store(N, i, a)
                    store(N, j, b)
                    a, b = rotate(load(Q, i), load(Q, j), c, s)
                    store(Q, i, a)
                    store(Q, j, b)
                for k in range(4):
                    i, j = (4 * p + k) * W, (4 * q + k) * W
                    a, b = rotate(load(N, i), load(N, j), c, s)
                    store(N, i, a)
                    store(N, j, b)
    best, w, x, y, z = load(N, 0), load(Q, 0), load(Q, 4 * W), load(Q, 8 * W), load(Q, 12 * W)
    for k in range(1, 4):
        better = load(N, 5 * k * W) > best
        best = select(better, load(N, 5 * k * W), best)
        w, x = select(better, load(Q, k * W), w), select(better, load(Q, (4 + k) * W), x)
        y, z = select(better, load(Q, (8 + k) * W), y), select(better, load(Q, (12 + k) * W), z)
    return w, x, y, z


@kernel
def superpose_block(x, first, atoms, weights, ref, ref0, motion, N):
    """motion [12][lane] <- R row by row, then t, of y = x R^T + t for the frames first.. of x (n, 3A)."""
    n = len(x)
    for w in range(W):
        row = x[min(first + w, n - 1)]
        xx = xy = xz = yx = yy = yz = zx = zy = zz = cx = cy = cz = 0.0
        for k in range(len(atoms)):
            i, m = 3 * atoms[k], weights[k]
            X, Y, Z = m * row[i], m * row[i + 1], m * row[i + 2]
            cx, cy, cz = cx + X, cy + Y, cz + Z
            xx, xy, xz = xx + X * ref[k, 0], xy + X * ref[k, 1], xz + X * ref[k, 2]
            yx, yy, yz = yx + Y * ref[k, 0], yy + Y * ref[k, 1], yz + Y * ref[k, 2]
            zx, zy, zz = zx + Z * ref[k, 0], zy + Z * ref[k, 1], zz + Z * ref[k, 2]
        N[w], N[5 * W + w], N[10 * W + w], N[15 * W + w] = xx + yy + zz, xx - yy - zz, yy - xx - zz, zz - xx - yy
        N[W + w] = N[4 * W + w] = yz - zy
        N[2 * W + w] = N[8 * W + w] = zx - xz
        N[3 * W + w] = N[12 * W + w] = xy - yx
        N[6 * W + w] = N[9 * W + w] = xy + yx
        N[7 * W + w] = N[13 * W + w] = zx + xz
        N[11 * W + w] = N[14 * W + w] = yz + zy
        motion[9 * W + w], motion[10 * W + w], motion[11 * W + w] = cx, cy, cz
    a, b, c, d = top_eigenvector(N)
    cx, cy, cz = load(motion, 9 * W), load(motion, 10 * W), load(motion, 11 * W)
    rows = (
        (a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)),
        (2.0 * (b * c + a * d), a * a - b * b + c * c - d * d, 2.0 * (c * d - a * b)),
        (2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a - b * b - c * c + d * d),
    )
    for u in range(3):
        store(motion, 3 * u * W, rows[u][0])
        store(motion, (3 * u + 1) * W, rows[u][1])
        store(motion, (3 * u + 2) * W, rows[u][2])
        store(motion, (9 + u) * W, ref0[u] - (rows[u][0] * cx + rows[u][1] * cy + rows[u][2] * cz))


@entry
def superpose(x, atoms, weights, ref, ref0, R, t):
    """R (n, 9) and t (n, 3) of frames x (n, 3A); weights sum to 1, ref (k, 3) is centred on ref0."""
    motion, N = np.zeros(12 * W), np.zeros(16 * W)
    for first in range(0, len(x), W):
        superpose_block(x, first, atoms, weights, ref, ref0, motion, N)
        for w in range(min(W, len(x) - first)):
            for c in range(9):
                R[first + w, c] = motion[c * W + w]
            for c in range(3):
                t[first + w, c] = motion[(9 + c) * W + w]


@entry
def body_features(x, atoms, weights, ref, ref0, end, length, f, R):
    """f[:, :4A] <- (d, |d|) of every atom, d = (y - end) / length in the body frame; R as in `superpose`."""
    motion, N, A = np.zeros(12 * W), np.zeros(16 * W), x.shape[1] // 3
    for first in range(0, len(x), W):
        superpose_block(x, first, atoms, weights, ref, ref0, motion, N)
        for w in range(min(W, len(x) - first)):
            row, features, m = x[first + w], f[first + w], motion[w::W]
            for a in range(A):
                X, Y, Z = row[3 * a], row[3 * a + 1], row[3 * a + 2]
                square = 1e-12
                for u in range(3):
                    y = m[3 * u] * X + m[3 * u + 1] * Y + m[3 * u + 2] * Z + m[9 + u]
                    d = (y - end[a, u]) / length
                    features[3 * a + u] = d
                    square += d * d
                features[3 * A + a] = np.sqrt(square)
            for c in range(9):
                R[first + w, c] = m[c]


@entry
def to_laboratory(net, R, root_mass, scale, u):
    """u (n, 3A) <- scale x net (n, 3A) without the motion of the centre of mass, turned back by R^T."""
    A = len(root_mass)
    total = 0.0
    for a in range(A):
        total += root_mass[a] ** 2
    for n in range(len(net)):
        out, row, m = u[n], net[n], R[n]
        px = py = pz = 0.0
        for a in range(A):
            s = root_mass[a] / total
            px, py, pz = px + s * row[3 * a], py + s * row[3 * a + 1], pz + s * row[3 * a + 2]
        for a in range(A):
            s = root_mass[a]
            X = scale * (row[3 * a] - s * px)
            Y = scale * (row[3 * a + 1] - s * py)
            Z = scale * (row[3 * a + 2] - s * pz)
            for c in range(3):
                out[3 * a + c] = m[c] * X + m[3 + c] * Y + m[6 + c] * Z
