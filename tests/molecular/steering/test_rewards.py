"""Rewards by words: their values by hand, and one line for whatever is no reward."""

import math

import pytest
import torch

from molsamp.engine import Particles
from molsamp.molecular.steering.populations import Population, average, joined
from molsamp.molecular.steering.rewards import Tilt
from molsamp.molecular.system import load


@pytest.fixture(scope="module")
def peptide():
    return load("alanine-dipeptide")


@pytest.fixture(scope="module")
def toy():
    return load("double-well")


def told(system, *texts, strength=1.0):
    x = torch.stack([state.x for state in system.states.values()])
    return Tilt.of(system, texts, strength)(x), x


def test_a_cv_near_a_value_the_short_way_round(peptide):
    """psi of C5 is 159 degrees: 21 + 10 degrees from -170; the default width is a twentieth of the turn."""
    psi = float(peptide.states["C5"].values["psi"])
    off = psi - math.radians(190)
    for text, width in (("psi=-170 deg+-20 deg", math.radians(20)), ("psi = -170 deg", 2 * math.pi / 20)):
        assert float(told(peptide, text)[0][0]) == pytest.approx(-0.5 * (off / width) ** 2, rel=1e-6)


def test_distances_of_atoms(peptide):
    """The mean of r^-6 over two pairs, and the middles of two groups, nm, by numpy's arithmetic."""
    r, x = told(peptide, "noe:4-14,6-16=0.35+-0.05")
    a, b = (x[:, j] - x[:, i] for i, j in ((4, 14), (6, 16)))
    s = (0.5 * (a.norm(dim=1) ** -6 + b.norm(dim=1) ** -6)) ** (-1 / 6)
    torch.testing.assert_close(r, -0.5 * ((s - 0.35) / 0.05) ** 2)
    r, x = told(peptide, "pocket:0-2,8/10,12-13=0.3±1 A")
    s = (x[:, [10, 12, 13]].mean(1) - x[:, [0, 1, 2, 8]].mean(1)).norm(dim=1)
    torch.testing.assert_close(r, -0.5 * ((s - 0.3) / 0.1) ** 2)


def test_rewards_add_up_and_have_a_strength(toy):
    r, x = told(toy, "x*2.5", "y=0.1+-0.5", "state:left=0+-1", strength=3.0)
    apart = torch.linalg.vector_norm(x - toy.states["left"].x, dim=1)
    expected = 2.5 * x[:, 0] - 0.5 * ((x[:, 1] - 0.1) / 0.5) ** 2 - 0.5 * apart**2
    torch.testing.assert_close(r, 3.0 * expected)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "--reward: is missing; allowed is QUANTITY=VALUE"),
        (["phi"], "allowed is QUANTITY=VALUE"),
        (["=1"], "allowed is QUANTITY=VALUE"),
        (["ph=1"], "no CV 'ph'; did you mean 'phi'"),
        (["phi=nan"], "got 'nan'"),
        (["phi=1e400"], "got '1e400'"),
        (["phi=1+-inf"], "got 'inf'"),
        (["phi=1+-0"], "the width must be above 0"),
        (["phi*2"], "has a period and cannot be raised"),
        (["nmr:1-2=0.3"], "'nmr:' is unknown"),
        (["noe:1=0.3"], "allowed are pairs of atoms"),
        (["noe:1-99=0.3+-0.1"], "atom 99 does not exist; 0-based indices 0 to 21"),
        (["noe:4-4=0.3+-0.1"], "distinct"),
        (["noe:4-14=0.3"], "allowed is noe:4-14=0.3+-WIDTH"),
        (["pocket:1/2,2=0.3+-0.1"], "distinct"),
        (["pocket:5-3/2=0.3+-0.1"], "ranges rising"),
        (["pocket:1=0.3+-0.1"], "two groups of atoms"),
        (["state:C7=0+-1"], "did you mean 'C7eq'"),
        (["state:C7ax=0+-1e-200"], "it must be finite"),
    ],
)
def test_what_is_no_reward_is_refused(peptide, texts, message):
    with pytest.raises(ValueError) as refused:
        Tilt.of(peptide, texts)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_toy_has_no_atoms(toy):
    with pytest.raises(ValueError, match="toy without atoms"):
        Tilt.of(toy, ["noe:0-1=0.3+-0.1"])
    with pytest.raises(ValueError, match="got 'NaN'; allowed is a finite number"):
        Tilt.of(toy, ["x*NaN"])


def test_the_mean_of_an_angle_goes_round():
    """Angles around pi, with weights: the mean lies beyond the end of the period, as by hand."""
    angles = torch.tensor([[3.0, -3.1], [-3.0, 3.1]], dtype=torch.float64)
    logw = torch.tensor([1.0, 3.0], dtype=torch.float64).log()
    p = Particles.at(torch.zeros(2, 1)).evolve(logw=logw)
    one = Population(p.x, p.logw, p.status, torch.ones(1), torch.arange(2)[None], torch.zeros(2, 2, 1))
    e = average(joined([one, one]), angles.flatten(), 2 * math.pi, "rad")
    mean = (3 * -3.1 + 3.0 - 2 * math.pi + 3 * (3.1 - 2 * math.pi) - 3.0) / 8  # all on the side below zero
    assert e.value == pytest.approx(mean + 2 * math.pi, abs=1e-9) or e.value == pytest.approx(mean, abs=1e-9)
    assert e.interval[0] < e.value < e.interval[1] and e.unit == "rad"
