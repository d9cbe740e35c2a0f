"""Training of the models that are shipped: `python -m molsamp.image.train digits` makes the file again.

The denoiser minimises the error of its prediction in its own units at every noise level alike (Karras et al., NeurIPS
2022, section 5); the label is left out now and then, so that one network answers with and without it (Ho, Salimans,
"Classifier-free diffusion guidance", 2022). What is kept is the running average of the weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from molsamp.engine.estimates import Estimate, mean, wilson
from molsamp.engine.noise import Noise
from molsamp.image import data
from molsamp.image.models import WEIGHTS, Model, save
from molsamp.image.networks import HIGHEST, LOWEST, Classifier, make
from molsamp.learn.fit import fit
from molsamp.learn.networks import count
from molsamp.learn.preconditioned import Preconditioned

WARM = 100  # steps over which the rate rises from 0
LINES = 10  # progress lines of a training


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Args:
        steps: gradient steps of AdamW.
        batch: pictures a step.
        rate: largest learning rate; it falls to 0 along half a cosine.
        decay: weight decay of AdamW.
        average: decay of the running average of the weights, a step.
        dropout: share of pictures shown without their label (denoisers).
        level, spread: mean and standard deviation of log s, s the noise of a picture in pixels (denoisers).
        broad: share of pictures whose log s is uniform over all noise levels instead.
    """

    steps: int
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-2
    average: float = 0.998
    dropout: float = 0.15
    level: float = -0.5
    spread: float = 1.2
    broad: float = 0.2


@dataclass(frozen=True)
class Recipe:
    """A data set, the architecture for it less what the data tells, and the settings."""

    images: Callable[..., data.Images]
    architecture: dict[str, Any]
    settings: Settings


RECIPES = {
    "digits": Recipe(data.digits, {"kind": "mlp", "width": 192, "depth": 3}, Settings(10_000)),
    "mnist": Recipe(data.mnist, {"kind": "unet", "widths": [24, 48, 64]}, Settings(5500, batch=96)),
    "digits-features": Recipe(data.digits, {"kind": "classifier", "widths": [16, 32, 32]}, Settings(1500)),
    "mnist-features": Recipe(data.mnist, {"kind": "classifier", "widths": [16, 32, 32]}, Settings(1500)),
}


def train(name: str, seed: int = 0, say: Callable[[str], None] = print) -> Model:
    """Train the network of a recipe from fresh weights.

    Args:
        name: a key of `RECIPES`.
        seed: of the initial weights, the batches and the noise.
        say: told of the progress, some `LINES` times.

    Returns:
        The model; its `notes` hold the seed, the settings and the held-out score with its 95 % interval.
    """
    recipe, noise = RECIPES[name], Noise(seed).child(name)
    notes = {"seed": seed, "command": f"python -m molsamp.image.train {name} --seed {seed}"}
    return train_on(recipe.images(), recipe.architecture, recipe.settings, noise, say, **notes)


def train_on(
    images: data.Images,
    architecture: dict[str, Any],
    settings: Settings,
    noise: Noise,
    say: Callable[[str], None] = print,
    **notes: Any,
) -> Model:
    """Train a network on any pictures.

    Args:
        images: every tenth is held out.
        architecture: as for `networks.make`, less "event", "classes" and "size", which the pictures tell.
        settings: how.
        noise: keys of everything random.
        say: told of the progress.
        notes: what else to write beside the weights.
    """
    kept, out = images.split()
    classes = int(images.label.max()) + 1
    whole = architecture | {"event": list(kept.x.shape[1:]), "classes": classes}
    if architecture["kind"] != "classifier":
        whole["size"] = round(float(kept.x.std()), 3)
    net = make(whole, noise.child("weights"))
    loss = partial(_classify, net) if isinstance(net, Classifier) else partial(_denoise, net, classes)
    score = partial(_score, out=out, settings=settings, noise=noise.child("held out"))
    average = _descend(net, loss, kept, settings, noise.child("batches"), score, say)
    net.load_state_dict({k: v.half().float() for k, v in average.state_dict().items()})  # what the file will hold
    held_out = score(net)
    notes |= {"settings": asdict(settings), "held_out": held_out.as_dict(), "parameters": count(net)}
    return Model(net.eval().requires_grad_(False), whole, notes)


