"""Models of pictures by name: two trained ones that are shipped, ideal denoisers of data sets, and files of weights.

A file is safetensors: the weights in half precision, and in its metadata, under "molsamp", a JSON object with the
architecture and the notes of the training (seed, command, settings, held-out score).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from molsamp.engine.noise import Noise
from molsamp.engine.schedules import VP, Schedule
from molsamp.image import data
from molsamp.image.denoiser import Denoiser
from molsamp.image.ideal import ideal
from molsamp.image.networks import Classifier, Edit, make
from molsamp.learn import weights
from molsamp.schema import nearest

WEIGHTS = Path(__file__).parent / "weights"
SETS = {"digits": data.digits, "mnist": data.mnist}
NAMES = (*SETS, *(f"ideal:{name}" for name in SETS))


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

    def denoiser(self, schedule: Schedule | None = None, edit: Callable[[float], Edit] | None = None) -> Denoiser:
        """The network as a denoiser of any schedule: it answers D(x / alpha, sigma / alpha), in the dtype of x.

        Args:
            schedule: VP unless given.
            edit: t -> what is changed in a U-Net at that time; nothing unless given.
        """
        clock = VP() if schedule is None else schedule

        @cache
        def network(device: torch.device, dtype: torch.dtype) -> nn.Module:
            return copy.deepcopy(self.net).to(device, dtype)

        def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
            alpha = clock.alpha(t)
            s = x.new_full((len(x),), clock.sigma(t) / alpha)
            return network(x.device, x.dtype)(x / alpha, s, label, *(() if edit is None else (edit(t),)))

        shape = tuple(self.architecture["event"])
        return Denoiser(clock, predict, shape, conditional=self.architecture["classes"])


def load(source: str | Path, schedule: Schedule | None = None) -> Denoiser:
    """A model by name.

    Args:
        source: "digits" or "mnist", trained networks; "ideal:digits" or "ideal:mnist", the exact denoisers of these
            pictures; or a file of weights that `molsamp.image.train` made.
        schedule: VP unless given.

    Raises:
        ValueError: for an unknown name, a file as in `read`, or a data set whose package is missing.
    """
    kind, _, name = str(source).partition(":")
    if kind == "ideal" and name in SETS:
        images = SETS[name]()
        return ideal(images.x, VP() if schedule is None else schedule, labels=images.label)
    return network(source).denoiser(schedule)


def network(source: str | Path) -> Model:
    """The network behind "digits", "mnist" or a file of weights.

    Raises:
        ValueError: as `load`, and for a file that holds a classifier.
    """
    file = WEIGHTS / f"{source}.safetensors" if str(source) in SETS else Path(source)
    if str(source) not in SETS and not file.exists():
        raise ValueError(
            f"model {str(source)!r} is unknown;{nearest(str(source), NAMES)} Allowed: {', '.join(NAMES)}, or a file"
        )
    model = read(file)
    if isinstance(model.net, Classifier):
        raise ValueError(f"{file} holds a classifier, not a denoiser")
    return model


def features(name: Literal["digits", "mnist"]) -> Callable[[Tensor], Tensor]:
    """The last hidden layer, 32 wide, of the classifier of a data set that is shipped: a feature space for scoring."""
    net = read(WEIGHTS / f"{name}-features.safetensors").net
    assert isinstance(net, Classifier)
    return lambda x: net.features(x.float())


def save(model: Model, file: Path) -> None:
    """Write the weights of a model in half precision with its description."""
    weights.write(file, model.net, {"architecture": model.architecture, "notes": model.notes})


def read(file: Path) -> Model:
    """Read a model from a file that `save` wrote.

    Raises:
        ValueError: as `learn.weights.read`; or if the architecture is not ours, or the weights have another shape.
    """
    description, tensors = weights.read(file, ("architecture", "notes"))
    try:
        net = make(description["architecture"], Noise(0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    return Model(weights.install(net, tensors, file), description["architecture"], description["notes"])
