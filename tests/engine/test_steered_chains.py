"""Steering where no diffusion model is: walkers with closed forms, an enumerable process."""

import math
from itertools import pairwise, product

import pytest
import torch
from tilted import (
    deviation,
    ratios,
)

from molsamp.engine import (
    EulerMaruyama,
    Ito,
    LangevinMiddle,
    Noise,
    Overdamped,
    Particles,
    Underdamped,
)
from molsamp.engine.closed_forms import Harmonic, ornstein_uhlenbeck, oscillator
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.engine.steering import annealed, steer, unforeseen

F64 = torch.float64


# ---- walkers: the same function, closed forms of linear chains ----

KT, H, ROWS, TARGET, WIDTH = 0.6, 0.05, 20, 1.2, 0.3


def closeness(x):
    return -0.5 * ((x.flatten(1)[:, 0] - TARGET) / WIDTH) ** 2


@pytest.mark.parametrize("underdamped_one", [False, True])
def test_walkers_are_steered_to_a_value(underdamped_one):
    """Mean of Z-hat / Z is 1 and the mean of x_n is the tilted one, for Langevin walkers with and without velocities:
    each within 4 standard errors of 200 populations of 32 (alarm 2.5e-4 in all).
    """
    groups, m = 200, 32
    n, times = groups * m, [k * H for k in range(ROWS + 1)]
    x = torch.full((n, 1), 0.1, dtype=F64)
    if underdamped_one:
        mass, friction = 2.0, 1.5
        dyn, integrator = Underdamped(Harmonic(1.0), torch.tensor([mass], dtype=F64), KT, friction), LangevinMiddle()
        start = Particles.at(x, (KT / mass) ** 0.5 * Noise(9).normal(0, torch.arange(n), (1,)))
        chain = oscillator(stiffness=1.0, mass=mass, kT=KT, friction=friction, h=H, steps=ROWS, x0=0.1)
    else:
        dyn, integrator, start = Overdamped(Harmonic(1.0), KT), EulerMaruyama(), Particles.at(x)
        chain = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1)
    exact = chain.rewarded(TARGET, WIDTH)
    found = steer(
        dyn,
        integrator,
        start,
        times,
        closeness,
        noise=Noise(3),
        every=4,
        groups=groups,
        value=lambda t, p: 0.3 * closeness(p.x),
    )
    r = ratios(found, exact.log_z)
    assert deviation(r)[1] < 0.05 and abs(deviation(r)[0]) < 4.0, deviation(r)
    e = found.pooled(found.particles.x[:, 0], "nm")
    assert abs(e.value - float(exact.mean[0])) < 2.1 * (e.interval[1] - e.value) < 0.05, (e, exact.mean)


def test_annealing_suits_a_wide_reward():
    """exp(a x_n), log Z = a m + a^2 S / 2, a = 3: within 4 standard errors of Z over 200 populations of 32 (alarm
    6e-5), and the spread is below three quarters of that of weighing at the end.
    """
    chain, a = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1), 3.0
    m, S = (float(q[-1].flatten()[0]) for q in chain.moments())
    spread = []
    for value in (annealed(lambda x: a * x[:, 0], 0.0, chain.times[-1]), unforeseen):
        start = Particles.at(torch.full((6400, 1), 0.1, dtype=F64))
        dyn = Overdamped(Harmonic(1.0), KT)
        options = {"noise": Noise(1), "value": value, "groups": 200, "every": 2}
        found = steer(dyn, EulerMaruyama(), start, chain.times, lambda x: a * x[:, 0], **options)
        r = ratios(found, a * m + 0.5 * a**2 * S)
        assert abs(deviation(r)[0]) < 4.0 and deviation(r)[1] < 0.1, deviation(r)
        spread.append(float(r.std()))
    assert spread[0] < 0.75 * spread[1], spread


