"""What every CV can do: gradients and Jacobian-vector products against finite differences, names, units, periods."""

import math

import pytest
import torch

from molsamp.molecular.cvs import (
    RMSD,
    Angle,
    Combination,
    Component,
    ContactDistance,
    Coordinate,
    CoordinationNumber,
    Distance,
    Distances,
    Function,
    PathCV,
    Stack,
    Switching,
    Torsion,
)
from molsamp.molecular.cvs.learned import TICA


def frames(n, atoms=8, seed=0):
    return torch.randn(n, atoms, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


REFERENCES = frames(3, seed=9)
ALL = [
    Distance((1, 5)),
    Distances.between((0, 2, 4, 7)),
    Angle((3, 4, 5)),
    Torsion((6, 4, 2, 0)),
    RMSD(REFERENCES[0], (0, 2, 3, 5, 7)),
    CoordinationNumber((0, 1, 2), (5, 6, 7), Switching(1.5, 0.2)),
    CoordinationNumber(range(8), None, Switching(1.5, n=6, m=10)),
    ContactDistance((0, 1), Switching(2.0, shape="GAUSSIAN")),
    ContactDistance((0, 1), Switching(2.0, shape="EXP"), "e"),
    ContactDistance((0, 1), Switching(9.0, shape="COSINUS"), "c"),
    PathCV.of_frames(REFERENCES, lam=0.7, atoms=(0, 1, 2, 3, 5)),
    PathCV.of_points(Stack([Torsion((0, 1, 2, 3)), Distance((4, 5))]), torch.tensor([[3.0, 1], [-3, 2], [-2, 2]]), 0.4),
    Combination([Torsion((0, 1, 2, 3)), Distance((4, 5))], [0.5, -2], [0.1, 0.2], [1, 3], name="l"),
    Function(lambda x: x.square().sum((1, 2))[:, None], ["gyration"]),
    TICA(Torsion((0, 1, 2, 3)), torch.tensor([0.1, 0.2]).double(), torch.tensor([[1.0, 2], [3, -1]]).double()),
]


def named(cv):
    return f"{type(cv).__name__}-{cv.names[0]}"


def central(cv, x, dx, h=1e-6):
    """Central difference of cv along dx."""
    return (cv(x + h * dx) - cv(x - h * dx)) / (2 * h)


@pytest.mark.parametrize("cv", ALL, ids=named)
def test_jvp_and_gradient_are_the_finite_difference(cv):
    x, dx = frames(5, seed=1), frames(5, seed=2)
    s, ds = cv.jvp(x, dx)
    expected = central(cv, x, dx)
    assert s.shape == ds.shape == (5, len(cv.names)) and ds.abs().max() > 1e-3
    assert not s.requires_grad and not ds.requires_grad
    torch.testing.assert_close(s, cv(x))
    torch.testing.assert_close(ds, expected, rtol=1e-6, atol=1e-7)
    gradient = cv.gradient(x)
    assert gradient.shape == (5, len(cv.names), 8, 3)
    torch.testing.assert_close((gradient * dx[:, None]).sum((2, 3)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cv", ALL, ids=named)
def test_one_name_unit_and_period_per_component(cv):
    assert len(cv.names) == len(cv.unit) == len(cv.period) == cv(frames(2)).shape[1]
    assert set(cv.unit) <= {"rad", "nm", "nm^2", "1"}


@pytest.mark.parametrize("cv", ALL, ids=named)
def test_float32_stays_float32_and_a_bad_frame_harms_only_itself(cv):
    x = frames(3, seed=4)
    low = cv(x.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), cv(x), rtol=1e-4, atol=1e-4)
    bad = x.clone()
    bad[1] = torch.nan
    assert torch.equal(cv(bad)[[0, 2]], cv(x)[[0, 2]]) and cv(bad)[1].isnan().all()


def test_derivatives_work_without_a_graph_and_in_inference_mode():
    x, dx = frames(2), frames(2, seed=3)
    expected = ALL[0].gradient(x)
    with torch.inference_mode():
        assert torch.equal(ALL[0].gradient(x), expected)
        assert torch.equal(ALL[0].jvp(x, dx)[1][:, 0], ALL[0].jvp(x.clone(), dx)[1][:, 0])


def test_toys_have_derivatives_too():
    toy = Stack([Coordinate(1, "y"), Coordinate(0, "x")])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(toy.gradient(x), torch.tensor([[[0.0, 1], [1, 0]]]).expand(2, 2, 2))
    assert torch.equal(toy.jvp(x, torch.tensor([[5.0, 6], [7, 8]]))[1], torch.tensor([[6.0, 5], [8, 7]]))


def test_jvp_wants_a_displacement_of_the_same_shape():
    with pytest.raises(ValueError, match=r"jvp: dx has shape \(2, 7, 3\); allowed is that of x, \(2, 8, 3\)"):
        ALL[0].jvp(frames(2), frames(2, 7))


def test_stack_and_component_carry_units_and_periods():
    both = Stack([Torsion((0, 1, 2, 3), "phi"), PathCV.of_frames(REFERENCES, 1.0, name="p")])
    assert both.names == ("phi", "p.sss", "p.zzz") and both.unit == ("rad", "1", "nm^2")
    z = Component(both, "p.zzz")
    x = frames(4)
    assert z.names == ("p.zzz",) and z.unit == ("nm^2",) and z.period == (None,)
    assert torch.equal(z(x)[:, 0], both(x)[:, 2])
    assert Component(both, "phi").period == (2 * math.pi,)
    with pytest.raises(ValueError, match=r"CV component 'p.s' does not exist; allowed are phi, p.sss, p.zzz"):
        Component(both, "p.s")


def test_function_takes_any_callable_and_checks_its_shape():
    cv = Function(lambda x: x[:, 0, :2], ["a", "b"], period=(1.0, None), unit=("nm", "nm"))
    assert cv.period == (1.0, None) and torch.equal(cv(frames(3)), frames(3)[:, 0, :2])
    with pytest.raises(ValueError, match=r"CV 'a': the function returned shape \(3,\); allowed is \(n, k\) = \(3, 1\)"):
        Function(lambda x: x[:, 0, 0], ["a"])(frames(3))
    with pytest.raises(ValueError, match="got 1 names, 2 periods and 1 units"):
        Function(lambda x: x, ["a"], period=(None, None))
