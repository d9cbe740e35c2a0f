"""Is the free-energy barrier of an SN2 reaction that of its energy surface, and is a symmetric one symmetric?

The molecule X- + CH3Cl has two distances s = (C-X, C-Cl) as CVs. A scan minimises the energy at fixed s, so that its
stationary points are those of the surface itself, and adds what a harmonic molecule does about each minimum x(s):

    F(s) = E(x) + kT/2 [ln det' P H P / kT + ln det J - ln det R]

    H   Hessian of E - lambda . s, on the directions that change neither s nor the molecule's place (P; det': of these)
    J   Gram matrix of the gradients of s: what the two coordinates do to volumes
    R   Gram matrix of translations and rotations of x, all masses 1: how far the molecule reaches when it turns

(Laplace's method for the integral of delta(s(x) - s) exp(-E/kT); the second line is the entropic term.) Barriers are
between boxes of five by five cells around the saddle and around the minimum of E(s), in the scan as in the runs, so
that both are sums over the same cells. Errors of runs are those of their fes.dat, the cells of a box taken as fully
correlated.

    molsamp free-energy sn2-chloride --out runs/chloride
    python benchmarks/reactions.py runs/chloride [RUN ...]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import ROOT, Results, code_version
from scipy.optimize import minimize, root

from molsamp.molecular import load
from molsamp.molecular.free_energy.surface import Surface
from molsamp.molecular.system import System
from molsamp.runs.reading import read

RESULTS = ROOT / "benchmarks" / "results" / "reactions.json"
CODE = ("molsamp/molecular/ase_energy.py", "molsamp/molecular/calculators.py", "benchmarks/reactions.py")
STEP = 1e-4  # nm, of finite differences
UNIT = 0.01  # nm, of the variables of the minimiser
HALF = 2  # cells of a box on each side of its middle
GUESS = (0.22, 0.22)  # nm, of the saddle


@dataclass
class Point:
    """A minimum of the energy at fixed distances.

    Args:
        x: (A, 3), nm.
        E: kJ/mol.
        force: dE/ds, kJ/mol/nm; 0 at stationary points of the surface.
        entropic: kT/2 [...] above, kJ/mol, up to a constant.
    """

    x: np.ndarray
    E: float
    force: np.ndarray
    entropic: float = math.nan


class Scan:
    """E(s) and F(s) of a system whose atoms are C, three H, X and Cl."""

    def __init__(self, system: System):
        self.system, self.energy, self.kT = system, system.energy(), system.kT
        self.start = system.states[system.settings.start].x.numpy().reshape(-1, 3)
        self.y = self._frame(self.start)

    def _E(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E, F = self.energy.energy_force(torch.from_numpy(np.ascontiguousarray(x)))
        return E.numpy(), -F.numpy()

    @staticmethod
    def _frame(x: np.ndarray) -> np.ndarray:
        """The free variables of x, its carbon at 0 and X on the z axis: hydrogens, and where Cl lies aside from -z."""
        x = x - x[0]
        up = _unit(x[4])
        side = _unit(np.cross(up, [1.0, 0.0, 0.0] if abs(up[0]) < 0.9 else [0.0, 1.0, 0.0]))
        x = x @ np.stack([side, np.cross(up, side), up]).T
        return np.concatenate([x[1:4].ravel(), x[5, :2] / -x[5, 2]])

    @staticmethod
    def _x(y: np.ndarray, s: np.ndarray) -> np.ndarray:
        cl = s[1] * _unit(np.array([y[9], y[10], -1.0]))
        return np.concatenate([np.zeros((1, 3)), y[:9].reshape(3, 3), [[0.0, 0.0, s[0]]], cl[None]])

    def relaxed(self, s: np.ndarray) -> Point:
        """The minimum at s, from that of the point before it."""
        scale = np.array([UNIT] * 9 + [UNIT / s[1]] * 2)

        def value_and_gradient(z: np.ndarray) -> tuple[float, np.ndarray]:
            y = z * scale
            E, g = self._E(self._x(y, s)[None])
            way = np.array([y[9], y[10], -1.0])
            u = _unit(way)
            across = s[1] / np.linalg.norm(way) * (g[0, 5] - u * (u @ g[0, 5]))
            return float(E[0]), scale * np.concatenate([g[0, 1:4].ravel(), across[:2]])

        options = {"gtol": 1e-4, "ftol": 0.0, "maxiter": 500}
        found = minimize(value_and_gradient, self.y / scale, jac=True, method="L-BFGS-B", options=options)
        assert np.abs(found.jac).max() < 0.01, f"no minimum at {s}: {found.message}"
        self.y = found.x * scale
        x = self._x(self.y, s)
        g = self._E(x[None])[1][0].ravel()
        force = np.linalg.lstsq(self._ds(x).T, g, rcond=None)[0]
        return Point(x, float(found.fun), force)

    @staticmethod
    def _ds(x: np.ndarray) -> np.ndarray:
        """ds/dx, (2, 3 A)."""
        J = np.zeros((2, *x.shape))
        for row, halogen in enumerate((4, 5)):
            way = _unit(x[halogen] - x[0])
            J[row, halogen], J[row, 0] = way, -way
        return J.reshape(2, -1)

    def entropic(self, point: Point) -> float:
        """The second line of F, kJ/mol."""
        x, n = point.x, point.x.size
        moved = x + STEP * np.concatenate([np.eye(n), -np.eye(n)]).reshape(2 * n, *x.shape)
        g = self._E(moved)[1].reshape(2 * n, n) - np.stack([point.force @ self._ds(a) for a in moved])
        H = (g[:n] - g[n:]) / (2 * STEP)
        J, R = self._ds(x), self._rigid(x)
        q = np.linalg.qr(np.concatenate([J, R]).T, mode="complete")[0][:, len(J) + len(R) :]
        curvature = np.linalg.eigvalsh(q.T @ (0.5 * (H + H.T)) @ q) / self.kT
        assert curvature.min() > 0, f"no minimum of the other coordinates: {curvature}"
        logs = [np.log(curvature).sum(), np.linalg.slogdet(J @ J.T)[1], -np.linalg.slogdet(R @ R.T)[1]]
        return 0.5 * self.kT * float(sum(logs))

    @staticmethod
    def _rigid(x: np.ndarray) -> np.ndarray:
        """Translations and rotations of x, (6, 3 A)."""
        axes = np.eye(3)
        moves = [np.broadcast_to(a, x.shape) for a in axes] + [np.cross(a, x) for a in axes]
        return np.stack(moves).reshape(6, -1)

    def point(self, s: np.ndarray) -> Point:
        """The minimum at s, with its entropic term."""
        found = self.relaxed(s)
        found.entropic = self.entropic(found)
        return found

    @cached_property
    def saddle(self) -> np.ndarray:
        """s of the saddle of E(s) next to `GUESS`: where no force acts along s."""
        found = root(lambda s: self.relaxed(s).force, GUESS, options={"eps": 1e-4})
        assert np.abs(found.fun).max() < 5.0, found.message
        return found.x

    @cached_property
    def minimum(self) -> np.ndarray:
        """s of the start state."""
        return np.linalg.norm(self.start[[4, 5]] - self.start[0], axis=1)


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a)


def barrier(scan: Scan, surface: Surface) -> dict[str, Any]:
    """F of the box around the saddle over that around the minimum, in the run, by the scan, and the scan's parts."""
    grid, kT, F, error, points = surface.grid, scan.kT, {}, 0.0, {}
    for name, s in (("minimum", scan.minimum), ("saddle", scan.saddle)):
        scan.y = scan._frame(scan.start)
        at = np.array([np.abs(grid.nodes(axis) - s[axis]).argmin() for axis in (0, 1)])
        near = range(-HALF, HALF + 1)
        box = [(at[0] + i, at[1] + j) for i in near for j in near]
        ours = np.array([surface.F[c] for c in box])
        p = np.exp(-ours / kT)
        error += float(p @ [surface.error[c] for c in box] / p.sum()) ** 2
        laplace = [scan.point(np.array([grid.nodes(axis)[c[axis]] for axis in (0, 1)])) for c in box]
        theirs = np.array([a.E + a.entropic for a in laplace])
        F[name] = [-kT * np.log(np.exp(-(a - a.min()) / kT).sum()) + a.min() for a in (ours, theirs)]
        points[name] = scan.point(s)
    low, high = points["minimum"], points["saddle"]
    ours, theirs = (float(b - a) for a, b in zip(F["minimum"], F["saddle"], strict=True))
    return {
        "run": ours,
        "error": math.sqrt(error) if math.isfinite(error) else None,  # None: too few walkers were in some cell
        "scan": theirs,
        "energy": high.E - low.E,
        "entropic": high.entropic - low.entropic,
        "minimum_nm": scan.minimum.tolist(),
        "saddle_nm": scan.saddle.tolist(),
    }


