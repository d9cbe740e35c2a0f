"""DualFast: noise predictions extrapolated away from the one before, against the same solver as it is.

The paper's schedule of c was not to be had: one c for all steps, the best of seven on 128 other noises, above 0 as in
the paper; "either sign" may also be below. On the ideal denoiser of the same digits the network's own error, which the
method is said to mend, is nothing: whatever it gains there it gains as a second-order term.
"""

from __future__ import annotations

from functools import cache

import torch

from molsamp.engine import Exponential, Noise
from molsamp.engine.exponential import ALWAYS
from molsamp.image import data
from molsamp.image.compensation import dualfast
from molsamp.image.models import load
from molsamp.image.sampling import sample
from molsamp.image.scoring import sliced_wasserstein

CLAIM = "DDIM with DualFast is nearer to the fine trajectory than DDIM (digits network, 5 calls)"
UNIT = "RMSE to the fine trajectory from the same noise, pixels in [-1, 1]"
N, CHOOSING, CALLS = 256, Noise(1 << 40).child("dualfast"), 5
ABOVE, BELOW = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5), (-0.1, -0.2, -0.3)


def pictures(model: str, order: int, c: float, noise: Noise, n: int) -> torch.Tensor:
    """By DDIM (order 1) or UniPC-2 in noise form."""
    corrects = order if order > 1 else 0
    solver = Exponential(order, form="noise", corrects=corrects, short=ALWAYS, mixes=dualfast(CALLS, c))
    return sample(load(model), solver, CALLS, n, noise=noise).final.x


def error(model: str, order: int, c: float, noise: Noise, n: int) -> float:
    """RMSE."""
    fine = sample(load(model), "unipc-3", 200, n, noise=noise, grid="log-snr").final.x
    return float((pictures(model, order, c, noise, n) - fine).double().square().mean().sqrt())


@cache
def chosen(model: str, order: int, tried: tuple[float, ...]) -> float:
    """c."""
    return min(tried, key=lambda c: error(model, order, c, CHOOSING, 128))


def measure(seed: int) -> dict[str, float]:
    """About 20 CPU seconds."""
    figures, noise, real = {}, Noise(seed), data.digits().x
    for model, mark in (("digits", ""), ("ideal:digits", ", ideal")):
        for order, name in ((1, ""), (2, ", UniPC-2")):
            c = chosen(model, order, ABOVE)
            figures["method" + name + mark] = error(model, order, c, noise, N)
            figures["baseline" + name + mark] = error(model, order, 0.0, noise, N)
            figures["c" + name + mark] = c
            figures["c of either sign" + name + mark] = chosen(model, order, (*ABOVE, 0.0, *BELOW))
    for what, c in (("method", chosen("digits", 1, ABOVE)), ("baseline", 0.0)):
        x = pictures("digits", 1, c, noise, N)
        figures[what + ", distance to the digits"] = sliced_wasserstein(x, real, Noise(0)).value
    return figures
