"""Every operator against its definition and its adjoint; conjugate gradients against the dense solution."""

import math

import pytest
import torch

from molsamp.engine import Noise
from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.operators import (
    Blur,
    Downsample,
    Mask,
    Matrix,
    Selection,
    beads,
    check_adjoint,
    inner,
    normal,
)
from molsamp.engine.scanners import Fourier, Radon

F64 = torch.float64
SIZE = 16


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


def complex_draw(*shape, seed=0):
    return torch.complex(draw(*shape, seed=seed), draw(*shape, seed=seed + 100))


def some(*shape, share=0.5):
    return Noise(5).uniform(0, torch.arange(shape[0]), shape[1:]) < share


OPERATORS = {
    "mask": Mask(some(3, SIZE, SIZE)),
    "atoms": Selection(torch.tensor([4, 0, 7]), (9, 3)),
    "matrix": Matrix(draw(5, 9), (9, 3)),
    "beads": beads([[0, 1], [2, 3, 4]], draw(6).abs() + 1.0),
    "blur": Blur(draw(5, 3), (2, SIZE, SIZE + 1)),
    "downsample": Downsample(4, (3, SIZE, SIZE)),
    "radon": Radon(SIZE, torch.linspace(0.0, math.pi, 8)[:-1], SIZE + 5),
    "fourier": Fourier(some(SIZE, SIZE), complex_draw(3, SIZE, SIZE)),
    "fourier-real": Fourier(some(SIZE, SIZE), complex_draw(3, SIZE, SIZE), real=True),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_one(name):
    """To 1e-12 of |A x| |y| in float64, for 4 draws; the tolerance at the door is 1e-6."""
    assert check_adjoint(OPERATORS[name], Noise(1)) < 1e-12


class Forgetful(Fourier):
    """Its adjoint forgets to conjugate the maps."""

    def adjoint(self, y):
        return (self.maps.to(y) * torch.fft.ifft2(self.mask.to(y) * y, norm="ortho")).sum(1)


class Scaled(Downsample):
    """Its adjoint is that of sums, not means: the factor that back-projectors lose."""

    def adjoint(self, y):
        return super().adjoint(y) * self.factor**2


class Shifted(Blur):
    """Its adjoint is the blur itself, right only for symmetric kernels."""

    def adjoint(self, y):
        return self(y)


class Cut(Downsample):
    def adjoint(self, y):
        return super().adjoint(y)[..., 1:]


@pytest.mark.parametrize(
    "wrong",
    [
        Forgetful(some(SIZE, SIZE), complex_draw(3, SIZE, SIZE)),
        Scaled(2, (SIZE, SIZE)),
        Shifted(draw(3, 3), (SIZE, SIZE)),
        Cut(2, (SIZE, SIZE)),
    ],
    ids=lambda A: type(A).__name__,
)
def test_a_wrong_adjoint_is_refused(wrong):
    with pytest.raises(ValueError, match=type(wrong).__name__):
        check_adjoint(wrong, Noise(1))


def test_blur_is_the_sum():
    """(k * x)_i = sum_j k_j x_{i - j} with j from the kernel's middle, circular."""
    A, x = Blur(draw(3, 5), (8, 9)), draw(1, 8, 9, seed=3)
    direct = torch.zeros_like(x)
    for i in range(3):
        for j in range(5):
            direct += A.kernel[i, j] * x.roll((i - 1, j - 2), (1, 2))
    torch.testing.assert_close(A(x), direct, atol=1e-13, rtol=0)


def test_a_bead_is_a_centre_of_mass():
    """In nm; a molecule moved as a whole moves its beads by as much."""
    m, x = torch.tensor([1.0, 12.0, 16.0], dtype=F64), draw(2, 3, 3)
    A = beads([[0, 1, 2], [1]], m)
    torch.testing.assert_close(A(x)[:, 0], (m[:, None] * x).sum(1) / 29.0)
    torch.testing.assert_close(A(x)[:, 1], x[:, 1])
    torch.testing.assert_close(A(x + 0.3), A(x) + 0.3)


def test_radon_of_a_disc():
    """The chord 2 sqrt(R^2 - s^2) of a smoothed disc, R = 20 pixels, within 1 % of the diameter at every angle,
    and the sum of every projection is the picture's.
    """
    size, R = 64, 20.0
    at = torch.arange(size, dtype=F64) - 0.5 * (size - 1)
    picture = torch.sigmoid(4.0 * (R - (at[:, None] ** 2 + at**2).sqrt()))
    y = Radon(size, torch.linspace(0.0, math.pi, 13)[:-1])(picture[None])[0]
    chord = 2.0 * (R**2 - at**2).clamp(min=0.0).sqrt()
    away = (at.abs() - R).abs() > 2.0  # from the edge, where the chord is steep
    assert float((y - chord).abs()[:, away].max()) < 0.02 * R
    torch.testing.assert_close(y.sum(1), picture.sum().expand(12), rtol=2e-3, atol=0)


def test_radon_knows_its_angles():
    """A point at (row 8 + 4, column 8) of 17 x 17 lies on line s = 0 at angle 0 and on s = 4 at a right angle."""
    x = torch.zeros(1, 17, 17, dtype=F64)
    x[0, 12, 8] = 1.0
    y = Radon(17, torch.tensor([0.0, math.pi / 2]))(x)[0]
    assert y.argmax(1).tolist() == [8, 12]
    torch.testing.assert_close(y.sum(1), torch.ones(2, dtype=F64))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: Selection(torch.tensor([0, 9]), (9, 3)), "0 .. 8"),
        (lambda: Selection(torch.tensor([1, 1]), (9, 3)), "each once"),
        (lambda: Matrix(torch.zeros(2, 4), (3, 3)), "does not act"),
        (lambda: Blur(torch.ones(2, 3), (8, 8)), "odd"),
        (lambda: Blur(torch.ones(9, 3), (8, 8)), "no place"),
        (lambda: Downsample(3, (8, 8)), "blocks of 3"),
        (lambda: beads([[0], []], torch.ones(2)), "bead 1"),
        (lambda: beads([[5]], torch.ones(2)), "0 .. 1"),
    ],
)
def test_bad_operators_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()