def _descend(
    net: nn.Module,
    loss: Callable[[dict[str, Tensor]], Tensor],
    kept: data.Images,
    settings: Settings,
    noise: Noise,
    score: Callable[[nn.Module], Estimate],
    say: Callable[[str], None],
) -> nn.Module:
    """The gradient steps; returns the average of the weights."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: _rate(k / settings.steps, k / WARM))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings.average))

    def each() -> None:
        average.update_parameters(net)
        rates.step()

    began, done = time.process_time(), 0
    for line in range(1, LINES + 1):
        steps = settings.steps * line // LINES - done
        result = fit(loss, partial(_batch, kept, settings, noise, done), optimiser, steps=steps, each=each)
        done += steps
        say(
            f"step {done} of {settings.steps}: loss {result.loss:.4f}, held out {score(average.module)}; "
            f"{(spent := time.process_time() - began):.0f} CPU s, {spent * (settings.steps / done - 1):.0f} to go"
        )
    return average.module


def _rate(progress: float, warm: float) -> float:
    """Share of the largest rate."""
    return min(1.0, warm) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _batch(kept: data.Images, settings: Settings, noise: Noise, first: int, k: int) -> dict[str, Tensor]:
    """Pictures, their labels (some left out as -1), noise levels and noise of step `first` + k."""
    step, ids = first + k, torch.arange(settings.batch)
    rows = noise.child("rows").integers(step, ids, (), len(kept.x))
    x, label = kept.x[rows], kept.label[rows]
    u = noise.uniform(step, ids, (2,), torch.float32)
    hidden = u[:, 0] < settings.dropout
    z = noise.normal(step, ids, tuple(x.shape[1:]), torch.float32)
    return {"x": x, "z": z, "s": _levels(u[:, 1], settings), "label": torch.where(hidden, -1, label), "class": label}


def _levels(u: Tensor, settings: Settings) -> Tensor:
    """Noise levels, one in each of n equal shares of the law of s, placed within it by uniforms u."""
    n = len(u)
    broad = round(settings.broad * n)
    narrow = (torch.arange(n - broad) + u[broad:]) / (n - broad)
    wide = (torch.arange(broad) + u[:broad]) / max(1, broad)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    logs = [low + (high - low) * wide, settings.level + settings.spread * torch.special.ndtri(narrow)]
    return torch.cat(logs).clamp(low, high).exp()


def _denoise(net: Preconditioned, classes: int, batch: dict[str, Tensor]) -> Tensor:
    """The denoiser's error in its own units."""
    x, s, label = batch["x"], batch["s"], batch["label"]
    noisy = x + s.view(-1, 1, 1, 1) * batch["z"]
    return net.loss(noisy, s, x, None, torch.where(label < 0, classes, label))


def _classify(net: Classifier, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy of the class of a picture with a little noise, at most the tenth part of its range."""
    noisy = batch["x"] + (0.2 * batch["s"].clamp(max=1.0)).view(-1, 1, 1, 1) * batch["z"]
    return nn.functional.cross_entropy(net(noisy), batch["class"])


@torch.no_grad()
def _score(net: nn.Module, out: data.Images, settings: Settings, noise: Noise) -> Estimate:
    """Loss of a denoiser at 16 shares of the law of s, or accuracy of a classifier, on pictures not trained on."""
    if isinstance(net, Classifier):
        return wilson(int((net(out.x).argmax(1) == out.label).sum()), len(out.x))
    assert isinstance(net, Preconditioned)
    ids, each = torch.arange(len(out.x)), []
    for k, s in enumerate(_levels(torch.full((16,), 0.5), settings)):
        levels = s.expand(len(ids))
        z = noise.normal(k, ids, tuple(out.x.shape[1:]), torch.float32)
        noisy = out.x + s * z
        unit = s * net.size / (net.size**2 + s**2).sqrt()
        miss = (net(noisy, levels, out.label) - out.x) / unit
        each.append(miss.square().flatten(1).mean(1))
    return mean(torch.stack(each).mean(0))


def main() -> None:
    """The command line: train, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m molsamp.image.train", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: where molsamp.image.load looks for it")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the same bytes everywhere
    model = train(given.name, given.seed, partial(print, flush=True))
    file = given.out or WEIGHTS / f"{given.name}.safetensors"
    save(model, file)
    print(f"{file}: {model.notes['parameters']} parameters, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
