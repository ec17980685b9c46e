"""Joining a running experiment from anywhere: a row among the workers, a writer and one connection of its own.

What an attached worker writes passes the fence in the name of the worker that runs the experiment; its sign
of life goes over the same connection and brings back whether that attempt still runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asyncexp import provenance
from asyncexp.config.models import ExecutionConfig
from asyncexp.db.base import Database, MissingTable, Outage, T
from asyncexp.db.whole import shielded
from asyncexp.errors import (
    DatabaseConnectionError,
    DatabaseError,
    ExperimentLostError,
    InvalidConfigError,
    PyExperimenterError,
)
from asyncexp.experiment import ExperimentId
from asyncexp.pools.base import is_async
from asyncexp.reporting import AttemptReport
from asyncexp.results import ResultProcessor, SyncResultProcessor, from_thread
from asyncexp.schema import Schema
from asyncexp.session import check_tables, patiently
from asyncexp.store import workers
from asyncexp.store.claim import Worker
from asyncexp.store.flush import Key
from asyncexp.store.study import Study
from asyncexp.store.workers import Standing
from asyncexp.writer import Writer

FIRST_LOOK_SECONDS = 0.05
FIRST_WAIT_SECONDS = 0.1
CLOSE_LIMIT_SECONDS = 30.0
CLOSED = "The experimenter was closed while a worker was attached to an experiment."


class Attachment:
    """A worker attached to one attempt of an experiment that another worker runs, from `open` to `end`.

    It belongs to the event loop on which it was made, and uses one connection.

    Args:
        lent: the connection is somebody else's and stays open at the end.
        ended: called once, when it is over.
    """

    processor: ResultProcessor
    """What the worker function reports to, on this event loop; there once opened."""

    def __init__(
        self,
        database: Database,
        schema: Schema,
        logger: logging.Logger,
        name: str,
        settings: ExecutionConfig,
        *,
        lent: bool,
        ended: Callable[[Attachment], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.lent = lent
        self.logger = logger
        self.grace = settings.grace
        self.over = False
        self.last_sign = time.monotonic()
        self.cut: asyncio.Future[None] = self.loop.create_future()
        """Done when the function must come to an end: the row was lost, or the experimenter is being closed."""
        self._database = database
        self._study = Study(database, schema, logger.warning)
        self._settings = settings
        self._worker = Worker(secrets.randbits(62) + 1, name, provenance.machine())
        self._ended = ended
        self._failure: Exception | None = None
        self._asked = False
        self._registered = False
        self._writer: Writer | None = None
        self._report: AttemptReport | None = None
        self._beats: asyncio.Task[None] | None = None
        self._closing = asyncio.Lock()
        self._closed = False
        self._drop = weakref.finalize(self, _nothing if lent else database.abandon)

    # --------------------------------------------------------------------------------------- opening

    async def open(self, experiment_id: int, wait_seconds: float, *, check: bool) -> None:
        """Joins the attempt that an `ExperimentId` names, or the one under way; waits for a bare ID to run.

        Args:
            check: whether to compare the tables with the configuration first.

        Raises:
            ExperimentLostError: it does not run; the message says what it does instead.
            DatabaseConnectionError: the database cannot be reached.
            MissingTable, TableHasWrongStructureError: the tables are not there, or not as configured.
        """
        try:
            await self._connect(check)
            joined = await self._join(experiment_id, wait_seconds)
            await self._sign_in(joined)
            self._still_wanted()
        except BaseException as failure:
            await shielded(self._close())
            if isinstance(failure, DatabaseError):  # perhaps of a connection that was closed under it
                self._still_wanted()
            raise
        self._begin(joined)

    def _still_wanted(self) -> None:
        if self.over:
            raise DatabaseConnectionError(CLOSED) from None

    async def _connect(self, check: bool) -> None:
        if not self.lent:
            await self._patiently(self._database.open)
        self._still_wanted()
        await self._patiently(self._study.set_clock)
        if check:
            await self._patiently(lambda: check_tables(self._study))

    async def _patiently(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await patiently(attempt, self._settings.database_wait, self.logger)

    async def _join(self, wanted: int, wait_seconds: float) -> ExperimentId:
        until = self.loop.time() + wait_seconds
        pause = FIRST_LOOK_SECONDS
        while True:
            found = await self._patiently(lambda: workers.standing(self._study, self._study.db, int(wanted)))
            if found is not None and _is_wanted(found, wanted):
                assert found.worker is not None
                return ExperimentId(wanted, found.attempt, found.worker)
            left = until - self.loop.time()
            if left <= 0 or not _may_come(found, wanted):
                raise ExperimentLostError(_cannot_join(found, wanted, wait_seconds))
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(self._settings.poll_interval, pause * 2)

    async def _sign_in(self, joined: ExperimentId) -> None:
        self._worker = Worker(self._worker.id, self._worker.name, self._worker.machine, joins=joined.worker)
        self._still_wanted()
        self._registered = True
        await self._patiently(lambda: self._register(joined))

    async def _register(self, joined: int) -> None:
        facts = provenance.here()
        await workers.register(self._study, self._worker, self._settings.lease, facts, experiment_id=int(joined))

    def _begin(self, joined: ExperimentId) -> None:
        key: Key = (int(joined), joined.attempt)
        self._writer = Writer(
            self._study,
            self._worker,
            self.logger,
            lost=lambda _: self._interrupt(),
            away=_nothing,
            longest_wait_seconds=self._settings.heartbeat_interval,
        )
        self._writer.join(key)
        self._report = AttemptReport(joined, self, self._study, self._writer)
        self.processor = ResultProcessor(joined, self._report)
        self._beats = self.loop.create_task(self._keep_alive(joined), name="asyncexp attached")

    # --------------------------------------------------------------------------------- while it lasts

    @property
    def should_stop(self) -> bool:
        """Somebody asked to cancel, release or stop, or it is over already."""
        return self._asked or self.over

    def _interrupt(self, failure: Exception | None = None) -> None:
        """The function must come to an end: because of `failure`, or because the row was lost."""
        if not self.over:
            self.over = True
            self._failure = failure
            self.cut.set_result(None)

    async def _keep_alive(self, joined: ExperimentId) -> None:
        waits = 0
        while not self.over:
            interval = self._settings.heartbeat_interval
            await asyncio.sleep(min(interval, FIRST_WAIT_SECONDS * 2.0 ** min(waits, 20)) if waits else interval)
            try:
                await self._beat(joined)
            except MissingTable:
                self._interrupt(_dropped(joined))
            except Outage:  # the writer says so if anything is to be written
                waits += 1
            except Exception as failure:  # noqa: BLE001  (raised by `end`)
                self._interrupt(failure)
            else:
                waits = 0

    async def _beat(self, joined: ExperimentId) -> None:
        beat = await workers.attached_beat(self._study, self._worker, int(joined))
        if beat.standing is None or not _is_wanted(beat.standing, joined):
            self._interrupt()
            return
        self._asked = beat.stop or beat.standing.asked
        if not beat.known:
            await self._register(joined)

    # ------------------------------------------------------------------------------------- the end

    async def end(self, *, raised: bool = False) -> None:
        """Writes what is left, notes the end in the worker's row and closes the connection; twice is no error.

        Args:
            raised: the function raised an exception, which is what its caller is to hear of.

        Raises:
            ExperimentLostError: the experiment did not run to the end of this worker.
            DatabaseQueryError: the database refused something that was sent.
            DatabaseConnectionError: the experimenter was closed meanwhile.
        """
        failure: Exception | None = None
        try:
            if not raised:
                failure = await self._verdict()
        finally:
            await shielded(self._close())
        if failure is not None:
            raise failure

    async def _verdict(self) -> Exception | None:
        """Why not everything that was sent is in the table; None once it is."""
        if self.over and not self.cut.done():  # it has ended before
            return None
        if not self.over:
            assert self._report is not None
            try:
                await self._report.flush()
            except ExperimentLostError:
                self._interrupt()
            except MissingTable:
                self._interrupt(_dropped(self.processor.experiment_id))
            except DatabaseError as failure:
                return failure
            else:
                return None
        return self._failure or await self._loss()

    async def _loss(self) -> ExperimentLostError:
        joined = self.processor.experiment_id
        try:
            found = await workers.standing(self._study, self._study.db, int(joined))
        except MissingTable:
            return _dropped(joined)
        except Outage as away:
            return _lost(joined, f"what became of it is unknown ({away})")
        return _lost(joined, _situation(found, joined))

    async def close(self) -> None:
        """Ends it from outside: what was sent is written, the function is cut off, and its caller is told."""
        if self._report is not None:
            self._report.close()
        self._interrupt(DatabaseConnectionError(CLOSED))
        await self._close()

    async def _close(self) -> None:
        async with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                await self._end_writing()
            finally:
                await self._let_go()

    async def _end_writing(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.wait([self._beats])
        if self._writer is not None and self._report is not None:
            self._report.close()
            self.over = True
            await self._writer.close(CLOSE_LIMIT_SECONDS)
            key: Key = (int(self.processor.experiment_id), self.processor.attempt)
            if (refused := self._writer.take_error(key)) is not None:
                self.logger.warning("Of experiment %s the database refused what was sent last: %s", key[0], refused)

    async def _let_go(self) -> None:
        try:
            if self._registered:
                await self._sign_out()
        finally:
            self._drop.detach()
            if not self.lent:
                await self._database.close()
            self._ended(self)

    async def _sign_out(self) -> None:
        away: object = None if self._writer is None else self._writer.away
        try:
            if away is None:
                await workers.say_stopped(self._study, self._worker.id, 0, 0)
        except MissingTable:
            return  # the tables were dropped, this worker's row with them
        except Outage as outage:
            away = outage
        if away is not None:
            self.logger.warning("The end of attached worker %s could not be noted: %s", self._worker.id, away)

    def abandon(self) -> None:
        """Drops the connection without a byte sent: after a fork, or when the event loop is closed."""
        self._drop()


def _nothing() -> None:
    """For what needs no answer."""


# -------------------------------------------------------------------------------------- what is said


def _is_wanted(found: Standing, wanted: int) -> bool:
    if found.status != "running" or found.worker is None:
        return False
    return not isinstance(wanted, ExperimentId) or (found.attempt, found.worker) == (wanted.attempt, wanted.worker)


def _may_come(found: Standing | None, wanted: int) -> bool:
    """Whether waiting can help: a past attempt does not come again, and a row that is done does not run again."""
    return not isinstance(wanted, ExperimentId) and (found is None or found.status != "done")


def _situation(found: Standing | None, wanted: int) -> str:
    # An earlier attempt than the one looked for is that of another row: the table was made anew.
    if found is None or (isinstance(wanted, ExperimentId) and found.attempt < wanted.attempt):
        return "it is unknown: there never was such a row, or it was reset or deleted since"
    if isinstance(wanted, ExperimentId) and found.attempt != wanted.attempt:
        return f"attempt {wanted.attempt} is over, and attempt {found.attempt} {_state(found)}"
    if found.status == "running":
        return "another worker runs it"
    return f"it {_state(found)}"


def _state(found: Standing) -> str:
    match found.status:
        case "running":
            return "runs now"
        case "paused":
            return "is paused"
        case "created":
            return "was put back and is not running yet (created)" if found.attempt else "is not running yet (created)"
    return f"has finished ({found.status})"


def _cannot_join(found: Standing | None, wanted: int, wait_seconds: float) -> str:
    waited = f" Waited {wait_seconds:g} s." if wait_seconds and _may_come(found, wanted) else ""
    return f"Experiment {int(wanted)} cannot be joined: {_situation(found, wanted)}.{waited}"


def _dropped(joined: ExperimentId) -> ExperimentLostError:
    """Tables may be dropped one after another: that one is missing says enough."""
    return _lost(joined, _situation(None, joined))


def _lost(joined: ExperimentId, what: str) -> ExperimentLostError:
    return ExperimentLostError(
        f"Experiment {int(joined)} (attempt {joined.attempt}) ended before the worker attached to it: {what}. "
        "What was sent and not committed by then has not been written."
    )


# ------------------------------------------------------------------------------------- the function


def check_wait(wait: float) -> None:
    """Sees to it that it is a time to wait.

    Raises:
        InvalidConfigError: it is not.
    """
    number = isinstance(wait, int | float) and not isinstance(wait, bool)
    if not number or math.isnan(wait) or wait < 0:
        raise InvalidConfigError(f"wait={wait!r}: a number of seconds from 0 on")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker function came to."""

    value: Any = None
    failure: BaseException | None = None


