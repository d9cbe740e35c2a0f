"""Path CVs: closed forms on straight lines, and structures whatever way they are turned."""

import math

import pytest
import torch

from molsamp.molecular.cvs import Coordinate, PathCV, Stack, Torsion

PLANE = Stack([Coordinate(0, "x"), Coordinate(1, "y")])


def line(count, h=0.5):
    return torch.stack([h * torch.arange(count), torch.zeros(count)], dim=1).double()


def test_progress_on_a_straight_line():
    """Every node but the ends, and every place between, is met exactly where the ends are too far to be felt."""
    cv = PathCV.of_points(PLANE, line(41), lam=30.0)
    index = torch.arange(11.0, 31.0, 0.5).double()
    x = torch.stack([0.5 * (index - 1), torch.zeros_like(index)], dim=1)
    assert torch.allclose(cv(x)[:, 0], index, atol=1e-12)
    off = x.clone()
    off[:, 1] = 0.3
    assert torch.allclose(cv(off)[:, 0], index, atol=1e-12), "progress does not see the distance from the line"
    assert torch.allclose(cv(off)[:, 1] - cv(x)[:, 1], torch.full_like(index, 0.09), atol=1e-12)


def test_two_points_in_closed_form():
    """s = 1 + 1 / (1 + exp(lam (d_2 - d_1))), z = -log(exp(-lam d_1) + exp(-lam d_2)) / lam."""
    cv = PathCV.of_points(PLANE, torch.tensor([[0.0, 0], [1, 0]]), lam=2.0)
    x = torch.tensor([[0.2, 0.1], [0.5, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    d1, d2 = x.square().sum(1), (x - torch.tensor([1.0, 0])).square().sum(1)
    torch.testing.assert_close(cv(x)[:, 0], 1 + 1 / (1 + torch.exp(2 * (d2 - d1))))
    torch.testing.assert_close(cv(x)[:, 1], -torch.log(torch.exp(-2 * d1) + torch.exp(-2 * d2)) / 2)


def test_far_away_nothing_underflows():
    cv = PathCV.of_points(PLANE, line(3), lam=50.0)
    x = torch.tensor([[500.0, 500.0]])
    assert cv(x)[0].tolist() == pytest.approx([3, 499.0**2 + 500.0**2], rel=1e-6)
    assert cv.gradient(x).isfinite().all()


def test_periodic_points_go_the_short_way_round():
    phi = Torsion((0, 1, 2, 3), "phi")
    cv = PathCV.of_points(phi, torch.tensor([[3.0], [math.pi], [-3.0]]), lam=100.0)
    turn = torch.tensor([3.0, math.pi - 1e-9, -math.pi + 1e-9, -3.0], dtype=torch.float64)
    x = torch.zeros(4, 4, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 2], x[:, 3, 2], x[:, 3, 0], x[:, 3, 1] = 1, 1, 1, turn.cos(), turn.sin()
    s = cv(x)[:, 0]
    assert s[1].item() == pytest.approx(2, abs=1e-6) and s[2].item() == pytest.approx(2, abs=1e-6)
    assert s[0].item() == pytest.approx(4 - s[3].item(), abs=1e-6) and s[0] < 1.3


def test_frames_in_any_orientation():
    """The squared displacement is that of the best superposition, on the chosen atoms only."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(4, 7, 3, dtype=torch.float64, generator=generator)
    cv = PathCV.of_frames(frames, lam=200.0, atoms=(0, 2, 3, 4, 6), name="p")
    skew = torch.tensor([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]], dtype=torch.float64)
    moved = frames @ torch.linalg.matrix_exp(skew) + 4
    moved[:, 1] += 10  # not one of the atoms
    assert torch.allclose(cv(moved)[:, 0], torch.arange(1.0, 5).double(), atol=1e-9)
    assert cv(moved)[:, 1].abs().max() < 1e-9
    from molsamp.molecular.geometry import rmsd

    x = torch.randn(3, 7, 3, dtype=torch.float64, generator=generator)
    atoms = torch.tensor([0, 2, 3, 4, 6])
    expected = torch.stack([rmsd(x, frame, atoms) for frame in frames], dim=1) ** 2
    torch.testing.assert_close(cv.squared(x), expected)
    assert cv.unit == ("1", "nm^2") and cv.atoms == (0, 2, 3, 4, 6)


def test_default_smoothing_is_2_3_over_the_squared_spacing():
    assert PathCV.of_points(PLANE, line(5)).lam == pytest.approx(2.3 / 0.25)


def test_errors():
    with pytest.raises(ValueError, match="CV 'path': got 1 references; allowed are two or more"):
        PathCV.of_points(PLANE, line(1), lam=1.0)
    with pytest.raises(ValueError, match=r"CV 'path': got lam = -1\.0; allowed are positive numbers"):
        PathCV.of_points(PLANE, line(3), lam=-1.0)
    with pytest.raises(ValueError, match="CV 'path': got lam = inf"):
        PathCV.of_points(PLANE, line(3, h=0.0))
    with pytest.raises(ValueError, match="CV 'path': points have 2 columns; allowed is 1"):
        PathCV.of_points(Coordinate(0), line(3))
    with pytest.raises(ValueError, match="CV 'path': atom 7 does not exist; 0 to 6 are allowed"):
        PathCV.of_frames(torch.zeros(2, 7, 3), 1.0, atoms=(0, 7))
    with pytest.raises(ValueError, match="path CV: atom 6 does not exist; 0-based indices 0 to 3 are allowed"):
        PathCV.of_frames(torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)), 1.0)(torch.zeros(1, 4, 3))
