"""Networks of diffusers with fresh weights as denoisers: schedule, prediction, labels and channels are theirs."""

import pytest
import torch

from molsamp.engine import DPMSolverPP2M, Noise, Particles, rollout
from molsamp.engine.grids import time_grid
from molsamp.engine.operators import Selection
from molsamp.image.backdoor import audit, features
from molsamp.image.foreign import from_diffusers
from molsamp.image.guidance import APG, CFG, CFGpp, Threshold, conditioned, guided
from molsamp.image.interpolation import between
from molsamp.image.inverse import DDS, Measured
from molsamp.image.sampling import sample
from molsamp.image.steering import steer
from molsamp.learn.networks import seeded

diffusers = pytest.importorskip("diffusers")

IDS = torch.arange(3)


def unet(channels=1, seed=0, **given):
    with seeded(Noise(seed)):
        net = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            **given,
        )
    return net.requires_grad_(False).eval()


def dit():
    with seeded(Noise(0)):
        net = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=5,
            norm_num_groups=4,
        )
        torch.nn.init.xavier_uniform_(net.proj_out_2.weight)
    return net.requires_grad_(False).eval()


def told(**given):
    """A network with cross-attention, and what it may be told: three prompts of 5 words."""
    with seeded(Noise(0)):
        net = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=6,
            **given,
        )
    return net.requires_grad_(False).eval(), 3.0 * Noise(2).normal(0, IDS, (5, 6), torch.float32)


def of_classes(kind):
    """(denoiser, the network's own answer (x, t, label), the label for none)."""
    scheduler = diffusers.DDIMScheduler()
    if kind == "dit":
        net = dit()
        return from_diffusers(net, scheduler), lambda x, t, k: net(x, t, torch.full((len(x),), k)).sample[:, :4], 5
    net, words = told()
    d = from_diffusers(net, scheduler, null=0, words=words)
    return d, lambda x, t, k: net(x, t, words[k].expand(len(x), -1, -1)).sample, 0


