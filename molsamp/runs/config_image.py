"""Settings of the verbs that work on a model of pictures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from molsamp.runs.config import Config

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "image": {"demo": {}, "full": {"n": 1024, "compare": 256, "fine": 200}},
    "image bench": {"demo": {}, "full": {"n": 256, "fine": 200}},
}
"""Verb -> preset -> settings."""

Grid = Literal["uniform", "quadratic", "log-snr", "karras"]
GRID = "uniform | quadratic | log-snr | karras; none: that of the model's schedule"
MODEL = "digits | mnist | ideal:digits | ideal:mnist, a file of weights, or a folder of diffusers"
WEIGHTS = "start of the sha256 of the model's file"
LABEL = "class of every picture; none: no class, under guidance all in turn"
GUIDANCE = "w of D_u + w (D_c - D_u): 0 unconditional, 1 conditional"
THRESHOLD = "quantile of dynamic thresholding"
BATCH = "pictures carried side by side"
THREADS = "of torch; the same number gives the same bytes"


class ImageConfig(Config):
    """Settings of `molsamp image`."""

    verb: Literal["image"] = "image"
    model: str = Field("digits", description=MODEL)
    weights: str | None = Field(None, description=WEIGHTS)
    solver: str = Field("unipc", description="molsamp image --help names them all")
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(10, ge=1, description="network calls a picture")
    grid: Grid | None = Field(None, description=GRID)
    label: int | None = Field(None, description=LABEL)
    guidance: float | None = Field(None, description=GUIDANCE)
    threshold: float | None = Field(None, gt=0, lt=1, description=THRESHOLD)
    n: int = Field(256, ge=1, description="pictures")
    batch: int = Field(64, ge=1, description=BATCH)
    compare: int = Field(64, ge=0, description="of the pictures, how many also go along fine trajectories")
    fine: int = Field(100, ge=8, description="network calls of a fine trajectory")
    data: str | None = Field(None, description="digits | mnist, to compare with; none: those of the model")
    diverged: float = Field(0.1, ge=0, le=1, description="share of pictures that may diverge before the run fails")
    threads: int = Field(1, ge=1, description=THREADS)

    @property
    def named(self) -> dict[str, Any]:
        """The model and the solver."""
        return {"model": self.model, "solver": self.solver}

    @property
    def title(self) -> str:
        """The solver."""
        return self.solver


class BenchConfig(Config):
    """Settings of `molsamp image bench`."""

    verb: Literal["image bench"] = "image bench"
    model: str = Field("digits", description=MODEL)
    weights: str | None = Field(None, description=WEIGHTS)
    solvers: tuple[str, ...] = Field((), description="none: all that draw no noise")
    calls: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 6, 8, 10, 15, 20), min_length=1)
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    grid: Grid | None = Field(None, description=GRID)
    label: int | None = Field(None, description=LABEL)
    guidance: float | None = Field(None, description=GUIDANCE)
    threshold: float | None = Field(None, gt=0, lt=1, description=THRESHOLD)
    n: int = Field(64, ge=2, description="pictures, from the same noises for every solver")
    batch: int = Field(64, ge=1, description=BATCH)
    fine: int = Field(100, ge=8, description="network calls of a fine trajectory")
    threads: int = Field(1, ge=1, description=THREADS)

    @property
    def named(self) -> dict[str, Any]:
        """The model and the solvers."""
        return {"model": self.model, "solvers": list(self.solvers)}

    @property
    def title(self) -> str:
        """It has many solvers."""
        return "bench"
