"""MBAR: what walkers saw in harmonic windows as one histogram (Shirts and Chodera 2008), solved by pymbar.

With as many frames from each of K windows, f_k = -log Z_k and the weight of a frame without bias are

    sum_n P_nk = N_k,   P_nk = exp(f_k - u_nk) / sum_l exp(f_l - u_nl),   w_n = 1 / sum_k exp(f_k - u_nk)

Walker b of all windows together is one umbrella calculation, independent of the others. All walkers are pooled, since
one alone is noisy and the free energy of a mean of noisy densities is biased; to first order walker b moves f by

    df_b = -J^+ psi_b,   psi_bk = sum_{n of b} P_nk - N_bk,   J = diag(N) - P^T P

and the weight H(c) of a cell by H_b(c) - sum_k G_ck df_bk, G_ck = sum_{n in c} w_n P_nk. These are the rows of the
histogram: they add up to H(c), since the df_b add up to 0, and their scatter is the error of everything, that of the
f_k included (the infinitesimal jackknife over walkers).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.free_energy.surface import Histogram
from molsamp.molecular.free_energy.windows import Windows
from molsamp.molecular.grids import Grid

SOLVED = 100  # frames of a window that pymbar solves for, at most; Newton steps on all frames finish its solution
STEP = 1e-2  # kT: a Newton step below it is the last, what is left is of the order of its square
STEPS = 20
CHUNK = 16384  # frames whose energies in all windows are held at once


class Joined(NamedTuple):
    """What MBAR says.

    Args:
        f_k: -log Z_k of the windows, f_0 = 0.
        histogram: of all frames, a row a walker.
        logw: log weights of all frames.
        overlap: mean of P_nl over the frames of window k.
    """

    f_k: Float[Tensor, " K"]
    histogram: Histogram
    logw: Float[Tensor, "K T B"]
    overlap: Float[Tensor, "K K"]


def join(windows: Windows, s: Float[Tensor, "K T B k"], grid: Grid, guess: Float[Tensor, " K"]) -> Joined:
    """The free energy without bias from frames of B independent walkers in K windows.

    Args:
        windows: their biases.
        s: CV values, T frames of every walker in every window.
        grid: where free energies are wanted.
        guess: of f_k.
    """
    K, T, B, _ = s.shape
    few = torch.linspace(0, T - 1, min(T, max(2, SOLVED // B))).round().long()
    u_nk = windows.reduced(s[:, few].flatten(0, 2))
    f_k = _solve(u_nk, guess)
    for _ in range(STEPS):
        psi, J, overlap = _equations(windows, s, f_k)
        inverse = torch.linalg.pinv(J, hermitian=True)
        step = -psi.sum(0) @ inverse
        f_k = f_k + step
        if float(step.abs().max()) < STEP:
            break
    df = -(psi - psi.mean(0)) @ inverse

    h, top = Histogram.empty(grid, windows.kT, B), -float(torch.logsumexp(f_k - u_nk, 1).min())
    G, logws = torch.zeros(h.weight.shape[1], K, dtype=torch.float64), []
    for a in s.flatten(0, 1).double().split(max(1, CHUNK // B)):
        fu = f_k - windows.reduced(a.flatten(0, 1))
        logw = -torch.logsumexp(fu, 1) - top
        cell = grid.cell(a.flatten(0, 1))
        inside = cell >= 0
        G.index_add_(0, cell[inside], torch.exp(fu + (2 * logw + top)[:, None])[inside])
        logws.append(logw.view(len(a), B))
        h = h.add(a, logws[-1])
    h = Histogram(grid, h.kT, h.weight - df @ G.T, h.square, h.count)
    return Joined(f_k - f_k[0], h, torch.cat(logws).view(K, T, B), overlap)


def _equations(windows: Windows, s: Float[Tensor, "K T B k"], f_k: Float[Tensor, " K"]) -> tuple[Tensor, ...]:
    """psi (B, K), J (K, K) and the overlap (K, K) at f_k, of all frames."""
    K, T, B, _ = s.shape
    psi, PP, overlap = torch.full((B, K), -float(T), dtype=torch.float64), torch.zeros(K, K).double(), []
    for of_window in s:
        seen = torch.zeros(B, K, dtype=torch.float64)
        for a in of_window.split(max(1, CHUNK // B)):
            P_nk = torch.softmax(f_k - windows.reduced(a.flatten(0, 1)), 1)
            PP += P_nk.T @ P_nk
            seen += P_nk.view(len(a), B, K).sum(0)
        psi += seen
        overlap.append(seen.sum(0) / (T * B))
    return psi, torch.diag(psi.sum(0) + T * B) - PP, torch.stack(overlap)


def _solve(u_nk: Float[Tensor, "N K"], guess: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """f_k from as many frames of each window, in the windows' order."""
    N, K = u_nk.shape
    newton = ({"method": "adaptive", "tol": 1e-6, "options": {"min_sc_iter": 0, "maxiter": 200}},)
    with _quiet():
        from pymbar import MBAR

        f_k = MBAR(
            u_nk.T.contiguous().numpy(),
            np.full(K, N // K),
            initial_f_k=(guess - guess[0]).numpy(),
            solver_protocol=newton,
        ).f_k
    return torch.from_numpy(np.array(f_k, dtype=np.float64))


@contextmanager
def _quiet() -> Iterator[None]:
    """pymbar's remarks on JAX and on its time series tell the user of a program nothing."""
    logger = logging.getLogger("pymbar")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
