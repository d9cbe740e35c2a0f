"""Numbers with their uncertainty: a value without an interval is not a result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Z95 = 1.959963984540054
CARRY = 3.0  # samples, at least, that a sum is to rest on


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Args:
        value: the estimate; NaN where there were no data.
        interval: (low, high) at 95 %.
        unit: as printed.
        n: samples behind it.
        ess: effective sample size where weights were involved.
    """

    value: float
    interval: tuple[float, float]
    unit: str = "1"
    n: int = 0
    ess: float | None = None

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4g} [{low:.4g}, {high:.4g}]" + ("" if self.unit == "1" else f" {self.unit}")

    def as_dict(self) -> dict:
        """The form of result.json; non-finite numbers become null."""

        def number(a: float) -> float | None:
            return a if math.isfinite(a) else None

        entry = {
            "value": number(self.value),
            "interval": [number(a) for a in self.interval],
            "unit": self.unit,
            "n": self.n,
        }
        return entry if self.ess is None else {**entry, "ess": self.ess}


def wilson(successes: int, n: int, unit: str = "1") -> Estimate:
    """A proportion with its 95 % score interval (Wilson 1927)."""
    if n == 0:
        return Estimate(math.nan, (0.0, 1.0), unit, 0)
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-18
    high = 1.0 if successes == n else centre + half
    return Estimate(p, (low, high), unit, n)


def mean(samples: Float[Tensor, " n"], unit: str = "1") -> Estimate:
    """The mean of independent samples with its 95 % Student interval."""
    n = len(samples)
    if n == 0:
        return Estimate(math.nan, (math.nan, math.nan), unit, 0)
    value = float(samples.double().mean())
    if n == 1:
        return Estimate(value, (-math.inf, math.inf), unit, 1)
    half = student95(n - 1) * float(samples.double().std()) / math.sqrt(n)
    return Estimate(value, (value - half, value + half), unit, n)


def student95(nu: int) -> float:
    """97.5 % quantile of Student's t with nu >= 1 degrees of freedom (Cornish-Fisher; 1e-3 from nu = 3)."""
    exact = {1: 12.7062, 2: 4.3027}
    if nu in exact:
        return exact[nu]
    z = Z95
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / nu + g2 / nu**2 + g3 / nu**3 + g4 / nu**4


def ratio(numerator: Float[Tensor, " n"], denominator: Float[Tensor, " n"], unit: str = "1") -> Estimate:
    """sum(numerator) / sum(denominator) > 0 of n independent pairs, with a 95 % Student interval of its logarithm.

    With r the ratio and e_i = numerator_i - r denominator_i, var(ln r) = n / (n - 1) sum e_i^2 / sum(numerator)^2.

    Rare events come in bursts, and their scatter is seen too late. Where fewer than `CARRY` of the n carry the sum,
    sum(numerator)^2 < CARRY sum(numerator^2), what is left is Markov's inequality: an unbiased estimate that is not
    negative lies above 20 times the truth with a probability below 5 %. The interval is then [value / 20, inf).
    """
    n, top, bottom = len(numerator), float(numerator.double().sum()), float(denominator.double().sum())
    value = top / bottom if bottom else math.nan
    if n < 2 or not value > 0.0:
        return Estimate(value, (0.0, math.inf), unit, n)
    if top**2 < min(CARRY, 0.5 * n) * float(numerator.double().square().sum()):
        return Estimate(value, (0.05 * value, math.inf), unit, n)
    e = numerator.double() - value * denominator.double()
    half = student95(n - 1) * math.sqrt(n / (n - 1) * float(e.square().sum())) / top
    return Estimate(value, (value * math.exp(-half), value * math.exp(half)), unit, n)


def poisson(events: int, exposure: float, unit: str = "1") -> Estimate:
    """The rate of events that come independently, with its exact 95 % interval (Garwood 1936).

    The ends are the gamma quantiles g(2.5 %; events) and g(97.5 %; events + 1), over the exposure.
    """
    low = 0.0 if events == 0 else _gamma_quantile(0.025, events)
    return Estimate(events / exposure, (low / exposure, _gamma_quantile(0.975, events + 1) / exposure), unit, events)


def inverse(e: Estimate, unit: str = "1") -> Estimate:
    """1 / e of a quantity that is not negative."""

    def over(a: float) -> float:
        return 1.0 / a if a > 0.0 else math.inf

    return Estimate(over(e.value), (over(e.interval[1]), over(e.interval[0])), unit, e.n, e.ess)


def _gamma_quantile(p: float, shape: int) -> float:
    """Where the regularised gamma function P(shape, x) is p, by bisection."""
    low, high = 0.0, shape + 20.0 * math.sqrt(shape) + 20.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = float(torch.special.gammainc(*torch.tensor([shape, middle], dtype=torch.float64))) < p
        low, high = (middle, high) if below else (low, middle)
    return 0.5 * (low + high)
