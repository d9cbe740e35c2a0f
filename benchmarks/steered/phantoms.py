"""Shepp and Logan's head from few projections (CT) and a quarter of the frequencies (MRI): DDS against no model at all.

The model is a mixture of Gaussians of patches (`_patches`), fitted to phantoms of random ellipses; DDS's mode, its
settings and number of calls, the window of filtered back-projection and where conjugate gradients stop are chosen on
others of them, 64 pixels a side, and taken over at 128. The head is scored only. CT has 23 (45) views over half a turn
and noise of half a pixel's line; MRI the lowest 8 % of the columns and random ones, a quarter in all, four coils and
noise of 0.05 a frequency. The measurement is made by the operator that is inverted, which favours both sides.
What is told is the mean squared error of the scan that gained least: 2 dB are a ratio of 0.631.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from steered._ellipses import head, others
from steered._patches import Patches
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Guided
from molsamp.engine.operators import Operator, normal
from molsamp.engine.renoising import Renoising
from molsamp.engine.scanners import Fourier, Radon
from molsamp.image import Denoiser, sample
from molsamp.image.inverse import DDS, Bayes, Isotropic, Measured
from molsamp.image.scans import coils, operator, psnr, simulated

CLAIM = "DDS gains 2 dB or more over filtered back-projection, zero-filling and early-stopped conjugate gradients"
UNIT = "mean squared error of the head, of the scan that gained least over the best without a model; lower is better"
BELOW = 10.0**-0.2
SCANS = {"ct": (23, 0.5), "mri": (4, 0.05)}  # views at 64 or acceleration, spread of the noise
SIDES = (64, 128)
STEPS = range(1, 25)  # of conjugate gradients alone
WINDOWS = (math.inf, 1.0, 0.6)  # Hann's cut-off over Nyquist's frequency
CODE = (
    *("benchmarks/steered/_ellipses.py", "benchmarks/steered/_patches.py"),
    *(f"molsamp/engine/{name}.py" for name in ("guides", "operators", "scanners", "conjugate_gradients", "renoising")),
    *(f"molsamp/engine/{name}.py" for name in ("exponential", "rollout", "noise", "schedules", "grids")),
    *(f"molsamp/image/{name}.py" for name in ("inverse", "scans", "sampling", "denoiser")),
)
How = tuple[str, float, float, int]


@dataclass(frozen=True)
class Effort:
    """What is tried: weights of the published mode for each scan, deviations of "bayes", calls."""

    weights: dict[str, tuple[float, ...]]
    deviations: tuple[float, ...] = (0.3, 1.0)
    calls: tuple[int, ...] = (5, 10, 20)
    sides: tuple[int, ...] = SIDES


USUAL = Effort({"ct": (0.1, 1.0), "mri": (3.0, 10.0)})
QUICK = Effort({"ct": (0.1,), "mri": (10.0,)}, (), (5, 10), (64,))


@dataclass(frozen=True)
class Scan:
    """Pictures and what was measured of them."""

    A: Operator
    truth: Tensor
    measured: Measured
    spread: float
    noise: Noise

    @classmethod
    def of(cls, kind: str, truth: Tensor, noise: Noise) -> Scan:
        """Of pictures of any size."""
        side, (number, spread) = truth.shape[-1], SCANS[kind]
        if kind == "ct":
            A = operator(f"radon:{number * side // 64}", (1, side, side))
        else:
            A = Fourier(columns(side, number, noise.child("columns")), coils(4, side), real=True)
        return cls(A, truth, Measured(A, simulated(A, truth, spread, noise.child("y"))), spread, noise)

    def above(self) -> Tensor:
        """y of the pictures less their background of -1."""
        return self.measured.y + self.A(torch.ones(1, *self.A.domain, dtype=torch.float64))

    def without_filter(self, k: int) -> Tensor:
        """k steps of conjugate gradients from the background."""
        x, _ = conjugate_gradients(lambda v: normal(self.A, v), self.A.adjoint(self.above()), steps=k)
        return x[:, None] - 1.0

    def directly(self, window: float) -> Tensor:
        """Filtered back-projection, or zero-filling."""
        if isinstance(self.A, Radon):
            return filtered(self.A, self.above(), window)[:, None] - 1.0
        return self.A.adjoint(self.above())[:, None] - 1.0

    def psnr(self, x: Tensor) -> float:
        """Mean over pictures, dB."""
        return float(psnr(x, self.truth).nan_to_num(-100.0).mean())


def columns(side: int, acceleration: int, noise: Noise) -> Tensor:
    """Mask (side, side): the lowest 8 % of the columns and others at random, side / acceleration in all."""
    at = torch.arange(side)
    u = noise.uniform(0, at)
    u[torch.minimum(at, side - at) <= round(0.04 * side) - 1] = -1.0
    seen = torch.zeros(side, dtype=torch.float64)
    seen[u.argsort()[: side // acceleration]] = 1.0
    return seen.expand(side, side).contiguous()


def filtered(A: Radon, y: Tensor, window: float) -> Tensor:
    """pi / views A^T (h * y), h the band-limited ramp, 1/4 at 0, -1 / (pi k)^2 at odd k, under Hann's window.

    Source: Ramachandran and Lakshminarayanan, PNAS 68, 2236 (1971).
    """
    lines = y.shape[-1]
    k = torch.arange(2 * lines)
    k = torch.minimum(k, 2 * lines - k).double()
    h = torch.where(k % 2 == 1, -1.0 / (math.pi * k.clamp(min=1.0)) ** 2, 0.0)
    h[0] = 0.25
    nu = torch.linspace(0.0, 1.0, lines + 1, dtype=torch.float64) / window
    ramp = torch.fft.rfft(h).real * torch.where(nu <= 1.0, 0.5 + 0.5 * torch.cos(math.pi * nu), 0.0)
    q = torch.fft.irfft(torch.fft.rfft(y, 2 * lines) * ramp, 2 * lines)[..., :lines]
    return math.pi / len(A.angles) * A.adjoint(q.contiguous())


@cache
def prior(seed: int) -> Patches:
    """Of 40 phantoms of random ellipses."""
    noise = Noise(seed).child("prior")
    return Patches.fit(others(40, 64, noise.child("phantoms")), noise, side=6, components=32, rank=6)


def by_dds(model: Denoiser, scan: Scan, how: How, calls: int) -> Tensor:
    """Pictures by DDS in one of its modes."""
    mode, number, eta, inner = how
    if mode == "published":
        solver = Guided(Renoising(eta), DDS(scan.measured, number, inner))
    else:
        guide = Bayes(scan.measured, scan.spread, Isotropic(number), steps=inner, tolerance=1e-3)
        solver = Guided(DDIM(1.0), guide)
    return sample(model, solver, calls, len(scan.truth), noise=scan.noise.child("x")).final.x


def modes(kind: str, effort: Effort) -> list[How]:
    """What is tried of DDS."""
    published = [("published", weight, 0.85, 5) for weight in effort.weights[kind]]
    return published + [("bayes", deviation, 1.0, 30) for deviation in effort.deviations]


@cache
def choosing(kind: str, seed: int) -> Scan:
    """Two phantoms of random ellipses that the model has not seen."""
    noise = Noise(seed).child(f"{kind} choosing")
    return Scan.of(kind, others(2, 64, noise.child("phantoms")), noise)


@cache
def scored(kind: str, side: int, seed: int) -> Scan:
    """The head."""
    return Scan.of(kind, head(side), Noise(seed).child(f"{kind} {side} scoring"))


@cache
def chosen(kind: str, seed: int, calls: int, quick: bool) -> tuple[How, float]:
    """DDS's settings for a number of calls, and what they reach on the phantoms that chose them."""
    scan, model = choosing(kind, seed), prior(seed).denoiser(64)
    reached = {how: scan.psnr(by_dds(model, scan, how, calls)) for how in modes(kind, QUICK if quick else USUAL)}
    best = max(reached, key=reached.__getitem__)
    return best, reached[best]


