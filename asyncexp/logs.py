"""The package's logger: a file, unless the program has a logger of that name already."""

from __future__ import annotations

import logging
from pathlib import Path

FORMAT = "%(asctime)s  | %(name)s - %(levelname)-8s | %(message)s"
_ours: dict[str, logging.Handler] = {}


def logger(name: str, level: int | str, file: Path | None) -> logging.Logger:
    """The logger of that name; made with a handler for `file` if there is none yet."""
    existing = logging.root.manager.loggerDict.get(name)
    made = logging.getLogger(name)
    if isinstance(existing, logging.Logger):
        return made
    made.setLevel(level)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter(FORMAT))
        made.addHandler(handler)
        _ours[name] = handler
    return made


def release(made: logging.Logger) -> None:
    """Closes the file, if it is ours; it opens again at the next line."""
    handler = _ours.get(made.name)
    if handler is not None:
        handler.close()
