"""Two Gaussians on the line, tilted by x - 0.15 x^2: closed form, and the discrete chain itself on a grid."""

from __future__ import annotations

import math
from functools import cache

import torch
from laws.measuring import BEST, F64, Truth, law, wasserstein
from torch import Tensor

from molsamp.engine import VP, GaussianMixture, Noise, time_grid
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Guided, Uphill
from molsamp.engine.steering import unforeseen
from molsamp.image import sample, steer
from molsamp.image.ideal import mixture

SCHEDULE, END, EVERY = VP(), 0.02, 4
LAW = GaussianMixture(
    torch.tensor([[-1.5], [1.5]], dtype=F64), torch.full((2,), 0.25, dtype=F64), torch.tensor([0.7, 0.3])
)
LINEAR, SQUARE = 1.0, 0.3
NODES = torch.linspace(-7.0, 7.0, 701, dtype=F64)
MOST = 256


def reward(x: Tensor) -> Tensor:
    """The log tilt, nats."""
    return LINEAR * x[:, 0] - 0.5 * SQUARE * x[:, 0] ** 2


def tilted(density: Tensor) -> Truth:
    """The law on the nodes of a density times exp(reward)."""
    w = density * reward(NODES[:, None]).exp() * float(NODES[1] - NODES[0])
    cdf = (w.cumsum(0) - 0.5 * w) / w.sum()
    mean = ((w * NODES).sum() / w.sum())[None]
    return Truth(mean, float(w.sum().log()), lambda x, v: wasserstein(x.flatten(1), v, NODES, cdf))


@cache
def chain(times: tuple[float, ...]) -> Tensor:
    """Density of the ancestral chain's end on the nodes, every kernel summed by the trapezoidal rule."""
    dx, s0 = float(NODES[1] - NODES[0]), SCHEDULE.sigma(times[0])
    p, root = torch.exp(-0.5 * (NODES / s0) ** 2) / (s0 * math.sqrt(2.0 * math.pi)), math.sqrt(2.0 * math.pi)
    sde = LAW.sde(SCHEDULE)
    for row in DDIM(1.0).rows(sde, times):
        line = row.program[1]
        centre = line.keep["x"] * NODES + line.weights[0] * sde.denoise(NODES[:, None], row.t0)[:, 0]
        p = dx * torch.exp(-0.5 * ((NODES[:, None] - centre) / line.noise) ** 2) @ p / (line.noise * root)
    return p


class Mixture:
    """At a number of steps; the truth of particles is the chain's own, so that no error of the steps hides theirs."""

    methods = ("difference", "max", "sum", "at the end", BEST)
    guided = ("FK, 256 particles", "FK, all of them", "gradient guidance")

    def __init__(self, seed: int, steps: int = 24):
        self.times = tuple(time_grid("log-snr", SCHEDULE, steps, 1.0, END))
        self.steps, self.truth = steps, tilted(chain(self.times))

    def observed(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def populations(self, method: str, m: int, groups: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Feynman-Kac particles by kind of potential; max and sum expect 0.3 of the reward, not to overshoot."""
        self.model = mixture(LAW, SCHEDULE, (1,))
        share, own = (1.0 if method == "difference" else 0.3), {"every": EVERY, "kind": method}
        if method in ("at the end", BEST):
            own = {"every": self.steps, "value": unforeseen, "below": 0.0}
        own.setdefault("value", lambda t, p: share * reward(self.model(p.x, t)))
        how = {"noise": noise, "groups": groups, "grid": self.times, "dtype": F64}
        found = steer(self.model, reward, "ddpm", self.steps, m * groups, **how, **own)
        return found.particles.x, found.logw

    @classmethod
    def by_calls(cls, method: str, seed: int) -> list[dict[str, float]]:
        """Against the exact process, mean, log Z and law pooled over 32 populations: what is left is the steps'."""
        found = []
        density = LAW.marginal(SCHEDULE, END).log_density(NODES[:, None]).exp()
        exact, tilt = tilted(density), reward(NODES[:, None]).exp()
        for steps in (6, 12, 24, 48, 96):
            problem, noise = cls(seed, steps), Noise(seed).child(f"{method} {steps}")
            chained, problem.truth = problem.truth, exact
            if method == "FK, all of them":
                calls, entry = (
                    steps + max(0, -(-steps // EVERY) - 1),
                    law_on_nodes(density * tilt, chain(problem.times) * tilt),
                )
                entry["log Z"] = abs(chained.log_z - exact.log_z)
            elif method == "gradient guidance":
                model = mixture(LAW, SCHEDULE, (1,))
                rule = Guided(DDIM(1.0), Uphill(lambda x, t, model=model: reward(model(x, t))))
                x = sample(model, rule, steps, 8192, noise=noise, grid=problem.times, dtype=F64).final.x
                calls, entry = model.calls // 2, law(problem, x)  # the guide asks for the same prediction, once
            else:
                x, logw = problem.populations("difference", MOST, 32, noise)
                logw = logw.flatten()[None]
                w = torch.softmax(logw, 1)
                calls, log_z = problem.model.calls, float(torch.logsumexp(logw, 1)) - math.log(logw.numel())
                entry = {
                    "mean": abs(float(w[0] @ x[:, 0]) - float(exact.mean)),
                    "log Z": abs(log_z - exact.log_z),
                    "distance": float(exact.distance(x[None], w)),
                }
            found.append({"calls": float(calls), **entry})
        return found


def law_on_nodes(exact: Tensor, w: Tensor) -> dict[str, float]:
    """Of a density on the nodes against another."""
    p, q = exact / exact.sum(), w / w.sum()
    gap = (p.cumsum(0) - 0.5 * p) - (q.cumsum(0) - 0.5 * q)
    return {"mean": abs(float((p - q) @ NODES)), "distance": float(torch.trapezoid(gap.abs(), NODES))}
