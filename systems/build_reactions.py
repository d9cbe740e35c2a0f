"""Makes the structures of the two SN2 reactions, X- + CH3Cl: complexes in which the halogens stand in line with carbon.

    python systems/build_reactions.py

Start geometries are textbook numbers (C-H 1.09 angstrom, tetrahedral angles, an ion at 3 angstrom behind carbon); they
are relaxed on the system's own energy, GFN2-xTB. Needs the extra `reactions`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from molsamp.molecular.ase_energy import ASEEnergy, Calculator, minimise

HERE = Path(__file__).resolve().parent
NUMBERS = {"H": 1, "C": 6, "Cl": 17, "Br": 35}
BOND = {"Cl": 0.180, "Br": 0.196}  # nm, to carbon
AWAY, CH, TILT = 0.300, 0.109, math.radians(109.5)
REACTIONS = {"sn2-chloride": ("Cl", "Cl"), "sn2-bromide": ("Br", "Cl")}
STATES = ("reactants", "products")  # the first halogen is free, the second is


def complex_of(first: str, second: str, bound: int) -> np.ndarray:
    """C, three H, and two halogens on the z axis, of which one is bound, nm."""
    up = 1.0 if bound == 0 else -1.0
    turns = 2 * math.pi / 3 * np.arange(3)
    height = math.cos(TILT) * up  # the hydrogens bend away from the bound halogen
    hydrogens = CH * np.stack([math.sin(TILT) * np.cos(turns), math.sin(TILT) * np.sin(turns), np.full(3, height)], 1)
    at = [BOND[first] if bound == 0 else AWAY, BOND[second] if bound == 1 else AWAY]
    return np.concatenate([np.zeros((1, 3)), hydrogens, [[0, 0, at[0]], [0, 0, -at[1]]]])


def main() -> None:
    """Write the PDB files that the system.toml files name."""
    for name, (first, second) in REACTIONS.items():
        elements = ("C", "H", "H", "H", first, second)
        energy = ASEEnergy(Calculator(tuple(NUMBERS[e] for e in elements), settings={"accuracy": 0.01}, charge=-1))
        for bound, state in ((1, "reactants"), (0, "products")):
            x = minimise(energy, complex_of(first, second, bound), 0.1)
            E = float(energy.energy(torch.from_numpy(x)[None]))
            d = 10 * np.linalg.norm(x[4:] - x[0], axis=1)
            print(f"{name} {state}: {E:.3f} kJ/mol, C-{first} {d[0]:.3f}, C-{second} {d[1]:.3f} angstrom")
            atoms = zip(("C", "H1", "H2", "H3", f"{first}1".upper(), f"{second}2".upper()), elements, x, strict=True)
            lines = [
                f"HETATM{i + 1:5d} {label:<4} SN2 A   1    "
                + "".join(f"{10 * a:8.3f}" for a in at)
                + f"  1.00  0.00          {element.upper():>2}"
                for i, (label, element, at) in enumerate(atoms)
            ]
            (HERE / name).mkdir(exist_ok=True)
            (HERE / name / f"{state}.pdb").write_text("\n".join([*lines, "END", ""]))


if __name__ == "__main__":
    main()
