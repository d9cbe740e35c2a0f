"""Teleportation: the first part of sampling in one exact step, where the model is nearly that of a Gaussian.

For data ~ N(m, S), S = U diag(L) U^T + rest (I - U U^T), the probability flow has the closed form

    x_t = alpha_t m + [U diag(sqrt(c_t(L) / c_s(L))) U^T + sqrt(c_t(rest) / c_s(rest)) (I - U U^T)] (x_s - alpha_s m),

with c_t(L) = alpha_t^2 L + sigma_t^2, in every schedule. While there is much noise any model is close to that of the
Gaussian with the mean and covariance of its data, so that the step costs no call; a solver does the rest of the way.
Data in several modes part early: a jump to too little noise loses the class of a picture.

Source: Wang and Vastola, "The unreasonable effectiveness of Gaussian score approximation for diffusion models and its
applications", TMLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.schedules import Schedule
from molsamp.image.sampling import grid_of


@dataclass(frozen=True)
class Gaussian:
    """N(m, S) over pictures, its covariance known by eigenpairs.

    Args:
        m: mean, float64.
        U: orthonormal columns, (d, r), d the pixels of a picture, float64.
        L: variances along them.
        rest: variance of everything else.
    """

    m: Float[Tensor, "*event"]
    U: Float[Tensor, "d r"]
    L: Float[Tensor, " r"]
    rest: float = 0.0

    def flow(self, schedule: Schedule, s: float, t: float, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """The exact probability flow from time s to t, up or down; dtype of x.

        Raises:
            ValueError: from a time where a direction of no variance has no noise either.
        """
        a, b = self._variances(schedule, s), self._variances(schedule, t)
        if float(a.min()) == 0.0:
            raise ValueError(f"at time {s:g} there is no noise, and this Gaussian has no variance in some directions")
        return self._along(x, schedule.alpha(s), schedule.alpha(t), (b / a).sqrt())

    def denoise(self, schedule: Schedule, x: Float[Tensor, "n *event"], t: float) -> Float[Tensor, "n *event"]:
        """E[x_0 | x_t] = m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m); dtype of x."""
        alpha, c = schedule.alpha(t), self._variances(schedule, t)
        return self._along(x, alpha, 1.0, torch.where(c > 0.0, alpha * self._spectrum() / c, 0.0))

    def _spectrum(self) -> Tensor:
        """L, and last the variance of the rest, (r + 1,)."""
        return torch.cat([self.L, self.L.new_tensor([self.rest])])

    def _variances(self, schedule: Schedule, t: float) -> Tensor:
        """c_t of each; of the rest only if there is one."""
        c = schedule.alpha(t) ** 2 * self._spectrum() + schedule.sigma(t) ** 2
        return c if self.U.shape[0] > self.U.shape[1] else torch.cat([c[:-1], c.new_ones(1)])

    def _along(self, x: Tensor, a: float, b: float, gain: Tensor) -> Tensor:
        """b m + [U diag(gain) U^T + gain_rest (I - U U^T)] (x - a m)."""
        m, U = (tensor.to(x.device) for tensor in (self.m.flatten(), self.U))
        gain, z = gain.to(x.device), x.flatten(1).double() - a * m
        along = z @ U
        y = b * m + gain[-1] * z + ((gain[:-1] - gain[-1]) * along) @ U.T
        return y.view_as(x).to(x)


def fit_gaussian(
    data: Float[Tensor, "K *event"], rank: int | None = None, explained: float = 1.0, shrinkage: float = 0.0
) -> Gaussian:
    """Mean and covariance of pictures by one singular value decomposition; for one class, give its pictures alone.

    S = (1 - shrinkage) [the leading eigenpairs of the covariance] + shrinkage tr(covariance) / d I.

    Args:
        data: two pictures or more.
        rank: eigenpairs kept; all unless given.
        explained: share of the variance that those kept must reach; they are as few as this allows.
        shrinkage: weight of the isotropic covariance, in [0, 1].

    Raises:
        ValueError: for fewer pictures, pictures that are all the same, a rank below 1, or a share outside its range.
    """
    if len(data) < 2:
        raise ValueError(f"a covariance needs two pictures or more, got {len(data)}")
    if (rank is not None and rank < 1) or not 0.0 < explained <= 1.0 or not 0.0 <= shrinkage <= 1.0:
        raise ValueError(
            f"rank is 1 or more, explained in (0, 1] and shrinkage in [0, 1], got {rank}, {explained:g}, {shrinkage:g}"
        )
    flat = data.flatten(1).double()
    m = flat.mean(0)
    _, singular, Vh = torch.linalg.svd((flat - m) / math.sqrt(len(flat) - 1), full_matrices=False)
    L = singular.square()
    total = float(L.sum())
    if not total > 0.0:
        raise ValueError("the pictures are all the same, a Gaussian has nothing to tell of them")
    least = len(L) * torch.finfo(L.dtype).eps * float(L[0])
    real = int(L.gt(least).sum())  # a centred set has one direction less
    enough = int((L.cumsum(0) < explained * total * (1.0 - 1e-12)).sum()) + 1
    r = min(real, enough, len(L) if rank is None else rank)
    floor = shrinkage * total / flat.shape[1]
    return Gaussian(m.view(data.shape[1:]), Vh[:r].T.contiguous(), (1.0 - shrinkage) * L[:r] + floor, floor)


def teleport(
    gaussian: Gaussian,
    schedule: Schedule,
    x: Float[Tensor, "n *event"],
    rho: float,
    intervals: int,
    grid: str | Sequence[float] | None = None,
    rest: Literal["spread", "drop"] = "spread",
) -> tuple[Float[Tensor, "n *event"], list[float]]:
    """The jump: (x at the first time, times) for `sample(start=x, grid=times)`.

    Args:
        gaussian: that of the data.
        schedule: of the model.
        x: noise, at the first time of the grid.
        rho: noise-to-signal ratio sigma / alpha to jump to: the sigma of papers in which alpha is 1.
        intervals: of the whole grid.
        grid: as `sample` takes it; "spread" needs a kind.
        rest: "drop" leaves out the nodes of more noise than rho and saves their calls, beginning at the first that is
            left; "spread" begins at rho and spends all intervals below it.

    Raises:
        ValueError: if rho is not below that of the first time and above that of the last, or times are to be spread.
    """
    times = grid_of(schedule, grid, intervals)
    begin, end = math.exp(-schedule.lam(times[0])), schedule.sigma(times[-1]) / schedule.alpha(times[-1])
    if not end < rho < begin:
        raise ValueError(f"sampling runs from rho = {begin:.4g} to {end:.4g}, and the jump to {rho:g} is not between")
    s = schedule.time(-math.log(rho))
    if rest == "spread":
        later = grid_of(schedule, grid, intervals, s)
    else:
        later = [t for t in times if t <= s * (1.0 + 1e-12)]
        if len(later) < 2:
            raise ValueError(f"no interval of this grid lies below rho = {rho:g}; its last begins at {times[-2]:g}")
    return gaussian.flow(schedule, times[0], later[0], x), later
