"""FlowTurbo: the digits network as a velocity on straight lines, its last steps by a refiner of 5 % of the size.

The refiner is trained on pictures of the data set, never on the noises that are scored. Figures with R take two calls
of the refiner a step beside those of the model. On seeds 1 to 3 the claim holds by the pseudo corrector: H P^6, at
the same calls, is nearer still, and Euler's method with 8 calls is as near as H P^6 R^3. R is better than the velocity
frozen, but no gain: a perceptron of 5 % misses most of how the velocity of digits turns within a tenth of the time. The
paper scores FID, which may weigh that otherwise.
"""

from __future__ import annotations

import time

import torch

from molsamp.engine import Flow, Noise
from molsamp.image import data, network, rmse_to_fine, sample
from molsamp.image.refiner import Blocks, train, turbo
from molsamp.learn.networks import count

CLAIM = (
    "pseudo-corrector steps and three refined ones at the end (H P^6 R^3, 8 calls of the model) come nearer to the "
    "flow's end than Heun's method with 8 calls (Zhao et al., NeurIPS 2024)"
)
UNIT = "RMSE to the model's own fine trajectory, 256 noises; lower is better"
NOISES, CALLS = 256, 8


def measure(seed: int) -> dict[str, float]:
    """About 40 CPU seconds, most of it training."""
    noise = Noise(seed).child("flowturbo")
    told = network("digits")
    model = told.denoiser(Flow(start=0.99, end=0.01))
    start = model.schedule.sigma(model.schedule.start) * noise.child("start").normal(
        0, torch.arange(NOISES), model.event, torch.float32
    )
    fine = sample(model, "rk4", 400, noise=noise, start=start, grid="log-snr").final.x
    began = time.process_time()
    refiner = train(model, data.digits().split()[0].x, noise.child("refiner"))
    figures = {
        "seconds of training": time.process_time() - began,
        "parameters": count_all(refiner) / count_all(told.net),
    }

    def error(x):
        return rmse_to_fine(x, fine).value

    for name, blocks in {
        "method": "HPPPPPPRRR",
        "baseline": "HHHH",
        "H P^6": "HPPPPPP",
        "H P^9, 11 calls": "HPPPPPPPPP",
        "H P^3 R^6, 5 calls": "HPPPRRRRRR",
        "H P^4 R^4, 6 calls": "HPPPPRRRR",
    }.items():
        began = time.process_time()
        figures[name] = error(turbo(model, refiner, blocks, noise=noise, start=start).final.x)
        figures[f"{name}, ms an image"] = 1e3 * (time.process_time() - began) / NOISES
    frozen = turbo(model, lambda x, v, t: torch.zeros_like(x), "HPPPPPPRRR", noise=noise, start=start).final.x
    figures["H P^6 and the velocity frozen for three steps"] = error(frozen)
    figures["Heun, 7 steps, 14 calls"] = error(sample(model, Blocks("H" * 7), 7, noise=noise, start=start).final.x)
    figures["Euler, 8 calls"] = error(sample(model, "euler", CALLS, noise=noise, start=start).final.x)
    return figures


def count_all(net: torch.nn.Module) -> int:
    """Parameters, whether they still learn or not."""
    return count(net) or sum(p.numel() for p in net.parameters())
