"""What path samplers and free-energy methods are: resumable work, with its costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.learn.drive import Abandoned, Journal, drive
from molsamp.molecular.workers import cpu_seconds
from molsamp.schema import validate


@dataclass(frozen=True)
class Cost:
    """What a result took: configurations evaluated, network calls, CPU seconds of this process."""

    energy_evaluations: int = 0
    network_calls: int = 0
    cpu_seconds: float = 0.0


class Work(ABC):
    """`total` units of work; a `learn.drive.Job`.

    Subclasses give `name` and `Settings`, and write `_begin`, `_advance`, and `_state` / `_load` for what they remember
    besides the counters kept here.

    Args:
        settings: an instance of `Settings`; None takes the defaults.
        noise: keys of everything random; None takes seed 0.
        overrides: single settings by name, in place of `settings`.

    Raises:
        ValueError: for an unknown or impossible setting.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[pydantic.BaseModel]]
    total: int
    evaluations: int = 0

    def __init__(self, settings: Any = None, noise: Noise | None = None, **overrides: Any):
        if settings is None:
            settings = validate(self.Settings, overrides, f"settings of {self.name}")
        elif overrides:
            raise ValueError(f"give {self.name} either settings or single overrides, not both: {', '.join(overrides)}")
        self.settings = settings
        self.noise = Noise(0) if noise is None else noise
        self.k, self.network_calls, self.cpu = 0, 0, 0.0
        self.asked_to_stop: Callable[[], bool] = lambda: False  # set by `drive`
        self._begin()

    @abstractmethod
    def _begin(self) -> None:
        """Set `total` and the first state of the work."""

    @abstractmethod
    def _advance(self) -> dict[str, Any]:
        """One unit of work, counted in `k`; returns its metrics."""

    @abstractmethod
    def _state(self) -> dict[str, Tensor]:
        """What the next unit depends on, besides the counters."""

    @abstractmethod
    def _load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `_state`."""

    def fit(self, run: Journal | None = None, each: Callable[[dict[str, Any]], None] | None = None) -> Any:
        """Do all the work that is left, recorded in `run` if one is given; returns itself."""
        drive(self, run, each)
        return self

    def advance(self) -> dict[str, Any]:
        """One unit of work, timed; returns its metrics.

        Raises:
            Abandoned: when a long unit finds that it was `asked_to_stop`; nothing has happened then.
        """
        counted = self.evaluations, self.network_calls
        try:
            with self._timed():
                return self._advance()
        except Abandoned:
            self.evaluations, self.network_calls = counted
            raise

    def _check(self) -> None:
        """Give the unit up if the run was asked to stop."""
        if self.asked_to_stop():
            raise Abandoned

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = cpu_seconds()
        yield
        self.cpu += cpu_seconds() - began

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        return Cost(self.evaluations, self.network_calls, self.cpu)

    def state(self) -> dict[str, Tensor]:
        """Everything the next unit depends on, as a flat dict of tensors; no clock, so that same work is same bytes."""
        counters = {
            "k": torch.tensor(self.k),
            "evaluations": torch.tensor(self.evaluations),
            "network_calls": torch.tensor(self.network_calls),
        }
        return counters | {k: b.clone() for k, b in self._state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken."""
        self.k, self.network_calls = int(state["k"]), int(state["network_calls"])
        self._load(state)
        self.evaluations = int(state["evaluations"])  # last: a sampler may replay paths to load them
