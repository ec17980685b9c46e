"""The package's logger: standard error and a file, unless the program has a logger of that name already."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s  | %(name)s - %(levelname)-8s | %(message)s"
_files: dict[str, logging.FileHandler] = {}


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, so that a progress bar can keep its lines apart."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        raise AttributeError("it follows sys.stderr")


class _File(logging.FileHandler):
    """Opened at its first line. If it cannot be, or takes no more, that costs lines and is told once, and no more."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError as failure:
            self._tell(failure)

    def handleError(self, record: logging.LogRecord) -> None:
        failure = sys.exc_info()[1]
        if isinstance(failure, OSError):
            self._tell(failure)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as failure:
            self._tell(failure)

    def _tell(self, failure: OSError) -> None:
        if not self._told and sys.stderr is not None:
            self._told = True
            with suppress(OSError, ValueError):
                sys.stderr.write(f"the log file {self.baseFilename}: {failure.strerror}; its lines are lost\n")


def logger(name: str, level: int | str, file: Path | None) -> logging.Logger:
    """The logger of that name; made, with its handlers, if there is none yet."""
    existing = logging.root.manager.loggerDict.get(name)
    made = logging.getLogger(name)
    if isinstance(existing, logging.Logger):
        return made
    made.setLevel(level)
    _add(made, _Stderr())
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        _files[name] = _File(file, encoding="utf-8", delay=True)
        _add(made, _files[name])
    return made


def brief(made: logging.Logger) -> None:
    """On standard error no more than warnings, and only when and what: for a program that says whose they are."""
    for handler in made.handlers:
        if isinstance(handler, _Stderr):
            handler.setLevel(logging.WARNING)
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))


def _add(made: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(FORMAT))
    made.addHandler(handler)


def release(made: logging.Logger) -> None:
    """Closes the file, if it is ours; it opens again at the next line."""
    if made.name in _files:
        _files[made.name].close()
