"""Floor 2: molecules: systems, energies, collective variables, path samplers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "load": "molsamp.molecular.system",
    "systems": "molsamp.molecular.system",
    "System": "molsamp.molecular.system",
    "Problem": "molsamp.molecular.paths.problem",
    "LearnedPaths": "molsamp.molecular.paths.learned",
    "Exploration": "molsamp.molecular.paths.exploration",
    "NoiseChain": "molsamp.molecular.paths.chain",
    "Shooting": "molsamp.molecular.paths.shooting",
    "Steered": "molsamp.molecular.paths.steered",
    "TwistedPaths": "molsamp.molecular.paths.twisted",
    "ViBiDPaths": "molsamp.molecular.paths.vibid",
    "UnbiasedMD": "molsamp.molecular.paths.free",
    "score": "molsamp.molecular.paths.scoring",
    "Task": "molsamp.molecular.free_energy.task",
    "Metadynamics": "molsamp.molecular.free_energy.walkers",
    "OPES": "molsamp.molecular.free_energy.walkers",
    "Walkers": "molsamp.molecular.free_energy.walkers",
    "Umbrella": "molsamp.molecular.free_energy.umbrella",
    "AS": "molsamp.molecular.free_energy.diffusion.adjoint",
    "ASBS": "molsamp.molecular.free_energy.diffusion.adjoint",
    "WTASBS": "molsamp.molecular.free_energy.diffusion.adjoint",
    "Transition": "molsamp.molecular.kinetics.transition",
    "WeightedEnsemble": "molsamp.molecular.kinetics.weighted",
    "BruteForce": "molsamp.molecular.kinetics.weighted",
    "ForwardFlux": "molsamp.molecular.kinetics.flux",
    "FeynmanKac": "molsamp.molecular.steering.job",
    "anneal": "molsamp.molecular.steering.annealing",
    "Paths": "molsamp.molecular.paths.paths",
    "NativeEnergy": "molsamp.molecular.native.energy",
    "OpenMMEnergy": "molsamp.molecular.openmm_energy",
    "MergedEnergy": "molsamp.molecular.merged",
    "ASEEnergy": "molsamp.molecular.ase_energy",
    "Calculator": "molsamp.molecular.ase_energy",
    "GridBias": "molsamp.molecular.bias",
    "python_force": "molsamp.molecular.openmm_bias",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'molsamp.molecular' has no attribute {name!r}")
