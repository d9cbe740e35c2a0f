"""Pictures from measurements, y = A x + spread n: the decomposed diffusion sampler, in two modes, as guides.

    published   aim = a few steps of conjugate gradients from the prediction D towards the data; re-noised along the
                direction of D, a fixed share of the noise drawn anew (`engine.renoising.Renoising`, eta = 0.85)
    bayes       aim = E[x_0 | x, y] = D + V A^H (A V A^H + spread^2)^-1 (y - A D), V the covariance of x_0 given x; the
                noise is measured from the aim itself, in any solver

Where the prior is Gaussian, `bayes` is the exact denoiser of the posterior, so every solver samples the posterior up to
its own error. No gradient goes through a network but in `Jacobian`.

Source: Chung, Lee, Ye, "Decomposed diffusion sampler for accelerating large-scale inverse problems", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.guides import Prediction, State
from molsamp.engine.noise import Noise
from molsamp.engine.operators import Operator, check_adjoint, normal

Covariance = Callable[[Prediction, Tensor], Tensor]  # (prediction, v) -> V v, every picture by itself


@dataclass(frozen=True)
class Measured:
    """A measurement and how it was made.

    Args:
        operator: A, on pictures reshaped to its domain.
        y: (1, *image) of all pictures, or one each, (n, *image).

    Raises:
        ValueError: for y of another shape or kind of number, or an operator whose adjoint is wrong.
    """

    operator: Operator
    y: Tensor

    def __post_init__(self):
        A, y = self.operator, self.y
        if tuple(y.shape[1:]) != tuple(A.image) or y.is_complex() != A.image_complex:
            kind = "complex" if A.image_complex else "real"
            raise ValueError(
                f"a measurement of shape {tuple(y.shape)} and {y.dtype}, wanted is ('n', *{A.image}), {kind}"
            )
        check_adjoint(A, Noise(0).child("adjoint"))

    def of(self, x: Tensor) -> Tensor:
        """x in the operator's domain.

        Raises:
            ValueError: if it does not fit, or there are as many measurements as there are no pictures.
        """
        n, size = len(x), torch.Size(self.operator.domain).numel()
        if x[0].numel() != size or len(self.y) not in (1, n):
            raise ValueError(
                f"{len(self.y)} measurements of pictures of shape {self.operator.domain} do not fit a batch of shape "
                f"{tuple(x.shape)}"
            )
        return x.reshape(n, *self.operator.domain)

    def seen(self, x: Tensor) -> Tensor:
        """y, one for each of x, in its precision."""
        y = self.y.to(x.device, torch.promote_types(x.dtype, torch.complex64) if self.y.is_complex() else x.dtype)
        return y.expand(len(x), *self.y.shape[1:])


@dataclass(frozen=True)
class DDS:
    """As published: (1 + weight A^H A) x = D + weight A^H y, or without a weight A^H A x = A^H y, from D on.

    Stopped early, what is not measured stays as the model has it; to convergence, and without a weight, noise in y is
    fitted. A weight of 1 / spread^2 over the variance of x_0 given x would be the posterior's; the published is 1.

    Args:
        measured: A and y.
        weight: gamma; None for measurements without noise.
        steps: of conjugate gradients.

    Raises:
        ValueError: for a weight that is not positive, or no step.
    """

    measured: Measured
    weight: float | None = None
    steps: int = 5
    slots = 0

    def __post_init__(self):
        if (self.weight is not None and not self.weight > 0.0) or self.steps < 1:
            raise ValueError(f"weight {self.weight} and steps {self.steps}; a weight is positive, steps 1 or more")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Moves the aim, leaves the direction."""
        A, D = self.measured.operator, self.measured.of(p.aim)
        back, weight = A.adjoint(self.measured.seen(p.aim)), self.weight
        if weight is None:
            x, _ = conjugate_gradients(lambda v: normal(A, v), back, D, steps=self.steps)
        else:
            x, _ = conjugate_gradients(lambda v: v + weight * normal(A, v), D + weight * back, D, steps=self.steps)
        return p.aimed(x.reshape(p.aim.shape)), ()


@dataclass(frozen=True)
class Bayes:
    """E[x_0 | x, y] where x_0 given x is Gaussian: the exact posterior for a Gaussian prior, else an approximation.

    The system of the size of y is solved by conjugate gradients, to `tolerance`.

    Args:
        measured: A and y.
        spread: standard deviation of the noise in y; of each of real and imaginary part where y is complex.
        covariance: V v: `GaussianPrior`, `Isotropic` or `Jacobian`.
        steps: most steps of conjugate gradients.
        tolerance: relative residual.

    Raises:
        ValueError: for a spread that is not positive.
    """

    measured: Measured
    spread: float
    covariance: Covariance
    steps: int = 100
    tolerance: float = 1e-6
    slots = 0

    def __post_init__(self):
        if not self.spread > 0.0:
            raise ValueError(f"the spread of a measurement is {self.spread}, it must be positive")

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """Moves the aim, and the noise is measured from it."""
        A, shape = self.measured.operator, p.aim.shape

        def pull(w: Tensor) -> Tensor:
            return self.covariance(p, A.adjoint(w).reshape(shape))

        def system(w: Tensor) -> Tensor:
            return A(self.measured.of(pull(w))) + self.spread**2 * w

        missing = self.measured.seen(p.aim) - A(self.measured.of(p.aim))
        w, _ = conjugate_gradients(system, missing, steps=self.steps, tolerance=self.tolerance)
        return p.towards(p.aim + pull(w)), ()


class GaussianPrior:
    """V of the prior N(m, C) over flattened pictures: sigma^2 C (alpha^2 C + sigma^2)^-1.

    Args:
        C: (d, d), symmetric.
    """

    def __init__(self, C: Float[Tensor, "d d"]):
        self.l, self.Q = torch.linalg.eigh(C.double())

    def __call__(self, p: Prediction, v: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """V v."""
        l, Q = self.l.to(v), self.Q.to(v)
        return ((v.flatten(1) @ Q) * (p.sigma**2 * l / (p.alpha**2 * l + p.sigma**2)) @ Q.T).view_as(v)


@dataclass(frozen=True)
class Isotropic:
    """V = sigma^2 s^2 / (alpha^2 s^2 + sigma^2), as if pictures were N(m, s^2 I); the same as a weight that follows x.

    Args:
        s: standard deviation of a pixel.

    Source: Song et al., "Pseudoinverse-guided diffusion models for inverse problems", ICLR 2023.
    """

    s: float

    def __call__(self, p: Prediction, v: Tensor) -> Tensor:
        """V v."""
        return (p.sigma**2 * self.s**2 / (p.alpha**2 * self.s**2 + p.sigma**2)) * v


@dataclass(frozen=True)
class Jacobian:
    """V = (sigma^2 / alpha) dD/dx, exact for an exact denoiser; one pass back through the network for every V v.

    That of a trained network need not be positive, upon which conjugate gradients refuse.

    Args:
        denoise: (x, t) -> D.

    Source: the second-order Tweedie formula; Meng et al., "Estimating high order gradients of the data distribution by
    denoising", NeurIPS 2021.
    """

    denoise: Callable[[Tensor, float], Tensor]

    def __call__(self, p: Prediction, v: Tensor) -> Tensor:
        """V v, by the transpose, which is V itself."""
        with torch.enable_grad():
            x = p.x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.denoise(x, p.t), x, v)
        return (p.sigma**2 / p.alpha) * g
