"""`molsamp steer` against quadrature: walkers in a double well, whose law is carried over a grid row by row."""

import math
from dataclasses import replace

import pytest
import torch

from molsamp.engine import Noise
from molsamp.learn.drive import Abandoned
from molsamp.molecular.potentials import DoubleWell
from molsamp.molecular.steering import make
from molsamp.molecular.steering.analysis import Analysis
from molsamp.molecular.steering.job import FeynmanKac, aim
from molsamp.molecular.steering.populations import joined
from molsamp.molecular.steering.settings import FKSettings
from molsamp.molecular.steering.tables import genealogy
from molsamp.molecular.system import bundled, load

F64 = torch.float64
kT, STEP, ROWS = 0.45, 0.02, 60
REWARD = ("x=0.2+-0.4", "y=0.7+-0.4")
SIZE = {"particles": 128, "replicas": 16, "every": "0.12"}
T = 2.131  # Student's t of 16 replicas at 97.5 %


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The double well at a temperature where its barrier is 2.4 kT, in 60 rows."""
    file = tmp_path_factory.mktemp("warm") / "system.toml"
    own = (bundled() / "double-well" / "system.toml").read_text().replace("kT = 0.1034", f"kT = {kT}")
    file.write_text(own.replace("timestep = 0.01", f"timestep = {STEP}").replace("steps = 1000", f"steps = {ROWS}"))
    return load(file)


@pytest.fixture(scope="module")
def truth(warm):
    """(log Z, mean x, mean y of the tilted law, mean x of the free one) by the trapezoidal rule on 97 x 97 nodes.

    A row is a Gaussian about x + h F(x), so p' = A^T p B with one factor a coordinate, to 1e-8; the first row starts
    from a point.
    """
    at = torch.linspace(-2.7, 2.7, 97, dtype=F64)
    dx, spread = float(at[1] - at[0]), math.sqrt(2.0 * kT * STEP)

    def kernel(centre):
        return torch.exp(-0.5 * ((at - centre[..., None]) / spread) ** 2) / (spread * math.sqrt(2.0 * math.pi))

    points = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(-1, 2)
    well = DoubleWell()
    drift = points + STEP * well.energy_force(points)[1]
    A, B = kernel(drift[:, 0]) * dx, kernel(drift[:, 1]) * dx
    start = warm.states["left"].x[None]
    first = (start + STEP * well.energy_force(start)[1])[0]
    p = kernel(first[0])[:, None] * kernel(first[1])[None]
    for _ in range(ROWS - 1):
        p = A.T @ (p.reshape(-1, 1) * B)
    x, y = points.view(97, 97, 2).unbind(-1)
    assert float(p.sum()) * dx**2 == pytest.approx(1.0, abs=1e-6)
    p = p / p.sum()
    w = p * torch.exp(-0.5 * ((x - 0.2) / 0.4) ** 2 - 0.5 * ((y - 0.7) / 0.4) ** 2)
    return math.log(w.sum()), float((w * x).sum() / w.sum()), float((w * y).sum() / w.sum()), float((p * x).sum())


def run(system, strength=1.0, seed=0, **options):
    job = make(system, "fk", FKSettings(**{**SIZE, **options}), reward=REWARD, strength=strength, seed=seed)
    job.fit()
    return Analysis(job)


def deviations(analysis, truth):
    """(estimate - truth) of log Z and both means in standard errors, of which half of a 95 % interval has T."""
    results = analysis.summary()["results"]
    found = []
    for name, value in zip(("log_z", "mean:x", "mean:y"), truth, strict=False):
        e = results[name]
        found.append(T * (e["value"] - value) / (0.5 * (e["interval"][1] - e["interval"][0])))
    return found


@pytest.mark.parametrize(
    "options", [{"potential": "difference"}, {"memory": 0.3}, {"potential": "max"}, {"potential": "sum"}], ids=str
)
def test_log_z_and_means_are_those_of_quadrature(warm, truth, options):
    """Within 3 standard errors: Student's t with 15 degrees alarms with 0.9 % each, 10 % over the twelve; seed 0."""
    analysis = run(warm, **options)
    assert all(abs(d) < 3.0 for d in deviations(analysis, truth)), deviations(analysis, truth)
    results, null = (analysis.summary()[k] for k in ("results", "null"))
    half = results["log_z"]["interval"][1] - results["log_z"]["value"]
    assert half < 0.25
    free = null["mean:x"]
    assert abs(free["value"] - truth[3]) < 3.0 / T * (free["interval"][1] - free["value"])
    assert results["dF:free->tilted"]["value"] == pytest.approx(-kT * results["log_z"]["value"])


