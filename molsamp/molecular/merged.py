"""Many replicas in one OpenMM System, where that is exact: one call for the forces of all of them.

Copies of a molecule that do not see one another are one larger molecule. Bonded forces are copied term by term with
shifted atom indices; pairs of a NonbondedForce become bonds too, the "bonds trick", since OpenMM would otherwise walk
over all (R A)^2 pairs to find the ones between copies excluded; a CustomNonbondedForce gets an interaction group for
each copy. Whatever couples all particles in another way (generalised Born, Ewald sums, cutoffs) is refused by name.
"""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
import torch
from jaxtyping import Float
from openmm import unit
from torch import Tensor

from molsamp.molecular.contexts import ContextRows
from molsamp.molecular.native.probe import coulomb_constant, md
from molsamp.molecular.openmm_energy import OpenMMEnergy, context_properties

_PAIR = "4*epsilon*((sigma/r)^12-(sigma/r)^6)+charges/r"  # charges = K q_i q_j, kJ/mol nm


class MergedEnergy(OpenMMEnergy):
    """OpenMMEnergy whose `force` evaluates R replicas in one Context.

    OpenMM gives one energy per Context, the sum over the copies, so only `force` is merged; `energy` and
    `energy_force` take one configuration after another, as OpenMMEnergy does. The forces of both agree to rounding.
    A batch is cut into blocks of R. Rows with non-finite coordinates are left out; should the energy of a block not
    be finite, its rows are evaluated one by one, so that only the guilty one becomes NaN.

    Made for GPUs, where the cost of a call is its launches, and unmeasured there. On one core, thousands of forces per
    second for alanine dipeptide in vacuum, R = 16 and 64 against one by one: Reference 73 and 85 against 28, CPU 52
    and 65 against 2 to 3 (it wakes its thread for each call).

    Args:
        system: as for `merge`.
        copies: R, replicas per call.
        platform, threads, precision, device: as for OpenMMEnergy.
    Raises:
        ValueError: as OpenMMEnergy and `merge`.
    """

    def __init__(
        self,
        system: openmm.System,
        copies: int,
        platform: str = "auto",
        threads: int = 1,
        *,
        precision: str = "mixed",
        device: int | None = None,
    ):
        super().__init__(system, platform, threads, precision=precision, device=device)
        name = self.tier.removeprefix("openmm-")
        known = openmm.Platform.getPlatformByName(name).getPropertyNames()
        properties = context_properties(known, threads, precision, device)
        self._copies = copies
        self._context = ContextRows(merge(system, copies), name, properties).context
        self.tier = f"openmm-{name}-merged"

    def force(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, "n atoms 3"]:
        """F (n, A, 3) in kJ/mol/nm, R configurations per call of OpenMM; counts as one evaluation for each."""
        if tuple(x.shape[1:]) != self.event:
            return super().force(x)  # which says what is wrong
        self.evaluations += len(x)
        positions = x.detach().to("cpu", torch.float64).numpy()
        F = np.full(positions.shape, math.nan)
        finite = np.flatnonzero(np.isfinite(positions).all((1, 2)))
        for start in range(0, len(finite), self._copies):
            block = finite[start : start + self._copies]
            F[block] = self._block(positions[block])
        return torch.as_tensor(F).to(x)

    def _block(self, x: np.ndarray) -> np.ndarray:
        """F of at most R finite configurations; copies that are left over repeat them."""
        try:
            self._context.setPositions(np.resize(x, (self._copies, *self.event)).reshape(-1, 3))
            state = self._context.getState(energy=True, forces=True)
            total = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        except openmm.OpenMMException:
            total = math.nan
        if not math.isfinite(total):
            return self._rows(x)[1]
        F = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return F.reshape(self._copies, *self.event)[: len(x)]


def merge(system: openmm.System, copies: int) -> openmm.System:
    """A System of R copies of every particle, atom a of copy k at index k A + a, that do not interact.

    It holds what makes forces, and neither constraints nor a CMMotionRemover.

    Args:
        system: bonded forces, NonbondedForce and CustomNonbondedForce without cutoff, CustomExternalForce.
        copies: R.
    Raises:
        ValueError: copies below 1; a virtual site; a force that cannot be copied exactly (index, class, reason).
    """
    if copies < 1:
        raise ValueError(f"got copies = {copies}; allowed is 1 or more")
    A = system.getNumParticles()
    if virtual := [i for i in range(A) if system.isVirtualSite(i)]:
        raise ValueError(f"particle {virtual[0]} is a virtual site, which is not merged: use OpenMMEnergy")
    merged = openmm.System()
    merged.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    for _ in range(copies):
        for i in range(A):
            merged.addParticle(system.getParticleMass(i))
    for index, force in enumerate(system.getForces()):
        name = type(force).__name__
        if name == "CMMotionRemover":
            continue
        try:
            if name not in _COPY:
                raise ValueError(f"is not among what is copied exactly: {', '.join(_COPY)}")
            merged.addForce(_COPY[name](force, copies, A))
        except ValueError as error:
            raise ValueError(f"force {index} ({name}) {error}; use OpenMMEnergy") from None
    return merged


