"""Calls of the model for the same PSNR of Shepp and Logan's head: DDS against gradient guidance through the model.

The problems, the model and what chooses settings are those of `phantoms`, 64 pixels a side; gradient guidance is that
of `dds`, its step chosen for every number of calls by going up from the one before, in factors of 4. Which number of
DDS's calls is compared is chosen on other phantoms too. Where gradient guidance does not reach the PSNR in as many
calls as were tried, that number stands, which flatters it.

    python benchmarks/steered/phantom_calls.py FILE.png [SEED]        pictures of all reconstructions
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from steered import phantoms
from steered.dds import by_gradient, needed
from steered.phantoms import SCANS, Scan, by_dds, choosing, chosen, prior, scored
from torch import Tensor

CLAIM = "DDS reaches the PSNR of gradient guidance through the model in a tenth of its calls or fewer (CT and MRI)"
UNIT = "calls of the model for one PSNR, Shepp-Logan 64 x 64; lower is better"
BELOW = 0.1
CODE = (*phantoms.CODE, "benchmarks/steered/phantoms.py", "benchmarks/steered/dds.py")
MANY, FIRST = (10, 40, 160), {"ct": 0.2, "mri": 6.4}


def guided(scan: Scan, seed: int, zeta: float, calls: int) -> Tensor:
    """Pictures by gradient guidance."""
    return by_gradient(
        prior(seed).denoiser(64), scan.measured, zeta, calls, len(scan.truth), scan.noise.child("gradient")
    )


@cache
def step(kind: str, seed: int, calls: int, quick: bool) -> tuple[float, float]:
    """zeta for a number of calls, and the PSNR of the phantoms that chose it."""
    many = _many(quick)
    zeta = FIRST[kind] if calls == many[0] else step(kind, seed, many[many.index(calls) - 1], quick)[0]
    scan = choosing(kind, seed)
    tried = {zeta: scan.psnr(guided(scan, seed, zeta, calls))}
    for factor in (4.0, 0.25):
        at = zeta
        while at == max(tried, key=tried.__getitem__):
            at *= factor
            tried[at] = scan.psnr(guided(scan, seed, at, calls))
    best = max(tried, key=tried.__getitem__)
    return best, tried[best]


def _many(quick: bool) -> tuple[int, ...]:
    return MANY[:2] if quick else MANY


def measure(seed: int, quick: bool = False) -> dict[str, float]:
    """About 3 CPU minutes."""
    figures, ratios = {}, []
    for kind in SCANS:
        scan, model, theirs, mine = scored(kind, 64, seed), prior(seed).denoiser(64), {}, {}
        for calls in _many(quick):
            zeta, reached = step(kind, seed, calls, quick)
            theirs[calls] = reached, scan.psnr(guided(scan, seed, zeta, calls))
            figures[f"{kind}: PSNR by gradient, {calls} calls"] = theirs[calls][1]
        for calls in (phantoms.QUICK if quick else phantoms.USUAL).calls:
            how, reached = chosen(kind, seed, calls, quick)
            mine[calls] = reached, scan.psnr(by_dds(model, scan, how, calls))
            figures[f"{kind}: PSNR of DDS, {calls} calls"] = mine[calls][1]
        at = max(mine, key=lambda c: needed(theirs, mine[c][0], 0) / c)
        ratios.append((float(at), needed(theirs, mine[at][1], 1)))
        figures |= {f"{kind}: calls of DDS": ratios[-1][0], f"{kind}: calls by gradient": ratios[-1][1]}
    worst = max(ratios, key=lambda r: r[0] / r[1])  # the claim is on both
    return {"method": worst[0], "baseline": worst[1], **figures}


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, True)


def draw(file: str, seed: int) -> None:
    """Every scan a row: truth, without a model, by gradient guidance (64 pixels), by DDS; with PSNR."""
    from matplotlib.figure import Figure

    torch.set_num_threads(1)
    rows = [(kind, side) for kind in SCANS for side in phantoms.SIDES]
    names = ("truth", "direct", "conjugate gradients", "gradient guidance", "DDS")
    figure = Figure(figsize=(3.0 * len(names), 3.1 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(names))
    for (kind, side), row in zip(rows, axes, strict=True):
        scan, found = scored(kind, side, seed), phantoms.pictures(kind, side, seed)
        found["truth"] = scan.truth
        if side == 64:
            found["gradient guidance"] = guided(scan, seed, step(kind, seed, MANY[-1], False)[0], MANY[-1])
        for ax, name in zip(row, names, strict=True):
            ax.axis("off")
            if name in found:
                ax.imshow(found[name][0, 0], cmap="gray", vmin=-1.0, vmax=0.2)
                shown = f"{kind} {side}" if name == "truth" else f"{name} {scan.psnr(found[name]):.1f} dB"
                ax.set_title(shown.replace("direct", "back-projection" if kind == "ct" else "zero-filled"), fontsize=10)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    draw(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