def test_foresight_pays():
    """Towards a rare value: with the exact one that may be expected, the spread of log Z-hat is below a third of that
    of weighing at the end.
    """
    chain = ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS, x0=0.1)
    left = [ornstein_uhlenbeck(rate=1.0, D=KT, h=H, steps=ROWS - k, x0=0.0) for k in range(ROWS)]
    spread = [float(c.moments()[1][-1, 0, 0]) + WIDTH**2 for c in left]

    def close(x):
        return -0.5 * ((x[:, 0] - 3.0) / WIDTH) ** 2

    def exact(t, p):
        k = round(t / H)
        gap = 3.0 - (1.0 - H) ** (ROWS - k) * p.x[:, 0]
        return 0.5 * math.log(WIDTH**2 / spread[k]) - 0.5 * gap**2 / spread[k]

    found = []
    for value in (exact, unforeseen):
        start = Particles.at(torch.full((6400, 1), 0.1, dtype=F64))
        r = steer(
            Overdamped(Harmonic(1.0), KT),
            EulerMaruyama(),
            start,
            chain.times,
            close,
            noise=Noise(1),
            value=value,
            groups=50,
        )
        found.append(torch.tensor([e.value for e in r.log_z()]))
    assert abs(float(found[0].mean()) - chain.rewarded(3.0, WIDTH).log_z) < 4.0 * float(found[0].std()) / 50**0.5
    assert float(found[0].std()) < float(found[1].std()) / 3.0


# ---- an autoregressive process of tokens, enumerated ----

LENGTH = 6
PREFERS = torch.tensor([[0.8, 0.2], [0.35, 0.65]], dtype=F64)  # p(token | token before); the first follows 0


def tokens(x):
    """Tokens from the normals of every position: token j is 1 where Phi(x_j) exceeds p(0 | token before)."""
    u, before, out = torch.special.ndtr(x), torch.zeros(len(x), dtype=torch.int64), []
    for j in range(x.shape[1]):
        before = (u[:, j] > PREFERS[before, 0]).long()
        out.append(before)
    return torch.stack(out, 1)


class Writing:
    """Row k draws the normal of position k and leaves the others: a discrete process on the same rollout."""

    def rows(self, dyn, times):
        eye = torch.eye(LENGTH, dtype=F64)
        return [
            Row(a, b, (Evaluate(a), Line("x", {"x": 1.0 - eye[k]}, (0.0,), eye[k])))
            for k, (a, b) in enumerate(pairwise(times))
        ]


def score(s):
    """log tilt of a sentence: 0.7 a one, and 1.5 more if it ends in two of them."""
    return 0.7 * s.sum(1).double() + 1.5 * (s[:, -1] * s[:, -2]).double()


def test_an_enumerable_process():
    """All 64 sentences: Z within 4 standard errors over 1000 populations of 4, and the frequency of every sentence by
    chi^2 over 128 populations of 128 (below 63 + 5 sqrt(126): alarm 1e-5); of the free process it is far above.
    """
    sentences = torch.tensor(list(product((0, 1), repeat=LENGTH)))
    log_p = torch.zeros(len(sentences), dtype=F64)
    before = torch.zeros(len(sentences), dtype=torch.int64)
    for j in range(LENGTH):
        log_p += PREFERS[before, sentences[:, j]].log()
        before = sentences[:, j]
    log_z = float(torch.logsumexp(log_p + score(sentences), 0))
    exact = (log_p + score(sentences) - log_z).exp()
    still, times = Ito(lambda t, x: 0.0 * x, lambda t: 1.0), [float(k) for k in range(LENGTH + 1)]

    def ahead(t, p):
        return 0.7 * tokens(p.x)[:, : int(t)].sum(1).double()

    def sentence(m, groups):
        start = Particles.at(torch.zeros(m * groups, LENGTH, dtype=F64))
        tilt = lambda x: score(tokens(x))  # noqa: E731
        return steer(still, Writing(), start, times, tilt, noise=Noise(5), value=ahead, groups=groups)

    deviates, error = deviation(ratios(sentence(4, 1000), log_z))
    assert error < 0.05 and abs(deviates) < 4.0, (deviates, error)
    found = sentence(128, 128)
    code = (tokens(found.particles.x) * 2 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    each = torch.zeros(128, 64, dtype=F64).scatter_add(1, code.view(128, 128), found.weights)
    chi2 = float((((each.mean(0) - exact) / (each.std(0) / 128**0.5).clamp(min=1e-12)) ** 2)[exact > 1e-4].sum())
    assert chi2 < 63.0 + 5.0 * math.sqrt(126.0), chi2
    assert float((each.mean(0) - log_p.exp()).abs().max()) > 0.05


# ---- genealogy, groups ----
