"""AS, ASBS and WT-ASBS: diffusion samplers of exp(-E/kT), and of exp(-(E + V)/kT) with a well-tempered bias V.

    warm-up       Short dynamics from the start state; the denoiser learns to make such configurations.
    epochs        Samples are drawn, relaxed by a little dynamics under E + V, add hills to V, and go to a buffer with
                  their adjoints a = grad(E + V)/kT + h; the denoiser and the corrector take gradient steps on it.
    production    V is frozen. Fresh samples become walkers whose frames count with weight exp(V/kT), as in `walkers`.

One recipe, three settings: adjoint sampling starts at a point (Havens et al., "Adjoint sampling", 2025), ASBS anywhere
(Liu et al., "Adjoint Schroedinger bridge sampler", 2025), and WT-ASBS adds hills ("Well-tempered ASBS", arXiv
2510.11923). Height 0 is ASBS, bit for bit. The relaxation is ours, as is the blend of targets (see `learn.adjoint`):
with `relax = "none"` and `blend = "none"` the recipe is the published one.

The samples themselves give a second estimate, by weights alone and with no dynamics after them: it is exact only as far
as the sampler is, and the two stand side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.engine.bridges import Base, EDMBase, VEBase
from molsamp.engine.estimates import Estimate, wilson
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Particles, Status
from molsamp.learn.adjoint import Blend, BridgeSampler, clipped
from molsamp.learn.buffer import Ring
from molsamp.learn.networks import flatten_state, with_prefix
from molsamp.learn.preconditioned import Preconditioned
from molsamp.molecular.free_energy.diffusion import networks, sources
from molsamp.molecular.free_energy.hills import Hills, Kernel, flat
from molsamp.molecular.free_energy.settings import ASBSSettings, ASSettings, DiffusionSettings, WTASBSSettings
from molsamp.molecular.free_energy.surface import Histogram
from molsamp.molecular.free_energy.walkers import Walkers, blocks
from molsamp.molecular.restraints import Restraint, chirality
from molsamp.molecular.torsions import Turns, can_turn

WARM_UNIT = 250  # gradient steps in a unit of the warm-up
WARM_WALKERS = 64
FRAMES = 200  # of each of them


class AdjointSampler(Walkers):
    """What the three have in common, which is all but their settings; arguments as in `Walkers`."""

    Settings = DiffusionSettings
    advice = "Take hills (--method wt-asbs), or let it learn for longer (`epochs`)."
    longer = "more `epochs`"
    bias: Hills

    def _begin(self) -> None:
        super()._begin()
        s, task = self.settings, self.task
        width = getattr(s, "width", None) or tuple((hi - lo) / 20 for lo, hi in self.grid.ranges)
        self.height, factor = getattr(s, "height", 0.0), getattr(s, "factor", math.inf)
        self.bias = flat(task.cvs, self.grid, task.system.event, Kernel(self.height, tuple(width), factor, task.kT))
        self.warm = 1 + -(-s.warm_steps // WARM_UNIT)
        self.built = self.warm + s.epochs
        self.settled, self.total = self.settled + self.built, self.total + self.built
        self.sampler = self._sampler(s)
        self.ring, self.warm_ring = Ring(s.buffer), Ring(WARM_WALKERS * FRAMES)
        self.drawn = 0
        self.outside, self.seen = 0, 0  # samples that a restraint acts on, of how many, since the bias is frozen
        self.restraint = self._restraint()
        turns = s.turn is not None and can_turn(task.system)
        moves = Turns(task.system) if turns else None
        self.blend = Blend(math.inf if s.blend is None else s.blend, moves, s.turn or 0.3)
        self.raw = Histogram.empty(self.grid, task.kT, blocks(max(s.draws, s.walkers)))
        self.relaxing = 0 if s.relax is None else task.rows(s.relax, "relax")

    def _sampler(self, s: DiffusionSettings) -> BridgeSampler:
        system, noise = self.task.system, self.noise.child("networks")
        p = s.process
        base: Base = VEBase(p.smin, p.smax) if p.kind == "ve" else EDMBase(p.smin, p.smax, p.rho)
        highest = math.sqrt(float(base.left(torch.zeros(()))))
        reference = system.states[system.settings.start].x.to(self.task.dtype)

        def net(name: str) -> Preconditioned:
            made = networks.build(
                s.network.kind,
                s.network.widths,
                system.event,
                reference,
                noise.child(name),
                lowest=p.smin,
                highest=highest,
            )
            return made.to(self.task.dtype)

        source: Any
        if s.source.kind == "point":
            source, corrector = sources.Point(system.event), None
        else:
            bonds = self._bonds()
            if s.source.kind == "harmonic" and bonds is None:
                raise ValueError(f"source.kind = 'harmonic' needs bonds, and {system.name} has none; allowed: gaussian")
            source = (
                sources.isotropic(system.event, s.source.width)
                if s.source.kind == "gaussian" or bonds is None
                else sources.harmonic(system.event, bonds, s.source.width)
            )
            corrector = net("corrector")
        return BridgeSampler(
            source,
            base,
            net("denoiser"),
            corrector,
            self.noise.child("sampler"),
            steps=s.steps,
            centred=len(system.event) == 2,
            rate=s.learning_rate,
            average=s.average,
            order=s.order,
        )

    def _bonds(self) -> Tensor | None:
        topology = self.task.system.topology
        if topology is None:
            return None
        return torch.tensor([[b.atom1.index, b.atom2.index] for b in topology.bonds()])

    def _restraint(self) -> Restraint | None:
        system, bonds = self.task.system, self._bonds()
        if bonds is None or system.topology is None:
            return None
        elements = [a.element.symbol for a in system.topology.atoms()]
        pairs = [(int(i), int(j)) for i, j in bonds]
        return chirality(elements, pairs, system.states[system.settings.start].x)

    # ---------------------------------------------------------------- units

    def _build(self) -> dict[str, Any]:
        if self.k == 0:
            return self._warm_data()
        if self.k < self.warm:
            return self._warm_up()
        return self._epoch()

    def _warm_data(self) -> dict[str, Any]:
        """Short dynamics from the start state."""
        s, task, noise = self.settings, self.task, self.noise.child("warm")
        rows = max(FRAMES, task.rows(s.warm, "warm"))
        stride = rows // FRAMES
        p = task.start(noise, WARM_WALKERS, [task.system.settings.start])
        times = [k * task.timestep for k in range(stride * FRAMES + 1)]
        path = rollout(task.dynamics(task.energy), task.integrator, p, times, noise=noise, save=stride)
        self.evaluations += WARM_WALKERS * stride * FRAMES
        x = self._centre(path.x[1:].flatten(0, 1))
        for net in self.sampler.networks:
            networks.measure(net, x)
        self.warm_ring.push({"x1": x})
        return {"note": "warm-up: dynamics"}

    def _warm_up(self) -> dict[str, Any]:
        """Bridge matching between the source and turned frames of that dynamics."""
        s, unit = self.settings, self.k - 1
        x1 = self.warm_ring.items["x1"]
        n, noise = len(x1), self.noise.child("pairs")
        ids = torch.arange(n)
        x0 = self.sampler.source.draw(noise.child(f"source {unit}"), ids, x1.dtype)
        ring = Ring(n)
        ring.push({"x0": x0, "x1": turned(x1, noise.normal(unit, ids, (4,), x1.dtype))})
        fit = self.sampler.match(ring, WARM_UNIT, s.batch, Blend(0.0), s.learning_rate)
        if self.sampler.corrector is not None:
            self.sampler.correct(ring, WARM_UNIT // 5, s.batch, s.learning_rate)
        self.network_calls += WARM_UNIT * s.batch
        return {"loss": fit.loss, "note": self._word("warm-up", 1, self.warm)}

    def _epoch(self) -> dict[str, Any]:
        """Samples, hills, adjoints, gradient steps."""
        s, task = self.settings, self.task
        epoch = self.k - self.warm
        start, x1, good = self._draw(s.samples)
        if self.relaxing:
            x1, good = self._relax(x1, good)
        cv = task.values(x1).double().masked_fill(~good[:, None], torch.nan)
        metrics: dict[str, Any] = {"outside": 1.0 - float(good.float().mean())}
        if epoch < s.epochs - max(1, round(s.frozen * s.epochs)) and self.height > 0.0:
            self.bias, heights = self.bias.deposit(cv)
            self._write_lines(self._lines(cv, heights), self.warm)
            self._note_bias()
            metrics["height"] = float(heights.sum())
        slope = self._slope(x1).masked_fill(~good.view(-1, *[1] * (x1.dim() - 1)), torch.nan)
        self.ring.push({"x0": start.x, "x1": x1, "slope": slope})
        self._refresh()
        share = 0.5 * (1.0 + math.cos(math.pi * epoch / s.epochs))
        rate = s.learning_rate * (s.decay + (1.0 - s.decay) * share)
        fit = self.sampler.match(self.ring, s.gradient_steps, s.batch, self.blend, rate)
        if self.sampler.corrector is not None:
            self.sampler.correct(self.ring, max(1, s.gradient_steps // 5), s.batch, rate)
        self.network_calls += s.gradient_steps * s.batch
        return metrics | {"loss": fit.loss, "skipped": fit.skipped, "note": self._word("epoch", self.warm, self.built)}

    def _draw(self, n: int) -> tuple[Particles, Tensor, Tensor]:
        """n fresh samples: starts, ends, and which are to be used."""
        start, final = self.sampler.draw(n, self.drawn, self.task.dtype)
        self.drawn += n
        self.network_calls += n * self.settings.steps
        x1 = self._centre(final.x)
        self._check()
        return start, x1, (final.status == Status.OK) & ~self._violated(x1)

    def _violated(self, x: Tensor) -> Bool[Tensor, " n"]:
        return torch.zeros(len(x), dtype=torch.bool) if self.restraint is None else self.restraint.violated(x)

    def _relax(self, x: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """A little dynamics under E + V with strong friction; the ends of it, and which are to be used."""
        s, task = self.settings, self.task
        p = task.thermal(x, self.noise.child("relax velocities"), self.k)
        p = p.evolve(status=torch.where(good, p.status, Status.DONE).to(p.status))
        dyn = task.dynamics(task.energy + self.bias, s.relax_friction)
        times = [k * task.timestep for k in range(self.relaxing + 1)]
        path = rollout(
            dyn,
            task.integrator,
            p,
            times,
            noise=self.noise.child("relax"),
            save="last",
            first=self.k * self.relaxing,
        )
        self.evaluations += len(x) * self.relaxing
        end = self._centre(path.final.x)
        return end, good & (path.final.status != Status.DIVERGED) & ~self._violated(end)

    def _slope(self, x: Tensor) -> Tensor:
        """grad(E + restraints)/kT."""
        energy = self.task.energy if self.restraint is None else self.task.energy + self.restraint
        self.evaluations += len(x)
        return -energy.energy_force(x)[1] / self.task.kT

    def _refresh(self) -> None:
        """Adjoints of all that is stored, under the bias and the corrector of now; too long gradients are shortened."""
        if not len(self.ring):
            return
        x, slope = (self.ring.items[name][: len(self.ring)] for name in ("x1", "slope"))
        slope = slope - self.bias.energy_force(x)[1] / self.task.kT
        if self.settings.clip is not None:
            slope = clipped(slope, self.settings.clip)
        self.ring.items["adjoint"] = slope - self._mean(slope) + self.sampler.h(x)

    def _mean(self, x: Tensor) -> Tensor | float:
        return x.mean(1, keepdim=True) if x.dim() == 3 else 0.0

    def _centre(self, x: Tensor) -> Tensor:
        return x - self._mean(x)

    def _produce(self) -> dict[str, Any]:
        if self.k == self.built:
            self._release()
        return super()._produce()

    def _release(self) -> None:
        """Fresh samples, their own estimate, and walkers that start from them."""
        s, task = self.settings, self.task
        _, x, good = self._draw(max(s.draws, s.walkers))
        self.seen, self.outside = len(x), int((~good).sum())
        cv = task.values(x).double()
        logw = self._log_weights(cv[None], ~good)[0]
        groups = len(self.raw.weight)
        self.raw = self.raw.add(cv.view(-1, groups, cv.shape[1]), logw.view(-1, groups))
        x, good = x[: s.walkers], good[: s.walkers]
        if self.relaxing:
            x, good = self._relax(x, good)
        p = task.thermal(x, self.noise.child("velocities"))
        self.p = p.evolve(status=torch.where(good, p.status, Status.DIVERGED).to(p.status))
        self.rows = 0

    # ---------------------------------------------------------------- results

    def by_bias(self) -> Float[np.ndarray, "*N"] | None:
        """-gamma/(gamma - 1) V, kJ/mol; None without hills."""
        return self.bias.free_energy() if self.height > 0.0 else None

    def others(self) -> dict[str, Estimate]:
        """The differences by the samples as they were drawn, and how many of those were not to be used."""
        return self.differences(self.raw, "dF_samples") | {"unusable": wilson(self.outside, self.seen)}

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = super()._state() | {
            "drawn": torch.tensor(self.drawn),
            "seen": torch.tensor([self.seen, self.outside]),
        }
        flat |= flatten_state("raw", self.raw.to_tensors())
        flat |= flatten_state("sampler", self.sampler.state()) | flatten_state("ring", self.ring.state())
        if self.k < self.warm:
            flat |= flatten_state("warm_ring", self.warm_ring.state())
        return flat

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        self.drawn = int(state["drawn"])
        self.seen, self.outside = state["seen"].tolist()
        self.raw = self.raw.restored(with_prefix("raw", state))
        self.sampler.load(with_prefix("sampler", state))
        self.ring.load(with_prefix("ring", state))
        if self.k < self.warm:
            self.warm_ring.load(with_prefix("warm_ring", state))


class AS(AdjointSampler):
    """Adjoint sampling, from a point."""

    name = "as"
    Settings = ASSettings


class ASBS(AdjointSampler):
    """The adjoint Schroedinger bridge sampler, whose source may be any."""

    name = "asbs"
    Settings = ASBSSettings


class WTASBS(AdjointSampler):
    """ASBS with a well-tempered bias on the CVs."""

    name = "wt-asbs"
    Settings = WTASBSSettings
    advice = "Let it learn for longer (`epochs`), or give its walkers more `production`."


def turned(x: Float[Tensor, "n *event"], q: Float[Tensor, "n 4"]) -> Float[Tensor, "n *event"]:
    """Molecules turned by the rotations of quaternions q of any length; toys stay as they are."""
    if x.dim() == 2:
        return x
    w, u = q[:, 0], q[:, 1:]
    K = torch.zeros(len(q), 3, 3, dtype=q.dtype)
    for (i, j), k in (((2, 1), 0), ((0, 2), 1), ((1, 0), 2)):
        K[:, i, j], K[:, j, i] = u[:, k], -u[:, k]
    n2 = q.square().sum(1)[:, None, None]
    R = torch.eye(3, dtype=q.dtype) + 2.0 * (w[:, None, None] * K + K @ K) / n2
    return x @ R.mT
