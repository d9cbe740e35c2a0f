"""AdjointDPM: gradients of a classifier's logit with respect to the noise that digits are sampled from.

The grid is that of Karras: off the manifold of the data the adjoint obeys da/drho = -a / rho, which a step back in
which rho more than doubles does not follow. The other figures say what the memory buys: the relative error of the
adjoint's gradient against autograd's through the same rows, and the mean logit that ten steps of ascent reach with
either gradient ("logit before" is that of the start).
"""

from __future__ import annotations

import time
from itertools import product

import torch

from molsamp.engine import Noise
from molsamp.image import load
from molsamp.image.gradients import Live, gradient
from molsamp.image.models import WEIGHTS, read

CLAIM = (
    "the adjoint equation gives the gradient through 40 steps of DDIM on the digits network in the memory of one step, "
    "against autograd, whose memory grows with the steps (Pan et al., ICLR 2024)"
)
UNIT = "peak MiB of live tensors, batch of 256; lower is better"
NOISES, STEPS, ASCENTS, RATE = 256, 40, 10, 0.1
TARGET = 3


def measure(seed: int) -> dict[str, float]:
    """About 30 CPU seconds."""
    noise = Noise(seed).child("adjoint_dpm")
    model, classifier = load("digits"), read(WEIGHTS / "digits-features.safetensors").net
    start = noise.child("start").normal(0, torch.arange(NOISES), model.event, torch.float32)

    def loss(x):
        return -classifier(x)[:, TARGET]

    def run(mode, steps=STEPS, x=start, solver="ddim"):
        return gradient(model, loss, x, solver=solver, steps=steps, noise=noise, grid="karras", mode=mode)

    figures = {}
    for mode, name in (("adjoint", "method"), ("full", "baseline"), ("checkpoint", "checkpoint")):
        with Live() as live:
            run(mode, x=start)
        figures[name] = live.peak / 2**20
    for solver, steps in product(("ddim", "unipc-2"), (10, STEPS, 2 * STEPS)):
        exact, began = run("checkpoint", steps, solver=solver), time.process_time()
        near, mark = run("adjoint", steps, solver=solver), f"{solver}, {steps} steps"
        figures[f"seconds of the adjoint, {mark}"] = time.process_time() - began
        figures[f"error of the gradient, {mark}"] = float((near.start - exact.start).norm() / exact.start.norm())
    figures["logit before"] = -float(run("adjoint").loss.mean())
    for mode in ("adjoint", "full"):
        x = start.clone()
        for _ in range(ASCENTS):
            g = run(mode, 20, x).start
            x = x - RATE * g / g.flatten(1).square().mean(1).sqrt().view(-1, 1, 1, 1)
        figures[f"logit after, {mode}"] = -float(run("adjoint", x=x).loss.mean())
    return figures
