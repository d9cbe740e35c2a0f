"""`molsamp image --model FOLDER`: networks that diffusers saved, with fresh weights; bytes, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from shell import molsamp

from molsamp.engine.noise import Noise
from molsamp.image.foreign import from_diffusers
from molsamp.image.sampling import sample
from molsamp.learn.networks import seeded

diffusers = pytest.importorskip("diffusers")

FEW = ("--n", "4", "--steps", "4", "--quiet")
STEERED = (*FEW, "--set", "particles=2", "--set", "every=2")


def saved(folder: Path, part: str, net, scheduler) -> Path:
    net.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def unet(**given):
    with seeded(Noise(0)):
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            **given,
        )


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"), "unet", unet(), diffusers.DDPMScheduler())


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    with seeded(Noise(0)):
        net = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=1,
            out_channels=2,
            num_layers=1,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=5,
            norm_num_groups=4,
        )
        torch.nn.init.xavier_uniform_(net.proj_out_2.weight)
    return saved(tmp_path_factory.mktemp("classes"), "transformer", net, diffusers.DDIMScheduler())


def pictures(folder: Path) -> torch.Tensor:
    with safe_open(folder / "samples.safetensors", "pt") as f:
        return f.get_tensor("x")


def test_a_folder_is_a_model(plain, tmp_path):
    """Its pictures are those of `sample`, bit for bit; a config given back gives the same bytes."""
    r = tmp_path / "r"
    assert molsamp("image", "--model", plain, "--set", "compare=0", *FEW, "--out", r) == 0
    d = from_diffusers(unet().eval().requires_grad_(False), diffusers.DDPMScheduler())
    assert torch.equal(pictures(r), sample(d, "unipc", 4, 4, noise=Noise(0)).final.x)
    assert molsamp("image", "--config", r / "config.toml", "--out", tmp_path / "s", "--quiet") == 0
    for name in ("samples.safetensors", "samples.png", "config.toml"):
        assert (tmp_path / "s" / name).read_bytes() == (r / name).read_bytes()


def test_it_is_rewarded_and_guided(plain, classes, tmp_path):
    assert molsamp("image", "--model", plain, "--reward", "brightness", *STEERED, "--out", tmp_path / "r") == 0
    results = json.loads((tmp_path / "r" / "result.json").read_text())["results"]
    assert {"reward", "log_z"} <= set(results) and bool(torch.isfinite(pictures(tmp_path / "r")).all())
    guides = ("--guide", "apg:3,threshold:0.9", "--class", "2")
    assert molsamp("image", "--model", classes, *guides, *STEERED, "--out", tmp_path / "g") == 0
    assert pictures(tmp_path / "g").shape == (4, 1, 8, 8)
    rows = (tmp_path / "g" / "figures" / "guidance.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["apg:3"] * 4 + ["threshold:0.9"] * 4


def test_other_weights_are_not_taken_for_the_same(plain, tmp_path, capsys):
    other, r = tmp_path / "model", tmp_path / "r"
    shutil.copytree(plain, other)
    assert molsamp("image", "--model", other, "--set", "compare=0", *FEW, "--out", r) == 0
    diffusers.DDPMScheduler(beta_start=2e-4).save_pretrained(other / "scheduler")
    assert molsamp("image", "--config", r / "config.toml", "--out", tmp_path / "s") == 2
    assert "the settings were made for" in capsys.readouterr().err


def broken(folder: Path, kind: str) -> None:
    """One thing about a folder made wrong."""
    if kind == "vae":
        (folder / "vae").mkdir()
    if kind == "scheduler":
        shutil.rmtree(folder / "scheduler")
    if kind == "pickle":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "model.bin")
    if kind == "torn":
        file = folder / "unet" / "config.json"
        file.write_text(file.read_text()[:40])
    if kind == "words":
        file = folder / "unet" / "config.json"
        file.write_text(file.read_text().replace("UNet2DModel", "UNet2DConditionModel"))
    if kind == "weights":
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    if kind == "betas":
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vae", "has a vae: allowed are models of pictures, not of latents"),
        ("scheduler", "is no model of diffusers: wanted are unet/config.json"),
        ("pickle", "has 0 files of safetensors, the only form that is read"),
        ("torn", "config.json is no JSON"),
        ("words", "holds a UNet2DConditionModel, allowed are UNet2DModel, DiTTransformer2DModel"),
        ("weights", "diffusion_pytorch_model.safetensors:"),
        ("betas", "has beta_schedule 'squaredcos_cap_v2'"),
    ],
)
def test_a_folder_that_is_none_is_one_line(plain, tmp_path, capsys, kind, message):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    broken(folder, kind)
    assert molsamp("image", "--model", folder, *FEW, "--out", tmp_path / "r") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--class", "1", "--guide", "cfg:2"), "--guide: this model has no label for no class"),
        (("--reward", "brightness"), "this model has no label for no class"),
        (("--class", "4", "--reward", "brightness"), "has the classes 0 to 3"),
        (("--class", "1", "--reward", "digit:3"), "no classifier is shipped for pictures of 3 x 8 x 8"),
    ],
)
def test_what_a_model_cannot_is_one_line(tmp_path, capsys, asked, message):
    folder = saved(tmp_path / "model", "unet", unet(num_class_embeds=4), diffusers.DDPMScheduler())
    assert molsamp("image", "--model", folder, *asked, *STEERED, "--out", tmp_path / "r") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
