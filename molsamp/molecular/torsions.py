"""Bonds that turn: which, what moves with them, and the velocity fields of turning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molsamp.molecular.cvs import Torsion

if TYPE_CHECKING:
    from molsamp.molecular.system import System


class Turns:
    """The fields u_c(x) that turn one side of every such bond as a rigid body, for centred configurations.

    u_c = P (e x (x_i - o)) on the far side of bond c, with e along the bond, o its end and P the projection on centred
    displacements. Neither e nor o moves with u_c, so its divergence vanishes, and its acceleration is
    (u_c . grad) u_c = P (e x (e x (x_i - o))).

    Args:
        system: a molecule.
    Raises:
        ValueError: see `turning`.
    """

    def __init__(self, system: System):
        torsions, sides = zip(*turning(system), strict=True)
        bonds = torch.tensor([cv.atoms[1:3] for cv in torsions])
        far = torch.from_numpy(np.stack(sides))
        self.begin, self.end, self.side = bonds[:, 0], bonds[:, 1], far.to(torch.float32)[..., None]

    def __call__(self, x: Float[Tensor, "n A 3"]) -> tuple[Float[Tensor, "n C A 3"], Float[Tensor, "n C A 3"]]:
        """u and (u . grad) u, nm (a turn is in rad)."""
        o = x[:, self.end]
        e = torch.nn.functional.normalize(o - x[:, self.begin], dim=-1)[:, :, None]
        u = torch.linalg.cross(e, (x[:, None] - o[:, :, None])) * self.side.to(x)
        inward = torch.linalg.cross(e.expand_as(u), u)
        return u - u.mean(2, keepdim=True), inward - inward.mean(2, keepdim=True)


def turning(system: System) -> list[tuple[Torsion, Bool[np.ndarray, " A"]]]:
    """Torsions about every bond that can turn, each with the atoms on the far side of its bond.

    The system's torsion CVs come first, then the other bonds outside rings between heavy atoms that both have another
    heavy neighbour.

    Raises:
        ValueError: for a toy, for a molecule with no such bond, or for a torsion CV whose central bond is in a ring.
    """
    if system.topology is None:
        raise ValueError(f"turning torsions needs a molecule; {system.name} is a toy")
    if not (found := _found(system)):
        raise ValueError(f"{system.name}: there is no bond to turn about")
    return found


def can_turn(system: System) -> bool:
    """Whether a system has bonds that can turn."""
    return system.topology is not None and bool(_found(system))


def _found(system: System) -> list[tuple[Torsion, Bool[np.ndarray, " A"]]]:
    topology, cvs = system.topology, system.cvs.values()
    assert topology is not None
    near: dict[int, list[int]] = {i: [] for i in range(system.event[0])}
    for one, other in topology.bonds():
        near[one.index].append(other.index)
        near[other.index].append(one.index)
    heavy = set(system.heavy.tolist())
    found: dict[tuple[int, int], tuple[Torsion, np.ndarray]] = {}
    for cv in (cv for cv in cvs if isinstance(cv, Torsion)):
        b, c = cv.atoms[1:3]
        if (side := _far_side(near, b, c)) is None:
            raise ValueError(
                f"{system.name}: the central bond {b}-{c} of torsion {cv.names[0]!r} (0-based) lies in a ring"
            )
        found[min(b, c), max(b, c)] = cv, side
    bonds = {(i, j) for i in heavy for j in near[i] if i < j and j in heavy} - found.keys()
    for b, c in sorted(bonds):
        before, after = sorted(heavy.intersection(near[b]) - {c}), sorted(heavy.intersection(near[c]) - {b})
        if before and after and (side := _far_side(near, b, c)) is not None:
            found[b, c] = Torsion((before[0], b, c, after[0])), side
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
