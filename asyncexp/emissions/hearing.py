"""What codecarbon logs of itself: it raises little, and logs what went wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Ear(logging.Filter):
    """Hears what codecarbon logs of itself in our calls, and keeps it from the user's terminal unless he asked."""

    def __init__(self, let_through: bool) -> None:
        super().__init__()
        self.heard = ""
        self._let_through = let_through
        self._thread: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self._thread is not None and record.thread != self._thread:
            return True  # a tracker of the user's own
        if self.heard:  # the first thing that goes wrong is why
            pass
        elif record.exc_info and record.exc_info[1] is not None:  # it raises little, and logs what it would have
            self.heard = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        elif record.levelno >= logging.ERROR:
            self.heard = record.getMessage()
        return self._let_through

    @contextmanager
    def listening(self, *, everywhere: bool = False) -> Iterator[None]:
        """While it calls codecarbon in this thread; `everywhere`: codecarbon starts threads of its own for that."""
        logger = logging.getLogger("codecarbon")
        self._thread = None if everywhere else threading.get_ident()
        self.heard = ""
        logger.setLevel(min(logger.level, logging.WARNING))  # as which it logs exceptions
        logger.addFilter(self)
        try:
            yield
        finally:
            logger.removeFilter(self)
