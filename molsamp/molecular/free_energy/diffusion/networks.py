"""What steers a diffusion sampler: networks F of a configuration at a noise level, equivariant for molecules.

`Pairs` is the one for laptops: a plain network whose inputs and outputs are made for noisy molecules. It learns to
place bonded atoms within a minute, at a hundredth of the cost of messages between atoms (`Atoms`), which scale to what
it cannot do: molecules of hundreds of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.noise import Noise
from molsamp.learn.networks import MLP, seeded
from molsamp.learn.painn import PaiNN
from molsamp.learn.pairs import AllPairs, Radial
from molsamp.learn.preconditioned import FEATURES, Preconditioned
from molsamp.learn.tensor_product import TensorProduct
from molsamp.molecular.geometry import Superposition

Kind = Literal["pairs", "painn", "e3nn"]
MOST = 1200  # pairs that `Pairs` looks at, the stiffest
CUTOFF, BASIS = 0.8, 24  # nm and radial functions of `Atoms`


class Flat(nn.Module):
    """A network of plain coordinates, for toys."""

    spread: Tensor

    def __init__(self, event: tuple[int, ...], widths: Sequence[int], noise: Noise):
        super().__init__()
        size = math.prod(event)
        self.mlp = MLP((size + FEATURES, *widths, size), noise)
        self.register_buffer("spread", torch.ones(event))

    def measure(self, data: Float[Tensor, "n *event"]) -> None:
        """Take the scale of the inputs from data."""
        self.spread.copy_(data.std(0))

    def forward(self, x: Float[Tensor, "n *event"], s: Float[Tensor, " n"], f: Float[Tensor, "n W"]) -> Tensor:
        """F(x, s)."""
        y = x / (self.spread**2 + s.view(-1, *[1] * (x.dim() - 1)) ** 2).sqrt()
        return self.mlp(torch.cat([y.flatten(1), f], 1)).view_as(x)


class Pairs(nn.Module):
    """Coordinates in the body's frame and distances in; vectors in that frame and pulls along distances out.

        F_i = R^T f_i + sum_j g_ij (x_i - x_j) / |x_i - x_j|,    (f, g) = MLP(y, d, log s)

    Every input is whitened for its noise level: (d - mean) / (std^2 + 2 s^2)^(1/2) with mean and std over data, so a
    bond stretched by a thousandth of a nanometre is as plain to see at the end as a misplaced atom at the beginning.
    Turning x turns F. Its mirror image is another molecule, since the frame is a proper rotation's.

    Args:
        reference: (A, 3), nm, that the frame is superposed on.
        widths: hidden layers.
        noise: keys of the initial weights.
    """

    pair: Tensor
    place: Tensor
    places: Tensor
    length: Tensor
    lengths: Tensor

    def __init__(self, reference: Float[Tensor, "A 3"], widths: Sequence[int], noise: Noise):
        super().__init__()
        A = len(reference)
        self.fit = Superposition(reference - reference.mean(0))
        pair = torch.triu_indices(A, A, 1)
        self.register_buffer("pair", pair[:, :MOST].clone())
        P = self.pair.shape[1]
        for name, size in (("place", (A, 3)), ("places", (A, 3)), ("length", (P,)), ("lengths", (P,))):
            self.register_buffer(name, torch.ones(size))
        self.mlp = MLP((3 * A + P + FEATURES, *widths, 3 * A + P), noise)

    def measure(self, data: Float[Tensor, "n A 3"]) -> None:
        """Take means, standard deviations and the stiffest pairs from data."""
        y = self._turned(data)[0]
        self.place.copy_(y.mean(0))
        self.places.copy_(y.std(0))
        A = data.shape[1]
        i, j = torch.triu_indices(A, A, 1)
        d = torch.linalg.vector_norm(data[:, i] - data[:, j], dim=-1)
        stiff = d.std(0).argsort(stable=True)[: self.pair.shape[1]].sort().values
        self.pair.copy_(torch.stack([i, j])[:, stiff])
        self.length.copy_(d.mean(0)[stiff])
        self.lengths.copy_(d.std(0)[stiff])

    def forward(self, x: Float[Tensor, "n A 3"], s: Float[Tensor, " n"], f: Float[Tensor, "n W"]) -> Tensor:
        """F(x, s), with no part that moves the centre."""
        y, R = self._turned(x)
        i, j = self.pair
        r = x[:, i] - x[:, j]
        d = (r.square().sum(-1) + 1e-12).sqrt()
        white = (y - self.place) / (self.places**2 + s[:, None, None] ** 2).sqrt()
        stretch = (d - self.length) / (self.lengths**2 + 2.0 * s[:, None] ** 2).sqrt()
        out = self.mlp(torch.cat([white.flatten(1), stretch, f], 1))
        own, pulls = out.split([y[0].numel(), len(i)], 1)
        pull = (pulls / d)[..., None] * r
        F = (own.view_as(y) @ R).index_add(1, i, pull).index_add(1, j, -pull)
        return F - F.mean(1, keepdim=True)

    @torch.no_grad()
    def _turned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        R, _ = self.fit(x)
        return x @ R.mT, R


class Atoms(nn.Module):
    """Messages between all atoms, each with a learned name; one vector an atom out.

    The vectors end as V + W (U v) x (V v): the product is a pseudovector, so mirror images are told apart. Energies are
    blind to them, but a molecule is only one of the two.

    Args:
        kind: "painn" or "e3nn".
        atoms: A.
        channels, layers: of the backbone.
        noise: keys of the initial weights.
    """

    spread: Tensor

    def __init__(self, kind: Literal["painn", "e3nn"], atoms: int, channels: int, layers: int, noise: Noise):
        super().__init__()
        with seeded(noise):
            self.backbone = {"painn": PaiNN, "e3nn": TensorProduct}[kind](channels, layers, BASIS)
            self.names = nn.Embedding(atoms, channels)
            self.look = nn.Linear(FEATURES, channels)
            self.both = nn.Linear(channels, 2 * channels, bias=False)
            self.readout = nn.Linear(2 * channels, 1, bias=False)
        nn.init.zeros_(self.readout.weight)
        self.radial = Radial(CUTOFF, BASIS)
        self.register_buffer("spread", torch.tensor(0.15))

    def measure(self, data: Float[Tensor, "n A 3"]) -> None:
        """Take the scale of the inputs from data."""
        self.spread.copy_(data.std())

    def forward(self, x: Float[Tensor, "n A 3"], s: Float[Tensor, " n"], f: Float[Tensor, "n W"]) -> Tensor:
        """F(x, s), with no part that moves the centre."""
        shrink = self.spread / (self.spread**2 + s**2).sqrt()
        pairs = AllPairs(x * shrink[:, None, None], self.radial, self.backbone.harmonics)
        scalars = self.names.weight + self.look(f)[:, None]
        vectors = scalars.new_zeros(*x.shape, scalars.shape[-1])
        _, v = self.backbone(scalars, vectors, pairs)
        U, V = self.both(v).chunk(2, -1)
        F = self.readout(torch.cat([v, torch.linalg.cross(U, V, dim=2)], -1))[..., 0]
        return F - F.mean(1, keepdim=True)


WIDTHS: dict[Kind, tuple[int, ...]] = {"pairs": (256, 256, 256), "painn": (64, 64, 64), "e3nn": (16, 16, 16)}


def build(
    kind: Kind,
    widths: Sequence[int] | None,
    event: tuple[int, ...],
    reference: Float[Tensor, "*event"],
    noise: Noise,
    *,
    lowest: float,
    highest: float,
) -> Preconditioned:
    """A denoiser whose answer is the shrunk configuration before it is trained.

    Args:
        kind: of network for molecules; toys have `Flat`.
        widths: hidden layers, or channels of each layer, all the same.
        event: shape of a configuration.
        reference: a configuration.
        noise: keys of the initial weights.
        lowest, highest: noise levels, in units of x.

    Raises:
        ValueError: channels that differ.
    """
    widths = tuple(widths or WIDTHS[kind])
    F: nn.Module
    if len(event) == 1:
        F = Flat(event, widths, noise)
    elif kind == "pairs":
        F = Pairs(reference, widths, noise)
    else:
        if len(set(widths)) != 1:
            raise ValueError(f"network.widths = {widths} of a {kind} network are its channels, all the same")
        F = Atoms(kind, event[0], widths[0], len(widths), noise)
    return Preconditioned(F, 1.0, lowest, highest)


def measure(net: Preconditioned, data: Float[Tensor, "n *event"]) -> None:
    """Take all scales of a denoiser from data."""
    net.size.copy_(data.std())
    F = net.F
    assert isinstance(F, Flat | Pairs | Atoms)
    F.measure(data)
