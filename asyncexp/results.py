"""What an experiment function is given to report with, wherever it runs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from asyncexp.errors import lost
from asyncexp.experiment import ExperimentId
from asyncexp.fields import LogRows
from asyncexp.waiting import Call, Once

T = TypeVar("T")
P = ParamSpec("P")

Send = Callable[[], Coroutine[Any, Any, None]]
"""A call on a result processor. The coroutine is made where it runs: an interruption on the way there leaves none."""

LOOP_CHECK_SECONDS = 1.0


class Report(Protocol):
    """Where what is reported goes: to the writer of this process, or over a line to that of the parent."""

    @property
    def should_stop(self) -> bool: ...

    def alive(self) -> None:
        """Notes a sign of life; raises if the attempt is over, or what was sent earlier was refused."""
        ...

    def results(self, results: Mapping[str, Any]) -> Awaitable[None]: ...
    def logs(self, logs: Mapping[str, LogRows]) -> Awaitable[None] | None:
        """Takes log lines; what to await before more are sent, if anything."""
        ...

    def heartbeat(self, progress: float | None, message: str | None) -> None: ...
    def flush(self) -> Awaitable[None]: ...


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

    def __init__(self, experiment_id: ExperimentId, report: Report) -> None:
        self._id = experiment_id
        self._report = report
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
        return self._report.should_stop

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
        await self._report.results(results)

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
        if (room := self._report.logs(logs)) is not None:
            await room

    @_noticed
    async def heartbeat(self, progress: float | None = None, message: str | None = None) -> None:
        """A sign of life, with the fraction done and a word on it, for others to see.

        Merged: written at most once a second. A fraction outside 0 to 1 is moved to the nearer end, NaN left out.

        Raises:
            InvalidResultFieldError: `progress` is no number.
        """
        self._begin()
        self._report.heartbeat(progress, message)

    @_noticed
    async def flush(self) -> None:
        """Returns when everything sent so far is committed."""
        self._begin()
        await self._report.flush()

    def _begin(self) -> None:
        self.unawaited -= 1
        self._report.alive()


class SyncResultProcessor:
    """The same for plain `def` functions: each call returns when its asynchronous twin would.

    Args:
        finish: runs a call on the inner one to its end, from the function's thread.
    """

    def __init__(self, inner: ResultProcessor, finish: Callable[[Send], None]) -> None:
        self._inner = inner
        self._finish = finish

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
        self._finish(lambda: self._inner.process_results(results))

    def process_logs(self, logs: Mapping[str, LogRows]) -> None:
        """See `ResultProcessor.process_logs`."""
        self._finish(lambda: self._inner.process_logs(logs))

    def heartbeat(self, progress: float | None = None, message: str | None = None) -> None:
        """See `ResultProcessor.heartbeat`."""
        self._finish(lambda: self._inner.heartbeat(progress, message))

    def flush(self) -> None:
        """See `ResultProcessor.flush`."""
        self._finish(self._inner.flush)


def from_thread(inner: ResultProcessor, loop: asyncio.AbstractEventLoop) -> SyncResultProcessor:
    """For a function that runs in a thread beside the event loop."""

    def finish(send: Send) -> None:
        over = Once()
        call = Call(send, over.set)
        try:
            loop.call_soon_threadsafe(call.begin)
        except RuntimeError:  # the loop was closed: this thread outlived its worker
            raise lost(inner.experiment_id) from None
        while not over.wait_at_most(LOOP_CHECK_SECONDS):
            if loop.is_closed():
                raise lost(inner.experiment_id)
        if call.cancelled:
            raise lost(inner.experiment_id)
        call.result()

    return SyncResultProcessor(inner, finish)
