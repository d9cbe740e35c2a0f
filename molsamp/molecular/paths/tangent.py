"""Low-dimensional control along the tangents of torsions: turn one side of the molecule about a bond."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.molecular.geometry import flat
from molsamp.molecular.paths.control import Control, Encoding
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.torsions import turning


class TorsionTangents(Control):
    """u = sum_c o_c d_c(x), o = L tanh(scale net(s) / L): along unit vectors d_c that turn torsions about their bonds.

    d_c is sqrt(m) times the velocity field of turning one side of bond c, minus overall translation and rotation,
    normalised. The network sees s = (sin, cos) of every torsion, the mass-weighted velocity along d_c in thermal
    units, bounded, and t / T. Where the end state is reached the control vanishes, as the optimal control of a hitting
    problem does after the hit.

    Args:
        problem: a molecular problem; its torsions are those of `turning`.
        network: (n, 3 C + 1) -> (n, C).
        scale: see `Control`.

    Raises:
        ValueError: see `turning`.
    """

    LIMIT = 0.8  # noise units: what is learned stays below 0.5; without it one fast path in thousands drives itself
    FAST = 4.0  # thermal units: a network that goes on linearly in the velocity drives fast paths ever faster

    def __init__(self, problem: Problem, network: nn.Module, scale: float = 0.3):
        super().__init__(problem, scale)
        self.problem, self.network = problem, network
        self.torsions, sides = zip(*turning(problem.system), strict=True)
        self.atoms, self.sides = np.array([cv.atoms for cv in self.torsions]), np.stack(sides)
        self.gate = 0.8 * problem.end.radius

    def encode(self, t: float | Tensor, x: Tensor, v: Tensor | None) -> Encoding:
        """{"s": inputs of the network, "d": directions (n, C, A, 3) in the laboratory frame, "open": gate}."""
        assert v is not None
        s, d = self._look(x, v)
        w = s[:, 2 * len(self.atoms) : -1]
        w.copy_(self.FAST * torch.tanh(w / self.FAST))
        s[:, -1] = torch.as_tensor(t, dtype=x.dtype) / self.horizon
        return {"s": s, "d": d, "open": (self.problem.distance(x) > self.gate).to(x.dtype)}

    def forward(self, encoding: Encoding) -> Float[Tensor, "n A 3"]:
        """u in the laboratory frame."""
        return torch.einsum("nc,ncai->nai", self.answer(encoding), encoding["d"])

    def stored(self, encoding: Encoding, z: Tensor) -> Encoding:
        """The noise along the directions, r_c = d_c z, and their Gram matrix: all that is left of (A, 3) numbers."""
        d = encoding["d"].flatten(2)
        along = torch.bmm(d, z.flatten(1)[:, :, None])[..., 0]
        return {"s": encoding["s"], "open": encoding["open"], "r": along, "gram": torch.bmm(d, d.mT)}

    def gain(self, stored: Encoding, hold: int) -> Float[Tensor, " n"]:
        """o r - hold o gram o / 2."""
        o = self.answer(stored)
        return (o * (stored["r"] - 0.5 * hold * torch.einsum("ncd,nd->nc", stored["gram"], o))).sum(1)

    def answer(self, encoding: Encoding) -> Float[Tensor, "n C"]:
        """o times `scale`, within `LIMIT`, and nothing where the end state is reached."""
        o = self.LIMIT * torch.tanh(self.scale / self.LIMIT * self.network(encoding["s"]))
        return o * encoding["open"][:, None]

    def directions(self, x: Float[Tensor, "n A 3"]) -> Float[Tensor, "n C A 3"]:
        """The unit vectors d_c."""
        return self._look(x, torch.zeros_like(x))[1]

    def _look(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the network, the time still free, and directions."""
        from molsamp.molecular.native.tangents import tangents

        C = len(self.atoms)
        s, d = x.new_empty(len(x), 3 * C + 1), x.new_empty(len(x), C, *x.shape[1:])
        tangents(
            flat(x), flat(v), self.atoms, self.sides, self.root_masses, self.problem.kT, s.numpy(), d.flatten(2).numpy()
        )
        return s, d
