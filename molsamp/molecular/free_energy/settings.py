"""Settings of the free-energy methods, one table a method, with the presets of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

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


class GrowingSettings(MDSettings):
    """A bias that many walkers make together, and which is then frozen for the production.

    Args:
        build: ps of each walker while the bias grows.
        stride: ps between batches, one Gaussian a walker.
    """

    build: Positive = 1500.0
    stride: Positive = 1.0


class MetadynamicsSettings(GrowingSettings):
    """Well-tempered metadynamics.

    Args:
        height: of a whole batch, kJ/mol; each walker adds its share, so that their number does not matter.
        width: of the hills along each CV, in its units; by default a twentieth of its range.
        factor: gamma, the bias factor; inf for plain metadynamics.
    """

    height: float = Field(default=5.0, gt=0)
    width: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    factor: float = Field(default=10.0, gt=1)


class OPESSettings(GrowingSettings):
    """OPES; what a system has for the times of metadynamics holds for it too.

    Args:
        barrier: kJ/mol that are to be crossed, the depth of the bias; by default 16 kT.
        width: of the kernels along each CV, in its units; by default the distance of two nodes.
        factor: gamma, the bias factor; by default barrier / kT.
    """

    barrier: Annotated[float, Field(gt=0)] | None = None
    width: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    factor: Annotated[float, Field(gt=1)] | None = None


class UmbrellaSettings(MDSettings):
    """Umbrella sampling: a mesh of harmonic windows, each visited by all walkers, joined by MBAR.

    Args:
        windows: along each CV; by default 24 for one CV and 12 for two.
        width: standard deviation of a window's harmonic over the distance of two centres; its spring constant is
            kT / (width distance)^2.
        highest: kT above the lowest window up to which windows are joined, or more where it takes more to get from
            one state to another: walkers that go higher only learn to remember.
        walkers: independent repetitions of the whole calculation, 8 or more.
        settle: ps of each walker in each window that are not counted. Longer than walkers remember where they came
            from: what is left of that has the same sign in all windows, and adds up.
        production: ps of each walker in each window that are.
        snapshots: structures kept of each walker in each window.
    """

    windows: int | None = Field(default=None, ge=2)
    width: float = Field(default=0.45, gt=0, le=3)
    highest: float = Field(default=12.0, gt=0)
    walkers: int = Field(default=32, ge=8)
    settle: Positive = 8.0
    production: Positive = 40.0
    record: Positive = 8.0
    snapshots: int = Field(default=1, ge=1)


class ProcessSettings(Strict):
    """The clock of a diffusion sampler: at which noise levels it steps and learns (see `engine.bridges`).

    Args:
        kind: "ve" or "edm".
        smin, smax: of the base process, in units of x (nm for molecules).
        rho: of "edm".
    """

    kind: Literal["ve", "edm"] = "ve"
    smin: float = Field(default=0.001, gt=0)
    smax: float = Field(default=0.24, gt=0)
    rho: float = Field(default=3.0, gt=0)


class SourceSettings(Strict):
    """Where a diffusion sampler starts.

    Args:
        kind: "point" (0), "gaussian", or "harmonic" (bonded atoms together).
        width: standard deviation of a coordinate, or of a bond's, in units of x.
    """

    kind: Literal["point", "gaussian", "harmonic"] = "gaussian"
    width: float = Field(default=0.1, gt=0)


class NetworkSettings(Strict):
    """The networks of a diffusion sampler.

    Args:
        kind: "pairs", "painn" or "e3nn"; toys have a plain one.
        widths: of hidden layers, or channels of layers.
    """

    kind: Literal["pairs", "painn", "e3nn"] = "pairs"
    widths: tuple[Annotated[int, Field(gt=0)], ...] | None = None


class DiffusionSettings(MDSettings):
    """What all diffusion samplers have.

    Args:
        walkers: samples of the production, each a walker; settle and production as in "md".
        draws: samples of the estimate by samples alone, no dynamics after them; the first of them go on as walkers.
        steps: network calls of a sample.
        order: of the integrator, 1 or 2.
        warm: ps of dynamics of each of 64 walkers that the denoiser is warmed up with.
        warm_steps: gradient steps on it.
        epochs: of sampling and learning.
        samples: of an epoch.
        gradient_steps, batch: of an epoch.
        buffer: newest samples that are learnt from.
        learning_rate: at first.
        decay: share of it that is left at the end.
        average: decay of the running mean of the parameters that samples are drawn with.
        blend: b of the blend of targets, in units of x (see `learn.adjoint`); none: adjoint matching alone.
        turn: rad, the width along torsions in that blend; none: torsions are blended as all the rest.
        relax: ps of dynamics that a sample is relaxed by; none: no relaxation.
        relax_friction: 1/ps, of that dynamics.
        clip: longest gradient of an atom's E/kT, in 1 / units of x; none: as they are.
        frozen: share of the epochs, the last ones, that add no hills.
        process, source, network: see their tables.
    """

    walkers: int = Field(default=512, ge=2)
    settle: Positive = 20.0
    production: Positive = 200.0
    record: Positive = 10.0
    snapshots: int = Field(default=1, ge=1)
    draws: int = Field(default=4096, ge=2)
    steps: int = Field(default=50, ge=2)
    order: Literal[1, 2] = 2
    warm: Positive = 20.0
    warm_steps: int = Field(default=2000, ge=0)
    epochs: int = Field(default=160, ge=1)
    samples: int = Field(default=512, ge=1)
    gradient_steps: int = Field(default=100, ge=1)
    batch: int = Field(default=512, ge=1)
    buffer: int = Field(default=2048, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    decay: float = Field(default=0.05, gt=0, le=1)
    average: float = Field(default=0.98, ge=0, lt=1)
    blend: Annotated[float, Field(gt=0)] | None = 0.005
    turn: Annotated[float, Field(gt=0)] | None = 0.3
    relax: Positive | None = 4.0
    relax_friction: float = Field(default=2.0, gt=0)
    clip: Annotated[float, Field(gt=0)] | None = 1000.0
    frozen: float = Field(default=0.2, ge=0, le=1)
    process: ProcessSettings = ProcessSettings()
    source: SourceSettings = SourceSettings()
    network: NetworkSettings = NetworkSettings()


class ASSettings(DiffusionSettings):
    """Adjoint sampling: a source at one point."""

    source: SourceSettings = SourceSettings(kind="point")


class ASBSSettings(DiffusionSettings):
    """The adjoint Schroedinger bridge sampler."""


class WTASBSSettings(ASBSSettings):
    """ASBS with hills.

    Args:
        height: of the hills of an epoch together, kJ/mol.
        width: of the hills along each CV; by default a twentieth of its range.
        factor: gamma.
    """

    height: float = Field(default=20.0, ge=0)
    width: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    factor: float = Field(default=10.0, gt=1)


METHODS: dict[str, type[pydantic.BaseModel]] = {
    "metadynamics": MetadynamicsSettings,
    "opes": OPESSettings,
    "md": MDSettings,
    "umbrella": UmbrellaSettings,
    "as": ASSettings,
    "asbs": ASBSSettings,
    "wt-asbs": WTASBSSettings,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "full": {
        "metadynamics": {"build": 5000.0, "production": 30000.0},
        "opes": {"build": 5000.0, "production": 30000.0},
        "md": {"production": 30000.0},
        "umbrella": {"settle": 20.0, "production": 400.0, "record": 20.0},
    },
}


def method_settings(method: str, own: Mapping[str, Mapping[str, Any]], preset: str = "demo") -> Any:
    """Settings of a method for a system: the method's defaults < the system's own < the preset."""
    given = {**own.get(method, {}), **PRESETS[preset].get(method, {})}
    return validate(METHODS[method], given, f"methods.{method} of the system")
