"""Settings of the rate methods, one table a method, with the presets of the command line."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field

from molsamp.schema import Strict, Time

Positive = Annotated[Time, Field(gt=0)]


class RatesSettings(Strict):
    """What all rate methods have.

    Args:
        progress: a CV; none: how near to B, by the distance that its disc is told by. It rises from A to B, but for
            one with a period, which walkers in bins may go round either way.
        frame: ps between two looks; the rate is that of what is seen. None: a step of a toy, ten of a molecule.
        replicas: independent repetitions, whose scatter is the error.
    """

    progress: str | None = None
    frame: Positive | None = None
    replicas: int = Field(default=8, ge=4)


class SegmentsSettings(RatesSettings):
    """Walkers that go on in segments.

    Args:
        segment: ps between two resamplings.
        settle: ps that are not counted, at the beginning.
        production: ps that are.
        bins: of progress.
        edges: between them, rising; none: evenly from the minimum of A to that of B, or all round a period.
        recycle: what reaches B starts again in A, so that only the rate A -> B comes out, for half the walkers.
    """

    segment: Positive = 0.1
    settle: Positive = 20.0
    production: Positive = 60.0
    bins: int = Field(default=24, ge=3)
    edges: tuple[float, ...] | None = None
    recycle: bool = False


class WESettings(SegmentsSettings):
    """Weighted ensemble.

    Args:
        walkers: of every bin of each colour and replica.
    """

    walkers: int = Field(default=6, ge=1)


class MDSettings(SegmentsSettings):
    """Brute force: many walkers that are never split; all have one weight.

    Args:
        walkers: of each replica.
    """

    walkers: int = Field(default=32, ge=2)
    segment: Positive = 1.0
    settle: Positive = 20.0
    production: Positive = 2000.0


class FFSSettings(RatesSettings):
    """Forward flux.

    Args:
        walkers: in the basin, of each replica.
        settle, basin: ps of each walker in the basin that are not counted, and that are.
        interfaces: how many, evenly from the minimum of A to the edge of B; what is in A is before the first.
        levels: of progress, rising, in their place.
        trials: trajectories from each interface and replica.
        segment: ps of a rollout, after which it is seen what is decided.
    """

    walkers: int = Field(default=8, ge=1)
    settle: Positive = 20.0
    basin: Positive = 100.0
    interfaces: int = Field(default=12, ge=1)
    levels: tuple[float, ...] | None = None
    trials: int = Field(default=250, ge=2)
    segment: Positive = 0.1


METHODS: dict[str, type[pydantic.BaseModel]] = {"we": WESettings, "ffs": FFSSettings, "md": MDSettings}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "full": {
        "we": {"walkers": 12, "replicas": 16},
        "ffs": {"trials": 1000, "replicas": 16},
        "md": {"walkers": 128, "replicas": 16},
    },
}
