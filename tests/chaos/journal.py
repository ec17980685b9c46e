"""What the experiment functions themselves say that they did: a file that no fault of a database can reach."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: an attempt began, or is about to end."""

    what: Literal["began", "ends"]
    id: int
    attempt: int
    number: int
    token: str
    """Made by the attempt; its results and every line of its logs carry it."""
    how: str = ""
    """How it ends: a status to return, or `raises`."""
    lines: int = 0
    """Log lines that it has sent."""
    attached: int = 0
    """Log lines that others have sent for it."""

    @property
    def key(self) -> tuple[int, int]:
        return self.id, self.attempt


@dataclass(frozen=True, slots=True)
class Journal:
    """Lines are appended whole or not at all, by any number of processes."""

    path: Path

    def write(self, entry: Entry) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(asdict(entry)).encode() + b"\n")
        finally:
            os.close(descriptor)

    def __iter__(self) -> Iterator[Entry]:
        if self.path.exists():
            with self.path.open() as lines:
                for line in lines:
                    yield Entry(**json.loads(line))
