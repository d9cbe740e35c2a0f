"""PLUMED input: lines such as `phi: TORSION ATOMS=5,7,9,15` to CVs.

Read are comments, labels (`label: ACTION` and `ACTION LABEL=label`), continued lines (`...`), values in braces, atom
ranges (`5-8`, `1-10:2`) and the actions in `ACTIONS`, in PLUMED's default units nm, kJ/mol, ps. Atoms are 1-based
here and nowhere else in the package. NOPBC is allowed and says nothing, since molecules here have no box.
Source: PLUMED 2 manual (syntax, names and formulas); Tribello et al., Comput. Phys. Commun. 185, 604 (2014).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.cvs.base import CV, Component
from molsamp.molecular.cvs.combination import Combination
from molsamp.molecular.cvs.contacts import CoordinationNumber, Shape, Switching
from molsamp.molecular.cvs.geometric import RMSD, Angle, Distance, Torsion
from molsamp.molecular.cvs.path import PathCV
from molsamp.schema import nearest

BASE = "PLUMED atoms are 1-based"
UNITS = {"LENGTH": "nm", "ENERGY": "kj/mol", "TIME": "ps", "MASS": "amu", "CHARGE": "e"}


def parse(
    text: str, atoms: int, folder: Path, known: Mapping[str, CV] | None = None, source: str = "PLUMED input"
) -> dict[str, CV]:
    """The CVs that PLUMED lines define, by label, in order.

    Args:
        text: the lines.
        atoms: how many atoms the molecule has.
        folder: where reference files are looked for.
        known: CVs defined elsewhere, to which COMBINE may refer by the names of their components.
        source: what the user knows the text by, for errors.
    Raises:
        ValueError: anything outside the above; names line, action, key, what was got and what is allowed.
    """
    found: dict[str, CV] = {}
    for statement in _statements(text, source):
        if statement.action == "UNITS":
            statement.default_units()
            continue
        found |= _defined(statement, None, atoms, folder, {**(known or {}), **found})
    return found


def parse_action(
    text: str, label: str, atoms: int, folder: Path, known: Mapping[str, CV] | None = None, source: str = "PLUMED input"
) -> CV:
    """The CV of one PLUMED action that is given without a label; arguments and errors as in `parse`."""
    statements = list(_statements(text, source))
    if len(statements) != 1:
        raise ValueError(f"{source}: got {len(statements)} PLUMED actions; allowed is one; {BASE}")
    statement = statements[0]
    if statement.label or "LABEL" in statement.values:
        got = statement.label or statement.values["LABEL"]
        raise statement.error("LABEL", got, f"none, since the CV's own name '{label}' is its label")
    return _defined(statement, label, atoms, folder, known or {})[label]


@dataclass(frozen=True)
class _Statement:
    """One action: where it stands, its label ("" if before the action there is none), keys with values, flags."""

    source: str
    line: int
    label: str
    action: str
    values: Mapping[str, str]
    flags: tuple[str, ...]

    def error(self, key: str, got: str, allowed: str) -> _Refused:
        return self.refusal(f"key '{key}': got {got!r}; allowed is {allowed}")

    def refusal(self, what: str) -> _Refused:
        return _Refused(f"{self.source}, line {self.line}: {self.action}: {what}; {BASE}")

    def own_label(self) -> str:
        """The label, from either place."""
        label = self.values.get("LABEL", self.label)
        if self.label and "LABEL" in self.values:
            raise self.error("LABEL", label, f"one label; this action already has '{self.label}'")
        if not re.fullmatch(r"[A-Za-z_][\w-]*", label):
            raise self.error("LABEL", label, "a word of letters, digits, '_' and '-', as in 'phi: TORSION ...'")
        return label

    def default_units(self) -> None:
        """Refuse any UNITS but the default."""
        for key, got in [*self.values.items(), *((flag, "") for flag in self.flags)]:
            if UNITS.get(key) != got.lower():
                default = UNITS.get(key, ", ".join(f"{k}={v}" for k, v in UNITS.items()))
                raise self.error(key, got, f"only PLUMED's default, {default}")

    def need(self, key: str) -> str:
        """The value of a key that must be there."""
        if key not in self.values:
            keys = ", ".join(ACTIONS[self.action].keys)
            raise self.refusal(f"key '{key}' is missing; got {', '.join(self.values) or 'no keys'}; allowed are {keys}")
        return self.values[key]

    def only(self, keys: tuple[str, ...], flags: tuple[str, ...]) -> None:
        """Refuse keys and flags that the action does not know."""
        allowed = [f"{key}=" for key in keys] + list(flags)
        for word in [f"{key}=" for key in self.values if key != "LABEL"] + list(self.flags):
            if word not in allowed:
                raise self.refusal(f"key '{word}' is unknown;{nearest(word, allowed)} Allowed: {', '.join(allowed)}")

    def numbers(self, key: str, count: int | None = None, default: float | None = None) -> list[float]:
        """Comma-separated finite numbers."""
        if key not in self.values and default is not None:
            return [default] * (count or 1)
        text = self.need(key)
        values = [_number(word) for word in text.split(",")]
        if any(value is None for value in values) or (count is not None and len(values) != count):
            raise self.error(key, text, f"{count or 'one or more'} finite number{'s' * (count != 1)}, by commas")
        return [value for value in values if value is not None]

    def integer(self, key: str, default: int) -> int:
        text = self.values.get(key, str(default))
        if not text.isdecimal():
            raise self.error(key, text, "a whole number of 0 or more")
        return int(text)


class _Refused(ValueError):
    """An error that already says where it stands."""


@dataclass(frozen=True)
class _Context:
    """What a builder needs beside its statement."""

    label: str
    atoms: int
    folder: Path
    known: Mapping[str, CV]


@dataclass(frozen=True)
class _Action:
    build: Callable[[_Statement, _Context], CV]
    keys: tuple[str, ...]
    flags: tuple[str, ...] = ("NOPBC",)


def _defined(
    statement: _Statement, label: str | None, atoms: int, folder: Path, known: Mapping[str, CV]
) -> dict[str, CV]:
    if statement.action not in ACTIONS:
        raise _Refused(
            f"{statement.source}, line {statement.line}: action '{statement.action}' is unknown;"
            f"{nearest(statement.action, ACTIONS)} Allowed: {', '.join(ACTIONS)}; {BASE}"
        )
    label = statement.own_label() if label is None else label
    if label in known:
        raise statement.error("LABEL", label, f"a new label; defined are {', '.join(known)}")
    action = ACTIONS[statement.action]
    statement.only(action.keys, action.flags)
    try:
        return {label: action.build(statement, _Context(label, atoms, folder, known))}
    except _Refused:
        raise
    except ValueError as error:
        raise statement.refusal(str(error)) from None


# --- text to statements ---------------------------------------------------------------------------------------------


def _statements(text: str, source: str) -> Iterator[_Statement]:
    """The actions of a text; one that is continued by "..." stands on the line of its first word."""
    start = 0
    pieces: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not pieces:
            start = number
            if words[-1] != "...":
                yield _statement(source, start, " ".join(words))
                continue
            pieces = [" ".join(words[:-1])]
        elif words[0] != "...":
            pieces.append(" ".join(words))
        else:
            first = pieces[0].split()[:2]
            if not {*words[1:]} <= {word.rstrip(":") for word in first}:
                raise ValueError(
                    f"{source}, line {number}: got {' '.join(words)!r}; allowed is '...' to end {first}; {BASE}"
                )
            yield _statement(source, start, " ".join(pieces))
            pieces = []
    if pieces:
        raise ValueError(f"{source}, line {start}: {pieces[0]!r} goes on after '...'; no line '...' ends it; {BASE}")


def _statement(source: str, line: int, text: str) -> _Statement:
    where = f"{source}, line {line}"
    words = re.findall(r"(?:[^\s{}]|\{[^{}]*\})+", text)
    label = words.pop(0).removesuffix(":") if words and words[0].endswith(":") else ""
    if not words or not re.fullmatch(r"(?:[^{}]|\{[^{}]*\})*", text):
        raise ValueError(
            f"{where}: got {text!r}; allowed is 'label: ACTION KEY=VALUE KEY={{WORD KEY=VALUE}} FLAG ...'; {BASE}"
        )
    action, *rest = words
    values, flags = _values(rest)
    if twice := [word for word in {*values} if sum(w.startswith(f"{word}=") for w in rest) > 1]:
        raise ValueError(f"{where}: {action}: key '{twice[0]}': got it twice; allowed is once; {BASE}")
    return _Statement(source, line, label, action, values, flags)


def _values(words: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """KEY=VALUE or KEY={VALUE} words as a dict, and the other words, which are flags."""
    pairs = (word.partition("=") for word in words if "=" in word)
    values = {key: value.removeprefix("{").removesuffix("}").strip() for key, _, value in pairs}
    return values, tuple(word for word in words if "=" not in word)


def _number(word: str) -> float | None:
    """A finite number, also as a multiple of pi ("-pi", "2*pi", "pi/2"); None where it is none."""
    form = re.fullmatch(r"([+-]?)(?:([\d.]+)\*?)?pi(?:/([\d.]+))?", word.strip())
    try:
        if form:
            sign, times, over = form.groups()
            value = float(f"{sign}1") * float(times or 1) * math.pi / float(over or 1)
        else:
            value = float(word)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


# --- actions --------------------------------------------------------------------------------------------------------


def _atoms(statement: _Statement, key: str, atoms: int, count: int | None = None) -> list[int]:
    """0-based atoms from a 1-based list such as "1,4-6,10-20:2"."""
    text = statement.need(key)
    found: list[int] = []
    for item in text.split(","):
        form = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", item.strip())
        first, last, stride = form.groups() if form else ("0", None, None)
        a, b, step = int(first), int(last or first), int(stride or 1)
        if not 1 <= a <= b <= atoms or step == 0:
            raise statement.error(key, item, f"an atom from 1 to {atoms}, or a range such as 5-8 or 1-10:2")
        found += range(a - 1, b, step)
    if count is not None and len(found) != count:
        raise statement.error(key, text, f"{count} atoms, and it names {len(found)}")
    if len(set(found)) < len(found):
        raise statement.error(key, text, "a list of distinct atoms")
    return found


def _of_atoms(kind: Callable[[list[int], str], CV], count: int) -> _Action:
    def build(statement: _Statement, given: _Context) -> CV:
        return kind(_atoms(statement, "ATOMS", given.atoms, count), given.label)

    return _Action(build, ("ATOMS",))


def _rmsd(statement: _Statement, given: _Context) -> CV:
    kind = statement.values.get("TYPE", "SIMPLE")
    if kind != "OPTIMAL":
        raise statement.error("TYPE", kind, "OPTIMAL (PLUMED's default, SIMPLE, does not rotate and is not offered)")
    atoms, frames = _references(statement, given)
    if len(frames) != 1:
        raise statement.error(
            "REFERENCE", statement.need("REFERENCE"), f"a file of one structure; it has {len(frames)}"
        )
    return RMSD(frames[0], atoms, given.label)


def _pathmsd(statement: _Statement, given: _Context) -> CV:
    [lam] = statement.numbers("LAMBDA", 1)
    if lam <= 0:
        raise statement.error("LAMBDA", statement.need("LAMBDA"), "a positive number in 1/nm^2")
    atoms, frames = _references(statement, given)
    if len(frames) < 2:
        raise statement.error("REFERENCE", statement.need("REFERENCE"), "a file of two or more structures; it has one")
    return PathCV.of_frames(frames, lam, atoms, given.label)


def _coordination(statement: _Statement, given: _Context) -> CV:
    a = _atoms(statement, "GROUPA", given.atoms)
    b = _atoms(statement, "GROUPB", given.atoms) if "GROUPB" in statement.values else None
    return CoordinationNumber(a, b, _switching(statement), given.label)


def _switching(statement: _Statement) -> Switching:
    """From SWITCH={KIND R_0=... D_0=... NN=... MM=...}, or from the same keys of the action itself."""
    inside, shape = statement, "RATIONAL"
    if "SWITCH" in statement.values:
        if mixed := [key for key in ("R_0", "D_0", "NN", "MM") if key in statement.values]:
            raise statement.error(mixed[0], statement.values[mixed[0]], "either SWITCH={...} or R_0=, D_0=, NN=, MM=")
        shape, *rest = statement.values["SWITCH"].split() or [""]
        if shape not in get_args(Shape):
            raise statement.error("SWITCH", shape, f"one of {', '.join(get_args(Shape))}, as in {{RATIONAL R_0=0.3}}")
        values, flags = _values(rest)
        inside = replace(statement, values=values, flags=flags)
        inside.only(("R_0", "D_0", *(("NN", "MM") if shape == "RATIONAL" else ())), ())
    [r0], [d0] = inside.numbers("R_0", 1), inside.numbers("D_0", 1, 0.0)
    return Switching(r0, d0, inside.integer("NN", 6), inside.integer("MM", 0), cast(Shape, shape))


def _combine(statement: _Statement, given: _Context) -> CV:
    components = {name: cv for cv in given.known.values() for name in cv.names}
    arguments = [name.strip() for name in statement.need("ARG").split(",")]
    for name in arguments:
        if name not in components:
            allowed = f"the CVs defined before it: {', '.join(components) or 'none'};{nearest(name, components)}"
            raise statement.error("ARG", name, allowed)
    if len(set(arguments)) < len(arguments):
        raise statement.error("ARG", statement.need("ARG"), "a list of distinct CVs")
    k, periodic = len(arguments), statement.need("PERIODIC")
    domain = None if periodic == "NO" else statement.numbers("PERIODIC", 2)
    return Combination(
        [cv if len((cv := components[name]).names) == 1 else Component(cv, name) for name in arguments],
        statement.numbers("COEFFICIENTS", k, 1.0),
        statement.numbers("PARAMETERS", k, 0.0),
        statement.numbers("POWERS", k, 1.0),
        None if domain is None else (domain[0], domain[1]),
        given.label,
    )


def _references(statement: _Statement, given: _Context) -> tuple[list[int], Float[Tensor, "F A 3"]]:
    """0-based atoms (the PDB's serial numbers) and structures in nm, other atoms at 0, of a REFERENCE file."""
    name = statement.need("REFERENCE")
    try:
        lines = (given.folder / name).read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise statement.error("REFERENCE", name, f"a PDB file; it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise statement.error("REFERENCE", name, "a PDB file; it holds bytes that are not ASCII text") from None
    frames: list[dict[int, list[float]]] = [{}]
    weights: set[tuple[float, float]] = set()
    for number, line in enumerate(lines, start=1):
        if line.startswith("END") and frames[-1]:  # END or ENDMDL
            frames.append({})
        if not line.startswith(("ATOM  ", "HETATM")):
            continue
        fields = [line[6:11], *(line[a : a + 8] for a in (30, 38, 46)), line[54:60], line[60:66]]
        values = [_number(field) for field in fields]
        if None in values or values[0] not in range(1, given.atoms + 1):
            allowed = f"serial 1 to {given.atoms}, x, y, z, occupancy and beta in the PDB's columns"
            raise statement.error("REFERENCE", f"{name}, line {number}: {line[:66]}", allowed)
        serial, x, y, z, occupancy, beta = (value for value in values if value is not None)
        frames[-1][int(serial) - 1] = [x / 10, y / 10, z / 10]
        weights.add((occupancy, beta))
    frames = [frame for frame in frames if frame]
    if not frames or len({tuple(frame) for frame in frames}) > 1:
        got = f"{name} with {len(frames)} structures"
        raise statement.error("REFERENCE", got, "a PDB file of structures of the same atoms, parted by END or ENDMDL")
    if len(weights) > 1 or min(min(weights)) <= 0:
        raise statement.error(
            "REFERENCE", f"{name} with occupancy and beta {sorted(weights)[:3]}", "one positive pair, such as 1.00 1.00"
        )
    atoms = sorted(frames[0])
    structures = torch.zeros(len(frames), given.atoms, 3, dtype=torch.float64)
    structures[:, atoms] = torch.tensor([[frame[atom] for atom in atoms] for frame in frames], dtype=torch.float64)
    return atoms, structures


ACTIONS = {
    "TORSION": _of_atoms(Torsion, 4),
    "ANGLE": _of_atoms(Angle, 3),
    "DISTANCE": _of_atoms(Distance, 2),
    "RMSD": _Action(_rmsd, ("REFERENCE", "TYPE")),
    "COORDINATION": _Action(_coordination, ("GROUPA", "GROUPB", "R_0", "D_0", "NN", "MM", "SWITCH")),
    "COMBINE": _Action(_combine, ("ARG", "COEFFICIENTS", "PARAMETERS", "POWERS", "PERIODIC"), ()),
    "PATHMSD": _Action(_pathmsd, ("REFERENCE", "LAMBDA")),
}
"""What each action is made by, with its keys and flags."""
