"""openmm.System -> Terms, exactly, or a refusal that names the force.

The System stays the source of truth: parameters come through its getters in MD units, Coulomb's constant from a probe.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm
from numpy.polynomial.chebyshev import poly2cheb

from molsamp.molecular.native.born import read_custom_gb, read_gbsa_obc
from molsamp.molecular.native.probe import Refusal, coulomb_constant, md
from molsamp.molecular.native.splines import patches
from molsamp.molecular.native.terms import TORSION, Angles, Bonds, Born, Grids, Pairs, Springs, Terms, Torsions
from molsamp.molecular.openmm_energy import refuse_constraints

__all__ = ["coulomb_constant", "read"]
_FLAT = 1e-12  # a phase written 3.14159265359 means pi; torsions without sines are cheaper


def read(system: openmm.System) -> Terms:
    """Every term of a System, in float64 and MD units.

    Terms on the same atoms are merged where that is exact, terms without strength are left out.

    Args:
        system: flexible bonds, no cutoff, no periodic box, no virtual sites, no motion remover.
    Raises:
        ValueError: it holds anything else; names the force class and its index, what was found and what is allowed.
    """
    refuse_constraints(system)
    A = system.getNumParticles()
    if virtual := [i for i in range(A) if system.isVirtualSite(i)]:
        raise ValueError(f"particle {virtual[0]} is a virtual site; allowed: particles with a mass; use OpenMMEnergy")
    found = _Found(A)
    for index, force in enumerate(system.getForces()):
        name = type(force).__name__
        try:
            _read_force(force, name, found)
        except Refusal as refusal:
            raise ValueError(f"force {index} ({name}): {refusal}; use OpenMMEnergy") from None
    return found.terms()


@dataclass
class _Found:
    """What the forces read so far amount to."""

    atoms: int
    pairs: list[np.ndarray] = field(default_factory=list)  # rows qq, c6, c12 over all pairs i < j
    bonds: list[np.ndarray] = field(default_factory=list)  # columns i, j, r0, k
    angles: list[np.ndarray] = field(default_factory=list)  # columns i, j, l, theta0, k
    torsions: dict[tuple[int, ...], list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    constant: float = 0.0
    maps: list[np.ndarray] = field(default_factory=list)  # patches of each correction map
    mapped: list[tuple[int, np.ndarray]] = field(default_factory=list)  # which map, atoms (2, 4)
    springs: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # atom, centre, k
    born: Born | None = None

    def add_torsion(self, atoms: Iterable[float], terms: Iterable[tuple[int, float, float]]) -> None:
        """Harmonics (n, C, S) of C cos n phi + S sin n phi; the reversed quadruple has the same angle."""
        quadruple = tuple(int(a) for a in atoms)
        self.torsions[min(quadruple, quadruple[::-1])] += [t for t in terms if t[1] or t[2]]

    def terms(self) -> Terms:
        return Terms(
            self.atoms,
            self._pairs(),
            Bonds(*_merged(self.bonds, 2)),
            Angles(*_merged(self.angles, 3)),
            self._torsions(),
            self._grids(),
            self._springs(),
            self.born,
        )

    def _pairs(self) -> Pairs:
        if not self.pairs:
            return Pairs(np.zeros((0, 2), dtype=int), *np.zeros((3, 0)))
        total = sum(self.pairs[1:], start=self.pairs[0])
        keep = total.any(axis=0)
        atoms = np.stack([side[keep] for side in np.triu_indices(self.atoms, 1)], axis=1)
        return Pairs(atoms, *total[:, keep])

    def _torsions(self) -> Torsions:
        rows = sorted((atoms, terms) for atoms, terms in self.torsions.items() if terms)
        H = max((n for _, terms in rows for n, _, _ in terms), default=1)
        harmonics = np.zeros((2, len(rows), H))
        for t, (_, terms) in enumerate(rows):
            for n, C, S in terms:
                harmonics[:, t, n - 1] += C, S
        atoms = np.array([atoms for atoms, _ in rows], dtype=int).reshape(-1, 4)
        return Torsions(atoms, harmonics[0], harmonics[1], self.constant)

    def _grids(self) -> Grids:
        G = len(self.mapped)
        starts = np.cumsum([0, *(len(m) for m in self.maps)])
        maps = np.array([m for m, _ in self.mapped], dtype=int)
        size = np.array([round(len(self.maps[m]) ** 0.5) for m in maps], dtype=int)[:, None].repeat(2, axis=1)
        return Grids(
            kind=np.full((G, 2), TORSION),
            atoms=np.array([atoms for _, atoms in self.mapped], dtype=int).reshape(-1, 2, 4),
            origin=np.zeros((G, 2)),
            spacing=2 * np.pi / size,
            size=size,
            periodic=np.ones((G, 2), dtype=int),
            offset=starts[maps],
            patches=np.concatenate([np.zeros((0, 4, 4)), *self.maps]),
        )

    def _springs(self) -> Springs:
        atoms = np.array([atom for atom, _, _ in self.springs], dtype=int)
        centre, k = (np.array([spring[column] for spring in self.springs]).reshape(-1, 3) for column in (1, 2))
        return Springs(atoms, centre, k)


def _merged(tables: list[np.ndarray], atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms, equilibrium value, strength; rows that differ only in strength, or in direction, are one term."""
    rows = np.concatenate([np.zeros((0, atoms + 2)), *tables])
    turned = rows[:, 0] > rows[:, atoms - 1]
    rows[turned, :atoms] = rows[turned, atoms - 1 :: -1]
    unique, which = np.unique(rows[:, :-1], axis=0, return_inverse=True)
    k = np.zeros(len(unique))
    np.add.at(k, which.reshape(-1), rows[:, -1])
    unique, k = unique[k != 0], k[k != 0]
    return unique[:, :atoms].astype(int), unique[:, atoms], k


