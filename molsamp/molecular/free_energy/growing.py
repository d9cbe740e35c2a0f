"""A bias made of Gaussians at what walkers visit, summed on a grid; `hills` and `opes` say what it makes of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import CV


class Growing(GridBias):
    """A bias to which `deposit` adds the Gaussians of a batch.

    Along an axis that is not periodic they are mirrored at the ends, so that the sum is not too low there (their tails
    would be missing) and has no slope across; what lies beyond the ends deposits nothing.

    Args:
        cvs, values, ranges, event: as in `GridBias`.
        width: standard deviation of the Gaussians along each CV, in its units.
        factor: gamma, the bias factor, above 1; inf for a flat target.
        kT: kJ/mol.
    Raises:
        ValueError: Gaussians narrower than `least` nodes; factor not above 1.
    """

    word: ClassVar[str]
    """What its Gaussians are called."""
    least: ClassVar[int]
    """Distances of nodes that their width has to be."""
    file: ClassVar[str]
    """The name of its file in PLUMED's form."""
    fields: ClassVar[tuple[str, ...]]
    """What a line of that file has besides time, CVs and widths."""

    def __init__(
        self,
        cvs: Sequence[CV],
        values: Float[np.ndarray | Tensor, "*N"],
        ranges: Sequence[tuple[float, float]],
        event: tuple[int, ...],
        width: tuple[float, ...],
        factor: float,
        kT: float,
    ):
        super().__init__(cvs, values, ranges, event)
        self.width, self.factor, self.kT = width, factor, kT
        if not factor > 1.0:
            raise ValueError(f"the bias factor must be above 1, got {factor:g}")
        if len(width) != len(self.grid.names):
            raise ValueError(f"{self.word} over {', '.join(self.grid.names)} need as many widths, got {width}")
        for name, w, h, N in zip(self.grid.names, width, self.grid.spacing, self.grid.shape, strict=True):
            if not w >= self.least * h * (1 - 1e-9):
                raise ValueError(
                    f"CV {name!r}: {self.word} of width {w:g} need nodes at most {w / self.least:g} apart, "
                    f"{N} nodes are {h:.3g} apart"
                )

    @abstractmethod
    def deposit(self, s: Float[Tensor, "n k"]) -> tuple[Growing, Float[Tensor, " n"]]:
        """The bias after a batch at s, and the height of each Gaussian; 0 beyond the ends or at NaN."""

    @abstractmethod
    def free_energy(self) -> Float[np.ndarray, "*N"]:
        """F at the nodes by the bias, kJ/mol, minimum 0."""

    @abstractmethod
    def offset(self) -> float:
        """c in kJ/mol; exp((V - c)/kT) is the weight of what is seen while the bias grows."""

    @abstractmethod
    def columns(self, heights: Float[Tensor, " n"]) -> list[Float[Tensor, " n"]]:
        """The columns `fields` of Gaussians of these heights."""

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""

    @abstractmethod
    def restored(self, state: dict[str, Tensor]) -> Growing:
        """On the same grid, as a checkpoint has it."""

    @property
    def facts(self) -> dict[str, object]:
        """What the header of its file says of all lines."""
        return {}

    @property
    def scale(self) -> float:
        """gamma / (gamma - 1)."""
        return 1.0 if math.isinf(self.factor) else self.factor / (self.factor - 1.0)

    def summed(self, s: Float[Tensor, "n k"], heights: Float[Tensor, " n"]) -> Float[np.ndarray, "*N"]:
        """sum_i height_i exp(-|node - s_i|^2 / (2 w^2)) at the nodes."""
        axes = [self._rows(axis, s[:, axis].double().nan_to_num().numpy()) for axis in range(len(self.grid.shape))]
        axes[0] = axes[0] * heights.double().numpy()[:, None]
        return axes[0].sum(0) if len(axes) == 1 else axes[0].T @ axes[1]

    def _rows(self, axis: int, s: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n N"]:
        """exp(-(node - s)^2 / (2 w^2)) along one axis, its images included."""
        (lo, hi), grid, w = self.grid.ranges[axis], self.grid, self.width[axis]
        period = grid.period[axis]
        images = [s, s - period, s + period] if period is not None else [s, 2 * lo - s, 2 * hi - s]
        return sum(np.exp(-0.5 * ((grid.nodes(axis) - a[:, None]) / w) ** 2) for a in images)
