"""Fields that turn bonds: no divergence, the acceleration is (u . grad) u, bonds and angles stay."""

import torch
from torch.autograd.functional import jacobian

from molsamp.molecular import load
from molsamp.molecular.torsions import Turns


def test_turns_have_no_divergence_and_know_their_acceleration():
    system = load("alanine-dipeptide")
    turns, x = Turns(system), system.states["C7ax"].x[None]
    x = x - x.mean(1, keepdim=True)
    u, acceleration = turns(x)
    J = jacobian(lambda y: turns(y)[0][0], x)[:, :, :, 0]
    assert float(torch.einsum("caiai->c", J).abs().max()) < 1e-12
    assert torch.allclose(torch.einsum("caibj,cbj->cai", J, u[0]), acceleration[0], atol=1e-12)
    assert float(u.mean(2).abs().max()) < 1e-15 and u.shape == (1, 4, 22, 3)


def test_a_turn_is_a_radian_of_its_torsion_and_of_nothing_else():
    """phi changes at the rate 1 under its own field, psi not at all; every bond keeps its length."""
    system = load("alanine-dipeptide")
    x = system.states["C5"].x[None]
    u = Turns(system)(x)[0][0]
    rates = {name: torch.stack([cv.jvp(x, d[None])[1][0, 0] for d in u]) for name, cv in system.cvs.items()}
    assert torch.allclose(rates["phi"].abs(), torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=x.dtype), atol=1e-6)
    assert torch.allclose(rates["psi"].abs(), torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=x.dtype), atol=1e-6)
    for b in system.topology.bonds():
        r = x[0, b.atom1.index] - x[0, b.atom2.index]
        assert float((r * (u[:, b.atom1.index] - u[:, b.atom2.index])).sum(-1).abs().max()) < 1e-6
