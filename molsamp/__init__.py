"""molsamp: energy-based diffusion samplers for molecules, planning and images on one SDE and particle engine.

    import molsamp as ms
    ala = ms.molecular.load("alanine-dipeptide")
    task = ms.molecular.Problem.of(ala, start="C5", end="C7ax", temperature=300)
    paths = ms.molecular.LearnedPaths(task, noise=ms.Noise(7)).fit().paths()

Units everywhere inside: nm, ps, Da, kJ/mol, K, rad.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = ("engine", "image", "learn", "molecular", "planning", "runs")
_HOMES = {
    "Run": "molsamp.runs.folder",
    "load": "molsamp.molecular.system",
    **dict.fromkeys(
        (
            "Controlled",
            "Exponential",
            "EulerMaruyama",
            "LangevinMiddle",
            "LinearSDE",
            "Noise",
            "Overdamped",
            "Particles",
            "Path",
            "SemiImplicitEuler",
            "Status",
            "Underdamped",
            "VP",
            "EDM",
            "ess",
            "log_ratio",
            "residuals",
            "rollout",
        ),
        "molsamp.engine",
    ),
}

__all__ = sorted((*_ROOMS, *_HOMES))


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"molsamp.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'molsamp' has no attribute {name!r}")
