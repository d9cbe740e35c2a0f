"""A linear-Gaussian inverse problem, y = A x + spread e in 8 dimensions: every law is a Gaussian that is known.

Affine samplers (DDS in both modes, gradients of the plain residual) are propagated exactly: no draws, no seeds but y's.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from laws.measuring import BEST, F64, Truth, wasserstein
from steered.dds import Stub, Through
from torch import Tensor

from molsamp.engine import VP, GaussianMixture, Noise, Particles, step, time_grid
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Guided, Uphill
from molsamp.engine.integrators import Integrator, Line
from molsamp.engine.operators import Matrix
from molsamp.engine.renoising import Renoising
from molsamp.engine.steering import unforeseen
from molsamp.image import sample, steer
from molsamp.image.ideal import mixture
from molsamp.image.inverse import DDS, Bayes, GaussianPrior, Measured

D, M, SPREAD, STEPS, EVERY = 8, 3, 0.2, 24, 4
SCHEDULE, END = VP(), 1e-3
Q = torch.linalg.qr(Noise(0).normal(0, torch.arange(D), (D,))).Q
C = Q @ torch.diag(torch.logspace(0.0, -2.0, D, dtype=F64)) @ Q.T
A = Noise(1).normal(0, torch.arange(M), (D,)) / math.sqrt(D)
EYE = torch.eye(D, dtype=F64)
LAW = GaussianMixture(torch.zeros(1, D, dtype=F64), C[None])
SDE = LAW.sde(SCHEDULE)
ALONG = torch.nn.functional.normalize(Noise(2).normal(0, torch.arange(16), (D,)), dim=1)
NODES = torch.linspace(-5.0, 5.0, 501, dtype=F64)
ZETAS = (0.03, 0.1, 0.3)


def moments(integrator: Integrator, times: list[float]) -> tuple[Tensor, Tensor]:
    """Mean and covariance at the end of an affine scheme of one evaluation a row, from N(0, sigma^2 I)."""
    m, S, basis = torch.zeros(D, dtype=F64), SCHEDULE.sigma(times[0]) ** 2 * EYE, torch.cat([0.0 * EYE[:1], EYE])
    for row in integrator.rows(SDE, times):
        ends = step(row, SDE, Particles.at(basis), torch.zeros_like(basis) if row.draws else None)[0].x
        N = [v.noise for v in row.program if isinstance(v, Line) and v.noise is not None]
        J = (ends[1:] - ends[0]).T
        m, S = J @ m + ends[0], J @ S @ J.T + (N[0] ** 2 * EYE if N else 0.0)
    return m, S


def conditioned(S: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and covariance of N(0, S) given y, and log p(y)."""
    total = A @ S @ A.T + SPREAD**2 * torch.eye(M, dtype=F64)
    gain = torch.linalg.solve(total, A @ S).T
    log_p = torch.distributions.MultivariateNormal(torch.zeros(M, dtype=F64), total).log_prob(y)
    return gain @ y, S - gain @ A @ S, float(log_p)


