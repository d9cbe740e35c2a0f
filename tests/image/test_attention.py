"""Attention hooks on a random tiny network in double precision: bits, dense recomputation, exact zeros of gradients."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from molsamp.engine import Noise
from molsamp.image.attention import Confine, Inject, Recorder, attending, inside

F64 = torch.float64
HEADS, WIDTH, SIDE, WORDS = 2, 8, 4, 5
TOKENS = SIDE * SIDE
PLACE = torch.zeros(SIDE, SIDE, dtype=torch.bool)
PLACE[1:3, 1:4] = True


def drawn(seed, *shape):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


class Layer(nn.Module):
    """Attention of x to c, or to itself."""

    def __init__(self, seed):
        super().__init__()
        self.W = nn.Parameter(drawn(seed, 4, WIDTH, WIDTH))

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def qkv(self, x, c=None):
        c = x if c is None else c
        return [self.heads(a @ W) for a, W in zip((x, c, c), self.W, strict=False)]

    def forward(self, x, c=None):
        out = F.scaled_dot_product_attention(*self.qkv(x, c))
        return x + out.transpose(1, 2).flatten(2) @ self.W[3]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.cross = Layer(1), Layer(2)

    def forward(self, x, c):
        return self.cross(self.own(x), c)


NET = Net().requires_grad_(False)
X, C = drawn(3, 3, TOKENS, WIDTH), drawn(4, 3, WORDS, WIDTH)


def logits_of(layer, *given):
    q, k, _ = layer.qkv(*given)
    return q @ k.mT / math.sqrt(WIDTH // HEADS)


def dense(layer, logits, x, c=None):
    out = torch.softmax(logits, -1) @ layer.qkv(x, c)[2]
    return x + out.transpose(1, 2).flatten(2) @ layer.W[3]


def test_a_hook_that_changes_nothing_leaves_every_bit_and_nothing_behind():
    plain, seen = NET(X, C), []

    def look(call):
        seen.append((call.layer, tuple(call.logits.shape)))
        return call.logits

    with attending(NET, {"own": look, "cross": look}):
        assert torch.equal(NET(X, C), plain)
    assert seen == [("own", (3, HEADS, TOKENS, TOKENS)), ("cross", (3, HEADS, TOKENS, WORDS))]
    with attending(NET, {"own": lambda call: call.logits.clone()}):
        torch.testing.assert_close(NET(X, C), plain, rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="fails"), attending(NET, {"own": look}):
        raise RuntimeError("fails")
    assert torch.equal(NET(X, C), plain)
    assert not NET.own._forward_pre_hooks and not NET.own._forward_hooks
    assert len(seen) == 2


def test_injected_columns_and_rows_are_a_dense_recomputation():
    """S of pictures (0, 1), put at other places of picture 2 alone: to 1e-12, the other pictures bit for bit."""
    source, J = inside(PLACE, TOKENS), torch.tensor([0, 2, 3, 8, 9, 15])
    recorder = Recorder((0, 1), lambda N: source)
    with attending(NET, {"own": recorder}):
        plain = NET(X, C)
    S = (NET.own.qkv(X)[0][0] @ NET.own.qkv(X)[1][1].mT / math.sqrt(WIDTH // HEADS))[:, :, source]
    torch.testing.assert_close(recorder.kept["own"], S, rtol=0, atol=1e-12)
    with attending(NET, {"own": Inject(recorder.kept, lambda N: J, slice(2, 3))}):
        steered = NET(X, C)
    L = logits_of(NET.own, X)
    for a, j in enumerate(J.tolist()):
        L[2, :, :, j] = S[:, :, a]
    for a, j in enumerate(J.tolist()):
        L[2, :, j, :] = S[:, :, a]
    torch.testing.assert_close(steered, NET.cross(dense(NET.own, L, X), C), rtol=0, atol=1e-12)
    torch.testing.assert_close(steered[:2], plain[:2], rtol=0, atol=1e-12)
    assert float((steered[2] - plain[2]).abs().max()) > 1e-2


def test_a_picture_injected_into_itself():
    """Columns alone give L back, to 1e-12; with rows L is its own transpose, which is another picture."""
    whole = partial(inside, torch.ones(SIDE, SIDE, dtype=torch.bool))
    recorder = Recorder((0, 0), whole)
    with attending(NET, {"own": recorder}):
        plain = NET(X[:1], C[:1])
    with attending(NET, {"own": Inject(recorder.kept, whole, rows=False)}):
        torch.testing.assert_close(NET(X[:1], C[:1]), plain, rtol=0, atol=1e-12)
    with attending(NET, {"own": Inject(recorder.kept, whole)}):
        steered = NET(X[:1], C[:1])
    turned = NET.cross(dense(NET.own, logits_of(NET.own, X[:1]).mT, X[:1]), C[:1])
    torch.testing.assert_close(steered, turned, rtol=0, atol=1e-12)
    assert float((steered - plain).abs().max()) > 1e-2


def test_words_act_in_their_place_only():
    """The gradient of the layer's output with respect to a word is exactly 0 at the pixels outside, and only there."""
    c = C.clone().requires_grad_()
    with attending(NET, {"cross": Confine((1, 3), PLACE)}):
        out = NET.cross(X, c)
    for pixel, within in enumerate(PLACE.flatten().tolist()):
        (slope,) = torch.autograd.grad(out[:, pixel].square().sum(), c, retain_graph=True)
        assert bool((slope[:, [0, 2, 4]] != 0.0).all())
        assert bool((slope[:, [1, 3]] != 0.0).all()) if within else float(slope[:, [1, 3]].abs().max()) == 0.0


