"""Multistep and Runge-Kutta solvers against the formulas as their papers print them, and their orders."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from molsamp.engine import (
    VP,
    DPMSolver,
    Exponential,
    GaussianMixture,
    LinearSDE,
    Noise,
    Particles,
    RungeKutta,
    rollout,
    step,
    time_grid,
)
from molsamp.engine.exponential import ADAMS, ALWAYS
from molsamp.engine.integrators import Mix
from molsamp.engine.quadrature import Node, lagrange, total
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Memory

F64 = torch.float64
S = VP()


def at(*times, schedule=S):
    return [Node.at(schedule, t) for t in times]


def f64(values):
    return torch.tensor(values, dtype=F64)


@pytest.fixture(scope="module")
def mixture():
    A = f64([[[0.5, 0.0], [0.2, 0.3]], [[0.3, 0.0], [-0.1, 0.4]], [[0.4, 0.0], [0.0, 0.4]]])
    means = f64([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
    return GaussianMixture(means, A @ A.transpose(1, 2), f64([0.5, 0.3, 0.2]))


@pytest.fixture(scope="module")
def start():
    return Noise(11).normal(0, torch.arange(64), (2,))


def solve(mixture, integrator, x, times):
    form = "noise" if isinstance(integrator, RungeKutta) else integrator.form
    dyn = LinearSDE(S, lambda x, t: mixture.denoise(S, x, t), form)
    return rollout(dyn, integrator, Particles.at(x), times, noise=Noise(0), save="last").final.x


# ---- the published formulas, written out step by step ----


def quantities(s, t):
    return S.alpha(s), S.alpha(t), S.sigma(s), S.sigma(t), S.lam(t) - S.lam(s)


def dpm_solver(mixture, x, times, order):
    """Algorithms 1 and 2 of Lu et al. (2022), noise prediction."""

    def eps(x, t):
        return (x - S.alpha(t) * mixture.denoise(S, x, t)) / S.sigma(t)

    def first(x, e, s, t):
        a, b, _, c, h = quantities(s, t)
        return b / a * x - c * math.expm1(h) * e

    for s, t in pairwise(times):
        c, h = quantities(s, t)[3:]
        e0 = eps(x, s)
        if order == 1:
            x = first(x, e0, s, t)
        elif order == 2:
            m = S.time(S.lam(s) + h / 2)
            x = first(x, eps(first(x, e0, s, m), m), s, t)
        else:
            m, n = (S.time(S.lam(s) + r * h) for r in (1 / 3, 2 / 3))
            D1 = eps(first(x, e0, s, m), m) - e0
            k = 2 * h / 3
            u = first(x, e0, s, n) - S.sigma(n) * 2.0 * (math.expm1(k) / k - 1) * D1
            D2 = eps(u, n) - e0
            x = first(x, e0, s, t) - c / (2 / 3) * (math.expm1(h) / h - 1) * D2
    return x


def multistep_plus_plus(mixture, x, times, order):
    """DPM-Solver++ 2M and 3M as published (order 3 with half the second difference), warm-up by lower orders."""
    lam, m = [S.lam(t) for t in times], []
    for i, (s, t) in enumerate(pairwise(times), 1):
        _, a, before, now, h = quantities(s, t)
        m.append(mixture.denoise(S, x, s))
        e = math.expm1(-h)
        out = now / before * x - a * e * m[-1]
        if min(order, i) == 2:
            r = (lam[i - 1] - lam[i - 2]) / h
            out = out - a * e * (m[-1] - m[-2]) / (2 * r)
        elif min(order, i) == 3:
            r0, r1 = (lam[i - 1] - lam[i - 2]) / h, (lam[i - 2] - lam[i - 3]) / h
            d0, d1 = (m[-1] - m[-2]) / r0, (m[-2] - m[-3]) / r1
            D1, D2 = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
            out = out + a * (e / h + 1) * D1 - a * ((e + h) / h**2 - 0.5) * D2
        x = out
    return x


def unipc(mixture, x, times, order, bh, form):
    """UniPC with its linear systems solved by numpy and both shortcuts, as the reference code has them."""
    lam, N = [S.lam(t) for t in times], len(times) - 1

    def model(x, t):
        D = mixture.denoise(S, x, t)
        return D if form == "data" else (x - S.alpha(t) * D) / S.sigma(t)

    def update(x, i, o, m, new=None):
        """x at times[i - 1] to times[i]; m newest first; a new evaluation at times[i] makes it the corrector."""
        a0, a1, s0, s1, h = quantities(times[i - 1], times[i])
        hh = -h if form == "data" else h
        E = math.expm1(hh)
        B = hh if bh == "bh1" else E
        r = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, o)]
        D = [m[k] - m[0] for k in range(1, o)]
        if new is not None:
            r, D = [*r, 1.0], [*D, new - m[0]]
        base = s1 / s0 * x - a1 * E * m[0] if form == "data" else a1 / a0 * x - s1 * E * m[0]
        if not r:
            return base
        R = np.array([[a**q for a in r] for q in range(len(r))])
        psi, b = E / hh - 1, []
        for q in range(1, len(r) + 1):
            b.append(math.factorial(q) * psi / B)
            psi = psi / hh - 1 / math.factorial(q + 1)
        rho = np.linalg.solve(R, np.array(b))
        if len(r) == 1:
            rho = np.array([0.5])
        scale = a1 if form == "data" else s1
        return base - scale * B * sum(float(p) * d / q for p, d, q in zip(rho, D, r, strict=True))

    m = [model(x, times[0])]
    for i in range(1, N + 1):
        o = min(order, i, N - i + 1)
        predicted = update(x, i, o, m)
        if i == N:
            return predicted
        new = model(predicted, times[i])
        x, m = update(x, i, o, m, new), [new, *m]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_is_its_algorithm(mixture, start, order):
    times = time_grid("log-snr", S, 6)
    found = solve(mixture, DPMSolver((order,)), start, times)
    torch.testing.assert_close(found, dpm_solver(mixture, start, times, order), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_multistep_is_as_published(mixture, start, order):
    times = time_grid("quadratic", S, 7)
    found = solve(mixture, Exponential(order, short=0, rule="published"), start, times)
    torch.testing.assert_close(found, multistep_plus_plus(mixture, start, times, order), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_linear_system(mixture, start, order, bh, form):
    times = time_grid("uniform", S, 8)
    rule = "bh1" if bh == "bh1" else "midpoint"
    integrator = Exponential(order, corrects=order, rule=rule, short=ALWAYS, form=form)
    found, exact = solve(mixture, integrator, start, times), unipc(mixture, start, times, order, bh, form)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


# ---- equality cases ----


@pytest.mark.parametrize(
    "twin",
    [
        DPMSolver((1,)),
        DPMSolver((1,), "data"),
        RungeKutta(("euler",)),
        Exponential(form="noise"),
        Exponential(form="noise", variable="t", rule="exact"),
        Exponential(form="noise", rule="fixed"),
    ],
)
def test_all_of_order_one_are_ddim(mixture, start, twin):
    times = time_grid("karras", S, 6)
    ddim = solve(mixture, Exponential(), start, times)
    torch.testing.assert_close(solve(mixture, twin, start, times), ddim, rtol=1e-10, atol=1e-10)


def test_weights_are_exact_for_polynomials():
    """int kernel p(l) dl of a cubic p in lam, in closed form by the moments of the exponential."""
    nodes = at(0.5, 0.62, 0.75, 0.9)
    s, t = at(0.5, 0.3)
    h, places = t.lam - s.lam, [n.lam - s.lam for n in nodes]
    for form in ("data", "noise"):
        w = lagrange(form, S, s, t, nodes)
        for k in range(4):
            # moments int_0^h e^(-(h - u)) u^k du and int_0^h e^(h - u) u^k du by parts
            moment = -math.expm1(-h) if form == "data" else math.expm1(h)
            for j in range(1, k + 1):
                moment = h**j - j * moment if form == "data" else j * moment - h**j
            scale = t.alpha if form == "data" else -t.sigma
            assert math.isclose(sum(a * u**k for a, u in zip(w, places, strict=True)), scale * moment, rel_tol=1e-9)


def test_weights_add_up_whatever_the_variable():
    nodes, (s, t) = at(0.5, 0.62, 0.75), at(0.5, 0.3)
    for form in ("data", "noise"):
        for variable in ("lam", "rho", "t"):
            assert math.isclose(sum(lagrange(form, S, s, t, nodes, 0.0, variable)), total(form, s, t))


def test_rho_weights_are_adams_bashforth_in_rho():
    """Two nodes in rho: y' = y + (rho_t - rho_s) [e_0 + (rho_t - rho_s) / 2 (e_0 - e_1) / (rho_s - rho_r)]."""
    s, t, r = at(0.5, 0.3, 0.62)
    a, b, c = s.rho, t.rho, r.rho
    slope = 0.5 * (b - a) / (a - c)
    w = lagrange("noise", S, s, t, (s, r), 0.0, "rho")
    expected = [t.alpha * (b - a) * (1 + slope), -t.alpha * (b - a) * slope]
    assert np.allclose(w, expected, rtol=1e-12)


