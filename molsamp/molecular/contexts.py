"""Rows of a batch in one OpenMM Context, one after another. No torch, so that a worker process starts at once."""

import math
from collections.abc import Mapping

import numpy as np
import openmm
from openmm import unit


class ContextRows:
    """E (n,) in kJ/mol and F (n, A, 3) in kJ/mol/nm of x (n, A, 3) in nm, float64; a row that OpenMM refuses is NaN.

    Every row is a function of itself alone. The CPU platform would keep its neighbour list until some atoms have
    moved far, and the order of its float32 sums with it; with a cutoff there, each row therefore gets a fresh Context
    (1 ms for 774 atoms of water, and the rebuilt list 2 of the 6 ms that follow). Virtual sites are placed by OpenMM,
    whatever x says of them: their force is handed to the atoms they hang on and is 0 itself, as F = -dE/dx is.

    Args:
        system: the System; later changes do not reach the Context.
        platform: name of an OpenMM platform.
        properties: of the Context on it.
    Raises:
        ValueError: OpenMM refuses the System on this platform.
    """

    def __init__(self, system: openmm.System, platform: str, properties: Mapping[str, str]):
        chosen = openmm.Platform.getPlatformByName(platform)
        try:
            self.context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen, dict(properties))
        except openmm.OpenMMException as error:
            raise ValueError(f"OpenMM refuses this System on platform {platform}: {error}") from None
        self._remembers = platform == "CPU" and any(map(_has_neighbours, system.getForces()))
        self._virtual = [i for i in range(system.getNumParticles()) if system.isVirtualSite(i)]

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E, F = np.full(len(x), math.nan), np.full(x.shape, math.nan)
        for k in np.flatnonzero(np.isfinite(x).all((1, 2))).tolist():
            self._evaluate(x[k], E, F, k)
        return E, F

    def _evaluate(self, x: np.ndarray, E: np.ndarray, F: np.ndarray, k: int) -> None:
        try:
            if self._remembers:
                self.context.reinitialize()
            self.context.setPositions(x)
            if self._virtual:
                self.context.computeVirtualSites()
            state = self.context.getState(energy=True, forces=True)
        except openmm.OpenMMException:  # "Particle coordinate is NaN" and kin: this row stays NaN
            return
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        if math.isfinite(energy):
            E[k] = energy
            F[k] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
            F[k, self._virtual] = 0.0


def _has_neighbours(force: openmm.Force) -> bool:
    """Whether a force keeps a neighbour list, or holds other forces that may."""
    if isinstance(force, openmm.CustomCVForce | openmm.ATMForce):
        return True
    if hasattr(force, "getNonbondedMethod"):
        return force.getNonbondedMethod() != 0  # NoCutoff in every class
    return hasattr(force, "getCutoffDistance")


def rows(xml: str, platform: str, properties: Mapping[str, str]) -> ContextRows:
    """`ContextRows` of a serialised System: what a worker process builds."""
    return ContextRows(openmm.XmlSerializer.deserialize(xml), platform, properties)
