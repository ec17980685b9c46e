"""Sees from another thread whether an event loop still comes round, and what keeps it."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

OWN_FOLDER = str(Path(__file__).parent)
ASYNCIO_FOLDER = str(Path(asyncio.__file__).parent)


class Watchdog:
    """Asks a loop for an answer and says in the log what keeps it from giving one.

    Args:
        thread: identifier of the thread that the loop runs in.
        patience_seconds: a loop that has been silent for so long is worth a line in the log; then twice that, …
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: int, patience_seconds: float, logger: logging.Logger
    ) -> None:
        self._loop = loop
        self._thread = thread
        self._patience = patience_seconds
        self._logger = logger
        self._asked: float | None = None
        self._next_word = patience_seconds
        self.culprit = ""
        """What was last seen to keep the loop, in words."""

    def look(self) -> float:
        """Seconds for which the loop has not come round; asks it again if it has."""
        if self._loop.is_closed():
            return 0.0
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            self._loop.call_soon_threadsafe(self._answer)
            return 0.0
        silent = now - self._asked
        self.culprit = _culprit(self._thread)
        if silent >= self._next_word:
            self._next_word = 2 * silent
            self._logger.warning(
                "The event loop has been blocked for %.0f s by %s: other experiments of this worker wait, and so do "
                "their results. Await something now and then, run the blocking part in a thread, or use "
                'pool="process". The sign of life goes on.',
                silent,
                self.culprit,
            )
        return silent

    def _answer(self) -> None:
        """Runs on the loop."""
        silent = 0.0 if self._asked is None else time.monotonic() - self._asked
        if self._next_word > self._patience:
            self._logger.warning("The event loop was blocked for %.0f s by %s.", silent, self.culprit)
        self._next_word = self._patience
        self._asked = None


def _culprit(thread: int) -> str:
    """The function on top of what asyncexp and asyncio called, and where that is now."""
    outer_to_inner = [frame for frame in reversed(list(_frames(thread))) if not _is_ours(frame)]
    if not outer_to_inner:
        return "asyncio itself"
    first, last = _called_by_us(thread) or outer_to_inner[0], outer_to_inner[-1]
    if first is last:
        return _where(first)
    return f"{_where(first)}, now in {_where(last)}"


def _called_by_us(thread: int) -> FrameType | None:
    """The outermost frame that is neither ours nor asyncio's below the event loop's."""
    found = None
    for frame in _frames(thread):  # inner to outer
        if frame.f_code.co_filename.startswith(ASYNCIO_FOLDER):
            return found
        if not _is_ours(frame):
            found = frame
    return found


def _frames(thread: int) -> Iterator[FrameType]:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((OWN_FOLDER, ASYNCIO_FOLDER))


def _where(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname}() ({code.co_filename}:{frame.f_lineno})"
