"""Philox against its published vectors, the keying law, and the statistics of the streams."""

import math

import pytest
import torch

from molsamp.engine.noise import Noise, Tape, _open_interval, philox

IDS = torch.arange(64)


def words(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter, key, answer):
    k0, k1 = words(key)
    got = philox([torch.tensor([w]) for w in words(counter)], (k0, k1))
    assert [int(w) for w in got] == words(answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5, 3), (22, 3)])
def test_a_draw_depends_on_its_key_alone(shape, dtype):
    """Any batch, order of ids, single steps or many, and any cut through the generator's own chunks."""
    noise = Noise(3)
    full = noise.normal(range(4, 9), IDS, shape, dtype)
    for part in (IDS[:1], IDS[7:24], IDS.flip(0), IDS[[5, 5, 60]]):
        assert torch.equal(Noise(3).normal(range(4, 9), part, shape, dtype), full[:, part])
        assert torch.equal(noise.normal(6, part, shape, dtype), full[2, part])
    assert full.dtype == dtype and full.shape == (5, 64, *shape)


def test_a_draw_longer_than_a_chunk_equals_its_pieces():
    noise, ids = Noise(8), torch.arange(500)
    full = noise.normal(range(100), ids, (3,))  # 100 000 counters, several chunks
    pieces = [noise.normal(range(k, k + 7), ids[a:], (3,)) for k, a in ((0, 0), (50, 333), (93, 499))]
    for (k, a), piece in zip(((0, 0), (50, 333), (93, 499)), pieces, strict=True):
        assert torch.equal(piece, full[k : k + 7, a:])


def test_seeds_children_and_kinds_are_different_streams():
    root = Noise(1)
    streams = [root, Noise(2), Noise(1 + (1 << 32)), root.child("a"), root.child("b"), root.child("a").child("b")]
    streams += [root.child("b").child("a"), Noise(2).child("a")]
    draws = [s.normal(0, IDS, (4,)) for s in streams]
    for i, a in enumerate(draws):
        assert all(not torch.isclose(a, b, rtol=0, atol=1e-9).any() for b in draws[:i])
    assert torch.equal(root.child("a").normal(0, IDS, (4,)), draws[3])
    assert not torch.equal(root.uniform(0, IDS), root.integers(0, IDS, (), 1 << 31) / (1 << 31))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_high_steps_and_ids_are_new_keys(dtype):
    noise, key = Noise(0), [3, 3 + (1 << 32), 3 + (1 << 33), 3 + (1 << 45)]
    by_step = [noise.normal(s, IDS, (2,), dtype) for s in key]
    by_id = [noise.normal(3, torch.tensor([i]), (2,), dtype) for i in [*key, 3 + (1 << 47)]]
    for draws in (by_step, by_id):
        for i, a in enumerate(draws):
            assert all(not torch.isclose(a, b, rtol=0, atol=1e-6).any() for b in draws[:i])


@pytest.mark.parametrize("call", [lambda: Noise(-1), lambda: Noise(1 << 64), lambda: Noise(0).normal(-1, IDS, ())])
def test_keys_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="not in"):
        call()


@pytest.mark.parametrize("step", [0, 1 << 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_have_their_moments(dtype, step):
    """Raw moments 1 to 6 of 480 000 normals within 4.5 standard errors: false alarm 6 x 7e-6 per case."""
    z = Noise(11).normal(range(step, step + 40), torch.arange(4000), (3,), dtype).double().flatten()
    for p, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96), (0, 945), (15, 10170)], start=1):
        error = math.sqrt(variance / len(z))
        assert abs(float((z**p).mean()) - expected) < 4.5 * error, p
    assert z.abs().max() < 6.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_in_step_id_and_component_are_uncorrelated(dtype):
    """Correlations of z and of z^2 at lags 1 to 4 along each axis, 24 numbers within 4.5 standard errors.

    A lag product of independent z has variance 1, of independent (z^2 - 1) variance 4: false alarm 24 x 7e-6.
    """
    z = Noise(12).normal(range(60), torch.arange(60), (60,), dtype).double()
    for series, variance in ((z, 1.0), (z**2 - 1.0, 4.0)):
        for axis in range(3):
            for lag in range(1, 5):
                n = z.shape[axis] - lag
                product = series.narrow(axis, 0, n) * series.narrow(axis, lag, n)
                assert abs(float(product.mean())) < 4.5 * math.sqrt(variance / product.numel()), (axis, lag)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_and_integers_fill_their_range_evenly(dtype):
    """Chi-square over 64 cells (63 degrees of freedom) of 200 000 draws below 120: false alarm 2e-5 each."""
    noise, ids = Noise(13), torch.arange(20000)
    u = noise.uniform(range(10), ids, (), dtype)
    assert float(u.min()) > 0.0 and float(u.max()) < 1.0
    for cells in ((u * 64).long(), noise.integers(range(10), ids, (), 64)):
        counts = torch.bincount(cells.flatten(), minlength=64).double()
        expected = cells.numel() / 64
        assert len(counts) == 64 and float(((counts - expected) ** 2 / expected).sum()) < 120.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
def test_the_open_interval_is_open(word, dtype):
    """The extreme words do not reach 0 or 1, where the logarithm of Box and Muller would fail."""
    for u in _open_interval([torch.tensor([word])] * 4, dtype):
        assert 0.0 < float(u) < 1.0


def test_integers_reach_both_ends_and_no_further():
    draws = Noise(5).integers(range(50), IDS, (), 3)
    assert set(draws.flatten().tolist()) == {0, 1, 2}


def test_a_tape_replays_what_a_noise_drew():
    z = Noise(2).normal(range(6), IDS, (3,))
    tape = Tape(z[2:], first=2)
    assert torch.equal(tape.normal(4, IDS, (3,)), z[4])
    assert torch.equal(tape.normal(range(3, 6), IDS, (3,)), z[3:])
