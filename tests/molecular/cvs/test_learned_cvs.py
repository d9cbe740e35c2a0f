"""TICA against deeptime, Deep-TDA against its targets, and both through a file and back."""

import json
import math

import numpy as np
import pytest
import torch

from molsamp.engine.noise import Noise
from molsamp.molecular.cvs import Coordinate, Distances, Stack, Torsion
from molsamp.molecular.cvs.learned import TICA, DeepTDA, embedded

PLANE = Stack([Coordinate(0, "x"), Coordinate(1, "y")])


def walks(lengths=(400, 300), atoms=5, seed=0):
    """Trajectories of atoms whose distances decorrelate at different rates."""
    trajectories = []
    for k, length in enumerate(lengths):
        z = Noise(seed + k).normal(range(length), torch.arange(1), (atoms, 3))[:, 0]
        keep = torch.linspace(0.5, 0.98, atoms, dtype=torch.float64)[:, None]
        x = [z[0]]
        for step in z[1:]:
            x.append(keep * x[-1] + (1 - keep**2).sqrt() * step)
        trajectories.append(torch.stack(x))
    return trajectories


@pytest.fixture(scope="module")
def tica():
    return TICA.fit(Distances.between(range(5)), walks(), lag=3, dim=2)


def test_tica_is_deeptimes(tica):
    from deeptime.decomposition import TICA as Theirs

    data = [tica.features(x).numpy() for x in walks()]
    theirs = Theirs(lagtime=3, dim=2).fit(data).fetch_model()
    x = walks(seed=7)[0]
    ours = tica(x).numpy()
    assert tica.names == ("tica.1", "tica.2") and ours.std() > 0.1
    assert np.abs(ours - theirs.transform(tica.features(x).numpy())).max() < 1e-6


def test_tica_finds_the_slow_direction():
    """Of a slow and a fast Ornstein-Uhlenbeck process, mixed, the first component is the slow one."""
    z = Noise(3).normal(range(4000), torch.arange(1), (2,))[:, 0]
    decay = torch.tensor([0.99, 0.3], dtype=torch.float64)
    y = [z[0]]
    for step in z[1:]:
        y.append(decay * y[-1] + (1 - decay**2).sqrt() * step)
    y = torch.stack(y)
    mixed = y @ torch.tensor([[1.0, 0.7], [0.5, -2.0]], dtype=torch.float64)
    cv = TICA.fit(PLANE, [mixed], lag=5)
    assert abs(np.corrcoef(cv(mixed)[:, 0], y[:, 0])[0, 1]) > 0.99


def test_tica_survives_its_file_with_the_same_bytes(tica, tmp_path):
    tica.save(tmp_path / "a.safetensors")
    again = TICA.load(tmp_path / "a.safetensors", tica.features)
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    x = walks(seed=7)[0]
    assert torch.equal(again(x), tica(x)) and again.names == tica.names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_periodic_features_enter_without_a_jump():
    phi = Stack([Torsion((0, 1, 2, 3), "phi"), Distances([(0, 3)])])
    turn = torch.tensor([math.pi - 1e-9, -math.pi + 1e-9], dtype=torch.float64)
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 2], x[:, 3, 2], x[:, 3, 0], x[:, 3, 1] = 1, 1, 1, turn.cos(), turn.sin()
    f = embedded(phi, x)
    assert f.shape == (2, 3) and torch.allclose(f[0], f[1], atol=1e-8)
    assert torch.allclose(f[0, 1:], torch.tensor([-1.0, 0]).double(), atol=1e-8)


def two_states(n=400, seed=1):
    z = Noise(seed).normal(0, torch.arange(2 * n), (2,))
    left, right = torch.tensor([-1.0, 0.3]), torch.tensor([1.2, -0.2])
    spread = torch.tensor([0.25, 0.5])
    return [left + spread * z[:n], right + spread * z[n:]]


@pytest.fixture(scope="module")
def deep():
    return DeepTDA.fit(PLANE, two_states(), [[-7], [7]], [[1], [1]], noise=Noise(4), steps=500)


