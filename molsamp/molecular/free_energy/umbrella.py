"""Umbrella sampling: windows under springs on the CVs, joined by MBAR.

Window k holds the walkers by U_k(s) = sum over axes of (kappa/2) (s - c_k)^2, kappa = kT / (share x spacing)^2, so that
in a flat place neighbours overlap. Windows are taken in the order of a search from the minima of the states outwards,
and a walker begins where its namesake ended in the window before: walker g of all windows is one replicate of the whole
calculation, independent of the others. Each replicate is joined by MBAR (Shirts and Chodera, J. Chem. Phys. 129,
124105 (2008)): with N_k frames of window k,

    f_k = -log sum_n w_n exp(-U_k(s_n)/kT),    w_n = 1 / sum_k N_k exp(f_k - U_k(s_n)/kT),

f_k by pymbar on frames far apart, w_n for all. The scatter of the replicates is the error of everything: correlated
frames, windows that were left too early, and f_k included.

U_k is a sum over axes of cubic splines through the spring at the nodes of a grid. Walkers feel the same splines that w_n
is made of, the kink half a period away included.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.engine.state import Particles, Status
from molsamp.molecular.bias import GridBias
from molsamp.molecular.cvs import wrap
from molsamp.molecular.free_energy import plumed
from molsamp.molecular.free_energy.settings import UmbrellaSettings
from molsamp.molecular.free_energy.surface import Histogram
from molsamp.molecular.free_energy.walkers import Walkers

FINE = 9  # nodes of a spring's grid from one window to the next
WINDOWS = {1: 40, 2: 16}  # on each axis
PARTS = (0.25, 0.5, 1.0)  # of each window's frames, for the picture of convergence
THIN = 20  # frames of a window that f_k is found from, at most
ALONE = 0.05  # share of a window's weight that lies in other windows, below which it is worth a word


class Umbrella(Walkers):
    """Umbrella sampling joined by MBAR; arguments as in `Walkers`, with so many walkers in each window."""

    name = "umbrella"
    Settings = UmbrellaSettings

    def _begin(self) -> None:
        super()._begin()
        s, task, grid = self.settings, self.task, self.grid
        each = s.windows or WINDOWS[len(grid.names)]
        self.centres, self.springs, self.shape = [], [], (each,) * len(grid.names)
        for axis, cv in enumerate(task.cvs):
            lo, hi = grid.ranges[axis]
            spacing = (hi - lo) / each
            first = lo if grid.periodic[axis] else lo + 0.5 * spacing
            centres = first + spacing * np.arange(each)
            nodes = np.arange(FINE * each + (not grid.periodic[axis])) * (spacing / FINE) + lo
            off = wrap(torch.from_numpy(nodes[None] - centres[:, None])[..., None], (grid.period[axis],))[..., 0]
            stiffness = task.kT / (s.share * spacing) ** 2
            self.centres.append(centres)
            values = 0.5 * stiffness * off.numpy() ** 2
            self.springs.append([GridBias([cv], v, [(lo, hi)], task.system.event) for v in values])
        self.order, self.before = self._search()
        W = len(self.order)
        self.settle_rows = task.rows(s.settle, "settle")
        self.frames = max(1, task.rows(s.production, "production") // self.frame)
        self.s = torch.full((W, self.frames, s.walkers, len(grid.names)), math.nan)
        self.x = torch.zeros(W, s.walkers, *task.system.event, dtype=task.dtype)
        self.v = self.x.clone()
        self.total = W + len(PARTS)
        self.built = self.settled = 0
        self.f: Float[np.ndarray, " W"] | None = None
        self.alone: tuple[float, int] = (1.0, 0)

    def _search(self) -> tuple[list[int], dict[int, int]]:
        """Windows breadth first from the minima of the states, and the window before each (itself for the first)."""
        shape, grid, states = self.shape, self.grid, list(self.task.system.states.values())
        before: dict[int, int] = {}
        for state in states:
            at = []
            for axis, centres in enumerate(self.centres):
                off = torch.from_numpy(state.values[grid.names[axis]] - centres)[:, None]
                at.append(int(wrap(off, (grid.period[axis],)).abs().argmin()))
            window = int(np.ravel_multi_index(at, shape))
            before.setdefault(window, window)
        queue, order = deque(before), list(before)
        while queue:
            place = [int(i) for i in np.unravel_index(queue[0], shape)]
            for axis, step in itertools.product(range(len(shape)), (1, -1)):
                near = list(place)
                near[axis] += step
                if grid.periodic[axis]:
                    near[axis] %= shape[axis]
                if 0 <= near[axis] < shape[axis] and (window := int(np.ravel_multi_index(near, shape))) not in before:
                    before[window] = queue[0]
                    order.append(window)
                    queue.append(window)
            queue.popleft()
        return order, before

    # ---------------------------------------------------------------- units

    def _produce(self) -> dict[str, Any]:
        if self.k < len(self.order):
            return self._window(self.order[self.k])
        return self._join(PARTS[self.k - len(self.order)])

    def _window(self, window: int) -> dict[str, Any]:
        """All walkers in one window, from where the one before left them."""
        task, spring, noise = self.task, self._spring(window), self.noise.child(f"window {window}")
        self.p, self.rows = self._first(window, noise), 0
        self._carry(self.settle_rows, self.settle_rows, spring, noise)
        path = self._carry(self.frames * self.frame, self.frame, spring, noise)
        s = task.values(path.x[1:]).float()
        s[:, self.p.status == Status.DIVERGED] = math.nan
        self.s[window], self.x[window] = s, self.p.x
        if self.p.v is not None:
            self.v[window] = self.p.v
        if len(self.snapshots) < (self.k + 1) * self.settings.snapshots // len(self.order):
            self.snapshots.append(self.p.x.clone())
        self._write_window(window, s, spring)
        return {"note": f"window {self.k + 1}/{len(self.order)}"}

    def _spring(self, window: int) -> GridBias:
        """U_k over all axes: the spline of a sum is the sum of the splines."""
        place = np.unravel_index(window, self.shape)
        axes = [self.springs[axis][i].values for axis, i in enumerate(place)]
        values = axes[0] if len(axes) == 1 else axes[0][:, None] + axes[1]
        return GridBias(self.task.cvs, values, self.grid.ranges, self.task.system.event)

    def _first(self, window: int, noise: Noise) -> Particles:
        """The nearest minimum with thermal velocities, or the ends of the window before; broken walkers begin anew."""
        task, states = self.task, list(self.task.system.states.values())
        source = self.before[window]
        if source != window:
            p = Particles.at(self.x[source], self.v[source] if task.system.masses is not None else None)
            if bool(p.x.isfinite().all()):
                return p
        centre = torch.tensor(
            [[float(c[i]) for c, i in zip(self.centres, np.unravel_index(window, self.shape), strict=True)]]
        )
        values = torch.tensor([[state.values[name] for name in self.grid.names] for state in states])
        nearest = int(torch.linalg.vector_norm(wrap(values - centre, self.grid.period), dim=1).argmin())
        x = states[nearest].x.to(task.dtype).expand(self.settings.walkers, *task.system.event)
        return task.thermal(x.clone(), noise.child("velocities"))

    def _write_window(self, window: int, s: Float[Tensor, "T n k"], spring: GridBias) -> None:
        """Lines of COLVAR: time in the window, walker, window, CVs, bias in kJ/mol."""
        stride = max(1, self.record // self.frame)
        kept, n = s[stride - 1 :: stride].double(), s.shape[1]
        time = (torch.arange(1, len(kept) + 1) * stride * self.frame * self.task.timestep).double()
        columns = [time.repeat_interleave(n), torch.arange(n).double().repeat(len(kept))]
        columns += [torch.full_like(columns[0], float(window)), *kept.flatten(0, 1).unbind(1)]
        columns.append(spring.at(kept.flatten(0, 1)))
        text = plumed.rows(*(c.numpy() for c in columns))
        fields = ["time", "walker", "window", *self.grid.names, "bias"]
        self._written["COLVAR"] = self._headed("COLVAR", fields) + text

    # ---------------------------------------------------------------- joining

    def _join(self, part: float) -> dict[str, Any]:
        """MBAR of each replicate on the first part of every window's frames."""
        frames = max(1, round(part * self.frames))
        weight, square, count = torch.zeros_like(self.histogram.weight), 0.0, 0
        for g in range(len(weight)):
            self._check()
            s = self.s[:, :frames, g].double()
            log_w = self._log_mixture(s)
            h = Histogram.empty(self.grid, self.task.kT, 1).add(s.reshape(-1, 1, s.shape[-1]), log_w.reshape(-1, 1))
            total = float(h.weight.sum())
            weight[g], square, count = h.weight[0] / total, square + h.square / total**2, count + h.count
        self.histogram = Histogram(self.grid, self.task.kT, weight, square, count)
        evaluations, self.evaluations = self.evaluations, round(part * self.evaluations)
        self._note_differences()
        self.evaluations = evaluations
        return {"ess": self.histogram.ess, "note": f"MBAR of {part:.0%} of the frames"}

    def _log_mixture(self, s: Float[Tensor, "W T k"]) -> Float[Tensor, "W T"]:
        """log w_n of a replicate's frames, less its largest; -inf for frames that are not there."""
        known = ~s.isnan().any(-1)
        log_u = [self._reduced(axis, s[known][:, axis]) for axis in range(s.shape[-1])]
        counts = known.sum(1).double()
        f = self._free_energies(s, known)
        log_N = (f + counts.log()).view(self.shape)
        if len(log_u) == 1:
            mixture = torch.logsumexp(log_N - log_u[0], 1)
        else:  # exp(-U_k) is a product over axes, so the sum over all windows is a matrix product
            top = log_N.max()
            mixture = ((torch.exp(-log_u[0]) @ torch.exp(log_N - top)) * torch.exp(-log_u[1])).sum(1).log() + top
        log_w = torch.full(known.shape, -math.inf, dtype=torch.float64)
        log_w[known] = -mixture
        return log_w - log_w.max()

    def _reduced(self, axis: int, s: Float[Tensor, " n"]) -> Float[Tensor, "n windows"]:
        """U/kT of the springs of one axis."""
        return torch.stack([spring.at(s[:, None]) for spring in self.springs[axis]], 1) / self.task.kT

    def _free_energies(self, s: Float[Tensor, "W T k"], known: Tensor) -> Float[Tensor, " W"]:
        """f_k by pymbar on frames far apart; notes the window that is most alone."""
        stride = -(-s.shape[1] // THIN)
        s, known = s[:, stride - 1 :: stride], known[:, stride - 1 :: stride]
        flat = s[known]
        u = self._reduced(0, flat[:, 0])
        if len(self.shape) == 2:
            u = (u[:, :, None] + self._reduced(1, flat[:, 1])[:, None]).flatten(1)
        mbar = _mbar(u.T.numpy(), known.sum(1).numpy(), self.f)
        self.f = mbar.f_k  # where the next solution begins
        overlap = mbar.compute_overlap()["matrix"]
        shared = 1.0 - np.diag(overlap)
        self.alone = min(self.alone, (float(shared.min()), int(shared.argmin())))
        return torch.from_numpy(np.asarray(mbar.f_k))

    def doubts(self) -> list[str]:
        """What the analysis should say besides what it says of all walkers."""
        share, window = self.alone
        if share >= ALONE:
            return []
        place = np.unravel_index(window, self.shape)
        at = ", ".join(f"{n} = {c[i]:.2f}" for n, c, i in zip(self.grid.names, self.centres, place, strict=True))
        return [
            f"The window at {at} shares only {share:.1%} of its frames with all others: F on its two sides is joined "
            "by little. Take more `windows`, or springs that are softer (a larger `share`)."
        ]

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        done = torch.tensor(self.order[: self.k])
        return super()._state() | {
            "s": self.s[done],
            "x": self.x[done],
            "v": self.v[done],
            "alone": torch.tensor(self.alone, dtype=torch.float64),
        }

    def _load(self, state: dict[str, Tensor]) -> None:
        super()._load(state)
        done = torch.tensor(self.order[: self.k])
        self.s[done], self.x[done], self.v[done] = state["s"], state["x"], state["v"]
        share, window = state["alone"].tolist()
        self.alone = share, int(window)


def _mbar(u_kn: Float[np.ndarray, "K N"], N_k: np.ndarray, f_k: np.ndarray | None) -> Any:
    """pymbar's MBAR by Newton steps, without its remarks on what else could be installed."""
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    import pymbar

    newton = ({"method": "adaptive", "options": {"maxiter": 1000}},)
    return pymbar.MBAR(u_kn, N_k, initial_f_k=f_k, solver_protocol=newton)
