"""The verbs of the command line that make a run: how each finds its settings, its job, and what the job found.

Contract: `settle` and `make` find everything that can be wrong with the input, before there is a folder. What `analyse`
returns can `save` itself to a folder and give its `summary` for result.json and its `figures`, the data of the report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from molsamp.runs import config as settings
from molsamp.runs import config_steered
from molsamp.runs.config import Config, FreeEnergyConfig, PathsConfig, RatesConfig, SteerConfig, Table
from molsamp.runs.config_image import PRESETS, BenchConfig, ImageConfig
from molsamp.runs.config_steered import SteeredConfig
from molsamp.schema import nearest


class Verb(ABC):
    """What the command line can do with a system or a model: its subject."""

    name: str

    @abstractmethod
    def settle(
        self, options: Mapping[str, Any], sets: Sequence[str], file: Path | None, written: Table
    ) -> tuple[Config, Any]:
        """(the settings in force, the subject), from the command line and what is `written` in `file`.

        Raises:
            ValueError: a setting that is not allowed, or a subject that cannot be had.
        """

    @abstractmethod
    def make(self, config: Config, subject: Any) -> Any:
        """The job, a `learn.drive.Job`.

        Raises:
            ValueError: settings that do not go together.
        """

    @abstractmethod
    def analyse(self, job: Any, config: Config) -> Any:
        """What a finished job found."""

    @abstractmethod
    def describe(self, subject: Any) -> dict[str, Any]:
        """What the figures need of the subject, for figures/states.json."""

    def rescue(self, job: Any, folder: Path, config: Config) -> str:
        """Save what is good of a job that failed; returns a remark for the user."""
        return ""


@dataclass(frozen=True)
class OfSystem(Verb):
    """A verb on a molecule or a toy.

    Args:
        name: as on the command line.
        room: the module that does it: `settings.METHODS` and `settings.PRESETS`, `make`, `analysis.analyse`.
        config: its settings.
    """

    name: str
    room: str
    config: type[Config]

    def settle(
        self, options: Mapping[str, Any], sets: Sequence[str], file: Path | None, written: Table
    ) -> tuple[Config, Any]:
        """As `Verb`; the system's own settings stand below the preset."""
        from molsamp.molecular.system import load

        name = options.get("system") or written.get("system")
        system = load(name) if name else None
        room = import_module(f"{self.room}.settings")
        own = {**system.methods, **system.methods.get(self.name, {})} if system else {}
        config = settings.build(self.config, options, sets, room.METHODS, room.PRESETS, file, own)
        return settings.with_system(config, system)

    def make(self, config: Config, subject: Any) -> Any:
        """As `Verb`."""
        return import_module(self.room).make(
            subject,
            config.method,
            config.of_method,
            seed=config.seed,
            energy=config.energy,
            device=config.device,
            **config.arguments,
        )

    def analyse(self, job: Any, config: Config) -> Any:
        """As `Verb`."""
        return import_module(f"{self.room}.analysis").analyse(job)

    def describe(self, subject: Any) -> dict[str, Any]:
        """Title, axes with periods, start and end, discs of the states.

        Returns:
            {"title", "reduced", "cvs": [{"name", "period", "unit"}], "start", "end",
             "states": {name: {"values": {cv: centre}, "radius", "metric"}}}.
        """
        states = {
            name: {"values": dict(state.values), "radius": state.radius, "metric": state.metric}
            for name, state in subject.states.items()
        }
        return {
            "title": subject.title,
            "reduced": subject.masses is None,
            "cvs": [{"name": name, "period": cv.period[0], "unit": cv.unit[0]} for name, cv in subject.cvs.items()],
            "start": subject.settings.start,
            "end": subject.settings.end,
            "states": states,
        }


@dataclass(frozen=True)
class OfSteering(OfSystem):
    """Steering, which may start from another run: a diffusion sampler and what it has learnt."""

    def settle(
        self, options: Mapping[str, Any], sets: Sequence[str], file: Path | None, written: Table
    ) -> tuple[Config, Any]:
        """As `OfSystem`; the other run is known by the sha256 of its last checkpoint, as a model's weights are."""
        from molsamp.runs.trained import fingerprint

        folder = options.get("sampler") or written.get("sampler", "none")
        if folder != "none" and not (options.get("method") or written.get("method")):
            options = {**options, "method": "diffusion"}
        config: Any
        config, system = super().settle(options, sets, file, written)
        if (config.sampler is None) is (config.method == "diffusion"):
            told = "is missing" if config.sampler is None else f"got {config.sampler}"
            raise ValueError(f"--from: {told}; --method diffusion takes the folder of a trained sampler, fk takes none")
        if config.sampler is None:
            return config, system
        learnt = fingerprint(Path(config.sampler))
        if config.weights not in (None, learnt):
            raise ValueError(
                f"weights: {config.sampler} has the sha256 {learnt}, the settings were made for {config.weights}"
            )
        return config.model_copy(update={"weights": learnt}), system

    def make(self, config: Config, subject: Any) -> Any:
        """As `Verb`."""
        from molsamp.molecular import steering
        from molsamp.runs.trained import sampler

        steered: Any = config
        return steering.make(
            subject,
            config.method,
            config.of_method,
            trained=None if steered.sampler is None else sampler(Path(steered.sampler)),
            seed=config.seed,
            energy=config.energy,
            device=config.device,
            **config.arguments,
        )


