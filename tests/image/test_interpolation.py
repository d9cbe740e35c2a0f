"""Films between two frames on Gaussian processes, where the bridge is exact and every scheme is affine: its mean and
covariance are propagated without sampling.
"""

import math

import pytest
import torch

from molsamp.engine import EDM, VP, LinearSDE, Noise, Particles, residuals, rollout, step, time_grid
from molsamp.engine.alternating import Alternating, Condition, Pinned, Reversal
from molsamp.engine.exponential import DDIM
from molsamp.engine.guides import Guided, Prediction
from molsamp.engine.operators import Selection
from molsamp.image.denoiser import Denoiser
from molsamp.image.guidance import CFGpp
from molsamp.image.interpolation import between
from molsamp.image.inverse import DDS, Measured
from molsamp.image.sampling import sample

F64 = torch.float64
FRAMES, RHO, SCHEDULE = 25, 0.9, EDM(20.0, 0.002)
STEP = torch.arange(FRAMES, dtype=F64)
C = RHO ** (STEP[:, None] - STEP).abs()  # AR(1), stationary and so reversible
START = torch.tensor(1.5, dtype=F64)


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


def gaussian(m, V):
    """(x, sigma) -> E[x_0 | x] of N(m, V)."""
    l, Q = torch.linalg.eigh(V)
    l = l.clamp(min=0.0)
    return lambda x, t: m.to(x) + (((x - m.to(x)) @ Q.to(x)) * (l / (l + t**2)).to(x)) @ Q.T.to(x)


class Films:
    """AR(1) films about a line of some slope: the model, what follows a first frame, and the true bridge."""

    def __init__(self, slope=0.0):
        self.mean = slope * STEP
        self.free, self.end = gaussian(self.mean, C), self.mean[-1] - 1.0

    def onward(self, x, t, frame):
        c = C[:, 0]
        return gaussian(self.mean + c * (frame - self.mean[0]), C - c[:, None] * c)(x, t)

    def bridge(self):
        """Mean and covariance given both ends."""
        ends = torch.tensor([0, FRAMES - 1])
        G = C[:, ends] @ torch.linalg.inv(C[ends][:, ends])
        return self.mean + G @ (torch.stack([START, self.end]) - self.mean[ends]), C - G @ C[ends]

    def solver(self, **how):
        return between(self.onward, START, self.end, FRAMES, **how)

    def moments(self, integrator, steps):
        """Mean and covariance where a scheme of at most one noise a row ends, exactly."""
        sde, times = LinearSDE(SCHEDULE, self.free), time_grid("karras", SCHEDULE, steps, 20.0, 0.002)
        eye, zero = torch.eye(FRAMES, dtype=F64), torch.zeros(1, FRAMES, dtype=F64)
        none = zero.expand(FRAMES, FRAMES)
        x, z = torch.cat([zero, eye, none]), torch.cat([zero, none, eye])
        m, V = zero[0], SCHEDULE.sigma(times[0]) ** 2 * eye
        for row in integrator.rows(sde, times):
            out = step(row, sde, Particles.at(x), z if row.draws else None)[0].x
            J, K = (out[1 : FRAMES + 1] - out[0]).T, (out[FRAMES + 1 :] - out[0]).T
            m, V = J @ m + out[0], J @ V @ J.T + K @ K.T
        return m, V

    def errors(self, integrator, steps=25):
        """(relative error of the mean, trace of the covariance over the bridge's)."""
        (m, V), (exact, P) = self.moments(integrator, steps), self.bridge()
        return float((m - exact).norm() / exact.norm()), float(V.trace() / P.trace())


class Averaged:
    """Both directions at once: the mean of two aims."""

    slots = 0

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, p, state):
        return p.aimed(0.5 * (self.a(p, None)[0].aim + self.b(p, None)[0].aim)), ()


def test_the_bridge_is_met_better_than_from_one_end_or_by_the_average():
    """25 rows: the mean is off by a fifth, by averaging the two directions without noise a quarter and more, from one
    end with the other overwritten by more than its length; three quarters of the variance are there. It is a heuristic:
    an average that draws noise is better still in the mean (0.05), and more rows make it worse, not better.
    """
    films = Films()
    turns = films.solver()
    average, one = Averaged(turns.first, turns.second), turns.first
    found, at_once, alone = (films.errors(s) for s in (turns, Guided(DDIM(), average), Guided(DDIM(), one)))
    assert 0.15 < found[0] < 0.23 < 0.25 < at_once[0] < 0.3 < 1.0 < alone[0]
    assert 0.7 < found[1] < 0.85 and at_once[1] < found[1]
    assert films.errors(Guided(DDIM(1.0), average))[0] < 0.1
    assert films.errors(turns, 100)[0] > 1.5 * found[0]


