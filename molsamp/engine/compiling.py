"""How numba kernels are compiled and kept on disk.

A file of kernels imports numba as it loads, so it is itself imported inside the functions that call it.
numba looks only at the file of a kernel to decide whether a stored one is stale, so the folder is named by a hash of
all files that kernels are made of, of numba and of the processor: stale kernels are never found.
"""

import hashlib
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

kernel = njit(**OPTIONS)
"""An inner kernel: compiled into the entries that use it."""


def entries(*files: str, name: str = "kernels", cost: str = "seconds"):
    """The decorator of kernels that Python calls, made of these files: their machine code is kept on disk, in a folder
    of this name; `cost` is what compiling them takes, in words."""

    def entry(function):
        folder = cache_folder(files, name, cost)
        if folder is None:
            return njit(**OPTIONS)(function)
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            return njit(cache=True, **OPTIONS)(function)
        finally:
            numba.config.CACHE_DIR = before

    return entry


@cache
def cache_folder(files: tuple[str, ...], name: str = "kernels", cost: str = "seconds") -> Path | None:
    """Where kernels are kept: below MOLSAMP_CACHE or the user's cache folder; None, with one warning, where nothing
    can be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("MOLSAMP_CACHE") or home / "molsamp") / f"{name}-{_fingerprint(files)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {folder} ({error.strerror}), so every start compiles them again "
            f"({cost}); name a writable folder in MOLSAMP_CACHE",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def _fingerprint(files: tuple[str, ...]) -> str:
    parts = [Path(file).read_bytes() for file in files]
    parts += [v.encode() for v in (numba.__version__, llvmlite.__version__, binding.get_host_cpu_name())]
    parts.append(binding.get_host_cpu_features().flatten().encode())
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()