def test_masks_at_the_layers_resolution():
    """Half of a square's pixels count; a place that vanished changes no bit."""
    fine = PLACE.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(inside(fine, TOKENS), PLACE.flatten().nonzero()[:, 0])
    dot = torch.zeros(8, 8, dtype=torch.bool)
    dot[0, 0] = True
    assert not len(inside(dot, TOKENS))
    with attending(NET, {"own": Inject({}, partial(inside, dot)), "cross": Confine((1,), dot)}):
        assert torch.equal(NET(X, C), NET.cross(NET.own(X), C))
    with pytest.raises(ValueError, match="4 x 4 pixels is not cut into 5"):
        inside(PLACE, 5)


@pytest.mark.parametrize("mask", ["bool", "added", "causal", "scale"])
def test_the_layers_own_masks_and_scale_are_in_its_logits(mask):
    """softmax(logits) v is torch's own answer, to 1e-12."""
    given = {
        "bool": dict(attn_mask=drawn(5, TOKENS, TOKENS) > -1.0),
        "added": dict(attn_mask=drawn(5, TOKENS, TOKENS)),
        "causal": dict(is_causal=True),
        "scale": dict(scale=0.3),
    }[mask]

    class Masked(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(*NET.own.qkv(x), **given)

    net = Masked()
    with attending(net, {"": lambda call: call.logits.clone()}):
        hooked = net(X)
    torch.testing.assert_close(hooked, net(X), rtol=0, atol=1e-12)


def test_torchs_own_module_is_hooked():
    """`nn.TransformerEncoderLayer`, to 1e-12; a word that nobody may look at acts on nobody else."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, dtype=F64).eval()
    plain = net(X)
    with attending(net, {"self_attn": lambda call: call.logits.clone()}):
        torch.testing.assert_close(net(X), plain, rtol=0, atol=1e-12)

    def without_first(call):
        return call.logits.masked_fill(torch.arange(TOKENS) == 0, -torch.inf)

    with attending(net, {"self_attn": without_first}):
        blind = net(X)
    torch.testing.assert_close(blind[:, 1:], net(X[:, 1:]), rtol=0, atol=1e-12)
    torch.testing.assert_close(net(X), plain, rtol=0, atol=1e-12)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"module 'ovn' is unknown"), attending(NET, {"ovn": lambda a: a.logits}):
        pass
    with pytest.raises(ValueError, match="the hook of 'own' made logits"), attending(NET, {"own": lambda a: a.q}):
        NET(X, C)
    with pytest.raises(ValueError, match="kept is none"), attending(NET, {"own": Inject({}, partial(inside, PLACE))}):
        NET(X, C)
    with pytest.raises(ValueError, match="must be some of its 5"), attending(NET, {"cross": Confine((7,), PLACE)}):
        NET(X, C)
    own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=F64)
    with pytest.raises(ValueError, match="ran without"), attending(own, {"": lambda a: a.logits}):
        own(X, X, X)


def test_a_unet_of_diffusers_is_hooked_and_restored():
    """Random weights: every bit with a hook that looks, another picture when its words are confined, then the first."""
    diffusers = pytest.importorskip("diffusers")
    warnings.filterwarnings("ignore", module="diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    x, words = drawn(6, 2, 3, 8, 8).float(), drawn(7, 2, WORDS, WIDTH).float()
    cross = [name for name, _ in net.named_modules() if name.endswith("attn2")]
    processors = dict(net.attn_processors)

    def run(hooks):
        with torch.no_grad(), attending(net, hooks):
            return net(x, 3, words).sample

    plain, seen = run({}), []
    place = torch.zeros(8, 8, dtype=torch.bool)
    place[:4] = True
    assert torch.equal(run({name: lambda a: seen.append(a.layer) or a.logits for name in cross}), plain)
    assert sorted(seen) == sorted(cross)
    assert float((run({name: Confine((1,), place) for name in cross}) - plain).abs().max()) > 1e-5
    assert torch.equal(run({}), plain)
    assert net.attn_processors == processors
