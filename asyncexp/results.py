"""What an experiment function is given to report with: check each value, then send it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from asyncexp.errors import (
    DatabaseQueryError,
    ExperimentLostError,
    InvalidLogFieldError,
    InvalidResultFieldError,
)
from asyncexp.experiment import ExperimentId
from asyncexp.store.flush import Key
from asyncexp.store.study import Study, unknown
from asyncexp.writer import Writer, lost

T = TypeVar("T")
P = ParamSpec("P")

HEARTBEAT_SECONDS = 1.0
"""At most one write of an experiment's heartbeat in this time."""
LOOP_CHECK_SECONDS = 1.0
PLAIN_BYTES = 16
"""What a number or a date counts for, in a flush."""

LogRows = Mapping[str, Any] | Iterable[Mapping[str, Any]]


class Attempt(Protocol):
    """What a result processor must know of the attempt that it reports for."""

    over: bool
    """The attempt has ended or was lost: nothing more is accepted."""
    last_sign: float
    """`time.monotonic()` of the function's last call."""

    @property
    def should_stop(self) -> bool: ...


def _noticed(
    method: Callable[Concatenate[ResultProcessor, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ResultProcessor, P], Coroutine[Any, Any, T]]:
    """Counts a call until it begins, so that a forgotten `await` is found out."""

    def call(self: ResultProcessor, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        self.unawaited += 1
        return method(self, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class ResultProcessor:
    """Reports results, logs and progress of one attempt, from `async def` functions.

    Made by asyncexp, not by users. Every method raises `ExperimentLostError` once the row is no longer
    this worker's.
    """

    def __init__(self, experiment_id: ExperimentId, attempt: Attempt, study: Study, writer: Writer) -> None:
        self._id = experiment_id
        self._key: Key = (int(experiment_id), experiment_id.attempt)
        self._state = attempt
        self._study = study
        self._writer = writer
        self._heartbeat: dict[str, Any] = {}
        self._heartbeat_due: float = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.unawaited = 0
        """Calls of which nobody has awaited the result: nothing of them is done."""

    @property
    def experiment_id(self) -> ExperimentId:
        """The ID of the row: an `int` that carries attempt and worker, through a pickle too."""
        return self._id

    @property
    def attempt(self) -> int:
        """1 for the first attempt at this row; above 1, look for a checkpoint."""
        return self._id.attempt

    @property
    def should_stop(self) -> bool:
        """True once this experiment should come to an end: save a checkpoint, return `CREATED` or `PAUSED`."""
        return self._state.should_stop

    @_noticed
    async def process_results(self, results: Mapping[str, Any]) -> None:
        """Writes results into the row; when it returns they are committed.

        The last write of a field wins, a field not named stays as it is, `None` writes NULL.

        Raises:
            InvalidResultFieldError: no such resultfield, or a value that does not fit; nothing was written.
            DatabaseQueryError: the database refused the values; nothing of this call was written.
            ExperimentLostError: the row is no longer this worker's; nothing was written.
        """
        self._begin()
        fields, size = self._results(results)
        await self._writer.send(self._key, fields, size)

    @_noticed
    async def process_logs(self, logs: Mapping[str, LogRows]) -> None:
        """Adds lines to log tables, in order; written in the background, at most 0.2 s later.

        Takes `{log table: {column: value}}`, or a list of such rows for a table. Waits only while too
        many lines are still to be written.

        Raises:
            InvalidLogFieldError: no such log table or column, or a value that does not fit; nothing was written.
            DatabaseQueryError: the database refused lines sent earlier.
            ExperimentLostError: the row is no longer this worker's.
        """
        self._begin()
        lines, size = self._lines(logs)
        await self._writer.log(self._key, lines, size)

    @_noticed
    async def heartbeat(self, progress: float | None = None, message: str | None = None) -> None:
        """A sign of life, with the fraction done and a word on it, for others to see.

        Merged: written at most once a second. A fraction outside 0 to 1 is moved to the nearer end, NaN left out.

        Raises:
            InvalidResultFieldError: `progress` is no number.
        """
        self._begin()
        self._note_heartbeat(progress, message)

    @_noticed
    async def flush(self) -> None:
        """Returns when everything sent so far is committed."""
        self._begin()
        self._write_heartbeat()
        await self._writer.settled(self._key)
        self._alive()

    # ------------------------------------------------------------------------------------- checking

    def _begin(self) -> None:
        self.unawaited -= 1
        self._alive()

    def _alive(self) -> None:
        self._state.last_sign = time.monotonic()
        if self._state.over:
            raise lost(self._key)
        if (refused := self._writer.take_error(self._key)) is not None:
            raise DatabaseQueryError(f"The database refused what was sent earlier: {refused}") from refused

    def _results(self, results: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        if not isinstance(results, Mapping):
            raise InvalidResultFieldError(f"results are a dict of fields and values, not {type(results).__name__}")
        encoders = self._study.result_encoders
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
        if self._study.schema.result_timestamps:
            now = self._study.now()
            fields |= {f"{name}_timestamp": now for name in list(fields)}
        return fields, size

    def _lines(self, logs: Mapping[str, LogRows]) -> tuple[list[tuple[str, tuple[Any, ...]]], int]:
        if not isinstance(logs, Mapping):
            raise InvalidLogFieldError(f"logs are a dict of log tables and rows, not {type(logs).__name__}")
        tables = self._study.log_encoders
        lines: list[tuple[str, tuple[Any, ...]]] = []
        size = 0
        now = self._study.now()
        for table, rows in logs.items():
            columns = tables.get(table)
            if columns is None:
                raise InvalidLogFieldError(unknown("no log table", table, tables))
            for row in _rows(table, rows):
                values, more = self._line(table, columns, row)
                lines.append((table, (now, *values)))
                size += more
        return lines, size

    def _line(
        self, table: str, columns: Mapping[str, Callable[[object], Any]], row: Mapping[str, Any]
    ) -> tuple[list[Any], int]:
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
        size, most = len(text), self._study.db.max_value_bytes
        if size * 4 > most and len(text.encode()) > most:
            raise ValueError(f"{size} characters are more than the server takes in one value ({most} bytes)")
        return size

    # ------------------------------------------------------------------------------------ heartbeat

    def _note_heartbeat(self, progress: float | None, message: str | None) -> None:
        if progress is not None and (fraction := _fraction(progress)) is not None:
            self._heartbeat["_progress"] = fraction
        if message is not None:
            self._heartbeat["_message"] = clean(str(message))
        self._heartbeat["_heartbeat"] = self._study.now()
        wait = self._heartbeat_due - time.monotonic()
        if wait <= 0:
            self._write_heartbeat()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._write_heartbeat)

    def _write_heartbeat(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heartbeat and not self._state.over:
            self._heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS
            self._writer.mention(self._key, self._heartbeat)
            self._heartbeat = {}

    def close(self) -> None:
        """Sends a heartbeat that still waits; the attempt is about to end."""
        self._write_heartbeat()


class SyncResultProcessor:
    """The same for plain `def` functions: each call returns when its asynchronous twin would."""

    def __init__(self, inner: ResultProcessor, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    @property
    def experiment_id(self) -> ExperimentId:
        """The ID of the row: an `int` that carries attempt and worker, through a pickle too."""
        return self._inner.experiment_id

    @property
    def attempt(self) -> int:
        """1 for the first attempt at this row; above 1, look for a checkpoint."""
        return self._inner.attempt

    @property
    def should_stop(self) -> bool:
        """True once this experiment should come to an end: save a checkpoint, return `CREATED` or `PAUSED`."""
        return self._inner.should_stop

    def process_results(self, results: Mapping[str, Any]) -> None:
        """See `ResultProcessor.process_results`."""
        self._call(self._inner.process_results(results))

    def process_logs(self, logs: Mapping[str, LogRows]) -> None:
        """See `ResultProcessor.process_logs`."""
        self._call(self._inner.process_logs(logs))

    def heartbeat(self, progress: float | None = None, message: str | None = None) -> None:
        """See `ResultProcessor.heartbeat`."""
        self._call(self._inner.heartbeat(progress, message))

    def flush(self) -> None:
        """See `ResultProcessor.flush`."""
        self._call(self._inner.flush())

    def _call(self, sent: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(sent, self._loop)
        except RuntimeError:  # the loop was closed: this thread outlived its worker
            sent.close()
            raise lost((int(self.experiment_id), self.attempt)) from None
        while True:
            try:
                return future.result(LOOP_CHECK_SECONDS)
            except concurrent.futures.CancelledError:
                raise lost((int(self.experiment_id), self.attempt)) from None
            except TimeoutError:
                if future.done():
                    raise
                if self._loop.is_closed():
                    raise lost((int(self.experiment_id), self.attempt)) from None


def clean(text: str) -> str:
    """Text that every database takes: no NUL, no lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _rows(table: str, rows: LogRows) -> Iterable[Mapping[str, Any]]:
    listed = [rows] if isinstance(rows, Mapping) else list(rows) if isinstance(rows, Iterable) else [rows]
    for row in listed:
        if not isinstance(row, Mapping):
            found = type(row).__name__
            raise InvalidLogFieldError(f"log table {table!r}: a row is a dict of columns and values, not {found}")
    return listed


def _fraction(progress: float) -> float | None:
    try:
        given = float(progress)
    except (TypeError, ValueError):
        raise InvalidResultFieldError(f"heartbeat: progress is a fraction from 0 to 1, not {progress!r}") from None
    return None if math.isnan(given) else min(1.0, max(0.0, given))


__all__ = ["ExperimentLostError", "ResultProcessor", "SyncResultProcessor", "clean"]
