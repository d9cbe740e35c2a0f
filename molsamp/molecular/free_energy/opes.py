"""OPES: a bias from the probability that walkers have found so far.

Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020). With G_i(s) = exp(-|s - s_i|^2 / (2 w^2)) at what was
visited when the bias was V_i,

    P(s) ~ sum_i exp(V_i(s_i)/kT) G_i(s)
    V(s) = (1 - 1/gamma) kT log(P(s)/Z + epsilon),     epsilon = exp(-barrier / ((1 - 1/gamma) kT))

Z being the mean of P over what has been explored, here the nodes whose cells were visited: from there to where nobody
has been the bias drops by about the barrier, and no further. The constant of P falls out, so that neither the number of
walkers nor that of batches matters; a batch counts as its mean. What is visited has the weight exp(V/kT) as it is.

Theirs are kernels that narrow and are merged as they come; ours have one width and are all there, in the sum on a grid.
That smooths P: F on a slope F' is too low by about (w F')^2 / (2 kT), which differences between basins hardly feel, and
the free energy by weights not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.molecular.cvs import CV
from molsamp.molecular.free_energy.growing import Growing
from molsamp.molecular.grids import Grid


class OPESBias(Growing):
    """V of all kernels so far, as a smooth bias; 0 before the first.

    Args:
        cvs, ranges, event: as in `GridBias`.
        kernels: P without its constant at the nodes.
        explored: nodes in whose cells something was deposited.
        width, factor, kT: as in `Growing`.
        barrier: kJ/mol.
    Raises:
        ValueError: as in `Growing`.
    """

    word, least = "kernels", 1  # the logarithm of a Gaussian is a parabola, which splines have no trouble with
    file = "KERNELS"
    fields = ("height", "logweight")

    def __init__(
        self,
        cvs: Sequence[CV],
        kernels: Float[np.ndarray, "*N"],
        explored: Bool[np.ndarray, "*N"],
        ranges: Sequence[tuple[float, float]],
        event: tuple[int, ...],
        width: tuple[float, ...],
        factor: float,
        kT: float,
        barrier: float,
    ):
        self.kernels, self.explored, self.barrier = kernels, explored, barrier
        values = np.zeros_like(kernels)
        if explored.any():
            tempered = (1.0 - 1.0 / factor) * kT
            values = tempered * np.log(kernels / kernels[explored].mean() + math.exp(-barrier / tempered))
        super().__init__(cvs, values, ranges, event, width, factor, kT)

    @classmethod
    def empty(
        cls,
        cvs: Sequence[CV],
        grid: Grid,
        event: tuple[int, ...],
        width: Sequence[float],
        factor: float,
        kT: float,
        barrier: float,
    ) -> OPESBias:
        """Nothing visited yet."""
        kernels, explored = np.zeros(grid.shape), np.zeros(grid.shape, dtype=bool)
        return cls(cvs, kernels, explored, grid.ranges, event, tuple(width), factor, kT, barrier)

    def deposit(self, s: Float[Tensor, "n k"]) -> tuple[OPESBias, Float[Tensor, " n"]]:
        """The bias after a batch at s, and exp(V/kT) of each; 0 beyond the ends or at NaN."""
        s = s.double()
        cell = self.grid.cell(s)
        heights = torch.where(cell >= 0, torch.exp(self.at(s) / self.kT), 0.0)
        explored = self.explored.copy()
        explored.reshape(-1)[cell[cell >= 0].numpy()] = True
        return self._with(self.kernels + self.summed(s, heights) / len(s), explored), heights

    def free_energy(self) -> Float[np.ndarray, "*N"]:
        """-kT log P at the nodes, kJ/mol, minimum 0; inf where P is 0."""
        with np.errstate(divide="ignore"):
            F = -self.kT * np.log(self.kernels)
        return F - F.min()

    def offset(self) -> float:
        """0: the bias has the level that makes exp(V/kT) a weight."""
        return 0.0

    def columns(self, heights: Float[Tensor, " n"]) -> list[Float[Tensor, " n"]]:
        """Weights and their logarithms."""
        return [heights, heights.log()]

    @property
    def facts(self) -> dict[str, object]:
        """gamma and epsilon."""
        epsilon = math.exp(-self.barrier / ((1.0 - 1.0 / self.factor) * self.kT))
        return {"biasfactor": f"{self.factor:.9g}", "epsilon": f"{epsilon:.9g}"}

    def to_tensors(self) -> dict[str, Tensor]:
        """P and what has been explored."""
        return {"kernels": torch.from_numpy(self.kernels), "explored": torch.from_numpy(self.explored)}

    def restored(self, state: dict[str, Tensor]) -> OPESBias:
        """The same bias with the kernels of a checkpoint."""
        return self._with(state["kernels"].numpy(), state["explored"].numpy())

    def _with(self, kernels: Float[np.ndarray, "*N"], explored: Bool[np.ndarray, "*N"]) -> OPESBias:
        shape = self.grid.ranges, self.event, self.width, self.factor, self.kT, self.barrier
        return OPESBias(self.cvs, kernels, explored, *shape)
