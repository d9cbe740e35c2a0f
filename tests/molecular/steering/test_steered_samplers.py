"""Steering of trained samplers against closed forms, with networks that have learnt another law than the system's."""

import math
from dataclasses import replace

import pytest
import torch

from molsamp.engine import Noise
from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.measures import ess
from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.rollout import rollout
from molsamp.learn.drive import Abandoned
from molsamp.molecular import load
from molsamp.molecular.free_energy.diffusion.adjoint import AS, ASBS
from molsamp.molecular.free_energy.task import Task
from molsamp.molecular.potentials import Harmonic
from molsamp.molecular.steering import make
from molsamp.molecular.steering.analysis import Analysis
from molsamp.molecular.steering.job import aim
from molsamp.molecular.steering.learned import SteeredSampler
from molsamp.molecular.steering.populations import gain, joined
from molsamp.molecular.steering.samplers import Ancestral, PathSampler
from molsamp.molecular.steering.settings import LearnedSettings

F64 = torch.float64
AT, WIDTH = 1.0, 0.4
REWARD = (f"x={AT}+-{WIDTH}",)
STEPS, REPLICAS = 12, 12
T = 2.201  # Student's t of 12 replicas at 97.5 %
RUNS = {"gaussians-2d": {"smin": 0.02, "smax": 3.0}, "gaussians-50d": {"smin": 0.02, "smax": 2.0}}
SMALL = {"network": {"widths": [8]}, "blend": None, "turn": None, "relax": None}


def learnt(name, wrong):
    """Adjoint sampling from a point whose denoiser is exact, E[X_1 | X_t] = E[X_1 | X_1 + noise of kappa_t/g] at x/g.

    Of the law of the system, or of one with each weight at the next mode, centres off by 0.1, and widths by 20 %; in
    50-D by 0.03 and 2 %.
    """
    system = load(name)
    job = AS(Task.of(system), noise=Noise(0), process=RUNS[name], **SMALL)
    E, own = job.task.energy, job.sampler
    weights = E.weights.double().roll(1 if wrong else 0)
    off, wider = (0.1, 0.2) if system.event == (2,) else (0.03, 0.02)
    w, m = weights / weights.sum(), E.centres.double() + wrong * off
    s2 = (E.widths.double() * (1.0 + wrong * wider)) ** 2
    own.denoiser.double()

    def denoise(x, s):
        kappa = float(s[0]) ** 2
        g = 1.0 - kappa / own.total
        if g < 1e-9:
            return (w @ m).expand_as(x)
        c = s2 + kappa / g
        off = x[:, None] / g - m
        r = torch.softmax(w.log() - 0.5 * (off.square().sum(2) / c + len(m[0]) * c.log()), 1)
        return torch.einsum("nk,nkd->nd", r, m + (s2 / c)[:, None] * off)

    own.average = denoise
    x1 = GaussianMixture(m, s2, w).sample(2048, Noise(1))
    job.ring.push({"x0": torch.zeros_like(x1), "x1": x1})
    return job


def truth(name, power=1.0):
    """(log Z, mean x, mean y) of the mixture tilted by the reward, by completing squares; reward times `power`."""
    E, w2 = load(name).energy(), WIDTH**2 / power
    m, s2 = E.centres.double(), E.widths.double() ** 2
    z = E.weights * (w2 / (w2 + s2[:, None])).sqrt()[:, 0] * torch.exp(-0.5 * (m[:, 0] - AT) ** 2 / (w2 + s2))
    share, x = z / z.sum(), (m[:, 0] * w2 + AT * s2) / (w2 + s2)
    return float(z.sum().log()), float(share @ x), float(share @ m[:, 1])


class Noted(SteeredSampler):
    """Remembers the weights of the free and the steered populations in turn."""

    def _weighed(self, found, x):
        weighed = super()._weighed(found, x)
        self.notes = [*getattr(self, "notes", []), weighed.particles.logw - found.particles.logw]
        return weighed


@pytest.fixture(scope="module", params=RUNS)
def wrong(request):
    """A finished job on networks of another law; 12 replicas of 64."""
    system, trained = load(request.param), learnt(request.param, 1.0)
    return request.param, Noted(
        aim(system, REWARD, 1.0), trained, steps=STEPS, replicas=REPLICAS, looks=4, noise=Noise(0)
    ).fit()


def deviations(estimates, values):
    """(estimate - value) in standard errors, of which half of a 95 % interval has T."""
    return [T * (e.value - v) / (0.5 * (e.interval[1] - e.interval[0])) for e, v in zip(estimates, values, strict=True)]


