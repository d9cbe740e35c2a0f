"""What the command line wishes of pictures: guides and rewards by name, and the measurement they should fit.

--guide  cfg:W | cfg++:W | apg:W | threshold:Q, parted by commas, from left to right
--reward brightness | digit:K
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.guides import Guide
from molsamp.image import models
from molsamp.image.guidance import APG, CFG, CFGpp, Denoise, Threshold
from molsamp.image.networks import Classifier
from molsamp.image.scans import Problem
from molsamp.schema import nearest

OF_CLASSES: dict[str, Callable[[Denoise, float], Guide]] = {"cfg": CFG, "cfg++": CFGpp, "apg": APG}
GUIDES = (*OF_CLASSES, "threshold")
FORMS = "cfg:W | cfg++:W | apg:W | threshold:Q, parted by commas"
REWARDS = {"brightness": 20.0, "digit": 1.0}
"""Rewards, and the strength where none is given: pictures of ours differ in brightness by about 0.1."""
EVENTS: dict[tuple[int, ...], str] = {(1, 8, 8): "digits", (1, 16, 16): "mnist"}
"""Shapes of pictures, and the data set whose classifier is shipped."""
Score = Callable[[Tensor], Tensor]


def guides(text: str) -> tuple[tuple[str, float], ...]:
    """Names and numbers of "apg:4,threshold:0.99".

    Raises:
        ValueError: an unknown name, or a number that is none or that the guide refuses.
    """
    found = []
    for word in text.split(","):
        name, _, number = word.strip().partition(":")
        if name not in GUIDES:
            raise ValueError(f"--guide: '{name}' is unknown;{nearest(name, GUIDES)} Allowed: {FORMS}")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--guide: got '{word.strip()}'; allowed is {FORMS}") from None
        if not abs(value) < float("inf"):
            raise ValueError(f"--guide: got '{word.strip()}'; the number must be finite")
        try:
            _guide(name, value, lambda x, t: x)
        except ValueError as error:
            raise ValueError(f"--guide: {error}") from None
        found.append((name, value))
    return tuple(found)


def _guide(name: str, number: float, unconditional: Denoise) -> Guide:
    return Threshold(number) if name == "threshold" else OF_CLASSES[name](unconditional, number)


def reward(text: str, event: tuple[int, ...]) -> Score:
    """What pictures (n, *event) are rewarded for.

    "brightness" is the mean of a picture's values, -1 black to 1 white; "digit:K" the log-probability, nats, that the
    classifier that is shipped gives the class K.

    Raises:
        ValueError: an unknown name, a class that there is not, or pictures that no classifier knows.
    """
    name, colon, number = text.strip().partition(":")
    if name not in REWARDS or (name == "brightness" and colon):
        raise ValueError(f"--reward: '{text}' is unknown;{nearest(name, REWARDS)} Allowed: brightness | digit:K")
    if name == "brightness":
        return brightness
    if not number.isdecimal() or int(number) > 9:
        raise ValueError(f"--reward: got '{text}'; allowed is digit:K, K one of 0 to 9")
    return partial(log_probability, classifier(event), int(number))


def brightness(x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """Mean of the values of each picture."""
    return x.flatten(1).mean(1)


def log_probability(net: Classifier, label: int, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """log of the probability of a class, nats."""
    return torch.log_softmax(net(x.float()), 1)[:, label]


def classifier(event: tuple[int, ...]) -> Classifier:
    """The classifier that is shipped for pictures of this shape.

    Raises:
        ValueError: where there is none.
    """
    if not known(event):
        shape = " x ".join(map(str, event))
        raise ValueError(f"--reward: no classifier is shipped for pictures of {shape}; allowed is brightness")
    net = models.read(models.WEIGHTS / f"{EVENTS[tuple(event)]}-features.safetensors").net
    assert isinstance(net, Classifier)
    return net


def known(event: tuple[int, ...]) -> bool:
    """Whether a classifier is shipped for pictures of this shape."""
    return tuple(event) in EVENTS


@dataclass(frozen=True)
class Wishes:
    """What is asked of every population.

    Args:
        guides: names and numbers, from left to right.
        reward: pictures -> reward.
        strength: of it, nats.
        problem: measurements to fit, after the guides.
    """

    guides: tuple[tuple[str, float], ...] = ()
    reward: Score | None = None
    strength: float = 1.0
    problem: Problem | None = None

    def chain(self, k: int, unconditional: Denoise) -> tuple[Guide, ...]:
        """The guides of population k."""
        named = tuple(_guide(name, number, unconditional) for name, number in self.guides)
        return named if self.problem is None else (*named, self.problem.guide(k))

    @property
    def of_classes(self) -> bool:
        """Whether a guide compares the model of a class with that of none."""
        return any(name in OF_CLASSES for name, _ in self.guides)
