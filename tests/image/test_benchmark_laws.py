"""What benchmarks/steering_laws.py measures with: distances, truths, slopes."""

import math
import sys
from pathlib import Path

import pytest
import torch

from molsamp.engine import Noise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import steering_laws
from laws import linear, mixture, sentences
from laws.measuring import wasserstein

F64 = torch.float64


def test_the_distance_of_a_point_to_a_gaussian():
    """W_1(delta_0, N(0, 1)) = sqrt(2 / pi); of half at -1 and half at 1 it is by quadrature; copies change nothing."""
    nodes = torch.linspace(-8.0, 8.0, 3201, dtype=F64)
    cdf = torch.special.ndtr(nodes)
    x = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=F64)
    w = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=F64)
    step = 0.5 * (nodes >= -1.0).double() + 0.5 * (nodes >= 1.0).double()
    exact = [math.sqrt(2.0 / math.pi), float(torch.trapezoid((step - cdf).abs(), nodes))]
    assert wasserstein(x, w, nodes, cdf).tolist() == pytest.approx(exact, abs=3e-3)
    assert float(wasserstein(x, 1.0 * w[:1].expand(2, 2), nodes, cdf)[1]) > exact[1] + 0.05  # 0.3 at 1, 0.7 at -1


def test_the_chain_tends_to_the_exact_tilt():
    """Mass 1 to 1e-6; twice the steps leave half the error of log Z and mean: without it they are exact to 0.003."""
    density = mixture.LAW.marginal(mixture.SCHEDULE, mixture.END).log_density(mixture.NODES[:, None]).exp()
    exact, found = mixture.tilted(density), []
    for steps in (32, 64):
        times = tuple(mixture.time_grid("log-snr", mixture.SCHEDULE, steps, 1.0, mixture.END))
        p = mixture.chain(times)
        assert float(torch.trapezoid(p, mixture.NODES)) == pytest.approx(1.0, abs=1e-6)
        truth = mixture.tilted(p)
        found.append((truth.log_z - exact.log_z, float(truth.mean - exact.mean)))
    for coarse, fine in zip(*found, strict=True):
        assert abs(coarse) > 0.05 and abs(2.0 * fine - coarse) < 0.003, (coarse, fine)


def test_the_law_on_nodes_of_itself_is_at_no_distance():
    w = torch.exp(-0.5 * mixture.NODES**2)
    assert mixture.law_on_nodes(w, 3.0 * w) == {"mean": pytest.approx(0.0, abs=1e-12), "distance": pytest.approx(0.0)}
    moved = mixture.law_on_nodes(w, torch.exp(-0.5 * (mixture.NODES - 0.3) ** 2))
    assert moved["mean"] == pytest.approx(0.3, abs=1e-6) and moved["distance"] == pytest.approx(0.3, abs=1e-6)


def test_all_sentences_with_their_weights_are_at_no_distance():
    """And with equal ones they are at the total variation that the enumeration says; log Z is of the mean weight."""
    problem = sentences.Sentences(0)
    x = torch.where(sentences.ALL == 1, 9.0, -9.0).double()[None]
    assert torch.equal(sentences.tokens(x[0]), sentences.ALL)
    log_p = torch.tensor(
        [
            sum(math.log(float(sentences.PREFERS[a, b])) for a, b in zip([0, *s[:-1]], s, strict=True))
            for s in sentences.ALL.tolist()
        ],
        dtype=F64,
    )
    w = torch.softmax(log_p + sentences.score(sentences.ALL), 0)
    assert float(problem.truth.distance(x, w[None])) == pytest.approx(0.0, abs=1e-12)
    free = float(problem.truth.distance(x, torch.full((1, 64), 1.0 / 64.0, dtype=F64)))
    assert free == pytest.approx(0.5 * float((w - 1.0 / 64.0).abs().sum()), abs=1e-12) and free > 0.3
    assert problem.truth.log_z == pytest.approx(float((log_p.exp() * sentences.score(sentences.ALL).exp()).sum().log()))


def test_the_posterior_and_the_evidence():
    """P = (S^-1 + A'A / spread^2)^-1, mean P A'y / spread^2; log p(y) by Bayes' rule at x = 0; to 1e-9."""
    y, S = Noise(1).normal(0, torch.arange(linear.M), ()), linear.C
    m, P, log_p = linear.conditioned(S, y)
    exact = torch.linalg.inv(torch.linalg.inv(S) + linear.A.T @ linear.A / linear.SPREAD**2)
    torch.testing.assert_close(P, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(m, exact @ linear.A.T @ y / linear.SPREAD**2, rtol=0, atol=1e-9)
    law = torch.distributions.MultivariateNormal
    zero = torch.zeros(linear.D, dtype=F64)
    like = law(linear.A @ zero, linear.SPREAD**2 * torch.eye(linear.M, dtype=F64)).log_prob(y)
    by_rule = like + law(zero, S).log_prob(zero) - law(m, 0.5 * (P + P.T)).log_prob(zero)
    assert log_p == pytest.approx(float(by_rule), abs=1e-8)


def test_the_distance_of_gaussians():
    """Of commuting covariances: |m - m'|^2 + sum (sqrt l - sqrt l')^2."""
    l, k = torch.linspace(0.1, 2.0, 8, dtype=F64), torch.linspace(1.5, 0.2, 8, dtype=F64)
    m = torch.linspace(0.0, 1.0, 8, dtype=F64)
    S, T = (linear.Q @ torch.diag(a) @ linear.Q.T for a in (l, k))
    exact = math.sqrt(float(m.square().sum() + (l.sqrt() - k.sqrt()).square().sum()))
    assert linear.between(m, S, torch.zeros(8, dtype=F64), T) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_a_slope_is_read_off(power):
    """Of a pure power, from 16 particles on, whatever is below."""
    points = [{"particles": n, "mean": 3.0 * n**power if n >= 16 else 7.0} for n in (4.0, 16.0, 64.0, 256.0)]
    entries = [{"axis": "particles", "points": points}] * 2
    value, half = steering_laws.slope(entries, "mean")
    assert value == pytest.approx(power) and half == pytest.approx(0.0, abs=1e-12)


def test_seeds_are_averaged_where_all_have_a_figure():
    entries = [{"axis": "calls", "points": [{"calls": 10.0, "mean": a}]} for a in (1.0, 4.0)]
    entries[1]["points"].append({"calls": 20.0, "mean": 1.0})
    at = steering_laws.over_seeds(entries, "mean")
    assert list(at) == [10.0] and at[10.0][0] == pytest.approx(2.0)
