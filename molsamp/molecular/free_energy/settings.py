"""Settings of the free-energy methods, one table a method, with the presets of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Field

from molsamp.schema import Strict, Time, validate

Positive = Annotated[Time, Field(gt=0)]


class GridSettings(Strict):
    """Where free energies and biases are known.

    Args:
        nodes: on each axis.
        ranges: (low, high) of each CV; a periodic CV has its period, and any other needs one.
    """

    nodes: int = Field(default=72, ge=4)
    ranges: tuple[tuple[float, float], ...] | None = None


class MDSettings(Strict):
    """Unbiased dynamics of many walkers; F from the histogram of what they visit.

    Args:
        walkers: side by side, the states of the system in turn at first.
        settle: ps of each walker that are not counted, at the beginning of the production.
        production: ps of each walker that are.
        frame: ps between counted frames.
        record: ps between lines of COLVAR.
        snapshots: structures kept of each walker.
        grid: see its table.
    """

    walkers: int = Field(default=64, ge=2)
    settle: Positive = 100.0
    production: Positive = 3000.0
    frame: Positive = 0.1
    record: Positive = 20.0
    snapshots: int = Field(default=8, ge=1)
    grid: GridSettings = GridSettings()


class MetadynamicsSettings(MDSettings):
    """Well-tempered metadynamics by many walkers on one bias, which is then frozen for the production.

    Args:
        build: ps of each walker while the bias grows.
        stride: ps between batches of hills, one hill a walker.
        height: of a whole batch, kJ/mol; each walker adds its share, so that their number does not matter.
        width: of the hills along each CV, in its units; by default a twentieth of its range.
        factor: gamma, the bias factor; inf for plain metadynamics.
    """

    build: Positive = 1500.0
    stride: Positive = 1.0
    height: float = Field(default=5.0, gt=0)
    width: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    factor: float = Field(default=10.0, gt=1)


class UmbrellaSettings(MDSettings):
    """Umbrella sampling: a mesh of harmonic windows, each visited by all walkers, joined by MBAR.

    Args:
        windows: along each CV; by default 24 for one CV and 12 for two.
        width: standard deviation of a window's harmonic over the distance of two centres; its spring constant is
            kT / (width distance)^2.
        walkers: independent repetitions of the whole calculation, 8 or more.
        settle: ps of each walker in each window that are not counted.
        production: ps of each walker in each window that are.
        snapshots: structures kept of each walker in each window.
    """

    windows: int | None = Field(default=None, ge=2)
    width: float = Field(default=0.45, gt=0, le=3)
    walkers: int = Field(default=32, ge=8)
    settle: Positive = 8.0
    production: Positive = 40.0
    record: Positive = 8.0
    snapshots: int = Field(default=1, ge=1)


METHODS: dict[str, type[pydantic.BaseModel]] = {
    "metadynamics": MetadynamicsSettings,
    "md": MDSettings,
    "umbrella": UmbrellaSettings,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "full": {
        "metadynamics": {"build": 5000.0, "production": 30000.0},
        "md": {"production": 30000.0},
        "umbrella": {"settle": 20.0, "production": 400.0, "record": 20.0},
    },
}


def method_settings(method: str, own: Mapping[str, Mapping[str, Any]], preset: str = "demo") -> Any:
    """Settings of a method for a system: the method's defaults < the system's own < the preset."""
    given = {**own.get(method, {}), **PRESETS[preset].get(method, {})}
    return validate(METHODS[method], given, f"methods.{method} of the system")