def told(steered, before):
    """log Z, mean x, mean y of the steered law, and log of the integral of exp(-E/kT)."""
    x = steered.particles.x.double()
    return [gain(steered, before), steered.pooled(x[:, 0]), steered.pooled(x[:, 1]), before.pooled_log_z()]


def test_the_boltzmann_law_is_tilted_and_not_the_networks(wrong):
    """All four within 3.5 standard errors (Student's t with 11 degrees: alarm 0.5 % each, 4 % over both), seed 0.

    Without the weights of the paths log Z is off by more than 6: what comes out then is the networks' law.
    """
    name, job = wrong
    steered, before = joined(job.steered), job.before(joined(job.free))
    values = (*truth(name), 0.0)
    assert all(abs(d) < 3.5 for d in deviations(told(steered, before), values)), told(steered, before)

    def bare(found, notes):
        return replace(found, particles=found.particles.evolve(logw=found.particles.logw - torch.cat(notes)))

    dropped = told(bare(steered, job.notes[1::2]), bare(before, job.notes[::2]))[:3]
    assert abs(deviations(dropped, values[:3])[0]) > 6.0, deviations(dropped, values[:3])


def test_another_strength_is_seen(wrong):
    """The same comparison with the closed form of six times the reward: log Z is off by more than 4."""
    name, job = wrong
    steered, before = joined(job.steered), job.before(joined(job.free))
    assert abs(deviations(told(steered, before)[:1], truth(name, 6.0)[:1])[0]) > 4.0


def test_the_summary_tells_of_the_sampler(wrong):
    name, job = wrong
    summary = Analysis(job).summary()
    assert {"log_partition", "ess_sampler", "log_z", "mean:x"} <= summary["results"].keys() == summary["null"].keys()
    free = 0.0 if name == "gaussians-2d" else -0.75
    at = summary["null"]["mean:x"]
    assert abs(at["value"] - free) < 3.5 / T * (at["interval"][1] - at["value"])
    assert summary["energy_evaluations"] == 2 * REPLICAS * 64
    assert summary["network_calls"] == STEPS * 512 + REPLICAS * 64 * (STEPS * 4 + STEPS - 1)


def test_of_a_sampler_that_has_learnt_its_law_most_samples_count():
    """Exact networks at 30 steps in 50 dimensions: 69 % of 256, here above 50; without V below 1."""
    paths, task = PathSampler(learnt("gaussians-50d", 0.0), 30, Noise(0)), Task.of(load("gaussians-50d"))
    shares = []
    for V in (paths.variance, torch.zeros_like(paths.variance)):
        paths.integrator = Ancestral(V)
        path = rollout(paths.sde, paths.integrator, paths.start(Noise(4), 256), paths.levels, noise=Noise(5))
        shares.append(ess(paths.log_weights(path, task)) / 256)
    assert shares[0] > 0.5 and shares[1] < 0.01, shares


@pytest.mark.parametrize("name", ["gaussians-2d", "alanine-dipeptide"])
def test_weights_are_ratios_of_densities(name):
    """Of five paths of an untrained sampler from a Gaussian source: normal densities one by one, to 1e-6 of 1e3, with
    a harmonic E and whatever restraint the sampler has.

    Bridges by their covariance min(a, b) - a b over the whole, molecules in coordinates that leave the centre out.
    """
    system = load(name)
    trained = ASBS(Task.of(system), noise=Noise(0), **SMALL)
    own, K, n = trained.sampler, 6, 5
    for net in own.networks:
        net.double()
    x1 = system.states[system.settings.start].x.double() + 0.01 * Noise(1).normal(0, torch.arange(64), system.event)
    x1 = trained._centre(x1)
    x0 = own.source.draw(Noise(2), torch.arange(64), F64)
    trained.ring.push({"x0": x0, "x1": x1})
    paths, E = PathSampler(trained, K, Noise(3)), Harmonic(1.0, torch.zeros(system.event))
    task = Task(system, (), E, F64)
    start = paths.start(Noise(4), n)
    path = rollout(paths.sde, paths.integrator, start, paths.levels, noise=paths.noise(Noise(5)))
    flat, N = _reduced(path.x), paths.integrator.noise(paths.levels)
    D = _reduced(torch.stack([paths.sde.denoise(x, s) for x, s in zip(path.x[:-1], paths.levels[:-1], strict=True)]))
    left = torch.tensor(paths.levels, dtype=F64) ** 2
    r = (left[1:] / left[:-1])[:, None, None]
    spread = N.flatten(1)[:, : flat.shape[2]][:, None]
    q = _normal(flat[1:] - r * flat[:-1] - (1.0 - r) * D, spread).sum(0)
    width = own.source.root if isinstance(own.source.root, float) else trained.settings.source.width
    origin = _reduced(paths._origin(path.x[-1])[None])[0]
    energy = E if trained.restraint is None else E + trained.restraint
    p = -energy.energy(path.x[-1]) / task.kT
    back = _normal(flat[0] - origin, width * math.sqrt(paths.spread)) - _normal(flat[0], width)
    gone = left[0] - left[1:-1]
    whole = left[0] - left[-1]
    cov = torch.minimum(gone[:, None], gone[None]) - gone[:, None] * gone[None] / whole
    mean = flat[0] + (gone / whole)[:, None, None] * (flat[-1] - flat[0])
    e = (flat[1:-1] - mean).permute(1, 2, 0)
    bridge = torch.distributions.MultivariateNormal(torch.zeros(K - 1, dtype=F64), cov).log_prob(e).sum(1)
    torch.testing.assert_close(paths.log_weights(path, task), p + back + bridge - q, rtol=1e-6, atol=1e-6)


