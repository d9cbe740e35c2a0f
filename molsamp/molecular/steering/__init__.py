"""Steering of molecules: walkers, or draws of a trained sampler, weighed and resampled towards a reward."""

from __future__ import annotations

from typing import Any

from molsamp.engine.noise import Noise
from molsamp.molecular.steering.settings import METHODS
from molsamp.molecular.system import System


def make(
    system: System,
    method: str,
    settings: Any,
    *,
    reward: tuple[str, ...],
    strength: float = 1.0,
    trained: Any = None,
    seed: int,
    energy: str = "auto",
    device: str = "cpu",
) -> Any:
    """Steering as resumable work; `analysis.analyse` reads it once it is done.

    Args:
        system: with the settings that are in force.
        method: a key of `METHODS`.
        settings: an instance of that method's model.
        reward: what is asked for, in the words of `rewards`.
        strength: the factor of all rewards.
        trained: for "diffusion", a finished job of adjoint sampling.
        seed: of all randomness.
        energy: tier of the energy.
        device: "cpu".

    Raises:
        ValueError: for an unknown method, quantity or device, or settings that cannot be.
    """
    from molsamp.molecular.steering.job import FeynmanKac, aim
    from molsamp.molecular.steering.learned import SteeredSampler

    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; allowed are {', '.join(METHODS)}")
    if device != "cpu":
        raise ValueError(f"device {device!r}: allowed is cpu; energy = 'openmm:CUDA' puts forces on a GPU")
    to = aim(system, reward, strength, energy)
    if method == FeynmanKac.name:
        return FeynmanKac(to, settings, Noise(seed))
    return SteeredSampler(to, trained, settings, Noise(seed))
