"""The one loop: what it records, how it is cut and continued, and what one bad particle does to the others."""

import math
import sys
from itertools import pairwise

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
    Status,
    Tape,
    Underdamped,
    residuals,
    rollout,
)
from molsamp.engine.closed_forms import Harmonic
from molsamp.engine.integrators import Evaluate, Line, Row

N, ROWS, h = 12, 24, 0.02
MASSES = torch.tensor([[1.0], [12.0]], dtype=torch.float64)
NOISE = Noise(4)
TIMES = [h * k for k in range(ROWS + 1)]
UNDERDAMPED = Underdamped(Harmonic(30.0), MASSES, 2.5, 1.5)
OVERDAMPED = Overdamped(Harmonic(5.0), 2.5)


def push(t, x, v):
    """A smooth elementwise control of position and time."""
    return 0.3 * torch.sin(x) + 0.1 * t


CASES = [
    (EulerMaruyama(), OVERDAMPED),
    (SemiImplicitEuler(), UNDERDAMPED),
    (LangevinMiddle(), UNDERDAMPED),
    (EulerMaruyama(), Controlled(OVERDAMPED, push, hold=5)),
    (LangevinMiddle(), Controlled(UNDERDAMPED, push, hold=5)),
]
NAMES = ["euler-maruyama", "semi-implicit", "middle", "euler-maruyama held", "middle held"]
every_case = pytest.mark.parametrize("integrator, dyn", CASES, ids=NAMES)


def start(dyn, dtype=torch.float64, n=N):
    """n particles with thermal-looking positions and velocities."""
    x, v = (NOISE.child(name).normal(0, torch.arange(n), (2, 3), dtype) for name in "xv")
    return Particles.at(x, v if "v" in dyn.blocks else None)


def same(a, b) -> bool:
    """Equality to the bit of two tensors or two absent blocks."""
    return (a is None and b is None) or torch.equal(a, b)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_particle_does_not_know_its_batch(integrator, dyn, dtype):
    full = rollout(dyn, integrator, start(dyn, dtype), TIMES, noise=NOISE)
    for index in (torch.arange(1), torch.arange(3, 10), torch.tensor([11, 0, 5])):
        part = rollout(dyn, integrator, start(dyn, dtype).take(index), TIMES, noise=NOISE)
        assert part.x.dtype == dtype
        assert torch.equal(part.x, full.x[:, index]) and torch.equal(part.z, full.z[:, index])
        assert same(part.v, None if full.v is None else full.v[:, index])
        assert torch.equal(part.log_ratio, full.log_ratio[index]) and same(part.energy, full.energy[:, index])


@every_case
@pytest.mark.parametrize("cut", [8, 13])
def test_two_rollouts_equal_one(integrator, dyn, cut):
    """Continued by `first` and `memory`, also where a held control or an odd count is cut through."""
    whole = rollout(dyn, integrator, start(dyn), TIMES, noise=NOISE)
    a = rollout(dyn, integrator, start(dyn), TIMES[: cut + 1], noise=NOISE)
    b = rollout(dyn, integrator, a.final, TIMES[cut:], noise=NOISE, first=cut, memory=a.memory)
    assert torch.equal(torch.cat([a.x, b.x[1:]]), whole.x) and torch.equal(torch.cat([a.z, b.z]), whole.z)
    assert same(b.final.v, whole.final.v)
    assert torch.allclose(a.log_ratio + b.log_ratio, whole.log_ratio, rtol=1e-13, atol=1e-13)
    assert torch.allclose(b.final.logw, -whole.log_ratio, rtol=1e-13, atol=1e-13)


def test_a_multistep_scheme_continues_from_its_history():
    """Adams-Bashforth 2: the first row after the cut needs an evaluation made before it."""

    class AdamsBashforth:
        def rows(self, dyn, times):
            table = []
            for a, b in pairwise(times):
                weights = (b - a,) if a == 0.0 else (1.5 * (b - a), -0.5 * (b - a))
                table.append(Row(a, b, (Evaluate(a), Line("x", {"x": 1.0}, weights)), history=2))
            return table

    dyn = Ito(lambda t, x: -x, lambda t: 0.0)
    whole = rollout(dyn, AdamsBashforth(), start(dyn), TIMES, noise=NOISE)
    a = rollout(dyn, AdamsBashforth(), start(dyn), TIMES[:10], noise=NOISE)
    b = rollout(dyn, AdamsBashforth(), a.final, TIMES[9:], noise=NOISE, first=9, memory=a.memory)
    assert torch.equal(b.x, whole.x[9:]) and len(whole.memory.history) == 2
    assert torch.allclose(whole.x[-1], whole.x[0] * math.exp(-TIMES[-1]), rtol=1e-3)