async def perform(attachment: Attachment, function: Callable[..., Any]) -> Any:
    """Runs a worker function on an open attachment, and ends that; what the function returned.

    `async def` runs as a task, `def` in a thread. A cancellation cancels the task, and leaves the thread alone.

    Raises:
        BaseException: what the function raised; else as `Attachment.end`.
    """
    try:
        outcome = await (_as_task if is_async(function) else _in_thread)(attachment, function)
    except BaseException:
        await shielded(attachment.end(raised=True))
        raise
    try:
        await attachment.end(raised=outcome.failure is not None)
        if outcome.failure is not None:
            raise outcome.failure
        return outcome.value
    finally:
        del outcome  # its exception would refer to this frame, and this frame to it


async def _as_task(attachment: Attachment, function: Callable[..., Any]) -> Outcome:
    task = asyncio.create_task(_awaited(attachment.processor, function), name="asyncexp worker function")
    either: list[asyncio.Future[Any]] = [task, attachment.cut]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return await _cut_off(attachment, task)
    except asyncio.CancelledError:
        await shielded(_cut_off(attachment, task))
        raise
    return task.result()


async def _cut_off(attachment: Attachment, task: asyncio.Task[Outcome]) -> Outcome:
    """Cancels the function; what it raised, unless that is the cancellation."""
    task.cancel()
    await asyncio.wait([task], timeout=attachment.grace)
    if not task.done():
        _left_alone.add(task)
        task.add_done_callback(_left_alone.discard)
        attachment.logger.warning(
            "A worker function attached to experiment %s swallowed its cancellation: it lives on, and nothing it sends "
            "is written.",
            attachment.processor.experiment_id,
        )
        return Outcome()
    if task.cancelled() or isinstance(task.result().failure, asyncio.CancelledError):
        return Outcome()
    return task.result()


