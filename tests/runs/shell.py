"""The command line in this process, as tests call it."""

import sys
from pathlib import Path

import pytest

from molsamp.runs import cli


def molsamp(*arguments: str | Path) -> int:
    """Run the command line in this process and return its exit code."""
    former, showwarning = sys.argv, cli.warnings.showwarning
    sys.argv = ["molsamp", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv, cli.warnings.showwarning = former, showwarning
    return int(left.value.code or 0)
