"""Energies: batched potentials with exact forces, counted.

One call takes a batch ``x (n, *event)`` and returns ``E (n,)`` in kJ/mol and ``F = -dE/dx (n, *event)`` in kJ/mol/nm
(reduced units for toys), in the dtype and on the device of ``x``. Replicas never see one another: a NaN in one row
stays in that row, is never raised and never clamped.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor


class Energy(ABC):
    """A potential energy E(x) and its force F(x) = -dE/dx over a batch of configurations.

    Subclasses set `event` and `tier` and implement `_energy_force`. The counter `evaluations` grows by n for a batch
    of n, whichever of the three methods is called; its owner resets it by assignment.
    """

    tier: str = "analytic"
    event: tuple[int, ...]
    evaluations: int = 0

    @abstractmethod
    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E (n,) and F (n, *event) of a batch whose shape has been checked; does not count."""

    def energy_force(self, x: Float[Tensor, "n *event"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n *event"]]:
        """Energy and force of every configuration in one pass.

        Args:
            x: positions, (n, *event), nm.
        Returns:
            E (n,) kJ/mol and F (n, *event) kJ/mol/nm, dtype and device of x.
        Raises:
            ValueError: x is not a batch of `event`.
        """
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"{type(self).__name__} takes x of shape (n, {_commas(self.event)}), got {tuple(x.shape)}")
        self.evaluations += x.shape[0]
        return self._energy_force(x)

    def energy(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n"]:
        """Energy alone, kJ/mol; counts as one evaluation per configuration."""
        return self.energy_force(x)[0]

    def force(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """Force alone, kJ/mol/nm; counts as one evaluation per configuration."""
        return self.energy_force(x)[1]

    def __add__(self, other: "Energy") -> "Energy":
        return Sum(self, other)


class Sum(Energy):
    """E = sum_k E_k: restraints and biases joined to a molecular energy.

    One call counts once per configuration, on the Sum; the counters of the terms stay as they are.

    Args:
        terms: energies over the same event shape; nested sums are flattened.
    Raises:
        ValueError: the terms disagree on the event shape.
    """

    def __init__(self, *terms: Energy):
        self.terms: tuple[Energy, ...] = tuple(
            t for term in terms for t in (term.terms if isinstance(term, Sum) else (term,))
        )
        events = {term.event for term in self.terms}
        if len(events) != 1:
            raise ValueError(f"a Sum needs terms over one event shape, got {sorted(events)}")
        self.event = self.terms[0].event
        self.tier = " + ".join(term.tier for term in self.terms)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = self.terms[0]._energy_force(x)
        for term in self.terms[1:]:
            E_k, F_k = term._energy_force(x)
            E, F = E + E_k, F + F_k
        return E, F


def _commas(event: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in event)
