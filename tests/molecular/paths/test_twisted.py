"""Twisted sequential Monte Carlo against exactly conditioned linear processes, and its parts one by one."""

import math

import pytest
import torch
from linear import line_problem

from molsamp.engine.closed_forms import ornstein_uhlenbeck, oscillator
from molsamp.engine.noise import Noise
from molsamp.engine.state import Status
from molsamp.learn.drive import Abandoned
from molsamp.molecular import Problem, load
from molsamp.molecular.paths.population import Population, twist
from molsamp.molecular.paths.settings import TwistedSettings
from molsamp.molecular.paths.twisted import TwistedPaths
from molsamp.molecular.paths.value import LogHit

EDGE, GROUPS = 3.0, 24


def settings(**changes):
    defaults = dict(
        particles=512, populations=GROUPS, refinements=2, levels=12, ancestors=4, every=2, hold=2, pool=4, widths=(16,),
        pairs=256, classify_steps=150, refine_steps=150, batch=512, learning_rate=1e-2, arrival="final",
    )  # fmt: skip
    return TwistedSettings(**{**defaults, **changes})


def overdamped():
    return line_problem(above=EDGE, h=0.1, steps=20), ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.1, steps=20, x0=0.0)


def underdamped():
    problem = line_problem(above=EDGE, h=0.2, steps=16, mass=1.0, friction=0.7)
    return problem, oscillator(stiffness=1.0, mass=1.0, kT=1.0, friction=0.7, h=0.2, steps=16, x0=0.0)


def trained(make, **changes):
    problem, form = make()
    job = TwistedPaths(problem, settings(**changes), Noise(1), 256)
    while job.k < job.total:
        job.advance()
    return job, form


def ratio_scores(job, f, exact):
    """z of the weighted mean over populations of observable means f (R, k) against exact (k,)."""
    w = torch.softmax(torch.tensor(job.log_z, dtype=torch.float64), 0)[:, None]
    centre = (w * f).sum(0)
    error = (w * (f - centre)).square().sum(0).sqrt() * (len(f) / (len(f) - 1)) ** 0.5
    return (centre - exact) / error


@pytest.mark.parametrize("make", [overdamped, underdamped])
def test_populations_sample_the_conditioned_process(make):
    """log P_0(hit) and mean and mean square of x at every time: 41 z-scores of 24 populations, bound 5 (1 % alarm)."""
    job, form = trained(make)
    tilt = form.beyond(EDGE)
    m, C = form.conditioned(tilt)
    z_hat = torch.tensor(job.log_z, dtype=torch.float64).exp()
    assert abs(float(z_hat.mean()) - math.exp(tilt.log_z)) < 5.0 * float(z_hat.std()) / len(z_hat) ** 0.5
    x = torch.stack([job._replay(*kept).x.flatten(1)[1:] for kept in job.kept])  # (R, F - 1, m)
    mean = ratio_scores(job, x.mean(2), m[1:, 0])
    square = ratio_scores(job, x.square().mean(2), C[1:, 0, 0] + m[1:, 0] ** 2)
    assert torch.cat([mean, square]).abs().max() < 5.0


def test_a_learned_value_pays():
    """Three sigmas away the efficiency of the last populations is far above that of a filter that sees nothing."""
    job, _ = trained(overdamped)
    blind = TwistedPaths(job.problem, job.settings, Noise(2), 8)
    blind.level = job.problem.end.radius
    assert job._populate(900).efficiency() > 0.5
    assert blind._populate(900).log_z < job.log_p_hit().value + 1.0
    assert len(job._populate(901).lineage(torch.arange(512))[0].unique()) > 0


@pytest.mark.parametrize("every, horizon", [(10, 1), (5, 4)])
def test_a_lesson_teaches_the_probability_of_a_hit(every, horizon):
    """One refinement of nothing: log h ten steps before the end is log P(x_20 > 1 | x_10), root mean square 0.15.

    It is 0.01 to 0.10 for seven seeds each, and 1.65 without the mass of those that hit in the offset of the logit.
    """
    problem = line_problem(above=1.0, h=0.1, steps=20)
    changes = dict(particles=8192, pairs=8192, batch=2048, refine_steps=600, kappa=0.0, learning_rate=3e-3)
    job = TwistedPaths(problem, settings(every=every, horizons=(horizon,), **changes), Noise(5), 8)
    job.level = problem.end.radius
    job.advance()
    job.advance()
    x = torch.linspace(-1.0, 1.5, 26, dtype=torch.float64)[:, None]  # x_10 is within two of its standard deviations
    mean, variance = 0.9**10 * x[:, 0], 0.2 * (1.0 - 0.9**20) / (1.0 - 0.9**2)
    error = job.value.log_h(1.0, x, None) - torch.special.log_ndtr((mean - 1.0) / variance**0.5)
    assert error.square().mean().sqrt() < 0.15


