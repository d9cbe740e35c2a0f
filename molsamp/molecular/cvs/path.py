"""Path collective variables: progress along a sequence of references, and distance from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs.base import CV, checked, wrap
from molsamp.molecular.geometry import Superposition

Squared = Callable[[Tensor], Tensor]


class PathCV(CV):
    """Progress s and distance z along F references, with d_i(x) the squared distance to reference i = 1, ..., F.

    s = sum_i i exp(-lam d_i) / sum_i exp(-lam d_i),   z = -log(sum_i exp(-lam d_i)) / lam

    The components are NAME.sss, a pure number in [1, F], and NAME.zzz, in the unit of d. Build one by `of_frames` or
    `of_points`. Source: Branduardi, Gervasio, Parrinello, J. Chem. Phys. 126, 054103 (2007); names as PLUMED's PATHMSD.
    """

    period = (None, None)

    def __init__(self, squared: Squared, count: int, lam: float, unit: str, atoms: Sequence[int], name: str):
        if count < 2:
            raise ValueError(f"CV {name!r}: got {count} references; allowed are two or more")
        if not (math.isfinite(lam) and lam > 0):
            raise ValueError(f"CV {name!r}: got lam = {lam}; allowed are positive numbers (and different neighbours)")
        self.squared, self.count, self.lam = squared, count, float(lam)
        self.names, self.unit, self.atoms = (f"{name}.sss", f"{name}.zzz"), ("1", unit), tuple(atoms)

    @classmethod
    def of_frames(
        cls,
        frames: Float[Tensor, "F A 3"],
        lam: float | None = None,
        atoms: Sequence[int] | None = None,
        name: str = "path",
    ) -> PathCV:
        """A path of structures: d_i is the mean squared distance of `atoms` after optimal superposition, nm^2.

        Args:
            frames: all atoms of each reference, nm.
            lam: 1/nm^2; default 2.3 / the mean squared distance between neighbours.
            atoms: 0-based, default all.
        Raises:
            ValueError: fewer than two frames, equal neighbours, wrong atoms or lam.
        """
        frames = torch.as_tensor(frames, dtype=torch.float64)
        kept = checked(name, range(frames.shape[1]) if atoms is None else atoms)
        if max(kept) >= frames.shape[1]:
            raise ValueError(f"CV {name!r}: atom {max(kept)} does not exist; 0 to {frames.shape[1] - 1} are allowed")
        squared = _Superposed(frames[:, list(kept)], kept)
        return cls(squared, len(frames), _smoothing(squared(frames)) if lam is None else lam, "nm^2", kept, name)

    @classmethod
    def of_points(cls, cv: CV, points: Float[Tensor, "F k"], lam: float | None = None, name: str = "path") -> PathCV:
        """A path of points in the space of a CV: d_i = |s(x) - s_i|^2, differences of periodic components wrapped.

        Args:
            cv: of k components.
            points: its values along the path.
            lam: 1 / the unit of the CV squared; default 2.3 / the mean squared distance between neighbours.
        Raises:
            ValueError: fewer than two points, equal neighbours, a wrong number of columns, a wrong lam.
        """
        points = torch.as_tensor(points, dtype=torch.float64)
        if points.shape[1] != len(cv.names):
            raise ValueError(
                f"CV {name!r}: points have {points.shape[1]} columns; allowed is {len(cv.names)}: {cv.names}"
            )

        def between(s: Tensor) -> Tensor:
            return wrap(s[:, None] - points.to(s), cv.period).square().sum(-1)

        unit = f"{cv.unit[0]}^2" if len(set(cv.unit)) == 1 and cv.unit[0] != "1" else "1"
        lam = _smoothing(between(points)) if lam is None else lam
        return cls(lambda x: between(cv(x)), len(points), lam, unit, cv.atoms, name)

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n 2"]:
        exponent = -self.lam * self.squared(x)
        index = torch.arange(1, self.count + 1).to(exponent)
        s = (exponent.softmax(1) * index).sum(1)
        return torch.stack([s, -exponent.logsumexp(1) / self.lam], dim=1)


class _Superposed:
    """Mean squared distances (n, F) of `atoms` to F references (F, K, 3), each after its own optimal superposition.

    As in `geometry.rmsd` the rotation is a minimiser, so it enters as a constant and the gradient is still exact.
    """

    def __init__(self, references: Tensor, atoms: Sequence[int]):
        self.references, self.atoms = references, list(atoms)
        self.fits = [Superposition(reference) for reference in references]

    def __call__(self, x: Tensor) -> Tensor:
        if max(self.atoms) >= x.shape[1]:
            raise ValueError(
                f"path CV: atom {max(self.atoms)} does not exist; 0-based indices 0 to {x.shape[1] - 1} are allowed"
            )
        y = x[:, self.atoms]
        R, t = map(torch.stack, zip(*(fit(y.detach()) for fit in self._on(y)), strict=True))
        moved = torch.einsum("nka,fnba->nfkb", y, R) + t.transpose(0, 1)[:, :, None]
        return (moved - self.references.to(y)).square().sum(-1).mean(-1)

    def _on(self, y: Tensor) -> list[Superposition]:
        """The prepared superpositions; new ones for another device than the CPU."""
        if y.device.type == "cpu":
            return self.fits
        return [Superposition(reference.to(y.device)) for reference in self.references]


def _smoothing(squared: Tensor) -> float:
    """2.3 / the mean squared distance between neighbours: the diagonal above the main one; infinite if 0."""
    return float(2.3 / squared.diagonal(1).mean())
