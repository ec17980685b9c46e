"""How commands end: exit codes, and the refusal of what cannot be done."""

from __future__ import annotations

OK = 0
NOT_ALL_WELL = 1
"""Experiments ended in error, a check found something, what was asked for is not there."""
USAGE = 2
CONFIGURATION = 3
DATABASE = 4
INTERRUPTED = 128 + 2
TERMINATED = 128 + 15
CLOSED_PIPE = 128 + 13


class Refused(Exception):
    """A command that cannot do what it was told, in a sentence; nothing was changed."""

    def __init__(self, words: str, code: int = USAGE) -> None:
        super().__init__(words)
        self.code = code