def _rows(get: Callable[[int], Any], count: int, found: _Found, atoms: int, width: int) -> np.ndarray:
    """Parameters (count, width) of all terms of a force, plain numbers, the atoms first and in range."""
    rows = [[v for value in md(get(k)) for v in (value if isinstance(value, list) else [value])] for k in range(count)]
    table = np.array(rows, dtype=float).reshape(count, width)
    _in_range(table[:, :atoms], found.atoms)
    return table


def _in_range(indices: np.ndarray, atoms: int) -> None:
    if (wrong := indices[(indices < 0) | (indices >= atoms)]).size:
        raise Refusal(f"atom {int(wrong[0])}", f"0 to {atoms - 1}")


# ---- one function a force class ----


def _harmonic_bond(force: openmm.HarmonicBondForce, found: _Found) -> None:
    found.bonds.append(_rows(force.getBondParameters, force.getNumBonds(), found, 2, 4))


def _harmonic_angle(force: openmm.HarmonicAngleForce, found: _Found) -> None:
    found.angles.append(_rows(force.getAngleParameters, force.getNumAngles(), found, 3, 5))


def _periodic_torsion(force: openmm.PeriodicTorsionForce, found: _Found) -> None:
    """k (1 + cos(n phi - phase)) = k + k cos(phase) cos(n phi) + k sin(phase) sin(n phi)."""
    for *atoms, n, phase, k in _rows(force.getTorsionParameters, force.getNumTorsions(), found, 4, 7):
        if n < 1:
            raise Refusal(f"periodicity {int(n)}", "1 and above")
        sine = np.sin(phase) if abs(np.sin(phase)) > _FLAT else 0.0
        found.add_torsion(atoms, [(int(n), k * np.cos(phase), k * sine)])
        found.constant += k


def _rb_torsion(force: openmm.RBTorsionForce, found: _Found) -> None:
    """sum_i C_i cos^i(phi - pi), a polynomial in cos phi, hence a sum of Chebyshev T_n(cos phi) = cos n phi."""
    for *atoms, c0, c1, c2, c3, c4, c5 in _rows(force.getTorsionParameters, force.getNumTorsions(), found, 4, 10):
        constant, *cosines = poly2cheb([c0, -c1, c2, -c3, c4, -c5])
        found.add_torsion(atoms, [(n, C, 0.0) for n, C in enumerate(cosines, start=1)])
        found.constant += constant


