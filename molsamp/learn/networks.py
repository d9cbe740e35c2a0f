"""Plain networks; equivariant ones stand in `equivariant.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from molsamp.engine.noise import Noise

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


@contextmanager
def seeded(noise: Noise) -> Iterator[None]:
    """Initialise modules inside this block from a keyed seed, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(noise.integers(0, torch.zeros(1, dtype=torch.int64), (1,), 1 << 31)))
        yield


class MLP(nn.Sequential):
    """A multilayer perceptron whose last layer starts at zero, so that an untrained control is no control.

    Args:
        widths: input, hidden and output widths.
        activation: silu, relu or tanh.
        noise: keys of the initial weights.
    """

    def __init__(self, widths: Sequence[int], noise: Noise, activation: str = "silu"):
        layers: list[nn.Module] = []
        with seeded(noise):
            for a, b in pairwise(widths):
                layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def flatten_state(prefix: str, state: dict) -> dict[str, Tensor]:
    """The tensors of a nested state dict under dotted keys, for a checkpoint."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            flat |= flatten_state(name, value)
        elif isinstance(value, Tensor):
            flat[name] = value
    return flat


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse selection: entries under `prefix.`, the prefix removed."""
    return {k.removeprefix(prefix + "."): v for k, v in state.items() if k.startswith(prefix + ".")}


def optimiser_state(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser under dotted keys, for a checkpoint."""
    return flatten_state(prefix, optimiser.state_dict()["state"])


def load_optimiser(prefix: str, optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_state`; rates and other settings stay as they are."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in with_prefix(prefix, state).items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
