"""OpenMMEnergy: any openmm.System as a batched, counted energy; and whether a System may carry a path density."""

from collections.abc import Collection
from xml.etree import ElementTree

import openmm
import torch
from openmm import unit
from torch import Tensor

from molsamp.molecular.contexts import ContextRows
from molsamp.molecular.energies import Energy
from molsamp.molecular.workers import Rows, Workers

_TINY = 100  # particles; below this one core finishes before the CPU platform has woken its threads
_PRECISIONS = ("single", "mixed", "double")


class OpenMMEnergy(Energy):
    """Energies and forces of an openmm.System, one configuration after another in one Context per worker.

    Everything OpenMM can do, at OpenMM's speed: PME, explicit solvent, constraints (evaluated, not enforced), custom
    forces. The yardstick for the native energies and the tier for whatever they refuse. Periodic box vectors are
    those of the System. A configuration that OpenMM refuses (non-finite coordinates, an exploded structure) gets NaN
    energy and force in its own row. On CPU and Reference the same row gives the same bits, whatever came before it,
    whatever else is in the batch and however many workers there are.

    With workers > 1 each worker is a process of its own with a Context of its own, and row k goes to worker k modulo
    workers; they start in 0.2 s. Threads in place of processes were measured too and gained nothing over them: a
    small System leaves the loop around it holding Python's interpreter lock. Two of them against one, on two cores
    shared with other work, Reference, threads | processes: alanine dipeptide 0.6 | 1.1 in vacuum and 0.9 | 1.5 in
    GBn2, chignolin GBn2 1.7 | 1.8, water with PME 1.9 | 1.8 (774 atoms) and 1.5 | 1.7 (2661). CUDA, HIP and OpenCL
    get the properties below and are unmeasured.

    Args:
        system: the System; later changes do not reach the energy.
        platform: a platform name, or "auto": CUDA where present, else Reference below 100 particles, else CPU; CPU also
            for a CustomGBForce, over which Reference takes 7 times as long.
        threads: threads of the CPU platform per worker.
        workers: processes; 1 evaluates in this one.
        precision: "single", "mixed" or "double", of the GPU platforms.
        device: index of the GPU; None leaves it to OpenMM.
    Raises:
        ValueError: no such platform here (names those that are); a periodic box less than twice a cutoff wide; a
            System that OpenMM refuses; a PythonForce, whose code is in this process, with several workers.
    """

    def __init__(
        self,
        system: openmm.System,
        platform: str = "auto",
        threads: int = 1,
        *,
        workers: int = 1,
        precision: str = "mixed",
        device: int | None = None,
    ):
        name = _pick(system) if platform == "auto" else platform
        properties = context_properties(_platform(name).getPropertyNames(), threads, precision, device)
        refuse_small_box(system)
        self._rows: Rows
        if workers == 1:
            self._rows = ContextRows(system, name, properties)
        else:
            order = {"xml": serialise(system), "platform": name, "properties": properties}
            self._rows = Workers(workers, "molsamp.molecular.contexts:rows", order)
        self.event = (system.getNumParticles(), 3)
        self.tier = f"openmm-{name}"

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = self._rows(x.detach().to("cpu", torch.float64).numpy())
        return torch.as_tensor(E).to(x), torch.as_tensor(F).to(x)


def platforms() -> list[str]:
    """Names of the OpenMM platforms that are installed here."""
    return [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]


def context_properties(
    known: Collection[str], threads: int = 1, precision: str = "mixed", device: int | None = None
) -> dict[str, str]:
    """Those of our settings whose names a platform knows: deterministic sums, threads on CPU, the rest on GPUs.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; allowed: {', '.join(_PRECISIONS)}")
    wanted = {"DeterministicForces": "true", "Threads": str(threads), "Precision": precision}
    if device is not None:
        wanted["DeviceIndex"] = str(device)
    return {key: value for key, value in wanted.items() if key in known}


def serialise(system: openmm.System) -> str:
    """A System as XML for another process.

    Raises:
        ValueError: a force that only this process can evaluate.
    """
    for index, force in enumerate(system.getForces()):
        if type(force).__name__ == "PythonForce":
            raise ValueError(
                f"force {index} (PythonForce) is Python code of this process, which is not sent to others; "
                "allowed is workers = 1"
            )
    return openmm.XmlSerializer.serialize(system)


def deserialise(xml: str) -> openmm.System:
    """A System from the text of a file, without running code of that file.

    OpenMM keeps the function of a PythonForce as a pickle and unpickles it on reading.

    Raises:
        ValueError: no XML, a PythonForce, or not what OpenMM wrote (an OpenMMException where OpenMM says so).
    """
    try:
        parts = list(ElementTree.fromstring(xml).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML: {error}") from None
    if any("PythonForce" in part.attrib.values() for part in parts):
        raise ValueError("it holds a PythonForce, which is code that reading would run; add it in Python instead")
    return openmm.XmlSerializer.deserialize(xml)


def refuse_small_box(system: openmm.System) -> None:
    """Refuses a periodic System whose box is less than twice a cutoff wide: an atom would see two images of another.

    Raises:
        ValueError: names the force, its cutoff and the box.
    """
    width = [vector[k].value_in_unit(unit.nanometer) for k, vector in enumerate(system.getDefaultPeriodicBoxVectors())]
    for index, force in enumerate(system.getForces()):
        if not (hasattr(force, "getCutoffDistance") and force.usesPeriodicBoundaryConditions()):
            continue
        cutoff = force.getCutoffDistance().value_in_unit(unit.nanometer)
        if min(width) < 2 * cutoff:
            raise ValueError(
                f"force {index} ({type(force).__name__}): the periodic box is {' x '.join(f'{w:g}' for w in width)} nm "
                f"and the cutoff {cutoff:g} nm; allowed are boxes of at least twice the cutoff, {2 * cutoff:g} nm"
            )


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
    interpreted = any(isinstance(force, openmm.CustomGBForce) for force in system.getForces())
    return "CPU" if interpreted or system.getNumParticles() >= _TINY else "Reference"


def _platform(name: str) -> openmm.Platform:
    if name not in platforms():
        raise ValueError(f"OpenMM platform {name!r} is not available; allowed: auto, {', '.join(platforms())}")
    return openmm.Platform.getPlatformByName(name)
