"""Composites on tiny random networks: backgrounds that are kept, passes and blends written out, second order."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from molsamp.engine import VP, Exponential, GaussianMixture, Noise
from molsamp.engine.grids import time_grid
from molsamp.image import attention, composing
from molsamp.image.attention import Confine, Inject, Recorder, attending, inside
from molsamp.image.composing import beside, box, compose, moved, rows
from molsamp.image.denoiser import Denoiser
from molsamp.image.foreign import from_diffusers
from molsamp.image.ideal import mixture
from molsamp.image.sampling import sample
from molsamp.learn.networks import seeded

F64 = torch.float64
C, SIDE, WIDTH, HEADS, WORDS = 2, 8, 8, 2, 4
EVENT = (C, SIDE, SIDE)
S = VP()
OF, PLACE = (torch.zeros(SIDE, SIDE, dtype=torch.bool) for _ in range(2))
OF[1:4, 0:3], PLACE[3:6, 4:7] = True, True
OF[1, 0] = PLACE[3, 4] = False
IN_PLACE, IN_BOX = ~PLACE, ~box(PLACE)  # what is the background's


def drawn(seed, *shape):
    return Noise(seed).normal(0, torch.arange(shape[0]), shape[1:])


class Layer(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.W = nn.Parameter(drawn(seed, 4, WIDTH, WIDTH) / WIDTH)

    def forward(self, x, c=None):
        c = x if c is None else c
        q, k, v = ((a @ W).unflatten(-1, (HEADS, -1)).transpose(1, 2) for a, W in zip((x, c, c), self.W, strict=False))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ self.W[3]


class Net(nn.Module):
    """Attention at 8 x 8 and 4 x 4 tokens, and to the words of a label; answers a bounded velocity."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.cross = Layer(1), Layer(2), Layer(3)
        self.up, self.down = nn.Parameter(drawn(4, C, WIDTH)), nn.Parameter(drawn(5, WIDTH, C) / WIDTH**0.5)
        self.words = nn.Parameter(drawn(6, 3, WORDS, WIDTH))

    def forward(self, x, t, label):
        h = self.fine(x.flatten(2).mT @ self.up + t[:, None, None])
        low = F.avg_pool2d(h.mT.unflatten(-1, (SIDE, SIDE)), 2).flatten(2).mT
        low = self.coarse(low).mT.unflatten(-1, (SIDE // 2, SIDE // 2))
        h = h + F.interpolate(low, scale_factor=2).flatten(2).mT
        h = self.cross(h, self.words[label])
        return torch.tanh(0.3 * h @ self.down).mT.unflatten(-1, (SIDE, SIDE))


NET = Net().requires_grad_(False)
OWN, CROSS, USED = ("fine", "coarse"), ("cross",), (1, 2)
BACKGROUND, OBJECT = 0.5 * drawn(7, 2, *EVENT)


def denoiser():
    return Denoiser.from_velocity(NET, S, EVENT, conditional=2)


def composed(schedule=(0.3, 0.8, 0.3), solver="dpm++2m", steps=20, **how):
    how = {"net": NET, "own": OWN, "cross": CROSS, "words": USED, "label": 1, **how}
    return compose(
        how.pop("model", denoiser()),
        BACKGROUND,
        OBJECT,
        OF,
        PLACE,
        schedule=schedule,
        solver=solver,
        steps=steps,
        **how,
    )


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "dpm++3m", "unipc-2", "deis-lam1", "deis-rho2"])
def test_the_background_is_kept_while_it_should_be(solver):
    """To 1e-12 in every row: outside the place, then outside its box; the last rows are free, the place always."""
    x0, log = composed(solver=solver)
    apart = (log.path.x[:, 0] - log.path.x[:, 1]).abs().amax(1)
    order = {"ddim": 1, "dpm++3m": 3, "deis-rho2": 3}.get(solver, 2)
    assert (log.edited, log.shaped, log.framed) == (7 - order, 7 - order, 16)
    assert float(apart[: log.shaped + 1, IN_PLACE].max()) < 1e-12
    assert float(apart[: log.framed + 1, IN_BOX].max()) < 1e-12
    assert float(apart[log.shaped + 1 :, IN_PLACE].amax(1).min()) > 1e-6
    assert float(apart[log.framed + 1 :, IN_BOX].amax(1).min()) > 1e-6
    assert float(apart[:, PLACE].amax(1).min()) > 1e-2
    assert torch.equal(x0, log.path.final.x[0]) and bool(torch.isfinite(x0).all())


