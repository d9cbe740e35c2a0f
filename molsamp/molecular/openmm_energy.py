"""OpenMMEnergy: any openmm.System as a batched, counted energy; and whether a System may carry a path density."""

import math
from collections.abc import Sequence

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from molsamp.molecular.energies import Energy

_TINY = 100  # particles; below this one core finishes before the CPU platform has woken its threads


class OpenMMEnergy(Energy):
    """Energies and forces of an openmm.System, one configuration after another in one Context.

    Everything OpenMM can do, at OpenMM's speed: the yardstick for the native energies and the tier for whatever they
    refuse. The Context is made once; a pool of two was measured no faster, because the loop around it holds Python's
    interpreter lock; periodic box vectors are those of the System. A configuration that OpenMM
    refuses (non-finite coordinates, an exploded structure) gets NaN energy and force in its own row.

    Args:
        system: the System; the Context reads its parameters now, later changes do not reach it.
        platform: a platform name, or "auto": CUDA where present, else Reference below 100 particles, else CPU.
        threads: threads of the CPU platform, whose sums are made deterministic.
    Raises:
        ValueError: no such platform here; names those that are.
    """

    def __init__(self, system: openmm.System, platform: str = "auto", threads: int = 1):
        name = _pick(system) if platform == "auto" else platform
        chosen = _platform(name)
        properties = {"Threads": str(threads), "DeterministicForces": "true"} if name == "CPU" else {}
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen, properties)
        self.event = (system.getNumParticles(), 3)
        self.tier = f"openmm-{name}"

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = x.detach().to("cpu", torch.float64).numpy()
        E = np.full(len(x), math.nan)
        F = np.full(positions.shape, math.nan)
        for k, row in enumerate(positions):
            if np.isfinite(row).all():
                self._evaluate(row, E, F, k)
        return torch.as_tensor(E).to(x), torch.as_tensor(F).to(x)

    def _evaluate(self, row: np.ndarray, E: np.ndarray, F: np.ndarray, k: int) -> None:
        try:
            self._context.setPositions(row)
            state = self._context.getState(energy=True, forces=True)
        except openmm.OpenMMException:  # "Particle coordinate is NaN" and kin: this row stays NaN
            return
        E[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        F[k] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)


def platforms() -> list[str]:
    """Names of the OpenMM platforms that are installed here."""
    return [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]


def refuse_constraints(system: openmm.System) -> None:
    """Refuses a System on which the density of a path would be undefined.

    A constrained step draws its noise on a lower-dimensional surface, and a CMMotionRemover changes the velocities
    after the noise: in both cases log p(step) is not the Gaussian that path weights are made of.

    Raises:
        ValueError: the System has constraints or a CMMotionRemover; says how to build it without.
    """
    if count := system.getNumConstraints():
        i, j, _ = system.getConstraintParameters(0)
        raise ValueError(
            f"the System has {count} constraints (the first between atoms {i} and {j}): the noise of a constrained "
            "step is singular, so the path density is undefined; build it with constraints=None, rigidWater=False"
        )
    for index, force in enumerate(system.getForces()):
        if isinstance(force, openmm.CMMotionRemover):
            raise ValueError(
                f"force {index} (CMMotionRemover) changes velocities after the noise, so the path density is "
                "undefined; build the System with removeCMMotion=False"
            )


def _pick(system: openmm.System) -> str:
    if "CUDA" in platforms():
        return "CUDA"
    return "Reference" if system.getNumParticles() < _TINY else "CPU"


def _platform(name: str) -> openmm.Platform:
    available: Sequence[str] = platforms()
    if name not in available:
        raise ValueError(f"OpenMM platform {name!r} is not available; allowed: auto, {', '.join(available)}")
    return openmm.Platform.getPlatformByName(name)