# ---- conjugate gradients ----


def systems(n=3, d=40, complex_numbers=True, condition=10.0):
    """Hermitian positive matrices with eigenvalues from 1 to `condition`, right-hand sides, solutions."""
    draws = complex_draw if complex_numbers else draw
    Q = torch.linalg.qr(draws(n, d, d)).Q
    eigenvalues = torch.logspace(0.0, math.log10(condition), d, dtype=F64)
    H = Q @ (eigenvalues[:, None] * Q.mH)
    b = draws(n, d, seed=7) * torch.tensor([1.0, 1e3, 1e-3], dtype=F64)[:n, None]
    return H, b, torch.linalg.solve(H, b)


def error(x, solution):
    return (x - solution).norm(dim=1) / solution.norm(dim=1)


def solve(H, b, steps, **options):
    return conjugate_gradients(lambda x: torch.einsum("nij,nj->ni", H, x), b, steps=steps, **options)


@pytest.mark.parametrize("complex_numbers", [True, False])
def test_converges_to_the_dense_solution(complex_numbers):
    """Three systems of 40 unknowns, whose right-hand sides differ by 10^6: to 1e-6 in 30 steps, to 1e-12 in 80."""
    H, b, solution = systems(complex_numbers=complex_numbers)
    assert float(error(solve(H, b, 30)[0], solution).max()) < 1e-6
    x, left = solve(H, b, 80)
    assert float(error(x, solution).max()) < 1e-12 and float(left.max()) < 1e-12


@pytest.mark.parametrize("complex_numbers", [True, False])
def test_as_many_steps_as_unknowns_are_enough(complex_numbers):
    """10 unknowns: 1e-3 or more is left after 8 steps of 10, less than 1e-8 after all: what only conjugate directions
    do.
    """
    H, b, solution = systems(d=10, complex_numbers=complex_numbers, condition=100.0)
    assert float(error(solve(H, b, 8)[0], solution).min()) > 1e-3
    assert float(error(solve(H, b, 10)[0], solution).max()) < 1e-8


