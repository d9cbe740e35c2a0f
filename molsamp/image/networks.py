"""Small networks F of a noisy picture at a noise level, for `learn.preconditioned.Preconditioned`.

Each is called F(x, s, f, label): x = x_0 + s z in pixels, f the features of log s, label the class of every picture.
The last class is "no class": what a network answers for it is the unconditional prediction that guidance leans on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from molsamp.engine.noise import Noise
from molsamp.learn.networks import seeded
from molsamp.learn.preconditioned import FEATURES, Preconditioned

LOWEST, HIGHEST = 0.005, 200.0  # noise levels that the features tell apart; VP from t = 1 to 1e-3 has 152 to 0.0105
GROUPS = 8  # channels are normalised in so many groups

Pictures = Float[Tensor, "n C H W"]


class Edit(NamedTuple):
    """What may be changed in a trained U-Net while it samples.

    Args:
        skip_scale: a factor on every skip connection, deepest first (Skip-Tuning); all 1 if None.
        without: indices of residual blocks that are left out, only their shortcut being kept (AutoDiffusion).
    """

    skip_scale: Sequence[float] | None = None
    without: Collection[int] = ()


class Conditioning(nn.Module):
    """Noise level and class as one vector, c = W silu(A f + E[label]).

    Args:
        classes: classes of the data; label `classes` (and None) means no class.
        width: of the vector.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.level, self.label = nn.Linear(FEATURES, width), nn.Embedding(classes + 1, width)
        self.out = nn.Linear(width, width)

    def forward(self, f: Float[Tensor, "n W"], label: Int[Tensor, " n"] | None) -> Float[Tensor, "n width"]:
        """One vector a picture, ready for a linear layer."""
        if label is None:
            label = torch.full((len(f),), self.classes, device=f.device)
        return silu(self.out(silu(self.level(f) + self.label(label))))


class DenoiserMLP(nn.Module):
    """A residual perceptron of pixels, h' = h + B silu(A norm(h) + C c), for pictures of a hundred pixels.

    Args:
        event: shape of one picture.
        size: standard deviation of a pixel, d; inputs are x / (d^2 + s^2)^(1/2).
        classes: as in `Conditioning`.
        width: of the residual stream.
        depth: residual steps.
        noise: keys of the initial weights.
    """

    def __init__(self, event: Sequence[int], size: float, classes: int, width: int, depth: int, noise: Noise):
        super().__init__()
        self.size, pixels = size, prod(event)
        with seeded(noise):
            self.condition = Conditioning(classes, width)
            self.first, self.last = nn.Linear(pixels, width), nn.Linear(width, pixels)
            self.steps = nn.ModuleList(Residual(width) for _ in range(depth))
        _zero(self.last)

    def forward(self, x: Tensor, s: Float[Tensor, " n"], f: Tensor, label: Int[Tensor, " n"] | None = None) -> Tensor:
        """F, the shape of x."""
        c = self.condition(f, label)
        h = self.first((x / _spread(x, s, self.size)).flatten(1))
        for step in self.steps:
            h = step(h, c)
        return self.last(silu(h)).view_as(x)


