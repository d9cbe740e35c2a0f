"""Guidance rules against p(x | c)^w p(x)^(1 - w), which none of them samples: classes that overlap, and that do not.

Where the classes lie far apart that law is the class's own Gaussian (log odds of 64 nats at its mean), so all that a
rule adds along the class mean is overshoot; where they overlap on the line, it is integrated on a grid.
"""

from __future__ import annotations

import math

import torch
from laws.measuring import F64, Truth, law, wasserstein
from torch import Tensor

from molsamp.engine import EDM, VP, GaussianMixture, Noise, time_grid
from molsamp.image import APG, CFG, CFGpp, guided, sample, steer
from molsamp.image.ideal import mixture

DIM, RADIUS, SPREAD, N = 64, 4.0, 0.5, 512
MEANS = RADIUS * torch.linalg.qr(Noise(0).normal(0, torch.arange(4), (DIM,)).T).Q.T
APART = GaussianMixture(MEANS, torch.full((4,), SPREAD**2, dtype=F64))
ONE = GaussianMixture(MEANS[:1], torch.full((1,), SPREAD**2, dtype=F64))
NODES = torch.linspace(-7.0, 9.0, 1601, dtype=F64)
BOTH = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), torch.full((2,), 0.36, dtype=F64))
RIGHT = GaussianMixture(torch.tensor([[1.0]], dtype=F64), torch.full((1,), 0.36, dtype=F64))
WEIGHT, LINE, END = 4.0, VP(), 1e-3


class Apart:
    """The projection on the class mean of four Gaussians in 64 dimensions, |mean| = 4, spread 0.5."""

    guided = ("CFG, w = 4", "APG, w = 4", "CFG, w = 20", "APG, w = 20", "APG, w = 20, capped, momentum")

    def __init__(self):
        cdf = torch.special.ndtr((NODES - RADIUS) / SPREAD)
        self.truth = Truth(
            torch.tensor([RADIUS], dtype=F64), 0.0, lambda x, w: wasserstein(x @ MEANS[0] / RADIUS, w, NODES, cdf)
        )

    def observed(self, x: Tensor) -> Tensor:
        """Along the class mean."""
        return x @ MEANS[:1].T / RADIUS

    @classmethod
    def by_calls(cls, method: str, seed: int) -> list[dict[str, float]]:
        """512 draws; every row asks the conditional and the unconditional model once, counted as one call."""
        unconditional, conditional = mixture(APART, EDM(), (DIM,)), mixture(ONE, EDM(), (DIM,))
        w, capped = float(method.split("w = ")[1].split(",")[0]), method.endswith("momentum")
        how = {"radius": 2.5, "momentum": -0.5} if capped else {}
        rule, found = CFG(unconditional, w) if method[0] == "C" else APG(unconditional, w, **how), []
        for calls in (10, 20, 40, 80):
            noise = Noise(seed).child(f"apart {calls}")
            x = sample(conditional, guided("ddim", rule), calls, N, noise=noise, grid="karras", dtype=F64).final.x
            found.append({"calls": float(calls), **law(cls(), x)})
        return found


class Overlapping:
    """Two classes on the line, means -1 and 1, spread 0.6, w = 4."""

    guided = ("CFG", "CFG++, w = 1", "FK, 256 particles")

    def __init__(self, seed: int = 0, steps: int = 100):
        self.steps, self.times = steps, time_grid("log-snr", LINE, steps, 1.0, END)
        both, right = (of.log_density(NODES[:, None]) for of in (BOTH, RIGHT))
        p = torch.softmax(WEIGHT * right + (1.0 - WEIGHT) * both, 0)
        log_z = float(torch.logsumexp(WEIGHT * right + (1.0 - WEIGHT) * both, 0) + math.log(float(NODES[1] - NODES[0])))
        cdf = p.cumsum(0) - 0.5 * p
        self.truth = Truth((p @ NODES)[None], log_z, lambda x, w: wasserstein(x.flatten(1), w, NODES, cdf))

    def observed(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def populations(self, m: int, groups: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Steered by (w - 1) log p(x | c) / p(x), of the noised laws on the way."""

        def advantage(right: GaussianMixture, both: GaussianMixture, x: Tensor) -> Tensor:
            return (WEIGHT - 1.0) * (right.log_density(x) - both.log_density(x))

        found = steer(
            mixture(RIGHT, LINE, (1,)),
            lambda x: advantage(RIGHT, BOTH, x),
            "ddpm",
            self.steps,
            m * groups,
            noise=noise,
            value=lambda t, p: advantage(RIGHT.marginal(LINE, t), BOTH.marginal(LINE, t), p.x),
            every=max(1, self.steps // 10),
            groups=groups,
            grid=self.times,
            dtype=F64,
        )
        return found.particles.x, found.logw

    @classmethod
    def by_calls(cls, method: str, seed: int) -> list[dict[str, float]]:
        """Of 8192 draws, in 32 populations where there are some."""
        found = []
        for steps in (10, 20, 40, 80):
            problem, noise = cls(seed, steps), Noise(seed).child(f"overlapping {steps}")
            if method == "FK, 256 particles":
                x, logw = problem.populations(256, 32, noise)
                w = torch.softmax(logw.flatten(), 0)
                entry = {
                    "mean": abs(float(w @ x[:, 0]) - float(problem.truth.mean)),
                    "distance": float(problem.truth.distance(x[None], w[None])),
                }
            else:
                both, right = mixture(BOTH, LINE, (1,)), mixture(RIGHT, LINE, (1,))
                rule = CFG(both, WEIGHT) if method == "CFG" else CFGpp(both, 1.0)
                how = {"noise": noise, "grid": problem.times, "dtype": F64}
                entry = law(problem, sample(right, guided("ddpm", rule), steps, 8192, **how).final.x)
            found.append({"calls": float(steps), **entry})
        return found