_left_alone: set[asyncio.Task[Outcome]] = set()
"""Tasks that swallowed their cancellation; held so that they are not collected half-way."""


async def _awaited(processor: ResultProcessor, function: Callable[..., Any]) -> Outcome:
    try:
        value = await function(processor)
    except BaseException as failure:  # noqa: BLE001  (SystemExit would leave the event loop itself)
        return Outcome(failure=failure)
    if processor.unawaited > 0:
        return Outcome(failure=_forgotten("The worker function ended without awaiting a call on its result processor"))
    return Outcome(value)


async def _in_thread(attachment: Attachment, function: Callable[..., Any]) -> Outcome:
    loop = attachment.loop
    done: asyncio.Future[Outcome] = loop.create_future()
    context = contextvars.copy_context()
    processor = from_thread(attachment.processor, loop)

    def work() -> None:
        outcome = context.run(called, function, processor)
        with suppress(RuntimeError):  # the loop is gone if nobody waited for this thread
            loop.call_soon_threadsafe(_hand_over, done, outcome)

    threading.Thread(target=work, name="asyncexp worker function", daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        attachment.logger.warning(
            "A worker function attached to experiment %s runs in a thread, which cannot be ended: it lives on, and "
            "nothing it sends is written.",
            attachment.processor.experiment_id,
        )
        raise


def _hand_over(done: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not done.done():
        done.set_result(outcome)


def called(function: Callable[..., Any], processor: SyncResultProcessor) -> Outcome:
    """Calls a `def` worker function in this thread."""
    try:
        value = function(processor)
    except BaseException as failure:  # noqa: BLE001  (raised to the caller of `attach`)
        return Outcome(failure=failure)
    if inspect.iscoroutine(value):
        value.close()
        return Outcome(failure=_forgotten("The worker function returned a coroutine and is no `async def` itself"))
    return Outcome(value)


def _forgotten(what: str) -> PyExperimenterError:
    return PyExperimenterError(f"{what}: write `await` before the call. Nothing of it was written.")