class Residual(nn.Module):
    """One residual step of `DenoiserMLP`; it starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        _zero(self.b)

    def forward(self, h: Float[Tensor, "n width"], c: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """h + B silu(A norm(h) + C c)."""
        return h + self.b(silu(self.a(self.norm(h)) + self.c(c)))


class UNet(nn.Module):
    """A U-Net with one block a resolution on the way down, one at the bottom, and one a resolution on the way up.

    Args:
        event: (channels, height, width) of one picture.
        size: standard deviation of a pixel, d; inputs are x / (d^2 + s^2)^(1/2).
        classes: as in `Conditioning`.
        widths: channels at every resolution, finest first; each resolution is half the one before.
        noise: keys of the initial weights.

    Raises:
        ValueError: if height or width cannot be halved that often.
    """

    def __init__(self, event: Sequence[int], size: float, classes: int, widths: Sequence[int], noise: Noise):
        super().__init__()
        channels, *sides = event
        halved = 1 << (len(widths) - 1)
        if any(side % halved for side in sides):
            raise ValueError(f"pictures of {sides[0]} x {sides[1]} cannot be halved {len(widths) - 1} times")
        self.size, code = size, 2 * widths[-1]
        with seeded(noise):
            self.condition = Conditioning(classes, code)
            self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
            wide = [widths[0], *widths[:-1]]
            self.down = nn.ModuleList(Block(a, b, code) for a, b in zip(wide, widths[:-1], strict=False))
            self.bottom = Block(wide[-1], widths[-1], code)
            self.up = nn.ModuleList(Block(b + a, a, code) for a, b in reversed(list(pairwise(widths))))
            self.norm, self.last = nn.GroupNorm(GROUPS, widths[0]), nn.Conv2d(widths[0], channels, 3, padding=1)
        _zero(self.last)

    @property
    def skips(self) -> int:
        """Number of skip connections."""
        return len(self.up)

    @property
    def blocks(self) -> int:
        """Number of residual blocks, counted in the order in which they are run."""
        return 2 * len(self.up) + 1

    def forward(
        self,
        x: Pictures,
        s: Float[Tensor, " n"],
        f: Tensor,
        label: Int[Tensor, " n"] | None = None,
        edit: Edit = Edit(),
    ) -> Pictures:
        """F, the shape of x.

        Raises:
            ValueError: if the edit has not `skips` factors, or leaves out a block that is not in 0 .. `blocks` - 1.
        """
        skip_scale, without = edit
        rho = [1.0] * self.skips if skip_scale is None else list(skip_scale)
        if len(rho) != self.skips:
            raise ValueError(f"skip_scale has {len(rho)} factors, the network has {self.skips} skip connections")
        if not set(without) <= set(range(self.blocks)):
            raise ValueError(f"blocks to leave out are {sorted(without)}, allowed are 0 to {self.blocks - 1}")
        kept = [k not in without for k in range(self.blocks)]
        c, h, left = self.condition(f, label), self.first(x / _spread(x, s, self.size)), []
        for k, block in enumerate(self.down):
            h = block(h, c, kept[k])
            left.append(h)
            h = avg_pool2d(h, 2)
        h = self.bottom(h, c, kept[self.skips])
        for k, block in enumerate(self.up):
            skip = left.pop()
            h = torch.cat([interpolate(h, scale_factor=2.0), skip if rho[k] == 1.0 else rho[k] * skip], 1)
            h = block(h, c, kept[self.skips + 1 + k])
        return self.last(silu(self.norm(h)))


class Block(nn.Module):
    """h' = P h + conv(silu((1 + a) norm(conv(silu(norm(h)))) + b)), (a, b) linear in the conditioning.

    It starts as P, which is a 1 x 1 convolution where the number of channels changes and the identity elsewhere.
    """

    def __init__(self, before: int, after: int, code: int):
        super().__init__()
        self.norm0, self.conv0 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1)
        self.code = nn.Linear(code, 2 * after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        _zero(self.conv1)

    def forward(self, h: Pictures, c: Float[Tensor, "n code"], kept: bool = True) -> Tensor:
        """The block, or its shortcut alone."""
        if not kept:
            return self.shortcut(h)
        a, b = self.code(c)[:, :, None, None].chunk(2, 1)
        inner = self.norm1(self.conv0(silu(self.norm0(h))))
        return self.shortcut(h) + self.conv1(silu((1.0 + a) * inner + b))


class Classifier(nn.Module):
    """A small convolutional classifier whose last hidden layer is a feature space of pictures.

    Args:
        event: (channels, height, width) of one picture.
        classes: classes of the data.
        widths: channels of the two convolutions, and the number of features.
        noise: keys of the initial weights.
    """

    def __init__(self, event: Sequence[int], classes: int, widths: Sequence[int], noise: Noise):
        super().__init__()
        channels, height, width = event
        a, b, features = widths
        with seeded(noise):
            self.conv0, self.conv1 = nn.Conv2d(channels, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
            self.hidden = nn.Linear(b * (height // 4) * (width // 4), features)
            self.last = nn.Linear(features, classes)

    def features(self, x: Pictures) -> Float[Tensor, "n features"]:
        """The last hidden layer, after its nonlinearity."""
        h = avg_pool2d(silu(self.conv0(x)), 2)
        return silu(self.hidden(avg_pool2d(silu(self.conv1(h)), 2).flatten(1)))

    def forward(self, x: Pictures) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        return self.last(self.features(x))


def make(architecture: dict[str, Any], noise: Noise) -> Preconditioned | Classifier:
    """A network with fresh weights from the description that a file of weights carries.

    Args:
        architecture: "kind" ("mlp", "unet" or "classifier") and the arguments of that network but `noise`.
        noise: keys of the initial weights.

    Raises:
        ValueError: for another kind.
    """
    kinds = {"mlp": DenoiserMLP, "unet": UNet, "classifier": Classifier}
    given = dict(architecture)
    kind = given.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"the network is of kind {kind!r}, allowed are {', '.join(kinds)}")
    F = kinds[kind](**given, noise=noise)
    return F if isinstance(F, Classifier) else Preconditioned(F, given["size"], LOWEST, HIGHEST)


def _spread(x: Tensor, s: Tensor, size: float) -> Tensor:
    """Standard deviation of a pixel of x_0 + s z, shaped to divide x."""
    return (size**2 + s**2).sqrt().view(-1, *[1] * (x.dim() - 1))


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
