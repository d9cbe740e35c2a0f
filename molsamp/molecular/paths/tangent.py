"""Low-dimensional control along the tangents of torsions: turn one side of the molecule about a bond."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molsamp.molecular.paths.control import Control, Encoding
from molsamp.molecular.paths.problem import Problem


class TorsionTangents(Control):
    """u = scale sum_c o_c(s) d_c(x) along unit vectors d_c of rigid rotations about the torsions' central bonds.

    d_c is sqrt(m) times the velocity field of turning one side of bond c, minus overall translation and rotation,
    normalised. The network sees s = (sin, cos) of every torsion, the mass-weighted velocity along d_c in thermal
    units, and t / T. Where the end state is reached the control vanishes, as the optimal control of a hitting
    problem does after the hit.

    Args:
        problem: a molecular problem whose system has torsion CVs.
        network: (n, 3 C + 1) -> (n, C).
        scale: see `Control`.

    Raises:
        ValueError: for a system without torsion CVs, or with a torsion whose central bond lies in a ring.
    """

    sides: Tensor

    def __init__(self, problem: Problem, network: nn.Module, scale: float = 0.3):
        super().__init__(problem, scale)
        self.problem, self.network = problem, network
        self.torsions = torsions(problem)
        self.bonds, sides = [], []
        for cv in self.torsions:
            b, c = cv.atoms[1:3]
            self.bonds.append((b, c))
            sides.append(_far_side(problem, b, c, cv.names[0]))
        self.register_buffer("sides", torch.stack(sides).to(problem.dtype), persistent=False)
        self.gate = 0.8 * problem.end.radius

    def encode(self, t: float | Tensor, x: Tensor, v: Tensor | None) -> Encoding:
        """{"s": inputs of the network, "d": directions (n, C, A, 3) in the laboratory frame, "open": gate}."""
        assert v is not None
        d = self.directions(x)
        phi = torch.cat([cv(x) for cv in self.torsions], 1)
        speed = torch.einsum("ncai,nai->nc", d, v * (self.masses / self.problem.kT).sqrt())
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x)) / self.horizon
        s = torch.cat([phi.sin(), phi.cos(), speed, time[:, None]], 1)
        return {"s": s, "d": d, "open": (self.problem.distance(x) > self.gate).to(x.dtype)}

    def forward(self, encoding: Encoding) -> Float[Tensor, "n A 3"]:
        """u in the laboratory frame."""
        o = self.scale * self.network(encoding["s"]) * encoding["open"][:, None]
        return torch.einsum("nc,ncai->nai", o, encoding["d"])

    def directions(self, x: Float[Tensor, "n A 3"]) -> Float[Tensor, "n C A 3"]:
        """The unit vectors d_c."""
        root = self.masses.sqrt()
        fields = []
        for (b, c), side in zip(self.bonds, self.sides, strict=True):
            axis = x[:, c] - x[:, b]
            axis = axis / axis.norm(dim=-1, keepdim=True)
            arm = x - x[:, c, None]
            fields.append(root * side[:, None] * torch.linalg.cross(axis[:, None].expand_as(arm), arm))
        d = torch.stack(fields, 1)
        d = d - self._rigid_part(x, d)
        return d / d.flatten(2).norm(dim=-1)[:, :, None, None]

    def _rigid_part(self, x: Tensor, d: Tensor) -> Tensor:
        """Projection of mass-weighted fields d (n, C, A, 3) on overall translations and rotations."""
        root, m = self.masses.sqrt(), self.masses
        r = x - (m * x).sum(1, keepdim=True) / m.sum()
        momentum = torch.einsum("ab,ncai->nci", root, d) / m.sum()
        spin = torch.linalg.cross(r[:, None].expand_as(d), root * d).sum(2)
        inertia = (m * r.square().sum(-1, keepdim=True)).sum(1)[:, :, None] * torch.eye(3).to(x) - torch.einsum(
            "nai,naj->nij", m * r, r
        )
        omega = torch.linalg.solve(inertia, spin.mT).mT
        turning = torch.linalg.cross(omega[:, :, None].expand_as(d), r[:, None].expand_as(d))
        return root * (momentum[:, :, None] + turning)


def torsions(problem: Problem) -> list:
    """The system's torsion CVs.

    Raises:
        ValueError: if there are none.
    """
    from molsamp.molecular.cvs import Torsion

    found = [cv for cv in problem.system.cvs.values() if isinstance(cv, Torsion)]
    if not found:
        raise ValueError(f"{problem.system.name}: the torsion control needs torsion CVs; system.toml defines none")
    return found


def _far_side(problem: Problem, b: int, c: int, name: str) -> Tensor:
    """1 for the atoms on c's side of bond b-c, 0 elsewhere."""
    assert problem.system.topology is not None
    neighbours: dict[int, set[int]] = {i: set() for i in range(problem.system.event[0])}
    for bond in problem.system.topology.bonds():
        i, j = bond[0].index, bond[1].index
        neighbours[i].add(j)
        neighbours[j].add(i)
    seen, front = {c}, [c]
    while front:
        new = neighbours[front.pop()] - seen - {b}
        seen |= new
        front += new
    if any(b in neighbours[k] for k in seen - {c}):
        raise ValueError(
            f"{problem.system.name}: the central bond {b}-{c} of torsion {name!r} (0-based) lies in a ring"
        )
    side = torch.zeros(problem.system.event[0], dtype=torch.float64)
    side[list(seen)] = 1.0
    return side
