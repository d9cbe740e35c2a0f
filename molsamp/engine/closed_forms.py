"""Linear Gaussian chains solved exactly: the truth that samplers, shooting moves and estimators are tested against.

Every scheme of the engine, applied to a free particle or to a harmonic force, is a linear recursion of each
coordinate's state s = (x,) or (x, v), driven by one standard normal z_k per row:

    s_{k+1} = A s_k + a + B z_k,     k = 0 .. n-1.

So every finite-time law below is that of the *discrete* scheme: no time-step error separates it from a rollout.
What is weighed or conditioned are the ends (x_0, x_n); the rest of the path then follows by Gaussian regression
whatever the law of the ends becomes. Hitting a set at *any* frame has no closed form, not even in one dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Tilt:
    """A weighting of paths by their last p ends, p = 1: (x_n,), p = 2: (x_0, x_n).

    Args:
        log_z: log of the mean weight over the free paths, nats: log Z of a reward, log P of an event.
        mean: of the ends under the weighted law, (p,).
        cov: likewise, (p, p).
    """

    log_z: float
    mean: Float[Tensor, " p"]
    cov: Float[Tensor, "p p"]


@dataclass(frozen=True)
class LinearChain:
    """s_{k+1} = A s_k + a + B z_k with s_0 ~ N(mean, cov), for one coordinate; all tensors are float64.

    Args:
        A: (d, d), d = 1 for s = (x,), 2 for s = (x, v).
        a: (d,).
        B: (d,).
        mean: of s_0, (d,).
        cov: of s_0, (d, d).
        h: length of a step.
        steps: n.
    """

    A: Float[Tensor, "d d"]
    a: Float[Tensor, " d"]
    B: Float[Tensor, " d"]
    mean: Float[Tensor, " d"]
    cov: Float[Tensor, "d d"]
    h: float
    steps: int

    @property
    def times(self) -> list[float]:
        """The grid 0, h, .., n h."""
        return [k * self.h for k in range(self.steps + 1)]

    def moments(self) -> tuple[Float[Tensor, "frames d"], Float[Tensor, "frames d d"]]:
        """Mean and covariance of s at every frame: m' = A m + a, C' = A C A^T + B B^T."""
        m, C = [self.mean], [self.cov]
        for _ in range(self.steps):
            m.append(self.A @ m[-1] + self.a)
            C.append(self.A @ C[-1] @ self.A.T + torch.outer(self.B, self.B))
        return torch.stack(m), torch.stack(C)

    def stationary(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Fixed point of `moments`: (I - A) m = a and the discrete Lyapunov equation C - A C A^T = B B^T.

        Raises:
            ValueError: if A is not a contraction, so that no stationary law exists.
        """
        radius = float(torch.linalg.eigvals(self.A).abs().max())
        if radius >= 1.0:
            raise ValueError(f"no stationary law: the spectral radius of A is {radius:.6g}, it must be below 1")
        d = len(self.a)
        m = torch.linalg.solve(torch.eye(d, dtype=self.A.dtype) - self.A, self.a)
        lyapunov = torch.eye(d * d, dtype=self.A.dtype) - torch.kron(self.A, self.A)
        return m, torch.linalg.solve(lyapunov, torch.outer(self.B, self.B).reshape(-1)).view(d, d)

    def ends(self) -> tuple[Float[Tensor, "2"], Float[Tensor, "2 2"], Float[Tensor, "frames d 2"]]:
        """Mean and covariance of (x_0, x_n), and Cov(s_k, (x_0, x_n)) = (A^k C_0 e, C_k (A^{n-k})^T e), e = (1, 0)."""
        m, C = self.moments()
        powers = [torch.eye(len(self.a), dtype=self.A.dtype)]
        for _ in range(self.steps):
            powers.append(self.A @ powers[-1])
        A_k = torch.stack(powers)
        with_first = (A_k @ self.cov)[:, :, 0]
        with_last = torch.einsum("kij,kj->ki", C, A_k.flip(0)[:, 0, :])
        cross = torch.stack([with_first, with_last], dim=-1)
        return torch.stack([m[0, 0], m[-1, 0]]), torch.stack([cross[0, 0], cross[-1, 0]]), cross

    def conditioned(self, tilt: Tilt) -> tuple[Float[Tensor, "frames d"], Float[Tensor, "frames d d"]]:
        """Mean and covariance of s at every frame of the weighted path ensemble.

        With ends y ~ N(m_y, S) and gain G_k = Cov(s_k, y) S^-1, given y the path is Gaussian and does not know the
        weight, so E[s_k] = m_k + G_k (E'[y] - m_y), Cov'(s_k) = C_k - G_k (S - Cov'(y)) G_k^T, primes weighted.
        """
        p = len(tilt.mean)
        m, C = self.moments()
        m_y, S, cross = self.ends()
        m_y, S, cross = m_y[-p:], S[-p:, -p:], cross[:, :, -p:]
        G = torch.linalg.solve(S, cross.transpose(1, 2)).transpose(1, 2)
        return m + G @ (tilt.mean - m_y), C - G @ (S - tilt.cov) @ G.transpose(1, 2)

    def _last(self) -> tuple[float, float]:
        m, C = self.moments()
        return float(m[-1, 0]), float(C[-1, 0, 0])

    def rewarded(self, target: float, width: float) -> Tilt:
        """Weight exp(-(x_n - b)^2 / (2 w^2)), with log Z = log(w^2 / (w^2 + S)) / 2 - (b - m)^2 / (2 (w^2 + S))."""
        m, S = self._last()
        total = width**2 + S
        log_z = 0.5 * math.log(width**2 / total) - 0.5 * (target - m) ** 2 / total
        return _tilt(log_z, m + S / total * (target - m), S * width**2 / total)

    def pinned(self, target: float) -> Tilt:
        """The bridge x_n = b; log_z is the log density of x_n at b."""
        m, S = self._last()
        return _tilt(-0.5 * (LOG_2PI + math.log(S) + (target - m) ** 2 / S), target, 0.0)

    def beyond(self, edge: float) -> Tilt:
        """The event x_n > b, by the truncated normal: with z = (b - m)/sqrt(S) and the inverse Mills ratio
        r = phi(z) / P, P = Phi(-z), the mean is m + sqrt(S) r and the variance S (1 + z r - r^2).
        """
        m, S = self._last()
        z = (edge - m) / math.sqrt(S)
        log_p = float(torch.special.log_ndtr(torch.tensor(-z, dtype=torch.float64)))
        r = math.exp(-0.5 * (z * z + LOG_2PI) - log_p)
        return _tilt(log_p, m + math.sqrt(S) * r, S * (1.0 + z * r - r * r))

    def crossing(self, start: float, edge: float, nodes: int = 400) -> Tilt:
        """The event x_0 < a and x_n > b of a chain whose s_0 is random: one half is closed, x_0 is integrated by
        Gauss-Legendre quadrature out to twelve standard deviations, which is exact to about 1e-12.
        """
        m, S, _ = self.ends()
        sd = float(S[0, 0].sqrt())
        top = min(start, float(m[0]) + 12.0 * sd)
        x0, dx = legendre(min(top, float(m[0])) - 12.0 * sd, top, nodes)
        slope = S[0, 1] / S[0, 0]
        m_n, var_n = m[1] + slope * (x0 - m[0]), S[1, 1] - slope * S[0, 1]
        z = (edge - m_n) / var_n.sqrt()
        log_tail = torch.special.log_ndtr(-z)
        log_w = dx.log() - 0.5 * ((x0 - m[0]) / sd) ** 2 - 0.5 * LOG_2PI - math.log(sd) + log_tail
        log_p = torch.logsumexp(log_w, 0)
        w = (log_w - log_p).exp()
        r = (-0.5 * (z**2 + LOG_2PI) - log_tail).exp()
        y = torch.stack([x0, m_n + var_n.sqrt() * r])
        mean = y @ w
        cov = (y * w) @ y.T - torch.outer(mean, mean)
        cov[1, 1] += w @ (var_n * (1.0 + z * r - r * r))
        return Tilt(float(log_p), mean, cov)

    def control(self, target: float, width: float) -> Control:
        """The best drift-only control for `rewarded(target, width)`; see `Control`."""
        c = torch.zeros(len(self.a), dtype=self.A.dtype)
        c[0] = 1.0
        offset, spread = torch.zeros((), dtype=self.A.dtype), torch.full((), width**2, dtype=self.A.dtype)
        gains, rho = [], []
        for _ in range(self.steps):  # backwards: x_n = c s_{k+1} + offset + noise of variance spread - w^2
            g = c @ self.B
            rho.append(g**2 / spread)
            offset, spread, c = offset + c @ self.a, spread + g**2, self.A.T @ c
            gains.append(torch.cat([(target - offset)[None], -c]) * g / spread)
        log_z = self.rewarded(target, width).log_z
        return Control(torch.stack(gains[::-1]), torch.stack(rho[::-1]), self.h, log_z)


