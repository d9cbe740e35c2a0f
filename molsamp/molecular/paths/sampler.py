"""What all path samplers are: resumable jobs that end in `Paths`."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.engine.state import Path, Status
from molsamp.learn.drive import Abandoned, Journal, drive
from molsamp.molecular.paths.paths import Cost, Paths
from molsamp.molecular.paths.problem import Problem
from molsamp.schema import validate


class Sampler(ABC):
    """A path sampler: `total` units of work, then paths.

    Subclasses give `name` and `Settings`, and write `_begin`, `_advance`, `paths`, and `_state` / `_load` for what they
    remember besides the counters kept here.

    Args:
        problem: what to sample.
        settings: an instance of `Settings`; None takes the defaults.
        noise: keys of everything random; None takes seed 0.
        n: number of paths that `paths()` returns.
        overrides: single settings by name, in place of `settings`.

    Raises:
        ValueError: for an unknown or impossible setting.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[pydantic.BaseModel]]
    total: int

    def __init__(
        self, problem: Problem, settings: Any = None, noise: Noise | None = None, n: int = 64, **overrides: Any
    ):
        if settings is None:
            settings = validate(self.Settings, overrides, f"settings of {self.name}")
        elif overrides:
            raise ValueError(f"give {self.name} either settings or single overrides, not both: {', '.join(overrides)}")
        self.problem, self.settings, self.n = problem, settings, n
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
    def paths(self) -> Paths:
        """The result, once all units are done."""

    @abstractmethod
    def _state(self) -> dict[str, Tensor]:
        """What the next unit depends on, besides the counters."""

    @abstractmethod
    def _load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `_state`."""

    def fit(self, run: Journal | None = None, each: Callable[[dict[str, Any]], None] | None = None) -> Sampler:
        """Do all the work that is left, recorded in `run` if one is given; returns the sampler."""
        drive(self, run, each)
        return self

    def advance(self) -> dict[str, Any]:
        """One unit of work, timed; returns its metrics.

        Raises:
            Abandoned: when a long unit finds that it was `asked_to_stop`; nothing has happened then.
        """
        counted = self.problem.energy.evaluations, self.network_calls
        try:
            with self._timed():
                return self._advance()
        except Abandoned:
            self.problem.energy.evaluations, self.network_calls = counted
            raise

    def _check(self) -> None:
        """Give the unit up if the run was asked to stop."""
        if self.asked_to_stop():
            raise Abandoned

    def _measure(self, path: Path) -> dict[str, Any]:
        """Hit rate, mean log dP_b/dP_0, ESS and number of diverged paths of a batch, for the metrics of a unit."""
        ok = path.final.status != Status.DIVERGED
        batch = Paths(self.problem, path, path.log_ratio, self.name)
        return {
            "hit_rate": float(batch.hit.double().mean()),
            "ess": batch.ess(),
            "log_rn": float(path.log_ratio[ok].mean()) if bool(ok.any()) else math.nan,
            "diverged": int((~ok).sum()),
        }

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.process_time()
        yield
        self.cpu += time.process_time() - began

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        return Cost(self.problem.energy.evaluations, self.network_calls, self.cpu)

    def state(self) -> dict[str, Tensor]:
        """Everything the next unit depends on, as a flat dict of tensors; no clock, so that same work is same bytes."""
        counters = {
            "k": torch.tensor(self.k),
            "evaluations": torch.tensor(self.problem.energy.evaluations),
            "network_calls": torch.tensor(self.network_calls),
        }
        return counters | {k: b.clone() for k, b in self._state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken."""
        self.k, self.network_calls = int(state["k"]), int(state["network_calls"])
        self._load(state)
        self.problem.energy.evaluations = int(state["evaluations"])  # last: a sampler may replay paths to load them
