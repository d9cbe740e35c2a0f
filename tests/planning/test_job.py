"""Planning as resumable work: the same tree however it was interrupted, and every way in which it ends."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.learn.drive import drive
from molsamp.planning.job import Growing
from molsamp.planning.planners import Planner
from molsamp.planning.problems import Problem, between, problem
from molsamp.planning.settings import PLANNERS
from molsamp.planning.vehicles import Car
from molsamp.planning.worlds import World

CLOSED = World.parse("#########\n#....#..#\n#....#..#\n#########")


def growing(name: str, p: Problem | None = None, *, time_limit: float = 60.0, steps: int | None = 30_000) -> Growing:
    p = problem("u-maze", Car(C2=4.0), 1) if p is None else p
    return Growing(Planner(p, PLANNERS[name], Noise(3)), time_limit, steps)


def same(a: dict, b: dict) -> bool:
    """Two states, but for the CPU seconds."""
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a if k != "seconds")


@pytest.mark.parametrize("name", ["rrt", "sst"])
def test_interrupted_after_every_batch_it_grows_the_same_tree_and_plan(name):
    whole = growing(name)
    drive(whole)
    state = growing(name).state()
    for k in range(whole.total):
        part = growing(name)
        part.load(state)
        assert part.k == k < part.total
        part.advance()
        state = part.state()
    assert part.k == part.total == whole.k > 3
    assert same(state, whole.state()) and part.nearest == whole.nearest
    mine, theirs = whole.result.plan, part.result.plan
    assert mine is not None and theirs is not None and torch.equal(mine.controls, theirs.controls)


def test_it_ends_where_the_planner_alone_would():
    """A plan, and a limit of steps: the same batches as `Planner.run`."""
    for name, steps in (("rrt", None), ("sst", 20_000)):
        job = growing(name, steps=steps)
        drive(job)
        alone = growing(name).planner
        result = alone.run(60.0, steps)
        assert job.result.counts == result.counts and job.result.solved == result.solved
        assert same(job.state(), {"k": torch.tensor(result.counts.batches), **alone.to_tensors()})


def test_a_limit_of_cpu_seconds_ends_it_too():
    job = growing("sst", time_limit=0.05, steps=None)
    drive(job)
    assert job.k == job.total > 0 and job.planner.cpu_seconds >= 0.05
    assert job.result.diagnosis == "" or "0.05 CPU seconds:" in job.result.diagnosis


def test_a_goal_behind_walls_is_not_worked_for():
    job = growing("rrt", between(CLOSED, Car(), (1, 1), (1, 7)))
    drive(job)
    assert job.total == job.k == 0 and job.result.diagnosis.startswith("unreachable")


def test_the_metrics_tell_how_far_it_got():
    job = growing("sst")
    told = [job.advance() for _ in range(8)]
    gap = (job.planner.tree.x[:, :2] - job.planner.problem.goal).norm(dim=1).min()
    assert told[-1]["nearest"] == pytest.approx(float(gap)) and told[-1]["edges"] == 8 * 64
    assert told[-1]["nodes"] == len(job.planner.tree) and all("cpu" not in m for m in told)
    assert [m["nearest"] for m in told] == sorted((m["nearest"] for m in told), reverse=True)
    assert job.k < job.total  # an estimate from the share of the limits that is used up
    assert abs(job.total - 8 * 30_000 / told[-1]["steps"]) < 2


@pytest.mark.parametrize(("limit", "steps"), [(0.0, None), (-1.0, 5), (1.0, 0)])
def test_limits_must_be_positive(limit, steps):
    with pytest.raises(ValueError, match="must be positive"):
        growing("rrt", time_limit=limit, steps=steps)
