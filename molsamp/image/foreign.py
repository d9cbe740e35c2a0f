"""Networks of the diffusers library as denoisers. Its objects say all of themselves; nothing is imported."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from molsamp.engine.schedules import Discrete, Flow, Schedule
from molsamp.image.denoiser import Denoiser, data_from

BETAS: dict[str | None, Literal["linear", "scaled-linear"]] = {"linear": "linear", "scaled_linear": "scaled-linear"}
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}


def from_diffusers(model: Any, scheduler: Any, null: int | None = None) -> Denoiser:
    """A denoiser around a UNet2DModel or DiTTransformer2DModel (or one alike) of diffusers.

    The schedule and what the network predicts come from the scheduler's config; its grid, clipping and thresholding do
    not. A network with twice as many channels out as in also predicts a variance, which is cut off. Time is the index
    of the training step, or 0 to 1 on the straight lines of a FlowMatch scheduler.

    Args:
        model: called model(x, timestep[, class_labels]).sample, in its own dtype.
        scheduler: any scheduler of diffusers for it.
        null: the label that the model takes for no class; for a DiT its last, as it was trained.

    Raises:
        ValueError: for a config that is not understood.
    """
    told, config = scheduler.config, model.config
    schedule, prediction, unit = _process(type(scheduler).__name__, told)
    channels, side = config.in_channels, config.sample_size
    if side is None:
        raise ValueError("the model's config has no sample_size, the height and width of its pictures")
    event = (channels, *((side, side) if isinstance(side, int) else side))
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    nothing = config.get("num_embeds_ada_norm") if null is None else null

    def predict(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        given = {} if classes is None else {"class_labels": _labels(x, label, nothing)}
        time = torch.full((len(x),), t * unit, dtype=torch.float32, device=x.device)
        y = model(x.to(model.dtype), time, **given).sample.to(x.dtype)
        if y.shape[1] == 2 * channels:
            y = y[:, :channels]
        if y.shape != x.shape:
            raise ValueError(f"the network answers with shape {tuple(y.shape)} to x of shape {tuple(x.shape)}")
        return data_from(prediction, schedule, x, t, y)

    return Denoiser(schedule, predict, event, conditional=classes)


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
