"""NativeEnergy, the one door to the native tiers."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.bias import GridBias
from molsamp.molecular.energies import Energy
from molsamp.molecular.native.executor import Lanes
from molsamp.molecular.native.terms import Terms

if TYPE_CHECKING:
    import openmm

    from molsamp.molecular.native.torch_tier import TorchForces

TIERS = ("auto", "lanes", "torch")


class NativeEnergy(Energy):
    """Energy and forces of n replicas of one molecule, exactly those of its openmm.System; use `from_openmm`.

    Two tiers compute the same terms. "lanes": numba, one replica a SIMD lane, CPU, whole rollouts without Python.
    "torch": any device. "auto" takes lanes for positions on the CPU. `differentiable` is torch in either.

    Singular geometries give inf or NaN in their own replica: coincident atoms, collinear torsions, overflow. A
    collinear angle has zero force, as in OpenMM. Work buffers are reused: one object per thread.

    Args:
        terms: what the System amounts to.
        dtype: precision of the computation; positions are cast to it and results back to theirs.
        tier: "auto", "lanes" or "torch".
        threads: of the lanes; all cores unless given. The results do not depend on it.
        compile: of the torch tier, see `torch_tier.TorchForces`.
    Raises:
        ValueError: an unknown tier.
    """

    def __init__(
        self,
        terms: Terms,
        dtype: torch.dtype = torch.float64,
        tier: Literal["auto", "lanes", "torch"] | str = "auto",
        threads: int | None = None,
        compile: bool = False,
    ):
        if tier not in TIERS:
            raise ValueError(f"native tier {tier!r} is unknown; allowed are {', '.join(TIERS)}")
        if tier == "auto":
            tier = "lanes" if find_spec("numba") else "torch"
        self.terms, self.dtype, self.event, self.compile = terms, dtype, (terms.atoms, 3), compile
        self.tier = f"{tier}-{str(dtype).removeprefix('torch.')}"
        self.executor = Lanes(terms, dtype, threads, self._count) if tier == "lanes" else None

    @classmethod
    def from_openmm(
        cls, system: openmm.System, dtype: torch.dtype = torch.float64, tier: str = "auto", threads: int | None = None
    ) -> NativeEnergy:
        """The native twin of an openmm.System.

        Args:
            system: flexible bonds, no cutoff, no motion remover; see `reading` for the forces.
            dtype, tier, threads: as in the class.
        Raises:
            ValueError: the system holds anything that cannot be done exactly; names the force class and its index.
        """
        from molsamp.molecular.native.reading import read

        return cls(read(system), dtype, tier, threads)

    def __add__(self, other: Energy) -> Energy:
        """With a grid bias on torsions and distances: one native energy, so that rollouts stay native."""
        if isinstance(other, GridBias) and other.native:
            terms = replace(self.terms, grids=self.terms.grids.joined(other.grids()))
            threads = self.executor.threads if self.executor else None
            return NativeEnergy(terms, self.dtype, self.tier.partition("-")[0], threads)
        return super().__add__(other)

    def _count(self, evaluations: int) -> None:
        self.evaluations += evaluations

    @cached_property
    def _torch(self) -> TorchForces:
        from molsamp.molecular.native.torch_tier import TorchForces

        return TorchForces(self.terms, self.dtype, self.compile)

    def differentiable(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, " n"]:
        """E (n,) in kJ/mol as autograd can see through it: forces by its gradient, Hessians by two; counted."""
        self._count(len(x))
        return self._torch.differentiable(x)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.executor is not None and x.device.type == "cpu":
            return self.executor.energy_force(x)
        return self._torch.energy_force(x)