def test_state_and_memory_are_blended_as_published():
    """The loop written out, DPM-Solver++(2M) of three pictures, with x and the stored prediction blended after each
    step: the same path to 1e-11. Without the blend of what is stored it is off by more than 1e-4.
    """
    steps, times = 12, time_grid("quadratic", S, 12)
    _, log = composed((0.0, 0.8, 0.5), steps=steps, cross=(), words=(), label=None, own=(), grid=times)
    assert (log.edited, log.shaped, log.framed) == (0, 5, 10)

    def loop(memory):
        x, before, model = log.path.x[0], None, denoiser()
        for k, (s, t) in enumerate(itertools.pairwise(times)):
            D = model(x, s)
            where = PLACE if k < 5 else box(PLACE) if k < 10 else torch.ones_like(PLACE)
            if memory:
                D = torch.stack([torch.where(where, D[0], D[1]), *D[1:]])
            h = S.lam(t) - S.lam(s)
            mid = D
            if before is not None and k < steps - 1:  # the last step of few is of order 1
                mid = D + (D - before) * h / (2.0 * (S.lam(s) - S.lam(times[k - 1])))
            x = S.sigma(t) / S.sigma(s) * x - S.alpha(t) * torch.expm1(torch.tensor(-h, dtype=F64)) * mid
            x = torch.stack([torch.where(where, x[0], x[1]), *x[1:]])
            before = D
        return x

    assert float((loop(True) - log.path.final.x).abs().max()) < 1e-11
    assert float((loop(False) - log.path.final.x).abs().max()) > 1e-4


def test_background_and_object_go_their_own_way():
    """What stands beside the composite is what each is alone, to 1e-12, inverted and back."""
    _, log = composed()
    times = log.path.times.tolist()
    for k, picture in ((1, BACKGROUND), (2, OBJECT)):
        down = sample(denoiser(), "dpm++2m", 20, noise=Noise(0), start=picture[None], grid=times[::-1])
        back = sample(denoiser(), "dpm++2m", 20, noise=Noise(0), start=down.final.x, grid=times)
        assert float((log.inverted.final.x[k] - down.final.x[0]).abs().max()) < 1e-12
        assert float((log.path.final.x[k] - back.final.x[0]).abs().max()) < 1e-12
        assert abs(log.round_trip[k - 1] - float((back.final.x[0] - picture).square().mean().sqrt())) < 1e-12


