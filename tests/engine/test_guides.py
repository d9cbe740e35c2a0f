"""Guides in every solver's table: nothing changes without one, two fields, memories, densities, resampling."""

from itertools import pairwise

import pytest
import torch

from molsamp.engine import (
    VP,
    GaussianMixture,
    LinearSDE,
    Noise,
    Overdamped,
    Particles,
    residuals,
    rollout,
    smc,
    time_grid,
)
from molsamp.engine.exponential import DDIM, DPMSolverPP2M, Exponential
from molsamp.engine.guides import Chain, Guided, Prediction, Uphill
from molsamp.engine.singlestep import DPMSolver
from molsamp.engine.steering import steer

F64 = torch.float64
SCHEDULE = VP()
LAW = GaussianMixture(torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=F64), torch.tensor([0.1, 0.2], dtype=F64))
SDE = LAW.sde(SCHEDULE)
START = Particles.at(Noise(1).normal(0, torch.arange(32), (2,)))
STEPS = 12
TIMES = time_grid("log-snr", SCHEDULE, STEPS, 1.0, 0.01)
SOLVERS = {
    "ddim": DDIM(),
    "ddpm": DDIM(1.0),
    "2m": DPMSolverPP2M(short=0),
    "unipc-3": Exponential(order=3, corrects=3, short=0),
    "deis": Exponential(order=3, form="noise", rule="exact", variable="rho", short=0),
    "dpm-2s": DPMSolver((2,) * STEPS, "data"),
}


class Nothing:
    """Changes nothing and remembers so many tensors."""

    def __init__(self, slots=0):
        self.slots = slots

    def __call__(self, p, state):
        return p, tuple(torch.full_like(p.x, torch.pi) for _ in range(self.slots))


class Scaling:
    slots = 0

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, p, state):
        return p.towards(self.factor * p.aim), ()


class Averaging:
    """Aims at the mean of all predictions so far: a memory of two tensors."""

    slots = 2

    def __call__(self, p, state):
        total, count = (torch.zeros_like(p.x), torch.zeros_like(p.x)) if state is None else state
        total, count = total + p.aim, count + 1.0
        return p.towards(total / count), (total, count)


class Leaving:
    """Another aim, the direction as it was."""

    slots = 0

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, p, state):
        return p.aimed(p.aim + self.shift), ()


