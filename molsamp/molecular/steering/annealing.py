"""Annealed importance sampling with resampling: what it costs to turn a bias on, or to move it.

Walkers begin in equilibrium under a bias V_0 and are taken to V_K in K stages,

    log w += (V_{k-1}(x) - V_k(x)) / kT,   then x moves under U + V_k,     k = 1 .. K,

so that the mean of w is Z_K / Z_0 = exp(-(F_K - F_0) / kT) without bias, for any number of walkers, stages and steps as
long as the moves keep exp(-(U + V_k) / kT) (Jarzynski 1997; Neal 2001). It stays so where a population is resampled by
its weights between two stages (Del Moral, Doucet and Jasra 2006), which is Feynman-Kac steering with the work for a
potential: walkers whose work is great make room for others. Without resampling it is Jarzynski's estimator.

With velocities there is a term more. Those of `LangevinMiddle` are half a step behind: what is Maxwell-Boltzmann is
y_k = v + h (F + F_k) / 2m, with the force of the bias that the next kick has. A new bias changes it, so that

    log w += (V_{k-1} - V_k + m |y_{k-1}|^2 / 2 - m |y_k|^2 / 2) / kT.

Left out, log Z is off by about h int c'^2 dt / (2 width^2) where a harmonic moves at the speed c'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.dynamics import Overdamped, Underdamped
from molsamp.engine.estimates import Estimate
from molsamp.engine.integrators import EulerMaruyama, LangevinMiddle
from molsamp.engine.lineage import Steered
from molsamp.engine.noise import Noise
from molsamp.engine.particles import Scheme, grouped, live_weights, sizes, smc
from molsamp.engine.state import Particles, Path
from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import CV, Stack, Torsion, wrap
from molsamp.molecular.energies import Energy
from molsamp.molecular.grids import Grid
from molsamp.molecular.restraints import Restraint

NODES = 5  # of the spline of a harmonic in one of its widths


class Stages(Energy):
    """One of several energies at a time, natively where that one is.

    Args:
        energies: of the stages; `at` says which is on, and is assigned to by whoever goes on to the next.
    """

    def __init__(self, energies: Sequence[Energy]):
        self.energies, self.event, self.at = tuple(energies), energies[0].event, 0

    @property
    def executor(self):
        """That of the stage; see `engine.rollout.Executor`."""
        return getattr(self.energies[self.at], "executor", None)

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energies[self.at]._energy_force(x)


class Share(Energy):
    """A share of an energy.

    Args:
        of: the energy.
        share: its factor.
    """

    def __init__(self, of: Energy, share: float):
        self.of, self.share, self.event = of, share, of.event

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = self.of._energy_force(x)
        return self.share * E, self.share * F


class Reward(Energy):
    """E(x) = -kT r(x), the energy whose Boltzmann factor is exp(reward).

    Args:
        reward: x (n, *event) -> r (n,), nats, differentiable; a `rewards.Tilt` for example.
        kT: kJ/mol.
        event: shape of a configuration.
    """

    def __init__(self, reward: Callable[[Tensor], Tensor], kT: float, event: tuple[int, ...]):
        self.reward, self.kT, self.event = reward, kT, event

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            y = x.clone().detach().requires_grad_()
            E = -self.kT * self.reward(y).to(y)
            (slope,) = torch.autograd.grad(E.sum(), y)
        return E.detach(), -slope


def anneal(
    dyn: Overdamped | Underdamped,
    start: Particles,
    biases: Sequence[Energy],
    *,
    timestep: float,
    rows: int,
    noise: Noise,
    scheme: Scheme = "systematic",
    below: float = 0.5,
    groups: int = 1,
) -> Steered:
    """Weighted walkers in equilibrium under the last bias, whose log Z is -(F_K - F_0) / kT; see `difference`.

    Args:
        dyn: without any bias; goes by LangevinMiddle, or Euler-Maruyama where there are no velocities.
        start: n walkers in equilibrium under the first bias, as a rollout leaves them.
        biases: V_0, .., V_K, kJ/mol; `turned_on` and `moved` make some.
        timestep: ps.
        rows: steps of every stage.
        noise: of all steps and resamplings.
        scheme, below, groups: as in `engine.steer`; below = 0 never resamples. Groups are replicas.

    Raises:
        ValueError: fewer than two biases, a stage without steps, or groups that do not divide the walkers.
    """
    if len(biases) < 2 or rows < 1:
        raise ValueError(f"got {len(biases)} biases and {rows} steps a stage; allowed are 2 or more and 1 or more")
    grouped(start.logw, groups)
    assert isinstance(dyn.field, Energy)
    stages, K = Stages([dyn.field + V for V in biases[1:]]), len(biases) - 1
    effective: list[Tensor] = []
    ancestors: list[Tensor] = []

    def work(k: int, p: Particles) -> Float[Tensor, " n"]:
        """What going on to the next bias adds to log w."""
        if k == K:
            return torch.zeros_like(p.logw)
        stages.at, x = k, p.x.double()
        (E, F), (E_next, F_next) = (V.energy_force(x) for V in biases[k : k + 2])
        gain = E - E_next
        if isinstance(dyn, Underdamped):
            assert p.v is not None
            force = dyn.field.energy_force(p.x)[1].double() + 0.5 * (F + F_next)
            both = 2.0 * p.v.double() + timestep * force / dyn.masses  # y_k + y_{k+1}
            gain = gain - 0.25 * timestep * ((F_next - F) * both).flatten(1).sum(1)
        return gain / dyn.kT

    def follow(row: int, segment: Path, cloud: Particles, parents: Tensor) -> None:
        effective.append(sizes(grouped(live_weights(cloud), groups)))
        ancestors.append(parents)

    p, _ = smc(
        replace(dyn, field=stages),
        LangevinMiddle() if isinstance(dyn, Underdamped) else EulerMaruyama(),
        start.evolve(logw=start.logw + work(0, start)),
        [k * timestep for k in range(K * rows + 1)],
        lambda row, q: work(row // rows, q),
        noise=noise,
        every=rows,
        scheme=scheme,
        below=below,
        groups=groups,
        each=follow,
    )
    boundaries = tuple(range(rows, K * rows + 1, rows))
    return Steered(p, groups, boundaries, torch.stack(effective), torch.stack(ancestors))


def difference(found: Steered | Estimate, kT: float, unit: str = "kJ/mol") -> Estimate:
    """F_K - F_0 = -kT log Z, of log Z or of all groups, with the interval of their scatter."""
    e = found if isinstance(found, Estimate) else found.pooled_log_z()
    high, low = (-kT * a for a in e.interval)
    return Estimate(-kT * e.value, (low, high), unit, e.n, e.ess)


def held(cvs: Sequence[CV], at: Sequence[float], width: Sequence[float], kT: float, event: tuple[int, ...]) -> Energy:
    """V = kT sum_j (s_j - at_j)^2 / (2 width_j^2), periods taken into account; native for one torsion or two.

    Args:
        cvs: s, of one component each.
        at, width: of each, in its unit.
        kT: kJ/mol.
        event: shape of a configuration.

    Raises:
        ValueError: a width that is not positive, or not one of each.
    """
    if not (len(cvs) == len(at) == len(width) and all(w > 0.0 for w in width)):
        raise ValueError(f"got {len(cvs)} CVs, {len(at)} places, widths {tuple(width)}; allowed is one > 0 of each")
    if not (len(cvs) <= 2 and all(type(cv) is Torsion for cv in cvs)):
        return Restraint(Stack(cvs), at, at, [kT / w**2 for w in width], event)
    box = ((-math.pi, math.pi),) * len(cvs)
    shape = tuple(math.ceil(NODES * (hi - lo) / w) for (lo, hi), w in zip(box, width, strict=True))
    grid = Grid(Stack(cvs).names, Stack(cvs).period, box, shape)
    off = wrap(torch.from_numpy(grid.points()) - torch.tensor(at, dtype=torch.float64), grid.period)
    V = 0.5 * kT * (off / torch.tensor(width, dtype=torch.float64)).square().sum(1)
    return GridBias(cvs, V.view(shape), box, event)


def turned_on(V: Energy, stages: int) -> list[Energy]:
    """0, V / K, 2 V / K, .., V: biases that lead from none to V in K stages."""
    if isinstance(V, GridBias):
        return [GridBias(V.cvs, k / stages * V.values, V.grid.ranges, V.event) for k in range(stages + 1)]
    return [Share(V, k / stages) for k in range(stages + 1)]


def moved(
    cvs: Sequence[CV],
    first: Sequence[float],
    last: Sequence[float],
    width: Sequence[float],
    stages: int,
    kT: float,
    event: tuple[int, ...],
) -> list[Energy]:
    """Biases `held` at K + 1 places from first to last, evenly and the shorter way round; arguments as there."""
    begin = torch.tensor(first, dtype=torch.float64)
    way = wrap((torch.tensor(last, dtype=torch.float64) - begin)[None], Stack(cvs).period)[0]
    return [held(cvs, (begin + k / stages * way).tolist(), width, kT, event) for k in range(stages + 1)]
