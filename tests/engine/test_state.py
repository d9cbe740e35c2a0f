"""Particles and their one checkpoint form."""

import pytest
import torch

from molsamp.engine import Particles, Status

X = torch.arange(24.0).view(4, 2, 3)


def test_fresh_particles_are_ok_weightless_and_numbered():
    p = Particles.at(X)
    assert p.v is None and len(p) == 4
    assert p.logw.dtype == torch.float64 and not p.logw.any()
    assert (p.status == Status.OK).all() and p.status.dtype == torch.int8
    assert p.ids.tolist() == [0, 1, 2, 3]
    assert Particles.at(X, ids=torch.tensor([9, 8, 7, 6])).ids.tolist() == [9, 8, 7, 6]


@pytest.mark.parametrize("v", [None, -X])
def test_tensors_there_and_back(v):
    p = Particles.at(X, v).evolve(logw=torch.arange(4).double())
    tensors = p.to_tensors()
    assert set(tensors) == {"x", "logw", "status", "ids"} | (set() if v is None else {"v"})
    q = Particles.from_tensors(tensors)
    assert torch.equal(q.x, p.x) and torch.equal(q.logw, p.logw) and (q.v is None) == (v is None)


def test_take_selects_every_block_and_clones_keep_their_ids():
    p = Particles.at(X, -X).take(torch.tensor([2, 2, 0]))
    assert torch.equal(p.x, X[[2, 2, 0]]) and p.v is not None and torch.equal(p.v, -p.x)
    assert p.ids.tolist() == [2, 2, 0] and len(p.logw) == len(p.status) == 3


def test_a_particle_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Particles.at(X).x = X