def _bonded(term: str, atoms: slice) -> Callable[[Any, int, int], openmm.Force]:
    """Copies of a force made of terms, whose get...Parameters lists atom indices at `atoms` and add... takes them."""

    def copied(force: Any, copies: int, A: int) -> openmm.Force:
        merged = copy.deepcopy(force)
        get, add = getattr(force, f"get{term}Parameters"), getattr(merged, f"add{term}")
        terms = [list(get(k)) for k in range(getattr(force, f"getNum{term}s")())]
        for k, values in itertools.product(range(1, copies), terms):
            add(*values[: atoms.start], *(i + k * A for i in values[atoms]), *values[atoms.stop :])
        return merged

    return copied


def _compound(force: openmm.CustomCompoundBondForce, copies: int, A: int) -> openmm.Force:
    merged = copy.deepcopy(force)
    for k, bond in itertools.product(range(1, copies), range(force.getNumBonds())):
        particles, values = force.getBondParameters(bond)
        merged.addBond([i + k * A for i in particles], values)
    return merged


def _nonbonded(force: openmm.NonbondedForce, copies: int, A: int) -> openmm.Force:
    """Every pair that is not zero as a bond: combination rules, replaced by an exception where there is one."""
    _refuse_cutoff(force)
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise ValueError("has parameter offsets, which a bond does not take")
    K = coulomb_constant()
    atoms = [md(force.getParticleParameters(i)) for i in range(A)]
    exceptions = {}
    for k in range(force.getNumExceptions()):
        i, j, *values = force.getExceptionParameters(k)
        exceptions[min(i, j), max(i, j)] = md(values)
    bonds = openmm.CustomBondForce(_PAIR)
    for parameter in ("charges", "sigma", "epsilon"):
        bonds.addPerBondParameter(parameter)
    for i, j in itertools.combinations(range(A), 2):
        (q1, s1, e1), (q2, s2, e2) = atoms[i], atoms[j]
        qq, sigma, epsilon = exceptions.get((i, j), (q1 * q2, (s1 + s2) / 2, math.sqrt(e1 * e2)))
        if qq or epsilon:
            bonds.addBond(i, j, [K * qq, sigma, epsilon])
    bonds.setForceGroup(force.getForceGroup())
    return _bonded("Bond", slice(0, 2))(bonds, copies, A)


def _custom_nonbonded(force: openmm.CustomNonbondedForce, copies: int, A: int) -> openmm.Force:
    """Each copy an interaction group of its own."""
    _refuse_cutoff(force)
    merged = copy.deepcopy(force)
    everyone = list(range(A))
    groups = [force.getInteractionGroupParameters(g) for g in range(force.getNumInteractionGroups())]
    if not groups:
        merged.addInteractionGroup(everyone, everyone)
    for k in range(1, copies):
        for i in everyone:
            merged.addParticle(force.getParticleParameters(i))
        for e in range(force.getNumExclusions()):
            merged.addExclusion(*(i + k * A for i in force.getExclusionParticles(e)))
        for pair in groups or [(everyone, everyone)]:
            merged.addInteractionGroup(*([i + k * A for i in group] for group in pair))
    return merged


def _refuse_cutoff(force: Any) -> None:
    if force.getNonbondedMethod() != force.NoCutoff:
        raise ValueError("has a cutoff or Ewald sum, allowed is NoCutoff")


_COPY: dict[str, Callable[[Any, int, int], openmm.Force]] = {
    "HarmonicBondForce": _bonded("Bond", slice(0, 2)),
    "HarmonicAngleForce": _bonded("Angle", slice(0, 3)),
    "PeriodicTorsionForce": _bonded("Torsion", slice(0, 4)),
    "RBTorsionForce": _bonded("Torsion", slice(0, 4)),
    "CMAPTorsionForce": _bonded("Torsion", slice(1, 9)),
    "CustomBondForce": _bonded("Bond", slice(0, 2)),
    "CustomAngleForce": _bonded("Angle", slice(0, 3)),
    "CustomTorsionForce": _bonded("Torsion", slice(0, 4)),
    "CustomCompoundBondForce": _compound,
    "CustomExternalForce": _bonded("Particle", slice(0, 1)),
    "NonbondedForce": _nonbonded,
    "CustomNonbondedForce": _custom_nonbonded,
}
