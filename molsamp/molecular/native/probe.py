"""What reading a System needs everywhere: OpenMM's numbers without units, Coulomb's constant, the refusal."""

from functools import cache
from typing import Any

import openmm
from openmm import unit


class Refusal(ValueError):
    """A force the native tiers do not reproduce exactly: what was found and what is allowed."""

    def __init__(self, found: str, allowed: str):
        super().__init__(f"found {found}; allowed: {allowed}")


def md(value: Any) -> Any:
    """Plain numbers in OpenMM's MD units (nm, ps, Da, e, kJ/mol, rad), also inside lists."""
    if isinstance(value, list | tuple):
        return [md(v) for v in value]
    return value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value


@cache
def coulomb_constant() -> float:
    """K of E = K q_i q_j / r in kJ/mol nm/e^2, measured once per process on OpenMM's Reference platform."""
    system, force = openmm.System(), openmm.NonbondedForce()
    for _ in range(2):
        system.addParticle(1.0)
        force.addParticle(1.0, 1.0, 0.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    return md(context.getState(energy=True).getPotentialEnergy())
