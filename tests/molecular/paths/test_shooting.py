"""Shooting against closed forms of linear chains, against brute force at a coarse timestep, and its reversal alone."""

import pytest
import torch
from linear import line_problem, z_scores

from molsamp.engine.closed_forms import ornstein_uhlenbeck
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import residuals
from molsamp.engine.state import Path
from molsamp.engine.trees import Tree
from molsamp.molecular.paths import shooting
from molsamp.molecular.paths.reversal import Reversal
from molsamp.molecular.paths.settings import ShootingSettings
from molsamp.molecular.paths.shooting import Shooting

GROUPS = 40


class FromExact(Shooting):
    """Starts from exact samples, by rejection from free thermal paths: a law that the moves must keep."""

    def exact(self, free, name):
        """(frames, length) of the members of the ensemble among `free` free paths."""
        p, ids, noise = self.problem, torch.arange(free), self.noise.child(name)
        x, z = (noise.child(block).normal(0, ids, p.system.event) for block in "xz")
        start = p.initial(noise, ids).evolve(x=x, v=self.reversal.fresh(p.energy.force(x), z))
        whole, _ = self._roll(start, p.steps, noise)
        f, length = self._trim(whole)
        member = self._member(f, length, self._free(f))
        if self.settings.length == "flexible":  # what left A first at frame 0, and not later
            member &= length == p.inside(whole.x).int().argmax(0)
        return f.columns(member), length[member]

    def _first_paths(self):
        M = self.settings.chains
        f, length = self.exact(30 * M, "begin")
        self.frames, self.length = f.columns(torch.arange(M)), length[:M]
        self.tree = Tree(self.frames.x[0])
        self.free = self._free(self.frames)


def run(job):
    while job.k < job.total:
        job.advance()
    return job


def settings(**changes):
    return ShootingSettings(**{**dict(chains=1000, moves=15, burn_in=0, kind="two-way", length="fixed"), **changes})


def coarse(mass):
    """Timesteps at which the scheme's own law is off by several per cent: the shadow work must make up for it."""
    if mass is None:
        return line_problem(below=-0.8, above=0.9, h=0.7, steps=10)
    return line_problem(below=-0.8, above=0.9, h=1.3, steps=10, mass=mass, friction=0.5)


def moments(f, length):
    """Per path: x and x^2 (and v, v^2, x v) at every frame, and the length in rows; (M, 2F + 1) or (M, 5F + 1)."""
    x = f.x.flatten(2)[..., 0].T
    columns = [length[:, None].double(), x, x * x]
    if f.v is not None:
        v = f.v.flatten(2)[..., 0].T
        columns += [v, v * v, x * v]
    return torch.cat(columns, 1)


def scores(job):
    """z of chain averages (40 groups) against brute force of 80 000 free paths."""
    chain = moments(job.frames, job.length)
    chain = chain.view(GROUPS, -1, chain.shape[1]).mean(1)
    brute = moments(*job.exact(80_000, "brute"))
    error = (chain.var(0) / GROUPS + brute.var(0) / len(brute)).sqrt()
    return ((chain.mean(0) - brute.mean(0)) / error)[error > 0]


@pytest.mark.parametrize("sampler", [Shooting, FromExact])
def test_fixed_length_samples_the_conditioned_process(sampler):
    """The law of OU paths with x_0 < a, x_n > b: one-way moves find it from pulled paths, two-way moves keep it.

    42 z-scores of Student t, 39 degrees of freedom, bound 4.6: false alarm 0.2 %. (Paths that jump from A to B, which
    cannot be shot, have a share below 1e-3.)
    """
    a, b, h, n = -0.5, 1.0, 0.1, 20
    problem = line_problem(below=a, above=b, x0=-0.6, h=h, steps=n)
    kind, moves = ("one-way", 100) if sampler is Shooting else ("two-way", 20)
    job = run(sampler(problem, settings(kind=kind, arrival="final", moves=moves), Noise(1), 64))
    form = ornstein_uhlenbeck(rate=1.0, D=1.0, h=h, steps=n, x0=0.0, var0=1.0)
    m, C = form.conditioned(form.crossing(a, b))
    x = job.frames.x[..., 0].T.reshape(GROUPS, -1, n + 1)
    mean = z_scores(x.mean(1), m[:, 0])
    square = z_scores(x.square().mean(1), C[:, 0, 0] + m[:, 0] ** 2)
    assert torch.cat([mean, square]).abs().max() < 4.6


