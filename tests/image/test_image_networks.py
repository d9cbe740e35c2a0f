"""Networks of pictures: shapes, fresh weights, edits of the U-Net, and what they refuse."""

import pytest
import torch

from molsamp.engine import Noise
from molsamp.image.networks import Classifier, Edit, UNet, make
from molsamp.learn.networks import count
from molsamp.learn.preconditioned import FEATURES

MLP = {"kind": "mlp", "event": [1, 8, 8], "size": 0.7, "classes": 10, "width": 32, "depth": 2}
NET = {"kind": "unet", "event": [3, 8, 8], "size": 0.7, "classes": 10, "widths": [8, 16, 16]}
IDS = torch.arange(5)


def normal(step: int, event) -> torch.Tensor:
    return Noise(1).normal(step, IDS, tuple(event), torch.float32)


def stirred(architecture):
    """A network whose zeros are filled, so that every part of it matters."""
    net = make(architecture, Noise(0))
    for k, p in enumerate(net.parameters()):
        p.data += 0.1 * Noise(2).normal(k, torch.arange(1), tuple(p.shape), torch.float32)[0]
    return net.requires_grad_(False)


@pytest.mark.parametrize("architecture", [MLP, NET], ids=["mlp", "unet"])
def test_fresh_networks_answer_with_the_gaussian_prior(architecture):
    """F starts at 0, so D(x, s) = d^2 / (d^2 + s^2) x; the keys of the weights decide them."""
    net, x, s = make(architecture, Noise(0)), normal(0, architecture["event"]), torch.linspace(0.01, 3.0, 5)
    keep = (0.7**2 / (0.7**2 + s**2)).view(-1, 1, 1, 1)
    assert torch.allclose(net(x, s, IDS), keep * x, rtol=0, atol=1e-6)
    one, same, other = (make(architecture, Noise(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("architecture", [MLP, NET], ids=["mlp", "unet"])
def test_pictures_do_not_see_each_other_and_no_label_is_the_last_class(architecture):
    net, x, s = stirred(architecture), normal(0, architecture["event"]), torch.linspace(0.01, 3.0, 5)
    y = net(x, s, IDS)
    assert y.shape == x.shape
    assert torch.allclose(net(x[2:3], s[2:3], IDS[2:3]), y[2:3], rtol=0, atol=1e-5)
    assert not torch.allclose(net(x, s, IDS + 1), y, rtol=0, atol=1e-3)
    assert torch.equal(net(x, s), net(x, s, torch.full_like(IDS, 10)))


def test_an_edit_that_changes_nothing_is_no_edit():
    net, x, s = stirred(NET), normal(0, NET["event"]), torch.full((5,), 0.5)
    y = net(x, s, IDS)
    assert torch.equal(net(x, s, IDS, Edit((1.0, 1.0), ())), y)
    for edit in (Edit((0.7, 1.0)), Edit((1.0, 0.7)), Edit(without=(0,)), Edit(without=(2,)), Edit(without=(4,))):
        assert not torch.allclose(net(x, s, IDS, edit), y, rtol=0, atol=1e-4), edit


def test_factors_go_from_the_deepest_skip_to_the_shallowest():
    """With the shallowest skip cut off, what the first block adds at full resolution reaches the output pooled only."""
    net, x, s = stirred(NET), normal(0, NET["event"]), torch.full((5,), 0.5)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)  # pools to zero

    def change(edit):
        F, f = net.F, torch.zeros(5, FEATURES)
        before = F(x, s, f, IDS, edit)
        hook = F.down[0].register_forward_hook(lambda block, given, h: h + checker)
        after = F(x, s, f, IDS, edit)
        hook.remove()
        return float((after - before).abs().max())

    assert change(Edit((1.0, 0.0))) < 1e-4 < 1e-2 < change(Edit((0.0, 1.0)))


def test_left_out_blocks_keep_their_shortcut():
    net, x, s = stirred(NET), normal(0, NET["event"]), torch.full((5,), 0.5)
    F, f, kept = net.F, torch.zeros(5, FEATURES), net(x, s, IDS, Edit(without=(1, 2)))
    for block in (F.down[1], F.bottom):
        block.conv1.weight.zero_()
        block.conv1.bias.zero_()
    assert torch.allclose(net(x, s, IDS), kept, rtol=0, atol=1e-6)
    assert (F.skips, F.blocks) == (2, 5) and F(x, s, f).shape == x.shape


def test_edits_and_sizes_that_do_not_fit_are_refused():
    F, x, s, f = make(NET, Noise(0)).F, normal(0, NET["event"]), torch.ones(5), torch.zeros(5, FEATURES)
    with pytest.raises(ValueError, match="skip_scale has 3 factors, the network has 2 skip connections"):
        F(x, s, f, IDS, Edit((1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"blocks to leave out are \[5\], allowed are 0 to 4"):
        F(x, s, f, IDS, Edit(without=(5,)))
    with pytest.raises(ValueError, match="pictures of 6 x 8 cannot be halved 2 times"):
        UNet((1, 6, 8), 0.5, 10, (8, 8, 8), Noise(0))
    with pytest.raises(ValueError, match="kind 'transformer', allowed are mlp, unet, classifier"):
        make({"kind": "transformer"}, Noise(0))


def test_a_classifier_has_a_feature_space():
    net = make({"kind": "classifier", "event": [1, 8, 8], "classes": 10, "widths": [4, 8, 6]}, Noise(0))
    assert isinstance(net, Classifier)
    x = normal(0, (1, 8, 8))
    assert net.features(x).shape == (5, 6) and net(x).shape == (5, 10)
    assert count(net) == (9 + 1) * 4 + (4 * 9 + 1) * 8 + (8 * 4 + 1) * 6 + (6 + 1) * 10
