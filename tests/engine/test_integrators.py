"""Rows against the schemes they claim to be, their densities, and their order of convergence."""

import math

import pytest
import torch

from molsamp.engine import (
    Controlled,
    EulerMaruyama,
    Heun,
    Ito,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    SemiImplicitEuler,
    Tape,
    Underdamped,
    log_prob,
    rollout,
    step,
)
from molsamp.engine.closed_forms import Harmonic, oscillator
from molsamp.engine.integrators import Evaluate, Line, Memory, Row, residual

MASSES = torch.tensor([[1.0], [12.0]], dtype=torch.float64)
IDS = torch.arange(5)
X = Noise(1).child("x").normal(0, IDS, (2, 3))
V = Noise(1).child("v").normal(0, IDS, (2, 3))
Z = Noise(1).child("z").normal(0, IDS, (2, 3))
kT, gamma, k, h = 2.5, 1.5, 30.0, 0.02
UNDERDAMPED = Underdamped(Harmonic(k), MASSES, kT, gamma)
OVERDAMPED = Overdamped(Harmonic(k), kT, mobility=0.2)
PAIRS = [(EulerMaruyama(), OVERDAMPED), (SemiImplicitEuler(), UNDERDAMPED), (LangevinMiddle(), UNDERDAMPED)]
NAMES = ["euler-maruyama", "semi-implicit-euler", "langevin-middle"]


def one_row(integrator, dyn):
    """The row over [0, h] and particles to start it from."""
    return integrator.rows(dyn, [0.0, h])[0], Particles.at(X, V if "v" in dyn.blocks else None)


def test_euler_maruyama_is_its_formula():
    row, p = one_row(EulerMaruyama(), OVERDAMPED)
    q, _, info = step(row, OVERDAMPED, p, Z)
    assert torch.allclose(q.x, X - h * 0.2 * k * X + math.sqrt(2 * kT * 0.2 * h) * Z, rtol=1e-14)
    assert info.energy is not None
    assert torch.allclose(info.energy, 0.5 * k * (X**2).sum((1, 2)))


def test_semi_implicit_euler_is_its_formula():
    row, p = one_row(SemiImplicitEuler(), UNDERDAMPED)
    q, _, _ = step(row, UNDERDAMPED, p, Z)
    v = (1 - gamma * h) * V - h * k * X / MASSES + (2 * gamma * kT * h / MASSES).sqrt() * Z
    assert torch.allclose(q.v, v, rtol=1e-13) and torch.allclose(q.x, X + h * v, rtol=1e-13)


def test_langevin_middle_is_its_formula():
    row, p = one_row(LangevinMiddle(), UNDERDAMPED)
    q, _, _ = step(row, UNDERDAMPED, p, Z)
    c = math.exp(-gamma * h)
    kicked = V - h * k * X / MASSES
    v = c * kicked + ((1 - c * c) * kT / MASSES).sqrt() * Z
    assert torch.allclose(q.v, v, rtol=1e-13) and torch.allclose(q.x, X + 0.5 * h * (kicked + v), rtol=1e-13)


