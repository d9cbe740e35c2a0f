"""Keyed random numbers: the only random draw in the package.

`Noise(seed)` is a counter-based generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011). A draw is a pure function of (seed, child names, kind, step, particle id, component), so it
does not depend on the batch a particle travels in, on the order of calls, or on how often a run was resumed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
CHUNK = 1 << 14  # counters handled together: all temporaries of the ten rounds stay in the L2 cache
NORMAL, UNIFORM, INTEGERS = 0, 1, 2  # the kinds of draw; each has its own counters

Steps = int | Sequence[int]


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words (held in int64) from four counter words and two key words.

    A 32 x 32 bit product wraps modulo 2^64 in int64; shifting and then masking recovers its high word.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and_(MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(MASK), p0.bitwise_and_(MASK)
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


class Noise:
    """Random numbers keyed by (seed, child, kind, step, particle id, component).

    Steps lie in [0, 2^46), particle ids in [0, 2^48).

    Args:
        seed: any integer in [0, 2^64).

    Raises:
        ValueError: for a seed outside that range.
    """

    def __init__(self, seed: int):
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is not in [0, 2^64)")
        self.seed = seed
        self._key = (seed & MASK, seed >> 32)

    def child(self, name: str) -> Noise:
        """An independent stream, named so that code added later does not shift the draws of this one."""
        digest = hashlib.blake2b(name.encode(), key=self.seed.to_bytes(8, "little"), digest_size=8).digest()
        return Noise(int.from_bytes(digest, "little"))

    def normal(
        self, step: Steps, ids: Int[Tensor, " n"], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "... n *shape"]:
        """Standard normals of one step, (n, *shape), or of a sequence of steps, (steps, n, *shape)."""
        return self._draw(NORMAL, step, ids, shape, dtype, _box_muller)

    def uniform(
        self,
        step: Steps,
        ids: Int[Tensor, " n"],
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "... n *shape"]:
        """Uniforms in the open interval (0, 1), shaped as in `normal`."""
        return self._draw(UNIFORM, step, ids, shape, dtype, _open_interval)

    def integers(self, step: Steps, ids: Int[Tensor, " n"], shape: tuple[int, ...], high: int) -> Tensor:
        """Integers in [0, high), high <= 2^31, shaped as in `normal`; their bias is below high / 2^32."""

        def scale(words: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
            return [(w * high) >> 32 for w in words]

        return self._draw(INTEGERS, step, ids, shape, torch.int64, scale)

    def _draw(self, kind, step, ids, shape, dtype, transform) -> Tensor:
        steps = [step] if isinstance(step, int) else list(step)
        if steps and not 0 <= min(steps) <= max(steps) < 1 << 46:
            raise ValueError(f"steps {min(steps)} to {max(steps)} are not in [0, 2^46)")
        size = math.prod(shape)
        per_group = 2 if dtype == torch.float64 else 4  # a float64 variate takes two words
        groups = -(-size // per_group)
        device = ids.device
        s = torch.as_tensor(steps, device=device)[:, None, None].expand(-1, len(ids), groups).reshape(-1)
        i = ids[None, :, None].expand(len(steps), -1, groups).reshape(-1)
        g = torch.arange(groups, device=device).expand(len(steps), len(ids), -1).reshape(-1)
        tag = kind | ((s >> 32) << 2) | ((i >> 32) << 16)  # the kind and what the words of step and id cannot hold
        counter = [g, s & MASK, i & MASK, tag]
        out = torch.empty((len(s), per_group), dtype=dtype, device=device)
        for a in range(0, len(s), CHUNK):
            words = philox([c[a : a + CHUNK] for c in counter], self._key)
            torch.stack(transform(words, dtype)[:per_group], dim=1, out=out[a : a + CHUNK])
        out = out.view(len(steps), len(ids), groups * per_group)[..., :size].reshape(len(steps), len(ids), *shape)
        return out[0] if isinstance(step, int) else out


class Centred:
    """Noise whose vectors over atoms sum to zero: standard normal in the subspace that moves no centre.

    Args:
        noise: what is projected.
    """

    def __init__(self, noise: Noise):
        self.noise = noise

    def normal(
        self, step: Steps, ids: Int[Tensor, " n"], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "... n *shape"]:
        """As `Noise.normal`, less the mean over the second last axis."""
        z = self.noise.normal(step, ids, shape, dtype)
        return z - z.mean(-2, keepdim=True)


class Tape:
    """Given noise in place of drawn noise, for chains that move in the space of the noise itself.

    Args:
        z: standard normals, (rows, n, *event); particle ids are ignored, row k serves step `first + k`.
    """

    def __init__(self, z: Float[Tensor, "rows n *event"], first: int = 0):
        self.z, self.first = z, first

    def normal(self, step: Steps, ids: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        """The stored rows, in the place of `Noise.normal`."""
        if isinstance(step, int):
            return self.z[step - self.first].to(dtype)
        return self.z[step[0] - self.first : step[-1] + 1 - self.first].to(dtype)


def _open_interval(words: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Words to uniforms in (0, 1): 32 bits each in float32, two words for 53 bits in float64."""
    below_one = 1.0 - torch.finfo(dtype).eps / 2  # where the last half would round up to 1
    if dtype == torch.float64:
        pairs = (words[:2], words[2:])
        return [((((a << 21) | (b >> 11)).to(dtype) + 0.5) * 2.0**-53).clamp_(max=below_one) for a, b in pairs]
    return [((w.to(dtype) + 0.5) * 2.0**-32).clamp_(max=below_one) for w in words]


def _box_muller(words: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Pairs of uniforms to pairs of normals: sqrt(-2 ln u1) (cos 2 pi u2, sin 2 pi u2)."""
    u = _open_interval(words, dtype)
    normals = []
    for u1, u2 in zip(u[::2], u[1::2], strict=True):
        r, angle = u1.log_().mul_(-2.0).sqrt_(), u2.mul_(2.0 * math.pi)
        normals += [r * angle.cos(), r * angle.sin()]
    return normals
