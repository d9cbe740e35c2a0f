"""A small tensor-product network in the manner of NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022), on e3nn.

Features are irreducible tensors (l, parity) with C channels each. One layer couples the features of all neighbours
with the harmonics of their directions by Clebsch-Gordan coefficients. The coupling is linear, so it is done once an
atom after the sum over neighbours, not once a pair.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.learn.painn import length, two_layers
from molsamp.learn.pairs import Pairs


class TensorProduct(nn.Module):
    """Scalars, vectors, pseudovectors and, for lmax = 2, rank-2 tensors; interface of `PaiNN`.

    Args:
        channels: C of every kind of feature.
        layers: couplings.
        basis: size K of the radial basis.
        lmax: 1 or 2.
    """

    def __init__(self, channels: int, layers: int, basis: int, lmax: int = 1):
        super().__init__()
        self.kinds = ["0e", "1o", "1e", "2e"][: 2 + lmax]
        self.layers = nn.ModuleList(Layer(self.kinds, channels, basis, lmax) for _ in range(layers))

    @staticmethod
    def harmonics(l: int, unit: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n m"]:
        """Real spherical harmonics of e3nn with |Y_l|^2 = 2 l + 1."""
        from e3nn import o3

        return o3.spherical_harmonics(l, unit, normalize=False, normalization="component")

    def forward(
        self, s: Float[Tensor, "n A C"], v: Float[Tensor, "n A 3 C"], pairs: Pairs
    ) -> tuple[Float[Tensor, "n A C"], Float[Tensor, "n A 3 C"]]:
        """The scalars and vectors after all layers; higher features start at zero."""
        features = [s[:, :, None], v]
        features += [s.new_zeros(*s.shape[:2], 2 * int(kind[0]) + 1, s.shape[2]) for kind in self.kinds[2:]]
        for layer in self.layers:
            features = layer(features, pairs)
        return features[0][:, :, 0], features[1]


class Layer(nn.Module):
    """f_o += gate_o Mix_o(sum over paths (p, l) -> o of C^{o}_{l p} (Y_l * f_p)), gates from scalars and lengths.

    Args:
        kinds: irreducible representations of the features, scalars first.
        channels: C.
        basis: K.
        lmax: of the harmonics.
    """

    def __init__(self, kinds: list[str], channels: int, basis: int, lmax: int):
        from e3nn import o3

        super().__init__()
        irreps = [o3.Irrep(kind) for kind in kinds]
        self.paths: list[tuple[int, int, int, str]] = []
        for p, inner in enumerate(irreps):
            for l in range(lmax + 1):
                for o, outer in enumerate(irreps):
                    if outer in inner * o3.Irrep(l, (-1) ** l):
                        name = f"coupling_{l}_{inner}_{outer}"
                        coefficients = o3.wigner_3j(l, inner.l, outer.l, dtype=torch.float64) * outer.dim**0.5
                        self.register_buffer(name, coefficients, persistent=False)
                        self.paths.append((p, l, o, name))
        self.filters = nn.ModuleList(nn.Linear(basis, channels, bias=False) for _ in self.paths)
        self.mix = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in kinds)
        self.gates = two_layers((len(kinds) + 1) * channels, channels, len(kinds) * channels)

    def forward(self, features: list[Tensor], pairs: Pairs) -> list[Tensor]:
        """The features after one coupling."""
        sums: list[Tensor | float] = [0.0] * len(features)
        for (p, l, o, name), filters in zip(self.paths, self.filters, strict=True):
            f, W = features[p], cast(Tensor, filters.weight)
            summed = pairs.sum(l, f.flatten(2), W.repeat(f.shape[2], 1)).unflatten(3, f.shape[2:])
            sums[o] = sums[o] + torch.einsum("nampc,mpo->naoc", summed, getattr(self, name))
        new = [mix(f) for mix, f in zip(self.mix, sums, strict=True)]
        invariants = [features[0][:, :, 0], new[0][:, :, 0], *(length(f) for f in new[1:])]
        gates = self.gates(torch.cat(invariants, -1)).chunk(len(features), -1)
        # a gate times a scalar would miss functions of the other invariants: scalars take the gate itself
        scalars = features[0] + new[0] + gates[0][:, :, None]
        return [scalars, *(f + g[:, :, None] * h for f, g, h in zip(features[1:], gates[1:], new[1:], strict=True))]
