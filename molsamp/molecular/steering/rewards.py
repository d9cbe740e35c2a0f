"""Rewards of molecules by words: a quantity held near a value, or raised; several of them add up.

    QUANTITY=VALUE+-WIDTH       -(s - VALUE)^2 / (2 WIDTH^2), periods taken into account
    QUANTITY*SLOPE              SLOPE s, nats per unit of s

in nats. Quantities, with 0-based atoms:

    NAME                        a CV of the system
    state:NAME                  distance to the minimum of a state, in the metric of the state
    noe:I-J,K-L,..              (mean of r^-6 over the pairs)^(-1/6), nm: what a cross peak of NMR is taken to measure
    pocket:I,J,K-L/M,N,..       distance between the middles of two groups of atoms, nm; K-L are the atoms from K to L

The first is the log likelihood of a measurement VALUE with a normal error WIDTH, so that steering is inference. Each
configuration is held to it, not the average over all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs import CV, Distances, Function, wrap
from molsamp.molecular.schema import check_known
from molsamp.molecular.system import System
from molsamp.schema import UNITS, nearest, quantity

FORM = "QUANTITY=VALUE+-WIDTH or QUANTITY*SLOPE"
WORDS = "a CV, state:NAME, noe:I-J,K-L or pocket:I,J/K,L"
SHARE = 20  # of what a CV spans: the width unless one is given


@dataclass(frozen=True)
class Near:
    """-(s - value)^2 / (2 width^2).

    Args:
        cv: s, of one component.
        value, width: in the unit of s; width above 0.
    """

    cv: CV
    value: float
    width: float

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """Nats, float64."""
        off = wrap(self.cv(x).double() - self.value, self.cv.period)[:, 0]
        return -0.5 * (off / self.width).square()


@dataclass(frozen=True)
class Raised:
    """slope s, for a quantity without a period.

    Args:
        cv: s, of one component.
        slope: nats per unit of s.
    """

    cv: CV
    slope: float

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """Nats, float64."""
        return self.slope * self.cv(x).double()[:, 0]


@dataclass(frozen=True)
class Tilt:
    """strength times the sum of some terms.

    Args:
        terms: one or more.
        strength: their factor.
    """

    terms: tuple[Near | Raised, ...]
    strength: float = 1.0

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """Nats, float64."""
        return self.strength * torch.stack([term(x) for term in self.terms]).sum(0)

    @classmethod
    def of(cls, system: System, texts: Sequence[str], strength: float = 1.0) -> Tilt:
        """The sum of the rewards that these texts name.

        Raises:
            ValueError: no text; one that is not of the form above, names nothing, or is not finite at a state.
        """
        if not texts:
            raise ValueError(f"--reward: is missing; allowed is {FORM}, where QUANTITY is {_words(system)}")
        tilt = cls(tuple(_term(system, text) for text in texts), strength)
        for name, state in system.states.items():
            if not math.isfinite(told := float(tilt(state.x[None])[0])):
                raise ValueError(f"--reward: {', '.join(texts)} is {told} in the state {name}; it must be finite")
        return tilt


def _term(system: System, text: str) -> Near | Raised:
    found = re.fullmatch(r"\s*([^=*]+?)\s*([=*])\s*(.+?)\s*", text)
    if found is None:
        raise ValueError(f"--reward: got '{text}'; allowed is {FORM}, where QUANTITY is {_words(system)}")
    left, sign, right = found.groups()
    try:
        cv = _quantity(system, left)
        return _raised(cv, right) if sign == "*" else _near(system, cv, right)
    except ValueError as error:
        raise ValueError(f"--reward '{text}': {error}") from None


def _near(system: System, cv: CV, right: str) -> Near:
    value, given, width = right.replace("±", "+-").partition("+-")
    at, span = _number(value, cv.unit[0]), system.span(cv.names[0], cv.period[0])
    if given:
        wide = _number(width, cv.unit[0])
    elif span is not None:
        wide = (span[1] - span[0]) / SHARE
    else:
        raise ValueError(f"has no range to take a width from; allowed is {cv.names[0]}={value}+-WIDTH")
    if not wide > 0.0:
        raise ValueError(f"the width must be above 0, got {wide:g}")
    return Near(cv, at, wide)


def _raised(cv: CV, right: str) -> Raised:
    if cv.period[0] is not None:
        raise ValueError(f"{cv.names[0]} has a period and cannot be raised; hold it near a value")
    return Raised(cv, _number(right, "1"))


def _number(text: str, unit: str) -> float:
    """A finite number; where its unit has names perhaps with one of them behind it, as in "60 deg"."""
    if unit in UNITS:
        return quantity(text.strip(), unit)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"got '{text}'; allowed is a finite number")
    return found


def _quantity(system: System, text: str) -> CV:
    if text in system.cvs:
        return system.cvs[text]
    kind, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(f"{system.name} has no CV '{text}';{nearest(text, system.cvs)} Allowed: {_words(system)}")
    if kind == "state":
        return _state(system, text, rest)
    if kind not in ("noe", "pocket"):
        raise ValueError(f"'{kind}:' is unknown;{nearest(kind, ('state', 'noe', 'pocket'))} Allowed: {_words(system)}")
    if system.masses is None:
        raise ValueError(f"{system.name} is a toy without atoms")
    return (_noe if kind == "noe" else _pocket)(text, rest, system.event[0])


def _state(system: System, name: str, state: str) -> CV:
    check_known(name, state, system.states, "states")
    unit = "nm" if system.states[state].metric == "rmsd" else next(cv.unit[0] for cv in system.cvs.values())
    return Function(lambda x: system.distance(x, state)[:, None], (name,), unit=(unit,))


def _noe(name: str, text: str, count: int) -> CV:
    if not re.fullmatch(r"\d+-\d+(,\d+-\d+)*", text):
        raise ValueError(f"got '{text}'; allowed are pairs of atoms, noe:I-J,K-L")
    pairs = [(int(i), int(j)) for i, j in (pair.split("-") for pair in text.split(","))]
    _check(max(atom for pair in pairs for atom in pair), count)
    distances = Distances(pairs, name)

    def average(x: Tensor) -> Tensor:
        return distances(x).double().pow(-6).mean(1, keepdim=True).pow(-1.0 / 6.0)

    return Function(average, (name,), unit=("nm",), atoms=distances.atoms)


def _pocket(name: str, text: str, count: int) -> CV:
    atoms = r"\d+(-\d+)?(,\d+(-\d+)?)*"
    if not re.fullmatch(f"{atoms}/{atoms}", text):
        raise ValueError(f"got '{text}'; allowed are two groups of atoms, pocket:I,J,K-L/M,N")
    a, b = (_group(side, count) for side in text.split("/"))

    def apart(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x[:, b].mean(1) - x[:, a].mean(1), dim=-1, keepdim=True)

    return Function(apart, (name,), unit=("nm",), atoms=sorted({*a, *b}))


def _group(text: str, count: int) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        _check(int(last or first), count)
        found += range(int(first), int(last or first) + 1)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"got the atoms '{text}'; they must be distinct, ranges rising")
    return found


def _check(atom: int, count: int) -> None:
    if atom >= count:
        raise ValueError(f"atom {atom} does not exist; 0-based indices 0 to {count - 1} are allowed")


def _words(system: System) -> str:
    return f"{WORDS}; CVs are {', '.join(system.cvs) or 'none'}"
