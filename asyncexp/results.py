"""What an experiment function is given to report with: check each value, then send it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from asyncexp.errors import DatabaseQueryError
from asyncexp.experiment import ExperimentId
from asyncexp.fields import Line, LogRows, clean, fraction
from asyncexp.store.flush import Key
from asyncexp.store.study import Study
from asyncexp.writer import Writer, lost

T = TypeVar("T")
P = ParamSpec("P")

HEARTBEAT_SECONDS = 1.0
"""At most one write of an experiment's heartbeat in this time."""
LOOP_CHECK_SECONDS = 1.0


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
        await self._send(*self._study.fields.results(results))

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
        await self._writer.log(self._key, *self._study.fields.lines(logs, self._study.now()))

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
        await self._settle()

    # -------------------------------------------------------------------------------------- sending

    def _begin(self) -> None:
        self.unawaited -= 1
        self._alive()

    def _alive(self) -> None:
        self._state.last_sign = time.monotonic()
        if self._state.over:
            raise lost(self._key)
        if (refused := self._writer.take_error(self._key)) is not None:
            raise DatabaseQueryError(f"The database refused what was sent earlier: {refused}") from refused

    async def _send(self, fields: dict[str, Any], size: int) -> None:
        if self._study.schema.result_timestamps:
            now = self._study.now()
            fields |= {f"{name}_timestamp": now for name in list(fields)}
        await self._writer.send(self._key, fields, size)

    async def _settle(self) -> None:
        self._write_heartbeat()
        await self._writer.settled(self._key)
        self._alive()

    # ------------------------------------------------------------------- what a child process has checked

    async def relay_results(self, fields: Mapping[str, Any], size: int) -> None:
        """As `process_results`, for canonical values."""
        self._alive()
        bound = self._study.bound
        await self._send({name: bound(value) for name, value in fields.items()}, size)

    async def relay_logs(self, lines: Sequence[Line], size: int) -> None:
        """As `process_logs`, for canonical values."""
        self._alive()
        bound, now = self._study.bound, self._study.now()
        stamped = [(table, (now, *(bound(value) for value in values))) for table, values in lines]
        await self._writer.log(self._key, stamped, size)

    def relay_heartbeat(self, progress: float | None, message: str | None) -> None:
        """As `heartbeat`."""
        self._alive()
        self._note_heartbeat(progress, message)

    async def relay_flush(self) -> None:
        """As `flush`."""
        self._alive()
        await self._settle()

    # ------------------------------------------------------------------------------------ heartbeat

    def _note_heartbeat(self, progress: float | None, message: str | None) -> None:
        if progress is not None and (given := fraction(progress)) is not None:
            self._heartbeat["_progress"] = given
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
