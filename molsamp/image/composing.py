"""An object put into a background, its surroundings healed by the model: PrimeComposer, on the one rollout.

Three pictures go side by side: the composite c (the object laid on the background), the background b and the picture o
that the object is from. The solver, run backwards, carries them to noise; forwards, the model answers in each row

    1.  D_c, D_b, D_o without a condition; a recorder keeps S = scale q_c k_o' at the object's tokens of every layer
    2.  D_c <- D_c + w (D_c* - D_c), D_c* with its label, with S at the place's tokens and words confined to the place
    3.  D_c <- D_b outside a region: the place in the first rows, its bounding box later, nothing in the last ones

A row is linear in x and in the predictions that it keeps, pixel by pixel. So where start and predictions of c are those
of b, x is too, in every row: the third line is the blend of x and that of a multistep solver's memory in one.

Source: Wang et al., "PrimeComposer: faster progressively combined diffusion for image composition with attention
steering", ACM MM 2024; arXiv 2403.05053.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from molsamp.engine.guides import Guided, Prediction, State
from molsamp.engine.integrators import Evaluate, Integrator
from molsamp.engine.noise import Noise
from molsamp.engine.state import Path
from molsamp.image.attention import Confine, Hook, Inject, Recorder, attending, inside
from molsamp.image.denoiser import Denoiser, Label
from molsamp.image.guidance import guided
from molsamp.image.sampling import dynamics, grid_of, sample

COMPOSITE, BACKGROUND, OBJECT = range(3)


@dataclass(frozen=True)
class Composition:
    """How a composite came about.

    Args:
        inverted: path of composite, background and object from pictures to noise.
        path: theirs back.
        edited: rows in which logits were put in.
        shaped: rows in which all but the place was the background's.
        framed: rows in which all but its bounding box was, the `shaped` ones among them.
        round_trip: root mean square of what inversion and solver changed in background and object.
    """

    inverted: Path
    path: Path
    edited: int
    shaped: int
    framed: int
    round_trip: tuple[float, float]


def compose(
    model: Denoiser,
    background: Float[Tensor, "*event"],
    object: Float[Tensor, "*other"],
    object_mask: Bool[Tensor, "H W"],
    place_mask: Bool[Tensor, "H W"],
    *,
    net: nn.Module,
    own: Sequence[str],
    cross: Sequence[str] = (),
    words: tuple[int, ...] = (),
    label: Label = None,
    weight: float = 2.0,
    schedule: tuple[float, float, float] = (0.3, 0.8, 0.1),
    solver: str | Integrator = "dpm++2m",
    steps: int = 20,
    grid: str | Sequence[float] | None = None,
) -> tuple[Float[Tensor, "*event"], Composition]:
    """(the object of `object` in the background, the log).

    With S rows and a solver of order o, row k puts in logits while k < tau_a S + 1 - o, keeps to the place while
    k < tau_c S + 1 - o, and to its bounding box while k < tau_b S; the noise that it begins with is always the
    background's but for the place.

    Args:
        model: asked without a label but for the composite's second pass.
        background: the picture that is kept, (C, H, W).
        object: the picture that the object is cut from.
        object_mask: where it is there.
        place_mask: where it goes, the same shape moved by whole pixels.
        net: the network that the model asks, itself and no copy.
        own: its layers of self-attention, as in `net.named_modules()`; their tokens are squares of the picture.
        cross: its layers of cross-attention.
        words: columns of these that are the object's.
        label: of the composite.
        weight: w.
        schedule: (tau_a, tau_b, tau_c), shares of the rows; as published (0.3, 0.8, 0.1) where the pictures are alike,
            (0.4, 0.8, 0.3) for a drawn background.
        solver: of one prediction a row, at its beginning, and without noise.
        steps: rows, each way; a row there costs one pass of three pictures, a row back another one of one picture.
        grid: as `sample` takes it; it must end above sigma = 0.

    Raises:
        ValueError: for pictures or masks that do not fit, a place of another shape than the object, shares outside
            [0, 1], words without layers, a solver that is none of these, or layers that the model did not run.
    """
    _fitting(model, background, object, object_mask, place_mask)
    if not all(0.0 <= tau <= 1.0 for tau in schedule):
        raise ValueError(f"the schedule is {schedule}; its shares must lie in [0, 1]")
    if bool(words) != bool(cross):
        raise ValueError(f"words {words} and layers of cross-attention {tuple(cross)}: give both or neither")
    object_mask, place_mask = object_mask.to(background.device), place_mask.to(background.device)
    shift = moved(object_mask, place_mask)
    plain = guided(solver)
    times = grid_of(model.schedule, grid, steps)
    _without_noise(plain, model, times)
    edited, shaped, framed = rows(schedule, steps, getattr(plain.integrator, "order", 1))

    pasted = background.clone()
    pasted[..., place_mask] = object[..., object_mask]
    given = torch.stack([pasted, background, object])
    ode = plain.integrator  # nothing is drawn
    inverted = sample(model, ode, steps, noise=Noise(0), start=given, grid=times[::-1], save="all")
    start = inverted.final.x.clone()
    start[COMPOSITE] = torch.where(place_mask, start[COMPOSITE], start[BACKGROUND])

    place = partial(inside, place_mask)
    recorder = Recorder((COMPOSITE, OBJECT), lambda N: beside(place(N), shift, place_mask, N))
    steering: dict[str, Hook] = dict.fromkeys(own, Inject(recorder.kept, place))
    confining: dict[str, Hook] = dict.fromkeys(cross, Confine(words, place_mask))
    composer = _Composer(model, net, recorder, steering, confining, label, weight, times[edited])
    keep = Keep([(times[shaped], place_mask), (times[framed], box(place_mask))])
    path = sample(composer, Guided(ode, keep), steps, noise=Noise(0), start=start, grid=times, save="all")
    off = (path.final.x[BACKGROUND:] - given[BACKGROUND:]).square().flatten(1).mean(1).sqrt()
    return path.final.x[COMPOSITE], Composition(inverted, path, edited, shaped, framed, (float(off[0]), float(off[1])))


@dataclass(frozen=True)
class Keep:
    """The aim of particle 0 is that of particle 1 outside a region: what is not in it is a background's.

    The regions must grow from the first to the last, so that what a solver remembers fits each.

    Args:
        regions: (time down to which it holds, that one not included; region), from noise to data.
    """

    regions: Sequence[tuple[float, Bool[Tensor, "H W"]]]
    slots = 0

    def __call__(self, p: Prediction, state: State | None) -> tuple[Prediction, State]:
        """The others are left."""
        for end, region in self.regions:
            if p.t > end:
                aim = p.aim.clone()
                aim[COMPOSITE] = torch.where(region.to(aim.device), p.aim[COMPOSITE], p.aim[BACKGROUND])
                return p.towards(aim), ()
        return p, ()


class _Composer:
    """The model of the three pictures; logits that one pass recorded are gone after the next."""

    def __init__(
        self,
        model: Denoiser,
        net: nn.Module,
        recorder: Recorder,
        steering: dict[str, Hook],
        confining: dict[str, Hook],
        label: Label,
        weight: float,
        edited: float,
    ):
        self.model, self.net, self.recorder, self.schedule, self.event = (
            model,
            net,
            recorder,
            model.schedule,
            model.event,
        )
        self.steering, self.confining, self.label, self.weight, self.edited = steering, confining, label, weight, edited

    def __call__(self, x: Tensor, t: float) -> Tensor:
        steering = self.steering if t > self.edited else {}
        with attending(self.net, dict.fromkeys(steering, self.recorder)):
            D = self.model(x, t)
        if missing := sorted(set(steering) - set(self.recorder.kept)):
            raise ValueError(f"layer {missing[0]!r} did not run: net must be the network that the model asks, no copy")
        hooks = {**steering, **self.confining}
        if not hooks and self.label is None:
            return D
        with attending(self.net, hooks):
            steered = self.model(x[:1], t, self.label)
        self.recorder.kept.clear()
        return torch.cat([torch.lerp(D[:1], steered, self.weight), D[1:]])


def rows(schedule: tuple[float, float, float], steps: int, order: int) -> tuple[int, int, int]:
    """(rows in which logits are put in, rows of the place, rows of its bounding box or the place), as `compose`."""
    a, b, c = (_below(tau * steps) for tau in schedule)
    edited, shaped = (max(0, k + 1 - order) for k in (a, c))
    return edited, shaped, max(b, shaped)


def _below(share: float) -> int:
    """How many k = 0, 1, .. are below; 0.7 x 10 is 7."""
    return math.ceil(share - 1e-9)


def moved(of: Bool[Tensor, "H W"], place: Bool[Tensor, "H W"]) -> tuple[int, int]:
    """(down, right), pixels, from a place to the object that goes there.

    Raises:
        ValueError: if one is empty, or no shift takes one to the other.
    """
    a, b = of.nonzero(), place.nonzero()
    if len(a) != len(b) or not len(a) or not torch.equal(a - a[0], b - b[0]):
        raise ValueError(
            f"the object has {len(a)} pixels, its place {len(b)}; allowed is one shape, moved by whole pixels"
        )
    down, right = (a[0] - b[0]).tolist()
    return down, right


def beside(J: Int[Tensor, " M"], shift: tuple[int, int], mask: Bool[Tensor, "H W"], tokens: int) -> Int[Tensor, " M"]:
    """Tokens of a layer, moved by so many pixels to the nearest token, none out of the picture."""
    H, W = mask.shape
    side = round((H * W / tokens) ** 0.5)
    down, right = (round(pixels / side) for pixels in shift)
    y, x = J // (W // side) + down, J % (W // side) + right
    return y.clamp(0, H // side - 1) * (W // side) + x.clamp(0, W // side - 1)


def box(mask: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """The bounding box of a mask that is not empty."""
    (top, left), (bottom, right) = mask.nonzero().amin(0).tolist(), mask.nonzero().amax(0).tolist()
    around = torch.zeros_like(mask)
    around[top : bottom + 1, left : right + 1] = True
    return around


def _fitting(model: Denoiser, background: Tensor, object: Tensor, *masks: Tensor) -> None:
    for name, a in (("background", background), ("object", object)):
        if tuple(a.shape) != model.event:
            raise ValueError(f"the {name} has shape {tuple(a.shape)}, the model is for {model.event}")
    for a in masks:
        if a.shape != background.shape[-2:] or a.dtype != torch.bool:
            wanted = tuple(background.shape[-2:])
            raise ValueError(f"a mask has shape {tuple(a.shape)} and {a.dtype}, allowed is {wanted} of bool")


def _without_noise(plain: Guided, model: Denoiser, times: Sequence[float]) -> None:
    """See that the solver's rows draw nothing, look at their beginning alone, and can be run backwards."""
    if model.schedule.sigma(times[-1]) == 0.0:
        raise ValueError(f"the grid ends at t = {times[-1]:g} without noise, from where no solver runs backwards")
    for row in plain.integrator.rows(dynamics(model, plain.form), times):  # type: ignore[arg-type]
        if row.draws or any(isinstance(verb, Evaluate) and verb.t != row.t0 for verb in row.program):
            raise ValueError("the solver draws noise or predicts between times; compose for example with 'dpm++2m'")