@pytest.mark.parametrize("floor", [-math.inf, -3.0])
def test_any_value_is_unbiased(floor):
    """A wrong value and its wrong control leave E[Z-hat] and, for lessons, E_0[h(x_12)] and E_0[x_8 h(x_12)] alone.

    60 small populations, 4.5 standard errors (2e-5 for the three).
    """
    problem, form = (
        line_problem(above=1.0, h=0.1, steps=20),
        ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.1, steps=20, x0=0.0),
    )
    value = LogHit(problem, (8,), (), Noise(0))
    torch.nn.init.normal_(value.coarse[-1].weight, std=2.0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(value.coarse[-1].bias, -2.0)
    runs = [
        Population(problem, value, Noise(s), n=64, every=4, hold=2, level=problem.end.radius, floor=floor, final=True)
        for s in range(60)
    ]
    grid = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64)[:, None]
    h = value.log_h(1.2, grid, None).exp()
    early, late = (0.2 * (1.0 - 0.9 ** (2 * k)) / (1.0 - 0.9**2) for k in (8, 4))  # variances of 8 and of 4 steps
    seen = (-0.5 * (grid[:, 0] - 0.9**4 * grid).square() / late).softmax(1) @ h  # E_0[h(x_12) | x_8] on the grid of x_8
    at = (-0.5 * grid[:, 0].square() / early).softmax(0)
    exact = torch.stack([torch.tensor(math.exp(form.beyond(1.0).log_z)).double(), at @ seen, at @ (grid[:, 0] * seen)])

    def estimates(p: Population) -> torch.Tensor:
        w, line = p.twisted(3).exp(), p.lineage(torch.arange(64), 3, 2)[0]
        return torch.stack([torch.tensor(p.log_z).double().exp(), w.mean(), (w * p.clouds[2].x[line, 0]).mean()])

    found = torch.stack([estimates(p) for p in runs])
    error = found.std(0) / len(runs) ** 0.5
    assert (error < 0.2 * exact.abs()).all()
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()


def test_the_value_as_a_sampler_is_weighted_right():
    """Importance sampling of P_0(hit) with the control alone: within 4.5 standard errors, each below 15 %."""
    job, form = trained(overdamped)
    paths = job.sample(2048, Noise(7))
    final_hit = job.problem.distance(paths.path.x[-1]) < job.problem.end.radius
    w = torch.where(final_hit, -paths.log_rn, -math.inf).exp()
    error = float(w.std()) / len(w) ** 0.5
    exact = math.exp(form.beyond(EDGE).log_z)
    assert error < 0.15 * exact
    assert abs(float(w.mean()) - exact) < 4.5 * error


def test_replayed_paths_are_those_of_the_population():
    """The replay ends every segment where the population did, to rounding, and hits where it hit."""
    problem = Problem.of(load("alanine-dipeptide"), steps=60)
    value = LogHit(problem, (8,), (8,), Noise(3))
    for net in (value.coarse, value.fine):
        torch.nn.init.normal_(net[-1].weight, std=0.3, generator=torch.Generator().manual_seed(1))
    value.sharp.fill_(True)
    population = Population(problem, value, Noise(4), n=32, every=20, hold=10, level=3.75, floor=-1.0)
    last = torch.arange(0, 32, 5)
    lines = population.lines(last)
    path = lines.replay(problem, value, 20, 10, Noise(4), -1.0)
    assert len(path) == 61
    assert torch.allclose(path.x[::20], lines.x, atol=2e-6)
    assert torch.allclose(path.v[::20], lines.v, atol=2e-3)
    reach = problem.distance(path.x[1:]).amin(0)
    assert torch.allclose(reach, population.reach()[last], atol=1e-4)
    assert bool(lines.done[-1].any()) and not bool(lines.done[-1].all())


@pytest.mark.parametrize("floor", [-math.inf, -1.0])
def test_the_control_is_the_gradient_of_the_twist(floor):
    """u = N d log psi / dv in thermal units: central differences along random velocities, float64, 1e-5."""
    problem = Problem.of(load("alanine-dipeptide"), dtype=torch.float64, tier="lanes")
    value = LogHit(problem, (8,), (8,), Noise(3))
    for net in (value.coarse, value.fine):
        torch.nn.init.normal_(net[-1].weight, std=0.05, generator=torch.Generator().manual_seed(1))
        torch.nn.init.constant_(net[-1].bias, -1.0)
    value.sharp.fill_(True)
    p = problem.initial(Noise(5), torch.arange(6))
    assert p.v is not None
    thermal, t, eps = problem.dynamics.thermal_speed(), 0.3, 1e-4
    direction = Noise(6).normal(0, torch.arange(6), (22, 3), torch.float64)
    up, down = (twist(value.log_h(t, p.x, p.v + sign * eps * thermal * direction), floor) for sign in (1.0, -1.0))
    along = (value.control(t, p.x, p.v, floor) * direction).flatten(1).sum(1) / value.amplitude
    assert torch.allclose((up - down) / (2 * eps), along, atol=1e-5)
    assert float(along.abs().max()) > 1e-2


