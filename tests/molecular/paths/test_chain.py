"""Chains on the noise against the exactly conditioned Ornstein-Uhlenbeck process, and their parts one by one."""

import math

import pytest
import torch
from linear import line_problem, z_scores

from molsamp.engine.closed_forms import ornstein_uhlenbeck, oscillator
from molsamp.engine.noise import Noise
from molsamp.molecular.paths import chain
from molsamp.molecular.paths.chain import LearnedProposal, NoiseChain
from molsamp.molecular.paths.learned import LearnedPaths
from molsamp.molecular.paths.settings import ChainSettings

EDGE, GROUPS = 2.0, 40


def run(job):
    while job.k < job.total:
        job.advance()
    return job


def settings(**changes):
    defaults = dict(chains=1200, groups=GROUPS, moves=10, level_moves=10, arrival="final", mixing=0.3, window=5)
    return ChainSettings(**{**defaults, **changes})


def overdamped():
    problem = line_problem(above=EDGE, h=0.1, steps=20)
    return problem, ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.1, steps=20, x0=0.0)


def underdamped():
    problem = line_problem(above=EDGE, h=0.2, steps=15, mass=1.0, friction=0.7)
    form = oscillator(stiffness=1.0, mass=1.0, kT=1.0, friction=0.7, h=0.2, steps=15, x0=0.0)
    return problem, form


def group_scores(job, form):
    """z of log P_0(hit), and of mean and mean square of x at every time after the first, over groups of chains."""
    tilt = form.beyond(EDGE)
    m, C = form.conditioned(tilt)
    x = job.path.x.flatten(1)[1:].unflatten(1, (job.settings.groups, -1))  # (F - 1, G, chains of a group)
    mean = z_scores(x.mean(2).T, m[1:, 0])
    square = z_scores(x.square().mean(2).T, C[1:, 0, 0] + m[1:, 0] ** 2)
    log_p = z_scores(job.log_p.exp(), math.exp(tilt.log_z))
    return torch.cat([log_p[None], mean, square])


@pytest.mark.parametrize("make", [overdamped, underdamped])
def test_chains_sample_the_conditioned_process(make):
    """At most 41 z-scores of Student t with 39 degrees of freedom, bound 4.5: false alarm < 41 x 6e-5 = 0.25 %."""
    problem, form = make()
    job = run(NoiseChain(problem, settings(), Noise(1), 64))
    assert group_scores(job, form).abs().max() < 4.5


def test_a_biased_acceptance_is_found_out(monkeypatch):
    """Accepting only moves that raise the last frame leaves the ensemble; the bound above must say so."""
    problem, form = overdamped()
    job = NoiseChain(problem, settings(levels=8), Noise(1), 64)

    def biased(log_ratio, u):
        return (u.log() < log_ratio) & (job.candidate >= job.distance[-1] - 0.05)

    plain = NoiseChain._accept

    def accept(self, zeta, path, first, log_ratio):
        self.candidate = self._distance(path)[-1]
        return plain(self, zeta, path, first, log_ratio)

    monkeypatch.setattr(NoiseChain, "_accept", accept)
    monkeypatch.setattr(chain, "metropolis", biased)
    assert group_scores(run(job), form).abs().max() > 6.0


class Drift(LearnedPaths):
    """What `LearnedProposal` reads of a trained sampler: here a control with a deliberately wrong shape."""

    def __init__(self, problem, hold):
        self.problem, self.settings, self.control = problem, self, self
        self.hold = hold

    def drive(self, t, x, v):
        return 0.5 + 0.4 * torch.sin(x) - 0.1 * t