def test_a_row_is_its_two_passes_written_out():
    """The first row of DDIM: record, inject, confine, guide, keep; to 1e-12."""
    _, log = composed(solver="ddim", weight=3.0)
    x, (s, t) = log.path.x[0], log.path.times[:2].tolist()
    J = {N: inside(PLACE, N) for N in (64, 16)}
    at = {64: J[64] - 2 * SIDE - 4, 16: J[16] - 1 * SIDE // 2 - 2}
    recorder = Recorder((0, 2), at.__getitem__)
    with attending(NET, dict.fromkeys(OWN, recorder)):
        D = denoiser()(x, s)
    hooks = {**dict.fromkeys(OWN, Inject(recorder.kept, J.__getitem__)), "cross": Confine(USED, PLACE)}
    with attending(NET, hooks):
        D_c = denoiser()(x[:1], s, 1)
    aim = D[0] + 3.0 * (D_c[0] - D[0])
    aim = torch.where(PLACE, aim, D[1])
    expected = S.sigma(t) / S.sigma(s) * (x[0] - S.alpha(s) * aim) + S.alpha(t) * aim
    assert float((log.path.x[1, 0] - expected).abs().max()) < 1e-12
    assert float((D_c[0] - D[0]).abs().max()) > 1e-3


def test_nothing_steered_is_plain_sampling():
    """Shares of 0 and no label: every bit of the composite's own way back."""
    _, log = composed((0.0, 0.0, 0.0), label=None, cross=(), words=())
    plain = sample(denoiser(), "dpm++2m", 20, noise=Noise(0), start=log.path.x[0], grid=log.path.times.tolist())
    assert torch.equal(log.path.final.x, plain.final.x)


def test_inversion_is_of_second_order_and_its_round_trip_of_third():
    """Pictures of an exact mixture at 80 and 160 even rows, within 10 %: the noise found is off by a fourth (order 2).

    The leading local error of an even order is odd in the row and cancels on the way back: the round trip falls by 8.
    That of DDIM, order 1, falls by 2.
    """
    means = drawn(8, 3, 16)
    law = GaussianMixture(means, torch.tensor([0.3, 0.2, 0.4], dtype=F64))
    pictures = (means[:2] + 0.5 * drawn(9, 2, 16)).view(2, 1, 4, 4)
    corner = torch.zeros(4, 4, dtype=torch.bool)
    corner[:2, :2] = True

    def log(order, steps):
        how = dict(schedule=(0, 0, 0), solver=Exponential(order), grid=time_grid("log-snr", S, steps), net=NET, own=())
        return compose(mixture(law, S, (1, 4, 4)), *pictures, corner, corner, steps=steps, **how)[1]

    fine = log(2, 1280).inverted.final.x[1:]
    for order, noise, trip in ((2, 4.0, 8.0), (1, 2.0, 2.0)):
        a, b = log(order, 80), log(order, 160)
        off = [(found.inverted.final.x[1:] - fine).flatten(1).norm(dim=1) for found in (a, b)]
        assert float((off[0] / off[1] / noise - 1.0).abs().max()) < 0.1, off
        assert all(abs(u / v / trip - 1.0) < 0.1 for u, v in zip(a.round_trip, b.round_trip, strict=True))


def test_masks_and_rows():
    assert moved(OF, PLACE) == (-2, -4)
    assert box(PLACE).sum() == 9 and PLACE.sum() == 8
    assert torch.equal(beside(inside(PLACE, 64), (-2, -4), PLACE, 64), OF.flatten().nonzero()[:, 0])
    corner = torch.tensor([0, 15])
    assert beside(corner, (-3, 3), PLACE, 16).tolist() == [2, 7]  # none leaves the picture
    assert rows((0.3, 0.8, 0.1), 20, 2) == (5, 1, 16)
    assert rows((0.7, 0.7, 0.0), 10, 1) == (7, 0, 7)
    assert rows((0.0, 0.1, 1.0), 10, 1) == (0, 10, 10)


def test_recorded_logits_are_gone_after_each_row(monkeypatch):
    """Never more than those of the two layers, none at the end; edited rows alone record."""
    kept, made = [], []

    class Spied(Recorder):
        def __call__(self, call):
            answer = super().__call__(call)
            kept.append(sorted(self.kept))
            return answer

    monkeypatch.setattr(composing, "Recorder", lambda *given: made.append(Spied(*given)) or made[0])
    _, log = composed()
    assert kept == [["fine"], ["coarse", "fine"]] * log.edited and log.edited == 5 and made[0].kept == {}


def test_heavy_logits_are_warned_of_before_they_are_made(monkeypatch):
    """2 heads x 64 x 8 of the fine layer, 2 x 16 x 1 of the coarse one, 8 bytes each."""
    M = len(inside(PLACE, 16))
    monkeypatch.setattr(attention, "HEAVY", HEADS * 8 * (64 * 8 + 16 * M))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composed(steps=6)
    monkeypatch.setattr(attention, "HEAVY", HEADS * 8 * (64 * 8 + 16 * M) - 1)
    with pytest.warns(attention.Memory, match="with layer 'coarse' recorded logits take"):
        composed(steps=6)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"the object has shape \(3, 8, 8\), the model is for"):
        compose(denoiser(), BACKGROUND, torch.zeros(3, 8, 8), OF, PLACE, net=NET, own=OWN)
    with pytest.raises(ValueError, match="allowed is one shape, moved"):
        compose(denoiser(), BACKGROUND, OBJECT, box(PLACE), PLACE, net=NET, own=OWN)
    with pytest.raises(ValueError, match=r"a mask has shape \(4, 8\) and torch.bool, allowed is \(8, 8\)"):
        compose(denoiser(), BACKGROUND, OBJECT, OF[:4], PLACE[:4], net=NET, own=OWN)
    with pytest.raises(ValueError, match=r"its shares must lie in \[0, 1\]"):
        composed((0.2, 8, 0.1))
    with pytest.raises(ValueError, match="give both or neither"):
        composed(words=())
    with pytest.raises(ValueError, match="draws noise or predicts between times"):
        composed(solver="ddpm")
    with pytest.raises(ValueError, match="one prediction a row"):
        composed(solver="heun")
    with pytest.raises(ValueError, match=r"ends at t = 0 without noise"):
        composed(steps=2, grid=[1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"layer 'coarse' did not run: net must be the network"):
        composed(net=Net())
    with pytest.raises(ValueError, match="module 'coars' is unknown"):
        composed(own=("coars",))


def test_a_unet_of_diffusers_is_composed_with_and_restored():
    """Random weights, words as classes, in single precision: the background is kept, the processors and every bit."""
    diffusers = pytest.importorskip("diffusers")
    with seeded(Noise(0)):
        net = diffusers.UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=C,
            out_channels=C,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    net.requires_grad_(False).eval()
    model = from_diffusers(net, diffusers.DDIMScheduler(), null=0, words=drawn(9, 3, WORDS, WIDTH).float())
    names = [name for name, _ in net.named_modules()]
    own, cross = ([name for name in names if name.endswith(end)] for end in ("attn1", "attn2"))
    processors, x = dict(net.attn_processors), drawn(10, 2, *EVENT).float()
    plain = model(x, 500.0, 1)
    how = dict(net=net, own=own, cross=cross, words=(1,), label=2, steps=8, schedule=(0.5, 0.8, 0.4))
    x0, log = compose(model, BACKGROUND.float(), OBJECT.float(), OF, PLACE, **how)
    assert (log.edited, log.shaped, log.framed) == (3, 3, 7) and bool(torch.isfinite(x0).all())
    apart = (log.path.x[:, 0] - log.path.x[:, 1]).abs().amax(1)
    assert float(apart[:4, IN_PLACE].max()) < 1e-5 and float(apart[:8, IN_BOX].max()) < 1e-5
    assert float(apart[8, IN_BOX].max()) > 1e-4
    unsteered = compose(model, BACKGROUND.float(), OBJECT.float(), OF, PLACE, **{**how, "own": ()})[0]
    assert float((unsteered - x0).abs().max()) > 1e-6
    assert net.attn_processors == processors and torch.equal(model(x, 500.0, 1), plain)