def asymmetry(surface: Surface, below: float = 60.0) -> dict[str, float]:
    """F(s) against F(s) with its axes exchanged: squared difference over its variance, and size of the difference."""
    F = np.where(np.isfinite(surface.error), surface.F, math.inf)
    one, other = np.nonzero((np.maximum(F, F.T) < below) & np.tri(len(F), k=-1, dtype=bool))
    d = F[one, other] - F[other, one]
    variance = surface.error[one, other] ** 2 + surface.error[other, one] ** 2
    return {"z2": float((d**2 / variance).mean()), "mean": float(np.abs(d).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    results = Results(RESULTS, ("system", "method", "seed"))
    for folder in parser.parse_args().runs:
        summary = json.loads((folder / "result.json").read_text())
        system = load(summary["system"])
        surface = read(folder).surface
        found = {"barrier": barrier(Scan(system), surface), "results": summary["results"]}
        if summary["system"] == "sn2-chloride":
            found["asymmetry"] = asymmetry(surface)
        costs = {key: summary[key] for key in ("energy_evaluations", "cpu_seconds", "wall_seconds")}
        key = {name: summary[name] for name in ("system", "method", "seed")}
        results.add(code_version(*CODE, f"systems/{summary['system']}"), **key, **costs, **found)
        print(json.dumps({**key, **{k: v for k, v in found.items() if k != "results"}}, indent=1))


if __name__ == "__main__":
    main()