def end(integrator, dyn=SDE, **options):
    form = getattr(integrator, "form", "data")
    dyn = LinearSDE(SCHEDULE, dyn.denoise, form)
    return rollout(dyn, integrator, START, TIMES, noise=Noise(2), save="last", **options).final.x


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_guide_that_does_nothing_changes_nothing(name, slots):
    """Bit for bit in data form; in noise form, where the direction is taken from the prediction, to rounding."""
    plain, guided = end(SOLVERS[name]), end(Guided(SOLVERS[name], Nothing(slots)))
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-12 if name == "deis" else 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_aim_that_the_noise_is_measured_from_is_another_denoiser(name):
    """Scaling the prediction is sampling from the scaled denoiser, in every solver."""
    scaled = LinearSDE(SCHEDULE, lambda x, t: 0.7 * SDE.denoise(x, t))
    torch.testing.assert_close(end(Guided(SOLVERS[name], Scaling(0.7))), end(SOLVERS[name], scaled), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_aim_and_direction_enter_as_written(eta):
    """DDIM by hand: x' = alpha' (D + d) + sqrt(sigma'^2 - N^2) (x - alpha D) / sigma + N z, eq. 12 and 16."""
    d, x, ids = torch.tensor([0.3, -0.2], dtype=F64), START.x, START.ids
    for k, (s, t) in enumerate(pairwise(TIMES)):
        a_s, s_s, a_t, s_t = SCHEDULE.alpha(s), SCHEDULE.sigma(s), SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        N = eta * s_t / s_s * (1.0 - (a_s / a_t) ** 2) ** 0.5
        D = SDE.denoise(x, s)
        x = a_t * (D + d) + (s_t**2 - N**2) ** 0.5 * (x - a_s * D) / s_s + N * Noise(2).normal(k, ids, (2,))
    torch.testing.assert_close(end(Guided(DDIM(eta), Leaving(d))), x, rtol=0, atol=1e-11)


def test_the_direction_is_that_of_both_forms():
    """Data form and noise form of order 1 agree on a guide that leaves the direction."""
    guide = Leaving(torch.tensor([0.3, -0.2], dtype=F64))
    data, noise = (end(Guided(Exponential(form=form, short=0), guide)) for form in ("data", "noise"))
    torch.testing.assert_close(data, noise, rtol=0, atol=1e-11)
    x = START.x
    p = Prediction(x, 0.5, 0.8, 0.6, 0.0 * x, x)
    torch.testing.assert_close(p.direction, x * (1.0 - 0.8) / 0.6)


def by_hand(order):
    """Averaged predictions, their memory kept here."""
    seen = []

    def denoise(x, t):
        seen.append(SDE.denoise(x, t))
        return torch.stack(seen).mean(0)

    return end(DPMSolverPP2M(short=0) if order == 2 else DDIM(), LinearSDE(SCHEDULE, denoise))


@pytest.mark.parametrize("order", [1, 2])
def test_memories_are_handed_on(order):
    """Against an average that is kept outside; a second rollout begins without a memory."""
    integrator = Guided(DPMSolverPP2M(short=0) if order == 2 else DDIM(), Averaging())
    expected = by_hand(order)
    torch.testing.assert_close(end(integrator), expected, rtol=0, atol=1e-12)
    assert torch.equal(end(integrator), end(integrator))


def test_a_chain_runs_from_left_to_right():
    """Scaling after a shift is not a shift after scaling; memories of two guides do not mix."""
    shift = Leaving(torch.ones(2, dtype=F64))
    p = Prediction(START.x, 0.5, 0.8, 0.6, START.x, START.x)
    assert torch.equal(Chain((shift, Scaling(2.0)))(p, None)[0].aim, 2.0 * (START.x + 1.0))
    assert torch.equal(Chain((Scaling(2.0), shift))(p, None)[0].aim, 2.0 * START.x + 1.0)
    both = Chain((Averaging(), Nothing(1), Averaging()))
    assert both.slots == 5
    _, once = both(p, None)
    _, twice = both(p, once)
    assert [float(m[0, 0]) for m in (twice[1], twice[2], twice[4])] == [2.0, float(once[2][0, 0]), 2.0]


def test_memories_are_cut_and_continued():
    """Segments of 5 rows are the one rollout, bit for bit."""
    integrator = Guided(DPMSolverPP2M(1.0, short=0), Averaging())
    p, _ = smc(SDE, integrator, START, TIMES, lambda k, p: torch.zeros(len(p)), noise=Noise(2), every=5)
    assert torch.equal(p.x, end(integrator))


def test_memories_follow_their_particle():
    """A deterministic guided scheme after resampling: every survivor ends where its first ancestor ends alone."""
    integrator = Guided(DDIM(), Averaging())
    alone = end(integrator)
    p, _ = smc(SDE, integrator, START, TIMES, lambda k, p: 2.0 * p.x[:, 0], noise=Noise(2), every=4, below=2.0)
    assert (p.x[:, None] == alone).all(-1).any(1).all()
    assert len(torch.unique(p.x, dim=0)) < 32


@pytest.mark.parametrize("guide", [Leaving(torch.tensor([0.3, -0.2], dtype=F64)), Averaging()], ids=["aim", "memory"])
def test_guided_rows_know_their_density(guide):
    """Residuals of a guided path have mean square 1 (0.08: 4.5 standard errors of 12 x 512 x 2 normals / 2, alarm
    7e-6); those of the free table on it, or with memories forgotten, do not.
    """
    many = Particles.at(Noise(3).normal(0, torch.arange(512), (2,)))
    integrator = Guided(DDIM(1.0), guide)
    path = rollout(SDE, integrator, many, TIMES, noise=Noise(4))
    z, _ = residuals(path, SDE, integrator)
    torch.testing.assert_close(z, path.z, rtol=0, atol=1e-9)
    assert abs(float(z.square().mean()) - 1.0) < 4.5 * (2.0 / z.numel()) ** 0.5
    free, _ = residuals(path, SDE, DDIM(1.0))
    assert float(free.square().mean()) > 1.2


# ---- a gradient ----

TILT = 1.5  # of the first coordinate
TILTED = GaussianMixture(
    LAW.means + TILT * LAW.covs[:, :, 0],
    LAW.covs,
    torch.exp(LAW.log_w + TILT * LAW.means[:, 0] + 0.5 * TILT**2 * LAW.covs[:, 0, 0]),
)
LOG_Z = float(torch.logsumexp(LAW.log_w + TILT * LAW.means[:, 0] + 0.5 * TILT**2 * LAW.covs[:, 0, 0], 0))


def log_h(x, t):
    """log E[exp(TILT x_0) | x_t = x], from the ratio of the two marginals."""
    return LOG_Z + TILTED.marginal(SCHEDULE, t).log_density(x) - LAW.marginal(SCHEDULE, t).log_density(x)


def test_the_gradient_of_the_exact_h_is_the_tilted_model():
    """x_0 + sigma^2 / alpha grad log h = E[x_0 | x_t] under p exp(TILT x), at every time of a path, to 1e-9."""
    path = rollout(SDE, DDIM(1.0), START, TIMES, noise=Noise(4))
    for k, t in enumerate(TIMES):
        x, D = path.x[k], SDE.denoise(path.x[k], t)
        p = Prediction(x, t, SCHEDULE.alpha(t), SCHEDULE.sigma(t), D, D)
        torch.testing.assert_close(Uphill(log_h)(p, None)[0].aim, TILTED.denoise(SCHEDULE, x, t), rtol=0, atol=1e-9)
        assert not bool(Uphill(log_h)(p, None)[0].aim.requires_grad)


def spread_of_z(steps, guide):
    """(mean, standard deviation) of Z-hat over 300 populations of 4, steered with value log h."""
    times = time_grid("log-snr", SCHEDULE, steps, 1.0, 0.01)
    start = Particles.at(SCHEDULE.sigma(1.0) * Noise(6).normal(0, torch.arange(1200), (2,)))
    found = steer(
        SDE,
        Guided(DDIM(1.0), Uphill(log_h)) if guide else DDIM(1.0),
        start,
        times,
        lambda x: TILT * x[:, 0],
        noise=Noise(7),
        value=lambda t, p: log_h(p.x, t),
        groups=300,
        every=steps // 6,
        base=DDIM(1.0) if guide else None,
    )
    z = torch.tensor([e.value for e in found.log_z()]).exp()
    return float(z.mean()), float(z.std())


def test_the_matching_proposal_leaves_nothing_to_weigh():
    """As steps shrink: guided by the value's own gradient, the spread of Z-hat falls with them, to a third of that of
    unguided steps at 96; the means agree within 4 standard errors (alarm 6e-5).
    """
    coarse, fine, free = spread_of_z(24, True), spread_of_z(96, True), spread_of_z(96, False)
    assert fine[1] < 0.6 * coarse[1] and fine[1] < free[1] / 3.0, (coarse, fine, free)
    assert abs(fine[0] - free[0]) < 4.0 * (fine[1] ** 2 + free[1] ** 2) ** 0.5 / 300**0.5


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda x, t: x, r"shape \(32, 2\)"),
        (lambda x, t: torch.where(torch.arange(32) == 5, torch.nan, 1.0) * x[:, 0], "particle 5"),
    ],
)
def test_a_bad_gradient_is_named(bad, match):
    with pytest.raises(ValueError, match=match):
        end(Guided(DDIM(), Uphill(bad)))


class Cropping:
    slots = 0

    def __call__(self, p, state):
        return p.towards(p.aim[:, :1]), ()


class Forgetting:
    slots = 1

    def __call__(self, p, state):
        return p, ()


@pytest.mark.parametrize(("guide", "match"), [(Cropping(), r"aim of shape \(32, 1\)"), (Forgetting(), "said 1")])
def test_a_guide_of_other_shapes_is_refused(guide, match):
    with pytest.raises(ValueError, match=match):
        end(Guided(DDIM(), guide))


def test_other_dynamics_have_no_prediction():
    class Flat:
        def energy_force(self, x):
            return x.sum(1), torch.zeros_like(x)

    with pytest.raises(ValueError, match="Overdamped"):
        Guided(DDIM(), Nothing()).rows(Overdamped(Flat(), 1.0), TIMES)
