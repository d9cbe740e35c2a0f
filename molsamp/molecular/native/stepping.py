"""What Python calls: energies of many replicas, and whole stretches of a rollout, block by block of lanes.

Arrays come as the engine has them, replica first; a block is turned into lanes, worked on, and turned back. Blocks
know nothing of one another, so neither their order nor the number of threads shows in the result.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from molsamp.molecular.native.compiling import entry, kernel
from molsamp.molecular.native.lanes import forces
from molsamp.molecular.native.vector import (
    F32,
    all_lanes,
    full,
    full_word,
    load,
    log,
    narrow,
    select,
    sincos_turns,
    sqrt,
    store,
    to_real,
    widen,
    words,
)

BELOW_ONE_32, BELOW_ONE_64 = 1.0 - 2.0**-24, 1.0 - 2.0**-53  # as in engine.noise: the last half would round up


@kernel
def to_lanes(a, first, block, W):
    """block [component][lane] <- rows first.. of a (n, components); missing replicas are copies of the last."""
    n, size = a.shape
    for w in range(W):
        row = a[min(first + w, n - 1)]
        for c in range(size):
            block[c * W + w] = row[c]


@kernel
def from_lanes(block, a, first, W):
    """Rows first.. of a (n, components) <- block [component][lane]."""
    n, size = a.shape
    for w in range(min(W, n - first)):
        row = a[first + w]
        for c in range(size):
            row[c] = block[c * W + w]


@entry
def evaluate(x, E, F, begin, end, W, t, scratch):
    """E and F of blocks begin..end of x (n, 3A)."""
    size = x.shape[1]
    xs, fs = np.empty(size * W, x.dtype), np.empty(size * W, x.dtype)
    for block in range(begin, end):
        first = block * W
        to_lanes(x, first, xs, W)
        energy = forces(xs, fs, t, scratch)
        store(scratch, 0, energy)
        for w in range(min(W, len(x) - first)):
            E[first + w] = float(scratch[w]) + t.constant
        from_lanes(fs, F, first, W)


# ---- the engine's noise stream, word for word (engine.noise; Salmon et al. 2011) ----


@kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on four vectors of words."""
    for _ in range(10):
        p, q = widen(c0) * np.uint64(0xD2511F53), widen(c2) * np.uint64(0xCD9E8D57)
        c0, c2 = narrow(q >> np.uint64(32)) ^ c1 ^ k0, narrow(p >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = narrow(q), narrow(p)
        k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@kernel
def box_muller(u1, u2):
    """Two normals of two uniforms: sqrt(-2 ln u1) (cos 2 pi u2, sin 2 pi u2)."""
    r = sqrt(-2.0 * log(u1))
    s, c = sincos_turns(u2)
    return r * c, r * s


def uniform(a, b, like):
    """Words a (and b, where 53 bits are wanted) as uniforms in (0, 1)."""


@overload(uniform)
def _uniform(a, b, like):
    if like == F32:

        def uniform32(a, b, like):
            u = (to_real(a) + 0.5) * 2.0**-32
            return select(u > BELOW_ONE_32, full(like, BELOW_ONE_32), u)

        return uniform32

    def uniform64(a, b, like):
        u = (to_real((widen(a) << np.uint64(21)) | (widen(b) >> np.uint64(11))) + 0.5) * 2.0**-53
        return select(u > BELOW_ONE_64, full(like, BELOW_ONE_64), u)

    return uniform64


def normals(z, size, step, low, high, key, like, W):
    """z[0:size] <- the standard normals of one step, particle ids (low, high words) in the lanes."""


@overload(normals)
def _normals(z, size, step, low, high, key, like, W):
    single = like == F32

    def normals_(z, size, step, low, high, key, like, W):
        c1 = full_word(like, np.uint32(step & 0xFFFFFFFF))
        c2 = words(low, 0, like)
        tag = (words(high, 0, like) << np.uint32(16)) | np.uint32((step >> 32) << 2)
        per = 4 if single else 2
        for g in range((size + per - 1) // per):
            a, b, c, d = philox(full_word(like, np.uint32(g)), c1, c2, tag, key[0], key[1])
            p = g * per * W
            if single:
                m, n = box_muller(uniform(a, a, like), uniform(b, b, like))
                o, q = box_muller(uniform(c, c, like), uniform(d, d, like))
                store(z, p, m)
                store(z, p + W, n)
                store(z, p + 2 * W, o)
                store(z, p + 3 * W, q)
            else:
                m, n = box_muller(uniform(a, b, like), uniform(c, d, like))
                store(z, p, m)
                store(z, p + W, n)

    return normals_


# ---- rows ----


class Stretch(NamedTuple):
    """Rows to be carried out and their noise; arrays over replicas are padded to whole blocks."""

    first: int  # index of the first row in the record
    rows: int
    step: int  # its index in the noise stream
    key: tuple[int, int]  # of the stream, two words
    low: np.ndarray  # particle ids, low words
    high: np.ndarray  # and high words
    tape: np.ndarray  # given normals (rows, n, 3A) in place of drawn ones, or no rows
    hot: bool
    heat: np.ndarray  # factor on the noise of each replica
    driven: bool
    u: np.ndarray  # control held over the stretch (n, 3A), or no rows
    target: np.ndarray  # (lines,): 0 = x, 1 = v
    used: np.ndarray  # (lines, 4): whether x, v, f, z enter a line
    kind: np.ndarray  # (rows,): which set of coefficients a row has
    coefficients: np.ndarray  # (sets, lines, 4, A), weights of f over the mass


class Frames(NamedTuple):
    """Where the rollout is recorded: every `stride` rows a frame."""

    stride: int
    x: np.ndarray  # (F, n, 3A)
    v: np.ndarray  # (F, n, 3A), or none
    z: np.ndarray  # (F - 1, n, 3A)
    energy: np.ndarray  # (F, n)
    log_ratio: np.ndarray  # (padded n,)
    status: np.ndarray  # (padded n,)


@kernel
def apply(target, x, v, f, z, used, c, W):
    """One Line of a row: target <- keep_x x + keep_v v + weight f + noise z, coefficients c (4, A)."""
    for a in range(c.shape[1]):
        for place in range(3 * W * a, 3 * W * (a + 1), W):
            out = full(load(x, place), 0.0)
            if used[0]:
                out += c[0, a] * load(x, place)
            if used[1]:
                out += c[1, a] * load(v, place)
            if used[2]:
                out += c[2, a] * load(f, place)
            if used[3]:
                out += c[3, a] * load(z, place)
            store(target, place, out)


@kernel
def draw(z, u, k, first, size, run, like, W):
    """z <- u + heat x normals (or x the given noise) of row k; u lies in lanes."""
    if len(run.tape):
        to_lanes(run.tape[k], first, z, W)
    else:
        normals(z, size, run.step + k, run.low[first : first + W], run.high[first : first + W], run.key, like, W)
    if run.hot:
        scale = load(run.heat, first)
        for c in range(0, size * W, W):
            store(z, c, scale * load(z, c))
    if run.driven:
        for c in range(0, size * W, W):
            store(z, c, load(u, c) + load(z, c))


@kernel
def settle(x, v, z, x_old, v_old, status, first, size, W):
    """Lanes that are not OK, or whose new state is not finite, go back to their old state and take no noise."""
    frozen = False
    for w in range(W):
        if status[first + w] == 0:
            total = 0.0
            for c in range(w, size * W, W):
                total += x[c] * 0.0 + v[c] * 0.0
            if total != 0.0:
                status[first + w] = 1
        if status[first + w] != 0:
            frozen = True
            for c in range(w, size * W, W):
                x[c], v[c], z[c] = x_old[c], v_old[c], 0.0
    return frozen


@kernel
def push_log_ratio(out, u, z, status, first, size, scratch, like, W):
    """log dP_u/dP_0 += sum u (z - u/2) of the lanes that moved; z counts the control."""
    total = full(like, 0.0)
    for c in range(0, size * W, W):
        total += load(u, c) * (load(z, c) - 0.5 * load(u, c))
    store(scratch, 0, total)
    for w in range(W):
        if status[first + w] == 0:
            out[first + w] += scratch[w]


@kernel
def flush(zsum, Z, j, begun, first, size, W):
    """Z[j] <- zsum, added to what an earlier stretch left where that one has begun the frame; zsum <- 0."""
    if begun:
        for w in range(min(W, Z.shape[1] - first)):
            for c in range(size):
                zsum[c * W + w] += Z[j, first + w, c]
    from_lanes(zsum, Z[j], first, W)
    for c in range(len(zsum)):
        zsum[c] = 0.0


@entry
def advance(x, v, begin, end, W, t, run, record, scratch):
    """Carries blocks begin..end of the state x, v (n, 3A) over the rows of `run`, in place, and records frames."""
    size = x.shape[1]
    state = np.zeros((8, size * W + 4 * W), x.dtype)
    xs, vs, fs, z, us, x_old, v_old, zsum = (
        state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7],
    )  # fmt: skip
    like = load(state[0], 0)
    for block in range(begin, end):
        first = block * W
        to_lanes(x, first, xs, W)
        if v.shape[1]:
            to_lanes(v, first, vs, W)
        if run.driven:
            to_lanes(run.u, first, us, W)
        frozen = False
        for w in range(W):
            frozen |= record.status[first + w] != 0
        for k in range(run.rows):
            j, inside = (run.first + k) // record.stride, (run.first + k) % record.stride
            energy = forces(xs[: size * W], fs[: size * W], t, scratch)
            if inside == 0 and len(record.energy):
                store(scratch, 0, energy)
                for w in range(min(W, len(x) - first)):
                    record.energy[j, first + w] = float(scratch[w]) + t.constant
            draw(z, us, k, first, size, run, like, W)
            for c in range(0, size * W, W):
                store(x_old, c, load(xs, c))
                store(v_old, c, load(vs, c))
            for line in range(len(run.target)):
                target = vs if run.target[line] else xs
                apply(target, xs, vs, fs, z, run.used[line], run.coefficients[run.kind[k], line], W)
            total = full(like, 0.0)
            for c in range(0, size * W, W):
                total += load(xs, c) * 0.0 + load(vs, c) * 0.0
            if frozen or not all_lanes(total < 1.0):  # 0 where finite, else NaN
                frozen = settle(xs, vs, z, x_old, v_old, record.status, first, size, W)
            if run.driven:
                push_log_ratio(record.log_ratio, us, z, record.status, first, size, scratch, like, W)
            for c in range(0, size * W, W):
                store(zsum, c, load(zsum, c) + load(z, c))
            if inside == record.stride - 1:
                flush(zsum, record.z, j, j * record.stride < run.first, first, size, W)
                from_lanes(xs, record.x[j + 1], first, W)
                if v.shape[1]:
                    from_lanes(vs, record.v[j + 1], first, W)
        j = (run.first + run.rows) // record.stride
        if j * record.stride < run.first + run.rows:
            flush(zsum, record.z, j, j * record.stride < run.first, first, size, W)
        from_lanes(xs, x, first, W)
        if v.shape[1]:
            from_lanes(vs, v, first, W)
