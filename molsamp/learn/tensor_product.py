"""A small tensor-product network in the manner of NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022), on e3nn.

Features are irreducible tensors (l, parity) with C channels each. One layer couples the features of all neighbours
with the harmonics of their directions by Clebsch-Gordan coefficients. The coupling is linear, so it is done once an
atom after the sum over neighbours, not once a pair.
"""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.learn.painn import length, two_layers
from molsamp.learn.pairs import Pairs


class TensorProduct(nn.Module):
    """Scalars and vectors in, scalars and vectors out (interface of `PaiNN`), more kinds of tensors in between.

    Args:
        channels: C of every kind of feature.
        layers: couplings.
        basis: size K of the radial basis.
        lmax: of the harmonics; 1 adds pseudovectors between the layers, 2 rank-2 tensors as well.
    """

    def __init__(self, channels: int, layers: int, basis: int, lmax: int = 1):
        super().__init__()
        ends, between = ["0e", "1o"], ["0e", "1o", "1e", "2e"][: 2 + lmax]
        kinds = [ends, *[between] * (layers - 1), ends]
        self.layers = nn.ModuleList(Layer(*pair, channels, basis, lmax) for pair in pairwise(kinds))

    @staticmethod
    def harmonics(l: int, unit: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n m"]:
        """Real spherical harmonics of e3nn with |Y_l|^2 = 2 l + 1."""
        from e3nn import o3

        return o3.spherical_harmonics(l, unit, normalize=False, normalization="component")

    def forward(
        self, s: Float[Tensor, "n A C"], v: Float[Tensor, "n A 3 C"], pairs: Pairs
    ) -> tuple[Float[Tensor, "n A C"], Float[Tensor, "n A 3 C"]]:
        """(s, v) after all layers."""
        features = {"0e": s[:, :, None], "1o": v}
        for layer in self.layers:
            features = layer(features, pairs)
        return features["0e"][:, :, 0], features["1o"]


class Layer(nn.Module):
    """f_o += gate_o g_o,   g_o = mix_o(sum over paths (i, l) -> o of C^{o}_{l i} (Y_l * f_i)).

    The gates are functions of f_0e, g_0e and the lengths |g_o|; scalars take their gate as a sum, not as a factor,
    because a product would vanish with g_0e.

    Args:
        inner, outer: irreducible representations before and after, "0e" first.
        channels: C.
        basis: K.
        lmax: of the harmonics.
    """

    def __init__(self, inner: list[str], outer: list[str], channels: int, basis: int, lmax: int):
        from e3nn import o3

        super().__init__()
        self.paths: list[tuple[str, int, str]] = []
        for i, l, o in itertools.product(inner, range(lmax + 1), outer):
            if o3.Irrep(o) in o3.Irrep(i) * o3.Irrep(l, (-1) ** l):
                to = o3.Irrep(o)
                coupling = o3.wigner_3j(l, o3.Irrep(i).l, to.l, dtype=torch.float64) * to.dim**0.5
                self.register_buffer(f"coupling_{i}_{l}_{o}", coupling, persistent=False)
                self.paths.append((i, l, o))
        self.filters = nn.ModuleList(nn.Linear(basis, channels, bias=False) for _ in self.paths)
        self.mix = nn.ModuleDict({o: nn.Linear(channels, channels, bias=False) for o in outer})
        self.gates = two_layers((len(outer) + 1) * channels, channels, len(outer) * channels)

    def forward(self, features: dict[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """The features after one coupling."""
        sums: dict[str, Tensor] = {}
        for (i, l, o), filters in zip(self.paths, self.filters, strict=True):
            f, W = features[i], cast(Tensor, filters.weight)
            around = pairs.sum(l, f.flatten(2), W.repeat(f.shape[2], 1)).unflatten(3, f.shape[2:])
            coupling = getattr(self, f"coupling_{i}_{l}_{o}").to(around.dtype)
            term = torch.einsum("nampc,mpo->naoc", around, coupling)
            sums[o] = sums[o] + term if o in sums else term
        g = {o: mix(sums[o]) for o, mix in self.mix.items()}
        scalars, *others = g
        invariants = [features[scalars], g[scalars], *(length(g[o])[:, :, None] for o in others)]
        gates = self.gates(torch.cat(invariants, -1)).chunk(len(g), -1)
        new = {scalars: features[scalars] + g[scalars] + gates[0]}
        for o, gate in zip(others, gates[1:], strict=True):
            new[o] = features.get(o, 0.0) + gate * g[o]
        return new
