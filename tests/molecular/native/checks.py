"""What every native tier must satisfy. A tier makes an energy_force, x (n, A, 3) -> E (n,), F (n, A, 3), from Terms.

Positions are float64 tensors whose numbers are exact in float32, so that both precisions see the same frames.
"""

from collections.abc import Callable

import openmm
import torch
from torch import Tensor

from molsamp.molecular.native.reading import read
from molsamp.molecular.native.terms import Terms
from molsamp.molecular.openmm_energy import OpenMMEnergy

Forces = Callable[[Tensor], tuple[Tensor, Tensor]]
Tier = Callable[[Terms, torch.dtype], Forces]

FLOAT64, FLOAT32 = 1e-12, 5e-6  # largest relative force error of any frame


def frame_errors(F: Tensor, reference: Tensor) -> Tensor:
    """|F - F_ref| / |F_ref| of every frame, (n,), norms over atoms and axes."""
    norm = torch.linalg.vector_norm
    return norm(F - reference, dim=(1, 2)) / norm(reference, dim=(1, 2))


def sensitivity(forces: Forces, x: Tensor, draws: int = 4) -> Tensor:
    """How much the force of every frame changes when each coordinate is rounded to float32, relative, (n,).

    Where it is large, the few terms of a frame nearly cancel, and no arithmetic in float32 can do much better.
    """
    generator = torch.Generator().manual_seed(0)
    F = forces(x)[1]
    moved = (x * (1 + 2**-24 * torch.randn(x.shape, generator=generator, dtype=x.dtype)) for _ in range(draws))
    return torch.stack([frame_errors(forces(y)[1], F) for y in moved]).amax(0)


def agrees_with_openmm(tier: Tier, system: openmm.System, x: Tensor, cancelling: bool = False) -> None:
    """The worst frame in float64 and in float32.

    Where the few terms of a random frame may nearly cancel, float32 is allowed 5 sensitivities in up to 1 % of them.
    """
    E_ref, F_ref = OpenMMEnergy(system, "Reference").energy_force(x)
    terms = read(system)
    exact = tier(terms, torch.float64)
    E, F = exact(x)
    assert frame_errors(F, F_ref).max() < FLOAT64
    assert torch.allclose(E, E_ref, rtol=1e-11, atol=1e-9)
    E, F = tier(terms, torch.float32)(x)
    errors = frame_errors(F, F_ref)
    assert (errors < FLOAT32).double().mean() >= 0.99
    assert (errors < ((5 * sensitivity(exact, x)).clamp(min=FLOAT32) if cancelling else FLOAT32)).all()
    assert torch.allclose(E, E_ref, rtol=3e-5, atol=1e-2)


def gradient(forces: Forces, x: Tensor, h: float = 1e-5) -> Tensor:
    """dE/dx by central differences of fourth order."""
    n, A, _ = x.shape
    steps = torch.eye(3 * A, dtype=x.dtype).view(3 * A, A, 3) * h
    shifts = torch.stack([-2 * steps, -steps, steps, 2 * steps])
    E = forces((x[:, None, None] + shifts).reshape(-1, A, 3))[0].view(n, 4, 3 * A)
    return (E.movedim(1, -1) @ torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=x.dtype) / (12 * h)).view(n, A, 3)


def is_minus_the_gradient(forces: Forces, x: Tensor, tolerance: float = 1e-7) -> None:
    """Of float64 forces, every frame."""
    assert frame_errors(-gradient(forces, x), forces(x)[1]).max() < tolerance


def has_no_net_force_and_no_net_torque(forces: Forces, x: Tensor, tolerance: float) -> None:
    _, F = forces(x)
    F = F.double()
    size = F.abs().sum((1, 2))
    assert (F.sum(1).abs().amax(1) < tolerance * size).all()
    assert (torch.linalg.cross(x, F).sum(1).abs().amax(1) < tolerance * size).all()


def turns_with_the_molecule(forces: Forces, x: Tensor) -> None:
    """A proper rotation and a shift; in float64."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    R = q * torch.linalg.det(q)
    (E, F), (E_turned, F_turned) = forces(x), forces(x @ R.T + 1.0)
    assert torch.allclose(E_turned, E, rtol=1e-10, atol=1e-10)
    assert frame_errors(F_turned, F @ R.T).max() < 1e-9


def permutes_bitwise(forces: Forces, x: Tensor) -> None:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    (E, F), (E_permuted, F_permuted) = forces(x), forces(x[order])
    assert torch.equal(E_permuted, E[order]) and torch.equal(F_permuted, F[order])


def takes_any_batch(forces: Forces, x: Tensor, sizes: tuple[int, ...] = (0, 1, 15, 16, 17, 37)) -> None:
    """In float64."""
    E, F = forces(x)
    for n in sizes:
        E_n, F_n = forces(x[:n])
        assert E_n.shape == (n,) and torch.allclose(E_n, E[:n], rtol=1e-12)
        assert F_n.shape == x[:n].shape and torch.allclose(F_n, F[:n], rtol=1e-10, atol=1e-9)


def poisons_harm_no_other(forces: Forces, x: Tensor, atom: int) -> None:
    """NaN, both infinities and, for what they do, 1e6 nm in `atom` of rows of their own; 0, 2, 4, ... stay clean."""
    E, F = forces(x)
    bad = x.clone()
    bad[1, atom, 1], bad[3, atom], bad[5, atom, 2] = torch.nan, torch.inf, -torch.inf
    bad[7, atom] += 1e6
    E_bad, F_bad = forces(bad)
    keep = [k for k in range(len(x)) if k not in (1, 3, 5, 7)]
    assert torch.equal(E_bad[keep], E[keep]) and torch.equal(F_bad[keep], F[keep])
    assert not E_bad[[1, 3, 5]].isfinite().any()
