"""Checkpoints that survive a kill at any instant: two generations, each a tensor file and a manifest.

    state-0000000040.safetensors     tensors, and the scalars as one JSON string in the file's metadata
    state-0000000040.json            manifest: k, sha256 and size of the tensor file, sizes of the files that grow

Both are written to a temporary name, fsynced and renamed; the manifest goes last, so it commits the
generation. A generation counts only when its manifest parses and the sha256 agrees; any other is torn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Value = torch.Tensor | int | float | str | bool | None

KEEP = 2


class Unusable(ValueError):
    """A run cannot go on from what its folder holds: a file has lost lines, or a checkpoint has another form."""


@dataclass(frozen=True)
class Generation:
    """One valid checkpoint on disk: its tensor file and the fields of its manifest."""

    file: Path
    k: int
    grown: dict[str, int]
    cpu_seconds: float
    wall_seconds: float

    def load(self) -> dict[str, Value]:
        """Read the state back; the inverse of `write`."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as f:
            scalars = json.loads(f.metadata()["scalars"])
            return {**scalars, **{name: f.get_tensor(name) for name in f.keys()}}  # noqa: SIM118


def write(folder: Path, state: Mapping[str, Value], **manifest: float | dict[str, int]) -> None:
    """Write one generation and drop all but the newest two.

    A state is a function of the settings and of k alone (the package is deterministic), so a generation that
    is already there with this k is left as it is.

    Args:
        folder: the checkpoints folder; made when missing.
        state: flat dict of tensors, numbers and strings; "k" (an integer >= 0) counts the finished units of work.
        manifest: further entries (`grown`: bytes of each file that lines are appended to; `cpu_seconds`,
            `wall_seconds`).
    Raises:
        ValueError: no integer "k", or a value of another type.
        OSError: disk full or no permission; the earlier generations are untouched.
    """
    k = _finished(state)
    if not folder.exists():
        folder.mkdir()
        fsync(folder.parent)
    file = folder / f"state-{k:010d}.safetensors"
    if file.with_suffix(".json").exists():
        return
    tensors, scalars = _split(state)
    replace(file, lambda temporary: _save_tensors(tensors, scalars, temporary))
    entry = {"k": k, "file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file), **manifest}
    write_text(file.with_suffix(".json"), json.dumps(entry, indent=1) + "\n")
    for old in sorted(folder.glob("state-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Generation | None, list[str]]:
    """Find the newest valid generation; remove torn newer ones and say what was wrong with each.

    Raises:
        Unusable: the newest is of an older molsamp.
    """
    torn: list[str] = []
    names = {path.stem for path in folder.glob("state-*") if path.suffix in (".json", ".safetensors")}
    for name in sorted(names, reverse=True):
        manifest = folder / f"{name}.json"
        generation, reason = _read(manifest)
        if generation:
            return generation, torn
        torn.append(reason)
        manifest.unlink(missing_ok=True)
        manifest.with_suffix(".safetensors").unlink(missing_ok=True)
    return None, torn


def write_text(file: Path, text: str) -> None:
    """Replace `file` by `text` in one step: after a crash it holds the old text or the new, never a part."""
    replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
    """Replace `file` by safetensors in one step, the scalars as JSON under "scalars" in its metadata.

    Raises:
        OSError: no space, no permission; `file` is then as it was.
    """
    split, _ = _split(tensors)
    replace(file, lambda temporary: _save_tensors(split, dict(scalars), temporary))


def replace(file: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write a temporary file, push it to the disk and rename it to `file`; clean up on failure.

    Raises:
        OSError: no space, no permission; `file` is then as it was.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        fill(temporary)
        fsync(temporary)
        os.replace(temporary, file)
        fsync(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(manifest: Path) -> tuple[Generation | None, str]:
    file = manifest.with_suffix(".safetensors")
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8"))
        if file.stat().st_size != entry["bytes"] or _sha256(file) != entry["sha256"]:
            return None, f"{file.name} does not agree with its checksum"
        if "metrics_lines" in entry:
            raise Unusable(f"{manifest}: is a checkpoint of an older molsamp; resume with that one, or start a new run")
        numbers = (entry["grown"], entry["cpu_seconds"], entry["wall_seconds"])
        return Generation(file, entry["k"], *numbers), ""
    except Unusable:
        raise
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return None, f"{manifest.name} is not a complete manifest"


def _finished(state: Mapping[str, Value]) -> int:
    """Read the count of finished units from state["k"], an int or a 0-d integer tensor."""
    k: Any = state.get("k")
    number = k.item() if hasattr(k, "item") else k
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"checkpoint: state['k'] must be an integer >= 0, got {k!r}")
    return number


def _split(state: Mapping[str, Value]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Part a state into tensors on the CPU, none sharing memory with another, and JSON scalars."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        elif value is None or isinstance(value, (bool, int, float, str)):
            scalars[name] = value
        else:
            kind = type(value).__name__
            raise ValueError(f"checkpoint: state['{name}'] is a {kind}; allowed are tensors, numbers, strings")
    seen: set[int] = set()
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        if where in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone()
        seen.add(where)
    return tensors, scalars


def _save_tensors(tensors: dict[str, torch.Tensor], scalars: dict[str, Any], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # One metadata key only: the order of several is not fixed, and the bytes must be.
        save_file(tensors, file, metadata={"scalars": json.dumps(scalars, sort_keys=True)})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from None


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Push a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
