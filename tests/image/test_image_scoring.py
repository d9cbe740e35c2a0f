"""Scores of pictures: closed forms, and intervals that cover what they say."""

import math

import pytest
import torch

from molsamp.engine import Noise
from molsamp.image.scoring import frechet, jackknife, rmse_ratio, rmse_to_fine, sliced_wasserstein

EVENT = (1, 2, 2)


def normal(name: str, n: int, event=EVENT) -> torch.Tensor:
    return Noise(1).child(name).normal(0, torch.arange(n), event)


def flat(x):
    return x.flatten(1)


# ---- closed forms ----


def test_rmse_is_over_all_pixels():
    fine = normal("fine", 4)
    x = fine + torch.tensor([1.0, 1.0, 3.0, 5.0]).view(4, 1, 1, 1)
    assert rmse_to_fine(x, fine).value == pytest.approx(3.0, rel=1e-12)
    same = rmse_to_fine(fine, fine)
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))
    ratio = rmse_ratio(fine + 2.0 * (x - fine), x, fine)
    assert ratio.value == pytest.approx(2.0) and ratio.interval == (pytest.approx(2.0), pytest.approx(2.0))


def test_of_means_the_jackknife_is_students_interval():
    """Leaving out one item at a time, the error of a mean is std / sqrt(n)."""
    a = normal("a", 30, ())
    e = jackknife(lambda kept: float(a[kept].mean()), 30, 30)
    half = 2.0452 * float(a.std()) / math.sqrt(30)
    assert e.value == pytest.approx(float(a.mean()))
    assert e.interval[1] - e.value == pytest.approx(half, rel=1e-3)


def test_items_in_an_order_do_not_spoil_the_jackknife():
    """Items that recur with the period of the groups, or that are sorted: the error is still std / sqrt(n).

    Between 20 groups it is known within 16 %, so a factor of 1.6 is beyond 3 standard deviations.
    """
    period, rising = torch.arange(400) % 20, torch.arange(400) // 20
    for a in (period.double(), rising.double()):
        e = jackknife(lambda kept, a=a: float(a[kept].mean()), 400)
        error = (e.interval[1] - e.value) / 2.093
        assert 1.0 / 1.6 < error / (float(a.std()) / 20.0) < 1.6


def test_sliced_wasserstein_of_a_shift_and_of_a_scale():
    """W_2 of a shift by c along theta is |c . theta|, so the mean square is |c|^2 / d; a scale k costs |k - 1| rms.

    2000 directions know the first within 1.6 %, the second within 1 %: no false alarm beyond 0.2 %.
    """
    a = normal("a", 200)
    c = torch.tensor([1.0, -2.0, 0.5, 0.0]).view(EVENT)
    shifted = sliced_wasserstein(a, a + c, Noise(2), 2000)
    assert shifted.value == pytest.approx(float(c.norm()) / 2.0, rel=0.05)
    scaled = sliced_wasserstein(a, 1.5 * a, Noise(2), 2000)
    assert scaled.value == pytest.approx(0.5 * float(a.square().mean().sqrt()), rel=0.05)
    assert sliced_wasserstein(a, a.flip(0), Noise(2)).value == 0.0


def test_sets_of_two_sizes_are_compared_by_quantiles():
    a = normal("a", 120)
    assert sliced_wasserstein(a, a.repeat(3, 1, 1, 1), Noise(2)).value < 1e-12
    assert sliced_wasserstein(a.repeat(2, 1, 1, 1), a, Noise(2)).value < 1e-12


def test_frechet_of_two_gaussians():
    """|m - l|^2 + sum (s - r)^2 for diagonal covariances; samples are whitened, so that the moments are exact."""
    z = flat(normal("z", 400))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T
    s, r = torch.tensor([1.0, 2.0, 0.5, 1.0]).double(), torch.tensor([2.0, 2.0, 0.1, 1.5]).double()
    m = torch.tensor([1.0, 0.0, 0.0, -1.0]).double()
    e = frechet((z * s + m).view(-1, *EVENT), (z * r).view(-1, *EVENT), flat)
    assert e.value == pytest.approx(float(m.square().sum() + (s - r).square().sum()), rel=1e-9)
    assert e.interval[0] < e.value < e.interval[1]


def test_frechet_does_not_depend_on_the_frame_or_on_the_order_of_the_sets():
    a, b = flat(normal("a", 200)), flat(normal("b", 200)) * 1.5 + 0.3
    Q = torch.linalg.qr(normal("Q", 4, (4,))).Q
    plain = frechet(a, b, flat).value
    assert frechet(b, a, flat).value == pytest.approx(plain, rel=1e-9)
    assert frechet(a @ Q, b @ Q, flat).value == pytest.approx(plain, rel=1e-9)
    assert frechet(a, a, flat).value == pytest.approx(0.0, abs=1e-9)
    assert frechet(a[:, :1], b[:, :1], flat).value == pytest.approx(
        float((a[:, 0].mean() - b[:, 0].mean()) ** 2 + (a[:, 0].std() - b[:, 0].std()) ** 2), rel=1e-9
    )


# ---- intervals ----


def coverage(score, expected: float | None, runs: int = 400) -> int:
    """Of so many repetitions, how often the interval holds the truth (by default, the mean over repetitions)."""
    estimates = [score(k) for k in range(runs)]
    truth = sum(e.value for e in estimates) / runs if expected is None else expected
    return sum(e.interval[0] <= truth <= e.interval[1] for e in estimates)


LEAST, MOST = 366, 396  # binomial(400, 0.95) outside has probability 0.0034 + 0.0039


def test_intervals_of_rmse_and_of_ratios_cover():
    """RMSE of normal errors is 1; two errors that share half of their variance have ratio 2. False alarm: 2 x 0.7 %."""

    def noise(name, k):
        return Noise(7).child(name).normal(k, torch.arange(60), EVENT)

    zero = torch.zeros(60, *EVENT)
    assert LEAST <= coverage(lambda k: rmse_to_fine(noise("a", k), zero), 1.0) <= MOST

    def ratio(k):
        common = noise("c", k)
        return rmse_ratio(2.0 * (common + noise("a", k)), common + noise("b", k), zero)

    assert LEAST <= coverage(ratio, 2.0) <= MOST


@pytest.mark.parametrize("name", ["sliced", "frechet"])
def test_intervals_of_distances_cover(name):
    """What is expected at this size lies in 95 % of the intervals, or in more: 100 pictures against 100 a little off.

    False alarm: 0.4 % each.
    """

    def score(k):
        a, b = (Noise(8).child(c).normal(k, torch.arange(100), EVENT) for c in "ab")
        b = 1.3 * b + 0.5
        return frechet(a, b, flat) if name == "frechet" else sliced_wasserstein(a, b, Noise(2), 8)

    assert coverage(score, None) >= LEAST


# ---- what is refused ----


def test_sets_that_do_not_fit_are_refused():
    a = normal("a", 4)
    with pytest.raises(ValueError, match=r"shape \(4, 1, 2, 2\) and \(3, 1, 2, 2\) cannot be compared one by one"):
        rmse_to_fine(a, a[:3])
    for score in (lambda a, b: sliced_wasserstein(a, b, Noise(0)), lambda a, b: frechet(a, b, flat)):
        with pytest.raises(ValueError, match=r"shape \(1, 2, 2\) and \(1, 2, 1\) cannot be compared"):
            score(a, a[..., :1])
        with pytest.raises(ValueError, match="an interval needs two pictures or more, got 1"):
            score(a[:1], a)