@pytest.mark.parametrize("scheme, integrator", [(NAMES[1], PAIRS[1][0]), (NAMES[2], PAIRS[2][0])])
def test_the_closed_form_matrices_are_those_of_the_rows(scheme, integrator):
    """A and B of `oscillator`, by pushing unit vectors of x, v and z through a row."""
    chain = oscillator(stiffness=k, mass=3.0, kT=kT, friction=gamma, h=h, steps=1, x0=0.0, scheme=scheme)
    dyn = Underdamped(Harmonic(k), torch.tensor([3.0]).double(), kT, gamma)
    x, v, z = torch.eye(3, dtype=torch.float64)[:, :, None]
    q, _, _ = step(integrator.rows(dyn, [0.0, h])[0], dyn, Particles.at(x, v), z)
    got = torch.cat([q.x, q.v], dim=1).T
    assert torch.allclose(got, torch.cat([chain.A, chain.B[:, None]], dim=1), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("integrator, dyn", PAIRS, ids=NAMES)
def test_the_density_is_the_gaussian_of_the_row(integrator, dyn):
    """The residual returns the noise, and log p is the textbook normal density of the noisy block."""
    row, p = one_row(integrator, dyn)
    q, _, _ = step(row, dyn, p, Z)
    still, _, _ = step(row, dyn, p, torch.zeros_like(Z))
    z, gap, _ = residual(row, dyn, p, q)
    assert torch.allclose(z, Z, atol=1e-11) and float(gap.max()) < 1e-13
    block = "v" if "v" in dyn.blocks else "x"
    sd = torch.as_tensor(row.split()[1].noise, dtype=torch.float64).expand(2, 3)
    exact = torch.distributions.Normal(getattr(still, block), sd).log_prob(getattr(q, block)).sum((1, 2))
    assert torch.allclose(log_prob(row, dyn, p, q)[0], exact, rtol=1e-11)


@pytest.mark.parametrize("integrator, dyn", PAIRS, ids=NAMES)
def test_a_control_moves_the_mean_of_the_noise_and_nothing_else(integrator, dyn):
    row, p = one_row(integrator, dyn)
    controlled = Controlled(dyn, lambda t, x, v: 0.3 * torch.sin(x))
    q, memory, info = step(row, controlled, p, Z)
    free, _, _ = step(row, dyn, p, Z + 0.3 * torch.sin(X))
    assert torch.equal(q.x, free.x) and torch.equal(info.z, Z + info.u) and memory.held is info.u
    log_ratio = log_prob(row, controlled, p, q)[0] - log_prob(row, dyn, p, q)[0]
    assert torch.allclose(log_ratio, (info.u * (info.z - 0.5 * info.u)).sum((1, 2)), atol=1e-10)
    held = log_prob(row, controlled, p, q, Memory(held=torch.zeros_like(X)))[0]
    assert torch.equal(held, log_prob(row, dyn, p, q)[0])


def test_a_held_control_is_not_carried_into_free_dynamics():
    row, p = one_row(*PAIRS[0])
    q, memory, _ = step(row, OVERDAMPED, p, Z, Memory(held=torch.ones_like(X)))
    assert torch.equal(q.x, step(row, OVERDAMPED, p, Z)[0].x) and memory.held is None


def test_heat_scales_the_drawn_noise_and_keeps_the_dtype():
    dyn = Overdamped(Harmonic(k), kT)
    row, p = one_row(EulerMaruyama(), dyn)
    heat = torch.linspace(1.0, 2.0, 5, dtype=torch.float64).view(5, 1, 1)
    hot = step(row, dyn, p, Z, heat=heat)[0].x
    assert torch.allclose(hot, step(row, dyn, p, heat * Z)[0].x, rtol=1e-14)
    single = step(row.to(X.float()), dyn, Particles.at(X.float()), Z.float(), heat=heat)
    assert single[0].x.dtype == torch.float32 and torch.allclose(single[0].x.double(), hot, atol=1e-5)


@pytest.mark.parametrize("own, other", [(1, 2), (2, 1)], ids=["semi-implicit/middle", "middle/semi-implicit"])
def test_the_wrong_scheme_is_impossible_under_the_right_one(own, other):
    """x' does not follow from (x, v, v') of the other scheme: density zero, in float32 too."""
    row, p = one_row(*PAIRS[own])
    wrong = one_row(*PAIRS[other])[0]
    for dtype in (torch.float64, torch.float32):
        start = Particles.at(p.x.to(dtype), p.v.to(dtype))
        q, _, _ = step(row.to(start.x), UNDERDAMPED, start, Z.to(dtype))
        assert torch.isfinite(log_prob(row.to(start.x), UNDERDAMPED, start, q)[0]).all()
        assert (log_prob(wrong.to(start.x), UNDERDAMPED, start, q)[0] == -math.inf).all()


def noisy(*program):
    """A row of the given program over [0, 1]."""
    return Row(0.0, 1.0, program)


DRAW = Line("x", {"x": 1.0}, (), 1.0)


@pytest.mark.parametrize(
    "row",
    [
        Heun().rows(Ito(lambda t, x: -x, lambda t: 0.0), [0.0, 1.0])[0],
        noisy(DRAW, Evaluate(1.0)),
        noisy(DRAW, DRAW),
        noisy(DRAW, Line("x", {"x": 2.0})),
    ],
    ids=["no noise", "an evaluation sees it", "two draws", "changed after the draw"],
)
def test_rows_without_a_density_refuse_it(row):
    with pytest.raises(ValueError, match="has no density"):
        log_prob(row, OVERDAMPED, Particles.at(X), Particles.at(X))


def test_an_integrator_refuses_another_kind_of_dynamics():
    with pytest.raises(ValueError, match="LangevinMiddle integrates Underdamped, not Overdamped"):
        LangevinMiddle().rows(OVERDAMPED, [0.0, 1.0])
    with pytest.raises(ValueError, match="EulerMaruyama integrates Overdamped, Ito, not Underdamped"):
        EulerMaruyama().rows(Controlled(UNDERDAMPED, lambda t, x, v: x), [0.0, 1.0])


def slope(errors: list[float]) -> float:
    """Least-squares order p of errors ~ h^p on steps h, h/2, h/4, ..."""
    y = torch.tensor(errors).log2()
    n = torch.arange(len(errors)).double()
    return float(((n - n.mean()) * (y.mean() - y)).sum() / ((n - n.mean()) ** 2).sum())


def grid(steps: int) -> list[float]:
    return [j / steps for j in range(steps + 1)]


def test_heun_is_of_second_order():
    """dx/dt = x cos t from 1, whose solution is exp(sin t)."""
    dyn, start = Ito(lambda t, x: x * math.cos(t), lambda t: 0.0), Particles.at(torch.ones(1, 1).double())
    ends = [rollout(dyn, Heun(), start, grid(n), noise=Noise(0), save="last").x[-1] for n in (8, 16, 32, 64)]
    assert abs(slope([abs(float(x) - math.exp(math.sin(1.0))) for x in ends]) - 2.0) < 0.1


@pytest.mark.parametrize("integrator", [EulerMaruyama(), SemiImplicitEuler()], ids=NAMES[:2])
def test_strong_order_one_on_shared_noise(integrator):
    """Additive noise and a quartic force: rms distance to the path of 1024 steps driven by the same Brownian motion.

    Coarse noise is the sum of the fine, over sqrt of the number of steps. 200 paths, order within 0.15 of 1; a
    wrong power of h in the noise gives 0 or 1/2.
    """

    class Quartic:
        def energy_force(self, x):
            return 0.25 * (x**4).sum(1), -(x**3)

    if isinstance(integrator, EulerMaruyama):
        dyn = Overdamped(Quartic(), 0.5)
        start = Particles.at(torch.full((200, 1), 1.0).double())
    else:
        dyn = Underdamped(Quartic(), torch.ones(1).double(), 0.5, 1.0)
        start = Particles.at(torch.full((200, 1), 1.0).double(), torch.zeros(200, 1).double())
    fine = Noise(21).normal(range(1024), torch.arange(200), (1,))

    def end(steps):
        z = fine.view(steps, -1, 200, 1).sum(1) / math.sqrt(1024 / steps)
        return rollout(dyn, integrator, start, grid(steps), noise=Tape(z), save="last").x[-1]

    exact = end(1024)
    errors = [float(((end(n) - exact) ** 2).mean().sqrt()) for n in (8, 16, 32, 64)]
    assert abs(slope(errors) - 1.0) < 0.15


def test_stationary_position_is_exact_in_the_middle_scheme_and_of_first_order_in_the_other():
    """Weak order, without sampling: the discrete Lyapunov equation of each scheme against kT/k and kT/m."""

    def deviation(scheme, h):
        chain = oscillator(stiffness=4.0, mass=2.0, kT=kT, friction=gamma, h=h, steps=1, x0=0.0, scheme=scheme)
        _, C = chain.stationary()
        return abs(float(C[0, 0]) * 4.0 / kT - 1.0), abs(float(C[1, 1]) * 2.0 / kT - 1.0)

    steps = [0.2, 0.1, 0.05, 0.025]
    middle, euler = ([deviation(scheme, h) for h in steps] for scheme in (NAMES[2], NAMES[1]))
    assert max(x for x, _ in middle) < 1e-12 and max(v for _, v in middle) < 1e-12
    assert abs(slope([v for _, v in euler]) - 1.0) < 0.15
