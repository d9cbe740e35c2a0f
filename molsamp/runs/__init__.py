"""Floor 3: run folders, settings, the command line, progress, the report; `Run` is the folder of one run."""

from molsamp.runs.folder import Run

__all__ = ["Run"]
