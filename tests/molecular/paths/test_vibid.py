"""ViBiD moves of paths: the Gaussian model against dense conditionals, kernels against Monte Carlo through the engine's
rows, chains against the closed form of a conditioned process, and what goes wrong without the proposal's density.
"""

import pytest
import torch
from linear import line_problem, z_scores

from molsamp.engine.closed_forms import ornstein_uhlenbeck
from molsamp.engine.dynamics import LinearSDE
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import residuals, rollout
from molsamp.engine.schedules import EDM
from molsamp.engine.state import Particles, Path
from molsamp.molecular import load
from molsamp.molecular.paths import vibid
from molsamp.molecular.paths.alternation import Move, turns
from molsamp.molecular.paths.gaussian import FrameModel, GaussMarkov, Moments
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.vibid import ViBiDPaths, log_weight

F64 = torch.float64
GROUPS = 40


def draw(*shape, seed=0):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


def chain(rows=6, stride=2, d=2, variance=0.3):
    """A chain with matrices of no symmetry and a mean of no shape."""
    A = 0.8 * torch.eye(d, dtype=F64) + 0.2 * draw(rows, d, d)
    root = draw(d, d, seed=1)
    return GaussMarkov(draw(rows + 1, d, seed=2), root @ root.T + torch.eye(d), A, variance, stride)


def covariance(c):
    """Of all frames of a chain, from the linear map that its noises go through: ((rows + 1) d)^2."""
    d, rows = len(c.P), len(c.A)
    J = torch.zeros((rows + 1) * d, (rows + 1) * d, dtype=F64)
    J[:d, :d] = torch.linalg.cholesky(c.P)
    for k in range(rows):
        at, to = slice(k * d, (k + 1) * d), slice((k + 1) * d, (k + 2) * d)
        J[to] = c.A[k] @ J[at]
        J[to, to] += c.variance**0.5 * torch.eye(d, dtype=F64)
    return J @ J.T


def given(C, r, k):
    """Gain and covariance of coordinates r, given coordinates k, of N(0, C)."""
    G = C[r][:, k] @ torch.linalg.inv(C[k][:, k])
    return G, C[r][:, r] - G @ C[k][:, r]


# ---------------------------------------------------------------- the model


def test_the_fit_finds_the_chain_that_drew_the_paths():
    """20 000 paths of a chain of constant slope: the mean and A to 6 standard errors, about 1e-2 / sqrt(window)."""
    A = torch.tensor([[0.9, 0.1], [-0.1, 0.8]], dtype=F64)
    rows, n, v = 30, 20_000, 0.04
    x, z = [draw(n, 2) + 1.0], draw(rows, n, 2, seed=3)
    for k in range(rows):
        x.append(x[-1] @ A.T + v**0.5 * z[k] + 0.05)
    x = torch.stack(x)
    half = Moments.of(x[:, ::2]).plus(Moments.of(x[:, 1::2]))
    found = GaussMarkov.fit(half, v, 3)
    assert float((found.A - A).abs().max()) < 0.01
    assert float((found.mean - x.mean(1)).abs().max()) < 0.01
    assert float((found.P - torch.eye(2)).abs().max()) < 0.05


def test_paths_all_alike_still_make_a_model():
    """One path, ten times: no frame has a spread, yet a move is defined and may go elsewhere."""
    track = torch.linspace(-1.0, 1.0, 13, dtype=F64)[:, None, None].expand(13, 10, 2)
    model = GaussMarkov.fit(Moments.of(track), 0.01, 3)
    move = Move(model, 0.3, 2, 0.5)
    x = track.transpose(0, 1)
    to = move.propose(x, draw(10, 5, 2), draw(10, 4, 3, 2, seed=1))
    assert bool(torch.isfinite(move.log_prob(x, to)).all()) and float((to - x)[:, 0].abs().min()) > 1e-3


def test_every_stride_th_frame_has_the_marginal_of_the_chain():
    c = chain()
    d, C = 2, covariance(c)
    kept = torch.cat([torch.arange(d) + k * d for k in range(0, 7, 2)])
    torch.testing.assert_close(torch.linalg.inv(c.frames.precision), C[kept][:, kept], rtol=0, atol=1e-10)


