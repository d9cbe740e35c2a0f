"""Hills: the bias of well-tempered metadynamics, deposited in batches on a grid.

After a batch of n configurations with CV values s_i, at the bias V as it was before the batch,

    V(s) += (h / n) sum_i exp(-V(s_i) / (kT (gamma - 1))) exp(-|s - s_i|^2 / (2 w^2))

Its limit is V = -(1 - 1/gamma) F + const (Barducci, Bussi, Parrinello, PRL 100, 020603 (2008)); gamma = inf is plain
metadynamics, V = -F + const. h is the height of a whole batch: the bias that grows in a time does not depend on how
many walkers, processes or devices share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs import CV
from molsamp.molecular.free_energy.growing import Growing
from molsamp.molecular.grids import Grid


class Kernel(NamedTuple):
    """What a hill is like.

    Args:
        height: of a batch together, kJ/mol.
        width: standard deviation along each CV, in its units.
        factor: gamma, the bias factor, above 1; inf for plain metadynamics.
        kT: kJ/mol.
    """

    height: float
    width: tuple[float, ...]
    factor: float
    kT: float


class Hills(Growing):
    """The sum of all hills so far, as a smooth bias; see `Growing` for what happens at the ends of an axis.

    Args:
        cvs, values, ranges, event: as in `GridBias`; values are zero at first.
        kernel: of all hills.
    Raises:
        ValueError: a kernel that does not fit the grid: spacing above half its width, factor not above 1.
    """

    word, least = "hills", 2
    file = "HILLS"
    fields = ("height", "biasf")

    def __init__(
        self,
        cvs: Sequence[CV],
        values: Float[np.ndarray | Tensor, "*N"],
        ranges: Sequence[tuple[float, float]],
        event: tuple[int, ...],
        kernel: Kernel,
    ):
        super().__init__(cvs, values, ranges, event, kernel.width, kernel.factor, kernel.kT)
        self.kernel = kernel

    def deposit(self, s: Float[Tensor, "n k"]) -> tuple[Hills, Float[Tensor, " n"]]:
        """The bias after a batch at s, and the height of each hill in kJ/mol; 0 beyond the ends or at NaN."""
        k, s = self.kernel, s.double()
        inside = self.grid.cell(s) >= 0
        damp = torch.exp(-self.at(s) / (k.kT * (k.factor - 1.0)))
        heights = torch.where(inside, k.height / len(s) * damp, 0.0)
        return self.joined(s, heights), heights

    def joined(self, s: Float[Tensor, "n k"], heights: Float[Tensor, " n"]) -> Hills:
        """The bias with hills of given heights at s, as read from a file."""
        return self.valued(self.values + self.summed(s, heights))

    def valued(self, values: Float[np.ndarray, "*N"]) -> Hills:
        """The same with other values at the nodes."""
        return Hills(self.cvs, values, self.grid.ranges, self.event, self.kernel)

    def offset(self) -> float:
        """c(t) = kT ln [sum exp(gamma/(gamma - 1) V/kT) / sum exp(V/((gamma - 1) kT))] over the nodes, kJ/mol.

        exp((V - c)/kT) is the weight of what is seen while hills grow: Tiwary and Parrinello, J. Phys. Chem. B 119, 736
        (2015).
        """
        kT, above = self.kernel.kT, torch.from_numpy(self.values).flatten() / self.kernel.kT
        damped = above * (self.scale - 1.0)  # 1 / (gamma - 1)
        return kT * float(torch.logsumexp(self.scale * above, 0) - torch.logsumexp(damped, 0))

    def free_energy(self) -> Float[np.ndarray, "*N"]:
        """F = -gamma / (gamma - 1) V at the nodes, kJ/mol, minimum 0: the estimate by the bias."""
        return self.scale * (self.values.max() - self.values)

    def columns(self, heights: Float[Tensor, " n"]) -> list[Float[Tensor, " n"]]:
        """Heights scaled as PLUMED has them (see `plumed`), and gamma."""
        return [self.scale * heights, torch.full_like(heights, self.factor)]

    def to_tensors(self) -> dict[str, Tensor]:
        """V at the nodes."""
        return {"bias": torch.from_numpy(self.values)}

    def restored(self, state: dict[str, Tensor]) -> Hills:
        """The same hills with V of a checkpoint."""
        return self.valued(state["bias"].numpy())


def flat(cvs: Sequence[CV], grid: Grid, event: tuple[int, ...], kernel: Kernel) -> Hills:
    """No hills yet."""
    return Hills(cvs, np.zeros(grid.shape), grid.ranges, event, kernel)
