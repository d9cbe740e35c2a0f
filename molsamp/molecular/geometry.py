"""Superposition of batches of frames on a reference: proper rotations only, differentiable, no SVD.

The optimal rotation of Horn (J. Opt. Soc. Am. A 4, 629, 1987) is the unit quaternion q that is the top eigenvector of
a symmetric 4x4 matrix N, linear in the cross-covariance S = sum_i w_i x_i (ref_i - ref_0)^T, and so linear in x: one
matrix product makes N of every frame, one more turns q q^T into R. N has no gradient trouble where a 3x3 SVD has it
(planar atoms, x = ref); only collinear atoms leave the rotation undetermined.

Where no derivative is wanted, on the CPU, the same is done by compiled lanes (`native.alignment`): 0.3 us a frame
against 3 us through `torch.linalg.eigh`, and 5 us against 180 us for 16 frames, since nothing is called in between.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def _constants() -> tuple[Tensor, Tensor]:
    """The linear maps S (9) -> N (16) and q q^T (16) -> R (9), both row-major, read off one table."""
    x, y, z = range(3)
    horn = [  # N_ab as signed sums of S_uv
        [[(1, x, x), (1, y, y), (1, z, z)], [(1, y, z), (-1, z, y)], [(1, z, x), (-1, x, z)], [(1, x, y), (-1, y, x)]],
        [[(1, y, z), (-1, z, y)], [(1, x, x), (-1, y, y), (-1, z, z)], [(1, x, y), (1, y, x)], [(1, z, x), (1, x, z)]],
        [[(1, z, x), (-1, x, z)], [(1, x, y), (1, y, x)], [(-1, x, x), (1, y, y), (-1, z, z)], [(1, y, z), (1, z, y)]],
        [[(1, x, y), (-1, y, x)], [(1, z, x), (1, x, z)], [(1, y, z), (1, z, y)], [(-1, x, x), (-1, y, y), (1, z, z)]],
    ]
    to_N = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    for a in range(4):
        for b in range(4):
            for sign, u, v in horn[a][b]:
                to_N[u, v, a, b] = sign
    # q^T N q = sum_uv S_uv R_vu, so the same table read backwards gives R
    return to_N.reshape(9, 16), to_N.permute(2, 3, 1, 0).reshape(16, 9)


_TO_N, _TO_R = _constants()


class Superposition:
    """The rigid motion y = x R^T + t that puts frames on a reference with least weighted squared distance.

    R is always a proper rotation, also for mirror images. Collinear or coincident atoms leave R undetermined; one of
    the optimal rotations is returned. Both outputs are differentiable in x, to any order; the derivative is infinite
    or NaN only where the rotation is not unique. A frame with non-finite coordinates gives NaN in its own row.

    Args:
        ref: reference, (A, 3), nm.
        atoms: 0-based indices of the fitted atoms, default all.
        weights: non-negative weights of the fitted atoms, default equal.
    """

    def __init__(
        self,
        ref: Float[Tensor, "atoms 3"],
        atoms: Int[Tensor, "k"] | None = None,
        weights: Float[Tensor, "k"] | None = None,
    ):
        ref = ref.detach().double()
        index = torch.arange(len(ref), device=ref.device) if atoms is None else torch.as_tensor(atoms).to(ref.device)
        w = torch.ones(len(index), dtype=torch.float64, device=ref.device) if weights is None else weights.to(ref)
        w = w / w.sum()
        self.ref0 = w @ ref[index]
        self._fit = tuple(a.cpu().numpy() for a in (index, w, ref[index] - self.ref0, self.ref0))
        # centring the reference is enough: x needs no centring, because sum_i w_i (ref_i - ref_0) = 0
        covariance = torch.einsum("k,kv,uc->kucv", w, ref[index] - self.ref0, torch.eye(3).to(ref)).reshape(-1, 3, 9)
        self._map = ref.new_zeros(len(ref), 3, 19)  # x -> (N, centroid)
        self._map[index, :, :16] = covariance @ _TO_N.to(ref.device)
        self._map[index, :, 16:] = w[:, None, None] * torch.eye(3).to(ref)
        self._map = self._map.reshape(-1, 19)

    def __call__(self, x: Float[Tensor, "n atoms 3"]) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
        """R (n, 3, 3) and t (n, 3) in nm of every frame of x (n, A, 3) in nm; computed in float64, dtype of x."""
        if x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad):
            return self._compiled(x)
        N, x0 = (x.double().flatten(1) @ self._map).split([16, 3], dim=1)
        q = _TopEigenvector.apply(N.view(-1, 4, 4))
        R = ((q[:, :, None] * q[:, None, :]).flatten(1) @ _TO_R.to(x.device)).view(-1, 3, 3)
        t = self.ref0 - (R @ x0[:, :, None])[:, :, 0]
        return R.to(x.dtype), t.to(x.dtype)

    def _compiled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from molsamp.molecular.native.alignment import superpose

        R, t = x.new_empty(len(x), 9), x.new_empty(len(x), 3)
        superpose(flat(x), *self._fit, R.numpy(), t.numpy())
        return R.view(-1, 3, 3), t

    def body(
        self, x: Float[Tensor, "n atoms 3"], end: Float[Tensor, "atoms 3"], length: float, spare: int
    ) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n 9"]]:
        """(d, |d|) of all atoms, d = (y - end) / length in the frame of the body, and R; no gradient, CPU.

        Args:
            spare: columns left free at the end of the features.
        """
        from molsamp.molecular.native.alignment import body_features

        f, R = x.new_empty(len(x), 4 * x.shape[1] + spare), x.new_empty(len(x), 9)
        body_features(flat(x), *self._fit, end.numpy(), length, f.numpy(), R.numpy())
        return f, R


def flat(x: Tensor) -> np.ndarray:
    """x (n, A, 3) as a contiguous array (n, 3A) for compiled kernels."""
    return x.detach().reshape(len(x), -1).contiguous().numpy()


class _TopEigenvector(torch.autograd.Function):
    """q (n, 4) of N (n, 4, 4); backward by dq = (l - N)^+ dN q, itself differentiable."""

    @staticmethod
    def forward(ctx, N: Tensor) -> Tensor:
        if not (finite := N.isfinite()).all():  # LAPACK raises on NaN: give it 0 there, and give NaN back
            bad = ~finite.all(dim=2).all(dim=1)
            q = torch.linalg.eigh(N.masked_fill(bad[:, None, None], 0.0))[1][:, :, -1]
            q = q.masked_fill(bad[:, None], torch.nan)
        else:
            q = torch.linalg.eigh(N)[1][:, :, -1]
        ctx.save_for_backward(N, q)
        return q

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        N, q = ctx.saved_tensors
        qq = q[:, :, None] * q[:, None, :]
        l = (N * qq).sum((1, 2), keepdim=True)
        # l - N is singular along q only: fill that direction, invert, and project it out again
        inverse = torch.linalg.inv_ex(l * torch.eye(4).to(N) - N + l * qq).inverse
        g = (inverse @ grad[:, :, None])[:, :, 0]
        g = g - q * (q * g).sum(1, keepdim=True)
        return g[:, :, None] * q[:, None, :]


def kabsch(
    x: Float[Tensor, "n atoms 3"],
    ref: Float[Tensor, "atoms 3"],
    atoms: Int[Tensor, "k"] | None = None,
    weights: Float[Tensor, "k"] | None = None,
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """R (n, 3, 3) and t (n, 3), nm, with y = x R^T + t superposed on ref; see `Superposition` to prepare ref once.

    Args:
        x: frames, (n, A, 3), nm.
        ref: reference, (A, 3), nm.
        atoms: 0-based indices of the fitted atoms, default all.
        weights: non-negative weights of those atoms, default equal.
    """
    return Superposition(ref.to(x.device), atoms, weights)(x)


def aligned(
    x: Float[Tensor, "n atoms 3"], ref: Float[Tensor, "atoms 3"], atoms: Int[Tensor, "k"] | None = None
) -> Float[Tensor, "n atoms 3"]:
    """All atoms of every frame after superposition of `atoms` on the reference, (n, A, 3), nm."""
    R, t = kabsch(x, ref, atoms)
    return x @ R.mT + t[:, None]


def rmsd(
    x: Float[Tensor, "n atoms 3"], ref: Float[Tensor, "atoms 3"], atoms: Int[Tensor, "k"] | None = None
) -> Float[Tensor, "n"]:
    """Root mean squared distance sqrt(mean_i |y_i - ref_i|^2) of `atoms` after superposition, (n,), nm.

    The superposition is a minimiser, so its own derivative drops out of the gradient (envelope theorem) and is not
    computed. At rmsd = 0 the gradient is set to 0, one of the subgradients.
    """
    R, t = kabsch(x.detach(), ref, atoms)
    if atoms is not None:
        x, ref = x[:, atoms], ref[atoms]
    msd = (x @ R.mT + t[:, None] - ref.to(x)).square().sum(-1).mean(-1)
    positive = msd != 0  # NaN counts as positive and stays NaN
    return torch.where(positive, torch.where(positive, msd, 1.0).sqrt(), 0.0)
