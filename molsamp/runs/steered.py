"""The verb `image` with guides, a reward or a measurement: populations of pictures, in a run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molsamp.engine.estimates import mean
from molsamp.engine.noise import Noise
from molsamp.image import scans
from molsamp.image.populations import RENOISING, Populations
from molsamp.image.steered_analysis import Found, weights
from molsamp.image.steered_analysis import analyse as scored
from molsamp.image.subject import Subject
from molsamp.image.wishes import REWARDS, Wishes, guides, reward
from molsamp.learn.weights import digest
from molsamp.runs.checkpoint import replace, write_tensors, write_text
from molsamp.runs.config_steered import SteeredConfig
from molsamp.runs.sheet import sheet

SHOWN, ACROSS = 6, 16  # populations on a sheet at most, and pictures of each
SOLUTIONS, MEASURED = 5, 3  # of each measurement, and measurements, that are shown


@dataclass(frozen=True)
class Drawn:
    """Finished populations and what was found about them."""

    job: Populations
    found: Found
    config: SteeredConfig

    def save(self, folder: Path) -> None:
        """Write samples.safetensors, samples.png, and before.png, solutions.png, measurements.png where there are such.

        Raises:
            OSError: if the folder cannot be written.
        """
        save(self.job, folder, self.config)
        if self.found.alone is not None:
            _write(folder / "solutions.png", solutions_sheet(self.job, self.found.alone))
            _write(folder / "measurements.png", measurements_sheet(self.job))

    def figures(self, folder: Path) -> dict[str, Any]:
        """Write guidance, population, genealogy and final.csv; return what the report says of the settings."""
        write_guidance(self.job, folder)
        if self.found.steered is not None:
            write_populations(self.job, folder)
        told = ("n", "particles", "steps", "label", "guidance", "strength", "mode", "spread", "measurement")
        shown = {"shown": min(SHOWN, self.job.total), "compared": self.job.compared}
        return {"steered": True, **{name: getattr(self.config, name) for name in told}, **shown}

    def summary(self) -> dict[str, Any]:
        """What result.json says: costs, results, warnings."""
        return {
            "network_calls": self.job.calls,
            "forwards": self.job.forwards,
            "results": {k: e.as_dict() for k, e in self.found.results.items()},
            "comparison": {"network_calls": self.job.beside},
            "warnings": self.found.warnings,
        }


def settled(config: SteeredConfig) -> SteeredConfig:
    """Fill in what depends on other settings: solver, strength, the sha256 of the measurement's file.

    Raises:
        ValueError: settings that do not go together, or another file than the settings were made for.
    """
    if config.measurement is not None and config.operator is None:
        raise ValueError("--measurement: by which operator was it made? give --operator too")
    if config.strength is not None and config.reward is None:
        raise ValueError("--strength: it is that of a reward; give --reward too")
    if config.strength is None and config.reward is not None:
        config = config.model_copy(update={"strength": REWARDS.get(config.reward.partition(":")[0].strip())})
    if config.solver is None:
        usual = "ddpm" if config.reward is not None else "dpm++2m"
        published = config.operator is not None and config.mode == "published"
        config = config.model_copy(update={"solver": RENOISING if published else usual})
    if config.measurement is None:
        return config
    file = Path(config.measurement)
    if not file.is_file():
        raise ValueError(f"--measurement: {file}: no such file")
    now = digest(file)
    if config.measured not in (None, now):
        raise ValueError(f"measured: {file} has the sha256 {now}, the settings were made for {config.measured}")
    return config.model_copy(update={"measured": now})


def make(config: SteeredConfig, subject: Subject) -> Populations:
    """The job.

    Raises:
        ValueError: words that are no guide, reward or operator, a measurement that does not fit, or settings that do
            not go together.
    """
    named = () if config.guide is None else guides(config.guide)
    event = subject.denoiser.event
    wishes = Wishes(named, None if config.reward is None else reward(config.reward, event), config.strength or 0.0)
    if wishes.of_classes and config.guidance is not None:
        raise ValueError("--guidance: it and a guide of classes are one thing said twice; leave one out")
    if wishes.of_classes and subject.denoiser.conditional is None:
        raise ValueError(f"--guide: model '{config.model}' is unconditional, it knows no classes")
    if wishes.of_classes:
        _see_none(subject)
    if config.operator is not None:
        if config.label is None and (wishes.of_classes or config.guidance not in (None, 0.0)):
            raise ValueError("--operator: guidance wants the class of the picture that was measured; give --class")
        wishes = Wishes(named, wishes.reward, wishes.strength, _problem(config, subject))
    return Populations(
        subject,
        wishes,
        str(config.solver),
        config.steps,
        config.n,
        config.particles,
        grid=config.grid,
        every=config.every,
        kind=config.potential,
        eta=config.eta,
        diverged=config.diverged,
        noise=Noise(config.seed),
    )


def _see_none(subject: Subject) -> None:
    """See that a model of classes can also be asked about none, which guides of classes do."""
    d = subject.denoiser
    try:
        d.predict(torch.zeros(1, *d.event), d.schedule.start, None)
    except ValueError as error:
        raise ValueError(f"--guide: {error}") from None


def _problem(config: SteeredConfig, subject: Subject) -> scans.Problem:
    A, truth = scans.operator(str(config.operator), subject.denoiser.event), None
    if config.measurement is not None:
        y = scans.read(Path(config.measurement), A)
    else:
        parts = subject.pictures(config.data)
        if parts is None or not len(parts[1].x):
            raise ValueError(
                "--operator: there are no held-out pictures of this model to measure; give --measurement FILE.npy, or "
                "--set data=digits|mnist"
            )
        truth = parts[1].x[torch.arange(max(1, config.n // config.particles)) % len(parts[1].x)]
        y = scans.simulated(A, truth, config.spread, Noise(config.seed).child("measurement"))
    how = (config.mode, config.weight, config.inner, config.deviation)
    return scans.Problem(A, y, config.spread, truth, *how)


def analyse(job: Populations, config: SteeredConfig) -> Drawn:
    """Score the pictures."""
    return Drawn(job, scored(job, config.data), config)


def rescue(job: Populations, folder: Path, config: SteeredConfig) -> str:
    """Save the populations so far; a remark that says where."""
    if not bool(job.x.any()):
        return ""
    save(job, folder, config)
    return f"; the populations so far are in {folder}/samples.safetensors"


def save(job: Populations, folder: Path, config: SteeredConfig) -> None:
    """Write samples.safetensors, samples.png and before.png."""
    tensors = {"x": job.x, "status": job.status, "logw": job.logw}
    tensors |= {"before": job.before} if job.compared else {}
    tensors |= {} if job.labels is None else {"label": job.labels}
    if (problem := job.wishes.problem) is not None:
        tensors |= {"y": torch.view_as_real(problem.y) if problem.y.is_complex() else problem.y}
        tensors |= {} if problem.truth is None else {"truth": problem.truth}
    told = ("model", "guide", "reward", "strength", "operator", "solver", "steps", "seed")
    write_tensors(folder / "samples.safetensors", tensors, {name: getattr(config, name) for name in told})
    _write(folder / "samples.png", sheet(_rows(job, job.x), caption=_words(job, config)))
    if job.compared:
        _write(folder / "before.png", sheet(_rows(job, job.before), caption=_words(job, config, before=True)))


def _rows(job: Populations, x: Tensor) -> list[Tensor]:
    """The first pictures of the first populations, a row each; a large only one as about a square."""
    if job.total == 1 and job.size > ACROSS:
        across = math.ceil(math.sqrt(min(job.size, ACROSS * SHOWN)))
        return list(x[: min(job.size, ACROSS * SHOWN)].split(across))
    return [x[u * job.size :][: min(job.size, ACROSS)] for u in range(min(SHOWN, job.total))]


def _words(job: Populations, config: SteeredConfig, before: bool = False) -> str:
    words = [config.model, str(config.solver), f"{config.steps} steps", f"seed {config.seed}"]
    words += [f"class {config.label}"] if config.label is not None else []
    kept = job.wishes.reward is not None or not before
    words += [config.guide] if config.guide is not None and kept else []
    words += [f"{config.reward} x {config.strength:g}"] if config.reward is not None and not before else []
    words += [config.operator] if config.operator is not None and kept else []
    return "  ·  ".join(words)


def solutions_sheet(job: Populations, alone: Tensor) -> bytes:
    """A row a measurement: truth, back-projection, CG alone, mean of the solutions, some solutions."""
    problem = job.wishes.problem
    assert problem is not None
    w, m, rows = weights(job), job.size, []
    back = problem.operator.adjoint(problem.y).reshape(-1, *job.x.shape[1:])
    each = min(SOLUTIONS, m)
    for u in range(min(SHOWN, job.total)):
        k, x = u % len(problem.y), job.x[u * m : (u + 1) * m]
        some = x[w[u].argsort(descending=True, stable=True)[:each]]
        average = torch.einsum("m,m...->...", w[u], x.double())
        first = [] if problem.truth is None else [problem.truth[k].double()]
        rows.append(torch.stack([*first, _scaled(back[k]), alone[k], average, *some.double()]).float())
    headings = [*([] if problem.truth is None else ["truth"]), "adjoint", "CG", "mean"]
    return sheet(rows, [*headings, *(str(i + 1) for i in range(each))])


def measurements_sheet(job: Populations) -> bytes:
    """The first measurements, each scaled to its range; of complex numbers the logarithm of the size."""
    problem = job.wishes.problem
    assert problem is not None
    y = problem.y[:MEASURED]
    y = (y.abs() + 1e-3 * y.abs().amax()).log() if y.is_complex() else y
    tiles = y.reshape(len(y), -1, *y.shape[-2:])  # the axis before the last two: channels, coils, or none
    return sheet([torch.stack([_scaled(a[None]) for a in row]) for row in tiles])


def _scaled(a: Tensor) -> Tensor:
    """To [-1, 1]."""
    low, high = a.amin(), a.amax()
    return 2.0 * (a - low) / (high - low).clamp(min=1e-12) - 1.0


def write_guidance(job: Populations, folder: Path) -> None:
    """Write guidance.csv: how far each guide moves the aim, by row, mean of the populations with its 95 % interval."""
    names = [f"{name}:{number:g}" for name, number in job.wishes.guides]
    names += ["measurement"] if job.wishes.problem is not None else []
    lines = ["guide,row,t,rms,low,high"]
    for k, name in enumerate(names):
        for row in range(job.steps):
            e = mean(job.moved[:, k, row])
            ends = (f"{a:.6g}" if math.isfinite(a) else "" for a in e.interval)
            lines.append(",".join([name, str(row), f"{job.times[row]:.6g}", f"{e.value:.6g}", *ends]))
    if names:
        write_text(folder / "guidance.csv", "\n".join(lines) + "\n")


def write_populations(job: Populations, folder: Path) -> None:
    """Write population.csv (ESS), genealogy.csv (parents, population 0) and final.csv (weights, rewards)."""
    steered = job.steered()
    assert job.wishes.reward is not None
    lines = ["population,boundary,row,t,ess"]
    for b, row in enumerate(job.rows):
        lines += [f"{u},{b},{row},{job.times[row]:.6g},{float(e):.6g}" for u, e in enumerate(steered.effective[b])]
    write_text(folder / "population.csv", "\n".join(lines) + "\n")
    lines, line = ["boundary,particle,parent,survives"], steered.line()[:, : job.size]
    for b, parents in enumerate(steered.ancestors[:-1, : job.size]):
        alive = set(line[b + 1].tolist())
        lines += [f"{b},{i},{int(parent)},{int(i in alive)}" for i, parent in enumerate(parents)]
    write_text(folder / "genealogy.csv", "\n".join(lines) + "\n")
    with torch.no_grad():
        rewards = [job.wishes.reward(x) for x in (job.x, job.before)]
    lines = ["population,particle,weight,reward,before"]
    for i, (w, *r) in enumerate(zip(weights(job).flatten(), *rewards, strict=True)):
        numbers = ",".join(f"{float(a):.6g}" for a in (w, *r))
        lines.append(f"{i // job.size},{i % job.size},{numbers}")
    write_text(folder / "final.csv", "\n".join(lines) + "\n")


def _write(file: Path, png: bytes) -> None:
    replace(file, lambda temporary: temporary.write_bytes(png))