def _cmap(force: openmm.CMAPTorsionForce, found: _Found) -> None:
    """Node (i, j) of an N x N map is its value i + N j and lies at the angles 2 pi i/N and 2 pi j/N."""
    place: dict[int, int] = {}  # of the maps in use; ff19SB defines 16 and a short peptide needs one or two
    for k in range(force.getNumTorsions()):
        which, *atoms = force.getTorsionParameters(k)
        _in_range(np.array(atoms), found.atoms)
        if not 0 <= which < force.getNumMaps():
            raise Refusal(f"map {which}", f"0 to {force.getNumMaps() - 1}")
        if which not in place:
            place[which] = len(found.maps)
            N, values = md(force.getMapParameters(which))
            if N < 2:
                raise Refusal(f"map {which} with {N} x {N} values", "2 x 2 and more")
            found.maps.append(patches(np.array(values, dtype=float).reshape(N, N).T, (True, True)))
        found.mapped.append((place[which], np.array(atoms).reshape(2, 4)))


def _nonbonded(force: openmm.NonbondedForce, found: _Found) -> None:
    """Lorentz-Berthelot over all pairs i < j; an exception replaces its pair wholly."""
    A = found.atoms
    if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
        raise Refusal("a nonbonded method other than NoCutoff", "NoCutoff")
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise Refusal("parameter offsets", "particles and exceptions with parameters of their own")
    _every_particle(force, found)
    particles = _rows(force.getParticleParameters, A, found, 0, 3)
    exceptions = _rows(force.getExceptionParameters, force.getNumExceptions(), found, 2, 5)
    for table in (particles, exceptions):
        if (table[:, -2:] < 0).any():
            raise Refusal(f"sigma or epsilon {table[:, -2:].min()}", "0 and above")
    q, sigma, epsilon = particles.T
    i, j = np.triu_indices(A, 1)
    pairs = np.stack([q[i] * q[j], (sigma[i] + sigma[j]) / 2, np.sqrt(epsilon)[i] * np.sqrt(epsilon)[j]])
    low, high = np.sort(exceptions[:, :2].astype(int), axis=1).T
    pairs[:, low * (2 * A - low - 1) // 2 + high - low - 1] = exceptions[:, 2:].T
    qq, sigma, epsilon = pairs
    c6 = 4 * epsilon * sigma**6
    found.pairs.append(np.stack([coulomb_constant() * qq, c6, c6 * sigma**6]))


def _born(reader: Callable[[Any], Born]) -> Callable[[Any, _Found], None]:
    def read_born(force: Any, found: _Found) -> None:
        if found.born is not None:
            raise Refusal("a second generalised Born force", "one")
        _every_particle(force, found)
        found.born = reader(force)

    return read_born


def _every_particle(force: Any, found: _Found) -> None:
    if force.getNumParticles() != found.atoms:
        raise Refusal(f"{force.getNumParticles()} particles", f"all {found.atoms} of the System")


_NAME = r"[A-Za-z_]\w*|[0-9.]+(?:[eE][-+]?[0-9]+)?"
_STRENGTH = rf"\(?(?P<half>0?\.5\*)?(?P<k>{_NAME})(?P<over>/2)?\)?\*"


def _custom_bond(force: openmm.CustomBondForce, found: _Found) -> None:
    """k (r - r0)^2 and its halves, in any names."""
    text = _bare(force.getEnergyFunction())
    match = re.fullmatch(rf"{_STRENGTH}\(r-(?P<r0>{_NAME})\)\^2", text)
    if not match:
        raise Refusal(f"{text!r}", "k*(r-r0)^2, 0.5*k*(r-r0)^2, k/2*(r-r0)^2")
    names, defaults = _parameters(force, force.getPerBondParameterName, force.getNumPerBondParameters(), "r")
    rows = _rows(force.getBondParameters, force.getNumBonds(), found, 2, 2 + len(names))
    for i, j, *values in rows:
        value = _lookup(names, values, defaults)
        found.bonds.append(np.array([[i, j, value(match["r0"]), _twice(match) * value(match["k"])]]))


def _custom_external(force: openmm.CustomExternalForce, found: _Found) -> None:
    """k ((x - x0)^2 + (y - y0)^2 + (z - z0)^2), its halves, or fewer of the axes, in any names."""
    text = _bare(force.getEnergyFunction())
    square = rf"\([xyz]-(?:{_NAME})\)\^2"
    match = re.fullmatch(rf"{_STRENGTH}(?:(?P<one>{square})|\((?P<sum>{square}(?:\+{square})*)\))", text)
    centres = re.findall(rf"\(([xyz])-({_NAME})\)\^2", (match["one"] or match["sum"]) if match else "")
    if not match or len({axis for axis, _ in centres}) < len(centres):
        raise Refusal(f"{text!r}", "k*((x-x0)^2+(y-y0)^2+(z-z0)^2), likewise 0.5*k*..., k/2*..., or fewer axes")
    names, defaults = _parameters(force, force.getPerParticleParameterName, force.getNumPerParticleParameters(), "xyz")
    for atom, *values in _rows(force.getParticleParameters, force.getNumParticles(), found, 1, 1 + len(names)):
        value = _lookup(names, values, defaults)
        centre, k = np.zeros(3), np.zeros(3)
        for axis, name in centres:
            centre["xyz".index(axis)] = value(name)
            k["xyz".index(axis)] = _twice(match) * value(match["k"])
        found.springs.append((int(atom), centre, k))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text).rstrip(";")


