"""The fused rollout: the path that the loop of `rollout` makes, whatever is asked, and the same bytes however cut."""

from functools import cache
from itertools import pairwise

import builders
import openmm
import pytest
import torch

from molsamp.engine import (
    Controlled,
    EulerMaruyama,
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
from molsamp.engine.closed_forms import oscillator
from molsamp.engine.integrators import Evaluate, Line, Row
from molsamp.molecular import NativeEnergy, load
from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import Distance, Torsion
from molsamp.molecular.energies import Energy, Sum
from molsamp.molecular.native.executor import Carriage

N, ROWS, HIGH = 21, 100, 1 << 33
TIMES = [0.001 * k for k in range(ROWS + 1)]
NOISE = Noise(9)
DTYPES = [torch.float32, torch.float64]
POSITION = {torch.float32: 1e-5, torch.float64: 1e-12}  # nm, after 100 steps of 1 fs
VELOCITY = {torch.float32: 1e-3, torch.float64: 1e-10}  # nm/ps: a bond turns 1e-5 nm into 1e-5 nm x 600 per ps
ENERGY = {torch.float32: 2e-2, torch.float64: 1e-9}  # kJ/mol
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


SCHEMES = {"langevin-middle": LangevinMiddle(), "semi-implicit-euler": SemiImplicitEuler()}


class Plain(Energy):
    """The energy without its executor: `rollout` has to go through its loop."""

    def __init__(self, energy):
        self.native, self.event = energy, energy.event

    def _energy_force(self, x):
        return self.native._energy_force(x)


@cache
def system(name="alanine-dipeptide"):
    return load(name)


@cache
def energy(dtype, name="alanine-dipeptide", threads=1):
    return NativeEnergy.from_openmm(system(name).forcefield_system(), dtype, "lanes", threads)


@cache
def biased(dtype):
    """Alanine dipeptide with a bias on (phi, psi) and one on a distance, both joined to the native energy."""
    phi, psi = (Torsion(a, n) for a, n in (((4, 6, 8, 14), "phi"), ((6, 8, 14, 16), "psi")))
    V = 20.0 * NOISE.child("grid").normal(0, torch.arange(12), (10,))
    turn = (-torch.pi, torch.pi)
    rama = GridBias((phi, psi), V.numpy(), (turn, turn), (22, 3))
    ends = GridBias((Distance((4, 16), "d"),), V[0].numpy(), ((0.2, 0.5),), (22, 3))
    return energy(dtype) + rama + ends


@cache
def start(dtype, n=N, name="alanine-dipeptide"):
    """n thermal replicas at the minimum, ids above 2^32."""
    molecule = system(name)
    x = next(iter(molecule.states.values())).x.to(dtype).expand(n, -1, -1).contiguous()
    v = thermal(molecule) * NOISE.child("v").normal(0, torch.arange(n), molecule.event, dtype)
    return Particles.at(x, v.to(dtype), torch.arange(n) + HIGH)


def thermal(molecule):
    return (molecule.kT / molecule.masses[:, None]) ** 0.5


def langevin(field, name="alanine-dipeptide"):
    return Underdamped(field, system(name).masses[:, None], system(name).kT, 1.0)


def push(t, x, v):
    """A smooth control of position and time, some 0.3 in noise units."""
    return 0.3 * torch.sin(50.0 * x + 10.0 * t) + 0.001 * v


@pytest.fixture
def stretches(monkeypatch):
    """The ranges of rows that native code has carried."""
    seen, carry = [], Carriage.carry

    def spy(self, rows, step, u):
        seen.append(rows)
        carry(self, rows, step, u)

    monkeypatch.setattr(Carriage, "carry", spy)
    return seen


def agree(path, other, dtype):
    """The same record: positions, velocities, noise, energies, weights, fates."""
    assert (path.x - other.x).abs().max() < POSITION[dtype]
    if path.v is not None or other.v is not None:
        assert (path.v - other.v).abs().max() < VELOCITY[dtype]
    assert (path.z - other.z).abs().max() < (2e-5 if dtype == torch.float32 else 1e-12) * path.stride**0.5
    assert (path.energy - other.energy).abs().max() < ENERGY[dtype]
    assert (path.log_ratio - other.log_ratio).abs().max() < (1e-3 if dtype == torch.float32 else 1e-9)
    assert torch.equal(path.final.status, other.final.status) and torch.equal(path.times, other.times)
    assert torch.equal(path.x[-1], path.final.x) and path.stride == other.stride and len(path) == len(other)
    assert torch.allclose(path.final.logw, -path.log_ratio, rtol=0, atol=1e-12)


CASES = {
    "every frame": {},
    "every 25th, late in the stream": {"save": 25, "first": HIGH + 7},
    "hot, each its own": {"save": "last", "heat": torch.linspace(1, 2, N).view(N, 1, 1)},
    "hot, all alike": {"save": 50, "heat": 1.5},
    "tape": {"noise": Tape(NOISE.normal(range(ROWS), torch.arange(N), (22, 3)))},
}


@every_dtype
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("hold", [None, 1, 7], ids=["free", "control", "held control"])
def test_the_loop_and_the_native_code_agree(options, hold, dtype, stretches):
    """All records, and the count of evaluations: one a row and replica, and one of the last frame."""
    options = {"noise": NOISE, **options}
    field = energy(dtype)
    paths = []
    for base in (field, Plain(field)):
        field.evaluations = 0
        dyn = langevin(base) if hold is None else Controlled(langevin(base), push, hold)
        paths.append(rollout(dyn, LangevinMiddle(), start(dtype), TIMES, **options))
        assert base.evaluations == N * (ROWS + 1)
    agree(*paths, dtype)
    step = ROWS if hold is None else hold
    assert sum(map(len, stretches)) == ROWS and max(map(len, stretches)) == step


@every_dtype
@pytest.mark.parametrize("field", [energy, biased], ids=["unbiased", "grid bias"])
@pytest.mark.parametrize("integrator", [*SCHEMES.values(), EulerMaruyama()], ids=[*SCHEMES, "euler-maruyama"])
def test_every_one_force_scheme_is_native(integrator, field, dtype, stretches):
    """Also overdamped dynamics, mobility 1e-5 nm^2 mol/(kJ ps), and static biases joined to the energy."""
    paths = []
    for base in (field(dtype), Plain(field(dtype))):
        over = isinstance(integrator, EulerMaruyama)
        dyn = Overdamped(base, system().kT, 1e-5) if over else langevin(base)
        at = start(dtype).evolve(v=None) if over else start(dtype)
        paths.append(rollout(dyn, integrator, at, TIMES, noise=NOISE, save=10))
    assert stretches == [range(ROWS)]
    agree(*paths, dtype)


@every_dtype
def test_implicit_solvent_agrees(dtype, stretches):
    """GBn2, whose kernels keep scratch from pass to pass."""
    name = "alanine-dipeptide-gbn2"
    both = (energy(dtype, name), Plain(energy(dtype, name)))
    paths = [
        rollout(langevin(f, name), LangevinMiddle(), start(dtype, N, name), TIMES, noise=NOISE, save=20) for f in both
    ]
    assert len(stretches) == 1
    agree(*paths, dtype)


class AdamsBashforth:
    """x' = x + h (3 g_0 - g_1)/2: the second row needs what the first has evaluated."""

    def rows(self, dyn, times):
        return [
            Row(a, b, (Evaluate(a), Line("x", {"x": 1.0}, (1.5 * (b - a), -0.5 * (b - a)) if a else (b - a,))), 2)
            for a, b in pairwise(times)
        ]


FALLS_BACK = {
    "stop": {"stop": lambda p: p.x[:, 8, 0] > 100.0},
    "each": {"each": lambda k, p, info: None},
}


@every_dtype
@pytest.mark.parametrize("options", FALLS_BACK.values(), ids=FALLS_BACK)
def test_what_needs_python_in_every_row_takes_the_loop(options, dtype, stretches):
    native = rollout(langevin(energy(dtype)), LangevinMiddle(), start(dtype), TIMES, noise=NOISE)
    assert stretches.pop() == range(ROWS)
    loop = rollout(langevin(energy(dtype)), LangevinMiddle(), start(dtype), TIMES, noise=NOISE, **options)
    assert not stretches
    agree(native, loop, dtype)


def test_what_native_code_cannot_do_takes_the_loop(stretches):
    """A multistep scheme, another precision than the energy's, a sum that is no native energy."""
    field, at, short = energy(torch.float64), start(torch.float64), TIMES[:6]
    over = Overdamped(field, system().kT, 1e-5)
    multistep = rollout(over, AdamsBashforth(), at.evolve(v=None), short, noise=NOISE)
    assert len(multistep.memory.history) == 2 and bool(torch.isfinite(multistep.x).all())
    rollout(langevin(field), LangevinMiddle(), start(torch.float32), short, noise=NOISE)
    rollout(langevin(Sum(field, field)), LangevinMiddle(), at, short, noise=NOISE)
    rollout(langevin(NativeEnergy(field.terms, torch.float64, "torch")), LangevinMiddle(), at, short, noise=NOISE)
    assert not stretches


@every_dtype
@pytest.mark.parametrize("hold", [None, 7])
def test_a_bad_replica_diverges_alone(dtype, hold):
    """NaN, coincident atoms, and atoms so near that forces overflow later: frozen from their first row as in the loop;
    all others have the bytes of a batch without them."""
    good = start(dtype)
    x = good.x.clone()
    x[3, 2], x[5, 0], x[18, 9] = torch.nan, x[5, 1], x[18, 13] + 1e-3
    frozen = torch.tensor([3, 5])
    bad = good.evolve(x=x)

    def run(field, at):
        dyn = (
            langevin(field)
            if hold is None
            else Controlled(langevin(field), lambda t, x, v: push(t, x, v).nan_to_num(), hold)
        )
        return rollout(dyn, LangevinMiddle(), at, TIMES, noise=NOISE)

    path, loop, clean = run(energy(dtype), bad), run(Plain(energy(dtype)), bad), run(energy(dtype), good)
    for p in (path, loop):
        assert (p.final.status[frozen] == Status.DIVERGED).all()
        assert torch.equal(p.x[1:, 5], x[5].expand(ROWS, -1, -1)) and not p.z[:, 5].any() and not p.log_ratio[5]
    assert torch.equal(path.final.status, loop.final.status)
    rest = torch.tensor([k for k in range(N) if k not in (3, 5, 18)])
    assert (path.final.status[rest] == Status.OK).all()
    for block in ("x", "v", "z", "energy"):
        assert torch.equal(getattr(path, block)[:, rest], getattr(clean, block)[:, rest])
    assert torch.equal(path.log_ratio[rest], clean.log_ratio[rest])


# ---- the same bytes ----


def bytes_of(path, index=slice(None)):
    return [getattr(path, b)[:, index] for b in ("x", "v", "z", "energy")] + [path.log_ratio[index]]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def carried(dtype, at, times=TIMES, threads=1, **options):
    dyn = Controlled(langevin(energy(dtype, threads=threads)), push, 7)
    return rollout(dyn, LangevinMiddle(), at, times, noise=NOISE, **options)


@every_dtype
def test_neither_reruns_nor_threads_nor_batches_show(dtype):
    """Batches of 16, 32 and 40, whole blocks and parts, any order of replicas, one thread, two or three."""
    full = carried(dtype, start(dtype, 40))
    assert same(bytes_of(full), bytes_of(carried(dtype, start(dtype, 40))))
    for threads in (2, 3):
        assert same(bytes_of(full), bytes_of(carried(dtype, start(dtype, 40), threads=threads)))
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for index in (torch.arange(16), torch.arange(32), torch.tensor([17]), shuffled):
        part = carried(dtype, start(dtype, 40).take(index))
        assert same(bytes_of(full, index), bytes_of(part))


@every_dtype
@pytest.mark.parametrize("cut", [77, 70])
def test_two_rollouts_are_one(dtype, cut):
    """77 + 123 rows and 70 + 130 of 200, with a control held over the first cut."""
    times = [0.001 * k for k in range(201)]
    whole = carried(dtype, start(dtype), times)
    a = carried(dtype, start(dtype), times[: cut + 1])
    b = carried(dtype, a.final, times[cut:], first=cut, memory=a.memory)
    for block in ("x", "v", "energy"):
        parts = torch.cat([getattr(a, block), getattr(b, block)[1:]])
        assert torch.equal(parts, getattr(whole, block))
    assert torch.equal(torch.cat([a.z, b.z]), whole.z)
    assert torch.allclose(a.log_ratio + b.log_ratio, whole.log_ratio, rtol=1e-12)


# ---- laws ----


@every_dtype
@pytest.mark.parametrize("scheme", SCHEMES)
def test_springs_alone_have_the_stationary_law_of_the_scheme(scheme, dtype, stretches):
    """var x, var v, cov(x, v) of 48 000 coordinates after 200 steps with h omega = 0.6, to 4 standard errors.

    False alarm 3 x 6e-5 a case. The law of the other scheme is more than 10 standard errors off.
    """
    n, h, k, mass, kT, friction = 16_000, 0.15, 32.0, 2.0, 1.3, 1.5
    force = openmm.CustomExternalForce("0.5*k*((x-a)^2+(y-a)^2+(z-a)^2)")
    force.addGlobalParameter("k", k)
    force.addGlobalParameter("a", 0.25)
    force.addParticle(0, [])
    field = NativeEnergy.from_openmm(builders.system(force, atoms=1), dtype, "lanes")
    dyn = Underdamped(field, torch.full((1, 1), mass, dtype=torch.float64), kT, friction)
    at = Particles.at(torch.full((n, 1, 3), 0.25, dtype=dtype), torch.zeros(n, 1, 3, dtype=dtype))
    path = rollout(dyn, SCHEMES[scheme], at, [h * i for i in range(201)], noise=NOISE, save="last")
    assert stretches == [range(200)]
    s = torch.stack([path.x[-1].double().flatten() - 0.25, path.v[-1].double().flatten()])
    second = s @ s.T / s.shape[1]
    setting = {"stiffness": k, "mass": mass, "kT": kT, "friction": friction, "h": h, "steps": 1, "x0": 0.0}

    def score(name):
        cov = oscillator(**setting, scheme=name).stationary()[1]
        d = torch.diagonal(cov)
        return ((second - cov) / ((torch.outer(d, d) + cov**2) / s.shape[1]).sqrt()).abs().max()

    (other,) = SCHEMES.keys() - {scheme}
    assert score(scheme) < 4.0 and score(other) > 10.0


@pytest.mark.parametrize("integrator", SCHEMES.values(), ids=SCHEMES)
def test_residuals_are_the_noise(integrator):
    """The density of a native path: z solved from its frames is the recorded z, of mean square 1.00 +- 4 errors for
    heavy atoms (21 000 numbers, 4 %) and for hydrogens (25 200): false alarm 1.3e-4 in all."""
    dyn = langevin(energy(torch.float64))
    path = rollout(dyn, integrator, start(torch.float64), TIMES, noise=NOISE)
    z, gaps = residuals(path, dyn, integrator)
    assert (z - path.z).abs().max() < 1e-7 and gaps.max() < 1e-12
    light = torch.ones(22, dtype=torch.bool)
    light[system().heavy] = False
    for part in (z[:, :, light], z[:, :, ~light]):
        assert abs(float((part**2).mean()) - 1.0) < 4.0 * (2.0 / part.numel()) ** 0.5


def test_without_friction_no_noise_enters():
    """gamma = 0: LangevinMiddle is leapfrog, and any two streams give the same path; the loop agrees."""
    field = energy(torch.float64)
    calm = [Underdamped(f, system().masses[:, None], system().kT, 0.0) for f in (field, field, Plain(field))]
    at = start(torch.float64)
    a, b, loop = (
        rollout(dyn, LangevinMiddle(), at, TIMES, noise=Noise(s)) for dyn, s in zip(calm, (1, 2, 3), strict=True)
    )
    assert torch.equal(a.x, b.x) and torch.equal(a.v, b.v)
    assert (a.x - loop.x).abs().max() < 1e-12
