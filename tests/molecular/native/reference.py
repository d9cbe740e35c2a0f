"""The energy of Terms, one frame after another in plain numpy: the definition, slow and readable."""

import numpy as np

from molsamp.molecular.native.terms import DISTANCE, TORSION, Born, Grids, Terms


def energies(terms: Terms, x: np.ndarray) -> np.ndarray:
    """E (n,) in kJ/mol of frames x (n, A, 3) in nm."""
    return np.array([energy(terms, frame) for frame in np.asarray(x, dtype=float)])


def energy(terms: Terms, x: np.ndarray) -> float:
    return (
        pairs(terms, x)
        + bonds(terms, x)
        + angles(terms, x)
        + torsions(terms, x)
        + grids(terms.grids, x)
        + springs(terms, x)
        + (born(terms.born, x) if terms.born else 0.0)
    )


def pairs(terms: Terms, x: np.ndarray) -> float:
    p = terms.pairs
    r = distance(x, p.atoms)
    return float((p.c12 / r**12 - p.c6 / r**6 + p.qq / r).sum())


def bonds(terms: Terms, x: np.ndarray) -> float:
    b = terms.bonds
    return float((b.k * (distance(x, b.atoms) - b.r0) ** 2).sum() / 2)


def angles(terms: Terms, x: np.ndarray) -> float:
    a = terms.angles
    i, j, l = x[a.atoms].transpose(1, 0, 2)
    u, v = i - j, l - j
    theta = np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1))
    return float((a.k * (theta - a.theta0) ** 2).sum() / 2)


def torsions(terms: Terms, x: np.ndarray) -> float:
    t = terms.torsions
    n_phi = torsion(x, t.atoms)[:, None] * np.arange(1, t.cosine.shape[1] + 1)
    return t.constant + float((t.cosine * np.cos(n_phi) + t.sine * np.sin(n_phi)).sum())


def springs(terms: Terms, x: np.ndarray) -> float:
    s = terms.springs
    return float((s.k * (x[s.atoms] - s.centre) ** 2).sum() / 2)


def grids(g: Grids, x: np.ndarray) -> float:
    """Every grid at its two variables; outside an axis that does not wrap, the tangents of the edge."""
    total = 0.0
    for k in range(len(g.offset)):
        patch, inside, beyond = [], [], []
        for axis in range(2):
            n = int(g.size[k, axis])
            t = (variable(g, k, axis, x) - g.origin[k, axis]) / g.spacing[k, axis] if g.kind[k, axis] != 2 else 0.0
            t = t % n if g.periodic[k, axis] else t
            edge = min(max(t, 0.0), float(n))
            patch.append(min(int(edge), n - 1))
            inside.append(edge - patch[-1])
            beyond.append(t - edge)
        c = g.patches[g.offset[k] + patch[0] * g.size[k, 1] + patch[1]]
        U, V = (
            np.array([1, u, u**2, u**3]) + d * np.array([0, 1, 2 * u, 3 * u**2])
            for u, d in zip(inside, beyond, strict=True)
        )
        total += float(U @ c @ V)
    return total


def variable(g: Grids, k: int, axis: int, x: np.ndarray) -> float:
    atoms = g.atoms[k, axis]
    if g.kind[k, axis] == TORSION:
        return float(torsion(x, atoms[None])[0])
    assert g.kind[k, axis] == DISTANCE
    return float(distance(x, atoms[None, :2])[0])


def born(b: Born, x: np.ndarray) -> float:
    """Dense over ordered pairs (i, j): rows i are descreened by columns j."""
    A = len(b.rho)
    r = np.linalg.norm(x[:, None] - x, axis=-1)
    np.fill_diagonal(r, 1.0)
    o, s = b.o[:, None], b.s[None]
    U, L = r + s, np.maximum(o, abs(r - s))
    H = 0.5 * (1 / L - 1 / U + (r - s**2 / r) * (1 / U**2 - 1 / L**2) / 4 + np.log(L / U) / (2 * r))
    H = np.where(o > U, 0.0, H)
    if b.swallowed:
        H += np.where(s - r > o, 1 / o - 1 / L, 0.0)
    if b.neck is not None:
        m0, d0 = b.neck
        q = r - d0
        H += np.where(r <= b.rho[:, None] + b.rho + 0.68, m0 / (1 + 100 * q**2 + 0.3e6 * q**6), 0.0)
    np.fill_diagonal(H, 0.0)
    psi = b.o * H.sum(1)
    B = 1 / (1 / b.o - np.tanh(b.alpha * psi - b.beta * psi**2 + b.gamma * psi**3) / b.rho)
    BB = B[:, None] * B
    f = np.sqrt(r**2 + BB * np.exp(-(r**2) / (4 * BB)))
    qq = b.charge[:, None] * b.charge
    i, j = np.triu_indices(A, 1)
    E = -b.tau / 2 * (b.charge**2 / B).sum() - b.tau * (qq / f)[i, j].sum()
    surface = b.surface * (b.rho + 0.14) ** 2 * (b.rho / B) ** 6
    return float(E + np.where(b.swallowed & (B <= 0), 0.0, surface).sum())


def distance(x: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[atoms[:, 0]] - x[atoms[:, 1]], axis=-1)


def torsion(x: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """In (-pi, pi], IUPAC sign."""
    a, b, c, d = x[atoms].transpose(1, 0, 2)
    m, n = np.cross(b - a, c - b), np.cross(c - b, d - c)
    return np.arctan2(np.linalg.norm(c - b, axis=-1) * ((b - a) * n).sum(-1), (m * n).sum(-1))
