"""Rows of a batch by a calculator of quantum chemistry, one after another: tblite, or any that ASE can drive.

ASE's units, eV and angstrom, are converted here and nowhere else. Neither torch nor OpenMM, so that a worker process
starts at once. Every row starts from nothing: no density, file or neighbour list is carried over from the one before,
which would tie the last digits of a result to its place in the batch.
"""

import functools
import importlib
import math
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import FileIOCalculator
from ase.calculators.genericfileio import GenericFileIOCalculator

EV = units.mol / units.kJ
"""kJ/mol in one eV."""
METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
_TBLITE = {"accuracy": "accuracy", "max_iterations": "max-iter", "electronic_temperature": "temperature"}
_SPACING = 0.3  # nm, of the atoms in a row on which a calculator is made before it has seen a configuration


class CalculatorRows(ABC):
    """E (n,) in kJ/mol and F (n, A, 3) in kJ/mol/nm of x (n, A, 3) in nm; a row whose calculation fails is NaN.

    The first failure is told by a warning; any exception of the calculator counts as one.
    """

    name: str
    _warned = False

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E, F = np.full(len(x), math.nan), np.full(x.shape, math.nan)
        for k in np.flatnonzero(np.isfinite(x).all((1, 2))):
            try:
                energy, force = self._evaluate(x[k] * units.nm)
            except Exception as error:
                self._warn(error)
                continue
            if math.isfinite(energy) and np.isfinite(force).all():
                E[k], F[k] = energy * EV, force * (EV * units.nm)
        return E, F

    @abstractmethod
    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and force (eV/angstrom) at x (A, 3) in angstrom; raises what it likes."""

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = f"{type(error).__name__}: {error}"
            warnings.warn(f"{self.name} failed on a configuration, which becomes NaN: {text}", stacklevel=3)


class TbliteRows(CalculatorRows):
    """Extended tight binding by tblite's own interface, 1.3 times as fast as through ASE, with the same bits.

    Args:
        settings: `method`, one of `METHODS` (default GFN2-xTB); `accuracy` of the self-consistent field (default 1;
            0.01 brings the force from 7e-7 to 5e-9 Hartree/bohr of the derivative for 15 % of the time),
            `max_iterations`, `electronic_temperature` in K; `solvation`, such as ["alpb", "water"].
        numbers: atomic numbers, (A,).
        charge: total charge, e.
        multiplicity: 2S + 1; None for the lowest that the number of electrons allows.
    Raises:
        ValueError: unknown setting or method; an element without parameters; an impossible multiplicity.
    """

    name = "tblite"

    def __init__(self, settings: Mapping[str, Any], numbers: Sequence[int], charge: int, multiplicity: int | None):
        allowed = ("method", *_TBLITE, "solvation")
        if unknown := [key for key in settings if key not in allowed]:
            raise ValueError(f"tblite has no setting {unknown[0]!r}; allowed: {', '.join(allowed)}")
        self._method = settings.get("method", METHODS[0])
        if self._method not in METHODS:
            raise ValueError(f"tblite has no method {self._method!r}; allowed: {', '.join(METHODS)}")
        self._settings = {_TBLITE[key]: value for key, value in settings.items() if key in _TBLITE}
        if "temperature" in self._settings:
            self._settings["temperature"] *= units.kB / units.Hartree
        self._solvation = list(settings.get("solvation", ()))
        self._numbers, self._charge = np.array(numbers), charge
        electrons = sum(numbers) - charge
        multiplicity = 1 + electrons % 2 if multiplicity is None else multiplicity
        self._unpaired = multiplicity - 1
        if not 0 <= self._unpaired <= electrons or (electrons - self._unpaired) % 2:
            raise ValueError(f"{electrons} electrons (charge {charge}) cannot have multiplicity {multiplicity}")
        try:
            self._calculator(_row_of_atoms(len(numbers)))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"tblite: {error}") from None

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        result = self._calculator(x).singlepoint()
        return result.get("energy") * units.Hartree, -result.get("gradient") * units.Hartree / units.Bohr

    def _calculator(self, x: np.ndarray) -> Any:
        from tblite.interface import Calculator

        calculator = Calculator(self._method, self._numbers, x / units.Bohr, float(self._charge), self._unpaired)
        calculator.set("verbosity", 0)
        for key, value in self._settings.items():
            calculator.set(key, value)
        if self._solvation:
            model, *arguments = self._solvation
            calculator.add(f"{model}-solvation", *arguments)
        return calculator


class AseRows(CalculatorRows):
    """Any calculator of ASE, its free energy where it has one: that is what its forces are the gradient of.

    Charge and multiplicity reach it as ASE's initial charges and magnetic moments (all on the first atom) and as
    `atoms.info["charge"]` and `["spin"]`; a calculator that has arguments for them wants them among its settings.
    One that works through files gets an empty folder for each row.

    Args:
        calculator: "module:callable" that returns the calculator; the module is imported.
        settings: arguments of the callable.
        numbers, charge, multiplicity: of the molecule, which is not periodic.
    Raises:
        ValueError: the callable does not exist, refuses its arguments, or returns no calculator.
    """

    def __init__(
        self,
        calculator: str,
        settings: Mapping[str, Any],
        numbers: Sequence[int],
        charge: int = 0,
        multiplicity: int | None = None,
    ):
        self.name = calculator
        self._make = functools.partial(_named(calculator), **settings)
        self._atoms = Atoms(numbers, positions=_row_of_atoms(len(numbers)))
        if charge:
            self._atoms.set_initial_charges([charge] + [0] * (len(numbers) - 1))
        if multiplicity is not None:
            self._atoms.set_initial_magnetic_moments([multiplicity - 1] + [0] * (len(numbers) - 1))
            self._atoms.info["spin"] = multiplicity
        self._atoms.info["charge"] = charge
        try:
            self._atoms.calc = self._make()
        except Exception as error:
            raise ValueError(f"calculator {calculator!r} with {dict(settings)}: {error}") from None
        if not all(hasattr(self._atoms.calc, method) for method in ("get_potential_energy", "get_forces")):
            kind = type(self._atoms.calc).__name__
            raise ValueError(f"calculator {calculator!r} returns a {kind}, which is no calculator of ASE")
        self._files = isinstance(self._atoms.calc, FileIOCalculator | GenericFileIOCalculator)

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        calculator = self._atoms.calc
        self._atoms.positions = x
        if hasattr(calculator, "reset"):
            calculator.reset()
        if not self._files:
            return self._ask()
        with tempfile.TemporaryDirectory(prefix="molsamp-") as folder:
            calculator.directory = folder
            return self._ask()

    def _ask(self) -> tuple[float, np.ndarray]:
        force, energy = self._atoms.get_forces(), self._atoms.get_potential_energy()
        results = getattr(self._atoms.calc, "results", {})
        return float(results.get("free_energy", energy)), force


def rows(
    calculator: str, settings: Mapping[str, Any], numbers: Sequence[int], charge: int, multiplicity: int | None
) -> CalculatorRows:
    """What a worker process builds."""
    if calculator == "tblite":
        return TbliteRows(settings, numbers, charge, multiplicity)
    return AseRows(calculator, settings, numbers, charge, multiplicity)


def _named(name: str) -> Any:
    """The object "module:attribute"."""
    module, _, attribute = name.partition(":")
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"calculator {name!r} is not to be found: {error}; allowed: tblite, module:callable") from None
    if not callable(found):
        raise ValueError(f"calculator {name!r} is a {type(found).__name__}; allowed are classes and functions")
    return found


def _row_of_atoms(count: int) -> np.ndarray:
    return np.arange(count)[:, None] * np.array([_SPACING * units.nm, 0.0, 0.0])
