"""The exact chain against the card's table, quadrature of the continuous limit, and identities of its own."""

import math

import pytest
import torch

from molsamp.engine.exact_rates import Chain, DoubleWell

ENDS = (-2.6, -1.0, 1.0, 2.6)
CARD = {2: (5.12928, 0.113947), 5: (36.4835, 0.025518), 10: (2552.71, 0.002066)}
"""Mean first-passage time -1 -> 1 and q(-0.5) for dt -> 0 by quadrature, methods/ditree.md section 8."""


def test_the_discrete_time_of_the_card():
    """b = 5, dt = 1e-3: 36.304 in the card, by a coarser grid: to one in the last digit but one."""
    assert Chain(DoubleWell(5), 1e-3, ENDS).mfpt(-1.0) == pytest.approx(36.304, abs=3e-3)


@pytest.mark.parametrize("b", CARD)
def test_it_tends_to_the_continuous_limit(b):
    """Times and committors at dt and dt / 4: the error falls, by 2 to 4 (edges go with sqrt(dt), drift with dt).

    Committor to 2 % at the smaller step, times to 0.5 %.
    """
    coarse, fine = (Chain(DoubleWell(b), dt, ENDS, nodes=n) for dt, n in ((1e-3, 160), (2.5e-4, 300)))
    mfpt, q = CARD[b]
    assert fine.mfpt(-1.0) == pytest.approx(mfpt, rel=5e-3)
    assert abs(fine.mfpt(-1.0) - mfpt) < 0.75 * abs(coarse.mfpt(-1.0) - mfpt)
    assert fine.committor_at(-0.5) == pytest.approx(q, rel=0.02)


def test_equilibrium_is_boltzmann_and_the_rates_of_a_symmetric_well_are_one():
    chain = Chain(DoubleWell(3), 2.5e-4, ENDS, nodes=240)
    pi, (rate, from_b) = chain.stationary(), chain.reactive()
    boltzmann = chain.w * torch.exp(-3.0 * (chain.x**2 - 1) ** 2)
    assert 0.5 * (pi - boltzmann / boltzmann.sum()).abs().sum() < 2e-3  # total variation, O(dt)
    assert float(pi @ from_b) == pytest.approx(0.5, abs=1e-9)
    assert 1 / rate == pytest.approx(chain.mfpt(-1.0), rel=2e-3)  # nu / rho_A = 1 / MFPT but for where lives begin
    assert (from_b - chain.committor()).abs().max() < 0.02  # reversible in the limit


def test_forward_flux_is_the_rate_whatever_the_interfaces():
    """Phi_0 prod P = 1 / MFPT is an identity of the chain: to 1e-9."""
    for levels in ((-0.8,), (-0.8, -0.5, -0.2, 0.2), (-0.9, 0.0)):
        chain = Chain(DoubleWell(4), 1e-3, (-2.6, -1.0, *levels, 1.0, 2.6), nodes=80)
        flux, successes = chain.ladder(-1.0)
        assert flux * math.prod(successes) * chain.mfpt(-1.0) == pytest.approx(1.0, rel=1e-9)


def test_rare_looks_see_later_arrivals():
    """Ten steps between looks: longer times, by less than ten looks of the flux back and forth at the edge."""
    often, rarely = (Chain(DoubleWell(5), 1e-3, ENDS, every=m).mfpt(-1.0) for m in (1, 10))
    assert often < rarely < 1.01 * often
