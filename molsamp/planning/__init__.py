"""Floor 2: planning: worlds, vehicles, problems, trees that reach a goal."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Car": "molsamp.planning.vehicles",
    "DoubleIntegrator": "molsamp.planning.vehicles",
    "OwnVehicle": "molsamp.planning.vehicles",
    "PLANNERS": "molsamp.planning.settings",
    "Plan": "molsamp.planning.results",
    "Planner": "molsamp.planning.planners",
    "Policy": "molsamp.planning.policy",
    "Pose": "molsamp.planning.worlds",
    "Problem": "molsamp.planning.problems",
    "Result": "molsamp.planning.results",
    "Sampler": "molsamp.planning.samplers",
    "Settings": "molsamp.planning.settings",
    "Trailer": "molsamp.planning.vehicles",
    "Unicycle": "molsamp.planning.vehicles",
    "Vehicle": "molsamp.planning.vehicles",
    "World": "molsamp.planning.worlds",
    "boxes": "molsamp.planning.generators",
    "corridor": "molsamp.planning.generators",
    "layout": "molsamp.planning.generators",
    "load_octile": "molsamp.planning.worlds",
    "maze": "molsamp.planning.generators",
    "plan": "molsamp.planning.planners",
    "problem": "molsamp.planning.problems",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'molsamp.planning' has no attribute {name!r}")
