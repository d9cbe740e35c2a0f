"""Floor 2: pictures: denoisers, models by name, solvers by name, scoring."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "APG": "molsamp.image.guidance",
    "Bayes": "molsamp.image.inverse",
    "CFG": "molsamp.image.guidance",
    "CFGpp": "molsamp.image.guidance",
    "Confine": "molsamp.image.attention",
    "DDS": "molsamp.image.inverse",
    "Denoiser": "molsamp.image.denoiser",
    "Edit": "molsamp.image.networks",
    "Inject": "molsamp.image.attention",
    "Measured": "molsamp.image.inverse",
    "Model": "molsamp.image.models",
    "Pyramid": "molsamp.image.pyramid",
    "Recorder": "molsamp.image.attention",
    "SOLVERS": "molsamp.image.solvers",
    "Threshold": "molsamp.image.guidance",
    "Towards": "molsamp.image.minority",
    "between": "molsamp.image.interpolation",
    "attending": "molsamp.image.attention",
    "audit": "molsamp.image.backdoor",
    "choose_start": "molsamp.image.boundary",
    "compensated": "molsamp.image.compensation",
    "compose": "molsamp.image.composing",
    "features": "molsamp.image.models",
    "fit_gaussian": "molsamp.image.teleport",
    "fit_heights": "molsamp.image.transport",
    "fit_rarity": "molsamp.image.minority",
    "frechet": "molsamp.image.scoring",
    "from_diffusers": "molsamp.image.foreign",
    "gradient": "molsamp.image.gradients",
    "guided": "molsamp.image.guidance",
    "load": "molsamp.image.models",
    "mixture": "molsamp.image.ideal",
    "network": "molsamp.image.models",
    "quantile_labels": "molsamp.image.minority",
    "rarity_score": "molsamp.image.minority",
    "restore": "molsamp.image.restoration",
    "rmse_to_fine": "molsamp.image.scoring",
    "sample": "molsamp.image.sampling",
    "sliced_wasserstein": "molsamp.image.scoring",
    "steer": "molsamp.image.steering",
    "turbo": "molsamp.image.refiner",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'molsamp.image' has no attribute {name!r}")
