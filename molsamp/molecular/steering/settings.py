"""Settings of steering, with the presets of the command line."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field

from molsamp.engine.particles import Scheme
from molsamp.engine.steering import Kind
from molsamp.schema import Strict, Time

Positive = Annotated[Time, Field(gt=0)]


class FKSettings(Strict):
    """Feynman-Kac steering of walkers.

    Args:
        potential: how the reward is told on the way. "difference": of a share of the reward that grows, see `memory`;
            "max": of the highest reward so far; "sum": of the rewards so far. The last two are divided so that the
            potentials of a constant reward add up to it.
        memory: ps after which a walker that may still move has forgotten its reward: its share is
            exp(-(time left) / memory). None: the share grows in proportion to time.
        particles: of each population.
        replicas: populations that share nothing, whose scatter is the error.
        length: ps of each walker; none: that of the system's paths.
        every: ps between two boundaries, where walkers are weighed and may be resampled; none: a twentieth of `length`.
        below: a population is resampled where its effective size is below this share of it.
        scheme: of resampling.
        diverged: share of the walkers of a replica above which the run fails.
    """

    potential: Kind = "difference"
    memory: Positive | None = None
    particles: int = Field(default=64, ge=2)
    replicas: int = Field(default=16, ge=2)
    length: Positive | None = None
    every: Positive | None = None
    below: float = Field(default=0.5, gt=0, le=1)
    scheme: Scheme = "systematic"
    diverged: float = Field(default=0.05, ge=0, lt=1)


class LearnedSettings(Strict):
    """Feynman-Kac steering of a trained diffusion sampler; boundaries are between all steps.

    Args:
        particles, replicas, below, scheme, diverged: as of walkers.
        steps: of a sample, one network call each, and one more to look ahead. More make the sampler's own weights more
            even, up to what its networks have learnt.
        looks: ends that are drawn about the predicted one to tell what reward may be expected.
    """

    particles: int = Field(default=64, ge=2)
    replicas: int = Field(default=16, ge=2)
    steps: int = Field(default=60, ge=2)
    looks: int = Field(default=8, ge=1)
    below: float = Field(default=0.5, gt=0, le=1)
    scheme: Scheme = "systematic"
    diverged: float = Field(default=0.05, ge=0, lt=1)


METHODS: dict[str, type[pydantic.BaseModel]] = {"fk": FKSettings, "diffusion": LearnedSettings}

LARGE = {"particles": 256, "replicas": 32}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"demo": {}, "full": {"fk": LARGE, "diffusion": LARGE}}
