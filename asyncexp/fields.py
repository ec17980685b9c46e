"""Checking what a function reports: names and values of results and log lines, wherever the function runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asyncexp.errors import InvalidLogFieldError, InvalidResultFieldError, unknown

PLAIN_BYTES = 16
"""What a number or a date counts for, in a flush."""

LogRows = Mapping[str, Any] | Iterable[Mapping[str, Any]]
Encode = Callable[[object], Any]
Line = tuple[str, tuple[Any, ...]]
"""(short name of the log table, its columns' values)."""


class Fields:
    """The resultfields and log tables of a study, each with its encoder.

    Args:
        results: resultfield -> user's value to what is sent; raises ValueError for what the column cannot hold.
        logs: log table -> column -> the same.
        most: how many bytes the server takes in one value.
    """

    def __init__(
        self, results: Mapping[str, Encode], logs: Mapping[str, Mapping[str, Encode]], most: Callable[[], int]
    ) -> None:
        self._results = results
        self._logs = logs
        self._most = most

    def results(self, results: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Encoded results, and roughly their bytes.

        Raises:
            InvalidResultFieldError: no such resultfield, or a value that does not fit.
        """
        if type(results) is not dict and not isinstance(results, Mapping):
            raise InvalidResultFieldError(f"results are a dict of fields and values, not {type(results).__name__}")
        encoders = self._results
        fields: dict[str, Any] = {}
        size = 0
        for name, value in results.items():
            encode = encoders.get(name)
            if encode is None:
                raise InvalidResultFieldError(unknown("no resultfield", name, encoders))
            try:
                fields[name] = encoded = encode(value)
                size += self._size(encoded) if type(encoded) is str else PLAIN_BYTES
            except ValueError as wrong:
                raise InvalidResultFieldError(f"resultfield {name!r}: {wrong}") from None
        return fields, size

    def lines(self, logs: Mapping[str, LogRows], *stamp: Any) -> tuple[list[Line], int]:
        """Encoded log lines in their order, `stamp` before each one's values, and roughly their bytes.

        Raises:
            InvalidLogFieldError: no such log table or column, or a value that does not fit.
        """
        if type(logs) is not dict and not isinstance(logs, Mapping):
            raise InvalidLogFieldError(f"logs are a dict of log tables and rows, not {type(logs).__name__}")
        tables = self._logs
        lines: list[Line] = []
        size = 0
        for table, rows in logs.items():
            columns = tables.get(table)
            if columns is None:
                raise InvalidLogFieldError(unknown("no log table", table, tables))
            for row in _rows(table, rows):
                values, more = self._line(table, columns, row)
                lines.append((table, (*stamp, *values)))
                size += more
        return lines, size

    def _line(self, table: str, columns: Mapping[str, Encode], row: Mapping[str, Any]) -> tuple[list[Any], int]:
        if not row.keys() <= columns.keys():
            wrong = next(name for name in row if name not in columns)
            raise InvalidLogFieldError(unknown(f"log table {table!r} has no column", wrong, columns))
        values: list[Any] = []
        size = 0
        for name, encode in columns.items():
            value = row.get(name)
            if value is not None:
                try:
                    value = encode(value)
                    size += self._size(value) if type(value) is str else PLAIN_BYTES
                except ValueError as wrong:
                    raise InvalidLogFieldError(f"log table {table!r}, column {name!r}: {wrong}") from None
            values.append(value)
        return values, size

    def _size(self, text: str) -> int:
        size, most = len(text), self._most()
        if size * 4 > most and len(text.encode()) > most:
            raise ValueError(f"{size} characters are more than the server takes in one value ({most} bytes)")
        return size


def _rows(table: str, rows: LogRows) -> Iterable[Mapping[str, Any]]:
    if type(rows) is dict:
        return (rows,)
    listed = [rows] if isinstance(rows, Mapping) else list(rows) if isinstance(rows, Iterable) else [rows]
    for row in listed:
        if not isinstance(row, Mapping):
            found = type(row).__name__
            raise InvalidLogFieldError(f"log table {table!r}: a row is a dict of columns and values, not {found}")
    return listed


def fraction(progress: float) -> float | None:
    """A heartbeat's fraction, moved to the nearer end if it lies outside 0 to 1; None for NaN.

    Raises:
        InvalidResultFieldError: it is no number.
    """
    try:
        given = float(progress)
    except (TypeError, ValueError):
        raise InvalidResultFieldError(f"heartbeat: progress is a fraction from 0 to 1, not {progress!r}") from None
    return None if math.isnan(given) else min(1.0, max(0.0, given))


def clean(text: str) -> str:
    """Text that every database takes: no NUL, no lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