def unconjugated(H, b, steps):
    """As public code has it: r^T r without conjugation."""
    x, r = torch.zeros_like(b), b
    p, rr = r, (r * r).sum(1)
    for _ in range(steps):
        Hp = torch.einsum("nij,nj->ni", H, p)
        a = rr / (p * Hp).sum(1)
        x, r = x + a[:, None] * p, r - a[:, None] * Hp
        after = (r * r).sum(1)
        p, rr = r + (after / rr)[:, None] * p, after
    return x


def test_inner_products_must_be_conjugated():
    """The test above fails without: the error stays above 1e-2."""
    H, b, solution = systems()
    assert float(error(unconjugated(H, b, 30), solution).min()) > 1e-2


def test_inner_products_are_each_ones_own():
    """A system's iterates are what they are alone, bit for bit but for the sum's order."""
    H, b, _ = systems()
    together = solve(H, b, 7)[0]
    for i in range(3):
        torch.testing.assert_close(solve(H[i : i + 1], b[i : i + 1], 7)[0][0], together[i], rtol=1e-12, atol=0)


def test_the_energy_norm_falls_as_the_theory_says():
    """Monotonely, and below 2 ((sqrt k - 1)/(sqrt k + 1))^m (Chebyshev), k = 10."""
    H, b, solution = systems()

    def energy(x):
        return torch.einsum("ni,nij,nj->n", (x - solution).conj(), H, x - solution).real.sqrt()

    first, last = energy(torch.zeros_like(b)), None
    rate = (math.sqrt(10.0) - 1.0) / (math.sqrt(10.0) + 1.0)
    for m in range(1, 15):
        now = energy(solve(H, b, m)[0])
        assert (now <= 2.0 * rate**m * first).all()
        assert last is None or (now < last).all()
        last = now


def test_converged_systems_stay():
    """One begins at its solution, one has b = 0: no 0/0; the third is solved. A projector needs one step."""
    H, b, solution = systems()
    b[1] = 0.0
    start = torch.zeros_like(b)
    start[0] = solution[0]
    x, left = solve(H, b, 60, start=start)
    assert torch.isfinite(left).all() and torch.equal(x[1], torch.zeros_like(x[1]))
    torch.testing.assert_close(x[0], solution[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(x[2], solution[2], rtol=1e-10, atol=0)
    A, y = OPERATORS["atoms"], draw(2, 3, 3)
    torch.testing.assert_close(conjugate_gradients(lambda x: normal(A, x), A.adjoint(y), steps=1)[0], A.adjoint(y))


def test_corrections_lie_in_the_krylov_space():
    """x_k - x_0 in span{r, A r, .., A^(k-1) r}: adding it raises the rank of that basis by nothing."""
    H, b, _ = systems(n=1)
    start = complex_draw(1, 40, seed=9)
    r = b - torch.einsum("nij,nj->ni", H, start)
    basis = [r[0] / r[0].norm()]
    for _ in range(4):
        basis.append(H[0] @ basis[-1])
    Q = torch.linalg.qr(torch.stack(basis, 1)).Q
    step = solve(H, b, 5, start=start)[0][0] - start[0]
    assert float((step - Q @ (Q.mH @ step)).norm() / step.norm()) < 1e-10
    six = solve(H, b, 6, start=start)[0][0] - start[0]
    assert float((six - Q @ (Q.mH @ six)).norm() / six.norm()) > 1e-4


def test_a_system_that_is_not_positive_is_named():
    H, b, _ = systems()
    H[1] = -H[1]
    with pytest.raises(ValueError, match="particle 1 at step 0"):
        solve(H, b, 3)


def test_inner_products_conjugate_the_left():
    a, b = complex_draw(2, 5), complex_draw(2, 5, seed=4)
    torch.testing.assert_close(inner(1j * a, b), -1j * inner(a, b))
