"""What a collective variable is: the protocol `CV` with its derivatives, several of them side by side, and `wrap`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class CV(ABC):
    """A function s(x) of k components.

    Attributes:
        names: one name per component.
        period: one period per component, None where the component is not periodic.
        unit: one unit per component: "rad", "nm", "nm^2", "1" (a pure number), "reduced units" (toys).
        atoms: the atoms it reads, 0-based.
    """

    names: tuple[str, ...]
    period: tuple[float | None, ...]
    unit: tuple[str, ...]
    atoms: tuple[int, ...] = ()

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """Values (n, k) of a batch of configurations."""

    def gradient(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k *event"]:
        """ds_j/dx of every component j, (n, k, *event), in units of the component per nm; one backward pass each."""
        with torch.inference_mode(False), torch.enable_grad():
            y = x.clone().detach().requires_grad_()
            columns = self(y).sum(0).unbind()
            rows = [torch.autograd.grad(s, y, retain_graph=j + 1 < len(columns)) for j, s in enumerate(columns)]
        return torch.stack([row for (row,) in rows], dim=1)

    def jvp(
        self, x: Float[Tensor, "n *event"], dx: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Values s (n, k) and their change ds = (ds/dx) dx (n, k) along dx, whatever k is in two backward passes.

        The first gives u^T ds/dx, which is linear in u; the second differentiates it by u along dx. So any function
        that autograd can differentiate twice will do, with no forward-mode rules.

        Args:
            x: configurations, (n, *event), nm.
            dx: displacements or velocities, shaped as x.
        Raises:
            ValueError: dx is not shaped as x.
        """
        if dx.shape != x.shape:
            raise ValueError(f"jvp: dx has shape {tuple(dx.shape)}; allowed is that of x, {tuple(x.shape)}")
        with torch.inference_mode(False), torch.enable_grad():
            y = x.clone().detach().requires_grad_()
            s = self(y)
            u = torch.zeros_like(s, requires_grad=True)
            (pulled,) = torch.autograd.grad(s, y, u, create_graph=True)
            (ds,) = torch.autograd.grad(pulled, u, dx.to(y))
        return s.detach(), ds

    def _gather(self, x: Tensor) -> tuple[Tensor, ...]:
        """Positions (n, 3) of each atom of this CV, after the range check."""
        self._check(x)
        return x[:, list(self.atoms)].unbind(1)

    def _check(self, x: Tensor) -> None:
        if max(self.atoms) >= x.shape[1]:
            raise ValueError(
                f"CV {self.names[0]!r}: atom {max(self.atoms)} does not exist; "
                f"0-based indices 0 to {x.shape[1] - 1} are allowed"
            )


class Stack(CV):
    """Several CVs side by side: columns, names, units and periods in the order given."""

    def __init__(self, cvs: Sequence[CV]):
        self.cvs = tuple(cvs)
        self.names = tuple(name for cv in self.cvs for name in cv.names)
        self.period = tuple(period for cv in self.cvs for period in cv.period)
        self.unit = tuple(unit for cv in self.cvs for unit in cv.unit)
        self.atoms = tuple(sorted({atom for cv in self.cvs for atom in cv.atoms}))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"CV names must be distinct, got {self.names}")

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        return torch.cat([cv(x) for cv in self.cvs], dim=1)


class Component(CV):
    """One component of a CV that has several, by its name.

    Raises:
        ValueError: the CV has no component of this name.
    """

    def __init__(self, cv: CV, name: str):
        if name not in cv.names:
            raise ValueError(f"CV component {name!r} does not exist; allowed are {', '.join(cv.names)}")
        self.cv, self.column = cv, cv.names.index(name)
        self.names, self.atoms = (name,), cv.atoms
        self.period, self.unit = (cv.period[self.column],), (cv.unit[self.column],)

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n 1"]:
        return self.cv(x)[:, self.column, None]


class Function(CV):
    """Any batched torch callable as a CV.

    Args:
        f: maps x (n, *event) to values (n, k), differentiably; row i may depend on x_i only.
        names: one per component.
        period: one per component, None where it is not periodic; default none is.
        unit: one per component, default "1".
        atoms: the atoms it reads, 0-based, where that is known.
    Raises:
        ValueError: names, periods and units differ in number; at the call: f does not return (n, k).
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        names: Sequence[str],
        period: Sequence[float | None] | None = None,
        unit: Sequence[str] | None = None,
        atoms: Sequence[int] = (),
    ):
        self.f, self.names, self.atoms = f, tuple(names), tuple(atoms)
        self.period = (None,) * len(self.names) if period is None else tuple(period)
        self.unit = ("1",) * len(self.names) if unit is None else tuple(unit)
        if not len(self.names) == len(self.period) == len(self.unit) > 0:
            raise ValueError(
                f"Function: got {len(self.names)} names, {len(self.period)} periods and {len(self.unit)} units; "
                "allowed is one of each per component"
            )

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        s = self.f(x)
        if s.shape != (len(x), len(self.names)):
            raise ValueError(
                f"CV {self.names[0]!r}: the function returned shape {tuple(s.shape)}; "
                f"allowed is (n, k) = ({len(x)}, {len(self.names)})"
            )
        return s


def wrap(d: Float[Tensor, "*n k"], period: Sequence[float | None]) -> Float[Tensor, "*n k"]:
    """Differences of CV values brought into [-P/2, P/2], column by column; columns without a period are unchanged.

    Args:
        d: differences, (..., k).
        period: one period P per column, or None.
    """
    if d.shape[-1] != len(period):
        raise ValueError(f"wrap needs one period per column, got {len(period)} for {d.shape[-1]} columns")
    P = d.new_tensor([math.inf if p is None else p for p in period])
    turns = torch.round(d / P)  # d / inf = 0: no turn
    return d - torch.where(P.isinf(), 0.0, turns * P)


def checked(name: str, atoms: Sequence[int], count: int | None = None) -> tuple[int, ...]:
    """Atom indices of a CV: integers, non-negative, distinct, `count` of them (default: one or more)."""
    atoms = tuple(int(a) for a in atoms)
    if len(atoms) != count if count is not None else not atoms:
        raise ValueError(f"CV {name!r}: needs {count or 'one or more'} atoms, got {len(atoms)}: {atoms}")
    if negative := [a for a in atoms if a < 0]:
        raise ValueError(f"CV {name!r}: atom {negative[0]} is negative; indices are 0-based")
    if len(set(atoms)) != len(atoms):
        raise ValueError(f"CV {name!r}: atoms must be distinct, got {atoms}")
    return atoms
