"""Paths on disk: paths.safetensors (exact), paths.dcd + topology.pdb (for viewers), frames.csv, player.pdb."""

from __future__ import annotations

import csv
import io
from pathlib import Path as FilePath

import torch

from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.trajectories import pdb, player, save_dcd, write

FRAMES = 101  # frames of a path in the files for looking; paths.safetensors holds every saved row
PLAYER_PATHS = 3


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
        problem, frames = paths.problem, paths.path.x[::stride]
        shown = torch.argsort(paths.hit.int(), descending=True, stable=True)[:PLAYER_PATHS].tolist()  # hits first
        tracks = {f"path {name}": frames[:, i] for name, i in zip("ABC", shown, strict=False)}
        write(folder / "topology.pdb", lambda f: f.write_text(pdb(problem.system, [problem.start.x])))
        write(folder / "paths.dcd", lambda f: save_dcd(frames.transpose(0, 1).flatten(0, 1), f))
        write(folder / "player.pdb", lambda f: f.write_text(player(problem.system, tracks, problem.end.x)))


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
