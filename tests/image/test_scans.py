"""Measurements by name: adjoints, what they are, files that do not fit, CG alone against a dense solve."""

import math

import numpy as np
import pytest
import torch

from molsamp.engine import Noise
from molsamp.engine.operators import Mask, Matrix, check_adjoint
from molsamp.engine.scanners import Radon
from molsamp.image import scans
from molsamp.image.scans import Problem, coils, operator, psnr, read, seen, simulated

F64 = torch.float64
EVENT = (1, 8, 8)


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


@pytest.mark.parametrize("name", ["inpaint", "blur", "blur:0.7", "downsample:4", "radon", "radon:5", "mri", "mri:3"])
def test_operators_have_their_adjoint(name):
    assert check_adjoint(operator(name, EVENT), Noise(1)) < 1e-12


def test_what_the_names_mean():
    """The middle of a square is hidden; a blur keeps the mean; a projection of a disc is its chords, within 3 %; a
    column of frequencies in four and the lowest three, with coils of unit sum of squares.
    """
    mask = operator("inpaint", (1, 16, 16))
    assert isinstance(mask, Mask) and mask.mask.sum() == 256 - 64 and mask.mask[0, 4:12, 4:12].sum() == 0
    x = draw(3, *EVENT)
    torch.testing.assert_close(operator("blur:1.5", EVENT)(x).mean((1, 2, 3)), x.mean((1, 2, 3)))
    radon = operator("radon:4", (1, 64, 64))
    assert isinstance(radon, Radon) and radon.image == (4, 64 + 2 * 14)
    at = torch.arange(64) - 31.5
    disc = ((at[:, None] ** 2 + at**2).sqrt() < 20.0).double()[None]
    s = torch.arange(92, dtype=F64) - 45.5
    chord = 2.0 * (400.0 - s**2).clamp(min=0.0).sqrt()
    assert float(((radon(disc)[0] - chord).norm(dim=1) / chord.norm()).max()) < 0.03
    mri = operator("mri:5", (1, 16, 16))
    assert seen(mri)[0, 0].nonzero()[:, 0].tolist() == [0, 1, 4, 8, 12, 15]
    torch.testing.assert_close(coils(5, 16).abs().square().sum(0), torch.ones(16, 16, dtype=F64))


@pytest.mark.parametrize("name", ["inpaint", "radon:3", "mri:2"])
def test_the_truth_misfits_by_one(name):
    """Mean square of the misfit over 400 measurements: 1 within 5 of its standard errors, sqrt(2 / numbers); half the
    spread would make it 4.
    """
    A, truth = operator(name, EVENT), draw(400, *EVENT)
    problem = Problem(A, simulated(A, truth, 0.2, Noise(2)), 0.2, truth)
    square = problem.misfit(truth, torch.arange(400)).square()
    numbers = 400 * float(seen(A).sum()) * (2 if A.image_complex else 1)
    assert abs(float(square.mean()) - 1.0) < 5.0 * math.sqrt(2.0 / numbers)


@pytest.mark.parametrize("name", ["inpaint", "blur", "downsample", "radon:3", "mri:2"])
def test_cg_alone_is_the_ridge(name):
    """(A^T A / spread^2 + 1 / s^2)^-1 (A^T y / spread^2 + mean / s^2), by a dense solve, to 1e-5 of its size."""
    A, truth, mean, s = operator(name, EVENT), draw(2, *EVENT), draw(1, *EVENT, seed=3)[0], 0.7
    y = simulated(A, truth, 0.3, Noise(2))
    found = Problem(A, y, 0.3, deviation=s).alone(mean)
    eye = torch.eye(64, dtype=F64).reshape(64, *A.domain)
    N, back = A.adjoint(A(eye)).flatten(1), A.adjoint(y).flatten(1)
    exact = torch.linalg.solve(N / 0.09 + torch.eye(64, dtype=F64) / s**2, (back / 0.09 + mean.flatten() / s**2).T).T
    assert float((found.flatten(1) - exact).norm() / exact.norm()) < 1e-5


def test_psnr_is_that_of_a_range_of_two():
    assert psnr(torch.full((1, 4), 0.2), torch.zeros(1, 4)).item() == pytest.approx(20.0, abs=1e-5)


def test_measurements_are_read_for_one_picture_or_several(tmp_path):
    A, file = operator("mri:2", EVENT), tmp_path / "y.npy"
    y = simulated(A, draw(3, *EVENT), 0.1, Noise(0))
    for kept in (y, y[0]):
        np.save(file, kept.numpy().astype(np.complex64))
        torch.testing.assert_close(read(file, A), kept.view(-1, *A.image), rtol=1e-6, atol=1e-6)


def test_a_measurement_goes_to_its_population():
    y = draw(2, 1, 8, 8)
    problem = Problem(operator("inpaint", EVENT), y, 0.1)
    assert [float(problem.guide(k).measured.y[0, 0, 0, 0]) for k in (0, 1, 2)] == y[[0, 1, 0], 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("text", "event", "match"),
    [
        ("radn:4", EVENT, "did you mean 'radon'"),
        ("radon:x", EVENT, "allowed is inpaint"),
        ("radon:", EVENT, "allowed is"),
        ("radon:2.5", EVENT, "whole"),
        ("radon:0", EVENT, "above 0"),
        ("radon:1e9", EVENT, "allowed is"),
        ("inpaint:3", EVENT, "allowed is"),
        ("blur:-1", EVENT, "above 0"),
        ("blur:nan", EVENT, "allowed is"),
        ("mri", (3, 8, 8), "1 x SIDE x SIDE"),
        ("radon", (1, 8, 6), "1 x SIDE x SIDE"),
        ("blur", (7,), "CHANNELS"),
        ("downsample:3", EVENT, "blocks of 3"),
    ],
)
def test_words_that_are_no_operator_are_refused(text, event, match):
    with pytest.raises(ValueError, match=match):
        operator(text, event)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 7)), "this operator gives 4 x 12"),
        (np.zeros((2, 2, 4, 12)), "or several"),
        (np.zeros((0, 4, 12)), "one or more"),
        (np.zeros((4, 12), complex), "must be real"),
        (np.full((4, 12), np.nan), "not finite"),
        (np.array([{"a": 1}]), "no array of numbers"),
        (np.array(["a"]), "<U1"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(tmp_path, array, match):
    np.save(tmp_path / "y.npy", array, allow_pickle=True)  # only objects need it: a file that `read` must refuse
    with pytest.raises(ValueError, match=match):
        read(tmp_path / "y.npy", operator("radon:4", EVENT))


def test_files_that_are_no_arrays_are_refused(tmp_path):
    A = operator("mri", EVENT)
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "two.npz", a=np.zeros(3))
    for name, match in (("absent.npy", "no such file"), ("text.npy", "no array"), ("two.npz", "holds")):
        with pytest.raises(ValueError, match=match):
            read(tmp_path / name, A)
    np.save(tmp_path / "y.npy", np.zeros(A.image))
    with pytest.raises(ValueError, match="must be complex"):
        read(tmp_path / "y.npy", A)


def test_a_problem_wants_its_measurement_to_fit():
    with pytest.raises(ValueError, match="wanted is"):
        Problem(Matrix(draw(3, 8), (8,)), draw(2, 4), 0.1)
    assert scans.USUAL.keys() == {word.partition("[")[0] for word in scans.FORMS.split(" | ")}
