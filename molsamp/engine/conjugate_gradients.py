"""Conjugate gradients for a batch of Hermitian positive systems, each with its own inner products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from molsamp.engine.operators import inner

Batch = Shaped[Tensor, "n *event"]


def conjugate_gradients(
    A: Callable[[Tensor], Tensor], b: Batch, start: Batch | None = None, *, steps: int, tolerance: float = 0.0
) -> tuple[Batch, Float[Tensor, " n"]]:
    """Solve A x = b of every particle, A Hermitian and positive; in `steps` steps, or fewer where all have converged.

        a = <r, r> / <p, A p>,  x += a p,  r' = r - a A p,  p' = r' + (<r', r'> / <r, r>) p,   <u, v> = sum conj(u) v

    Conjugated, so that it holds for complex numbers; a system that has converged (or began at its solution) stays where
    it is. A volume of slices is one particle.

    Args:
        A: x -> A x, batched.
        b: right-hand sides, real or complex.
        start: x at the beginning, 0 unless given.
        steps: most steps, 0 or more.
        tolerance: a system with |r| <= tolerance |b| has converged.

    Returns:
        (x, |r| / |b| of each; 0 where b and r are 0).

    Raises:
        ValueError: if <p, A p> is not positive, which names the particle and the step.

    Source: Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952), eq. 3:1.
    """
    x = torch.zeros_like(b) if start is None else start
    r = b if start is None else b - A(x)
    p, rr, bb = r, inner(r, r).real, inner(b, b).real
    enough = bb * max(tolerance, torch.finfo(bb.dtype).eps) ** 2
    for k in range(steps):
        going = rr > enough
        if not bool(going.any()):
            break
        Ap = A(p)
        curvature = inner(p, Ap).real
        if bool((going & ~(curvature > 0.0)).any()):
            i = int((going & ~(curvature > 0.0)).nonzero()[0])
            raise ValueError(
                f"conjugate gradients: <p, A p> = {float(curvature[i]):.3g} of particle {i} at step {k}; "
                "A must be Hermitian and positive"
            )
        a = torch.where(going, rr / curvature, 0.0)
        x, r = x + _each(a, p) * p, r - _each(a, p) * Ap
        after = inner(r, r).real
        p = r + _each(torch.where(going, after / rr, 0.0), p) * p
        rr = torch.where(going, after, rr)
    return x, torch.where(rr > 0.0, (rr / bb).sqrt(), 0.0)


def _each(a: Tensor, like: Tensor) -> Tensor:
    return a.view(-1, *[1] * (like.dim() - 1))
