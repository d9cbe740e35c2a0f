"""What a steered population tells: log Z and averages with their errors, from weights and lines of descent.

Particles that share a first ancestor are not independent, and nothing else makes them dependent (Chan and Lai, Ann.
Statist. 41, 2877 (2013)). With M_i the share of the weight that descends from the i-th of m starts, exp(log Z) is the
mean of the starts' m Z M_i, and its relative variance is estimated by their scatter,

    V = (m sum_i M_i^2 - 1) / (m - 1),

which is var(w) / (m mean(w)^2) without resampling; the variance of a weighted mean likewise. Each start's offspring
vary in number at the expense of the others', which V takes for noise of Z: it is about right for systematic resampling,
wide for multinomial. (Lee and Whiteley, Biometrika 105, 609 (2018), take that out, but it then is too small by as much
for systematic resampling.) Replicas, where there are some, need none of this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molsamp.engine.estimates import Z95, Estimate, student95
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.particles import grouped, live_weights, resample, sizes
from molsamp.engine.state import Particles

ALWAYS = 2.0  # a share of n that no effective number reaches


@dataclass(frozen=True)
class Steered:
    """Weighted particles at the end of `steering.steer`, and how they came there.

    Args:
        particles: n of them, population after population; log weights carry log Z.
        groups: populations, of m = n / groups each.
        rows: of the table, at whose ends were boundaries.
        effective: ESS of every population at every boundary, before resampling.
        ancestors: index, among the particles at boundary b, of each one that left it; the last is everyone themselves.
        warnings: what a reader must know.
    """

    particles: Particles
    groups: int
    rows: tuple[int, ...]
    effective: Float[Tensor, "boundaries groups"]
    ancestors: Int[Tensor, "boundaries n"]
    warnings: tuple[str, ...] = ()

    @property
    def logw(self) -> Float[Tensor, "groups m"]:
        """Log weights, -inf for what diverged."""
        return grouped(live_weights(self.particles), self.groups)

    @property
    def weights(self) -> Float[Tensor, "groups m"]:
        """Normalised within every population."""
        return torch.softmax(self.logw, 1)

    def line(self) -> Int[Tensor, "boundaries n"]:
        """Index at every boundary of the final particles' ancestors there."""
        line = [self.ancestors[-1]]
        for parents in self.ancestors[:-1].flip(0):
            line.append(parents[line[-1]])
        return torch.stack(line[::-1])

    def starts(self) -> Int[Tensor, "groups m"]:
        """The start that every particle descends from, numbered within its population."""
        return grouped(self.line()[0], self.groups) % (len(self.particles) // self.groups)

    def log_z(self) -> list[Estimate]:
        """log Z of every population, nats, with a 95 % interval by V; unbounded once all descend from one start."""
        m, ess = self.logw.shape[1], sizes(self.logw)
        found = []
        for g, share in enumerate(self._shares(torch.ones_like(self.logw))):
            value = log_mean_exp(self.logw[g])[0]
            if m == 1 or int((share > 0).sum()) == 1:
                error = math.inf
            else:
                error = math.sqrt(max(m * float(share.square().sum()) - 1.0, 0.0) / (m - 1))
            half = Z95 * error
            found.append(Estimate(value, (value - half, value + half), "nats", m, float(ess[g])))
        return found

    def average(self, f: Float[Tensor, " n"], unit: str = "1") -> list[Estimate]:
        """The weighted mean of f in every population, with a 95 % interval by the starts' contributions."""
        values, ess = grouped(f.double(), self.groups), sizes(self.logw)
        means = (self.weights * values).sum(1)
        error = self._shares(values - means[:, None]).square().sum(1).sqrt()
        count = (self._shares(torch.ones_like(self.logw)) > 0).sum(1)
        found = []
        for g in range(self.groups):
            n = int(count[g])
            half = math.inf if n < 2 else student95(n - 1) * math.sqrt(n / (n - 1)) * float(error[g])
            value = float(means[g])
            found.append(Estimate(value, (value - half, value + half), unit, self.logw.shape[1], float(ess[g])))
        return found

    def pooled_log_z(self) -> Estimate:
        """log Z where the populations are replicas of one problem: the log of their mean Z, interval by scatter."""
        each = self._z()
        value, error = log_mean_exp(each)
        half = math.inf if self.groups < 2 else student95(self.groups - 1) * error
        return Estimate(value, (value - half, value + half), "nats", self.groups, float(sizes(each[None])[0]))

    def pooled(self, f: Float[Tensor, " n"], unit: str = "1") -> Estimate:
        """The weighted mean of f over replicas, sum_g Z_g f_g / sum_g Z_g, interval by their scatter."""
        share, R = torch.softmax(self._z(), 0), self.groups
        means = (self.weights * grouped(f.double(), R)).sum(1)
        value = float(share @ means)
        if R < 2:
            return Estimate(value, (-math.inf, math.inf), unit, R)
        error = math.sqrt(float((share * (means - value)).square().sum()) * R / (R - 1))
        half = student95(R - 1) * error
        return Estimate(value, (value - half, value + half), unit, R, float(sizes(share.log()[None])[0]))

    def resampled(self, noise: Noise) -> Particles:
        """Particles of equal weight within every population; some are copies."""
        return resample(self.particles, noise, self.rows[-1], below=ALWAYS, groups=self.groups)[0]

    def _z(self) -> Float[Tensor, " groups"]:
        return self.logw.new_tensor([log_mean_exp(a)[0] for a in self.logw])

    def _shares(self, f: Float[Tensor, "groups m"]) -> Float[Tensor, "groups m"]:
        """sum of W f over what descends from each start."""
        return torch.zeros_like(self.logw).scatter_add(1, self.starts(), self.weights * f)
