"""Low-dimensional control along the tangents of torsions: turn one side of the molecule about a bond."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from molsamp.molecular.cvs import Torsion
from molsamp.molecular.geometry import flat
from molsamp.molecular.paths.control import Control, Encoding
from molsamp.molecular.paths.problem import Problem


class TorsionTangents(Control):
    """u = sum_c o_c d_c(x), o = L tanh(scale net(s) / L): along unit vectors d_c that turn torsions about their bonds.

    d_c is sqrt(m) times the velocity field of turning one side of bond c, minus overall translation and rotation,
    normalised. The network sees s = (sin, cos) of every torsion, the mass-weighted velocity along d_c in thermal
    units, bounded, and t / T. Where the end state is reached the control vanishes, as the optimal control of a hitting
    problem does after the hit.

    Args:
        problem: a molecular problem; its torsions are those of `turning`.
        network: (n, 3 C + 1) -> (n, C).
        scale: see `Control`.

    Raises:
        ValueError: see `turning`.
    """

    LIMIT = 0.8  # noise units: what is learned stays below 0.5; without it one fast path in thousands drives itself
    FAST = 4.0  # thermal units: a network that goes on linearly in the velocity drives fast paths ever faster

    def __init__(self, problem: Problem, network: nn.Module, scale: float = 0.3):
        super().__init__(problem, scale)
        self.problem, self.network = problem, network
        self.torsions, sides = zip(*turning(problem), strict=True)
        self.atoms, self.sides = np.array([cv.atoms for cv in self.torsions]), np.stack(sides)
        self.gate = 0.8 * problem.end.radius

    def encode(self, t: float | Tensor, x: Tensor, v: Tensor | None) -> Encoding:
        """{"s": inputs of the network, "d": directions (n, C, A, 3) in the laboratory frame, "open": gate}."""
        assert v is not None
        s, d = self._look(x, v)
        w = s[:, 2 * len(self.atoms) : -1]
        w.copy_(self.FAST * torch.tanh(w / self.FAST))
        s[:, -1] = torch.as_tensor(t, dtype=x.dtype) / self.horizon
        return {"s": s, "d": d, "open": (self.problem.distance(x) > self.gate).to(x.dtype)}

    def forward(self, encoding: Encoding) -> Float[Tensor, "n A 3"]:
        """u in the laboratory frame."""
        return torch.einsum("nc,ncai->nai", self.answer(encoding), encoding["d"])

    def stored(self, encoding: Encoding, z: Tensor) -> Encoding:
        """The noise along the directions, r_c = d_c z, and their Gram matrix: all that is left of (A, 3) numbers."""
        d = encoding["d"].flatten(2)
        along = torch.bmm(d, z.flatten(1)[:, :, None])[..., 0]
        return {"s": encoding["s"], "open": encoding["open"], "r": along, "gram": torch.bmm(d, d.mT)}

    def gain(self, stored: Encoding, hold: int) -> Float[Tensor, " n"]:
        """o r - hold o gram o / 2."""
        o = self.answer(stored)
        return (o * (stored["r"] - 0.5 * hold * torch.einsum("ncd,nd->nc", stored["gram"], o))).sum(1)

    def answer(self, encoding: Encoding) -> Float[Tensor, "n C"]:
        """o times `scale`, within `LIMIT`, and nothing where the end state is reached."""
        o = self.LIMIT * torch.tanh(self.scale / self.LIMIT * self.network(encoding["s"]))
        return o * encoding["open"][:, None]

    def directions(self, x: Float[Tensor, "n A 3"]) -> Float[Tensor, "n C A 3"]:
        """The unit vectors d_c."""
        return self._look(x, torch.zeros_like(x))[1]

    def _look(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the network, the time still free, and directions."""
        from molsamp.molecular.native.tangents import tangents

        C = len(self.atoms)
        s, d = x.new_empty(len(x), 3 * C + 1), x.new_empty(len(x), C, *x.shape[1:])
        tangents(
            flat(x), flat(v), self.atoms, self.sides, self.root_masses, self.problem.kT, s.numpy(), d.flatten(2).numpy()
        )
        return s, d


def turning(problem: Problem) -> list[tuple[Torsion, Bool[np.ndarray, " A"]]]:
    """Torsions about every bond that can turn, each with the atoms on the far side of its bond.

    The system's torsion CVs come first, then the other bonds outside rings between heavy atoms that both have another
    heavy neighbour.

    Raises:
        ValueError: for a toy, for a molecule with no such bond, or for a torsion CV whose central bond is in a ring.
    """
    topology, cvs = problem.system.topology, problem.system.cvs.values()
    if topology is None:
        raise ValueError(f"the torsion control needs a molecule; {problem.system.name} is a toy")
    near: dict[int, list[int]] = {i: [] for i in range(problem.system.event[0])}
    for one, other in topology.bonds():
        near[one.index].append(other.index)
        near[other.index].append(one.index)
    heavy = set(problem.system.heavy.tolist())
    found: dict[tuple[int, int], tuple[Torsion, np.ndarray]] = {}
    for cv in (cv for cv in cvs if isinstance(cv, Torsion)):
        b, c = cv.atoms[1:3]
        if (side := _far_side(near, b, c)) is None:
            raise ValueError(
                f"{problem.system.name}: the central bond {b}-{c} of torsion {cv.names[0]!r} (0-based) lies in a ring"
            )
        found[min(b, c), max(b, c)] = cv, side
    bonds = {(i, j) for i in heavy for j in near[i] if i < j and j in heavy} - found.keys()
    for b, c in sorted(bonds):
        before, after = sorted(heavy.intersection(near[b]) - {c}), sorted(heavy.intersection(near[c]) - {b})
        if before and after and (side := _far_side(near, b, c)) is not None:
            found[b, c] = Torsion((before[0], b, c, after[0])), side
    if not found:
        raise ValueError(f"{problem.system.name}: the torsion control needs a bond to turn about; there is none")
    return list(found.values())


def _far_side(near: dict[int, list[int]], b: int, c: int) -> np.ndarray | None:
    """Which atoms are on c's side of bond b-c, (A,); None where the bond is in a ring."""
    seen, front = {c}, [c]
    while front:
        new = set(near[front.pop()]) - seen - {b}
        seen |= new
        front += new
    if any(b in near[k] for k in seen - {c}):
        return None
    return np.isin(np.arange(len(near)), list(seen))
