"""Gradients of a loss of the samples with respect to where sampling starts and to whatever the model depends on.

Three ways, one call:

    "full"          autograd through every row: exact, memory grows with the number of rows
    "checkpoint"    rows are run again in stretches of about sqrt(N): exact, for one more sampling run
    "adjoint"       the adjoint equation beside the flow, backwards: constant memory, exact as the steps shrink; stiff
                    near the data (da/drho = -a / rho off the manifold), so take a grid, as that of Karras, on which
                    sigma / alpha changes by less than a factor of two in a step, and 40 steps or more

In y = x / alpha and rho = sigma / alpha the flow is dy/drho = eps, so that a = dL/dy and the gradient g with respect to
parameters w obey

    da/drho = -alpha a (d eps / dx),      dg/drho = -a (d eps / dw)

(AdjointDPM). All of (y, a, g) move by what multiplies drho, as y alone does in sampling: alpha (y, a, g) is the state
of a diffusion model on the same schedule whose noise prediction is the right-hand side. So the solver that sampled, run
the other way, solves the adjoint too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from molsamp.engine.dynamics import Dynamics
from molsamp.engine.integrators import Integrator, Table
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.schedules import Schedule
from molsamp.engine.state import Memory, Particles, Status
from molsamp.image.sampling import Model, dynamics, grid_of, plan
from molsamp.image.solvers import Frame

Loss = Callable[[Tensor], Tensor]


class Gradient(NamedTuple):
    """Loss of every sample (n,), d(sum of losses)/d start (n, *event) and /d each of `wrt`, and the samples.

    A sample that diverged has no gradient: its row of `start`, and everything in `wrt`, is NaN: `learn.fit` skips it.
    """

    loss: Float[Tensor, " n"]
    start: Float[Tensor, "n *event"]
    wrt: tuple[Tensor, ...]
    final: Particles


def gradient(
    model: Model,
    loss: Loss,
    start: Float[Tensor, "n *event"],
    wrt: Sequence[Tensor] = (),
    *,
    solver: str | Integrator = "ddim",
    steps: int = 20,
    noise: Noise,
    grid: str | Sequence[float] | None = None,
    mode: str = "checkpoint",
) -> Gradient:
    """The gradient of sum loss(x_0) for the samples x_0 that `sample` makes from `start` with the same arguments.

    Args:
        model: a `Denoiser`, or anything alike.
        loss: samples (n, *event) -> (n,).
        start: x at the first time.
        wrt: tensors that the model's prediction depends on and that ask for gradients: parameters, a condition.
        solver, steps, noise, grid: as for `sample`; noise is drawn again in the same way where rows run twice.
        mode: "full", "checkpoint" or "adjoint", see the module; the last is for solvers that draw no noise.

    Raises:
        ValueError: an unknown mode, a loss that is not one number a sample, a tensor of `wrt` that asks for no
            gradient, or an adjoint of a solver that draws noise or of a grid that ends without noise.

    Source: Pan et al., "AdjointDPM", ICLR 2024, eq. 7 to 12.
    """
    if mode not in (modes := {"full": _full, "checkpoint": _checkpoint, "adjoint": _adjoint}):
        raise ValueError(f"mode {mode!r} is unknown, allowed are {', '.join(modes)}")
    if not all(w.requires_grad for w in wrt):
        raise ValueError(f"wrt[{[w.requires_grad for w in wrt].index(False)}] asks for no gradient (requires_grad)")
    integrator, intervals, frame = plan(solver, steps)
    times = grid_of(model.schedule, grid, intervals)
    job = _Job(model, frame, integrator, times, noise.child("rows"), loss, tuple(wrt))
    with torch.enable_grad():
        found = modes[mode](job, start.detach())
    lost = found.final.status != Status.OK
    if not bool(lost.any()):
        return found
    mask = lost.view(-1, *[1] * (start.dim() - 1))
    nothing = tuple(torch.full_like(w, torch.nan) for w in found.wrt)
    return found._replace(start=found.start.masked_fill(mask, torch.nan), wrt=nothing)


@dataclass(frozen=True)
class _Job:
    model: Model
    frame: Frame
    integrator: Integrator
    times: list[float]
    noise: Noise
    loss: Loss
    wrt: tuple[Tensor, ...]

    @property
    def dyn(self) -> Dynamics:
        return dynamics(self.model, self.frame)

    def losses(self, x: Tensor) -> Tensor:
        """One number a sample."""
        found = self.loss(x)
        if found.shape != (len(x),):
            raise ValueError(f"the loss has shape {tuple(found.shape)}, it must be one number a sample, ({len(x)},)")
        return found

    def at_the_end(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Losses of samples, and the gradients of their sum with respect to samples and `wrt`."""
        x = x.detach().requires_grad_()
        losses = self.losses(x)
        first, *others = _grad([losses.sum()], (x, *self.wrt))
        return losses.detach(), first, tuple(others)


@dataclass(frozen=True)
class _Rows:
    """Rows made for the whole grid, in a rollout over a part of it."""

    table: Table

    def rows(self, dyn: Dynamics, times: Sequence[float]) -> Table:
        """Those rows."""
        return self.table


def _full(job: _Job, start: Tensor) -> Gradient:
    x = start.requires_grad_()
    path = rollout(job.dyn, job.integrator, Particles.at(x), job.times, noise=job.noise, save="last")
    losses = job.losses(path.final.x)
    first, *others = _grad([losses.sum()], (x, *job.wrt))
    return Gradient(losses.detach(), first, tuple(others), path.final.evolve(x=path.final.x.detach()))