def _reduced(x):
    """(K, n, d): flat, with the atoms' centre left out."""
    if x.dim() == 3:
        return x
    A = x.shape[2]
    basis = torch.linalg.qr(torch.cat([torch.ones(A, 1, dtype=F64), torch.eye(A, A - 1, dtype=F64)], 1))[0][:, 1:]
    return torch.einsum("ab,knad->knbd", basis, x).flatten(2)


def _normal(x, s):
    """log N(x; 0, s^2), summed over the last axis."""
    s = torch.as_tensor(s, dtype=F64)
    return (-0.5 * (x / s) ** 2 - s.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def small(trained):
    settings = LearnedSettings(particles=8, replicas=3, steps=6)
    return make(load("gaussians-2d"), "diffusion", settings, reward=REWARD, trained=trained, seed=3)


def test_an_interrupted_job_goes_on_to_the_same_bytes():
    """From a checkpoint, and after a unit that was given up half-way; the calls of networks are counted once."""
    trained = learnt("gaussians-2d", 1.0)
    whole, half, rest = small(trained), small(trained), small(trained)
    whole.fit()
    half.advance()
    answers = iter([*[False] * 8, True])
    half.asked_to_stop = lambda: next(answers)
    with pytest.raises(Abandoned):
        half.advance()
    rest.load(half.state())
    half.asked_to_stop = lambda: False
    a = whole.state()
    for other in (half.fit().state(), rest.fit().state()):
        assert a.keys() == other.keys() and all(torch.equal(a[k], other[k]) for k in a)


def test_a_sampler_that_has_not_learnt_this_law_is_told():
    """A denoiser that answers with the first mode alone: few samples count, and it is said."""
    trained = learnt("gaussians-2d", 0.0)
    first = trained.task.energy.centres[0].double()
    trained.sampler.average = lambda x, s: first + 0.0 * x
    job = SteeredSampler(aim(load("gaussians-2d"), REWARD, 1.0), trained, particles=64, replicas=2, steps=8).fit()
    assert any("it has not learnt this law" in w for w in Analysis(job).warnings())


@pytest.mark.parametrize(
    ("change", "message"),
    [("system", "has learnt system = gaussians-2d, asked for is double-well"), ("ring", "has learnt from no sample")],
)
def test_a_sampler_of_something_else_is_refused(change, message):
    trained = AS(Task.of(load("gaussians-2d")), noise=Noise(0), process=RUNS["gaussians-2d"], **SMALL)
    system = load("double-well" if change == "system" else "gaussians-2d")
    with pytest.raises(ValueError, match=message):
        make(system, "diffusion", LearnedSettings(), reward=REWARD, trained=trained, seed=0)


def test_levels_and_rows_fit():
    """K steps from the whole variance of the base to a last level that is below the smallest width it knows."""
    paths = PathSampler(learnt("gaussians-2d", 0.0), 12, Noise(0))
    assert len(paths.levels) == 13 and paths.levels[0] == pytest.approx(math.sqrt(paths.own.total))
    assert 0.0 < paths.levels[-1] < 0.25 and isinstance(paths.sde, LinearSDE)
    assert all(row.draws for row in paths.integrator.rows(paths.sde, paths.levels))
