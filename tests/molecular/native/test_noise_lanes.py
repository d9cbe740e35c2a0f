"""The noise of the lanes is that of `engine.noise`: seen through the z that a native rollout records."""

import sys

import openmm
import pytest
import torch

from molsamp.engine import LangevinMiddle, Noise, Particles, Underdamped, rollout
from molsamp.molecular import NativeEnergy

ERROR = {
    torch.float32: 2e-6,
    torch.float64: 4e-15,
}  # |z| < 6.8; a few units in the last place
every_dtype = pytest.mark.parametrize("dtype", ERROR, ids=["float32", "float64"])


@pytest.fixture(autouse=True)
def no_loop(monkeypatch):
    """Only native code may draw here."""
    monkeypatch.setattr(sys.modules["molsamp.engine.rollout"], "_loop", None)


def drawn(noise, dtype, ids, atoms=5, rows=40, first=0):
    """z (rows, n, atoms, 3) of free particles stepped natively."""
    system = openmm.System()
    for _ in range(atoms):
        system.addParticle(1.0)
    field = NativeEnergy.from_openmm(system, dtype, "lanes", threads=1)
    dyn = Underdamped(field, torch.ones(atoms, 1, dtype=torch.float64), 1.0, 1.0)
    at = torch.zeros(len(ids), atoms, 3, dtype=dtype)
    times = [0.01 * k for k in range(rows + 1)]
    return rollout(dyn, LangevinMiddle(), Particles.at(at, at, ids), times, noise=noise, first=first).z


@every_dtype
@pytest.mark.parametrize("first", [0, (1 << 32) - 20, (1 << 46) - 40], ids=["0", "2^32", "2^46"])
@pytest.mark.parametrize("offset", [0, (1 << 32) - 20, (1 << 48) - 50], ids=["0", "2^32", "2^48"])
def test_the_same_stream_at_any_step_and_id(dtype, first, offset):
    """Across the carry of the low word, and up to the last step and id there are."""
    noise, ids = Noise((1 << 63) + 12345), torch.arange(50).flip(0) + offset
    z = drawn(noise, dtype, ids, first=first)
    expected = noise.normal(range(first, first + 40), ids, (5, 3), dtype)
    assert (z - expected).abs().max() < ERROR[dtype]


@every_dtype
@pytest.mark.parametrize("atoms", [1, 2, 3, 4])
def test_a_last_group_that_is_not_full(dtype, atoms):
    """3, 6, 9 and 12 components: remainders of both group sizes, 4 (float32) and 2 (float64)."""
    noise, ids = Noise(4).child("x"), torch.arange(3)
    z = drawn(noise, dtype, ids, atoms)
    assert (z - noise.normal(range(40), ids, (atoms, 3), dtype)).abs().max() < ERROR[dtype]


@every_dtype
def test_a_million_normals_are_those_of_the_engine(dtype):
    """The worst of 1.2 million, tails included (|z| up to 5), and their relative error where |z| > 1e-3."""
    noise, ids = Noise(7), torch.arange(2000)
    z = drawn(noise, dtype, ids, atoms=5)
    expected = noise.normal(range(40), ids, (5, 3), dtype)
    assert expected.abs().max() > 4.5 and (z - expected).abs().max() < ERROR[dtype]
    assert abs(float(z.double().mean())) < 4e-3 and abs(float((z.double() ** 2).mean()) - 1.0) < 6e-3


@every_dtype
def test_another_key_is_another_stream(dtype):
    """What a wrong word would look like: seed, step or id off by one."""
    ids = torch.arange(16)
    z = drawn(Noise(7), dtype, ids, rows=4)
    for other in (Noise(8).normal(range(4), ids, (5, 3)), Noise(7).normal(range(1, 5), ids, (5, 3)),
                  Noise(7).normal(range(4), ids + 1, (5, 3))):  # fmt: skip
        assert (z - other).abs().mean() > 0.5