def test_even_steps_have_adams_weights():
    """On a grid even in rho the exact weights in rho are those of Adams and Bashforth."""
    edm = EDM()
    end, *nodes = at(3.0, 4.0, 5.0, 6.0, 7.0, schedule=edm)
    for k, adams in enumerate(ADAMS, 1):
        w = lagrange("noise", edm, nodes[0], end, nodes[:k], 0.0, "rho")
        assert np.allclose(w, [-a for a in adams], rtol=1e-11)


def test_a_corrector_leaves_a_constant_prediction_alone(start):
    times, D = time_grid("uniform", S, 6), f64([0.3, -0.2])
    dyn = LinearSDE(S, lambda x, t: D.expand_as(x))
    one, two = (
        rollout(dyn, Exponential(3, corrects=c), Particles.at(start), times, noise=Noise(0), save="last").final.x
        for c in (0, 3)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_mixtures_of_evaluations_stay_in_the_history(mixture, start):
    """Mix replaces g_0 for the rows that follow; weights (1) change nothing."""
    dyn, times = LinearSDE(S, lambda x, t: mixture.denoise(S, x, t)), time_grid("uniform", S, 4)
    mixes = ((1.0,), (1.0,), (0.7, 0.3), (1.0,))
    rows = Exponential(2, mixes=mixes, short=0).rows(dyn, times)
    assert isinstance(rows[2].program[1], Mix)
    p, memory = Particles.at(start), Memory()
    for row in rows[:2]:
        p, memory, _ = step(row, dyn, p, None, memory)
    older = memory.history[0]
    raw = dyn.evaluate(times[2], p.x)[0]
    _, memory, _ = step(rows[2], dyn, p, None, memory)
    torch.testing.assert_close(memory.history[0], 0.7 * raw + 0.3 * older)
    plain = solve(mixture, Exponential(2, short=0), start, times)
    same = solve(mixture, Exponential(2, mixes=((1.0,),) * 4, short=0), start, times)
    assert torch.equal(plain, same)


# ---- orders of convergence ----


@pytest.fixture(scope="module")
def truth(mixture, start):
    """UniPC-3 on 2000 rows: within 1e-9."""
    return solve(mixture, Exponential(3, rule="exact", corrects=3, short=0), start, time_grid("log-snr", S, 2000))


@pytest.mark.parametrize(
    ("integrator", "order"),
    [
        (Exponential(3, rule="published", short=0), 2.1),
        (Exponential(3, rule="exact", short=0), 3),
        (Exponential(2, corrects=2, short=0), 3),
        (Exponential(3, corrects=3, rule="bh1", short=0), 4),
        (Exponential(3, form="noise", variable="rho", rule="exact", short=0), 3),
        (Exponential(4, form="noise", rule="fixed", short=0), 2),
        (DPMSolver((2,)), 2),
        (DPMSolver((3,)), 3),
        (DPMSolver((2,), "data"), 2),
        (RungeKutta(("heun",)), 2),
        (RungeKutta(("kutta",)), 3),
        (RungeKutta(("rk4",)), 4),
    ],
    ids=str,
)
def test_order_of_convergence(mixture, start, truth, integrator, order):
    """Within 0.15 where the rows of a log-SNR grid are doubled; the published 3M is of order 2."""
    errors = [
        float((solve(mixture, integrator, start, time_grid("log-snr", S, n)) - truth).square().mean().sqrt())
        for n in (160, 320)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15


# ---- noise ----


def test_churn_keeps_the_marginals():
    """One Gaussian: after noise has been raised and taken away again its variance is that of the flow, in the limit.

    A linear model, so that the variance of 2e4 draws is exact up to sampling; 4.5 standard errors, false alarm 7e-6.
    With the raised noise left out of t the variance is off by more than 20 %.
    """
    S2, n = 0.25, 20_000
    g = GaussianMixture(f64([[0.0]]), f64([S2]))
    edm = EDM(10.0, 0.01)
    dyn = LinearSDE(edm, lambda x, t: g.denoise(edm, x, t), "noise")
    x = Noise(1).normal(0, torch.arange(n), (1,)) * math.sqrt(100.0 + S2)
    times = time_grid("karras", edm, 40)
    end = rollout(dyn, RungeKutta(churn=20.0), Particles.at(x), times, noise=Noise(2), save="last").final.x
    assert abs(float(end.var()) / (S2 + 1e-4) - 1.0) < 4.5 * math.sqrt(2.0 / n) + 0.01


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: DPMSolver((4,)), "orders 1, 2 and 3"),
        (lambda: RungeKutta(("midpoint",)), "knows euler"),
        (lambda: Exponential(rule="fixed"), "noise form"),
        (lambda: Exponential(form="noise", noise=0.5), "eta 0 or 1"),
        (lambda: Exponential(corrects=-1), "corrects"),
    ],
)
def test_bad_solvers_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()


@pytest.mark.parametrize("integrator", [Exponential(form="noise"), DPMSolver(), RungeKutta()])
def test_a_form_that_the_dynamics_does_not_store_is_refused(mixture, integrator):
    with pytest.raises(ValueError, match="the dynamics stores data"):
        integrator.rows(mixture.sde(S), [1.0, 0.5])
