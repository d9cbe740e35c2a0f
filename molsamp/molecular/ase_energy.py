"""ASEEnergy: quantum chemistry as a batched, counted energy, by tblite (GFN2-xTB) or any calculator of ASE."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.molecular.energies import Energy
from molsamp.molecular.workers import Workers

_STEP = 0.01  # nm, the length of L-BFGS's first step, which is 1 in its variables


@dataclass(frozen=True)
class Calculator:
    """A molecule and what calculates it, in plain data.

    Args:
        numbers: atomic numbers, (A,).
        name: "tblite", or "module:callable" returning a calculator of ASE. The module is imported and the callable
            called: name what you trust as you would a script.
        settings: of the calculator: see `calculators.TbliteRows` for tblite, else keyword arguments of the callable.
        charge: total charge, e.
        multiplicity: 2S + 1; None for the lowest possible (tblite) or the calculator's own default.
    """

    numbers: tuple[int, ...]
    name: str = "tblite"
    settings: Mapping[str, Any] = field(default_factory=dict)
    charge: int = 0
    multiplicity: int | None = None

    @property
    def tier(self) -> str:
        """Short name of what calculates."""
        if self.name == "tblite":
            return f"tblite-{self.settings.get('method', 'GFN2-xTB')}"
        return f"ase-{self.name.rpartition(':')[2]}"


class ASEEnergy(Energy):
    """Energies and forces of a molecule by quantum chemistry, or by anything else that ASE has a calculator for.

    The calculator lives in worker processes, one thread each, even where there is only one: there it has the same
    surroundings always, its prints and temporary files are out of the way, and a crash ends a worker, not the run. A
    configuration on which it fails (a field that does not converge, atoms on top of each other) gets NaN energy and
    force in its own row. Every row is calculated from nothing, so the result depends neither on its place nor on
    `workers`.

    CH3Cl + Cl- on GFN2-xTB: 590 evaluations a second with one worker, 1030 with two on two cores; the same through
    ASE's own interface to tblite 470 and 770.

    Args:
        calculator: the molecule and what calculates it.
        workers: processes.
    Raises:
        ValueError: ASE or tblite are not installed; the calculator cannot be made (see `calculators`).
        RuntimeError: (a call) a worker crashed.
    """

    def __init__(self, calculator: Calculator, workers: int = 1):
        needed = ("ase", "tblite") if calculator.name == "tblite" else ("ase",)
        if missing := [name for name in needed if find_spec(name) is None]:
            raise ValueError(f'{calculator.tier} needs {" and ".join(missing)}: pip install "molsamp[reactions]"')
        order = {
            "calculator": calculator.name,
            "settings": dict(calculator.settings),
            "numbers": list(calculator.numbers),
            "charge": calculator.charge,
            "multiplicity": calculator.multiplicity,
        }
        self._workers = Workers(workers, "molsamp.molecular.calculators:rows", order)
        self.event = (len(calculator.numbers), 3)
        self.tier = calculator.tier

    def _energy_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        E, F = self._workers(x.detach().to("cpu", torch.float64).numpy())
        return torch.as_tensor(E).to(x), torch.as_tensor(F).to(x)


def minimise(energy: Energy, x: Float[np.ndarray, "A 3"], tolerance: float) -> Float[np.ndarray, "A 3"]:
    """The minimum next to x by L-BFGS (scipy).

    Args:
        energy: over one molecule.
        x: start, (A, 3), nm.
        tolerance: root mean square force at which to stop, kJ/mol/nm.
    Raises:
        ValueError: the tolerance was not reached, or the energy is NaN; says how near it came.
    """
    from scipy.optimize import minimize

    def value_and_gradient(y: np.ndarray) -> tuple[float, np.ndarray]:
        E, F = energy.energy_force(torch.from_numpy(_STEP * y).view(1, *x.shape))
        return float(E), -_STEP * F.numpy().ravel()

    options = {"gtol": tolerance * _STEP, "ftol": 0.0, "maxiter": 1000, "maxcor": 20}
    found = minimize(value_and_gradient, x.ravel() / _STEP, jac=True, method="L-BFGS-B", options=options)
    reached = float(np.sqrt(np.mean(found.jac**2))) / _STEP
    if not reached <= tolerance:
        raise ValueError(
            f"relaxing it reaches a root mean square force of {reached:.2g} kJ/mol/nm on {energy.tier}; allowed is "
            f"the tolerance, {tolerance:g}: raise it, or the accuracy of the calculator"
        )
    return _STEP * found.x.reshape(x.shape)
