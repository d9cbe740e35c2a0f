"""From finished sampling to the numbers of result.json: distances, what the training data score, times, warnings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from molsamp.engine.estimates import Estimate, wilson
from molsamp.engine.noise import Noise
from molsamp.engine.state import Status
from molsamp.image import models
from molsamp.image.bench import Bench, Entry
from molsamp.image.data import Images
from molsamp.image.denoiser import Denoiser
from molsamp.image.job import Sampling
from molsamp.image.sampling import fitted, sample
from molsamp.image.scoring import frechet, sliced_wasserstein
from molsamp.image.subject import Subject, data_set

FEWEST = 64  # pictures of each set for a Frechet distance; in 32 features fewer say little
REPEATS = 6  # of what is timed; the smallest and the largest are a 97 % interval of the median

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Analysis:
    """What was found about the pictures.

    Args:
        results: `rmse_to_fine`, `sliced_wasserstein`, `frechet`, `diverged`, each where it can be told.
        null: the distances of as many training pictures to the same held-out ones.
        times: `call`, the model on one batch, and `solver`, the rest of a call; in ms.
        curve: RMSE to the fine trajectories by solver and number of calls.
        warnings: what a reader must know.
    """

    results: Estimates
    null: Estimates
    times: Estimates
    curve: list[tuple[Entry, Estimate]]
    warnings: list[str]


def analyse(job: Sampling, data: str | None = None) -> Analysis:
    """Score the pictures that did not diverge; network calls made here are not counted.

    Args:
        job: done.
        data: the data set to compare with; None for the one the model is named after.
    """
    warnings = _cautions(job)
    lost = int((job.status == Status.DIVERGED).sum())
    results = {"diverged": wilson(lost, job.n)}
    curve = job.bench.results()
    if job.bench.n:
        results = {"rmse_to_fine": _of(curve, job.solver, job.steps), "fineness": job.bench.fineness, **results}
        warnings += _fine_enough(job.bench, results["rmse_to_fine"])
    distances, null, more = _distances(job, data)
    times = timed(job.subject, job.solver, job.steps, min(job.batch, job.n), job.noise)
    return Analysis({**distances, **results}, null, times, curve, [*warnings, *more])


def timed(subject: Subject, solver: str, steps: int, n: int, noise: Noise) -> Estimates:
    """Milliseconds of a model's call on n pictures, and of what a solver adds to it; no two clocks agree."""
    ids = torch.arange(n)
    model = subject.model(ids)
    x, t = noise.child("timing").normal(0, ids, model.event, torch.float32), 0.5 * model.schedule.start
    free = Denoiser(model.schedule, lambda x, t, label: x, model.event)
    ready = fitted(free, solver, steps, noise=noise)

    def clock(work: Callable[[], object], share: int) -> Estimate:
        work()  # warm
        spent = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            work()
            spent.append(1e3 * (time.perf_counter() - began) / share)
        return Estimate(median(spent), (min(spent), max(spent)), "ms", REPEATS)

    return {
        "call_time": clock(lambda: model(x, t), 1),
        "solver_time": clock(lambda: sample(free, ready, steps, noise=noise, ids=ids), steps),
    }


def _of(curve: list[tuple[Entry, Estimate]], solver: str, calls: int) -> Estimate:
    return next(found for entry, found in curve if (entry.solver, entry.calls) == (solver, calls))


def _distances(job: Sampling, data: str | None) -> tuple[Estimates, Estimates, list[str]]:
    """Distances of the pictures to held-out ones, those of training pictures, and why any are missing."""
    x = job.x[job.status == Status.OK]
    try:
        parts = job.subject.pictures(data)
    except ValueError as error:  # a package is missing
        return {}, {}, [f"no distances to data: {error}"]
    if parts is None:
        return {}, {}, []
    kept, out = parts
    if min(len(x), len(out.x)) < 2:
        return {}, {}, ["no distances to data: they need two pictures or more on either side"]
    name = data or str(data_set(job.subject.name))
    training = _some(kept, len(x), job.noise.child("training"))
    found, null = (_both(a, out.x, name, job.noise) for a in (x, training))
    return found, null, _few(x, out, job.subject.name)


def _both(a: Tensor, b: Tensor, name: str, noise: Noise) -> Estimates:
    """Both distances between two sets; that in features where there are enough pictures."""
    found = {"sliced_wasserstein": sliced_wasserstein(a, b, noise.child("directions"))}
    if min(len(a), len(b)) >= FEWEST:
        found[f"frechet:{name}"] = frechet(a, b, models.features(name))  # type: ignore[arg-type]
    return found


def _some(images: Images, n: int, noise: Noise) -> Tensor:
    """n pictures at random, all if there are fewer."""
    order = noise.uniform(0, torch.arange(len(images.x))).argsort()
    return images.x[order[:n]]


def _few(x: Tensor, out: Images, name: str) -> list[str]:
    few = f"no Frechet distance: it needs {FEWEST} pictures on either side, here are {len(x)} and {len(out.x)}"
    known = "an ideal denoiser holds all pictures, the held-out ones too: its distances to them are no test of it"
    return [few] * (min(len(x), len(out.x)) < FEWEST) + [known] * name.startswith("ideal:")


def _cautions(job: Sampling) -> list[str]:
    found = []
    if lost := int((job.status == Status.DIVERGED).sum()):
        found.append(f"{lost} of {job.n} pictures diverged; they are kept at their last good state and not scored")
    if job.stochastic:
        found.append(f"{job.solver} draws noise on its way, so there is no fine trajectory to compare with")
    return found


def _fine_enough(bench: Bench, found: Estimate) -> list[str]:
    """Say so when the fine trajectories are not fine beside the error that they measure."""
    if not bench.fineness.value > 0.1 * found.value:
        return []
    calls = bench.rows[0].calls
    return [
        f"the fine trajectories are not fine enough: with half of their {calls} calls they end "
        f"{bench.fineness.value:.2g} away, the samples {found.value:.2g}; take more with --set fine={2 * calls}"
    ]