@every_case
@pytest.mark.parametrize("save", [1, 4, 24, "last"])
def test_saving_less_is_slicing(integrator, dyn, save):
    """Frames, times and energies are slices; noise is summed between frames; the weight does not change."""
    full = rollout(dyn, integrator, start(dyn), TIMES, noise=NOISE)
    thin = rollout(dyn, integrator, start(dyn), TIMES, noise=NOISE, save=save)
    stride = ROWS if save == "last" else save
    assert thin.stride == stride and len(thin) == ROWS // stride + 1
    assert torch.equal(thin.times, full.times[::stride]) and torch.equal(thin.x, full.x[::stride])
    assert same(thin.v, None if full.v is None else full.v[::stride]) and same(thin.energy, full.energy[::stride])
    sums = full.z.unflatten(0, (-1, stride)).sum(1)
    assert torch.allclose(thin.z, sums, atol=1e-12) and torch.equal(thin.log_ratio, full.log_ratio)


@pytest.mark.parametrize("save", [5, 0, -1])
def test_a_stride_that_does_not_fit_is_refused(save):
    with pytest.raises(ValueError, match=f"save={save} does not divide the 24 rows"):
        rollout(OVERDAMPED, EulerMaruyama(), start(OVERDAMPED), TIMES, noise=NOISE, save=save)


def test_missing_velocities_are_refused():
    with pytest.raises(ValueError, match=r"start\.v is None"):
        rollout(UNDERDAMPED, LangevinMiddle(), start(OVERDAMPED), TIMES, noise=NOISE)


@pytest.mark.parametrize("save", ["all", "last"])
def test_no_rows_leave_the_start(save):
    path = rollout(OVERDAMPED, EulerMaruyama(), start(OVERDAMPED), [0.0], noise=NOISE, save=save)
    assert len(path) == 1 and torch.equal(path.final.x, path.x[0])


class Poisoned:
    """A harmonic field whose force on one particle of the batch turns bad after some evaluations."""

    def __init__(self, who, after, value):
        self.who, self.left, self.value = who, after, value

    def energy_force(self, x):
        energy, force = Harmonic(30.0).energy_force(x)
        if self.left <= 0:
            energy[self.who], force[self.who, 0] = self.value, self.value
        self.left -= 1
        return energy, force


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("integrator", [SemiImplicitEuler(), LangevinMiddle()], ids=NAMES[1:3])
def test_one_bad_particle_harms_only_itself(integrator, value):
    """It is DIVERGED, stays at its last good frame and keeps a finite weight; the others are the same to the bit."""
    others = [i for i in range(N) if i != 5]

    def run(field):
        dyn = Controlled(Underdamped(field, MASSES, 2.5, 1.5), push)
        return rollout(dyn, integrator, start(dyn), TIMES, noise=NOISE)

    good, bad = run(Harmonic(30.0)), run(Poisoned(5, 10, value))
    assert bad.final.status.tolist() == [Status.DIVERGED if i == 5 else Status.OK for i in range(N)]
    for a, b in ((bad.x, good.x), (bad.v, good.v), (bad.z, good.z), (bad.energy, good.energy)):
        assert torch.equal(a[:, others], b[:, others])
        assert torch.equal(a[:10, 5], b[:10, 5])
    assert torch.equal(bad.log_ratio[others], good.log_ratio[others])
    assert (bad.x[10:, 5] == good.x[10, 5]).all() and (bad.v[10:, 5] == good.v[10, 5]).all()
    assert not bad.z[10:, 5].any() and torch.isfinite(bad.log_ratio).all()
    assert not torch.isfinite(bad.energy[10:, 5]).any()
    ten = rollout(Controlled(UNDERDAMPED, push), integrator, start(UNDERDAMPED), TIMES[:11], noise=NOISE)
    assert torch.equal(bad.log_ratio[5], ten.log_ratio[5])


def test_a_bad_control_counts_as_divergence():
    def broken(t, x, v):
        u = push(t, x, v)
        u[3] = math.nan
        return u

    path = rollout(Controlled(OVERDAMPED, broken), EulerMaruyama(), start(OVERDAMPED), TIMES, noise=NOISE)
    assert path.final.status.tolist() == [int(i == 3) for i in range(N)]
    assert torch.isfinite(path.x).all() and torch.isfinite(path.log_ratio).all() and path.log_ratio[3] == 0