@pytest.mark.parametrize("strength", [0.8, 1.2])
def test_a_strength_that_is_off_by_a_fifth_is_seen(warm, truth, strength):
    """The same comparison fails: log Z and both means are off by more than three standard errors at this seed."""
    assert all(abs(d) > 3.0 for d in deviations(run(warm, strength=strength), truth))


def test_weighing_at_the_end_alone_costs_walkers(warm, truth):
    """The control's log Z is right too (3 standard errors, alarm 0.9 %), with fewer effective walkers a replica."""
    analysis = run(warm)
    results, null = (analysis.summary()[k] for k in ("results", "null"))
    e = null["log_z"]
    assert abs(e["value"] - truth[0]) < 3.0 / T * (e["interval"][1] - e["value"])
    assert results["ess_population"]["value"] > 2.0 * null["ess_population"]["value"]


def test_an_interrupted_job_goes_on_to_the_same_bytes(warm):
    """A checkpoint in the middle, loaded into a new job, leads to the same tensors."""
    settings = FKSettings(particles=8, replicas=4)
    whole, half, rest = (make(warm, "fk", settings, reward=REWARD, seed=3) for _ in range(3))
    whole.fit()
    half.advance(), half.advance()
    rest.load(half.state())
    rest.fit()
    a, b = whole.state(), rest.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert whole.evaluations == 4 * 2 * 8 * ROWS


def test_a_replica_is_given_up_at_a_boundary(warm):
    """Asked to stop, the job is as it was before the unit, and then goes on as if nothing had been."""
    settings = FKSettings(particles=8, replicas=2)
    whole, stopped = (make(warm, "fk", settings, reward=REWARD, seed=3) for _ in range(2))
    whole.fit()
    stopped.advance()
    answers = iter([*[False] * 25, True])
    stopped.asked_to_stop = lambda: next(answers)
    with pytest.raises(Abandoned):
        stopped.advance()
    assert stopped.k == len(stopped.steered) == len(stopped.free) == 1
    stopped.asked_to_stop = lambda: False
    stopped.fit()
    a, b = whole.state(), stopped.state()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_lines_of_descent_go_from_start_to_end(warm):
    """Steps of the genealogy join: children of one boundary are the parents of the next; the last are all alive."""
    job = make(warm, "fk", FKSettings(particles=16, replicas=2), reward=REWARD, seed=0).fit()
    p, times = job.steered[0], job.boundaries
    _, rows = genealogy(p, times)
    assert len(rows) == 16 * (len(times) - 1) and [r[6] for r in rows[-16:]] == [1] * 16
    alive = [{r[3] for r in rows if r[1] == t and r[6]} for t in times[1:]]
    parents = [{r[2] for r in rows if r[1] == t and r[6]} for t in times[1:]]
    assert parents[1:] == alive[:-1]
    assert {int(a) for a in joined(job.steered).starts()[0]} == parents[0]
    for t0, _, parent, _, s0, *_ in rows:
        assert s0 == float(p.s[times.index(t0), parent, 0])


def test_a_search_is_called_so():
    """Few walkers over a barrier of 12 kT, one replica of three across: both are said. The narrow interval of the free
    walkers' log Z, none of which has crossed, is not held against the steered ones.
    """
    job = make(load("double-well"), "fk", FKSettings(particles=32, replicas=3), reward=("x=1.0+-0.3",), seed=3).fit()
    search, few = Analysis(job).warnings()
    assert "this is a search" in search and few.startswith("Few replicas carry the weight (1.0 of 3")


def test_too_many_that_diverge_end_the_run(warm):
    """At forty times the timestep the quartic throws walkers out of the plane."""
    settings = warm.settings.model_copy(update={"timestep": 0.8})
    job = FeynmanKac(aim(replace(warm, settings=settings), REWARD, 1.0), noise=Noise(0))
    with pytest.raises(RuntimeError, match="diverged"):
        job.fit()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 5.0}, "every: got 5, which is beyond the length of 1.2"),
        ({"every": 0.001}, "every: got 0.001"),
        ({"memory": 0.1, "potential": "max"}, "memory: goes with potential = difference, got max"),
        ({"length": 0.001}, "length: got 0.001"),
    ],
)
def test_times_that_cannot_be(warm, settings, message):
    with pytest.raises(ValueError, match=message):
        make(warm, "fk", FKSettings(**settings), reward=REWARD, seed=0)
