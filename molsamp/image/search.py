"""AutoDiffusion: an evolutionary search of sampling times, and of what may be left out of the network at each step.

A search needs a space of candidates and a fitness, a number to make small. Three spaces are here: `Nodes`, increasing
indices into a fine list; `Genes`, one choice of a list at each place; `Both`, a pair of them. `evolve` knows nothing of
images; `search` binds it to a model and a solver: the fitness is the RMSE of few-step samples to the model's own fine
trajectories from the same noises for every candidate (common random numbers).
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path as File
from types import MappingProxyType
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from molsamp.engine.exponential import Exponential
from molsamp.engine.grids import Kind, time_grid
from molsamp.engine.noise import Noise
from molsamp.image.networks import Edit
from molsamp.image.sampling import Model, grid_of, plan, sample

Uniforms = Iterator[float]
TRIES = 200  # draws of a candidate that is allowed and new before a search takes its space as used up


@runtime_checkable
class Space(Protocol):
    """Candidates: hashable, of tuples and numbers; every draw takes uniforms off an endless stream."""

    def random(self, u: Uniforms) -> Hashable: ...
    def mutate(self, one: Any, rate: float, u: Uniforms) -> Hashable: ...
    def cross(self, one: Any, other: Any, u: Uniforms) -> Hashable: ...
    def allows(self, one: Any) -> bool: ...


@dataclass(frozen=True)
class Nodes:
    """k increasing indices of 0 .. size - 1.

    Raises:
        ValueError: more indices than there are.
    """

    size: int
    k: int

    def __post_init__(self):
        if not 0 <= self.k <= self.size:
            raise ValueError(f"{self.k} different nodes cannot be chosen from {self.size}")

    def random(self, u: Uniforms) -> tuple[int, ...]:
        """Every subset alike."""
        return self._filled((), u)

    def mutate(self, one: tuple[int, ...], rate: float, u: Uniforms) -> tuple[int, ...]:
        """Each index with this probability, one at least, goes; unused ones come."""
        kept = [a for a in one if next(u) >= rate]
        if len(kept) == self.k > 0:
            kept.pop(int(next(u) * self.k))
        return self._filled(kept, u, apart=one)

    def cross(self, one: tuple[int, ...], other: tuple[int, ...], u: Uniforms) -> tuple[int, ...]:
        """Each index from either; unused ones in place of those that come twice."""
        return self._filled({a if next(u) < 0.5 else b for a, b in zip(one, other, strict=True)}, u)

    def allows(self, one: tuple[int, ...]) -> bool:
        """Every subset."""
        return True

    def _filled(self, kept: Any, u: Uniforms, apart: Sequence[int] = ()) -> tuple[int, ...]:
        """`kept` and so many random others, none of `apart` if there are enough."""
        chosen = set(kept)
        free = [a for a in range(self.size) if a not in chosen and a not in apart]
        if len(free) < self.k - len(chosen):
            free = [a for a in range(self.size) if a not in chosen]
        while len(chosen) < self.k:
            chosen.add(free.pop(int(next(u) * len(free))))
        return tuple(sorted(chosen))


@dataclass(frozen=True)
class Genes:
    """One of `choices[i]` at each place i, of which the whole must be `allowed`."""

    choices: tuple[tuple[Hashable, ...], ...]
    allowed: Callable[[tuple], bool] = lambda one: True

    def random(self, u: Uniforms) -> tuple:
        """Every choice alike."""
        return tuple(some[int(next(u) * len(some))] for some in self.choices)

    def mutate(self, one: tuple, rate: float, u: Uniforms) -> tuple:
        """Each place with this probability is drawn anew."""
        return tuple(new if next(u) < rate else a for a, new in zip(one, self.random(u), strict=True))

    def cross(self, one: tuple, other: tuple, u: Uniforms) -> tuple:
        """Each place from either."""
        return tuple(a if next(u) < 0.5 else b for a, b in zip(one, other, strict=True))

    def allows(self, one: tuple) -> bool:
        """`allowed`."""
        return self.allowed(one)


@dataclass(frozen=True)
class Both:
    """Pairs of a candidate of each space."""

    first: Space
    second: Space

    def random(self, u: Uniforms) -> tuple:
        """Both at random."""
        return self.first.random(u), self.second.random(u)

    def mutate(self, one: tuple, rate: float, u: Uniforms) -> tuple:
        """Both mutated."""
        return self.first.mutate(one[0], rate, u), self.second.mutate(one[1], rate, u)

    def cross(self, one: tuple, other: tuple, u: Uniforms) -> tuple:
        """Both crossed."""
        return self.first.cross(one[0], other[0], u), self.second.cross(one[1], other[1], u)

    def allows(self, one: tuple) -> bool:
        """Both allowed."""
        return self.first.allows(one[0]) and self.second.allows(one[1])


@dataclass(frozen=True)
class Settings:
    """Of an evolution: its sizes (defaults of the published code), probability that a gene mutates."""

    population: int = 50
    mutants: int = 25
    crossings: int = 10
    parents: int = 10
    epochs: int = 10
    rate: float = 0.1

    def __post_init__(self):
        if min(self.population, self.parents, self.epochs) < 1 or self.mutants + self.crossings > self.population:
            raise ValueError(f"an evolution needs parents, epochs and room for mutants and crossings, got {self}")


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        best: the candidate.
        fitness: its fitness.
        history: (fitness evaluations so far, best fitness so far) after each epoch.
        about: where it comes from: settings, solver, schedule, noise.
    """

    best: Any
    fitness: float
    history: tuple[tuple[int, float], ...]
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, file: File) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: File) -> Found:
        """The inverse of `save`.

        Raises:
            ValueError: if the file is not one of `save`'s.
        """
        try:
            told = json.loads(file.read_text())
            return cls(_tuples(told["best"]), told["fitness"], _tuples(told["history"]), told["about"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} does not hold the result of a search ({error!r})") from None


def evolve(
    fitness: Callable[[Any], float],
    space: Space,
    noise: Noise,
    settings: Settings = Settings(),
    begin: Sequence[Any] = (),
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Found:
    """The candidate with the smallest fitness that an evolution comes upon; none is tried twice.

    The first generation is `begin`, its mutants, and, for half of the population, random candidates; every later one
    mutants and crossings of the best so far, and random candidates. NaN counts as infinite. It ends early when `TRIES`
    draws bring nothing new.

    Args:
        fitness: candidate -> number.
        space: candidates.
        noise: keys of the draws.
        settings: sizes.
        begin: candidates to begin with; those not allowed are left out.
        about: what else to keep beside the result.

    Raises:
        ValueError: if no allowed candidate is found.

    Source: Li et al., "AutoDiffusion", ICCV 2023, algorithm 1.
    """
    known: dict[Any, float] = {}
    history: list[tuple[int, float]] = []
    u = _uniforms(noise)

    def new(make: Callable[[], Any], others: Sequence[Any]) -> list[Any]:
        """A candidate that is allowed and not known, if some tries find one."""
        for _ in range(TRIES):
            if space.allows(one := make()) and one not in known and one not in others:
                return [one]
        return []

    best = [one for one in dict.fromkeys(begin) if space.allows(one)]
    for epoch in range(settings.epochs):
        generation = best[: settings.population] if epoch == 0 else []

        def parent(best: Sequence[Any] = best) -> Any:
            return best[int(next(u) * len(best))]

        def mutant() -> Any:
            return space.mutate(parent(), settings.rate, u)

        def child() -> Any:
            return space.cross(parent(), parent(), u)

        if best:
            mutants = settings.mutants if epoch else settings.population // 2 - len(generation)
            for make, count in ((mutant, mutants), (child, settings.crossings if epoch else 0)):
                for _ in range(count):
                    generation += new(make, generation)
        while len(generation) < settings.population and (more := new(lambda: space.random(u), generation)):
            generation += more
        if not generation:
            break
        for one in generation:
            value = float(fitness(one))
            known[one] = math.inf if math.isnan(value) else value
        best = sorted(known, key=known.__getitem__)[: settings.parents]
        history.append((len(known), known[best[0]]))
    if not known:
        raise ValueError(f"no candidate of {space} is allowed")
    return Found(best[0], known[best[0]], tuple(history), {"evolution": asdict(settings), "seed": noise.seed, **about})


@dataclass(frozen=True)
class Times:
    """Candidates of `Nodes` as times: indices of the inner times of a fine grid, whose ends are always there.

    Args:
        fine: falling times, those at both ends included.
    """

    fine: tuple[float, ...]

    def __call__(self, nodes: Sequence[int]) -> list[float]:
        """The grid of a candidate."""
        return [self.fine[0], *(self.fine[1 + a] for a in nodes), self.fine[-1]]

    def nearest(self, times: Sequence[float]) -> tuple[int, ...]:
        """The candidate nearest to given times, its indices apart."""
        inner = [-t for t in self.fine[1:-1]]
        chosen: list[int] = []
        for left, t in zip(range(len(times) - 2, 0, -1), times[1:-1], strict=True):
            k = min(bisect_left(inner, -t), len(inner) - 1)
            k -= k > 0 and -t - inner[k - 1] < inner[k] + t
            low = chosen[-1] + 1 if chosen else 0
            chosen.append(min(max(k, low), len(inner) - left))
        return tuple(chosen)


def per_step(times: Sequence[float], values: Sequence[Any]) -> Callable[[float], Any]:
    """t -> the value of the step that evaluates at t: step i in (times[i + 1], times[i]], the last at its end too."""
    rising = [-t for t in times[1:-1]]
    return lambda t: values[bisect_right(rising, -t)]


def search(
    model: Model,
    solver: str = "ddim",
    steps: int = 5,
    *,
    noise: Noise,
    n: int = 32,
    size: int = 200,
    grid: str | None = None,
    settings: Settings = Settings(),
    edited: Callable[[Callable[[float], Edit]], Model] | None = None,
    leave: Sequence[tuple[int, ...]] = ((),),
    least: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Found:
    """Times for a solver, and blocks to leave out at every step, that sample nearest to the model's fine trajectories.

    `found.about["times"]` is a grid for `sample`; with `edited`, `found.about["without"]` has the blocks left out at
    each step, and half of the epochs search times alone, the rest both together (two stages, as published).

    Args:
        model, solver, steps, dtype: as for `sample`; of a solver of several calls a step, its intervals are placed.
        noise: keys of the search and of its n starts; not those that are to be scored.
        n: starts, the same for all candidates.
        size: intervals of the fine grid of candidate times.
        grid: kind of the fine grid; also the reference runs on it.
        settings: of the evolution; it begins with the four kinds of `time_grid`.
        edited: (t -> Edit) -> the edited model, for example `network("mnist").denoiser` with its schedule bound.
        leave: the sets of blocks that a step may leave out.
        least: blocks to leave out at least, of all steps together; so many fewer are run.

    Raises:
        ValueError: as `sample`; more steps than the fine grid has; blocks to leave out without `edited`, or more of
            them than `leave` lets go.
    """
    if edited is None and (tuple(leave) != ((),) or least):
        raise ValueError("to leave blocks out, the search needs edited, which makes a model from t -> Edit")
    _, intervals, _ = plan(solver, steps)
    if least > (most := intervals * max(map(len, leave))):
        raise ValueError(f"{least} blocks are to be left out, but {intervals} steps can leave out {most} at most")
    fine = Times(tuple(grid_of(model.schedule, grid, size)))
    nodes = Nodes(size - 1, intervals - 1)
    sigma = model.schedule.sigma(fine.fine[0])
    start = sigma * noise.child("start").normal(0, torch.arange(n), model.event, dtype)
    exact = Exponential(3, corrects=3, rule="exact", short=0)
    reference = sample(model, exact, size, noise=noise, grid=fine.fine, start=start).final.x

    def error(model: Model, times: list[float]) -> float:
        x: Tensor = sample(model, solver, steps, noise=noise, grid=times, start=start).final.x
        return float((x.double() - reference.double()).square().mean().sqrt())

    kinds = (time_grid(kind, model.schedule, intervals, fine.fine[0], fine.fine[-1]) for kind in get_args(Kind))
    begin = [fine.nearest(times) for times in kinds]
    about = {
        "solver": solver, "steps": steps, "schedule": repr(model.schedule), "starts": n, "size": size, "grid": grid,
        "noise": noise.seed, "fitness": "RMSE to the fine trajectory",
    }  # fmt: skip
    draws = noise.child("evolution")
    if edited is None:
        found = evolve(lambda one: error(model, fine(one)), nodes, draws, settings, begin, about)
        return _with(found, times=fine(found.best))

    def edited_error(one: tuple) -> float:
        times = fine(one[0])
        return error(edited(per_step(times, [Edit(without=out) for out in one[1]])), times)

    left = Genes((tuple(leave),) * intervals, lambda one: sum(map(len, one)) >= least)
    half = replace(settings, epochs=max(1, settings.epochs // 2))
    first = evolve(lambda one: error(model, fine(one)), nodes, draws, half, begin)
    u = _uniforms(draws.child("masks"))
    masks = filter(left.allows, (left.random(u) for _ in range(TRIES)))
    pairs = [(first.best, mask) for mask in islice(masks, settings.population // 2)]
    found = evolve(edited_error, Both(nodes, left), draws.child("both"), half, pairs, about)
    return _with(found, times=fine(found.best[0]), without=found.best[1])


def _with(found: Found, **more: Any) -> Found:
    return Found(found.best, found.fitness, found.history, found.about | more)


def _uniforms(noise: Noise, many: int = 1024) -> Uniforms:
    """An endless stream."""
    k, one = 0, torch.zeros(1, dtype=torch.int64)
    while True:
        yield from noise.uniform(k, one, (many,))[0].tolist()
        k += 1


def _tuples(a: Any) -> Any:
    return tuple(map(_tuples, a)) if isinstance(a, list) else a
