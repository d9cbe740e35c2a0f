"""Skip-Tuning: factor 1 changes no bit, others what they should, here and in networks of others."""

import pytest
import torch
from torch import nn

from molsamp.engine import Noise
from molsamp.image.models import Model, network
from molsamp.image.networks import make
from molsamp.image.sampling import sample
from molsamp.image.skips import Scaled, over_depth, tuned
from molsamp.learn.networks import seeded

X = Noise(1).normal(0, torch.arange(3), (1, 16, 16), torch.float32)


@pytest.fixture(scope="module")
def unet():
    return network("mnist")


class Joined(nn.Module):
    """A U-Net of two levels as others write them: the decoder joins by torch.cat; another cat stands outside of it."""

    class Up(nn.Module):
        def __init__(self, a):
            super().__init__()
            self.conv = nn.Conv2d(2 * a, a, 1)

        def forward(self, h, skip):
            h = nn.functional.interpolate(h, size=skip.shape[-1]) if h.shape != skip.shape else h
            return self.conv(torch.cat([h, skip], dim=1))

    def __init__(self):
        super().__init__()
        with seeded(Noise(3)):
            self.first, self.up = nn.Conv2d(2, 4, 1), nn.ModuleList([self.Up(4), self.Up(4)])

    def forward(self, x, scale=(1.0, 1.0)):
        h = self.first(torch.cat([x, x], 1))
        below = nn.functional.avg_pool2d(h, 2)
        h = self.up[0](below.tanh(), scale[0] * below)
        return self.up[1](h, scale[1] * self.first(torch.cat([x, -x], 1)))


def test_factors_over_depth():
    assert over_depth(0.5, 1.0, 3) == (0.5, 0.75, 1.0)
    assert over_depth(0.5, 1.0, 1) == (0.5,) and over_depth(1.0, 1.0, 4) == (1.0,) * 4


def test_one_is_the_network_bit_for_bit(unet):
    """One prediction, and five steps of sampling."""
    assert torch.equal(tuned(unet, 1.0)(X, 0.5), unet.denoiser()(X, 0.5))
    a, b = (sample(m, "unipc-2", 5, 4, noise=Noise(2)).final.x for m in (tuned(unet, 1.0), unet.denoiser()))
    assert torch.equal(a, b)


def test_factors_reach_the_network(unet):
    """bottom and top as skip_scale of the network itself, and a factor of the time at its time alone."""
    plain = unet.denoiser()(X, 0.3)
    assert not torch.equal(tuned(unet, 0.8)(X, 0.3), plain)
    timed = tuned(unet, lambda t: 0.8 if t > 0.5 else 1.0)
    assert torch.equal(timed(X, 0.3), plain)
    assert torch.equal(timed(X, 0.6), tuned(unet, 0.8)(X, 0.6))


def test_the_prediction_is_smooth_in_the_factor(unet):
    """Central differences of two widths agree to 1 %, and are not 0."""
    x = X.double()
    a, b = ((tuned(unet, 0.9 + h)(x, 0.5) - tuned(unet, 0.9 - h)(x, 0.5)) / (2 * h) for h in (1e-3, 1e-4))
    assert b.isfinite().all() and float(b.norm()) > 1e-3
    assert float((a - b).norm() / b.norm()) < 0.01


def test_a_foreign_network(unet):
    """Factors by name are those that its author would have written; 1 is the identity, and nothing stays behind."""
    net = Joined()
    plain = net(X)
    assert torch.equal(Scaled(net, {"up.0": 1.0, "up.1": 1.0})(X), plain)
    torch.testing.assert_close(Scaled(net, {"up.0": 0.6, "up.1": 0.9})(X), net(X, (0.6, 0.9)))
    torch.testing.assert_close(Scaled(net, {"up.1": 0.5})(X), net(X, (1.0, 0.5)))
    assert not torch.equal(Scaled(net, {"up.0": 0.6})(X), plain) and torch.equal(net(X), plain)
    with pytest.raises(ValueError, match=r"'up\.7' is unknown"):
        Scaled(net, {"up.7": 0.5})


def test_a_foreign_network_that_fails_is_left_as_it_was():
    net = Joined()
    with pytest.raises(RuntimeError):
        Scaled(net, {"up.0": 0.6})(torch.zeros(2, 1, 16))
    assert not net.up[0]._forward_pre_hooks and not net.up[0]._forward_hooks


def test_diffusers():
    """A tiny UNet2DModel with random weights: the same as scaling what its decoder blocks are handed."""
    diffusers = pytest.importorskip("diffusers")
    with seeded(Noise(5)):
        net = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
    x, t = X[:, :, :8, :8], torch.tensor([10, 20, 30])

    def scale(module, args, kwargs):
        kwargs["res_hidden_states_tuple"] = tuple(0.7 * a for a in kwargs["res_hidden_states_tuple"])
        return args, kwargs

    with torch.no_grad():
        plain, scaled = net(x, t).sample, Scaled(net, {"up_blocks.0": 0.7})(x, t).sample
        hook = net.up_blocks[0].register_forward_pre_hook(
            lambda m, a, k: (
                scale(m, a, k) if "res_hidden_states_tuple" in k else ((a[0], tuple(0.7 * b for b in a[1]), *a[2:]), k)
            ),
            with_kwargs=True,
        )
        by_hand = net(x, t).sample
        hook.remove()
        torch.testing.assert_close(scaled, by_hand)
        assert not torch.equal(scaled, plain) and torch.equal(Scaled(net, {"up_blocks.0": 1.0})(x, t).sample, plain)


def test_no_skips():
    mlp = {"kind": "mlp", "event": [1, 4, 4], "size": 0.5, "classes": 2, "width": 8, "depth": 1}
    with pytest.raises(ValueError, match="of kind 'mlp'"):
        tuned(Model(make(mlp, Noise(0)), mlp), 0.8)