@pytest.mark.parametrize("kept", [0, 2])
def test_resume_in_the_middle_gives_the_same_bytes(kept):
    """From a checkpoint taken before a lesson: its population is simulated again, and counted ones with their log h."""
    problem, _ = overdamped()
    changes = dict(populations=3, refinements=1, ripe=1.0, dwell=1, patience=1)
    one = TwistedPaths(problem, settings(**changes), Noise(1), 8)
    while one.k < 5 or len(one.kept) < kept:
        one.advance()
    saved = one.state()
    other = TwistedPaths(problem, settings(**changes), Noise(1), 8)
    other.load(saved)
    for job in (one, other):
        while job.k < job.total:
            job.advance()
    assert one.log_z == other.log_z
    assert torch.equal(one.paths().path.x, other.paths().path.x)


@pytest.mark.parametrize("ripe, dwell, more", [(0.0, 0, 0), (1.0, 2, 3)])
def test_a_level_is_refined_until_it_is_ripe(ripe, dwell, more):
    """Once its starts are enough, or all patience is spent; so does the end state, after 2 lessons at least."""
    problem, _ = overdamped()
    few = dict(pairs=64, batch=64, classify_steps=20, refine_steps=2, populations=2)
    job = TwistedPaths(problem, settings(**few, ripe=ripe, dwell=2, refinements=2, patience=3), Noise(1), 8)
    levels = []
    while job.k < job.total:
        metrics = job.advance()
        if "starts" in metrics and metrics["level"] < math.inf:
            levels.append(metrics["level"])
    *way, end = dict.fromkeys(levels)
    assert end == problem.end.radius and len(way) > 0
    assert [levels.count(level) for level in way] == [1 + dwell] * len(way)
    assert levels.count(end) == 2 + more + 2
    assert len(job.log_z) == 2 and job.k == job.total == job.counting + 3


def test_levels_that_run_out_are_said():
    """Two levels are not enough: paths come from the control alone, weighted, and a note says how far it got."""
    problem, _ = overdamped()
    job = TwistedPaths(problem, settings(levels=2), Noise(1), 16)
    while job.k < job.total:
        job.advance()
    paths = job.paths()
    assert not paths.exact and "still at distance" in paths.notes[0] and len(paths) == 16
    assert (paths.path.final.status == Status.OK).all()


def test_a_unit_given_up_half_way_leaves_no_trace():
    """Asked to stop within a population, the job is as before it, counters included."""
    problem, _ = overdamped()
    job = TwistedPaths(problem, settings(), Noise(1), 8)
    job.advance()
    before = job.state()
    job.advance()
    again = TwistedPaths(problem, settings(), Noise(1), 8)
    again.load(before)
    calls = iter([False, False, True])
    again.asked_to_stop = lambda: next(calls)
    with pytest.raises(Abandoned):
        again.advance()
    after = again.state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before if not torch.is_floating_point(after[k]))


def test_the_defence_lets_its_share_of_particles_follow_p_0():
    """psi = h + kappa E_0[h]: a value that hides the end state costs hits, and the floor brings them back.

    With h = 0 for x > 0 but the right P_0(hit) (above 1 sigma, so P_0 finds it alone), populations without a floor
    miss most of the time; with kappa = 1 each finds P_0(hit) within 30 %, several standard errors of 2048 particles.
    """
    problem, form = (
        line_problem(above=1.0, h=0.1, steps=20),
        ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.1, steps=20, x0=0.0),
    )

    class Hidden(LogHit):
        def forward(self, t, features):
            return form_log_p - 40.0 * features[:, 0].clamp(min=0.0)

    form_log_p = form.beyond(1.0).log_z
    value = Hidden(problem, (8,), (), Noise(0))

    def estimate(floor: float) -> float:
        p = Population(
            problem, value, Noise(0), n=2048, every=4, hold=2, level=problem.end.radius, floor=floor, final=True
        )
        return math.exp(p.log_z - form_log_p)

    assert estimate(-math.inf) < 0.1
    assert estimate(form_log_p) == pytest.approx(1.0, abs=0.3)
