"""Transition paths: one problem, seven samplers, one kind of answer."""

from __future__ import annotations

from typing import Any

import torch

from molsamp.engine.noise import Noise
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import METHODS
from molsamp.molecular.system import System


def make(
    system: System,
    method: str,
    settings: Any,
    *,
    seed: int,
    paths: int = 64,
    energy: str = "auto",
    device: str = "cpu",
) -> Any:
    """A path sampler as a resumable job: k, total, advance(), state(), load(), paths().

    Args:
        system: with the settings that are in force.
        method: a key of `METHODS`.
        settings: an instance of that method's model.
        seed: of all randomness.
        paths: number of paths drawn at the end.
        energy: tier, "auto", "lanes", "torch" or "openmm[:PLATFORM]".
        device: "cpu"; path samplers do not place their tensors anywhere else yet.

    Raises:
        ValueError: for an unknown method, or a device that would be ignored.
    """
    from molsamp.molecular.paths.chain import NoiseChain
    from molsamp.molecular.paths.free import UnbiasedMD
    from molsamp.molecular.paths.learned import LearnedPaths
    from molsamp.molecular.paths.shooting import Shooting
    from molsamp.molecular.paths.steered import Steered
    from molsamp.molecular.paths.twisted import TwistedPaths
    from molsamp.molecular.paths.vibid import ViBiDPaths

    classes = {
        "tps-dps": LearnedPaths,
        "chain": NoiseChain,
        "md": UnbiasedMD,
        "shooting": Shooting,
        "steered": Steered,
        "twisted": TwistedPaths,
        "vibid": ViBiDPaths,
    }
    if method not in classes:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if device != "cpu":
        raise ValueError(f"device {device!r}: paths run on 'cpu'; for OpenMM on a GPU set energy = 'openmm:CUDA'")
    dtype = torch.float32 if system.masses is not None else torch.float64
    problem = Problem.of(system, tier=energy, dtype=dtype)
    return classes[method](problem, settings, Noise(seed), paths)