def pictures(kind: str, side: int, seed: int, quick: bool = False) -> dict[str, Tensor]:
    """The head by every reconstruction."""
    other, scan, effort = choosing(kind, seed), scored(kind, side, seed), QUICK if quick else USUAL
    k = max(STEPS, key=lambda k: other.psnr(other.without_filter(k)))
    window = max(WINDOWS, key=lambda w: other.psnr(other.directly(w)))
    calls = max(effort.calls, key=lambda c: chosen(kind, seed, c, quick)[1])
    dds = by_dds(prior(seed).denoiser(side), scan, chosen(kind, seed, calls, quick)[0], calls)
    return {"direct": scan.directly(window), "conjugate gradients": scan.without_filter(k), "DDS": dds}


def measure(seed: int, quick: bool = False) -> dict[str, float]:
    """About a CPU minute."""
    figures, ratios = {}, []
    for kind, side in product(SCANS, (QUICK if quick else USUAL).sides):
        scan, found = scored(kind, side, seed), pictures(kind, side, seed, quick)
        reached = {name: scan.psnr(x) for name, x in found.items()}
        figures |= {f"{kind} {side}: PSNR, {name}": value for name, value in reached.items()}
        errors = {name: 4.0 * 10.0 ** (-0.1 * value) for name, value in reached.items()}
        ratios.append((errors["DDS"], min(errors["direct"], errors["conjugate gradients"])))
    worst = max(ratios, key=lambda r: r[0] / r[1])
    return {"method": worst[0], "baseline": worst[1], **figures}


def quick(seed: int) -> dict[str, float]:
    """A trial that proves nothing."""
    return measure(seed, True)
