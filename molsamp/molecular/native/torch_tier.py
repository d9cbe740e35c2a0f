"""TorchForces: Terms -> energy and force of many replicas at once in torch, on any device, exact and analytic.

The computation is recorded once for each batch size as in-place operations on fixed buffers (`torch_tape`) and
replayed: all pairs (`torch_pairs`, `torch_born`), then what is bonded (`torch_bonded`, `torch_grids`). The same energy
written plainly (`torch_autograd`) is there for autograd and for the compiler.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.native.terms import Terms
from molsamp.molecular.native.torch_autograd import PlainEnergy
from molsamp.molecular.native.torch_bonded import Bonded, Springs
from molsamp.molecular.native.torch_pairs import AllPairs
from molsamp.molecular.native.torch_tape import Tape, placed

_CPU_BYTES, _GPU_BYTES = 2**24, 2**30  # buffers of a block of replicas; the second is not measured
_LANES = 16  # batches are padded to a multiple, so that a shrinking batch does not ask for a new tape each time
_TAPES = 8  # batch sizes whose buffers are kept


class TorchForces:
    """E (n,) and F (n, A, 3) of n replicas x (n, A, 3) of one molecule, in kJ/mol, kJ/mol/nm and nm.

    `energy_force` is fast, and its forces are exact derivatives; `differentiable` can be differentiated. A replica with
    a coordinate that is not finite has E = NaN; coincident atoms that interact, collinear torsions, Born radii that are
    not positive and overflow (float32: pairs nearer than about 6e-4 nm) give inf or NaN, each in its own replica only.
    A collinear angle has no force, as in OpenMM. Buffers are reused by the next call: one object per thread.

    Relative to OpenMM Reference the force of the worst frame is off by 1e-15 in float64 and 8e-7 in float32 (22 and 138
    atoms), the energy by 5e-11 and 5e-3 kJ/mol. Where a few terms nearly cancel, float32 is as far off as rounding the
    positions to float32 would be.

    Memory: buffers of about 16 MB on the CPU and 1 GB on a GPU; constants of 4 numbers for each pair of atoms, 10 with
    Born, 15 with necks; Born keeps 3 more for each pair and replica of a block, 256 MB or one replica. With 4690 atoms,
    11 million pairs, in float64: 0.6 GB, with Born and necks 2 GB; an evaluation takes 0.1 and 0.8 CPU-seconds.

    Args:
        terms: what a System amounts to.
        dtype: precision of the computation; positions are cast to it and results back to theirs.
        compile: `differentiable` goes through torch.compile: 10 to 30 CPU-seconds at its first call, then about twice
            as fast on a CPU (22 atoms, 256 replicas), but without second derivatives. On a GPU `energy_force` becomes
            one CUDA graph for each batch size, and everything there is unmeasured. On a CPU it stays as it is, because
            the recorded operations are three times faster than what the compiler makes of the formulas.
    """

    def __init__(self, terms: Terms, dtype: torch.dtype = torch.float64, compile: bool = False):
        self.terms, self.dtype, self.compile = terms, dtype, compile
        self._models: dict[torch.device, tuple[AllPairs | None, Bonded, Springs]] = {}
        self._plain: dict[torch.device, Callable[[Tensor], Tensor]] = {}
        self._blocks: dict[torch.device, int] = {}
        self._tapes: dict[tuple[int, torch.device], Tape] = {}

    def energy_force(self, x: Float[Tensor, "n atoms 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n atoms 3"]]:
        """E and F in the dtype and on the device of x; not differentiable."""
        E, F = x.new_empty(len(x)), torch.empty_like(x, memory_format=torch.contiguous_format)
        size = self.block(x.device)
        with torch.no_grad():
            for start in range(0, len(x), size):
                block = slice(start, min(start + size, len(x)))
                n = block.stop - start
                tape = self._tape(n, x.device)
                tape.x[:, :, :n].copy_(x[block].permute(2, 1, 0))
                tape()
                E[block].copy_(tape.E[:n])
                F[block].copy_(tape.F[:, :, :n].permute(2, 1, 0))
        return E, F

    def differentiable(self, x: Float[Tensor, "n atoms 3"]) -> Float[Tensor, " n"]:
        """The same E, for autograd: forces by its gradient, Hessians by the gradient of that.

        Raises:
            RuntimeError: compile was asked for and torch.compile cannot do it here.
        """
        if x.device not in self._plain:
            plain = PlainEnergy(self.terms, x.device, self.dtype)
            self._plain[x.device] = _compiled(plain) if self.compile else plain
        return self._plain[x.device](x.to(self.dtype)).to(x.dtype)

    def block(self, device: torch.device) -> int:
        """Replicas computed at once, a power of two: as many as the buffers hold, 16 or more where that is possible."""
        if device not in self._blocks:
            pairs, bonded, _ = self._model(device)
            room = self._room(device)
            fixed = 9 * self.terms.atoms + bonded.numbers + (pairs.kept if pairs else 0) + 1
            chunked = pairs.numbers if pairs else 0
            n = max(1, room // (fixed + chunked), min(_LANES, 16 * room // fixed))
            self._blocks[device] = 2 ** (n.bit_length() - 1)
        return self._blocks[device]

    def _room(self, device: torch.device) -> int:
        """Numbers in the buffers."""
        return (_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // self.dtype.itemsize

    def _tape(self, n: int, device: torch.device) -> Tape:
        """The tape for n replicas, rounded up to whole lanes or a power of two; the few most recent sizes are kept."""
        n = -(-n // _LANES) * _LANES if n > _LANES else 1 << (n - 1).bit_length()
        tape = self._tapes.pop((n, device), None)
        if tape is None:
            with torch.inference_mode(False):  # buffers born in inference mode could not be written outside it
                tape = self._record(n, device)
        if len(self._tapes) >= _TAPES:
            self._tapes.pop(next(iter(self._tapes)))
        self._tapes[n, device] = tape
        return tape

    def _record(self, n: int, device: torch.device) -> Tape:
        tape = Tape(self.terms.atoms, n, device, self.dtype)
        tape.do(torch.sum, tape.x, (0, 1), out=tape.E)
        constant, zero = tape.number(self.terms.torsions.constant), tape.number(0)
        tape.do(torch.addcmul, constant, tape.E, zero, out=tape.E)  # NaN where any coordinate is not finite
        pairs, bonded, springs = self._model(device)
        if pairs:
            pairs.record(tape, self._room(device))
        else:
            tape.do(tape.F.zero_)
        bonded.record(tape)
        springs.record(tape)
        if self.compile and device.type == "cuda":
            tape.capture()
        return tape

    def _model(self, device: torch.device) -> tuple[AllPairs | None, Bonded, Springs]:
        if device not in self._models:
            place = partial(placed, device=device, dtype=self.dtype)
            pairs = AllPairs(self.terms, place) if len(self.terms.pairs.qq) or self.terms.born else None
            self._models[device] = pairs, Bonded(self.terms, place), Springs(self.terms, place)
        return self._models[device]


def _compiled(plain: PlainEnergy) -> Callable[[Tensor], Tensor]:
    """PlainEnergy through torch.compile, once for all batch sizes."""
    fast = torch.compile(plain.__call__, dynamic=True)

    def energy(x: Tensor) -> Tensor:
        try:
            return fast(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(f"torch.compile fails here ({error}); allowed: compile=False") from error

    return energy
