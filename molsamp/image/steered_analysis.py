"""From finished populations to the numbers of result.json: rewards, evidence, lineage, PSNR beside what CG reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molsamp.engine.estimates import Estimate, mean, wilson
from molsamp.engine.lineage import Steered
from molsamp.engine.state import Status
from molsamp.image.populations import Populations
from molsamp.image.scans import psnr
from molsamp.image.wishes import classifier, known

Estimates = dict[str, Estimate]
FEW = 0.25  # of the particles: an ESS below is warned of


@dataclass(frozen=True)
class Found:
    """What was found about the pictures.

    Args:
        results: `reward`, `reward_before`, `log_z`, `ess_share`, `ancestors`; `recognised`, `recognised_before`;
            `psnr`, `psnr_mean`, `psnr_cg`, `psnr_gain`, `misfit`; `diverged`; each where it can be told.
        steered: the populations with their lines of descent; None without a reward.
        alone: what conjugate gradients give without a model, (m, *event); None without a measurement.
        warnings: what a reader must know.
    """

    results: dict[str, Estimate]
    steered: Steered | None
    alone: Tensor | None
    warnings: list[str]


def analyse(job: Populations, data: str | None = None) -> Found:
    """Averages over populations, each weighed within itself; intervals by their scatter.

    Args:
        job: done.
        data: the data set whose mean picture conjugate gradients start from; None for the model's own, or 0.
    """
    lost = int((job.status == Status.DIVERGED).sum())
    warnings = [f"{lost} of {job.n} pictures diverged; they are kept at their last good state"] if lost else []
    results: Estimates = {}
    steered, alone = None, None
    if job.wishes.reward is not None:
        steered = job.steered()
        results |= _rewarded(job, steered)
        warnings += _cautions(job, steered)
    if job.compared:
        results |= _recognised(job)
    if job.wishes.problem is not None:
        alone = job.wishes.problem.alone(_mean_picture(job, data))
        results |= _solved(job, steered, alone)
    return Found({**results, "diverged": wilson(lost, job.n)}, steered, alone, warnings)


def weights(job: Populations) -> Tensor:
    """Of every picture within its population, (U, m); what diverged weighs nothing."""
    logw = torch.where(job.status == Status.DIVERGED, -torch.inf, job.logw).view(job.total, -1)
    return torch.nan_to_num(torch.softmax(logw, 1))


def _rewarded(job: Populations, steered: Steered) -> dict[str, Estimate]:
    assert job.wishes.reward is not None
    with torch.no_grad():
        after, before = (job.wishes.reward(x).double() for x in (job.x, job.before))
    found: Estimates = {}
    replicas = job.labels is None or job.subject.label is not None
    if replicas and job.wishes.problem is None:  # all populations have one law
        found |= {"reward": steered.pooled(after), "log_z": steered.pooled_log_z()}
    else:
        found["reward"] = mean((weights(job) * after.view(job.total, -1)).sum(1))
    starts = torch.tensor([float(len(row.unique())) for row in steered.starts()])
    return {
        **found,
        "reward_before": mean(before.view(job.total, -1).mean(1)),
        "ess_share": mean(steered.effective[-1] / job.size),
        "ancestors": mean(starts),
    }


def _recognised(job: Populations) -> Estimates:
    """Share of the pictures that the classifier takes for their class, after and before; {} where it cannot tell."""
    labels, event = job.labels, job.subject.denoiser.event
    if labels is None or not known(event):
        return {}
    net, found = classifier(event), {}
    for name, x, w in (("recognised", job.x, weights(job)), ("recognised_before", job.before, None)):
        with torch.no_grad():
            right = (net(x.float()).argmax(1) == labels).double().view(job.total, -1)
        share = mean(right.mean(1) if w is None else (w * right).sum(1))
        low, high = share.interval
        found[name] = replace(share, interval=(max(0.0, low), min(1.0, high)))
    return found


def _cautions(job: Populations, steered: Steered) -> list[str]:
    found = []
    if alone := job.alone():
        found.append(
            f"{alone} of {job.total} populations were once resampled from a single ancestor: their pictures are a "
            "search, not a sample; more particles, a weaker reward or nearer boundaries help"
        )
    if lines := sum(len(row.unique()) == 1 for row in steered.starts()) if job.size > 1 else 0:
        found.append(
            f"{lines} of {job.total} populations end with the offspring of a single start, the largest ESS of these "
            f"{_largest(steered):.1f}: log Z is then too low more often than not, its interval, by scatter, too narrow"
        )
    if (few := int((steered.effective[-1] < FEW * job.size).sum())) > 0:
        found.append(f"{few} of {job.total} populations end with an ESS below a quarter of their {job.size} particles")
    return found


def _largest(steered: Steered) -> float:
    """ESS at the end, the largest of the populations with a single start."""
    single = torch.tensor([len(row.unique()) == 1 for row in steered.starts()])
    return float(steered.effective[-1][single].max())


def _solved(job: Populations, steered: Steered | None, alone: Tensor) -> dict[str, Estimate]:
    problem, m = job.wishes.problem, job.size
    assert problem is not None
    w, of = weights(job), job.of % len(problem.y)
    measurement = of.view(-1, m)[:, 0]
    misfit = (w * problem.misfit(job.x, of).view(-1, m)).sum(1)
    found = {"misfit": _by(misfit, measurement, "1")}
    if problem.truth is None:
        return found
    truth = problem.truth
    each = (w * psnr(job.x, truth[of]).view(-1, m)).sum(1)
    averaged = torch.einsum("um,um...->u...", w, job.x.double().view(job.total, m, *job.x.shape[1:]))
    of_mean, of_cg = psnr(averaged, truth[measurement]), psnr(alone, truth)[measurement]
    return {
        "psnr": _by(each, measurement, "dB"),
        "psnr_mean": _by(of_mean, measurement, "dB"),
        "psnr_cg": _by(of_cg, measurement, "dB"),
        "psnr_gain": _by(of_mean - of_cg, measurement, "dB"),
        **found,
    }


def _by(values: Tensor, measurement: Tensor, unit: str) -> Estimate:
    """The mean over measurements, each of the mean of its populations."""
    return mean(torch.stack([values[measurement == k].mean() for k in measurement.unique()]), unit)


def _mean_picture(job: Populations, data: str | None) -> Tensor:
    event = job.subject.denoiser.event
    try:
        parts = job.subject.pictures(data)
    except ValueError:  # a package is missing
        parts = None
    return torch.zeros(event) if parts is None else parts[0].x.mean(0)
