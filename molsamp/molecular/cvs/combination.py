"""Polynomial, above all linear, combinations of collective variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs.base import CV, Stack


class Combination(CV):
    """C = sum_i c_i (s_i - a_i)^p_i over the components s_i of one or more CVs.

    Its unit is that of the s_i where they share one and every power is 1, otherwise "1".

    Args:
        cvs: their components in order are the s_i.
        coefficients: c_i, default 1.
        offsets: a_i in units of s_i, default 0; the difference is not wrapped.
        powers: p_i, default 1; a negative s_i - a_i has no fractional power, the value is then NaN.
        domain: (lo, hi) of a periodic combination: C is brought into [lo, hi), its period is hi - lo.
    Raises:
        ValueError: numbers that do not fit the components, or no finite lo < hi.
    Source: PLUMED 2 manual, COMBINE.
    """

    def __init__(
        self,
        cvs: Sequence[CV],
        coefficients: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        powers: Sequence[float] | None = None,
        domain: tuple[float, float] | None = None,
        name: str = "combination",
    ):
        self.names, self.cv, self.domain = (name,), Stack(cvs), domain
        self.atoms = self.cv.atoms
        self.coefficients = self._row("coefficients", coefficients, 1.0)
        self.offsets = self._row("offsets", offsets, 0.0)
        self.powers = self._row("powers", powers, 1.0)
        if domain is not None and not (math.isfinite(domain[1] - domain[0]) and domain[0] < domain[1]):
            raise ValueError(f"CV {name!r}: domain: got {domain}; allowed is (lo, hi) with lo < hi")
        self.period = (None,) if domain is None else (domain[1] - domain[0],)
        plain = len(set(self.cv.unit)) == 1 and set(self.powers) == {1.0}
        self.unit = self.cv.unit[:1] if plain else ("1",)

    def _row(self, key: str, values: Sequence[float] | None, default: float) -> tuple[float, ...]:
        k = len(self.cv.names)
        row = (default,) * k if values is None else tuple(map(float, values))
        if len(row) != k or not all(map(math.isfinite, row)):
            raise ValueError(f"CV {self.names[0]!r}: {key}: got {row}; allowed are {k} numbers, for {self.cv.names}")
        return row

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n 1"]:
        s = self.cv(x)
        c, a, p = s.new_tensor([self.coefficients, self.offsets, self.powers])
        total = (c * (s - a) ** p).sum(1, keepdim=True)
        if self.domain is None:
            return total
        lo, hi = self.domain
        return total - (hi - lo) * torch.floor((total.detach() - lo) / (hi - lo))