def _checkpoint(job: _Job, start: Tensor) -> Gradient:
    """Keep what every stretch begins with; then, last stretch first, run it again and pull the gradient through."""
    dyn, rows = job.dyn, len(job.times) - 1
    table = job.integrator.rows(dyn, job.times)
    stretches = list(pairwise([*range(0, rows, ceil(sqrt(rows))), rows]))

    def run(a: int, b: int, p: Particles, memory: Memory) -> tuple[Particles, Memory]:
        path = rollout(
            dyn, _Rows(table[a:b]), p, job.times[a : b + 1], noise=job.noise, save="last", first=a, memory=memory
        )
        return path.final, path.memory

    begun, now = [], (Particles.at(start), Memory())
    with torch.no_grad():
        for a, b in stretches:
            begun.append(now)
            now = run(a, b, *now)
    losses, first, wrt = job.at_the_end(now[0].x)
    pulls: list[Tensor] = [first, *(torch.zeros_like(g) for g in now[1].history)]
    for (a, b), (p, memory) in zip(reversed(stretches), reversed(begun), strict=True):
        x, *history = (g.detach().requires_grad_() for g in (p.x, *memory.history))
        q, after = run(a, b, p.evolve(x=x), memory._replace(history=tuple(history)))
        found = _grad([q.x, *after.history], (x, *history, *job.wrt), pulls)
        pulls = list(found[: 1 + len(history)])
        wrt = tuple(a + b for a, b in zip(wrt, found[1 + len(history) :], strict=True))
    return Gradient(losses, pulls[0], wrt, now[0])


def _adjoint(job: _Job, start: Tensor) -> Gradient:
    """Sample, then run alpha (y, a, g), of all samples in one vector, from the end to the start."""
    schedule, times = job.model.schedule, job.times
    if schedule.sigma(times[-1]) == 0.0:
        raise ValueError(
            f"the adjoint runs back from the last time, {times[-1]:g}, where no noise is left to run back from"
        )
    if any(row.draws for row in job.integrator.rows(job.dyn, times)):
        raise ValueError("the adjoint is that of an ordinary differential equation, but this solver draws noise")
    with torch.no_grad():
        final = rollout(job.dyn, job.integrator, Particles.at(start), times, noise=job.noise, save="last").final
    losses, first, wrt = job.at_the_end(final.x)
    beside = _Beside(job.model, job.wrt, tuple(start.shape))
    end, begin = schedule.alpha(times[-1]), schedule.alpha(times[0])
    X = torch.cat([final.x.flatten(), end**2 * first.flatten(), *(end * g.flatten().to(start) for g in wrt)])
    with torch.no_grad():
        back = rollout(
            dynamics(beside, job.frame),
            job.integrator,
            Particles.at(X[None]),
            times[::-1],
            noise=job.noise,
            save="last",
        ).final
    _, a, *g = beside.parts(back.x / begin)
    if bool((back.status != Status.OK).any()):
        final = final.evolve(status=torch.full_like(final.status, Status.DIVERGED))
    return Gradient(losses, a / begin, tuple(g), final)


class _Beside:
    """The model whose state is alpha (y, a, g): data prediction (x - sigma E) / alpha with E as in the module."""

    schedule: Schedule
    event: tuple[int, ...]

    def __init__(self, model: Model, wrt: tuple[Tensor, ...], shape: tuple[int, ...]):
        self.schedule = model.schedule
        self.model, self.wrt = model, wrt
        self.shapes = [shape, shape, *(tuple(w.shape) for w in wrt)]
        self.sizes = [torch.Size(s).numel() for s in self.shapes]
        self.event = (sum(self.sizes),)

    def parts(self, X: Tensor) -> list[Tensor]:
        """alpha y, alpha a and every alpha g out of the one vector."""
        return [part.view(shape) for part, shape in zip(X[0].split(self.sizes), self.shapes, strict=True)]

    def __call__(self, x: Tensor, t: float) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        X, b, *_ = self.parts(x)
        with torch.enable_grad():
            X = X.detach().requires_grad_()
            eps = (X - alpha * self.model(X, t)) / sigma
            J, *others = _grad([eps], (X, *self.wrt), [b / alpha])
        E = torch.cat([eps.detach().flatten(), -alpha * J.flatten(), *(-g.flatten().to(x) for g in others)])
        return (x - sigma * E) / alpha


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], pulls: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Gradients, zero for what the outputs do not depend on."""
    linked = [k for k, out in enumerate(outputs) if out.requires_grad]
    if not linked:
        return [torch.zeros_like(i) for i in inputs]
    given = None if pulls is None else [pulls[k] for k in linked]
    found = torch.autograd.grad([outputs[k] for k in linked], inputs, given, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


class Live(TorchDispatchMode):
    """Bytes of the tensors made inside this block: `peak` is the largest number that were alive at a time."""

    def __init__(self):
        super().__init__()
        self.peak, self._made, self._alive = 0, 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it made; those gone are looked for only when there may be a new peak."""
        from torch.multiprocessing.reductions import StorageWeakRef

        given = {a.untyped_storage()._cdata for a in tree_leaves(args) if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        for a in tree_leaves(out):
            if isinstance(a, Tensor) and (store := a.untyped_storage())._cdata not in given:
                self._alive[store._cdata] = (StorageWeakRef(store), store.nbytes())
                self._made += store.nbytes()
        if self._made > self.peak:
            self._alive = {k: held for k, held in self._alive.items() if not held[0].expired()}
            self._made = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._made)
        return out
