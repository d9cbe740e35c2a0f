"""A long peptide for the benchmarks: random sequence, extended chain, ff14SB with GBn2."""

from __future__ import annotations

import importlib.util
import io
import random

import numpy as np
import openmm
import torch
from interleaved import ROOT
from openmm import app
from torch import Tensor


def long_peptide(residues: int, seed: int = 0) -> tuple[openmm.System, Tensor]:
    """The System and positions (A, 3) in nm; needs the extra `build` (PeptideBuilder)."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "systems" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    sequence = "".join(random.Random(seed).choices("ADEFGHIKLMNQRSTVWY", k=residues))
    lines = build.heavy_atoms(sequence, [(-120.0, 140.0)] * residues, {})
    lines.append(lines.pop(max(k for k, line in enumerate(lines) if line[12:16].strip() == "O")))  # OXT is made like it
    pdb = app.PDBFile(io.StringIO("\n".join([*build.with_oxt(lines), "END"])))
    forcefield = app.ForceField("amber14/protein.ff14SB.xml", "implicit/gbn2.xml")
    random.seed(0)  # Modeller places hydrogens at random before it relaxes them
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(forcefield, pH=7.0, platform=openmm.Platform.getPlatformByName("CPU"))
    x = np.array(modeller.getPositions().value_in_unit(openmm.unit.nanometer))
    return build.flexible(forcefield, modeller.topology), torch.from_numpy(x)