def test_deep_tda_puts_each_state_where_it_was_asked(deep):
    for seed in (1, 2):  # the frames it was trained on, and others
        for frames, centre in zip(two_states(seed=seed), (-7, 7), strict=True):
            s = deep(frames)
            assert abs(s.mean().item() - centre) < 0.3
            assert abs(s.std().item() - 1) < 0.2


def test_deep_tda_is_the_same_for_the_same_seed_and_survives_its_file(tmp_path):
    def train(seed):
        return DeepTDA.fit(PLANE, two_states(), [[-7], [7]], [[1], [1]], noise=Noise(seed), hidden=(8,), steps=5)

    a, b, c = train(4), train(4), train(5)
    a.save(tmp_path / "a"), b.save(tmp_path / "b"), c.save(tmp_path / "c")
    again = DeepTDA.load(tmp_path / "a", PLANE)
    again.save(tmp_path / "again")
    read = {name: (tmp_path / name).read_bytes() for name in ("a", "b", "c", "again")}
    assert read["a"] == read["b"] == read["again"] != read["c"]
    x = two_states()[0]
    assert torch.equal(again(x), a(x)) and again.names == ("deep_tda",)


def test_deep_tda_is_differentiable_in_both_precisions(deep):
    x, dx = two_states(4)[0], two_states(4, seed=9)[0]
    s, ds = deep.jvp(x, dx)
    torch.testing.assert_close(ds, (deep(x + 1e-6 * dx) - deep(x - 1e-6 * dx)) / 2e-6, rtol=1e-6, atol=1e-6)
    assert ds.abs().max() > 0.1 and s.dtype == torch.float64
    assert deep(x.float()).dtype == torch.float32
    torch.testing.assert_close(deep(x.float()).double(), s, rtol=1e-4, atol=1e-3)


def test_several_components_have_several_centres():
    three = [*two_states(200), torch.tensor([1.0, 4.0]) + two_states(200, seed=3)[0]]
    cv = DeepTDA.fit(PLANE, three, [[-3, 0], [3, 0], [0, 3]], [[1, 1]] * 3, noise=Noise(1), steps=600)
    assert cv.names == ("deep_tda.1", "deep_tda.2")
    means = torch.stack([cv(x).mean(0) for x in three])
    assert torch.allclose(means, torch.tensor([[-3.0, 0], [3, 0], [0, 3]]).double(), atol=0.5)
    assert all(abs(width - 1) < 0.1 for x in three for width in cv(x).std(0).tolist())


def test_errors(tica, deep, tmp_path):
    x = walks((20,))
    with pytest.raises(
        ValueError, match="TICA: got lag 20 and a shortest trajectory of 20 frames; allowed is 1 <= lag"
    ):
        TICA.fit(Distances([(0, 1)]), x, lag=20)
    with pytest.raises(ValueError, match="TICA: got dim 2; allowed are 1 to 1, the rank"):
        TICA.fit(Distances([(0, 1)]), x, lag=1, dim=2)
    x[0][3] = torch.nan
    with pytest.raises(ValueError, match=r"features \('d.0-1',\): frame 3 \(0-based\) is not finite"):
        TICA.fit(Distances([(0, 1)]), x, lag=1)
    with pytest.raises(ValueError, match=r"got 2 states of \[400, 400\] frames, 1 centres and 2 widths"):
        DeepTDA.fit(PLANE, two_states(), [[-7]], [[1], [1]], noise=Noise(0))
    with pytest.raises(ValueError, match="one number per component, widths > 0"):
        DeepTDA.fit(PLANE, two_states(), [[-7], [7]], [[1], [0]], noise=Noise(0))
    file = tmp_path / "cv"
    tica.save(file)
    with pytest.raises(ValueError, match=r"was fitted to other features: got \['d.1-0'\]; allowed is \['d.0-1', "):
        TICA.load(file, Distances([(1, 0)]))
    with pytest.raises(ValueError, match="holds a TICA; allowed is DeepTDA"):
        DeepTDA.load(file, tica.features)
    with pytest.raises(ValueError, match="nowhere: cannot be read"):
        TICA.load(tmp_path / "nowhere", tica.features)
    file.write_text(json.dumps({"no": "tensors"}))
    with pytest.raises(ValueError, match="is no TICA file"):
        TICA.load(file, tica.features)
