"""What an experiment function and its test share, whatever runs the function: a task, a thread or a child process.

Both are files, so that they work in another process and on another event loop; both pickle.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.005
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """A list to which any process may append values that JSON can say; a value is written whole or not at all."""

    path: Path

    def append(self, value: Any) -> None:
        line = json.dumps(value).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def values(self) -> list[Any]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.values())

    def __contains__(self, value: object) -> bool:
        return value in self.values()

    def __eq__(self, other: object) -> bool:
        return self.values() == (other.values() if isinstance(other, Seen) else other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Gate:
    """Closed until somebody opens it; a waiter that nobody lets through fails after `PATIENCE_SECONDS`."""

    path: Path

    def open(self) -> None:
        self.path.touch()

    @property
    def is_open(self) -> bool:
        return self.path.exists()

    async def passed(self) -> None:
        """Returns when it is open, in `async def`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.is_open:
            assert time.monotonic() < end, f"nobody opened {self.path.name}"
            await asyncio.sleep(LOOK_SECONDS)

    def wait(self) -> None:
        """Returns when it is open, in `def`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.is_open:
            assert time.monotonic() < end, f"nobody opened {self.path.name}"
            time.sleep(LOOK_SECONDS)


async def until(holds: Callable[[], bool]) -> None:
    """Returns when it holds, in `async def` functions of any process."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, "it never held"
        await asyncio.sleep(LOOK_SECONDS)


class Shared:
    """Makes what is shared, in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def _path(self) -> Path:
        self._made += 1
        return self._folder / f"shared-{self._made}"

    def seen(self) -> Seen:
        return Seen(self._path())

    def gate(self) -> Gate:
        return Gate(self._path())
