"""One small schema helper for every loader: pydantic models in, one clear line out.

Contract: a settings table is a `Strict` model. `validate` turns a plain dict (from TOML, or from `--set`)
into it, or raises a `ValueError` of one line: the source, the dotted key, what was got and what is allowed.
Quantities with units are converted once, here: fields annotated `Time`, `Length`, `Temperature`,
`MolarEnergy`, `Rate`, `Angle`, `Mass` hold plain floats in ps, nm, K, kJ/mol, 1/ps, rad, Da.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, TypeVar, Union

import pydantic
from pydantic import BeforeValidator

_PI = Fraction(math.pi)
UNITS: dict[str, dict[str, Fraction]] = {
    "ps": {
        "fs": Fraction(1, 1000),
        "ps": Fraction(1),
        "ns": Fraction(10**3),
        "us": Fraction(10**6),
        "µs": Fraction(10**6),
        "ms": Fraction(10**9),
        "s": Fraction(10**12),
    },
    "nm": {
        "pm": Fraction(1, 1000),
        "A": Fraction(1, 10),
        "Å": Fraction(1, 10),
        "angstrom": Fraction(1, 10),
        "nm": Fraction(1),
    },
    "K": {"K": Fraction(1)},
    "kJ/mol": {
        "J/mol": Fraction(1, 1000),
        "kJ/mol": Fraction(1),
        "kcal/mol": Fraction(4184, 1000),
        "eV": Fraction("96.48533212331"),
    },
    "1/ps": {
        "1/fs": Fraction(1000),
        "/fs": Fraction(1000),
        "1/ps": Fraction(1),
        "/ps": Fraction(1),
        "1/ns": Fraction(1, 1000),
    },
    "rad": {"rad": Fraction(1), "deg": _PI / 180, "degrees": _PI / 180, "°": _PI / 180},
    "Da": {"Da": Fraction(1), "amu": Fraction(1)},
}
"""For each house unit, the unit names accepted at the door and their size in that house unit."""

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Strict(pydantic.BaseModel):
    """Base of every settings table: unknown keys are refused, instances are frozen, numbers are finite.

    TOML has no null, so the string "none" stands for it in fields that may be None.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _none_from_toml(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        optional = {n for n, f in cls.model_fields.items() if type(None) in typing.get_args(f.annotation)}
        return {k: None if k in optional and v == "none" else v for k, v in data.items()}


def quantity(value: Any, unit: str) -> float:
    """Convert a number, a string such as "2 fs", or an `openmm.unit.Quantity` to a plain float in `unit`.

    Args:
        value: a number (already in `unit`) or text "NUMBER UNIT"; the conversion is correctly rounded.
        unit: the house unit: one of "ps", "nm", "K", "kJ/mol", "1/ps", "rad", "Da".
    Raises:
        ValueError: not a finite number, or a unit of another dimension.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(f"got {value!r}; allowed is a number in {unit}")
    if isinstance(value, (int, float)):
        return float(value)
    number, _, name = str(value).strip().partition(" ")  # str of an OpenMM Quantity reads "2 fs"
    allowed = UNITS[unit]
    factor = allowed.get(name.strip() or unit)
    try:
        if factor is None:
            raise ValueError
        return float(Fraction(number) * factor)
    except (ValueError, ZeroDivisionError, OverflowError):
        names = ", ".join(allowed)
        raise ValueError(f"got {value!r}; allowed is a number in {unit}, or with a unit: {names}") from None


Time = Annotated[float, BeforeValidator(partial(quantity, unit="ps"))]
Length = Annotated[float, BeforeValidator(partial(quantity, unit="nm"))]
Temperature = Annotated[float, BeforeValidator(partial(quantity, unit="K"))]
MolarEnergy = Annotated[float, BeforeValidator(partial(quantity, unit="kJ/mol"))]
Rate = Annotated[float, BeforeValidator(partial(quantity, unit="1/ps"))]
Angle = Annotated[float, BeforeValidator(partial(quantity, unit="rad"))]
Mass = Annotated[float, BeforeValidator(partial(quantity, unit="Da"))]


def validate(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """Build `model` from `data`, or raise one clear line.

    Args:
        model: the pydantic model class.
        data: plain values, nested tables as dicts.
        source: what the user knows the data by, for example a file name.
    Raises:
        ValueError: "SOURCE: key 'a.b' is unknown; did you mean 'a.c'? Allowed: ..." or
            "SOURCE: key 'a.b': got ...; should be ...".
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        # A misspelt key is reported before the missing one it stands for.
        problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        more = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
        raise ValueError(f"{source}: {_sentence(model, data, problems[0])}{more}") from None


def nearest(word: str, allowed: Iterable[str], prefix: str = "") -> str:
    """Return " did you mean 'PREFIX+X'?" for the closest allowed word X, or "" when none is close."""
    by_lower = {a.lower(): a for a in sorted(allowed)}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" did you mean '{prefix}{by_lower[close[0]]}'?" if close else ""


def _sentence(model: type[pydantic.BaseModel], data: Mapping[str, Any], problem: Any) -> str:
    where = _keys_only(problem["loc"], data)
    key = ".".join(map(str, where))
    if problem["type"] == "extra_forbidden":
        allowed = _fields_at(model, where[:-1])
        guess = nearest(str(where[-1]), allowed, prefix="".join(f"{part}." for part in where[:-1]))
        return f"key '{key}' is unknown;{guess} Allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if not where:
        return message
    if message.startswith("got "):
        return f"key '{key}': {message}"
    guess = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        guess = nearest(problem["input"], re.findall("'([^']*)'", problem["ctx"]["expected"]))
    return f"key '{key}': got {_short(problem['input'])}; {message}{';' * bool(guess)}{guess}"


def _keys_only(loc: tuple[int | str, ...], data: Any) -> tuple[int | str, ...]:
    """Drop the names that pydantic adds for members of unions; keep keys of `data` and a missing last one."""
    keys: list[int | str] = []
    for i, part in enumerate(loc):
        in_table = isinstance(data, Mapping) and part in data
        in_list = isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        if in_table or in_list:
            data = data[part]
        elif not (isinstance(data, Mapping) and i == len(loc) - 1):
            continue
        keys.append(part)
    return tuple(keys)


def _fields_at(model: type[pydantic.BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """List the key names of the table that sits at the dotted place `where` inside `model`."""
    tables = [model]
    annotation: Any = None
    for part in where:
        inside = [keys[part] for keys in map(_keys, tables) if part in keys] or [annotation]
        annotation = inside[0]
        tables = [m for a in inside for m in _models_in(a)]
    return sorted({str(name) for t in tables for name in _keys(t)})


def _keys(table: type[pydantic.BaseModel]) -> dict[int | str, Any]:
    return {field.alias or name: field.annotation for name, field in table.model_fields.items()}


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (Union, types.UnionType, Annotated, dict, list, tuple):
        return [m for a in typing.get_args(annotation) for m in _models_in(a)]
    return []


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