def sliced(m: Tensor, S: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Wasserstein distance to N(m, S), the mean over 16 directions."""
    found = [wasserstein(x @ a, w, NODES, torch.special.ndtr((NODES - a @ m) / (a @ S @ a).sqrt())) for a in ALONG]
    return torch.stack(found).mean(0)


def between(m: Tensor, S: Tensor, m1: Tensor, S1: Tensor) -> float:
    """2-Wasserstein distance of two Gaussians: |m - m1|^2 + tr(S + S1 - 2 (S^1/2 S1 S^1/2)^1/2), its root."""
    l, V = torch.linalg.eigh(S)
    root = V @ torch.diag(l.clamp(min=0.0).sqrt()) @ V.T
    cross = torch.linalg.eigvalsh(root @ S1 @ root).clamp(min=0.0).sqrt().sum()
    return math.sqrt(max(0.0, float((m - m1).square().sum() + S.trace() + S1.trace() - 2.0 * cross)))


class Linear:
    """y from the seed; the truth of particles is what the chain's own law becomes given y."""

    methods = ("difference, exact value", "guided by bayes", "at the end", BEST)
    guided = (
        "DDS, published", "DDS, weight 1 / spread^2", "DDS, bayes", "DDS, bayes, eta 0", "gradient, v = spread^2",
        "gradient guidance",
    )  # fmt: skip

    def __init__(self, seed: int):
        self.noise = Noise(seed).child("linear")
        z = self.noise.normal(0, torch.arange(1), (D + M,))[0]
        self.y = A @ torch.linalg.cholesky(C) @ z[:D] + SPREAD * z[D:]
        self.measured = Measured(Matrix(A, (D,)), self.y[None])
        self.times = time_grid("log-snr", SCHEDULE, STEPS, 1.0, END)
        m, S, log_z = conditioned(moments(DDIM(1.0), self.times)[1], self.y)
        self.truth = Truth(m, log_z, lambda x, w: sliced(m, S, x, w))

    def observed(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x)."""
        return -0.5 * (x @ A.T - self.y).square().sum(1) / SPREAD**2 - M * math.log(SPREAD * math.sqrt(2.0 * math.pi))

    def foreseen(self, t: float, p: Particles) -> Tensor:
        """log p(y | x_t) of the process: y given x_t is N(A D, A V A' + spread^2)."""
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        V = sigma**2 * torch.linalg.solve(alpha**2 * C + sigma**2 * EYE, C)
        total = A @ V @ A.T + SPREAD**2 * torch.eye(M, dtype=F64)
        law = torch.distributions.MultivariateNormal(torch.zeros(M, dtype=F64), total)
        return law.log_prob(self.y - SDE.denoise(p.x, t) @ A.T)

    def populations(self, method: str, m: int, groups: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Feynman-Kac particles of the prior, of the guided sampler with weights to the prior's, and all at the end."""
        own, solver = {"every": EVERY, "value": self.foreseen}, DDIM(1.0)
        if method in ("at the end", BEST):
            own = {"every": STEPS, "value": unforeseen, "below": 0.0}
        elif method == "guided by bayes":
            solver, own["base"] = Guided(DDIM(1.0), Bayes(self.measured, SPREAD, GaussianPrior(C))), DDIM(1.0)
        how = {"noise": noise, "groups": groups, "grid": self.times, "dtype": F64}
        found = steer(mixture(LAW, SCHEDULE, (D,)), self.likelihood, solver, STEPS, m * groups, **how, **own)
        return found.particles.x, found.logw

    @classmethod
    def by_calls(cls, method: str, seed: int) -> list[dict[str, float]]:
        """Against the posterior itself: relative error of the mean, trace of the covariance, distance of Gaussians."""
        problem = cls(seed)
        exact = conditioned(C, problem.y)[:2]
        if method == "gradient guidance":
            other = cls(seed + 1000)
            target = conditioned(C, other.y)[:2]
        found = []
        for calls in (10, 20, 50, 100, 200):
            if method == "gradient guidance":
                zeta = min(ZETAS, key=lambda z: between(*other.by_gradient(z, calls), *target))
                m, S = problem.by_gradient(zeta, calls)
            else:
                m, S = moments(problem.rule(method), time_grid("log-snr", SCHEDULE, calls, 1.0, END))
            if not bool(torch.isfinite(S).all()) or float(S.trace()) > 1e6:
                continue  # it has exploded
            found.append(
                {
                    "calls": float(calls),
                    "mean": float((m - exact[0]).norm() / exact[0].norm()),
                    "variance": float(S.trace() / exact[1].trace()),
                    "distance": between(m, S, *exact),
                }
            )
        return found

    def rule(self, method: str) -> Integrator:
        """The affine samplers."""
        if method.startswith("DDS, bayes"):
            eta = 0.0 if method.endswith("eta 0") else 1.0
            return Guided(DDIM(eta), Bayes(self.measured, SPREAD, GaussianPrior(C), tolerance=1e-10))
        if method.startswith("DDS"):
            return Guided(Renoising(0.85), DDS(self.measured, 1.0 if method == "DDS, published" else SPREAD**-2))
        log_h = lambda x, t: -0.5 * (SDE.denoise(x, t) @ A.T - self.y).square().sum(1) / SPREAD**2  # noqa: E731
        return Guided(DDIM(1.0), Uphill(log_h))

    def by_gradient(self, zeta: float, calls: int) -> tuple[Tensor, Tensor]:
        """Moments of 1000 draws of Chung et al.'s algorithm, its step along the gradient of the residual's length."""
        model, times = mixture(LAW, SCHEDULE, (D,)), time_grid("log-snr", SCHEDULE, calls, 1.0, END)
        following = {s: SCHEDULE.alpha(t) for s, t in pairwise(times)}
        solver = Guided(DDIM(1.0), Through(model, self.measured, zeta, following))
        noise = self.noise.child(f"gradient {calls}")
        x = sample(Stub(model), solver, calls, 1000, noise=noise, grid=times, dtype=F64).final.x
        return x.mean(0), torch.cov(x.T)