@pytest.mark.parametrize("mixing", [1.0, 0.4])
def test_guided_moves_are_exact_whatever_the_control(mixing):
    """Only guided moves, in production as on the way; bound and false-alarm rate as above."""
    problem, form = overdamped()
    job = NoiseChain(problem, settings(moves=20), Noise(2), 64, proposal=LearnedProposal(Drift(problem, 4), mixing))
    job._choose = lambda: chain.Move("guided", 0)
    accepted = [job.advance()["acceptance"] for _ in range(job.total) if job.k < job.total]
    assert accepted[-1] > 0.1
    assert group_scores(job, form).abs().max() < 4.5


def test_guided_moves_without_their_weight_are_found_out(monkeypatch):
    problem, form = overdamped()
    job = NoiseChain(problem, settings(moves=20), Noise(2), 64, proposal=LearnedProposal(Drift(problem, 4)))
    job._choose = lambda: chain.Move("guided", 0)
    monkeypatch.setattr(chain, "metropolis", lambda r, u: r > -torch.inf)
    assert group_scores(run(job), form).abs().max() > 6.0


def test_hits_at_any_frame_against_brute_force():
    """log P_0(some frame in B) has no closed form: 200 000 free paths, |z| < 4, false alarm 1e-4."""
    problem = line_problem(above=EDGE, h=0.1, steps=20)
    job = run(NoiseChain(problem, settings(arrival="any", moves=1), Noise(3), 64))
    generator = torch.Generator().manual_seed(5)
    x, hit = torch.zeros(200_000), torch.zeros(200_000, dtype=torch.bool)
    for _ in range(20):
        x = 0.9 * x + 0.2**0.5 * torch.randn(len(x), generator=generator)
        hit |= x > EDGE
    p = float(hit.double().mean())
    P = job.log_p.exp()
    error = math.hypot(float(P.std()) / GROUPS**0.5, (p * (1 - p) / len(x)) ** 0.5)
    assert abs(float(P.mean()) - p) < 4.0 * error


def test_interval_of_log_p_covers():
    """400 sets of 4 groups of 20 chains: coverage of the 95 % interval, binomial at 1 % against 92 %.

    The logarithm of a product of five estimated levels is skewed and errs low by sigma^2/8, about 0.02 here.
    """
    problem, form = overdamped()
    job = run(NoiseChain(problem, settings(chains=1600 * 20, groups=1600, moves=1, level_moves=5), Noise(6), 4))
    truth, covered = form.beyond(EDGE).log_z, 0
    log_p = job.log_p
    for four in log_p.view(400, 4):
        job.log_p = four
        low, high = job.log_p_hit().interval
        covered += low < truth < high
    assert covered >= 0.92 * 400 - 2.33 * (400 * 0.92 * 0.08) ** 0.5


@pytest.mark.parametrize("mass", [None, 1.0])
def test_resumed_chains_give_the_same_bytes(mass):
    def job():
        problem = line_problem(above=EDGE, mass=mass)
        return NoiseChain(problem, settings(chains=32, groups=4, moves=6, level_moves=3), Noise(4), 40)

    whole, half = run(job()), job()
    for _ in range(14):
        half.advance()
    again = job()
    again.load({k: v.clone() for k, v in half.state().items()})
    a, b = whole.paths(), run(again).paths()
    assert torch.equal(a.path.x, b.path.x) and torch.equal(a.log_rn, b.log_rn)
    assert a.effective == b.effective and again.k == whole.k
    assert a.cost.energy_evaluations == b.cost.energy_evaluations
    assert len(a) == 40 and bool(a.hit.all()) and a.exact


def test_levels_that_are_never_reached_say_so():
    problem = line_problem(above=50.0)
    job = run(NoiseChain(problem, settings(chains=8, groups=2, levels=2, level_moves=2, moves=1), Noise(4), 4))
    paths = job.paths()
    assert not paths.exact and math.isnan(paths.extra["log_p_hit"].value)
    assert "more moves" in paths.warnings()[0]


def test_groups_must_divide_the_chains():
    with pytest.raises(ValueError, match="chains = 10 is not a multiple of groups = 4"):
        NoiseChain(line_problem(), settings(chains=10, groups=4), Noise(0), 4)
