"""Calls of the network for the same PSNR: decomposed diffusion sampling against gradient guidance through the network.

Gradient guidance (Chung et al., "Diffusion posterior sampling", ICLR 2023, algorithm 1) is ancestral sampling with

    x' <- x' - zeta grad_x |y - A D(x)|,

one pass forward and one back through the network a step, counted as one call. On both sides the settings are chosen for
every number of calls on training pictures, and so is the number of DDS's calls at which the two are compared; what is
scored are held-out ones. The calls that gradient guidance needs are read off its PSNR against log calls, made monotone;
where it does not get there in as many as were tried, that number stands, which flatters it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.exponential import DDIM, DPMSolverPP2M
from molsamp.engine.guides import Guided, Prediction
from molsamp.engine.renoising import Renoising
from molsamp.image import data, load, sample
from molsamp.image.inverse import DDS, Bayes, Isotropic, Measured
from molsamp.image.sampling import grid_of
from molsamp.image.scans import operator, psnr, simulated

CLAIM = "DDS reaches the PSNR of gradient guidance through the network in a tenth of its calls or fewer (CT and MRI)"
UNIT = "network calls for one PSNR, MNIST 16 x 16; lower is better"
BELOW = 0.1
PROBLEMS = {"ct": "radon:6", "mri": "mri:4"}
SPREAD = 0.05
CODE = tuple(
    f"molsamp/{name}.py"
    for name in (
        *("engine/guides", "engine/operators", "engine/scanners", "engine/conjugate_gradients", "engine/renoising"),
        *("engine/exponential", "engine/rollout", "engine/noise", "engine/schedules", "engine/grids"),
        *("image/inverse", "image/scans", "image/sampling", "image/denoiser", "image/networks", "image/models"),
    )
)


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        pictures: of each of choosing and scoring.
        few: numbers of calls of DDS.
        many: numbers of calls of gradient guidance.
        sizes: zeta.
        dds: weights of the published mode, eta, steps of conjugate gradients.
        deviations: of a pixel, for the mode "bayes".
    """

    pictures: int = 16
    few: tuple[int, ...] = (3, 5, 8, 12, 20)
    many: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    sizes: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    dds: tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]] = ((1.0, 10.0, 100.0), (0.0, 0.85), (5, 20))
    deviations: tuple[float, ...] = (0.5, 1.0, 2.0)


QUICK = Effort(6, (3, 6, 12), (10, 30, 90), (0.1, 0.4, 1.6), ((1.0, 30.0), (0.0, 0.85), (5,)), (1.0,))


class Through:
    """The step of gradient guidance as a guide: it asks the network itself, with its gradient.

    Args:
        denoise: the model.
        measured: A and y.
        zeta: step size.
        following: time -> alpha at the next time of the grid, by which the step multiplies the aim.
    """

    slots = 0

    def __init__(self, denoise: Callable, measured: Measured, zeta: float, following: dict[float, float]):
        self.denoise, self.measured, self.zeta, self.following = denoise, measured, zeta, following

    def __call__(self, p: Prediction, state):
        A, measured = self.measured.operator, self.measured
        with torch.enable_grad():
            x = p.x.detach().requires_grad_()
            D = self.denoise(x, p.t)
            gap = (A(measured.of(D)) - measured.seen(D)).abs().square().flatten(1).sum(1).sqrt()
            (g,) = torch.autograd.grad(gap.sum(), x)
        D = D.detach()
        return p.towards(D).aimed(D - self.zeta / self.following[p.t] * g), ()


class Stub:
    """A model whose prediction is the guide's business."""

    def __init__(self, model):
        self.schedule, self.event = model.schedule, model.event

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return x


def by_gradient(model, measured: Measured, zeta: float, calls: int, n: int, noise: Noise) -> Tensor:
    """Pictures by gradient guidance."""
    times = grid_of(model.schedule, None, calls)
    following = {s: model.schedule.alpha(t) for s, t in pairwise(times)}
    solver = Guided(DDIM(1.0), Through(model, measured, zeta, following))
    return sample(Stub(model), solver, calls, n, noise=noise, grid=times).final.x


