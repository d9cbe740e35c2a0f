"""Equivariant networks on labelled atoms and the way to a reference: drop-in for an MLP on aligned coordinates.

The network sees the pairs of the present configuration y and, as one vector an atom, the displacement d = y - y_B to
a reference y_B that stands in the same frame. It answers f(y, y_B) with f(Gy, Gy_B) = G f(y, y_B) for every rotation
and reflection G. Energies are blind to mirror images, so an optimal control has just this symmetry when molecule and
target are mirrored together; when the molecule alone is mirrored, the displacements change and with them the answer,
so chirality is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.noise import Noise
from molsamp.learn.networks import MLP, seeded
from molsamp.learn.painn import PaiNN
from molsamp.learn.pairs import AllPairs, Neighbours, Radial
from molsamp.learn.tensor_product import TensorProduct

LENGTH = 0.1  # nm, the unit of displacements inside the network
SMALL = 30  # atoms up to which every pair of a frame counts
CUTOFF = {True: 1.2, False: 0.5}  # nm, for small molecules (it reaches across them) and for larger ones
BASIS = 12  # radial functions
FRAMES = 64  # frames that go through the network together


class Equivariant(nn.Module):
    """A backbone between an embedding of atoms and a readout by head.

    Scalars of an atom start from a learned vector of its own (atoms are labelled: equivalent hydrogens are not
    exchanged) plus a linear function of |d| and the time; its vectors start as multiples of d.

    Args:
        backbone: (scalars, vectors, pairs) -> (scalars, vectors).
        reference: y_B, (A, 3), nm.
        head: "force": a vector an atom, "scale": a number an atom, "potential": a number a frame.
        channels: F, of the backbone.
        time: whether t is seen.
        noise: keys of the initial weights.
    """

    reference: Tensor

    def __init__(
        self,
        backbone: PaiNN | TensorProduct,
        reference: Float[Tensor, "A 3"],
        head: Literal["force", "scale", "potential"],
        channels: int,
        time: bool,
        noise: Noise,
    ):
        super().__init__()
        self.backbone, self.head, self.time = backbone, head, time
        small = len(reference) <= SMALL
        self.radial, self.pairs = Radial(CUTOFF[small], BASIS), AllPairs if small else Neighbours
        self.register_buffer("reference", reference.clone(), persistent=False)
        with seeded(noise.child("embedding")):
            self.atoms = nn.Embedding(len(reference), channels)
            self.look = nn.Linear(1 + int(time), channels)
            self.arrows = nn.Linear(1, channels, bias=False)
        self.readout: nn.Module
        if head == "force":
            self.readout = nn.Linear(channels, 1, bias=False)
            nn.init.zeros_(self.readout.weight)
        else:
            self.readout = MLP((channels, channels, 1), noise.child("readout"))

    def forward(self, d: Float[Tensor, "n A 3"], t: Float[Tensor, " n"]) -> Tensor:
        """(n, A, 3), (n, A) or (n,), by head, for displacements d = y - y_B in nm and times t / T."""
        # tensors over pairs are large: a few frames at a time stay in the cache, three times as fast as all at once
        return torch.cat([self._frames(*block) for block in zip(d.split(FRAMES), t.split(FRAMES), strict=True)])

    def _frames(self, d: Tensor, t: Tensor) -> Tensor:
        pairs = self.pairs(self.reference + d, self.radial, self.backbone.harmonics)
        d = d / LENGTH
        seen = (d.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        if self.time:
            seen = torch.cat([seen, t[:, None, None].expand_as(seen)], -1)
        s, v = self.backbone(self.atoms.weight + self.look(seen), self.arrows(d[..., None]), pairs)
        if self.head == "force":
            return self.readout(v)[..., 0]
        out = self.readout(s)[..., 0]
        return out if self.head == "scale" else out.sum(1)


def build_equivariant(
    kind: Literal["painn", "e3nn"],
    reference: Float[Tensor, "A 3"],
    head: Literal["force", "scale", "potential"],
    widths: Sequence[int],
    time: bool,
    noise: Noise,
) -> Equivariant:
    """An equivariant network whose answer is zero before training.

    Args:
        kind: "painn" or "e3nn".
        reference: configuration that displacements refer to, (A, 3), nm.
        head: see `Equivariant`.
        widths: one number of channels a layer, all the same; on a CPU two layers of 8 to 16 are plenty.
        time: whether the network sees t / T.
        noise: keys of the initial weights.

    Raises:
        ValueError: if the widths differ.
    """
    if len(set(widths)) != 1:
        raise ValueError(f"widths {tuple(widths)} of a {kind} network must all be the same: they are its channels")
    with seeded(noise.child("backbone")):
        backbone = {"painn": PaiNN, "e3nn": TensorProduct}[kind](widths[0], len(widths), BASIS)
    return Equivariant(backbone, reference, head, widths[0], time, noise)
