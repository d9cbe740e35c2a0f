"""Evaluators: one configuration after another, by an OpenMM Context or a calculator of quantum chemistry.

Each is a function of a batch x (n, A, 3) in nm to E (n,) in kJ/mol and F (n, A, 3) in kJ/mol/nm, float64, and of each
row alone: nothing is carried over from one configuration to the next, so a result depends neither on the rows before
it nor on who else evaluates. A row that fails is NaN. numpy only, so that a worker process starts without torch.
"""

import math
from collections.abc import Mapping

import numpy as np
import openmm
from openmm import unit


class OpenMMRows:
    """E and F of an openmm.System in one Context.

    The CPU platform keeps its neighbour list until atoms have moved far enough, and its sums depend on the list by
    float32 rounding; where a System has a cutoff, the Context is made afresh for every row (1 to 2 ms in 5 to 20).

    Args:
        system: the System.
        platform: name of an OpenMM platform.
        properties: of the Context on it.
    """

    def __init__(self, system: openmm.System, platform: str, properties: Mapping[str, str]):
        chosen = openmm.Platform.getPlatformByName(platform)
        self.context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen, dict(properties))
        self._remembers = platform == "CPU" and any(
            hasattr(force, "getNonbondedMethod") and force.getNonbondedMethod() for force in system.getForces()
        )
        self._virtual = any(system.isVirtualSite(i) for i in range(system.getNumParticles()))

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E, F = np.full(len(x), math.nan), np.full(x.shape, math.nan)
        for k, row in enumerate(x):
            if np.isfinite(row).all():
                self._evaluate(row, E, F, k)
        return E, F

    def _evaluate(self, row: np.ndarray, E: np.ndarray, F: np.ndarray, k: int) -> None:
        try:
            if self._remembers:
                self.context.reinitialize()
            self.context.setPositions(row)
            if self._virtual:
                self.context.computeVirtualSites()
            state = self.context.getState(energy=True, forces=True)
        except openmm.OpenMMException:  # "Particle coordinate is NaN" and kin: this row stays NaN
            return
        E[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        if math.isfinite(E[k]):
            F[k] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)


def openmm_rows(xml: str, platform: str, properties: Mapping[str, str]) -> OpenMMRows:
    """The evaluator of a serialised System, for a worker process."""
    return OpenMMRows(openmm.XmlSerializer.deserialize(xml), platform, properties)