@dataclass(frozen=True)
class Control:
    """u_k(s) = g_k (b - E[x_n | s_k = s]) / (w^2 + V_k): the Riccati solution, and what it leaves undone.

    Here g_k = dx_n/dz_k and V_k = sum_{j >= k} g_j^2 is the variance of x_n that is still to come. u minimises
    E_u[sum u^2/2 + (x_n - b)^2 / (2 w^2)] over all controls that shift the noise. The optimal law itself (Doob's
    transform) draws z_k ~ N(u_k, 1/(1 + rho_k)), rho_k = g_k^2 / (w^2 + V_{k+1}): it has the same mean but also less
    noise, so at a finite step no shift of the noise reaches zero variance. With xi_k the noise drawn under u,

        log(reward) - log dP_u/dP_0 = log Z + sum_k [log(1 + rho_k) - rho_k xi_k^2] / 2      on every path,

    whose mean and variance follow at once. Callable as (t, x, v), elementwise over independent coordinates.

    Args:
        gains: (n, 1 + d), u_k = gains[k, 0] + gains[k, 1:] . s.
        rho: (n,).
        h: length of a step, to find k = t / h.
        log_z: log of the mean reward over the free paths.
    """

    gains: Float[Tensor, "rows coefficients"]
    rho: Float[Tensor, " rows"]
    h: float
    log_z: float

    def __call__(self, t: float, x: Tensor, v: Tensor | None = None) -> Tensor:
        """u in noise units, the shape of x."""
        constant, in_x, *in_v = self.gains[round(t / self.h)].tolist()
        u = constant + in_x * x
        return u if v is None else u + in_v[0] * v

    def log_weight(self, xi: Float[Tensor, "rows n"]) -> Float[Tensor, " n"]:
        """log(reward) - log dP_u/dP_0 of the paths driven by u and the noise xi."""
        return self.log_z + 0.5 * (torch.log1p(self.rho)[:, None] - self.rho[:, None] * xi**2).sum(0)

    @property
    def lower_bound(self) -> float:
        """Mean of `log_weight`: log Z - KL(P_u || Q) = log Z - sum [rho - log(1 + rho)] / 2."""
        return self.log_z - 0.5 * float((self.rho - torch.log1p(self.rho)).sum())

    @property
    def variance(self) -> float:
        """Variance of `log_weight`, sum rho^2 / 2: the least log-variance loss, of order h."""
        return 0.5 * float((self.rho**2).sum())


