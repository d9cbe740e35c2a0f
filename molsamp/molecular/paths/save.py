"""Paths on disk: paths.safetensors (exact), paths.dcd + topology.pdb (for viewers), frames.csv, player.pdb.

Every file is written under a temporary name and renamed, and holds the same bytes for the same paths.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from molsamp.molecular.paths.paths import Paths

FRAMES = 101  # frames of a path in the files for looking; paths.safetensors holds every saved row
PLAYER_PATHS = 3
DCD_TITLE = b"molsamp paths"


def save(paths: Paths, folder: str | FilePath) -> None:
    """Write all files of a set of paths into `folder`.

    Raises:
        OSError: if the folder cannot be written; no half-written file is left behind.
    """
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stride = max(1, (len(paths.path) - 1) // (FRAMES - 1))
    write(folder / "paths.safetensors", lambda f: _save_tensors(paths, f))
    write(folder / "frames.csv", lambda f: f.write_text(_table(paths, stride)))
    if paths.problem.molecular:
        write(folder / "topology.pdb", lambda f: f.write_text(_pdb(paths, [paths.problem.start.x])))
        write(folder / "paths.dcd", lambda f: _save_dcd(paths, stride, f))
        write(folder / "player.pdb", lambda f: f.write_text(_player(paths, stride)))


def write(file: FilePath, writer: Callable[[FilePath], object]) -> None:
    """Let `writer` write a file under a temporary name, then put it in place: the whole file or none."""
    part = file.with_name(f".{file.name}.part")
    try:
        writer(part)
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _save_tensors(paths: Paths, file: FilePath) -> None:
    from safetensors.torch import save_file

    p = paths.path
    tensors = {"times": p.times, "x": p.x, "log_rn": paths.log_rn, "logw": paths.logw, "status": p.final.status}
    optional = {"v": p.v, "z": p.z, "energy": p.energy}
    tensors |= {k: a for k, a in optional.items() if a is not None}
    save_file({k: a.contiguous() for k, a in tensors.items()}, file, metadata={"units": "nm ps kJ/mol"})


def _table(paths: Paths, stride: int) -> str:
    """frames.csv: path, frame, time, CVs, energy, log_rn, hit."""
    p = paths.path
    energy = p.energy if p.energy is not None else torch.full(p.x.shape[:2], float("nan"))
    names = list(paths.problem.system.cvs)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "frame", "time_ps", *names, "energy", "log_rn", "hit"])
    frames = range(0, len(p), stride)
    for i in range(len(paths)):
        ends = [f"{float(paths.log_rn[i]):.6g}", int(paths.hit[i])]
        for j in frames:
            cvs = [f"{a:.6g}" for a in paths.cvs[j, i].tolist()]
            rows.writerow([i, j, f"{float(p.times[j]):.6g}", *cvs, f"{float(energy[j, i]):.6g}", *ends])
    return text.getvalue()


def _save_dcd(paths: Paths, stride: int, file: FilePath) -> None:
    """All paths, one after the other, in angstrom as DCD has it; the creation text is a constant."""
    from mdtraj.formats import DCDTrajectoryFile

    x = paths.path.x[::stride].transpose(0, 1).flatten(0, 1)
    with DCDTrajectoryFile(str(file), "w", force_overwrite=True) as dcd:
        dcd.write(np.ascontiguousarray(10.0 * x.numpy(), dtype=np.float32))
    with file.open("r+b") as f:
        header = f.read(512)
        lines = int.from_bytes(header[96:100], "little")
        f.seek(100)
        f.write(DCD_TITLE.ljust(80 * lines))


def _pdb(paths: Paths, frames: list[Tensor]) -> str:
    """A PDB of the given frames, one MODEL each when there are several."""
    from openmm import app, unit

    text = io.StringIO()
    topology = paths.problem.system.topology
    for k, x in enumerate(frames):
        positions = x.double().numpy() * unit.nanometer
        app.PDBFile.writeModel(topology, positions, text, modelIndex=k + 1 if len(frames) > 1 else None)
    return text.getvalue() + "END\n"


def _player(paths: Paths, stride: int) -> str:
    """Up to three paths, hits first, superposed on the end state; chain A is the first path, and so on."""
    from molsamp.molecular.geometry import aligned

    order = torch.argsort(paths.hit.int(), descending=True, stable=True)[:PLAYER_PATHS]
    text = []
    for chain, i in zip("ABC", order.tolist(), strict=False):
        x = aligned(paths.path.x[::stride, i].double(), paths.problem.end.x, paths.problem.system.heavy)
        for line in _pdb(paths, list(x)).removesuffix("END\n").splitlines(keepends=True):
            atom = line.startswith(("ATOM", "HETATM", "TER"))
            text += [line[:21] + chain + line[22:] if atom else line]
    return "".join(text) + "END\n"
