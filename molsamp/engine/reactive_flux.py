"""Rates from the top of the barrier: how often trajectories through a surface come from A and go to B.

In equilibrium nu trajectories go from A to B per time. Each crosses the surface s(x) = s* between them an odd number N
of times, so that every crossing counts 1 / N:

    nu = p(s*) < |ds/dt| 1[one end in A, the other in B] / (2 N) >,

over configurations on the surface with thermal velocities, carried on until A or B, and with their velocities turned
round until A or B; 2, since either end may be the one in A. The rate is k = nu / (share of the time since A). Nothing
has to climb, and where the surface lies changes the error alone. Where configurations come from a window exp(-b(s)),
each on a surface of its own, p(s*) is the mean of p(s) with the weight exp(-b(s)).

Sources: Bennett (1977); Chandler, J. Chem. Phys. 68, 2959 (1978); whole trajectories: van Erp and Bolhuis, J. Comput.
    Phys. 205, 157 (2005).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.engine.dynamics import Underdamped
from molsamp.engine.ensembles import Motion
from molsamp.engine.integrators import require
from molsamp.engine.state import Particles, Status

AT_ONCE = 16  # looks between two sortings of who has arrived
A, B, UNDECIDED = 0, 1, -1


@dataclass(frozen=True)
class Shots:
    """What became of n configurations on a surface.

    Args:
        speed: |ds/dt| at first.
        ends: where each came from and where it went: 0 = A, 1 = B, -1 = nowhere in the time given, (2, n).
        crossings: N, of the surface, (n,).
        steps: of the dynamics, in all.
    """

    speed: Float[Tensor, " n"]
    ends: Int[Tensor, "2 n"]
    crossings: Int[Tensor, " n"]
    steps: int

    @property
    def reactive(self) -> Bool[Tensor, " n"]:
        """Whether A and B are the two ends."""
        return (self.ends >= 0).all(0) & (self.ends[0] != self.ends[1])

    @property
    def flux(self) -> Float[Tensor, " n"]:
        """|ds/dt| 1[reactive] / (2 N), whose mean times p(s*) is nu."""
        return torch.where(self.reactive, self.speed / (2 * self.crossings), 0.0)


def shoot(motion: Motion, p: Particles, slope: Float[Tensor, " n"], longest: int, period: float | None = None) -> Shots:
    """Both ways from where particles are, each on the surface of its own progress.

    Args:
        motion: an underdamped dynamics, and how it is seen; a crossing is a change of sides between two looks.
        p: with thermal velocities.
        slope: ds/dt of each.
        longest: looks after which one is given up.
        period: of progress, whose far side is no surface.

    Raises:
        ValueError: for a dynamics without velocities.
    """
    require(motion.dyn, (Underdamped,), "reactive flux")
    s, side, ends, crossings, steps = motion.look(p.x).progress, slope > 0, [], torch.ones(len(p)).long(), 0
    assert p.v is not None
    for way, sign in (("back", -1.0), ("on", 1.0)):
        one = replace(motion, noise=motion.noise.child(way))
        end, more, taken = _follow(one, p.evolve(v=sign * p.v), s, side == (sign > 0), longest, period)
        ends.append(end)
        crossings, steps = crossings + more, steps + taken
    return Shots(slope.abs().double(), torch.stack(ends), crossings, steps)


def _follow(
    motion: Motion, p: Particles, s: Tensor, side: Tensor, longest: int, period: float | None
) -> tuple[Tensor, Tensor, int]:
    """Until A or B: (end, changes of sides, steps)."""
    end, changes, steps = torch.full((len(p),), UNDECIDED), torch.zeros(len(p)).long(), 0
    open_, last = torch.arange(len(p)), torch.zeros(len(p)).to(s)
    for first in range(0, longest, AT_ONCE):
        if not len(open_):
            break
        path, sight = motion.carry(p, AT_ONCE, first * motion.every)
        steps += len(p) * AT_ONCE * motion.every
        there = sight.a | sight.b
        before = there.cumsum(0) - there.long() == 0  # up to the first look at A or B
        off = sight.progress - s[open_]
        if period is not None:
            off = off - period * (off / period).round()
        above = torch.cat([side[None, open_], off > 0])
        crossed = (above[1:] != above[:-1]) & before
        if period is not None:
            crossed &= torch.cat([last[None, open_], off]).diff(dim=0).abs() < 0.5 * period
        changes[open_] += crossed.sum(0)
        side[open_], last[open_] = above[-1], off[-1]
        arrived, at = there.any(0), there.int().argmax(0)
        end[open_[arrived]] = torch.where(sight.b.gather(0, at[None])[0], B, A)[arrived]
        left = ~arrived & (path.final.status != Status.DIVERGED)
        p, open_ = path.final.take(left.nonzero()[:, 0]), open_[left]
    return end, changes, steps
