"""Networks of the diffusers library as denoisers. Its objects say all of themselves; only `read` imports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.schedules import Discrete, Flow, Schedule
from molsamp.image.denoiser import Denoiser, data_from

BETAS: dict[str | None, Literal["linear", "scaled-linear"]] = {"linear": "linear", "scaled_linear": "scaled-linear"}
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}
OF_PICTURES = ("UNet2DModel", "DiTTransformer2DModel")
"""Networks that a folder may hold: they need no second network to say what they are told, or what they answer."""


def from_diffusers(
    model: Any, scheduler: Any, null: int | None = None, words: Float[Tensor, "K tokens width"] | None = None
) -> Denoiser:
    """A denoiser around a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel (or one alike) of diffusers.

    The schedule and what the network predicts come from the scheduler's config; its grid, clipping and thresholding do
    not. A network with twice as many channels out as in also predicts a variance, which is cut off. Time is the index
    of the training step, or 0 to 1 on the straight lines of a FlowMatch scheduler.

    Args:
        model: called model(x, timestep[, class_labels or encoder_hidden_states]).sample, in its own dtype.
        scheduler: any scheduler of diffusers for it.
        null: the label that the model takes for no class; for a DiT its last, as it was trained.
        words: what its text encoder says of K prompts, for a model with cross-attention: its classes are then these
            prompts, and `null` is the empty one.

    Raises:
        ValueError: for a config that is not understood, words for a model that takes none, or none for one that does;
            when called, for no class where `null` was not said.
    """
    told, config = scheduler.config, model.config
    schedule, prediction, unit = _process(type(scheduler).__name__, told)
    channels, side = config.in_channels, config.sample_size
    if side is None:
        raise ValueError("the model's config has no sample_size, the height and width of its pictures")
    event = (channels, *((side, side) if isinstance(side, int) else side))
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    if words is not None or config.get("cross_attention_dim") is not None:
        classes = _prompts(words, config)
    nothing = config.get("num_embeds_ada_norm") if null is None else null

    def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        given = {} if classes is None else {"class_labels": _labels(x, label, nothing)}
        if words is not None:
            given = {"encoder_hidden_states": words.to(x.device, model.dtype)[given["class_labels"]]}
        time = torch.full((len(x),), t * unit, dtype=torch.float32, device=x.device)
        y = model(x.to(model.dtype), time, **given).sample.to(x.dtype)
        if y.shape[1] == 2 * channels:
            y = y[:, :channels]
        if y.shape != x.shape:
            raise ValueError(f"the network answers with shape {tuple(y.shape)} to x of shape {tuple(x.shape)}")
        return data_from(prediction, schedule, x, t, y)

    return Denoiser(schedule, predict, event, conditional=classes)


def read(folder: Path) -> Denoiser:
    """The denoiser in a folder that a pipeline of diffusers saved: unet or transformer, scheduler. Nothing is fetched.

    Raises:
        ValueError: if diffusers is missing, for a folder that has not both, pickled weights, a network of other things
            than pictures (its latents or its prompts want networks of their own), or as `from_diffusers`.
    """
    weights, config, scheduler = files(folder)
    try:
        import diffusers
    except ImportError:
        raise ValueError(f"{folder} is a model of diffusers, which is not installed") from None
    kind, told = _told(config)["_class_name"], _told(scheduler)
    if kind not in OF_PICTURES:
        raise ValueError(f"{folder} holds a {kind}, allowed are {', '.join(OF_PICTURES)}")
    by = getattr(diffusers, str(told["_class_name"]), None)
    if by is None:
        raise ValueError(f"{scheduler}: diffusers has no scheduler {told['_class_name']!r}")
    try:
        net = getattr(diffusers, kind).from_pretrained(config.parent, local_files_only=True, use_safetensors=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{weights}: {str(error).splitlines()[0]}") from None
    return from_diffusers(net.requires_grad_(False).eval(), by.from_config(told))


def files(folder: Path) -> tuple[Path, Path, Path]:
    """(weights, their config, the scheduler's): what `read` reads.

    Raises:
        ValueError: as `read`.
    """
    for other in ("vae", "vqvae", "text_encoder", "movq"):
        if (folder / other).is_dir():
            raise ValueError(f"{folder} has a {other}: allowed are models of pictures, not of latents or of prompts")
    parts = [part for part in ("unet", "transformer") if (folder / part / "config.json").is_file()]
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if len(parts) != 1 or not scheduler.is_file():
        raise ValueError(
            f"{folder} is no model of diffusers: wanted are unet/config.json or transformer/config.json, and "
            f"scheduler/{scheduler.name}"
        )
    found = sorted((folder / parts[0]).glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(
            f"{folder / parts[0]} has {len(found)} files of safetensors, the only form that is read; not 1"
        )
    return found[0], folder / parts[0] / "config.json", scheduler


def _told(file: Path) -> dict[str, Any]:
    """A config that names its class."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from None
    if not isinstance(told, dict) or "_class_name" not in told:
        raise ValueError(f"{file} has no _class_name, which diffusers writes")
    return told


def _prompts(words: Tensor | None, config: Any) -> int:
    """How many there are."""
    width = config.get("cross_attention_dim")
    if words is None or words.dim() != 3 or not len(words) or words.shape[2] != width:
        got = "none" if words is None else tuple(words.shape)
        raise ValueError(f"words are {got}, this model's cross-attention wants (prompts, tokens, {width})")
    for name in ("num_class_embeds", "class_embed_type", "addition_embed_type"):
        if config.get(name):
            raise ValueError(f"the model has {name} {config[name]!r} beside its words, which is not understood")
    return len(words)


def _process(name: str, told: Any) -> tuple[Schedule, str, float]:
    """(schedule, prediction, what the network calls time t = 1)."""
    if name.startswith("FlowMatch"):
        return Flow(), "flow", float(told["num_train_timesteps"])
    betas, prediction = told.get("beta_schedule"), told.get("prediction_type", "epsilon")
    if betas not in BETAS or told.get("trained_betas") is not None or told.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{name} has beta_schedule {betas!r} or betas of its own, allowed are linear and scaled_linear as they are"
        )
    if prediction not in PREDICTIONS:
        raise ValueError(f"{name} has prediction_type {prediction!r}, allowed are {', '.join(PREDICTIONS)}")
    schedule = Discrete(BETAS[betas], told["beta_start"], told["beta_end"], told["num_train_timesteps"])
    return schedule, PREDICTIONS[prediction], 1.0


def _labels(x: Tensor, label: Tensor | None, nothing: int | None) -> Tensor:
    if label is not None:
        return label
    if nothing is None:
        raise ValueError("this model has no label for no class: give a class, or say which with null=")
    return torch.full((len(x),), nothing, device=x.device)
