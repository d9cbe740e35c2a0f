"""PaiNN: message passing with scalar and vector channels (Schuett et al., ICML 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.learn.pairs import Pairs, vector_harmonics


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class PaiNN(nn.Module):
    """Scalars s (F an atom) and vectors v (3 x F an atom), improved by messages and updates in turn.

    Args:
        channels: F.
        layers: messages and updates.
        basis: size K of the radial basis.
    """

    harmonics = staticmethod(vector_harmonics)

    def __init__(self, channels: int, layers: int, basis: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(channels, basis) for _ in range(layers))

    def forward(
        self, s: Float[Tensor, "n A F"], v: Float[Tensor, "n A 3 F"], pairs: Pairs
    ) -> tuple[Float[Tensor, "n A F"], Float[Tensor, "n A 3 F"]]:
        """(s, v) after all layers."""
        for layer in self.layers:
            s, v = layer(s, v, pairs)
        return s, v


class Layer(nn.Module):
    """One message (eqs. 7 and 8 of the paper) and one update (eqs. 9 and 10).

        s_i += sum_j a_j W_a(r_ij),   v_i += sum_j [ b_j v_j W_b(r_ij) + c_j W_c(r_ij) r_ij/|r_ij| ]
        s += alpha + beta <U v, V v>,   v += gamma U v

    with (a, b, c) = phi(s), (alpha, beta, gamma) = psi(s, |V v|), U and V linear over channels, and filters W linear
    in the radial basis.
    """

    def __init__(self, channels: int, basis: int):
        super().__init__()
        self.phi = two_layers(channels, channels, 3 * channels)
        self.filters = nn.Linear(basis, 3 * channels, bias=False)
        self.UV = nn.Linear(channels, 2 * channels, bias=False)
        self.psi = two_layers(2 * channels, channels, 3 * channels)

    def forward(self, s: Tensor, v: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(s, v) after a message and an update."""
        a, b, c = self.phi(s).chunk(3, -1)
        W_a, W_b, W_c = self.filters.weight.chunk(3)
        carried = pairs.sum(0, (b[:, :, None] * v).flatten(2), W_b.repeat(3, 1)).view_as(v)
        s = s + pairs.sum(0, a, W_a)[:, :, 0]
        v = v + carried + pairs.sum(1, c, W_c)

        U, V = self.UV(v).chunk(2, -1)
        alpha, beta, gamma = self.psi(torch.cat([s, length(V)], -1)).chunk(3, -1)
        return s + alpha + beta * (U * V).sum(2), v + gamma[:, :, None] * U


def length(v: Float[Tensor, "n A m F"]) -> Float[Tensor, "n A F"]:
    """|v| over its components, smooth at 0."""
    return (v.square().sum(2) + 1e-8).sqrt()