def by_dds(model, measured: Measured, how: tuple, calls: int, n: int, noise: Noise) -> Tensor:
    """Pictures by DDS in one of its modes."""
    mode, *rest = how
    if mode == "published":
        weight, eta, inner = rest
        solver = Guided(Renoising(eta), DDS(measured, weight, inner))
    else:
        name, deviation = rest
        solver = Guided({"ddpm": DDIM(1.0), "2m": DPMSolverPP2M()}[name], Bayes(measured, SPREAD, Isotropic(deviation)))
    return sample(model, solver, calls, n, noise=noise).final.x


def measure(seed: int, effort: Effort = Effort()) -> dict[str, float]:
    """About 7 CPU minutes; with `QUICK` less than one."""
    figures, ratios = {}, []
    for name, word in PROBLEMS.items():
        found = _problem(word, seed, effort)
        figures |= {f"{name}: {k}": v for k, v in found.items()}
        ratios.append(found["calls of DDS"] / found["calls by gradient"])
    worst = max(range(len(ratios)), key=ratios.__getitem__)  # the claim is on both
    name = list(PROBLEMS)[worst]
    return {"method": figures[f"{name}: calls of DDS"], "baseline": figures[f"{name}: calls by gradient"], **figures}


def _problem(word: str, seed: int, effort: Effort) -> dict[str, float]:
    model, noise = load("mnist"), Noise(seed).child(word)
    A, (training, held_out) = operator(word, model.event), data.mnist().split()
    sides = {}
    for side, images in (("choosing", training), ("scoring", held_out)):
        order = noise.child(side).uniform(0, torch.arange(len(images.x))).argsort()
        truth = images.x[order[: effort.pictures]]
        y = simulated(A, truth, SPREAD, noise.child(f"{side} y"))
        sides[side] = truth, Measured(A, y), noise.child(f"{side} x")
    weights, etas, inner = effort.dds
    modes = [("published", *how) for how in product(weights, etas, inner)]
    modes += [("bayes", *how) for how in product(("ddpm", "2m"), effort.deviations)]
    mine, theirs = (
        {calls: _curve(lambda how, c=calls, b=by, s=sides: _psnrs(b, model, s, how, c), options) for calls in numbers}
        for by, numbers, options in ((by_dds, effort.few, modes), (by_gradient, effort.many, effort.sizes))
    )
    at = max(effort.few, key=lambda c: needed(theirs, mine[c][0], 0) / c)
    figures = {"calls of DDS": float(at), "calls by gradient": needed(theirs, mine[at][1], 1)}
    for calls in effort.few:
        figures[f"PSNR of DDS, {calls} calls"] = mine[calls][1]
        figures[f"needed by gradient for that of {calls}"] = needed(theirs, mine[calls][1], 1)
    return figures | {f"PSNR by gradient, {calls} calls": theirs[calls][1] for calls in effort.many}


def _psnrs(by: Callable, model, sides: dict, how, calls: int) -> Callable[[str], float]:
    def on(side: str) -> float:
        truth, measured, noise = sides[side]
        return float(psnr(by(model, measured, how, calls, len(truth), noise), truth).nan_to_num(-100.0).mean())

    return on


def _curve(psnrs: Callable, options) -> tuple[float, float]:
    """PSNR on the pictures that chose the setting, and of that setting on the others."""
    chosen = {how: psnrs(how)("choosing") for how in options}
    best = max(chosen, key=chosen.__getitem__)
    return chosen[best], psnrs(best)("scoring")


def needed(curve: dict[int, tuple[float, float]], target: float, side: int) -> float:
    """Calls for a PSNR, by linear interpolation in log calls of the running maximum; an end of the curve outside it."""
    last: tuple[float, float] | None = None
    for calls, both in sorted(curve.items()):
        value = max(both[side], last[1] if last else -math.inf)
        if value >= target:
            if last is None or value == last[1]:
                return float(calls)
            share = (target - last[1]) / (value - last[1])
            return math.exp((1.0 - share) * math.log(last[0]) + share * math.log(calls))
        last = (calls, value)
    return float(max(curve))


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, QUICK)