def test_the_ends_are_pinned():
    """After either half the aim has the frame exactly; where the noise is 0.002, both ends are, to a tenth of it."""
    films = Films()
    turns = films.solver()
    x = draw(3, FRAMES)
    D = films.free(x, 0.7)
    for guide, index, frame in ((turns.first, -1, films.end), (turns.second, 0, START)):
        p = guide(Prediction(x, 0.7, 1.0, 0.7, D, D), None)[0]
        assert bool((p.aim[:, index] == frame).all()) and p.origin is D
    m, V = films.moments(turns, 25)
    ends = torch.stack([START, films.end])
    assert float((m[[0, -1]] - ends).abs().max()) < 2e-4 and float(V.diagonal()[[0, -1]].max()) < 4e-6


def test_pinning_is_what_dds_does_with_a_selection():
    """The last frame overwritten, of the aim alone; a frame of its own for every path goes where it belongs."""
    p = Prediction(draw(3, FRAMES), 0.7, 1.0, 0.7, draw(3, FRAMES, seed=1), draw(3, FRAMES, seed=2))
    selected = DDS(Measured(Selection(torch.tensor([FRAMES - 1]), (FRAMES,)), START[None, None]))(p, None)[0]
    pinned = Pinned(-1, START)(p, None)[0]
    torch.testing.assert_close(pinned.aim, selected.aim, rtol=0, atol=1e-12)
    assert torch.equal(pinned.direction, selected.direction)
    assert torch.equal(Pinned(0, draw(3, seed=3))(p, None)[0].aim[:, 0], draw(3, seed=3))


def test_a_drift_breaks_it():
    """About a line that rises by 0.2 a frame a film run backwards is none: the mean is off by half its size and more,
    four times as much as from one end, which was five times worse than ViBiD without the drift.
    """
    films = Films(0.2)
    turns = films.solver()
    found, alone = films.errors(turns)[0], films.errors(Guided(DDIM(), turns.first))[0]
    assert found > 0.5 and found > 4.0 * alone
    back = Reversal().of(films.free)
    x = draw(4, FRAMES)
    assert float((back(x, 1.0) - films.free(x, 1.0)).abs().max()) > 0.5
    torch.testing.assert_close(Reversal().of(Films().free)(x, 1.0), Films().free(x, 1.0))


def test_without_weight_there_is_no_condition():
    """Weight 0: the aim of either half is the unconditional one with one frame overwritten."""
    turns = Films().solver(weight=0.0)
    p = Prediction(draw(2, FRAMES), 0.5, 1.0, 0.5, draw(2, FRAMES, seed=1), draw(2, FRAMES, seed=2))
    torch.testing.assert_close(turns.first(p, None)[0].aim[:, :-1], p.aim[:, :-1])
    torch.testing.assert_close(turns.second(p, None)[0].aim[:, 1:], p.aim[:, 1:])


def test_condition_is_cfgpp_from_the_other_side():
    x, U, Y = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    a = Condition(lambda x, t: Y, 0.3)(Prediction(x, 0.5, 0.8, 0.6, U, U), None)[0]
    b = CFGpp(lambda x, t: U, 0.3)(Prediction(x, 0.5, 0.8, 0.6, Y, Y), None)[0]
    torch.testing.assert_close(a.aim, b.aim)
    torch.testing.assert_close(a.direction, b.direction)


class To:
    """Aims at a point."""

    slots = 0

    def __init__(self, point):
        self.point = point

    def __call__(self, p, state):
        return p.aimed(self.point.expand_as(p.x)), ()


