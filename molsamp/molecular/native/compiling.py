"""How numba kernels are compiled and kept on disk.

numba looks only at the file of a kernel to decide whether a stored one is stale, so the folder is named by a hash of
all files that kernels are made of, of numba and of the processor: stale kernels are never found.
"""

import hashlib
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba import njit

SOURCES = ("alignment", "compiling", "lanes", "stepping", "tangents", "terms", "vector")
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

kernel = njit(**OPTIONS)
"""An inner kernel: compiled into the entries that use it."""


def entry(function):
    """A kernel that Python calls: its machine code is kept on disk, where a folder can be written."""
    folder = cache_folder()
    if folder is None:
        return njit(**OPTIONS)(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        return njit(cache=True, **OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: below MOLSAMP_CACHE or the user's cache folder; None, with one warning, where
    nothing can be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("MOLSAMP_CACHE") or home / "molsamp") / f"lanes-{_fingerprint()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {folder} ({error.strerror}), so every start compiles them again "
            "(about 10 s); name a writable folder in MOLSAMP_CACHE",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def _fingerprint() -> str:
    parts = [(Path(__file__).parent / f"{name}.py").read_bytes() for name in SOURCES]
    parts += [v.encode() for v in (numba.__version__, llvmlite.__version__, binding.get_host_cpu_name())]
    parts.append(binding.get_host_cpu_features().flatten().encode())
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def announce(what: str) -> None:
    """Says once per machine that kernels for `what` are about to be compiled."""
    folder = cache_folder()
    mark = folder / f"announced-{what}" if folder else None
    if mark is None or not mark.exists():
        print(
            f"molsamp: compiling {what} force kernels for this machine, about 10 s, once", file=sys.stderr, flush=True
        )
        if mark is not None:
            mark.touch()
