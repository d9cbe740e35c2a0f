"""Where the force kernels are kept on disk, and word of their being compiled; the rest is `engine.compiling`."""

import sys
from functools import partial
from pathlib import Path

from molsamp.engine import compiling

SOURCES = ("alignment", "compiling", "lanes", "stepping", "tangents", "terms", "vector")
FILES = (compiling.__file__, *(str(Path(__file__).parent / f"{name}.py") for name in SOURCES))

kernel = compiling.kernel
entry = compiling.entries(*FILES, name="lanes", cost="about 10 s")
cache_folder = partial(compiling.cache_folder, FILES, "lanes", "about 10 s")


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
