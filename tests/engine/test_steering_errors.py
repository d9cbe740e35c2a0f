"""Populations apart, bad rewards and values, extinction, single ancestors, settings."""

import math
import warnings

import pytest
import torch
from tilted import (
    EVERY,
    SDE,
    TIMES,
    on_a_grid,
    reward,
    run,
    starts,
)

from molsamp.engine import (
    Noise,
)
from molsamp.engine.exponential import DDIM
from molsamp.engine.steering import Collapse, Extinct, steer, unforeseen

F64 = torch.float64


@pytest.fixture(scope="module")
def truth():
    return on_a_grid(TIMES)


def test_populations_stay_apart():
    """Ancestors lie within their population, ids are unique, and lines of descent end where they say."""
    found = run(8, 6, below=2.0)
    block = torch.arange(48) // 8
    assert all(torch.equal(parents // 8, block) for parents in found.ancestors)
    assert len(found.particles.ids.unique()) == 48
    line = found.line()
    for b in range(1, len(line)):
        assert torch.equal(found.ancestors[b - 1][line[b]], line[b - 1])
    assert torch.equal(line[-1], torch.arange(48))
    assert found.effective.shape == (len(found.rows), 6) and bool((found.effective <= 8.0 + 1e-9).all())


def test_equal_weights_come_from_the_final_resampling(truth):
    found = run(256, 8)
    p = found.resampled(Noise(1))
    assert float(p.logw.view(8, -1).std(1).max()) < 1e-12
    assert abs(float(p.x.mean()) - truth[1]) < 0.15


# ---- what goes wrong is said ----


def spoiled(value, at=3):
    def bad(x):
        return torch.where(torch.arange(len(x)) == at, value, reward(x))

    return bad


def raising(x):
    if bool((x[:, 0] > 1.5).any()):
        raise ZeroDivisionError("too far")
    return reward(x)


def anywhere(x):
    raise OSError("no file")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (spoiled(torch.nan), r"reward of particle 3, id \d+, is nan after row 24"),
        (spoiled(torch.inf), r"reward of particle 3, id \d+, is inf after row 24"),
        (lambda x: reward(x)[:, None], r"reward gave shape \(16, 1\) after row 24.*\(16,\)"),
        (lambda x: 1.0, "reward gave float after row 24"),
        (raising, r"raised ZeroDivisionError after row 24.*particle \d+, id \d+: too far"),
        (anywhere, "raised OSError after row 24.*particle 0"),
    ],
)
def test_a_bad_reward_is_named_with_particle_and_row(bad, match):
    with pytest.raises(ValueError, match=match):
        steer(SDE, DDIM(1.0), starts(16), TIMES, bad, noise=Noise(0), value=unforeseen, every=EVERY)


def test_a_bad_value_is_named_at_its_row():
    with pytest.raises(ValueError, match="value of particle 3, id 3, is nan after row 4, t = "):
        run(16, 1, value=lambda t, p: spoiled(torch.nan)(p.x))


def test_extinction_is_an_error():
    """Of the second population nothing survives the boundary after row 8."""

    def value(t, p):
        gone = (torch.arange(16) >= 8) & (t == TIMES[8])
        return torch.where(gone, -torch.inf, 0.0)

    with pytest.raises(Extinct, match=r"row 8, t = .*8 particles of population 1.*particle 8, id 8"):
        run(8, 2, value=value)


def test_what_is_forbidden_stays_out():
    """-inf on the way and at the end: a particle that once weighed nothing never comes back, nothing is NaN."""

    def value(t, p):
        return torch.where(p.x[:, 0] > 0.5, -torch.inf, 0.0) if t == TIMES[20] else unforeseen(t, p)

    for kind in ("difference", "sum"):
        found = steer(
            SDE, DDIM(1.0), starts(64), TIMES, reward, noise=Noise(0), value=value, kind=kind, every=EVERY, below=0.0
        )
        assert not bool(found.particles.logw.isnan().any())
        dead = found.logw[0] == -torch.inf
        assert 0 < int(dead.sum()) < 64 and float(found.particles.x[~dead].max()) < 1.2


def test_a_single_ancestor_is_warned_of():
    """With the ESS, in the warning and in what is returned; populations that keep two ancestors are silent."""

    def value(t, p):
        return torch.where(torch.arange(8) == 5, 30.0, 0.0) if t == TIMES[4] else torch.zeros(len(p))

    with pytest.warns(Collapse, match=r"row 4.*all 8 particles of population 0.*particle 5 alone, ESS 1.00;"):
        found = run(8, 1, value=value)
    assert len(found.warnings) >= 1 and int(found.starts().unique()) == 5
    assert found.log_z()[0].interval == (-math.inf, math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Collapse)
        assert run(512, 1).warnings == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "product"}, "difference"),
        ({"groups": 3}, "16 particles do not make 3"),
        ({"integrator": DDIM()}, "copies"),
    ],
)
def test_bad_settings_are_refused(options, match):
    integrator = options.pop("integrator", DDIM(1.0))
    with pytest.raises(Exception, match=match):
        steer(SDE, integrator, starts(16), TIMES, reward, noise=Noise(0), value=unforeseen, **options)
