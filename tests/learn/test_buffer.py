"""The ring: first in first out, nothing that is not finite, and a checkpoint that continues it."""

import pytest
import torch

from molsamp.learn.buffer import Ring


def batch(first: int, n: int) -> dict[str, torch.Tensor]:
    """n items, numbered from `first` in both of their tensors."""
    name = torch.arange(first, first + n, dtype=torch.float32)
    return {"name": name, "path": name[:, None, None].expand(n, 2, 3).clone()}


def names(ring: Ring) -> list[int]:
    """What the ring holds, in order of its slots; both tensors of an item must agree."""
    held = ring.take(torch.arange(len(ring)))
    assert torch.equal(held["path"], held["name"][:, None, None].expand_as(held["path"]))
    return held["name"].int().tolist()


def test_the_newest_replace_the_oldest():
    ring = Ring(5)
    assert len(ring) == 0
    ring.push(batch(0, 3))
    assert names(ring) == [0, 1, 2]
    ring.push(batch(3, 4))
    assert names(ring) == [5, 6, 2, 3, 4]
    ring.push(batch(7, 1))
    assert names(ring) == [5, 6, 7, 3, 4]


@pytest.mark.parametrize("held", [0, 2])
def test_of_a_batch_larger_than_the_ring_the_last_stay(held):
    ring = Ring(4)
    ring.push(batch(100, held))
    ring.push(batch(0, 11))
    assert sorted(names(ring)) == [7, 8, 9, 10]
    ring.push(batch(11, 1))
    assert sorted(names(ring)) == [8, 9, 10, 11]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_dropped_and_counted(bad):
    ring, items = Ring(8), batch(0, 5)
    items["path"][1, 1, 2] = bad
    items["name"][3] = bad
    assert ring.push(items) == 2
    assert names(ring) == [0, 2, 4]
    assert ring.push({k: torch.full_like(b, bad) for k, b in batch(5, 2).items()}) == 2
    assert names(ring) == [0, 2, 4]


def test_a_reloaded_ring_goes_on_like_the_old_one():
    old, new = Ring(5), Ring(5)
    old.push(batch(0, 7))
    saved = {k: b.clone() for k, b in old.state().items()}
    new.load(saved)
    for ring in (old, new):
        ring.push(batch(7, 2))
    assert names(old) == names(new)
    saved["items.name"].zero_()
    assert names(old) == names(new), "the ring shares memory with the checkpoint"


def test_an_empty_ring_has_a_checkpoint_too():
    ring = Ring(5)
    ring.load(Ring(5).state())
    assert len(ring) == 0 and ring.push(batch(0, 2)) == 0 and names(ring) == [0, 1]