def test_a_row_is_the_two_halves_by_hand():
    """On VP, where alpha changes: down along the first guide's direction, noise up to the same level, down again."""
    schedule, a, b, x, z = VP(), draw(1, 5)[0], draw(1, 5, seed=1)[0], draw(3, 5, seed=2), draw(3, 5, seed=3)
    sde = LinearSDE(schedule, lambda x, t: 0.3 * x)
    (row,) = Alternating(To(a), To(b)).rows(sde, [0.6, 0.4])
    found = step(row, sde, Particles.at(x), z)[0].x
    a0, s0, a1, s1 = (f(u) for u in (0.6, 0.4) for f in (schedule.alpha, schedule.sigma))
    lower = a1 * a + s1 * (x - a0 * 0.3 * x) / s0
    upper = a0 / a1 * lower + math.sqrt(s0**2 - (a0 * s1 / a1) ** 2) * z
    torch.testing.assert_close(found, a1 * b + s1 * (upper - a0 * 0.3 * upper) / s0, rtol=0, atol=1e-12)


def test_noise_is_back_at_its_level():
    """What is left of the noise and what is drawn anew have variance sigma^2 together, also where all had gone."""
    for t in (0.0, 1.0):
        (row,) = Alternating(To(START), To(START)).rows(LinearSDE(SCHEDULE, lambda x, s: x), [2.0, t])
        back = row.program[1]
        assert back.keep["x"] ** 2 * 4.0 + back.noise**2 == pytest.approx(4.0)


def test_velocities_change_their_sign():
    """Stationary Langevin dynamics of an oscillator in (x, v): run backwards with v negated its covariance is its own,
    to 1e-12; with v as it is not. Twice backwards is forwards.
    """
    A = torch.tensor([[0.0, 1.0], [-1.0, -0.7]], dtype=F64)  # dx = v dt, dv = (-x - 0.7 v) dt + noise; kT = m = k = 1
    n = 6
    lag = [torch.linalg.matrix_exp(0.5 * j * A) for j in range(n)]
    cov = torch.cat([torch.cat([lag[i - j] if i >= j else lag[j - i].T for j in range(n)], 1) for i in range(n)])
    root = torch.linalg.cholesky(cov + 1e-12 * torch.eye(2 * n, dtype=F64))
    films = root.T.reshape(2 * n, n, 2)  # rows whose sum of squares is the covariance
    odd = Reversal(torch.tensor([0.0, 1.0]))
    for turn, same in ((odd, True), (Reversal(), False)):
        back = turn(films).flatten(1)
        assert (float((back.T @ back - cov).abs().max()) < 1e-9) == same
        assert torch.equal(turn(turn(films)), films)


def test_films_of_pictures_in_four_calls_a_row():
    """Through `sample`, in float32: 4 calls a row, both ends in place, and no density is claimed."""
    films, calls = Films(), []
    event = (FRAMES, 1, 2, 2)

    def model(x, t):
        calls.append(t)
        return films.free(x.movedim(1, -1), t).movedim(-1, 1)

    def onward(x, t, frame):
        calls.append(t)
        c = C[:, 0]
        m, rest = (frame.double()[..., None] * c).to(x), gaussian(torch.zeros(FRAMES, dtype=F64), C - c[:, None] * c)
        return (rest(x.movedim(1, -1) - m, t) + m).movedim(-1, 1)

    start, end = draw(1, 2, 2, seed=5), draw(1, 2, 2, seed=6)
    denoiser = Denoiser(SCHEDULE, lambda x, t, label: model(x, t), event)
    solver = between(onward, start, end, FRAMES)
    x = sample(denoiser, solver, 8, 3, noise=Noise(0)).final.x
    assert len(calls) == 4 * 8 and x.shape == (3, *event) and x.dtype == torch.float32
    for frame, exact in ((x[:, 0], start), (x[:, -1], end)):
        assert float((frame - exact).abs().max()) < 0.02
    sde = LinearSDE(SCHEDULE, films.free)
    path = rollout(sde, films.solver(), Particles.at(20.0 * draw(2, FRAMES)), [20.0, 2.0, 0.1], noise=Noise(0))
    with pytest.raises(ValueError, match="density"):
        residuals(path, sde, films.solver())


class Remembering(To):
    slots = 1


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: between(Films().onward, torch.zeros(2), torch.zeros(3), 5), "must be the same"),
        (lambda: between(Films().onward, START, START, 1), "two or more"),
        (lambda: between(Films().onward, START, START, 5, weight=1.5), r"\[0, 1\]"),
        (lambda: Alternating(Remembering(START), To(START)), "may not remember"),
        (lambda: Alternating(To(START), To(START)).rows(LinearSDE(SCHEDULE, gaussian, "noise"), [1.0, 0.5]), "noise"),
    ],
)
def test_bad_settings_are_refused(bad, match):
    with pytest.raises(ValueError, match=match):
        bad()
