"""Learned biases and CVs inside OpenMM simulations: any batched torch energy as an openmm.PythonForce."""

from collections.abc import Callable

import openmm
import torch
from torch import Tensor

from molsamp.molecular.energies import Energy


class Differentiated(Energy):
    """E(x) of any differentiable torch function of a batch, with F = -dE/dx by autograd.

    Args:
        function: x (n, *event) in nm to E (n,) in kJ/mol; row k of E depends on row k of x alone.
        event: shape of one configuration, (A, 3) for molecules.
    Raises:
        ValueError: (a call) the function does not return one energy per configuration.
    """

    tier = "autograd"

    def __init__(self, function: Callable[[Tensor], Tensor], event: tuple[int, ...]):
        self.function, self.event = function, event

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            E = self.function(y)
            if E.shape != x.shape[:1]:
                raise ValueError(f"the function returns energies of shape {tuple(E.shape)}; allowed is ({len(x)},)")
            (gradient,) = torch.autograd.grad(E.sum(), y)
        return E.detach(), -gradient


def python_force(
    energy: Energy, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64
) -> openmm.PythonForce:
    """An energy as a force to add to an openmm.System: OpenMM's integrators and reporters, this energy's E and F.

        system.addForce(python_force(Differentiated(lambda x: 50 * (cv(x)[:, 0] - 1.2) ** 2, (22, 3))))

    Each step of OpenMM asks Python once, and `energy.evaluations` grows by one. OpenMM keeps the energy alive. Limits
    of PythonForce: it is serialised by pickle alone, so a System that holds one is not sent to worker processes and
    not read from a system.toml; and it holds the interpreter lock while it runs. An energy of a few atoms takes just
    those: call `setParticles` on the force.

    Args:
        energy: over (A, 3), A the particles it is applied to; `Differentiated` makes one of any torch function.
        device, dtype: of the positions that the energy is given.
    Returns:
        openmm.PythonForce; E in kJ/mol, F in kJ/mol/nm. An error in the energy (another number of particles, say)
        becomes OpenMM's OpenMMException.
    Raises:
        ValueError: OpenMM older than 8.4, which has no PythonForce.
    """
    if not hasattr(openmm, "PythonForce"):
        raise ValueError(f"OpenMM {openmm.__version__} has no PythonForce; allowed is 8.4 or later")

    def compute(state: openmm.State) -> tuple[float, object]:
        x = torch.as_tensor(state.getPositions(asNumpy=True)._value, dtype=dtype, device=device)
        E, F = energy.energy_force(x[None])
        return float(E[0]), F[0].to("cpu", torch.float64).numpy()

    return openmm.PythonForce(compute)
