"""A U-Net along the time of a sequence of controls, told what is seen by a scale and a shift of every channel."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.engine.noise import Noise
from molsamp.learn.networks import seeded

GROUPS = 8  # of channels that are normalised together


class TemporalUNet(nn.Module):
    """Controls (B, H m) and a condition (B, c) to a velocity of the controls, by convolutions over H.

    The length of the sequence is halved from level to level and doubled back, channels double and halve; each block is
    told the condition by feature-wise scale and shift (FiLM: Perez et al., AAAI 2018; along time as of Janner et al.,
    ICML 2022). The last layer starts at zero.

    Args:
        horizon: H, a multiple of 2^(levels - 1).
        controls: m.
        condition: c.
        width: channels of the first level, a multiple of 8.
        levels: at least 1.
        noise: keys of the first weights.

    Raises:
        ValueError: for a horizon that cannot be halved so often, or a width that is no multiple of 8.
    """

    def __init__(self, horizon: int, controls: int, condition: int, width: int, levels: int, noise: Noise):
        super().__init__()
        if levels < 1 or horizon % 2 ** (levels - 1):
            raise ValueError(f"a horizon of {horizon} cannot be halved {levels - 1} times")
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"width={width} is not a multiple of {GROUPS}")
        self.shape = (horizon, controls)
        channels = [width * 2**k for k in range(levels)]
        with seeded(noise):
            self.first = nn.Conv1d(controls, width, 3, padding=1)
            self.down = nn.ModuleList(Block(a, b, condition) for a, b in pairwise([width, *channels]))
            self.shorter = nn.ModuleList(nn.Conv1d(a, a, 3, 2, 1) for a in channels[:-1])
            self.longer = nn.ModuleList(nn.Conv1d(b, a, 3, padding=1) for a, b in pairwise(channels))
            self.up = nn.ModuleList(Block(2 * a, a, condition) for a in channels[:-1])
            self.last = nn.Conv1d(width, controls, 3, padding=1)
        for zero in self.last.parameters():
            nn.init.zeros_(zero)

    def forward(self, a: Float[Tensor, "B Hm"], condition: Float[Tensor, "B c"]) -> Float[Tensor, "B Hm"]:
        """The velocity."""
        x = self.first(a.view(-1, *self.shape).transpose(1, 2))
        kept = []
        for block, shorter in zip(self.down[:-1], self.shorter, strict=True):
            kept.append(x := block(x, condition))
            x = shorter(x)
        x = self.down[-1](x, condition)
        for block, longer in zip(reversed(self.up), reversed(self.longer), strict=True):
            x = longer(x.repeat_interleave(2, dim=2))
            x = block(torch.cat([x, kept.pop()], 1), condition)
        return self.last(x).transpose(1, 2).flatten(1)


class Block(nn.Module):
    """Two convolutions, each after a group's normalisation; between them the scale and the shift; a way past them.

    Args:
        before: channels.
        after: channels.
        condition: numbers that scale and shift are made of.
    """

    def __init__(self, before: int, after: int, condition: int):
        super().__init__()
        self.enter = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv1d(before, after, 3, padding=1))
        self.told = nn.Linear(condition, 2 * after)
        self.leave = nn.Sequential(nn.GroupNorm(GROUPS, after), nn.SiLU(), nn.Conv1d(after, after, 3, padding=1))
        self.past = nn.Identity() if before == after else nn.Conv1d(before, after, 1)

    def forward(self, x: Float[Tensor, "B before n"], condition: Float[Tensor, "B c"]) -> Float[Tensor, "B after n"]:
        """The answer, as long as x."""
        scale, shift = self.told(condition)[..., None].chunk(2, dim=1)
        return self.past(x) + self.leave(self.enter(x) * (1.0 + scale) + shift)
