"""Free energies along collective variables: one task, several methods, one kind of answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from molsamp.engine.noise import Noise
from molsamp.molecular.free_energy.settings import METHODS
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.system import System


def make(
    system: System,
    method: str,
    settings: Any,
    *,
    seed: int,
    cvs: Sequence[str] = (),
    energy: str = "auto",
    device: str = "cpu",
) -> Any:
    """A free-energy method as resumable work; `analysis.analyse` reads it once it is done.

    Args:
        system: with the settings that are in force.
        method: a key of `METHODS`.
        settings: an instance of that method's model.
        seed: of all randomness.
        cvs: names of one or two CVs; the first two of the system unless given.
        energy: tier of the energy.
        device: "cpu".

    Raises:
        ValueError: for an unknown method, CV or device, or settings that cannot be.
    """
    from molsamp.molecular.free_energy.diffusion.adjoint import AS, ASBS, WTASBS
    from molsamp.molecular.free_energy.umbrella import Umbrella
    from molsamp.molecular.free_energy.walkers import OPES, Metadynamics, Walkers

    kinds = {kind.name: kind for kind in (Metadynamics, OPES, Walkers, Umbrella, AS, ASBS, WTASBS)}
    if method not in kinds:
        raise ValueError(f"method {method!r} is unknown; allowed are {', '.join(METHODS)}")
    if device != "cpu":
        raise ValueError(f"device {device!r}: allowed is cpu; energy = 'openmm:CUDA' puts forces on a GPU")
    return kinds[method](Task.of(system, cvs, energy), settings, Noise(seed))
