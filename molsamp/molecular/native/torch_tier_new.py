"""TorchForces: Terms -> energy and force of many replicas at once in torch, on any device, exact and analytic.

The computation is recorded once for each batch size as in-place operations on fixed buffers (`torch_tape`) and
replayed: all pairs (`torch_pairs`, `torch_born`), then what is bonded (`torch_bonded`, `torch_grids`).
`differentiable` is the same energy written plainly, for autograd (`torch_autograd`).
"""

from functools import partial

import torch
from torch import Tensor

from molsamp.molecular.native.terms import Terms
from molsamp.molecular.native.torch_bonded import Bonded, Springs
from molsamp.molecular.native.torch_pairs import AllPairs
from molsamp.molecular.native.torch_tape import Tape, placed

_BLOCK_BYTES = 2**24  # buffers of one block of replicas
_LANES = 16  # batches are padded to a multiple, so that a shrinking batch does not ask for a new kernel each time
_KERNELS = 8  # block sizes whose buffers are kept


class TorchForces:
    """Energy and force of n replicas of one molecule, (n, A, 3) -> (n,), (n, A, 3)."""

    def __init__(self, terms: Terms, dtype: torch.dtype = torch.float64):
        self.terms, self.dtype = terms, dtype
        pairs = len(terms.pairs.qq) or terms.born is not None
        A = terms.atoms
        numbers = (A * A // 2) * (36 if terms.born is not None else 12) * bool(pairs) + 30 * (len(terms.bonds.k) + 2*len(terms.angles.k)+4*len(terms.torsions.atoms))
        self.block = max(_LANES, 2 ** ((_BLOCK_BYTES // (max(numbers, 1) * dtype.itemsize)).bit_length() - 1))
        self._models = {}
        self._kernels: dict = {}

    def energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = x.new_empty(len(x)), torch.empty_like(x, memory_format=torch.contiguous_format)
        with torch.no_grad():
            for start in range(0, len(x), self.block):
                part = x[start : start + self.block]
                tape = self._tape(len(part), x.device)
                tape.x[:, :, : len(part)].copy_(part.permute(2, 1, 0))
                tape()
                E[start : start + len(part)].copy_(tape.E[: len(part)])
                F[start : start + len(part)].copy_(tape.F[:, :, : len(part)].permute(2, 1, 0))
        return E, F

    def _tape(self, n: int, device: torch.device) -> Tape:
        n = -(-n // _LANES) * _LANES
        key = n, device
        tape = self._kernels.pop(key, None)
        if tape is None:
            with torch.inference_mode(False):
                if device not in self._models:
                    place = partial(placed, device=device, dtype=self.dtype)
                    self._models[device] = AllPairs(self.terms, place), Bonded(self.terms, place), Springs(self.terms, place)
                pairs, bonded, springs = self._models[device]
                tape = Tape(self.terms.atoms, n, device, self.dtype)
                tape.do(tape.E.fill_, self.terms.torsions.constant)
                if len(self.terms.pairs.qq) or self.terms.born is not None:
                    pairs.record(tape, _BLOCK_BYTES // self.dtype.itemsize)
                else:
                    tape.do(tape.F.zero_)
                bonded.record(tape); springs.record(tape)
        if len(self._kernels) >= _KERNELS:
            self._kernels.pop(next(iter(self._kernels)))
        self._kernels[key] = tape
        return tape
