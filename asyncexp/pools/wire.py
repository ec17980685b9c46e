"""Functions as bytes, for a child process: by cloudpickle, with the names of their files."""

from __future__ import annotations

import io
import linecache
import types
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from asyncexp.errors import InvalidConfigError

_HIDDEN = "<dynamic-code>"
"""What cloudpickle puts in the place of a file's name."""


def pickled(function: Callable[..., Any]) -> tuple[bytes, dict[str, list[str]]]:
    """A function as bytes, and the source lines of files that are no files: cells of a notebook.

    Tracebacks from a child then look as they would here.

    Raises:
        InvalidConfigError: it holds what cannot be sent to another process.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(function)
    except Exception as failure:
        raise InvalidConfigError(
            f"experiment_function cannot be sent to a child process: {type(failure).__name__}: {failure}. Make inside "
            'the function what it needs (connections, locks, open files), or use pool="task".'
        ) from failure
    return buffer.getvalue(), _sources(pickler.files)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, buffer: io.BytesIO) -> None:
        self.files: set[str] = set()
        own: Mapping[type, Callable[[Any], Any]] = {types.CodeType: self._code}
        # Before the pickler is made: it looks for its table once.
        self.dispatch_table = ChainMap(dict(own), cloudpickle.Pickler.dispatch_table)
        super().__init__(buffer)

    def _code(self, code: types.CodeType) -> tuple[Any, ...]:
        make, arguments = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
        self.files.add(code.co_filename)
        return make, tuple(code.co_filename if argument == _HIDDEN else argument for argument in arguments)


def _sources(files: set[str]) -> dict[str, list[str]]:
    return {name: lines for name in files if not Path(name).exists() and (lines := linecache.getlines(name))}