@pytest.mark.parametrize("mass", [None, 1.0])
@pytest.mark.parametrize("kind", ["two-way", "one-way"])
@pytest.mark.parametrize("length", ["fixed", "flexible"])
def test_moves_are_exact_at_a_coarse_timestep(mass, kind, length):
    """At most 56 z of Student t, 39 degrees of freedom, bound 4.6: false alarm 0.3 % a case."""
    job = FromExact(coarse(mass), settings(kind=kind, length=length), Noise(2), 64)
    accepted = [job.advance()["acceptance"] for _ in range(job.total)]
    assert sum(accepted) / job.total > 0.1
    assert scores(job).abs().max() < 4.6


@pytest.mark.parametrize("mass", [None, 1.0])
def test_without_the_shadow_work_the_law_is_lost(mass, monkeypatch):
    monkeypatch.setattr(Reversal, "shadow", lambda self, f: torch.zeros_like(f.energy))
    job = run(FromExact(coarse(mass), settings(chains=2000, moves=50), Noise(2), 64))
    assert scores(job).abs().max() > 6.0


def test_without_the_number_of_free_frames_the_law_is_lost(monkeypatch):
    job = FromExact(coarse(None), settings(length="flexible"), Noise(2), 64)

    def biased(ratio, u):  # accepts every member of the ensemble
        return ratio > -torch.inf

    monkeypatch.setattr(shooting, "metropolis", biased)
    assert scores(run(job)).abs().max() > 6.0


def assembled(job):
    """Proposals, whole, with a redrawn head and tail."""
    job._first_paths()
    M = job.settings.chains
    everywhere = torch.ones(M, dtype=torch.bool)
    j = torch.full((M,), job.problem.steps // 2)
    f, length, _, _ = job._shoot(job.frames, job.length, j, everywhere, everywhere, torch.arange(M), job.noise)
    times, start = torch.tensor(job.problem.times, dtype=torch.float64), job.problem.initial(Noise(0), length)
    return Path(times, f.x, f.v, None, None, torch.zeros(M, dtype=torch.float64), start, 1)


def test_backward_branches_are_paths_of_the_forward_rows():
    """Residuals of the assembled paths: no mismatch in x, mean square 1 within 5 standard errors (6e-7)."""
    job = FromExact(line_problem(h=0.2, steps=20, mass=1.0, friction=0.5), settings(), Noise(3), 4)
    z, gap = residuals(assembled(job), job.problem.dynamics, job.problem.integrator)
    assert gap.max() < 1e-12
    assert abs(float(z.square().mean()) - 1.0) < 5.0 * (2.0 / z.numel()) ** 0.5 + 0.01  # shadow work of order h^2


def test_a_plain_flip_of_velocities_is_no_reversal(monkeypatch):
    monkeypatch.setattr(Reversal, "turned", lambda self, v, force: -v)
    job = FromExact(line_problem(h=0.2, steps=20, mass=1.0, friction=0.5), settings(), Noise(3), 4)
    _, gap = residuals(assembled(job), job.problem.dynamics, job.problem.integrator)
    assert gap.max() > 1e-2


def test_turning_twice_is_the_identity():
    problem = coarse(1.0)
    v, F = torch.randn(2, 5, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reversal = Reversal(problem)
    assert torch.allclose(reversal.turned(reversal.turned(v, F), F), v, atol=1e-14)


@pytest.mark.parametrize("length", ["fixed", "flexible"])
def test_resumed_shooting_gives_the_same_bytes(length):
    def job():
        problem = line_problem(below=-0.4, above=0.6, x0=-0.5, h=0.1)
        return Shooting(problem, settings(chains=16, moves=6, burn_in=3, length=length), Noise(4), 24)

    whole, half = run(job()), job()
    for _ in range(5):
        half.advance()
    again = job()
    again.load({k: v.clone() for k, v in half.state().items()})
    a, b = whole.paths(), run(again).paths()
    assert torch.equal(a.path.x, b.path.x) and a.effective == b.effective
    assert a.cost.energy_evaluations == b.cost.energy_evaluations
    assert len(a) == 24 and bool(a.hit.all()) and "Thermal ensemble" in a.warnings()[0]


def test_no_way_to_the_end_is_one_clear_line():
    problem = line_problem(below=-0.4, above=50.0, x0=-0.5, h=0.1, steps=1)
    with pytest.raises(ValueError, match=r"line: no pull up to .* carries half of 8 paths from A to B in 1 steps"):
        run(Shooting(problem, settings(chains=8), Noise(4), 8))
