"""One noise chosen for all inputs against fresh noise, in fourfold super-resolution of MNIST (4 x 4 to 16 x 16).

The model is exact: the posterior of a kernel density over 4500 training digits given y = shrink(x) + s_y n. K = 64
candidates are compared on R = 16 pairs, DDIM with 10 calls, by distance in the features of our classifier; everything
is reported on 64 other pairs. Neither set is among the training digits.

How much there is to choose depends on how much y leaves open. With s_y = 0.4 some 400 training digits are compatible
with y, with 0.2 some 30 (extras "s_y = 0.2"). In a first trial (32 candidates, s_y = 0.1 to 0.4) of twofold
super-resolution y names one to three digits, h hardly depends on x_T and the agreement of ranks was within 0.03 of
nothing: there is no shared good noise to be found there. This trial is why s_y = 0.4 is the case that is scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molsamp.engine import VP, Noise
from molsamp.image.boundary import Pairs, choose_start, distance_in, restorer
from molsamp.image.data import mnist, shrink
from molsamp.image.denoiser import Denoiser
from molsamp.image.ideal import ideal, observed_log_w
from molsamp.image.models import features
from molsamp.image.sampling import sample

CLAIM = (
    "on digits that did not choose it, the noise that restores 16 reference digits best among 64 restores better than "
    "fresh noise does (DDIM, 10 calls, fourfold super-resolution of MNIST)"
)
UNIT = "squared distance to the truth in the features of our classifier of MNIST"
K, R, H, CALLS, SIDE = 64, 16, 64, 10, 4


def measure(seed: int) -> dict[str, float]:
    """About 20 CPU seconds."""
    train, held = mnist().split()
    noise, low, metric = Noise(seed), shrink(train.x, SIDE), distance_in(features("mnist"))
    candidates = noise.child("candidates").normal(0, torch.arange(K), (1, 16, 16), torch.float32)
    order = noise.child("pairs").uniform(0, torch.arange(len(held.x))).argsort()
    figures: dict[str, float] = {}
    for s_y, mark in ((0.4, ""), (0.2, ", s_y = 0.2")):

        def model(y: Tensor, s_y: float = s_y) -> Denoiser:
            return ideal(train.x, VP(), 0.1, log_w=observed_log_w(y, low, s_y))

        def pairs(some: Tensor, s_y: float = s_y) -> Pairs:
            x = held.x[some]
            n = noise.child("observation").normal(0, some, (1, SIDE, SIDE), torch.float32)
            return Pairs(shrink(x, SIDE) + s_y * n, x)

        references, others = pairs(order[:R]), pairs(order[R : R + H])
        choice = choose_start(restorer(model, "ddim", CALLS), candidates, references, others, metric)
        figures["method" + mark] = float(choice.held_out[choice.index])
        figures["baseline" + mark] = float(choice.held_out.mean())
        figures["on the references" + mark] = float(choice.reference[choice.index])
        figures["share of candidates that are better" + mark] = choice.better
        figures["Spearman's correlation of ranks" + mark] = choice.agreement
        if not mark:
            x = sample(model(others.y), "ddpm", 100, H, noise=noise.child("ddpm")).final.x
            figures["DDPM, 100 calls"] = float(metric(x, others.x).mean())
            for calls in (5, 20):
                x = restorer(model, "ddim", calls)(choice.start.expand(H, -1, -1, -1), others.y)
                figures[f"the same start, {calls} calls"] = float(metric(x, others.x).mean())
    return figures


if __name__ == "__main__":
    print(measure(1))