@dataclass(frozen=True)
class OfModel(Verb):
    """A verb on a model of pictures; the molecular room is not imported.

    Args:
        name: as on the command line.
        module: the module that does it: `make` and `analyse`.
        config: its settings.
    """

    name: str
    module: str
    config: type[Config]

    def settle(
        self, options: Mapping[str, Any], sets: Sequence[str], file: Path | None, written: Table
    ) -> tuple[Config, Any]:
        """As `Verb`; a file of weights is known by its sha256, so that other weights are not taken for the same."""
        from molsamp.image.subject import Subject, fingerprint

        steered = self.config is ImageConfig and config_steered.asks(options, sets, written)
        kind, presets = (SteeredConfig, config_steered.PRESETS) if steered else (self.config, PRESETS[self.name])
        config: Any = settings.build(kind, options, sets, {}, presets, file)
        if steered:
            config = self._module(config).settled(config)
        subject = Subject.of(config.model, config.label, config.guidance, config.threshold)
        weights = fingerprint(config.model)
        if config.weights not in (None, weights):
            raise ValueError(
                f"weights: {config.model} has the sha256 {weights}, the settings were made for {config.weights}"
            )
        return config.model_copy(update={"weights": weights}), subject

    def _module(self, config: Config) -> Any:
        return import_module("molsamp.runs.steered" if isinstance(config, SteeredConfig) else self.module)

    def make(self, config: Config, subject: Any) -> Any:
        """As `Verb`."""
        return self._module(config).make(config, subject)

    def analyse(self, job: Any, config: Config) -> Any:
        """As `Verb`."""
        return self._module(config).analyse(job, config)

    def describe(self, subject: Any) -> dict[str, Any]:
        """The shape of a picture and the number of classes."""
        return {"event": list(subject.denoiser.event), "classes": subject.denoiser.conditional}

    def rescue(self, job: Any, folder: Path, config: Config) -> str:
        """Save the pictures so far, at their last good state."""
        return self._module(config).rescue(job, folder, config)


@dataclass(frozen=True)
class OfWorld(Verb):
    """A verb on a vehicle in a world; the molecular room is not imported.

    Args:
        name: as on the command line.
    """

    name: str

    def settle(
        self, options: Mapping[str, Any], sets: Sequence[str], file: Path | None, written: Table
    ) -> tuple[Config, Any]:
        """As `Verb`; the files of the world and of the policy are known by their sha256, as a model's weights are."""
        from molsamp.learn.weights import digest
        from molsamp.planning.places import fingerprint
        from molsamp.runs import plans
        from molsamp.runs.config_plan import CARS, METHODS, PlanConfig
        from molsamp.runs.config_plan import PRESETS as OF_PLANNERS

        if not (options.get("world") or written.get("world")):
            raise ValueError("which world? maze | boxes | corridor | u-maze | medium | large, or a file")
        method = options.get("method") or written.get("method")
        if method is not None and method not in METHODS:
            raise ValueError(
                f"--planner: '{method}' is unknown;{nearest(method, METHODS)} Allowed: {', '.join(METHODS)}"
            )
        if method is None:
            method = "ditree" if (options.get("vehicle") or written.get("vehicle", "car")) in CARS else "sst"
        chosen = {**options, "method": method}
        config: Any = settings.build(PlanConfig, chosen, sets, METHODS, OF_PLANNERS, file)
        known = {"cells": fingerprint(config.world)}
        if plans.needs_policy(config) and plans.policy_file(config).is_file():
            known["weights"] = digest(plans.policy_file(config))
        for name, now in known.items():
            if (then := getattr(config, name)) not in (None, now):
                raise ValueError(f"{name}: the file has the sha256 {now}, the settings were made for {then}")
        return config.model_copy(update=known), plans.subject(config)

    def make(self, config: Config, subject: Any) -> Any:
        """As `Verb`."""
        from molsamp.runs import plans

        return plans.make(config, subject)

    def analyse(self, job: Any, config: Config) -> Any:
        """As `Verb`."""
        from molsamp.runs import plans

        return plans.analyse(job, config)

    def describe(self, subject: Any) -> dict[str, Any]:
        """Walls, start, goal, the vehicle's outline."""
        from molsamp.runs import plans

        return plans.describe(subject)


PATHS = OfSystem("paths", "molsamp.molecular.paths", PathsConfig)
FREE_ENERGY = OfSystem("free-energy", "molsamp.molecular.free_energy", FreeEnergyConfig)
RATES = OfSystem("rates", "molsamp.molecular.kinetics", RatesConfig)
STEER = OfSteering("steer", "molsamp.molecular.steering", SteerConfig)
IMAGE = OfModel("image", "molsamp.runs.pictures", ImageConfig)
IMAGE_BENCH = OfModel("image bench", "molsamp.runs.bench", BenchConfig)
PLAN = OfWorld("plan")
