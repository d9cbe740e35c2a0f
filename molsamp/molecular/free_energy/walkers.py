"""Many walkers side by side: unbiased dynamics, and well-tempered metadynamics or OPES on one shared bias.

    build         The walkers move under the bias V that all hills so far make; every `stride` each adds one.
    production    V is frozen. After a time to settle every frame counts with weight exp(V(s)/kT): an ordinary
                  equilibrium average under a known bias, exact whether or not the hills had converged. The walkers are
                  independent of each other now, so their scatter is the error of everything.

Both phases are rollouts of the engine, native where the energy is. The free energy by the bias, -gamma/(gamma-1) V of
hills and -kT log P of OPES, stands beside the one by weights: where they disagree the bias had not converged, or the
production is too short. A third one weighs what the second half of the build saw with exp((V - c(t))/kT), c being 0
for OPES; it is exact as the bias comes to rest.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.estimates import Estimate
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Path, Status
from molsamp.learn.drive import Abandoned
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.molecular.bias import GridBias
from molsamp.molecular.free_energy import plumed
from molsamp.molecular.free_energy.growing import Growing
from molsamp.molecular.free_energy.hills import Kernel, flat
from molsamp.molecular.free_energy.opes import OPESBias
from molsamp.molecular.free_energy.settings import GrowingSettings, MDSettings, MetadynamicsSettings, OPESSettings
from molsamp.molecular.free_energy.surface import Histogram
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.paths.free import end_to_end
from molsamp.molecular.work import Work

UNIT = 20  # batches of hills in a unit of work
BLOCKS = 64  # of walkers, at most
BARRIER = 16.0  # kT, of OPES unless its settings say
PIECE = 1 << 20  # evaluations between two looks at whether to stop


def blocks(walkers: int) -> int:
    """Groups of independent walkers that errors are taken from: all, or as many as divide them and are at most 64."""
    return max(b for b in range(1, BLOCKS + 1) if walkers % b == 0)


class Walkers(Work):
    """Unbiased dynamics; the production of every method of walkers.

    Args:
        task: what to sample.
        settings, noise, overrides: as in `Work`.
    """

    name = "md"
    Settings: ClassVar[type[MDSettings]] = MDSettings
    advice: ClassVar[str] = "Let them run longer (`production`), or take a method with a bias."  # to see two states
    longer: ClassVar[str] = ""  # what lets the bias converge

    def __init__(self, task: Task, settings: Any = None, noise: Noise | None = None, **overrides: Any):
        self.task = task
        super().__init__(settings, noise, **overrides)

    def _begin(self) -> None:
        s, task = self.settings, self.task
        self.grid = task.grid(s.grid)
        self.regions = task.regions(self.grid)
        self.p = task.start(self.noise, s.walkers, self._first_states())
        self.stream = self.noise  # of the rollouts
        self.rows = 0  # behind every walker
        self.bias: GridBias | None = None
        self.histogram = Histogram.empty(self.grid, task.kT, blocks(s.walkers))
        self.history: list[list[float]] = []  # evaluations, then value and interval of each difference
        self.grown: list[list[float]] = []  # evaluations, then each difference by the bias, while it grows
        self.snapshots: list[Tensor] = []
        self.lost = 0  # walkers that diverged
        self._written: dict[str, str] = {}
        self.frame = task.rows(s.frame, "frame")
        self.record = self.frame * max(1, task.rows(s.record, "record") // self.frame)
        settle, counted = (-(-task.rows(t, "production") // self.record) for t in (s.settle, s.production))  # units
        self.built = 0
        self.settled = settle
        self.total = settle + max(s.snapshots, counted)

    @property
    def recorded(self) -> int:
        """The unit that begins COLVAR."""
        return self.built

    def _first_states(self) -> list[str]:
        return [self.task.system.settings.start]

    # ---------------------------------------------------------------- units

    def _advance(self) -> dict[str, Any]:
        self._written = {}
        before = self.p, self.rows, self.bias
        try:
            metrics = self._build() if self.k < self.built else self._produce()
        except Abandoned:
            self.p, self.rows, self.bias = before
            raise
        self.k += 1
        return {"ps": self.rows * self.task.timestep, "lost": self.lost, **metrics}

    def _build(self) -> dict[str, Any]:
        raise NotImplementedError  # nothing to build

    def _carry(self, rows: int, save: int) -> Path:
        """All walkers on by so many rows under the bias as it is, every `save`-th frame kept."""
        task, n = self.task, len(self.p)
        dyn = task.dynamics(task.energy if self.bias is None else task.energy + self.bias)
        parts, longest = [], max(1, PIECE // (n * save)) * save
        for done in range(0, rows, longest):
            times = [k * task.timestep for k in range(min(longest, rows - done) + 1)]
            parts.append(rollout(dyn, task.integrator, self.p, times, noise=self.stream, save=save, first=self.rows))
            self.p, self.rows = parts[-1].final, self.rows + len(times) - 1
            self.evaluations += n * (len(times) - 1)
            self._check()
        self.lost = int((self.p.status == Status.DIVERGED).sum())
        return end_to_end(parts)

    def _produce(self) -> dict[str, Any]:
        """A record's time under the frozen bias."""
        path = self._carry(self.record, self.frame)
        s = self.task.values(path.x[1:]).double()
        logw = self._log_weights(s, self.p.status == Status.DIVERGED)
        if self.k >= self.settled:
            self._count(s, logw)
            self._note_differences(float(self.evaluations))
            if len(self.snapshots) < self._due():
                self.snapshots.append(path.x[-1].clone())
        self._write_colvar(s[-1], self.task.kT * logw[-1])
        return {"ess": self.histogram.ess, "note": self._word("production", self.built, self.total)}

    def _count(self, s: Float[Tensor, "T n k"], logw: Float[Tensor, "T n"]) -> None:
        """Walkers in groups, as many as the histogram has blocks."""
        blocks = len(self.histogram.weight)
        s, logw = s.view(-1, blocks, s.shape[-1]), logw.reshape(-1, blocks)
        self.histogram = self.histogram.add(s, logw)

    def _due(self) -> int:
        """Snapshots that should be there after this unit."""
        return (self.k + 1 - self.settled) * self.settings.snapshots // (self.total - self.settled)

    def _word(self, phase: str, first: int, end: int) -> str:
        return f"{phase} {self.k + 1 - first}/{end - first}"

    def _log_weights(self, s: Float[Tensor, "T n k"], lost: Bool[Tensor, " n"]) -> Float[Tensor, "T n"]:
        """V(s)/kT less its largest value at a node; -inf for a walker that is lost."""
        if self.bias is None:
            logw = torch.zeros(s.shape[:2], dtype=torch.float64)
        else:
            V = self.bias.at(s.reshape(-1, s.shape[-1])).view(s.shape[:2])
            logw = (V - float(self.bias.values.max())) / self.task.kT
        return logw.masked_fill(lost, -torch.inf)

    # ---------------------------------------------------------------- results

    def by_bias(self) -> Float[np.ndarray, "*N"] | None:
        """F at the nodes by the bias, kJ/mol, least value 0; None where the bias does not tell."""
        return None

    def others(self) -> dict[str, Estimate]:
        """Results of this method alone."""
        return {}

    def log_weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Log weights in nats and how many samples have each; None where all are the same."""
        if self.bias is None:
            return None
        logw = (self.bias.values - self.bias.values.max()).ravel() / self.task.kT
        return logw, self.histogram.weight.sum(0).numpy() / np.exp(logw)

    def warnings(self) -> list[str]:
        """What went wrong on the way, in words."""
        left_out = f"{self.lost} of {len(self.p)} walkers diverged and were left out from then on."
        return [left_out] if self.lost else []

    def differences(self, histogram: Histogram | None = None, word: str = "dF") -> dict[str, Estimate]:
        """F_B - F_A from the first state to every other one, kJ/mol, under `word:A->B`; of all samples unless given."""
        first, *others = self.regions
        h = histogram or self.histogram
        return {f"{word}:{first}->{other}": h.difference(self.regions[first], self.regions[other]) for other in others}

    def _note_differences(self, evaluations: float, histogram: Histogram | None = None) -> None:
        found = self.differences(histogram).values()
        self.history.append([evaluations, *(a for e in found for a in (e.value, *e.interval))])

    def _note_bias(self) -> None:
        """The differences by the bias as it is, where it tells."""
        if (F := self.by_bias()) is None:
            return
        p = np.exp(-F / self.task.kT)
        first, *others = self.regions.values()
        self.grown.append([self.evaluations, *(-self.task.kT * math.log(p[b].sum() / p[first].sum()) for b in others)])

    # ---------------------------------------------------------------- files and checkpoints

    def lines(self) -> dict[str, str]:
        """What the last unit adds to HILLS or KERNELS, and to COLVAR."""
        return self._written

    def _write_colvar(self, s: Float[Tensor, "n k"], bias: Float[Tensor, " n"], **more: float) -> None:
        """One line a walker: time, walker, what is the same for all, CVs, bias in kJ/mol (0 at its largest node)."""
        walker = torch.arange(len(s), dtype=torch.float64)
        same = [torch.full_like(walker, a) for a in (self.rows * self.task.timestep, *more.values())]
        text = plumed.rows(*(c.numpy() for c in (same[0], walker, *same[1:], *s.unbind(1), bias)))
        fields = ["time", "walker", *more, *self.grid.names, "bias"]
        self._written["COLVAR"] = self._headed(fields, self.recorded) + text

    def _write_lines(self, text: str, first: int) -> None:
        """Lines of HILLS or KERNELS, begun by the unit `first`."""
        assert isinstance(self.bias, Growing)
        names = self.grid.names
        fields = ["time", *names, *(f"sigma_{name}" for name in names), *self.bias.fields]
        self._written[self.bias.file] = self._headed(fields, first, **self.bias.facts) + text

    def _lines(self, s: Float[Tensor, "n k"], heights: Float[Tensor, " n"]) -> str:
        """A line a Gaussian that was added."""
        assert isinstance(self.bias, Growing)
        put = heights > 0
        time = torch.full((int(put.sum()),), self.rows * self.task.timestep, dtype=torch.float64)
        widths = [torch.full_like(time, w) for w in self.bias.width]
        columns = [time, *s[put].unbind(1), *widths, *self.bias.columns(heights[put])]
        return plumed.rows(*(c.numpy() for c in columns))

    def _headed(self, fields: list[str], first: int, **sets: object) -> str:
        """The header of a file, where this unit is the first that writes to it."""
        return plumed.header(fields, self.grid, False, **sets) if self.k == first else ""

    def _state(self) -> dict[str, Tensor]:
        flat = {
            "rows": torch.tensor(self.rows),
            "history": torch.tensor(self.history, dtype=torch.float64),
            "grown": torch.tensor(self.grown, dtype=torch.float64),
        }
        if isinstance(self.bias, Growing):
            flat |= self.bias.to_tensors()
        flat |= {f"snapshot{i}": x for i, x in enumerate(self.snapshots)}
        flat |= flatten_state("histogram", self.histogram.to_tensors())
        return flat | flatten_state("walkers", self.p.to_tensors())

    def _load(self, state: dict[str, Tensor]) -> None:
        self.rows = int(state["rows"])
        self.histogram = self.histogram.restored(with_prefix("histogram", state))
        self.history, self.grown = state["history"].tolist(), state["grown"].tolist()
        if isinstance(self.bias, Growing):
            self.bias = self.bias.restored(state)
        self.snapshots = []
        while (name := f"snapshot{len(self.snapshots)}") in state:
            self.snapshots.append(state[name])
        self.p = Particles.from_tensors(with_prefix("walkers", state))
        self.lost = int((self.p.status == Status.DIVERGED).sum())


class Metadynamics(Walkers):
    """Well-tempered metadynamics with a production under the frozen bias; arguments as in `Walkers`."""

    name = "metadynamics"
    Settings: ClassVar[type[GrowingSettings]] = MetadynamicsSettings
    advice = "Let the bias grow for longer (`build`), or choose CVs that tell the two apart."
    longer = "a longer `build`"

    def _begin(self) -> None:
        super()._begin()
        s, task = self.settings, self.task
        self.bias = self._no_bias()
        self.growing = Histogram.empty(self.grid, task.kT, blocks(s.walkers))
        self.stride = task.rows(s.stride, "stride")
        self.built = -(-task.rows(s.build, "build") // (self.stride * UNIT))
        self.settled, self.total = self.settled + self.built, self.total + self.built

    bias: Growing

    def _no_bias(self) -> Growing:
        """The bias before the first batch."""
        s, task = self.settings, self.task
        width = s.width or tuple((hi - lo) / 20 for lo, hi in self.grid.ranges)
        return flat(task.cvs, self.grid, task.system.event, Kernel(s.height, tuple(width), s.factor, task.kT))

    def _first_states(self) -> list[str]:
        return list(self.task.system.states)

    def by_bias(self) -> Float[np.ndarray, "*N"]:
        """F as the bias has it: of hills -gamma/(gamma - 1) V."""
        return self.bias.free_energy()

    def _build(self) -> dict[str, Any]:
        """A unit of batches."""
        text = []
        for _ in range(UNIT):
            path = self._carry(self.stride, self.stride)
            s = self.task.values(path.final.x).double()
            s = s.masked_fill((path.final.status == Status.DIVERGED)[:, None], torch.nan)
            if 2 * self.k >= self.built:
                self._weigh(s)
            self.bias, heights = self.bias.deposit(s)
            text.append(self._lines(s, heights))
        self._write_lines("".join(text), 0)
        self._note_bias()
        return {"note": self._word("build", 0, self.built), "height": float(heights.sum())}

    def _weigh(self, s: Float[Tensor, "n k"]) -> None:
        """Walkers under a growing bias, of hills by c(t)."""
        groups = len(self.growing.weight)
        logw = (self.bias.at(s) - self.bias.offset()) / self.task.kT
        self.growing = self.growing.add(s.view(-1, groups, s.shape[1]), logw.view(-1, groups))

    def others(self) -> dict[str, Estimate]:
        """The differences by the growing bias; walkers that share one know of each other, which intervals do not."""
        return self.differences(self.growing, "dF_growing")

    def _state(self) -> dict[str, Tensor]:
        return super()._state() | flatten_state("growing", self.growing.to_tensors())

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        self.growing = self.growing.restored(with_prefix("growing", state))


class OPES(Metadynamics):
    """OPES in place of hills: a bias from the probability that walkers have found so far; arguments as in `Walkers`."""

    name = "opes"
    Settings = OPESSettings
    longer = "a longer `build`, or narrower kernels (`width`),"

    def _no_bias(self) -> Growing:
        s, task, grid = self.settings, self.task, self.grid
        width = s.width or grid.spacing
        barrier = s.barrier or BARRIER * task.kT
        return OPESBias.empty(task.cvs, grid, task.system.event, width, s.factor or barrier / task.kT, task.kT, barrier)
