"""The one exception that carries an exit code."""

from __future__ import annotations


class Stopped(Exception):
    """The run ended early; the message is for the user, `code` for the shell (1, 130 or 143)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