def test_stop_freezes_a_particle_where_it_arrived():
    """It is DONE in the frame that satisfies the condition; the step that took it there counts in its weight."""
    dyn = Controlled(OVERDAMPED, push)
    free = rollout(dyn, EulerMaruyama(), start(dyn), TIMES, noise=NOISE)
    path = rollout(dyn, EulerMaruyama(), start(dyn), TIMES, noise=NOISE, stop=lambda p: p.x[:, 0, 0] > 0.5)
    inside = free.x[:, :, 0, 0] > 0.5
    inside[0] = False  # the condition is asked after each row, not at the start
    arrived = inside.any(0)
    assert 0 < int(arrived.sum()) < N
    assert torch.equal(path.final.status == Status.DONE, arrived)
    for i in range(N):
        last = int(inside[:, i].int().argmax()) if arrived[i] else ROWS
        assert torch.equal(path.x[: last + 1, i], free.x[: last + 1, i])
        assert (path.x[last:, i] == free.x[last, i]).all() and not path.z[last:, i].any()
        u = torch.stack([push(t, free.x[k, i], None) for k, t in enumerate(TIMES[:last])])
        terms = u * (free.z[:last, i] - 0.5 * u)
        assert torch.isclose(path.log_ratio[i], terms.sum(), rtol=1e-12)


def test_a_particle_that_is_not_ok_at_the_start_does_not_move():
    p = start(OVERDAMPED)
    p = p.evolve(status=torch.tensor([Status.DONE, Status.DIVERGED] + [Status.OK] * (N - 2), dtype=torch.int8))
    path = rollout(OVERDAMPED, EulerMaruyama(), p, TIMES, noise=NOISE)
    assert (path.x[:, :2] == p.x[:2]).all() and torch.equal(path.final.status, p.status)


def test_an_observer_sees_every_row_once():
    seen = []
    path = rollout(
        OVERDAMPED, EulerMaruyama(), start(OVERDAMPED), TIMES, noise=NOISE, each=lambda *a: seen.append(a), save=8
    )
    assert [k for k, _, _ in seen] == list(range(ROWS))
    assert torch.equal(seen[7][1].x, path.x[1]) and torch.equal(seen[8][2].energy, path.energy[1])
    assert torch.allclose(sum(info.z for _, _, info in seen[:8]), path.z[0])


def test_a_tape_of_the_same_noise_gives_the_same_path():
    z = NOISE.normal(range(ROWS), torch.arange(N), (2, 3))
    drawn, taped = (
        rollout(UNDERDAMPED, LangevinMiddle(), start(UNDERDAMPED), TIMES, noise=n) for n in (NOISE, Tape(z))
    )
    assert torch.equal(drawn.x, taped.x) and torch.equal(drawn.z, z)


def test_noise_is_the_same_however_it_is_drawn_ahead(monkeypatch):
    whole = rollout(UNDERDAMPED, LangevinMiddle(), start(UNDERDAMPED), TIMES, noise=NOISE)
    monkeypatch.setattr(sys.modules["molsamp.engine.rollout"], "NOISE_CHUNK", 5 * N * 6)
    assert torch.equal(rollout(UNDERDAMPED, LangevinMiddle(), start(UNDERDAMPED), TIMES, noise=NOISE).x, whole.x)


@every_case
def test_residuals_recover_the_noise(integrator, dyn):
    """For a controlled path, with the control counted in."""
    path = rollout(dyn, integrator, start(dyn), TIMES, noise=NOISE)
    z, gaps = residuals(path, dyn, integrator)
    assert torch.allclose(z, path.z, atol=1e-10) and float(gaps.max()) < 1e-12


def test_residuals_need_every_frame_and_a_density():
    thin = rollout(OVERDAMPED, EulerMaruyama(), start(OVERDAMPED), TIMES, noise=NOISE, save=4)
    with pytest.raises(ValueError, match="save='all'"):
        residuals(thin, OVERDAMPED, EulerMaruyama())
    dyn = Ito(lambda t, x: -x, lambda t: 0.0)
    with pytest.raises(ValueError, match="has no density"):
        residuals(rollout(dyn, Heun(), start(dyn), TIMES, noise=NOISE), dyn, Heun())


def test_an_ordinary_differential_equation_draws_nothing():
    class Silent:
        def normal(self, *args):
            raise AssertionError("a row without noise must not draw")

    dyn = Ito(lambda t, x: -x, lambda t: 0.0)
    path = rollout(dyn, Heun(), start(dyn), TIMES, noise=Silent())
    assert path.energy is None and not path.z.any()
