"""Structures on disk, for viewers: DCD, PDB, and the few chains that the report plays; and tables.

Every file is written under a temporary name and renamed, and holds the same bytes for the same frames.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from molsamp.molecular.system import System

DCD_TITLE = b"molsamp paths"


def write(file: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write a file under a temporary name, then put it in place: the whole file or none."""
    part = file.with_name(f".{file.name}.part")
    try:
        writer(part)
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_csv(file: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table, floats to six digits.

    Raises:
        OSError: if the file cannot be written.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(heading)
    out.writerows([f"{a:.6g}" if isinstance(a, float) else a for a in row] for row in rows)
    write(file, lambda f: f.write_text(text.getvalue()))


def write_tables(folder: Path, tables: Mapping[str, tuple[Sequence[str], Iterable[Sequence[Any]]]]) -> None:
    """Write figures/NAME.csv in a run folder for every table (heading, rows).

    Raises:
        OSError: if the folder cannot be written.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name, (heading, rows) in tables.items():
        write_csv(figures / f"{name}.csv", heading, rows)


def save_dcd(x: Float[Tensor, "F A 3"], file: Path) -> None:
    """Frames in nm as a DCD, which has angstrom; the creation text is a constant."""
    from mdtraj.formats import DCDTrajectoryFile

    with DCDTrajectoryFile(str(file), "w", force_overwrite=True) as dcd:
        dcd.write(np.ascontiguousarray(10.0 * x.numpy(), dtype=np.float32))
    with file.open("r+b") as f:
        header = f.read(512)
        lines = int.from_bytes(header[96:100], "little")
        f.seek(100)
        f.write(DCD_TITLE.ljust(80 * lines))


def pdb(system: System, frames: Sequence[Float[Tensor, "A 3"]]) -> str:
    """A PDB of frames in nm, one MODEL each when there are several."""
    from openmm import app, unit

    text = io.StringIO()
    for k, x in enumerate(frames):
        positions = x.double().numpy() * unit.nanometer
        app.PDBFile.writeModel(system.topology, positions, text, modelIndex=k + 1 if len(frames) > 1 else None)
    return text.getvalue() + "END\n"


def player(system: System, tracks: Mapping[str, Float[Tensor, "F A 3"]], reference: Float[Tensor, "A 3"]) -> str:
    """Up to three named tracks of frames for the report, superposed on a reference.

    Chain A is the first, and so on; a line "REMARK CHAIN A NAME" tells what each is called.
    """
    from molsamp.molecular.geometry import aligned

    text = [f"REMARK CHAIN {chain} {name}\n" for chain, name in zip("ABC", tracks, strict=False)]
    for chain, x in zip("ABC", tracks.values(), strict=False):
        frames = list(aligned(x.double(), reference, system.heavy))
        for line in pdb(system, frames).removesuffix("END\n").splitlines(keepends=True):
            atom = line.startswith(("ATOM", "HETATM", "TER"))
            text += [line[:21] + chain + line[22:] if atom else line]
    return "".join(text) + "END\n"
