"""Read a finished run folder back, for its report and for other programs; needs no molecule."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from molsamp.molecular.free_energy.surface import Surface

Array = np.ndarray
Columns = dict[str, list[str]]
TABLES = (
    *("profiles", "convergence", "weights", "calls", "flux", "ladder", "occupancy", "committor"),
    *("effective", "genealogy", "distribution", "population", "final", "guidance"),
)


@dataclass(frozen=True)
class Frames:
    """frames.csv as arrays over P paths and F frames.

    Args:
        time: ps (reduced for toys), (F,).
        cvs: name -> (P, F), in the order of the file.
        energy: kJ/mol above the minimised start, (P, F).
        log_rn: nats, of each path at its end, (P,).
        hit: whether a path reached the end state, (P,).
    """

    time: Float[Array, " F"]
    cvs: dict[str, Float[Array, "P F"]]
    energy: Float[Array, "P F"]
    log_rn: Float[Array, " P"]
    hit: Bool[Array, " P"]


@dataclass(frozen=True)
class Finished:
    """What a finished run left in its folder; None for files a method does not write."""

    folder: Path
    result: dict[str, Any]
    settings: str
    states: dict[str, Any]
    metrics: list[dict[str, Any]]
    frames: Frames | None
    committor: Float[Array, " n"] | None
    landscape: dict[str, Array] | None
    player: list[Player]
    surface: Surface | None
    tables: dict[str, Columns]  # of `TABLES` those that the verb has
    tree: dict[str, Array] | None  # tree.npz
    plan: Columns  # plan.csv


@dataclass(frozen=True)
class Player:
    """One path, or the structures of one region, for the 3D view: a multi-model PDB text and its number of frames."""

    name: str
    pdb: str
    frames: int


def read(folder: Path) -> Finished:
    """Read the files of a run.

    Raises:
        ValueError: the folder holds no finished run, or a file in it is damaged.
    """
    if not (folder / "result.json").exists():
        raise ValueError(f"{folder}: no result.json; the run is not finished (or this is no run folder)")
    states, result = _json(folder / "figures" / "states.json", {}), _json(folder / "result.json", {})
    if not isinstance(result, dict) or "verb" not in result:
        raise ValueError(f"{folder / 'result.json'}: is no result of a run; key 'verb' is missing")
    return Finished(
        folder=folder,
        result=result,
        settings=_text(folder / "config.toml"),
        states=states,
        metrics=_metrics(folder / "metrics.jsonl"),
        frames=_frames(folder / "frames.csv", float(states.get("floor", 0.0))),
        committor=_column(folder / "committor.csv", "committor"),
        landscape=_arrays(folder / "figures" / "landscape.npz"),
        player=_players(_text(folder / "player.pdb")),
        surface=_surface(folder / "fes.dat"),
        tables={name: _columns(folder / "figures" / f"{name}.csv") for name in TABLES},
        tree=_arrays(folder / "tree.npz"),
        plan=_columns(folder / "plan.csv"),
    )


def _surface(file: Path) -> Surface | None:
    if not file.exists():
        return None
    from molsamp.engine.estimates import Z95
    from molsamp.molecular.free_energy.plumed import read_grid
    from molsamp.molecular.free_energy.surface import Surface

    grid, columns = read_grid(file)
    if missing := [name for name in ("fes", "error") if name not in columns]:
        raise ValueError(f"{file}: no column '{missing[0]}'; '#! FIELDS' names {', '.join(columns)}")
    return Surface(grid, columns["fes"], columns["error"], Z95 * columns["error"])


def _columns(file: Path) -> Columns:
    with io.StringIO(_text(file)) as text:
        rows = list(csv.DictReader(text))
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _json(file: Path, default: Any) -> Any:
    try:
        return json.loads(_text(file) or json.dumps(default))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON, {error}") from None


def _metrics(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines; a last line without its newline was cut off by a kill."""
    complete = _text(file).rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines() if line]


def _table(file: Path) -> dict[str, Array] | None:
    if not file.exists():
        return None
    with file.open(encoding="utf-8") as f:
        names = f.readline().strip().split(",")
        try:
            values = np.loadtxt(f, delimiter=",", ndmin=2)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    if values.shape[1] != len(names):
        raise ValueError(f"{file}: {len(names)} headings, {values.shape[1]} columns")
    return dict(zip(names, values.T, strict=True))


def _column(file: Path, name: str) -> Array | None:
    table = _table(file)
    return None if table is None else table[name]


def _frames(file: Path, floor: float) -> Frames | None:
    table = _table(file)
    if table is None:
        return None
    path = table.pop("path").astype(int)
    paths, first = np.unique(path, return_index=True)
    if len(path) % len(paths) or np.any(np.diff(first) != len(path) // len(paths)):
        raise ValueError(f"{file}: the paths do not all have the same number of frames")
    table = {name: column.reshape(len(paths), -1) for name, column in table.items()}
    energy, hit, log_rn = table.pop("energy"), table.pop("hit"), table.pop("log_rn")
    time = table.pop("time_ps")[0]
    table.pop("frame")
    return Frames(time, table, energy - floor, log_rn[:, -1], np.asarray(hit.any(1)))


def _arrays(file: Path) -> dict[str, Array] | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as data:
        return dict(data)


def _players(pdb: str) -> list[Player]:
    """Part player.pdb into one multi-model text per chain, called as a line "REMARK CHAIN A NAME" says, or "path A"."""
    frames: dict[str, list[list[str]]] = {}
    names: dict[str, str] = {}
    seen: set[str] = set()
    for line in pdb.splitlines():
        if line.startswith("REMARK CHAIN "):
            chain, _, names[chain] = line.removeprefix("REMARK CHAIN ").partition(" ")
        elif line.startswith("MODEL"):
            seen = set()
        elif line.startswith(("ATOM", "HETATM")):
            chain = line[21]
            if chain not in seen:
                seen.add(chain)
                frames.setdefault(chain, []).append([])
            # 3Dmol bonds by distance only what is HETATM; caps such as NME would hang loose otherwise.
            frames[chain][-1].append("HETATM" + line[6:])
    return [
        Player(
            names.get(chain, f"path {chain}"),
            "".join(_model(i, atoms) for i, atoms in enumerate(models, 1)),
            len(models),
        )
        for chain, models in frames.items()
    ]


def _model(number: int, atoms: list[str]) -> str:
    return f"MODEL {number:8d}\n" + "\n".join(atoms) + "\nENDMDL\n"
