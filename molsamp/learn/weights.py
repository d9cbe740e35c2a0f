"""Files of trained weights: safetensors in half precision, with a JSON description under "molsamp" in the metadata."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

KEY = "molsamp"
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}


def write(file: Path, net: nn.Module, description: dict[str, Any]) -> None:
    """Write a network's weights and what there is to say of them."""
    from safetensors.torch import save_file

    tensors = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, file, {KEY: json.dumps(description)})


def read(file: Path, needed: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(description, weights by name in single precision).

    Args:
        file: that `write` wrote.
        needed: keys that the description must have.

    Raises:
        ValueError: if the file is missing, is not safetensors (a pickle, for one), or lacks a key of its description.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    pickle = f"{file} is a pickle, which can run any code when it is read; allowed is safetensors"
    if file.suffix in PICKLES:
        raise ValueError(pickle)
    try:
        with safe_open(file, framework="pt") as f:
            told, weights = f.metadata() or {}, {name: f.get_tensor(name).float() for name in f.keys()}  # noqa: SIM118
    except SafetensorError as error:
        if _is_pickle(file):
            raise ValueError(pickle) from None
        raise ValueError(f"{file} is not a safetensors file, the only form that is read ({error})") from None
    try:
        description = dict(json.loads(told[KEY]))
    except (KeyError, TypeError, ValueError):
        description = {}
    for key in needed:
        if key not in description:
            raise ValueError(f"{file} has no {key} in its metadata; molsamp's own trainings write it")
    return description, weights


def install(net: nn.Module, weights: dict[str, Tensor], file: Path) -> nn.Module:
    """Load weights into a network, which is left ready to answer.

    Raises:
        ValueError: if a weight is missing, is one too many, or has another shape; names the file and the weight.
    """
    wanted, got = ({k: tuple(v.shape) for k, v in d.items()} for d in (net.state_dict(), weights))
    for name in (*wanted, *got):
        if wanted.get(name) != got.get(name):
            told = f"is {got.get(name, 'missing')}, allowed is {wanted.get(name, 'none')}"
            raise ValueError(f"{file}: the shape of weight {name} {told}")
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def digest(file: Path) -> str:
    """Start of the sha256 of a file, by which settings know it again.

    Raises:
        OSError: if the file cannot be read.
    """
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _is_pickle(file: Path) -> bool:
    """Whether a file that is not safetensors is a checkpoint of torch, a zip or a plain pickle, by its first bytes."""
    with file.open("rb") as f:
        first = f.read(4)
    return first[:1] == b"\x80" or first == b"PK\x03\x04"
