"""Rates bound to systems: what A, B and progress are, jobs that go on to the same bytes, one truth by three methods."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from molsamp.engine import Noise
from molsamp.molecular import load
from molsamp.molecular.kinetics import make
from molsamp.molecular.kinetics.analysis import analyse
from molsamp.molecular.kinetics.settings import METHODS
from molsamp.molecular.kinetics.transition import Transition
from molsamp.molecular.system import bundled
from molsamp.schema import validate

SMALL = {
    "we": {"progress": "x", "segment": 0.1, "settle": 4.0, "production": 12.0, "bins": 12, "walkers": 8},
    "ffs": {"progress": "x", "segment": 0.2, "settle": 2.0, "basin": 20.0, "interfaces": 3, "trials": 150},
    "md": {"progress": "x", "segment": 1.0, "settle": 4.0, "production": 30.0, "walkers": 100},
}


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    file = tmp_path_factory.mktemp("hot") / "system.toml"
    own = (bundled() / "double-well" / "system.toml").read_text()
    file.write_text(own.replace("kT = 0.1034", "kT = 0.45"))  # the barrier is 2.4 kT
    return load(file)


def job(system, method, seed=0, **more):
    settings = validate(METHODS[method], {**SMALL[method], **more}, "test")
    return make(system, method, settings, seed=seed)


@pytest.fixture(scope="module")
def done(hot):
    return {method: job(hot, method, seed=3).fit() for method in METHODS}


def test_three_methods_have_one_rate(done):
    """Barrier 2.4 kT: pairs agree within 1.5 times the sum of their half-widths, 3 standard errors and more."""
    found = {method: d.results()["rate"] for method, d in done.items()}
    print({method: str(e) for method, e in found.items()})
    half = {m: 0.5 * math.log(e.interval[1] / e.interval[0]) for m, e in found.items()}
    assert half["we"] < 0.2 and half["ffs"] < 0.5 and half["md"] < 0.2
    for a, b in (("we", "md"), ("ffs", "md"), ("we", "ffs")):
        assert abs(math.log(found[a].value / found[b].value)) < 1.5 * math.hypot(half[a], half[b]), (a, b)
    for d in done.values():
        results = d.results()
        assert results["mfpt"].value * results["rate"].value == pytest.approx(1.0)
        assert d.warnings() == [] and d.evaluations > 0


def test_symmetry(done):
    """The wells are alike: both rates are one, and the committor at x is 1 less that at -x, one half in the middle."""
    results = done["we"].results()
    there, back = results["rate"], results["rate_back"]
    assert max(there.interval[0], back.interval[0]) < min(there.interval[1], back.interval[1])
    assert results["flux"].value == pytest.approx(1 / (1 / there.value + 1 / back.value))
    known = done["we"].committors()
    for s, q in known:
        mirrored = next(p for r, p in known if abs(r + s) < 1e-6)
        half = max(q.interval[1] - q.interval[0], mirrored.interval[1] - mirrored.interval[0])
        assert abs(q.value + mirrored.value - 1.0) < 1.5 * half + 0.01
    middle = next(name for name in results if name.startswith("committor"))
    assert abs(results[middle].value - 0.5) < 0.2


def test_what_one_replica_brought_has_no_upper_bound(hot, done):
    """A rate that rests on a single replica is told as a lower bound, and so is its first-passage time."""
    d = job(hot, "we", seed=3)
    h = done["we"].history()
    one = torch.zeros(h.hits.shape[1], 1, dtype=torch.float64)
    one[2] = 1.0
    d.parts = [replace(h, hits=h.hits * one)]
    results = d.results()
    assert results["rate"].interval == (0.05 * results["rate"].value, math.inf)
    assert results["mfpt"].interval == (0.0, pytest.approx(20.0 * results["mfpt"].value))
    assert [w for w in d.warnings() if "no upper bound" in w]


@pytest.mark.parametrize("method", METHODS)
def test_half_a_run_goes_on_to_the_same_bytes(hot, method):
    short = {"we": {"settle": 1.0, "production": 2.0}, "md": {"settle": 5.0, "production": 10.0, "walkers": 4},
             "ffs": {"settle": 0.4, "basin": 2.0, "trials": 10}}[method]  # fmt: skip
    whole, first = (job(hot, method, **short) for _ in range(2))
    whole.fit()
    for _ in range(3):
        first.advance()
    second = job(hot, method, **short)
    second.load(first.state())
    second.fit()
    a, b = whole.state(), second.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert str(whole.results()) == str(second.results())


def test_summary_and_tables(done, tmp_path):
    for method, d in done.items():
        a = analyse(d)
        summary = a.summary()
        assert {"rate", "mfpt", "flux"} <= set(summary["results"]) and summary["energy_evaluations"] > 0
        a.save(tmp_path / method)
        names = {f.stem for f in (tmp_path / method / "figures").glob("*.csv")}
        assert names == ({"ladder", "committor"} if method == "ffs" else {"flux", "occupancy", "committor"})


def test_recycling_has_one_rate_and_no_committor(hot):
    results = job(hot, "we", recycle=True, settle=2.0, production=8.0).fit().results()
    assert set(results) == {"rate", "mfpt", "flux"}


def test_alanine_goes_from_both_left_basins_to_the_right_one():
    """A: all states of the region of the start. Progress rises towards B, whichever way round the angles."""
    transition = Transition.of(load("alanine-dipeptide"))
    assert transition.a == ("C5", "C7eq") and transition.b == ("C7ax",)
    system = transition.task.system
    x = torch.stack([state.x for state in system.states.values()]).float()
    sight = transition.look(x)
    assert sight.a.tolist() == [True, False, True] and sight.b.tolist() == [False, True, False]
    assert sight.progress[1].abs() < 1e-4 and (sight.progress[[0, 2]] < -2.5).all()
    low, edge, high = transition.climb
    assert low == pytest.approx(float(sight.progress[2])) and (edge, high) == pytest.approx((-0.75, 0.0), abs=1e-4)
    fresh = transition.source(transition.a, Noise(0))(torch.arange(64), 0)
    both = transition.look(fresh.x).a
    assert both.all() and fresh.v.std() > 0


def test_alanine_moves_natively(monkeypatch):
    """The fused walkers of the native tier carry it: the loop over rows is never entered."""
    pytest.importorskip("numba")
    monkeypatch.setattr(sys.modules["molsamp.engine.rollout"], "_loop", None)
    system = load("alanine-dipeptide")
    settings = validate(METHODS["we"], dict(settle=0.05, production=0.05, segment=0.01, replicas=4, walkers=1), "test")
    work = make(system, "we", settings, seed=0)
    work.advance()
    assert work.evaluations > 0 and float(work.e.weight.sum()) == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"progress": "z"}, "no CV 'z'"),
        ({"edges": [0.0, -1.0]}, "edges: must rise"),
        ({"edges": [0.0]}, "edges: must rise"),
        ({"frame": 1e-5}, "less than the timestep"),
    ],
)
def test_wrong_settings(hot, settings, message):
    with pytest.raises(ValueError, match=message):
        job(hot, "we", **settings)


def test_wrong_systems():
    with pytest.raises(ValueError, match="progress: must rise"):
        make(load("mueller-brown"), "we", METHODS["we"](progress="y"), seed=0)
    with pytest.raises(ValueError, match="unknown; allowed are we, ffs, md"):
        make(load("double-well"), "rrt", METHODS["we"](), seed=0)
