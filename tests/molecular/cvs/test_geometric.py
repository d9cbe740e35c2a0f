"""CVs: closed cases, finite differences, mdtraj as the judge, errors at the door."""

import math

import pytest
import torch

from molsamp.molecular.cvs import RMSD, Angle, Coordinate, Distance, Distances, Stack, Torsion, wrap


def _frames(n=20, atoms=8, seed=0):
    return torch.randn(n, atoms, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _all(reference):
    return Stack(
        [
            Torsion((0, 1, 2, 3), "phi"),
            Torsion((6, 4, 2, 0), "psi"),
            Distance((1, 5)),
            Angle((3, 4, 5)),
            RMSD(reference, (0, 2, 3, 5, 7)),
        ]
    )


def test_torsion_has_the_iupac_sign():
    """Looking along B-C, a clockwise turn from A to D is positive; cis is 0 and trans is pi."""
    turn = torch.tensor([0.0, 0.3, 1.5, math.pi, -1.5, -0.3], dtype=torch.float64)
    x = torch.zeros(6, 4, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 2], x[:, 3, 2] = 1.0, 1.0, 1.0
    # the observer at B looks along +z towards C: clockwise is from x towards y
    x[:, 3, 0], x[:, 3, 1] = turn.cos(), turn.sin()
    assert torch.allclose(Torsion((0, 1, 2, 3))(x)[:, 0], turn, atol=1e-14)
    assert torch.allclose(Torsion((3, 2, 1, 0))(x)[:, 0], turn, atol=1e-14)


def test_equals_mdtraj():
    mdtraj = pytest.importorskip("mdtraj")
    import numpy as np

    x = _frames(30)
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(8):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(x.numpy().astype(np.float32), topology)
    values = _all(x[0])(x)
    phi, psi = mdtraj.compute_dihedrals(trajectory, [[0, 1, 2, 3], [6, 4, 2, 0]]).T
    theirs = [
        phi,
        psi,
        mdtraj.compute_distances(trajectory, [[1, 5]])[:, 0],
        mdtraj.compute_angles(trajectory, [[3, 4, 5]])[:, 0],
        mdtraj.rmsd(trajectory, trajectory, 0, atom_indices=[0, 2, 3, 5, 7]),
    ]
    for column, expected in enumerate(theirs):
        assert np.allclose(values[1:, column].numpy(), expected[1:], atol=2e-5), column


def test_gradients_by_finite_differences():
    reference = _frames(1, seed=1)[0]
    cvs = _all(reference)
    assert torch.autograd.gradcheck(lambda y: cvs(y)[:, [0, 1, 2, 3]], _frames(3, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(lambda y: cvs(y)[:, [4]], _frames(3, seed=3).requires_grad_())


def test_gradients_stay_finite_at_cis_and_trans():
    x = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [s, 0, 1]] for s in (1.0, -1.0)], dtype=torch.float64)
    x.requires_grad_()
    Torsion((0, 1, 2, 3))(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0.1


def test_names_periods_and_columns():
    cvs = _all(_frames(1)[0])
    assert cvs.names == ("phi", "psi", "distance", "angle", "rmsd")
    assert cvs.period == (2 * math.pi, 2 * math.pi, None, None, None)
    assert cvs(_frames(4)).shape == (4, 5)
    x = _frames(4).float()
    assert cvs(x).dtype == torch.float32
    toy = Stack([Coordinate(1, "y"), Coordinate(0, "x")])
    point = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(toy(point), point.flip(1)) and toy.period == (None, None)


def test_a_bad_frame_harms_only_itself():
    x = _frames(5)
    cvs = _all(x[0])
    good = cvs(x)
    x[1] = torch.nan
    bad = cvs(x)
    keep = [0, 2, 3, 4]
    assert bad[1].isnan().all() and torch.equal(bad[keep], good[keep])


def test_wrap_takes_the_short_way_round():
    d = torch.tensor([[3.5, 3.5], [-3.5, -3.5], [7.0, 100.0], [0.1, 0.0]], dtype=torch.float64)
    expected = torch.tensor([3.5 - 2 * math.pi, -3.5 + 2 * math.pi, 7.0 - 2 * math.pi, 0.1], dtype=torch.float64)
    wrapped = wrap(d, (2 * math.pi, None))
    assert torch.allclose(wrapped[:, 0], expected, atol=1e-14)
    assert torch.equal(wrapped[:, 1], d[:, 1])
    with pytest.raises(ValueError, match="one period per column"):
        wrap(d, (None,))


def test_errors_name_the_cv_and_the_atom():
    with pytest.raises(ValueError, match=r"CV 'phi': atom 30 does not exist; 0-based indices 0 to 7 are allowed"):
        Torsion((0, 1, 2, 30), "phi")(_frames())
    with pytest.raises(ValueError, match=r"CV 'phi': needs 4 atoms, got 3"):
        Torsion((0, 1, 2), "phi")
    with pytest.raises(ValueError, match=r"CV 'd': atom -1 is negative"):
        Distance((0, -1), "d")
    with pytest.raises(ValueError, match=r"CV 'd': atoms must be distinct"):
        Distance((3, 3), "d")
    with pytest.raises(ValueError, match=r"CV 'z': axis 2 does not exist; 0 to 1 are allowed"):
        Coordinate(2, "z")(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"CV names must be distinct"):
        Stack([Distance((0, 1)), Distance((1, 2))])
    with pytest.raises(ValueError, match=r"CV 'rmsd': the reference has 8 atoms, x 9"):
        RMSD(_frames(1)[0])(_frames(2, 9))


def test_gradients_where_angles_end():
    """At 0 and pi the angle has a kink: its gradient is finite there; the torsion at +-pi is smooth: it is exact."""
    line = torch.tensor([[[-1.0, 0, 0], [0, 0, 0], [s, 0, 0]] for s in (2.0, -2.0)], dtype=torch.float64)
    assert torch.allclose(Angle((0, 1, 2))(line)[:, 0], torch.tensor([math.pi, 0.0], dtype=torch.float64))
    assert Angle((0, 1, 2)).gradient(line).isfinite().all()
    trans = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [-2, 0, 1]]], dtype=torch.float64)
    gradient = Torsion((0, 1, 2, 3)).gradient(trans)[0, 0]
    # the end atoms move the torsion by 1 / (distance from the axis): 1 and 1/2 per nm, along y
    assert abs(gradient[0, 1]) == pytest.approx(1.0) and abs(gradient[3, 1]) == pytest.approx(0.5)
    assert gradient.sum(0).abs().max() < 1e-12 and gradient[:, [0, 2]].abs().max() < 1e-12


def test_gradients_next_to_straight_and_folded_angles():
    for angle in (1e-6, math.pi - 1e-6):
        x = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [math.cos(angle), math.sin(angle), 0]]], dtype=torch.float64)
        gradient = Angle((0, 1, 2)).gradient(x)[0, 0]
        assert torch.allclose(gradient[[0, 2]].norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-6)


def test_distances_are_many_distances():
    x = _frames(4)
    cv = Distances.between((1, 4, 6))
    assert cv.names == ("d.1-4", "d.1-6", "d.4-6") and cv.unit == ("nm",) * 3
    expected = torch.cat([Distance(pair)(x) for pair in ((1, 4), (1, 6), (4, 6))], dim=1)
    assert torch.equal(cv(x), expected)
    with pytest.raises(ValueError, match=r"CV 'd': got no pairs"):
        Distances([])
    with pytest.raises(ValueError, match=r"CV 'd.1-9': atom 9 does not exist"):
        Distances([(1, 9)])(x)