def test_frames_between_have_the_conditional_of_the_chain():
    """Gain and covariance of `fill`, an affine map, against the dense conditional to 1e-10; and its density."""
    c = chain()
    d, rows, s, C = 2, 6, 2, covariance(c)
    kept = torch.cat([torch.arange(d) + k * d for k in range(0, rows + 1, s)])
    rest = torch.tensor([i for i in range(len(C)) if i not in kept.tolist()])
    G, V = given(C, rest, kept)
    K, Z = len(kept), rows * d
    y, z = torch.zeros(K + Z, K, dtype=F64), torch.zeros(K + Z, Z, dtype=F64)
    y[:K], z[K:] = torch.eye(K), torch.eye(Z)
    images = c.fill(y.view(-1, K // d, d), z.view(-1, rows // s, s, d)).flatten(1)
    torch.testing.assert_close(images[:K][:, rest].T, G, rtol=0, atol=1e-10)
    torch.testing.assert_close(images[K:][:, rest].T @ images[K:][:, rest], V, rtol=0, atol=1e-10)
    torch.testing.assert_close(images[:, kept], torch.cat([y[:K], torch.zeros(Z, K, dtype=F64)]), rtol=0, atol=1e-12)
    x = draw(2, rows + 1, d, seed=4)
    miss = x.flatten(1)[:, rest] - x.flatten(1)[:, kept] @ G.T
    exact = -0.5 * torch.einsum("ni,ij,nj->n", miss, torch.linalg.inv(V), miss)
    assert float((c.log_fill(x) - exact).diff().abs()) < 1e-9


@pytest.mark.parametrize("held", [(), (0,), (0, 3)])
def test_expectations_are_those_of_the_joint_gaussian(held):
    """E[path | path + t z, held frames] of 4 frames against the conditional of the 2 x 8 joint, to 1e-10."""
    model, t = chain().frames, 0.7
    C, D = torch.linalg.inv(model.precision), 8
    joint = torch.cat([torch.cat([C, C], 1), torch.cat([C, C + t**2 * torch.eye(D, dtype=F64)], 1)])
    k = [i for f in held for i in (2 * f, 2 * f + 1)]
    r = [i for i in range(D) if i not in k]
    noised = [D + i for i in r]  # where a frame is held, its noised self says nothing more
    G, V = given(joint, torch.tensor(r), torch.tensor(noised + k))
    y = draw(3, 4, 2, seed=5)
    frames = {f: draw(3, 2, seed=6 + f) for f in held}
    found = model.expect(y, t, frames).flatten(1)
    told = torch.cat([y.flatten(1)[:, r], *frames.values()], 1)
    torch.testing.assert_close(found[:, r], told @ G.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.posterior(t, held)[0], V, rtol=0, atol=1e-10)
    assert all(torch.equal(model.expect(y, t, frames)[:, f], a) for f, a in frames.items())


def test_backwards_the_end_is_a_first_frame():
    model, y, last = chain().frames, draw(3, 4, 2), draw(3, 2, seed=1)
    asked = model.backwards.onward(y.flip(1), 0.4, last).flip(1)
    torch.testing.assert_close(asked, model.expect(y, 0.4, {3: last}), rtol=0, atol=1e-10)
    assert float((model.onward(y.flip(1), 0.4, last).flip(1) - asked).abs().max()) > 0.01  # it is not symmetric


# ---------------------------------------------------------------- kernels


def by_rollout(model, y, levels, noise):
    """A move's frames as the engine's rows draw them, from the same start y (n, F, d)."""
    n, D, d = len(y), y[0].numel(), model.d
    ids = torch.arange(n)
    C, eye = torch.linalg.inv(model.precision), torch.eye(D, dtype=F64)
    e = torch.tensor([*range(d), *range(D - d, D)])
    inner = torch.arange(d, D - d)
    x = y + levels[0] * noise.child("up").normal(0, ids, y.shape[1:])
    gain = C[e] @ torch.linalg.inv(C + levels[0] ** 2 * eye)
    left = torch.linalg.cholesky(C[e][:, e] - gain @ C[:, e])
    ends = x.flatten(1) @ gain.T + noise.child("ends").normal(0, ids, (2 * d,)) @ left.T
    solver = turns(model, ends[:, :d], ends[:, d:])
    x = rollout(LinearSDE(EDM(), model.denoise), solver, Particles.at(x), levels, noise=noise, save="last").final.x
    t = levels[-1]
    joint = torch.cat([torch.cat([C, C], 1), torch.cat([C, C + t**2 * eye], 1)])
    G, V = given(joint, inner, torch.cat([D + inner, e]))
    told = torch.cat([x.flatten(1)[:, inner], ends], 1)
    rest = told @ G.T + noise.child("last").normal(0, ids, (len(inner),)) @ torch.linalg.cholesky(V).T
    return torch.cat([ends[:, :d], rest, ends[:, d:]], 1)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_move_has_the_law_it_says(rows):
    """M and S against 40 000 moves drawn through the engine's rollout: 8 means and 36 products, bound 4.8: false alarm
    7e-5."""
    c = chain()
    move, n = Move(c, 0.8, rows, 0.4), 40_000
    y = draw(1, 4, 2, seed=8)
    drawn = by_rollout(c.frames, y.expand(n, -1, -1), move.levels, Noise(2))
    off = drawn - y.flatten() @ move.M
    white = torch.linalg.solve_triangular(move.root, off, upper=True, left=False)
    a, b = torch.triu_indices(8, 8)
    products = white[:, a] * white[:, b] - (a == b).double()
    z = torch.cat([white, products], 1)
    z = z.mean(0) / (z.std(0) / n**0.5)
    assert z.abs().max() < 4.8


def test_the_law_of_a_move_is_not_that_of_the_bridge():
    """The same moves against the kernel without alternation: seen to fail."""
    c, n = chain(), 40_000
    move, plain = Move(c, 0.8, 3, 0.4), Move(c, 0.8, 0, 0.4)
    y = draw(1, 4, 2, seed=8)
    drawn = by_rollout(c.frames, y.expand(n, -1, -1), move.levels, Noise(2))
    off = drawn - y.flatten() @ plain.M
    assert (off.mean(0) / (off.std(0) / n**0.5)).abs().max() > 6.0


def test_without_alternation_a_move_keeps_the_model_with_it_it_does_not():
    """rows = 0: C M symmetric and M^T C M + S = C to 1e-10, the detailed balance of a Gaussian kernel."""
    c = chain()
    C = torch.linalg.inv(c.frames.precision)
    for rows, kept in ((0, True), (3, False)):
        move = Move(c, 0.8, rows, 0.4)
        through = C @ move.M
        gap = max(
            float((through - through.T).abs().max()),
            float((move.M.T @ through + move.root.T @ move.root - C).abs().max()),
        )
        assert gap < 1e-10 if kept else gap > 1e-2


def test_proposals_follow_their_density():
    """log q(x' | x) of whole paths, with the frames between, from 5000 proposals: -2 log q is chi-squared with 14
    degrees of freedom up to a constant, the same for every x; its variance 28 and its mean 14 to 5 standard errors.
    """
    c, n = chain(), 5000
    move = Move(c, 0.8, 2, 0.5)
    z, fine = draw(n, 4, 2, seed=3), draw(n, 3, 2, 2, seed=4)
    means = []
    for seed in (5, 6):
        x = draw(1, 7, 2, seed=seed).expand(n, -1, -1)
        q = -2.0 * move.log_prob(x, move.propose(x, z, fine))
        assert abs(float(q.var()) - 28.0) < 5.0 * 28.0 * ((2.0 + 12.0 / 14) / n) ** 0.5
        means.append(float(q.mean()))
    assert abs(means[0] - means[1]) < 1e-6
    assert abs(means[0] - 14.0) < 5.0 * (28.0 / n) ** 0.5


# ---------------------------------------------------------------- the weight of a path


def test_the_weight_of_a_path_is_that_of_the_integrator_s_rows():
    """Against residuals row by row, and by hand: -U(x_0)/kT - sum (x' - x - h F)^2 / (4 kT h), up to a constant."""
    problem = Problem.of(load("double-well"), steps=10, dtype=F64)
    job = ViBiDPaths(problem, None, Noise(0), 4)
    x = 0.3 * draw(11, 5, 2).cumsum(0)
    f = job._frames_of(x)
    z, _ = residuals(
        Path(torch.tensor(problem.times, dtype=F64), x, None, None, None, torch.zeros(5), Particles.at(x[-1]), 1),
        problem.dynamics,
        problem.integrator,
    )
    by_rows = -0.5 * z.square().sum((0, 2)) - f.energy[0] / problem.kT
    step = x[1:] - x[:-1] - problem.timestep * f.force[:-1]
    by_hand = -f.energy[0] / problem.kT - step.square().sum((0, 2)) / (4.0 * problem.kT * problem.timestep)
    found = log_weight(problem, f)
    for other in (by_rows, by_hand):
        torch.testing.assert_close(found - found[0], other - other[0], rtol=0, atol=1e-8)


# ---------------------------------------------------------------- chains


def crossing(**changes):
    """OU paths with x_0 < a and x_n > b, every other frame in the model, from pulled paths and two rounds of shots."""
    problem = line_problem(below=-0.5, above=1.0, x0=-0.6, h=0.1, steps=20)
    how = dict(chains=1000, moves=150, burn_in=2, arrival="final", frames=11) | changes
    job = ViBiDPaths(problem, None, Noise(1), 64, **how)
    accepted = [job.advance()["acceptance"] for _ in range(job.total)]
    return job, sum(accepted) / len(accepted)


def scores(job):
    """42 z of means and squares of all frames over 40 groups of chains, against the closed form."""
    form = ornstein_uhlenbeck(rate=1.0, D=1.0, h=0.1, steps=20, x0=0.0, var0=1.0)
    m, C = form.conditioned(form.crossing(-0.5, 1.0))
    x = job.frames.x[..., 0].T.reshape(GROUPS, -1, 21)
    return torch.cat([z_scores(x.mean(1), m[:, 0]), z_scores(x.square().mean(1), C[:, 0, 0] + m[:, 0] ** 2)]).abs()


@pytest.mark.parametrize("how", [{}, {"rows": 6, "floor": 0.2}, {"levels": (0.5,)}])
def test_chains_sample_the_conditioned_process(how):
    """42 z of Student t, 39 degrees of freedom, bound 4.6: false alarm 0.2 %."""
    job, accepted = crossing(**how)
    assert job.stride == 2 and accepted > 0.1
    assert scores(job).max() < 4.6


def test_the_burn_in_alone_is_not_enough():
    assert scores(crossing(moves=1)[0]).max() > 6.0


@pytest.mark.parametrize("name", ["density", "between", "start"])
def test_without_a_part_of_the_ratio_the_law_is_lost(name, monkeypatch):
    """The proposal's density, that of the frames between alone, or the Boltzmann factor of the start left out."""
    if name == "density":
        monkeypatch.setattr(Move, "log_prob", lambda self, x, to: torch.zeros(len(x), dtype=F64))
    elif name == "between":
        monkeypatch.setattr(GaussMarkov, "log_fill", lambda self, y: torch.zeros(len(y), dtype=F64))
    else:
        right = vibid.log_weight
        monkeypatch.setattr(vibid, "log_weight", lambda problem, f: right(problem, f) + f.energy[0] / problem.kT)
    assert scores(crossing(moves=60)[0]).max() > 6.0


@pytest.mark.parametrize("stop", [3, 9])
def test_resumed_chains_give_the_same_bytes(stop):
    def job():
        problem = line_problem(below=-0.4, above=0.6, x0=-0.5, h=0.1)
        return ViBiDPaths(problem, None, Noise(4), 24, chains=16, moves=8, burn_in=6, frames=11)

    def run(job):
        while job.k < job.total:
            job.advance()
        return job.paths()

    half, again, whole = job(), job(), run(job())
    for _ in range(stop):
        half.advance()
    again.load({k: v.clone() for k, v in half.state().items()})
    resumed = run(again)
    assert torch.equal(whole.path.x, resumed.path.x) and whole.effective == resumed.effective
    assert whole.cost.energy_evaluations == resumed.cost.energy_evaluations
    assert len(whole) == 24 and bool(whole.hit.all()) and "Thermal ensemble" in whole.warnings()[0]


def test_underdamped_dynamics_is_refused():
    with pytest.raises(ValueError, match=r"line is underdamped: .* allowed for this system are shooting"):
        ViBiDPaths(line_problem(mass=1.0), None, Noise(0), 4)


def test_a_model_of_frames_is_what_the_alternation_needs_to_know():
    """Either half lands with both ends in place, at every level."""
    model = chain().frames
    assert isinstance(model, FrameModel)
    first, last, x = draw(3, 2), draw(3, 2, seed=1), draw(3, 4, 2, seed=2)
    solver = turns(model, first, last)
    out = rollout(LinearSDE(EDM(), model.denoise), solver, Particles.at(x), [1.0, 0.1, 0.0], noise=Noise(0)).final.x
    torch.testing.assert_close(out[:, 0], first, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[:, -1], last, rtol=0, atol=1e-12)