def normal(event):
    return Noise(1).normal(0, IDS, event, torch.float32)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_the_data_prediction_is_the_one_of_their_scheduler(prediction, betas):
    """DDIMScheduler.step's pred_original_sample at a training index, to 1e-5 of its size in float32."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=betas, beta_start=8.5e-4, beta_end=0.012, prediction_type=prediction, clip_sample=False
    )
    scheduler.set_timesteps(1000)
    net, x = unet(), normal((1, 8, 8))
    d = from_diffusers(net, scheduler)
    for i in (0, 250, 600):
        theirs = scheduler.step(net(x, i).sample, i, x).pred_original_sample
        assert float((d(x, float(i)) - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))
    assert d.event == (1, 8, 8) and d.conditional is None


def test_a_flow_matching_scheduler_is_straight_lines():
    """x_0 = x - sigma u with u at time 1000 sigma."""
    net, x = unet(), normal((1, 8, 8))
    d = from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler())
    expected = x - 0.4 * net(x, torch.full((3,), 400.0)).sample
    assert torch.allclose(d(x, 0.4), expected, rtol=0, atol=1e-5)


def test_a_dit_is_guided_by_its_last_label_and_its_variance_is_cut():
    net, x, label = dit(), normal((4, 8, 8)), torch.tensor([0, 3, 4])
    d = from_diffusers(net, diffusers.DDIMScheduler(prediction_type="sample"))
    t = torch.full((3,), 500.0)
    free = net(x, t, torch.full((3,), 5)).sample[:, :4]
    given = net(x, t, label).sample[:, :4]
    assert float((given - free).abs().max()) > 1e-3
    assert torch.allclose(d(x, 500.0), free, rtol=0, atol=1e-6)
    assert torch.allclose(d.guided(label, 3.0)(x, 500.0), free + 3.0 * (given - free), rtol=0, atol=1e-5)


def test_a_unet_with_classes_has_no_class_that_it_was_not_told():
    net, x = unet(num_class_embeds=4), normal((1, 8, 8))
    d = from_diffusers(net, diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match="no label for no class"):
        d(x, 10.0)
    last = from_diffusers(net, diffusers.DDIMScheduler(), null=3)
    assert torch.equal(last(x, 10.0), d(x, 10.0, 3))


def test_it_runs_through_the_rollout_in_another_precision():
    d = from_diffusers(unet(), diffusers.DDIMScheduler())
    start = Particles.at(Noise(1).normal(0, IDS, (1, 8, 8)))
    times = time_grid("uniform", d.schedule, 6)
    path = rollout(d.sde(), DPMSolverPP2M(), start, times, noise=Noise(0), save="last")
    assert path.final.x.dtype == torch.float64 and d.calls == 6 and path.final.status.sum() == 0


def test_configs_that_are_not_understood_are_refused():
    net = unet()
    for given in ({"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.1, 0.2]}):
        with pytest.raises(
            ValueError, match=r"DDIMScheduler has beta_schedule .* allowed are linear and scaled_linear"
        ):
            from_diffusers(net, diffusers.DDIMScheduler(**given))
    with pytest.raises(ValueError, match="has prediction_type 'flow', allowed are epsilon, sample, v_prediction"):
        from_diffusers(net, diffusers.DDIMScheduler(prediction_type="flow"))
    with pytest.raises(ValueError, match=r"x has shape \(3, 2, 8, 8\), the model is for \('n', 1, 8, 8\)"):
        from_diffusers(net, diffusers.DDIMScheduler())(torch.zeros(3, 2, 8, 8), 5.0)


def test_words_are_the_classes_of_a_model_with_cross_attention():
    """Label k is prompt k, no label the empty one, to 1e-5 in float32; guided by hand, to 1e-4."""
    d, net, _ = of_classes("words")
    x, alpha, sigma = normal((3, 8, 8)), d.schedule.alpha(500.0), d.schedule.sigma(500.0)
    D = [(x - sigma * net(x, 500.0, k)) / alpha for k in range(3)]
    assert d.conditional == 3 and float((D[1] - D[0]).abs().max()) > 1e-3
    torch.testing.assert_close(d(x, 500.0), D[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(d(x, 500.0, torch.tensor([2, 1, 0]))[1], D[1][1], rtol=0, atol=1e-5)
    torch.testing.assert_close(d.guided(2, 4.0)(x, 500.0), D[0] + 4.0 * (D[2] - D[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["dit", "words"])
def test_guides_are_those_of_the_networks_own_answers(kind):
    """A row of DDIM under each guide, written out with the network itself: to 1e-4 of x, of size 1; the same bytes."""
    d, net, nothing = of_classes(kind)
    times, x = [900.0, 600.0], normal(d.event)
    (a, s), (a_t, s_t) = ((d.schedule.alpha(t), d.schedule.sigma(t)) for t in times)
    D_c, D_u = ((x - s * net(x, torch.full((3,), times[0]), k)) / a for k in (2, nothing))
    difference, along = (D_c - D_u).flatten(1), D_c.flatten(1)
    par = (((difference * along).sum(1) / (along * along).sum(1))[:, None] * along).view_as(x)
    q = torch.quantile(D_c.abs().flatten(1), 0.9, dim=1).clamp(min=1.0).view(-1, 1, 1, 1)
    aims = {
        CFG(d, 4.0): (D_u + 4.0 * (D_c - D_u), None),
        CFGpp(d, 0.6): (D_u + 0.6 * (D_c - D_u), D_u),
        APG(d, 4.0): (D_c + 3.0 * (D_c - D_u - par), None),
        Threshold(0.9): (D_c.clamp(-q, q) / q, None),
    }
    for guide, (aim, origin) in aims.items():
        expected = a_t * aim + s_t * (x - a * (aim if origin is None else origin)) / s
        path, again = (
            sample(conditioned(d, 2), guided("ddim", guide), 1, noise=Noise(0), start=x, grid=times) for _ in range(2)
        )
        assert float((path.final.x - expected).abs().max()) < 1e-4 * float(expected.abs().max()), guide
        assert torch.equal(path.final.x, again.final.x)
    assert float((D_c - D_u).abs().max()) > 1e-3


def test_it_is_steered_by_a_reward():
    """Weights and pictures finite, not all equal, and the same bytes twice."""
    d = from_diffusers(unet(), diffusers.DDPMScheduler())
    one, two = (
        steer(d, lambda x: x.flatten(1).mean(1), steps=8, n=8, every=4, noise=Noise(0), strength=0.01) for _ in range(2)
    )
    assert one.particles.x.shape == (8, 1, 8, 8) and bool(torch.isfinite(one.particles.x).all())
    assert torch.equal(one.particles.x, two.particles.x) and torch.equal(one.particles.logw, two.particles.logw)
    assert bool(torch.isfinite(one.particles.logw).all()) and float(one.effective.min()) < 8.0 - 1e-6


def test_measured_pixels_are_kept_and_ends_of_films_are_pinned():
    """DDS on a selection, and a film whose frames are the channels: what is given comes back, up to a few of the
    last sigma (0.01), 0.1; what is not is the network's.
    """
    d = from_diffusers(unet(4), diffusers.DDIMScheduler())
    y = 0.5 * normal((4, 8, 8))[:1]
    A = Selection(torch.arange(0, 256, 3), (256,))
    x = sample(d, guided("ddim", DDS(Measured(A, A(y.view(1, 256))))), 8, 2, noise=Noise(0)).final.x
    off = (x - y).abs().flatten(1)
    assert float(off[:, ::3].max()) < 0.1 < 0.3 < float(off.max())

    def onward(x, t, first):
        return d(torch.cat([(d.schedule.alpha(t) * first).expand(len(x), 1, 8, 8), x[:, 1:]], 1), t)

    film = sample(d, between(onward, y[0, 0], y[0, 3], 4), 8, 2, noise=Noise(0)).final.x
    assert float((film[:, [0, 3]] - y[:, [0, 3]]).abs().max()) < 0.1
    assert bool(torch.isfinite(film).all()) and float((film - y).abs().max()) > 0.3


def test_it_is_audited():
    """Three networks with fresh weights, in their precision: finite features, the same twice, one of two words."""
    budget = dict(draws=4, steps=3, dtype=torch.float32)
    models = [from_diffusers(unet(seed=i), diffusers.DDIMScheduler()) for i in range(3)]
    pool = [features(m, noise=Noise(i), **budget) for i, m in enumerate(models[:2])]
    verdict = audit(models[2], pool, noise=Noise(2), level=0.4, **budget)
    assert verdict.word in ("suspicious", "nothing found")
    again = features(models[1], noise=Noise(1), **budget)
    assert (again.response, again.swing, again.concentration) == (
        pool[1].response,
        pool[1].swing,
        pool[1].concentration,
    )
    assert torch.equal(again.direction, pool[1].direction) and again.direction.shape == (1, 8, 8)
    with pytest.raises(ValueError, match="no label for no class"):
        features(from_diffusers(unet(num_class_embeds=4), diffusers.DDIMScheduler()), noise=Noise(0), **budget)


def test_what_a_model_cannot_is_said():
    scheduler, (net, words) = diffusers.DDIMScheduler(), told()
    with pytest.raises(ValueError, match=r"words are none, this model's cross-attention wants \(prompts, tokens, 6\)"):
        from_diffusers(net, scheduler)
    with pytest.raises(ValueError, match=r"words are \(3, 5, 5\)"):
        from_diffusers(net, scheduler, words=words[:, :, :5])
    with pytest.raises(ValueError, match=r"words are \(3, 5, 6\), this model's cross-attention wants .* None"):
        from_diffusers(unet(), scheduler, words=words)
    with pytest.raises(ValueError, match="num_class_embeds 4 beside its words"):
        from_diffusers(told(num_class_embeds=4)[0], scheduler, words=words)
    nothing = from_diffusers(net, scheduler, words=words)
    with pytest.raises(ValueError, match="no label for no class"):
        nothing.guided(1, 3.0)(normal((3, 8, 8)), 500.0)
    with pytest.raises(ValueError, match="guidance needs a model with classes"):
        conditioned(from_diffusers(unet(), scheduler), 1)
    with pytest.raises(ValueError, match="copies"):
        steer(from_diffusers(unet(), scheduler), lambda x: x.flatten(1).mean(1), "ddim", 4, noise=Noise(0))
