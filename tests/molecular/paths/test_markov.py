"""The acceptance test and the effective number of correlated samples."""

import math

import pytest
import torch

from molsamp.molecular.paths.markov import effective_number, metropolis


def test_metropolis_keeps_a_five_state_law():
    """Counts i -> j and j -> i of 200 000 steps from the law: ten differences over their error, bound 4.5 (7e-5)."""
    law = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4], dtype=torch.float64)
    n, generator = 200_000, torch.Generator().manual_seed(7)
    q = torch.rand(5, 5, dtype=torch.float64, generator=generator) + 0.1
    q = q / q.sum(1, keepdim=True)
    i = torch.multinomial(law, n, replacement=True, generator=generator)
    j = torch.multinomial(q[i], 1, generator=generator)[:, 0]
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    for ratio, balanced in (((law[j] * q[j, i] / (law[i] * q[i, j])), True), (law[j] / law[i], False)):
        to = torch.where(metropolis(ratio.log(), u), j, i)
        flow = torch.zeros(5, 5, dtype=torch.float64).index_put_((i, to), torch.ones(n).double(), accumulate=True)
        a, b = torch.triu_indices(5, 5, 1)
        z = (flow[a, b] - flow[b, a]) / (flow[a, b] + flow[b, a]).sqrt()
        assert (z.abs().max() < 4.5) == balanced


def test_metropolis_refuses_nan():
    ratio = torch.tensor([math.nan, -math.inf, math.inf, 0.0])
    assert metropolis(ratio, torch.full((4,), 0.5)).tolist() == [False, False, True, True]


def test_effective_number_of_an_autoregression():
    """x' = a x + noise: tau = (1 + a)/(1 - a) = 3; 30 % is ten times the estimate's own scatter of about 3 %."""
    generator = torch.Generator().manual_seed(1)
    T, M, a = 400, 100, 0.5
    x = [torch.randn(M, 1, generator=generator)]
    for _ in range(T - 1):
        x.append(a * x[-1] + (1 - a * a) ** 0.5 * torch.randn(M, 1, generator=generator))
    f = torch.stack(x)
    assert effective_number(f, torch.arange(M)) == pytest.approx(T * M / 3.0, rel=0.3)
    assert effective_number(f, torch.zeros(M, dtype=torch.int64)) == 1.0  # one ancestor


def test_chains_that_never_leave_their_own_region_are_seen():
    generator = torch.Generator().manual_seed(1)
    f = torch.randn(200, 8, 1, generator=generator) + 10.0 * torch.arange(8).view(1, 8, 1)
    assert effective_number(f, torch.arange(8)) < 10.0
