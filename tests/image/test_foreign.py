"""Networks of diffusers with fresh weights as denoisers: schedule, prediction, labels and channels are theirs."""

import pytest
import torch

from molsamp.engine import DPMSolverPP2M, Noise, Particles, rollout
from molsamp.engine.grids import time_grid
from molsamp.image.foreign import from_diffusers
from molsamp.learn.networks import seeded

diffusers = pytest.importorskip("diffusers")

IDS = torch.arange(3)


def unet(**given):
    with seeded(Noise(0)):
        net = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
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
