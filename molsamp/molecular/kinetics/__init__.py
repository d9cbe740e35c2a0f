"""Rates between states: first-passage times, fluxes and committors, by weighted ensemble, forward flux or plainly."""

from __future__ import annotations

from typing import Any

from molsamp.engine.noise import Noise
from molsamp.molecular.kinetics.settings import METHODS
from molsamp.molecular.kinetics.transition import Transition
from molsamp.molecular.system import System


def make(system: System, method: str, settings: Any, *, seed: int, energy: str = "auto", device: str = "cpu") -> Any:
    """A rate method as resumable work; `analysis.analyse` reads it once it is done.

    Args:
        system: with the settings that are in force.
        method: a key of `METHODS`.
        settings: an instance of that method's model.
        seed: of all randomness.
        energy: tier of the energy.
        device: "cpu".

    Raises:
        ValueError: for an unknown method, CV or device, or settings that cannot be.
    """
    from molsamp.molecular.kinetics.flux import ForwardFlux
    from molsamp.molecular.kinetics.weighted import BruteForce, WeightedEnsemble

    kinds = {kind.name: kind for kind in (WeightedEnsemble, ForwardFlux, BruteForce)}
    if method not in kinds:
        raise ValueError(f"method {method!r} is unknown; allowed are {', '.join(METHODS)}")
    if device != "cpu":
        raise ValueError(f"device {device!r}: allowed is cpu; energy = 'openmm:CUDA' puts forces on a GPU")
    return kinds[method](Transition.of(system, energy, settings.progress), settings, Noise(seed))
