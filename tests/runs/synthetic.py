"""Run folders with believable made-up data: a peptide and a toy, as `molsamp paths` leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CONFIG = 'version = "0.1.0"\nverb = "paths"\nsystem = "{system}"\nmethod = "tps-dps"\n\n[tps-dps]\nrollouts = 200\n'


def number(value: float, low: float, high: float, unit: str = "1", n: int = 64) -> dict:
    return {"value": value, "interval": [low, high], "unit": unit, "n": n}


def peptide(folder: Path, n: int = 64, frames: int = 101) -> Path:
    """C5 -> C7ax of alanine dipeptide: phi rises through 0, psi falls; a few paths miss."""
    rng = np.random.default_rng(1)
    s = np.linspace(0, 1, frames)
    hit = rng.random(n) < 0.87
    when = rng.uniform(0.35, 0.75, n)[:, None]
    rise = 1 / (1 + np.exp(-(s - when) / 0.045)) * np.where(hit, 1.0, 0.3)[:, None]
    walk = _smooth_noise(rng, n, frames)
    phi = np.radians(-147) + np.radians(207) * rise + walk[0]
    psi = np.radians(159) + np.radians(-200) * np.clip(rise * 1.2, 0, 1) + walk[1]
    energy = (
        83 * (1 - np.exp(-s / 0.08)) + 34 * np.exp(-(((s - when) / 0.06) ** 2)) + 7 * rng.standard_normal((n, frames))
    )
    angles = {"phi": _wrap(phi), "psi": _wrap(psi)}
    log_rn = rng.normal(165, 18, n)
    _write_frames(folder, np.linspace(0, 1, frames), angles, energy - 103.4, log_rn, hit)
    results = {
        "hit_rate": number(hit.mean(), 0.76, 0.93),
        "rmsd": number(0.0262, 0.0241, 0.0283, "nm"),
        "ets": number(119.1, 116.2, 122.0, "kJ/mol", 55),
        "e_max": number(118.2, 115.5, 120.9, "kJ/mol"),
        "log_rn": number(164.8, 160.3, 169.3, "nats"),
        "log_rn_bound": number(16.6, 15.1, 18.0, "nats"),
        "path_ess": number(1.08, 0, 64, "paths"),
        "log_z": number(-121.9, -124.0, -119.8, "nats"),
    }
    null = {
        "hit_rate": number(0.96, 0.87, 0.99),
        "rmsd": number(0.0261, 0.0251, 0.0271, "nm"),
        "ets": number(139.3, 136.0, 142.6, "kJ/mol"),
        "log_rn": number(7516, 7380, 7652, "nats"),
        "path_ess": number(1.0, 0, 64, "paths"),
    }
    states = {
        "title": "Alanine dipeptide in vacuum",
        "reduced": False,
        "floor": -103.4,
        "start": "C5",
        "end": "C7ax",
        "cvs": [{"name": name, "period": 2 * np.pi} for name in ("phi", "psi")],
        "states": {
            "C5": {"values": {"phi": -2.57, "psi": 2.78}, "radius": 0.75, "metric": "cvs"},
            "C7ax": {"values": {"phi": 1.05, "psi": -0.72}, "radius": 0.75, "metric": "cvs"},
            "C7eq": {"values": {"phi": -1.45, "psi": 1.25}, "radius": 0.75, "metric": "cvs"},
        },
    }
    warning = (
        "ESS is 1.7 % of 64 paths: these are driven paths, not the equilibrium ensemble; averages over them are not "
        "thermal averages."
    )
    _write_rest(folder, "alanine-dipeptide", results, null, states, [warning])
    k = np.arange(200)
    learned = 1 / (1 + np.exp(-(k - 70) / 14))
    rates = np.clip(0.86 * learned + 0.06 * rng.standard_normal(200), 0, 1)
    _write_metrics(folder, rates, 900 * np.exp(-k / 45) + 150 + 12 * rng.standard_normal(200), 1 + rng.random(200))
    (folder / "player.pdb").write_text(_movie([angles["phi"][:3], angles["psi"][:3]]))
    (folder / "committor.csv").write_text(
        "path,committor\n" + "".join(f"{i},{c:.3f}\n" for i, c in enumerate(rng.beta(1.6, 1.4, 40)))
    )
    return folder


def toy(folder: Path, n: int = 128, frames: int = 101) -> Path:
    """Double well with two channels; no molecule, so no 3D view; no committors."""
    rng = np.random.default_rng(2)
    s = np.linspace(0, 1, frames)
    channel = np.sign(rng.standard_normal(n))[:, None]
    x = -1.118 * np.cos(np.pi * np.clip(1.25 * s - 0.1, 0, 1)) + 0.4 * _smooth_noise(rng, n, frames)[0]
    y = channel * np.sin(np.pi * np.clip(1.25 * s - 0.1, 0, 1)) + 0.4 * _smooth_noise(rng, n, frames)[1]
    _write_frames(folder, 10 * s, {"x": x, "y": y}, _double_well(x, y), rng.normal(9, 2, n), np.ones(n, bool))
    results = {
        "hit_rate": number(1.0, 0.9926, 1.0, n=n),
        "rmsd": number(0.021, 0.019, 0.023, n=n),
        "ets": number(1.36, 1.35, 1.37, n=n),
        "log_rn": number(9.02, 8.85, 9.19, "nats", n),
        "path_ess": {**number(131.0, 0, n, "paths", n), "ess": 131.0},
        "channel": number(0.52, 0.48, 0.56, n=n),
    }
    states = {
        "title": "Double well, two channels",
        "reduced": True,
        "floor": -0.083,
        "start": "left",
        "end": "right",
        "cvs": [{"name": "x", "period": None}, {"name": "y", "period": None}],
        "states": {
            "left": {"values": {"x": -1.118, "y": 0.0}, "radius": 0.5, "metric": "cvs"},
            "right": {"values": {"x": 1.118, "y": 0.0}, "radius": 0.5, "metric": "cvs"},
        },
    }
    _write_rest(folder, "double-well", results, None, states, [])
    _write_metrics(folder, np.clip(np.arange(20) / 8, 0, 1), 40 - np.arange(20.0), 5.0 * np.arange(1, 21))
    grid = np.linspace(-1.8, 1.8, 60), np.linspace(-1.6, 1.6, 60)
    energy = _double_well(*np.meshgrid(*grid))
    np.savez(folder / "figures" / "landscape.npz", x=grid[0], y=grid[1], energy=energy)
    return folder


def _write_rest(folder: Path, system: str, results: dict, null: dict | None, states: dict, warnings: list) -> None:
    result = {
        "verb": "paths",
        "system": system,
        "method": "tps-dps",
        "seed": 0,
        "versions": {"python": "3.11.7", "molsamp": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpu": "synthetic", "cores": 2},
        "engine": "torch-float32",
        "energy_evaluations": 13_000_064,
        "network_calls": 1_300_000,
        "cpu_seconds": 412.5,
        "wall_seconds": 260.1,
        "results": results,
        "null": null,
        "warnings": warnings,
    }
    (folder / "figures").mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "figures" / "states.json").write_text(json.dumps(states))
    (folder / "config.toml").write_text(CONFIG.format(system=system))


def _write_frames(
    folder: Path, time: np.ndarray, cvs: dict[str, np.ndarray], energy: np.ndarray, log_rn: np.ndarray, hit: np.ndarray
) -> None:
    folder.mkdir(parents=True)
    n, frames = energy.shape
    repeat = lambda a: np.repeat(a, frames)  # noqa: E731
    columns = [repeat(np.arange(n)), np.tile(np.arange(frames), n), np.tile(time, n)]
    columns += [values.ravel() for values in cvs.values()] + [energy.ravel(), repeat(log_rn), repeat(hit)]
    head = ",".join(["path", "frame", "time_ps", *cvs, "energy", "log_rn", "hit"])
    np.savetxt(folder / "frames.csv", np.stack(columns, 1), fmt="%.6g", delimiter=",", header=head, comments="")


def _write_metrics(folder: Path, hit_rate: np.ndarray, log_rn: np.ndarray, ess: np.ndarray) -> None:
    lines = [
        json.dumps({"k": k, "hit_rate": float(h), "log_rn": float(r), "ess": float(e), "loss": 1.0, "time_s": 0.4 * k})
        for k, (h, r, e) in enumerate(zip(hit_rate, log_rn, ess, strict=True))
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"k": 9')  # the last line was cut off by a kill


def _smooth_noise(rng: np.random.Generator, n: int, frames: int) -> np.ndarray:
    white = rng.standard_normal((2, n, frames))
    walk = np.zeros_like(white)
    for i in range(1, frames):
        walk[..., i] = 0.93 * walk[..., i - 1] + 0.075 * white[..., i]
    return walk


def _wrap(a: np.ndarray) -> np.ndarray:
    return (a + np.pi) % (2 * np.pi) - np.pi


def _double_well(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rings = 4 * (1 - x**2 - y**2) ** 2 + 2 * (x**2 - 2) ** 2
    return (rings + ((x + y) ** 2 - 1) ** 2 + ((x - y) ** 2 - 1) ** 2 - 2) / 6


# -- a molecule from torsions ---------------------------------------------------------------------

ATOMS = (  # name, residue, number, bonded to, angle with, torsion with, length / nm, angle / deg, torsion / deg
    ("CH3", "ACE", 1, None, None, None, 0, 0, 0),
    ("C", "ACE", 1, 0, None, None, 0.152, 0, 0),
    ("N", "ALA", 2, 1, 0, None, 0.134, 117, 0),
    ("O", "ACE", 1, 1, 2, 0, 0.123, 122, 180),
    ("CA", "ALA", 2, 2, 1, 0, 0.146, 122, 180),
    ("C", "ALA", 2, 4, 2, 1, 0.153, 110, "phi"),
    ("CB", "ALA", 2, 4, 2, 5, 0.153, 110, -122),
    ("N", "NME", 3, 5, 4, 2, 0.134, 117, "psi"),
    ("O", "ALA", 2, 5, 4, 7, 0.123, 121, 180),
    ("CH3", "NME", 3, 7, 5, 4, 0.146, 122, 180),
)


def _movie(torsions: list[np.ndarray]) -> str:
    """Models of three paths, the chains A, B, C of one multi-model PDB."""
    lines = []
    for frame in range(torsions[0].shape[1]):
        lines.append(f"MODEL {frame + 1:8d}")
        for path, chain in enumerate("ABC"):
            x = _build(torsions[0][path, frame], torsions[1][path, frame]) * 10
            for i, (name, residue, number_, *_) in enumerate(ATOMS):
                lines.append(
                    f"ATOM  {i + 1:5d}  {name:<3} {residue} {chain}{number_:4d}    "
                    f"{x[i, 0]:8.3f}{x[i, 1]:8.3f}{x[i, 2]:8.3f}  1.00  0.00          {name[0]:>2}"
                )
        lines.append("ENDMDL")
    return "\n".join(lines) + "\nEND\n"


def _build(phi: float, psi: float) -> np.ndarray:
    x = np.zeros((len(ATOMS), 3))
    for i, (*_, a, b, c, length, angle, torsion) in enumerate(ATOMS):
        turn = {"phi": phi, "psi": psi}[torsion] if isinstance(torsion, str) else np.radians(torsion)
        bend = np.radians(angle)
        if a is None:
            continue
        if b is None:
            x[i] = x[a] + (length, 0, 0)
        elif c is None:
            x[i] = x[a] + length * np.array([-np.cos(bend), np.sin(bend), 0])
        else:
            x[i] = _place(x[c], x[b], x[a], length, bend, turn)
    return x


def _place(c: np.ndarray, b: np.ndarray, a: np.ndarray, length: float, bend: float, turn: float) -> np.ndarray:
    axis = (a - b) / np.linalg.norm(a - b)
    normal = np.cross(b - c, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    arm = -np.cos(bend) * axis + np.sin(bend) * (np.cos(turn) * side + np.sin(turn) * normal)
    return a + length * arm
