"""What all path samplers are: resumable work that ends in `Paths`."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from molsamp.engine.noise import Noise
from molsamp.engine.state import Path, Status
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.work import Work


class Sampler(Work):
    """A path sampler: `total` units of work, then paths.

    Args:
        problem: what to sample.
        n: number of paths that `paths()` returns.
        settings, noise, overrides: as in `Work`.
    """

    def __init__(
        self, problem: Problem, settings: Any = None, noise: Noise | None = None, n: int = 64, **overrides: Any
    ):
        self.problem, self.n = problem, n
        super().__init__(settings, noise, **overrides)

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """Those of the problem's energy."""
        return self.problem.energy.evaluations

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self.problem.energy.evaluations = count

    @abstractmethod
    def paths(self) -> Paths:
        """The result, once all units are done."""

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
