"""Models by name: the two trained ones that are shipped, ideal denoisers of data sets, and files of weights.

A file is safetensors: the weights in half precision, and in its metadata, under "molsamp", a JSON object with the
architecture and the notes of the training (seed, command, settings, held-out score).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molsamp.engine.noise import Noise
from molsamp.image.networks import make

WEIGHTS = Path(__file__).parent / "weights"
KEY = "molsamp"


@dataclass(frozen=True)
class Model:
    """A trained network and how it came about.

    Args:
        net: the network, in evaluation mode.
        architecture: what `networks.make` makes it from.
        notes: seed, command, settings, held-out score.
    """

    net: nn.Module
    architecture: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


def save(model: Model, file: Path) -> None:
    """Write the weights of a model in half precision with its description."""
    from safetensors.torch import save_file

    tensors = {name: value.half().contiguous() for name, value in model.net.state_dict().items()}
    save_file(tensors, file, {KEY: json.dumps({"architecture": model.architecture, "notes": model.notes})})


def read(file: Path) -> Model:
    """Read a model from a file that `save` wrote.

    Raises:
        ValueError: if the file is missing, is not safetensors (a pickle, for one), says nothing of an architecture, or
            holds weights of another shape.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    try:
        with safe_open(file, framework="pt") as f:
            told, weights = f.metadata() or {}, {name: f.get_tensor(name).float() for name in f.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file, the only form that is read ({error})") from None
    try:
        description = json.loads(told[KEY])
        architecture, notes = description["architecture"], description["notes"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{file} has no architecture in its metadata; molsamp.image.models.save writes it") from None
    net = make(architecture, Noise(0))
    _check(file, {k: tuple(v.shape) for k, v in net.state_dict().items()}, {k: tuple(v.shape) for k, v in weights.items()})
    net.load_state_dict(weights)
    return Model(net.eval().requires_grad_(False), architecture, notes)


def _check(file: Path, wanted: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> None:
    """The first weight that is missing, unknown or of another shape, in one line."""
    for name in (*wanted, *got):
        if wanted.get(name) != got.get(name):
            raise ValueError(f"{file}: weight {name} is {got.get(name, 'missing')}, allowed is {wanted.get(name, 'none')}")
