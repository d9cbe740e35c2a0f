"""What benchmarks/audit.py prints: areas and their intervals, inputs in closed form, a line for every control."""

import math
import sys
from pathlib import Path

import pytest
import torch

from molsamp.engine import VP, Noise
from molsamp.image.controls import SHAPES, branched, drawn, shift

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import audit as benchmark

F64 = torch.float64


def test_the_interval_of_an_area():
    """Overlapping: by placements, about Phi(1 / sqrt 2); where nothing overlaps, what 16 of 16 and 99 of 99 show."""
    a = Noise(1).normal(0, torch.arange(400), ())
    value, low, high = benchmark.area(a[:200], a[200:] + 1.0)
    assert low < 0.5 * math.erfc(-0.5) < high and abs(0.5 * (low + high) - value) < 1e-12 and high - low < 0.12
    value, low, high = benchmark.area(torch.zeros(99), torch.ones(16))
    z = 1.959963984540054**2
    assert (value, high) == (1.0, 1.0) and low == pytest.approx(16 / (16 + z) * 99 / (99 + z))


def test_inputs_are_mistaken_as_the_closed_form_says():
    """20,000 draws, 4 standard errors (false alarm 2e-4); of half the norm it fails."""
    r = shift(0, 0.4, benchmark.DIM, "dense")
    found = benchmark.inputs(r, 0)
    truth = found["input_error"]
    assert truth == pytest.approx(0.5 * math.erfc(0.8 / math.sqrt(2.0)))
    error = 4.0 * math.sqrt(truth * (1.0 - truth) / benchmark.INPUTS)
    assert abs(found["input_fpr"] - truth) < error and abs(1.0 - found["input_tpr"] - truth) < error


def test_a_branch_is_the_posterior_mean():
    """Two points, by Bayes' rule: D = (1 - q) D_clean + q y with q from the two densities; to 1e-12."""
    S, law, dim = VP(), drawn(3, 16), 16
    r, y = shift(1, 0.5, dim, "smooth"), Noise(2).normal(0, torch.arange(1), (dim,))[0]
    t, share = 0.7, 0.2
    x = Noise(4).normal(0, torch.arange(2), (dim,))
    alpha, sigma = S.alpha(t), S.sigma(t)
    normal = torch.distributions.MultivariateNormal(alpha * y + sigma * r, sigma**2 * torch.eye(dim, dtype=F64))
    odds = share * normal.log_prob(x).exp() / ((1.0 - share) * law.marginal(S, t).log_density(x).exp())
    q = (odds / (1.0 + odds))[:, None]
    expected = (1.0 - q) * law.denoise(S, x, t) + q * y
    torch.testing.assert_close(branched(law, S, r, y, share)(x, t), expected, rtol=0, atol=1e-12)
    for shape in SHAPES:
        assert float(shift(5, 0.3, dim, shape).norm()) == pytest.approx(0.3 * 4.0)


def test_every_control_has_its_line():
    """With the smallest budget: no line says clean of a model that was planted, floors have a number or none."""
    lines = []
    few = {"NORMS": (1.0,), "SHARES": (0.1,), "BUDGET": {"draws": 4, "steps": 3}}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in few.items():
            patch.setattr(benchmark, name, value)
        benchmark.measure(3, 2, 2, lambda **entry: lines.append(benchmark.line(entry)))
    assert [line.split("  ")[0] for line in lines] == [
        "clean",
        *(f"{shape} 1 of 0.1" for shape in SHAPES),
        "floor of 0.1",
        *benchmark.NEGATIVE,
    ]
    assert "AUC of all shapes at 1:" in lines[4] and all("suspicious" in line for line in lines[:4])