def _twice(match: re.Match) -> float:
    """Factor to the strength of E = k (...)^2 / 2."""
    return 2.0 * (0.5 if match["half"] else 1.0) * (0.5 if match["over"] else 1.0)


def _parameters(
    force: Any, name: Callable[[int], str], count: int, variables: str
) -> tuple[list[str], dict[str, float]]:
    """Names of the parameters of each term, and defaults of the global ones."""
    names = [name(k) for k in range(count)]
    defaults = {
        force.getGlobalParameterName(k): force.getGlobalParameterDefaultValue(k)
        for k in range(force.getNumGlobalParameters())
    }
    if hidden := set(names + list(defaults)) & set(variables):
        raise Refusal(f"a parameter named {min(hidden)!r}", f"names other than the variables {', '.join(variables)}")
    return names, defaults


def _lookup(names: list[str], values: list[float], defaults: dict[str, float]) -> Callable[[str], float]:
    known = {**defaults, **dict(zip(names, values, strict=True))}

    def value(name: str) -> float:
        if name in known:
            return known[name]
        try:
            return float(name)
        except ValueError:
            raise Refusal(f"the name {name!r}", f"its parameters: {', '.join(known)}") from None

    return value


_READERS: dict[str, Callable[[Any, _Found], None]] = {
    "HarmonicBondForce": _harmonic_bond,
    "HarmonicAngleForce": _harmonic_angle,
    "PeriodicTorsionForce": _periodic_torsion,
    "RBTorsionForce": _rb_torsion,
    "CMAPTorsionForce": _cmap,
    "NonbondedForce": _nonbonded,
    "GBSAOBCForce": _born(read_gbsa_obc),
    "CustomGBForce": _born(read_custom_gb),
    "CustomBondForce": _custom_bond,
    "CustomExternalForce": _custom_external,
}


def _read_force(force: Any, name: str, found: _Found) -> None:
    if name not in _READERS:
        raise Refusal("a class with no native form", ", ".join(_READERS))
    if name != "NonbondedForce" and force.usesPeriodicBoundaryConditions():
        raise Refusal("periodic boundary conditions", "none")
    _READERS[name](force, found)