@dataclass(frozen=True)
class Harmonic:
    """The field whose trajectories the chains below describe: E = k |x - c|^2 / 2 summed over coordinates.

    Args:
        stiffness: k, kJ/mol/nm^2 or reduced.
        centre: c, nm or reduced.
    """

    stiffness: float
    centre: float = 0.0

    def energy_force(self, x: Float[Tensor, "n *event"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *event"]]:
        """E and F = -k (x - c)."""
        d = x - self.centre
        return 0.5 * self.stiffness * (d**2).flatten(1).sum(1), -self.stiffness * d


def ornstein_uhlenbeck(
    *, rate: float, D: float, h: float, steps: int, x0: float, centre: float = 0.0, var0: float = 0.0
) -> LinearChain:
    """Euler-Maruyama for dx = -rate (x - centre) dt + sqrt(2 D) dW, x_0 ~ N(x0, var0); rate = 0 is Brownian motion."""
    return LinearChain(
        A=_f64([[1.0 - rate * h]]),
        a=_f64([rate * h * centre]),
        B=_f64([math.sqrt(2.0 * D * h)]),
        mean=_f64([x0]),
        cov=_f64([[var0]]),
        h=h,
        steps=steps,
    )


def oscillator(
    *,
    stiffness: float,
    mass: float,
    kT: float,
    friction: float,
    h: float,
    steps: int,
    x0: float,
    scheme: Literal["langevin-middle", "semi-implicit-euler"] = "langevin-middle",
    v0: float | None = None,
) -> LinearChain:
    """Underdamped particle in U = k x^2 / 2 from x_0, with v_0 given or Maxwell-Boltzmann, by a named scheme.

    The matrices are products of the scheme's verbs: kick v += -h k/m x, drift x += h v (or h/2 v), and the
    noise v <- c v + s z, with c = exp(-gamma h) (LangevinMiddle) or kick and noise as one line (semi-implicit Euler).
    """
    I = torch.eye(2, dtype=torch.float64)
    kick = I.clone()
    kick[1, 0] = -h * stiffness / mass
    drift = I.clone()
    if scheme == "langevin-middle":
        c = math.exp(-friction * h)
        drift[0, 1] = 0.5 * h
        A = drift @ torch.diag(_f64([1.0, c])) @ drift @ kick
        s = math.sqrt((1.0 - c * c) * kT / mass)
    else:
        drift[0, 1] = h
        damped = kick.clone()
        damped[1, 1] = 1.0 - friction * h
        A = drift @ damped
        s = math.sqrt(2.0 * friction * kT * h / mass)
    thermal = kT / mass if v0 is None else 0.0
    return LinearChain(
        A=A,
        a=_f64([0.0, 0.0]),
        B=drift @ _f64([0.0, s]),
        mean=_f64([x0, 0.0 if v0 is None else v0]),
        cov=torch.diag(_f64([0.0, thermal])),
        h=h,
        steps=steps,
    )


def _f64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _tilt(log_z: float, mean: float, variance: float) -> Tilt:
    return Tilt(log_z, _f64([mean]), _f64([[variance]]))


def legendre(a: float, b: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [a, b], from the eigenvalues of the Jacobi matrix (Golub and Welsch)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    beta = k / (4.0 * k**2 - 1.0).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return 0.5 * (a + b) + 0.5 * (b - a) * x, (b - a) * vectors[0] ** 2
