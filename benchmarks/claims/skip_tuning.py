"""Skip-Tuning: the deepest skip of the MNIST U-Net scaled by less than 1 (the shallowest by 1) while it samples.

The factor is chosen on 256 noises from those below 1, as published, for each solver and number of calls; 512 others are
scored. "chosen anywhere" also tries 1 and above. The two losses are those of one prediction of held-out digits at a
middle noise (sigma = alpha) over the same of the plain network: the paper finds the first to rise, the second to fall.

A null result here: in this network of two skips, on 16 x 16 pixels, a factor below 1 costs quality at every number of
calls; what little gain there is comes from factors above 1. Both losses rise, by
less than 1 %, where the paper finds that of features to fall.
"""

from __future__ import annotations

import time

import torch

from molsamp.engine import VP, Noise
from molsamp.image import data, features, frechet, network, sample
from molsamp.image.skips import tuned

CLAIM = (
    "UniPC-2 at 10 calls on the MNIST U-Net with its deepest skip scaled by a factor below 1 comes nearer to the "
    "digits than with the network as it is (Ma et al., ICML 2024)"
)
UNIT = "Frechet distance in the features of our MNIST classifier (not the FID), 512 samples; lower is better"
BELOW, FROM_ONE = (0.6, 0.7, 0.8, 0.9, 0.95), (1.0, 1.05, 1.1, 1.2)
CHOSEN, SCORED = 256, 512


def measure(seed: int) -> dict[str, float]:
    """About 95 CPU seconds."""
    noise, model, space = Noise(seed).child("skip_tuning"), network("mnist"), features("mnist")
    real, figures = data.mnist(), {}

    def score(rho: float, solver: str, calls: int, n: int, noise: Noise) -> float:
        return frechet(sample(tuned(model, rho), solver, calls, n, noise=noise).final.x, real.x, space).value

    for solver, calls, names in (
        ("unipc-2", 10, ("method", "baseline")),
        ("unipc-2", 5, ("unipc-2, 5 calls, below 1", "unipc-2, 5 calls, plain")),
        ("heun", 19, ("heun, 19 calls, below 1", "heun, 19 calls, plain")),
    ):
        few = solver == "heun"  # the dear one
        tried = (0.8, 0.9, 1.0, 1.1) if few else (*BELOW, *FROM_ONE)
        found = {rho: score(rho, solver, calls, CHOSEN, noise.child("choose")) for rho in tried}
        below, best = min((r for r in tried if r < 1.0), key=found.__getitem__), min(found, key=found.__getitem__)
        scored, began = {}, time.process_time()
        for rho in {below, best, 1.0}:
            scored[rho] = score(rho, solver, calls, SCORED, noise.child("score"))
        spent = (time.process_time() - began) / len(scored)
        figures |= {names[0]: scored[below], names[1]: scored[1.0]}
        figures |= {
            f"{solver}, {calls} calls, {what}": value
            for what, value in (
                ("factor below 1", below),
                ("factor chosen anywhere", best),
                ("chosen anywhere", scored[best]),
                ("seconds", spent),
            )
        }
    return figures | _losses(model, space, real.split()[1].x, noise.child("losses"))


def _losses(model, space, x: torch.Tensor, noise: Noise) -> dict[str, float]:
    """Of the prediction with factor 0.8 over that of the plain network, in pixels and in features."""
    t = VP().time(0.0)
    z = noise.normal(0, torch.arange(len(x)), tuple(x.shape[1:]), torch.float32)
    noisy = VP().alpha(t) * x + VP().sigma(t) * z
    pixels, inner = [], []
    for rho in (0.8, 1.0):
        D = tuned(model, rho)(noisy, t)
        pixels.append(float((D - x).square().mean()))
        inner.append(float((space(D) - space(x)).square().mean()))
    return {"pixel loss, 0.8 over 1": pixels[0] / pixels[1], "feature loss, 0.8 over 1": inner[0] / inner[1]}
