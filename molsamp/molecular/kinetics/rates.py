"""What every rate method is: resumable work on a transition, with its numbers, tables and doubts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from molsamp.engine.estimates import Estimate
from molsamp.engine.noise import Noise
from molsamp.molecular.kinetics.transition import Transition
from molsamp.molecular.work import Work


class Rates(Work):
    """A rate method.

    Args:
        transition: from where to where.
        settings, noise, overrides: as in `Work`.
    """

    def __init__(self, transition: Transition, settings: Any = None, noise: Noise | None = None, **overrides: Any):
        self.transition = transition
        super().__init__(settings, noise, **overrides)

    def _begin(self) -> None:
        self.motion = self.transition.motion(self.noise, self.settings.frame)

    def _looks(self, time: float) -> int:
        """Looks in the time of a segment, one at least."""
        return max(1, round(time / self.motion.interval))

    @property
    def per_time(self) -> str:
        """The unit of rates: 1/ps, and none for a toy."""
        return "1" if self.transition.task.system.masses is None else "1/ps"

    @property
    def time(self) -> str:
        """The unit of times: ps, and none for a toy."""
        return "1" if self.transition.task.system.masses is None else "ps"

    @abstractmethod
    def results(self) -> dict[str, Estimate]:
        """Rate A -> B (last-visited definition), mean first-passage time, flux, and the committor where it is nearest
        to one half.
        """

    @abstractmethod
    def committors(self) -> list[tuple[float, Estimate]]:
        """(progress, committor), progress rising."""

    @abstractmethod
    def tables(self) -> dict[str, tuple[Sequence[str], list[list[float]]]]:
        """The figures' data: name -> (headings, rows)."""

    @abstractmethod
    def warnings(self) -> list[str]:
        """What a reader should doubt, in words."""

    def along(self) -> tuple[Sequence[str], list[list[float]]]:
        """The table of the committor."""
        return ("progress", "value", "low", "high"), [[s, q.value, *q.interval] for s, q in self.committors()]

    def half_way(self) -> dict[str, Estimate]:
        """The committor nearest to one half, under a name that says where."""
        if not (known := self.committors()):
            return {}
        s, q = min(known, key=lambda pair: abs(pair[1].value - 0.5))
        return {f"committor:{s:.3g}": q}
