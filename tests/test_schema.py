"""The door of every loader: one line that names the source, the key, what was got and what is allowed."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from molsamp.schema import Length, Strict, Temperature, Time, nearest, quantity, validate


class Inner(Strict):
    width: Length = 0.1
    kind: Literal["force", "scale"] = "force"
    heat: Temperature | None = None


class Outer(Strict):
    steps: int = Field(ge=1)
    timestep: Time = 0.001
    inner: Inner = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)
    listed: list[Inner] = Field(default_factory=list)
    other: Inner = Field(default=Inner(), alias="tps-dps")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "stepz": 2}, "f.toml: key 'stepz' is unknown; did you mean 'steps'? Allowed: inner, listed,"),
        ({"steps": 1, "inner": {"widht": 2}}, "key 'inner.widht' is unknown; did you mean 'inner.width'?"),
        ({"steps": 1, "named": {"a": {"hea": 2}}}, "key 'named.a.hea' is unknown; did you mean 'named.a.heat'?"),
        ({"steps": 1, "listed": [{}, {"q": 2}]}, "key 'listed.1.q' is unknown; Allowed: heat, kind, width"),
        ({"steps": 1, "tps-dps": {"kin": 2}}, "key 'tps-dps.kin' is unknown; did you mean 'tps-dps.kind'?"),
        ({"step": 1}, "key 'step' is unknown; did you mean 'steps'?"),
        ({}, "key 'steps' is missing"),
        ({"steps": -5}, "key 'steps': got -5; should be greater than or equal to 1"),
        ({"steps": 1, "timestep": "2 nm"}, "key 'timestep': got '2 nm'; allowed is a number in ps, or with a unit: fs"),
        ({"steps": 1, "timestep": float("nan")}, "key 'timestep': got nan; should be a finite number"),
        ({"steps": 1, "inner": {"kind": "scalar"}}, "'force' or 'scale'; did you mean 'scale'?"),
        ({"steps": 1, "inner": 5}, "key 'inner': got 5; should be a valid dictionary"),
    ],
)
def test_errors_are_one_clear_line(data, message):
    with pytest.raises(ValueError) as error:
        validate(Outer, data, "f.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("f.toml: ")
    assert "\n" not in str(error.value)


def test_values_and_units_are_converted_once():
    made = validate(Outer, {"steps": "12", "timestep": "2 fs", "inner": {"width": "3 A", "heat": "none"}}, "f.toml")
    assert (made.steps, made.timestep, made.inner.width, made.inner.heat) == (12, 0.002, 0.3, None)
    with pytest.raises(ValueError):
        made.steps = 3


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("7 fs", "ps", 0.007),
        ("1 kcal/mol", "kJ/mol", 4.184),
        ("1e3", "nm", 1000.0),
        (3, "K", 3.0),
        ("1 /ps", "1/ps", 1.0),
    ],
)
def test_quantities_are_correctly_rounded(text, unit, value):
    assert quantity(text, unit) == value


@pytest.mark.parametrize("bad", ["", "fs", "1 parsec", "1/0 fs", True, None, "1,5 fs"])
def test_bad_quantities_are_refused(bad):
    with pytest.raises(ValueError, match="allowed is a number in ps"):
        quantity(bad, "ps")


def test_openmm_quantities_come_in_through_the_same_door():
    unit = pytest.importorskip("openmm.unit")
    assert quantity(2.5 * unit.femtoseconds, "ps") == 0.0025
    assert quantity(4.0 * unit.angstroms, "nm") == 0.4


def test_nearest_says_nothing_rather_than_something_far():
    assert nearest("xyzzy", ["steps", "seed"]) == ""
