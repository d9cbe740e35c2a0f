"""AutoDiffusion: times of five steps searched on 32 noises, scored on 256 others; and blocks of the U-Net left out.

The baseline is the paper's, DDIM on the uniform grid. Beside it stand the best of the four kinds of grid, chosen on the
search's noises, for which nobody needs an evolution, and the same for UniPC. For blocks, 5 of 25 (5 in each step of the
MNIST network) are left out where the search says, against the best single block left out at every step, chosen on the
same noises.
"""

from __future__ import annotations

from functools import partial

import torch

from molsamp.engine import VP, Noise, time_grid
from molsamp.image import load, network, rmse_to_fine, sample
from molsamp.image.networks import Edit
from molsamp.image.search import Settings, per_step, search

CLAIM = (
    "five DDIM steps on the digits network at searched times come nearer to the fine trajectory than at uniform ones "
    "(Li et al., ICCV 2023)"
)
UNIT = "RMSE to the model's own fine trajectory, 256 noises not searched on; lower is better"
NOISES, SEARCHED, STEPS, BLOCKS = 256, 32, 5, 5
KINDS = ("uniform", "quadratic", "log-snr", "karras")
SEARCH = Settings(population=40, mutants=20, crossings=8, parents=8, epochs=8, rate=0.25)
SMALL = Settings(population=20, mutants=10, crossings=4, parents=6, epochs=8, rate=0.25)


def measure(seed: int) -> dict[str, float]:
    """About 65 CPU seconds, most of it in the U-Net."""
    noise = Noise(seed).child("autodiffusion")
    model, figures = load("digits"), {}
    for solver, names in (("ddim", ("method", "baseline", "best kind of grid")), ("unipc-2", None)):
        found = search(model, solver, STEPS, noise=noise.child("search"), n=SEARCHED, settings=SEARCH)
        score = partial(_errors, model, solver)
        kinds = [time_grid(kind, model.schedule, STEPS) for kind in KINDS]
        chosen = _least(score(kinds, noise.child("choose"), SEARCHED))
        scored = score([found.about["times"], kinds[0], kinds[chosen]], noise.child("score"), NOISES)
        names = names or tuple(f"{solver}, {name}" for name in ("searched", "uniform", "best kind of grid"))
        figures |= dict(zip(names, scored, strict=True))
        figures[f"{solver}, evaluations"] = found.history[-1][0]
    return figures | _blocks(noise.child("blocks"))


def _blocks(noise: Noise) -> dict[str, float]:
    told = network("mnist")

    def edited(edit):
        return told.denoiser(VP(), edit)

    leave = [(), *((k,) for k in range(BLOCKS))]
    found = search(
        told.denoiser(), "ddim", STEPS, noise=noise.child("search"), n=12, size=60, settings=SMALL, edited=edited,
        leave=leave, least=STEPS,
    )  # fmt: skip
    times = found.about["times"]
    everywhere = [edited(lambda t, k=k: Edit(without=(k,))) for k in range(BLOCKS)]
    chosen = _least([_errors(m, "ddim", [times], noise.child("search"), 12)[0] for m in everywhere])
    searched = edited(per_step(times, [Edit(without=out) for out in found.about["without"]]))
    models = {"as searched": searched, "the same at every step": everywhere[chosen]}
    return {
        f"U-Net, 5 of 25 blocks left out, {name}": _errors(m, "ddim", [times], noise, NOISES, told.denoiser())[0]
        for name, m in models.items()
    }


def _errors(model, solver, grids, noise, n, whole=None):
    """RMSE of each grid to the fine trajectory of the whole model."""
    start = noise.normal(0, torch.arange(n), model.event, torch.float32)
    fine = sample(whole or model, "unipc-3", 100, noise=noise, start=start).final.x
    found = (sample(model, solver, len(g) - 1, noise=noise, start=start, grid=g).final.x for g in grids)
    return [rmse_to_fine(x, fine).value for x in found]


def _least(values):
    return values.index(min(values))
