"""Settings of `molsamp image` where pictures are steered: by guides, a reward, a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from molsamp.runs.config import Config, Table
from molsamp.runs.config_image import GRID, GUIDANCE, LABEL, MODEL, THREADS, THRESHOLD, WEIGHTS, Grid

PRESETS: dict[str, Table] = {"demo": {}, "full": {"n": 512, "particles": 32}}
ASKS = ("guide", "reward", "operator", "measurement")
"""Settings any of which makes `molsamp image` a steered one; without them its settings are those of `ImageConfig`."""


class SteeredConfig(Config):
    """Settings of `molsamp image` with --guide, --reward or --operator."""

    verb: Literal["image"] = "image"
    model: str = Field("digits", description=MODEL)
    weights: str | None = Field(None, description=WEIGHTS)
    guide: str | None = Field(None, description="cfg:W | cfg++:W | apg:W | threshold:Q, parted by commas")
    reward: str | None = Field(None, description="brightness (mean, -1 to 1) | digit:K (log-probability, nats)")
    strength: float | None = Field(None, description="of the reward, nats; none: 20 of brightness, 1 of digit")
    operator: str | None = Field(None, description="inpaint | blur | downsample | radon | mri, with :NUMBER")
    measurement: str | None = Field(None, description="a .npy file; none: simulated from held-out pictures")
    measured: str | None = Field(None, description="start of the sha256 of the measurement's file")
    solver: str | None = Field(None, description="none: renoising (published DDS), ddpm (a reward) or dpm++2m")
    preset: Literal["demo", "full"] = "demo"
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(40, ge=1, description="network calls a picture, without those of rewards")
    grid: Grid | None = Field(None, description=GRID)
    label: int | None = Field(None, description=LABEL)
    guidance: float | None = Field(None, description=GUIDANCE)
    threshold: float | None = Field(None, gt=0, lt=1, description=THRESHOLD)
    n: int = Field(64, ge=1, description="pictures")
    particles: int = Field(16, ge=1, description="pictures a population, of one class and one measurement")
    every: int = Field(5, ge=1, description="rows between the boundaries where a reward weighs")
    potential: Literal["difference", "max", "sum"] = Field("difference", description="of the reward on the way")
    mode: Literal["published", "bayes"] = Field("published", description="of DDS; bayes: noise as in the posterior")
    spread: float = Field(0.05, gt=0, description="standard deviation of the noise in the measurement")
    weight: float = Field(1.0, gt=0, description="gamma of published DDS")
    inner: int = Field(5, ge=1, description="conjugate-gradient steps of published DDS")
    eta: float = Field(0.85, ge=0, le=1, description="share of the noise that the solver renoising draws anew")
    deviation: float = Field(0.5, gt=0, description="standard deviation of a pixel, for bayes and for CG alone")
    data: str | None = Field(None, description="digits | mnist, to measure; none: those of the model")
    diverged: float = Field(0.1, ge=0, le=1, description="share of pictures that may diverge before the run fails")
    threads: int = Field(1, ge=1, description=THREADS)

    @property
    def named(self) -> dict[str, Any]:
        """The model, the solver and what is asked."""
        asked = {name: getattr(self, name) for name in ("guide", "reward", "operator")}
        return {"model": self.model, "solver": self.solver, **{k: v for k, v in asked.items() if v is not None}}

    @property
    def title(self) -> str:
        """The solver."""
        return str(self.solver)


def asks(options: Mapping[str, Any], sets: Sequence[str], written: Table) -> bool:
    """Whether any layer of the settings steers.

    Raises:
        ValueError: a strength without a reward that it is of.
    """
    given = {name for name, value in options.items() if value is not None}
    given |= {item.partition("=")[0].strip() for item in sets} | {k for k, v in written.items() if v != "none"}
    if "strength" in given and not given & set(ASKS):
        raise ValueError("--strength: it is that of a reward; give --reward too")
    return bool(given & set(ASKS))
