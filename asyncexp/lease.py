"""The sign of life: one small transaction an interval, from a thread of its own.

The thread has its own event loop and its own connection, so that user code which blocks the main loop
does not make the worker look dead. Each beat brings back what others asked of this worker.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from asyncexp import provenance
from asyncexp.db.base import Database, MissingTable, Outage
from asyncexp.store import workers
from asyncexp.store.claim import Worker
from asyncexp.store.study import Study
from asyncexp.store.workers import Request

P = ParamSpec("P")
T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.1
CLOSE_LIMIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the service tells its worker; all but `totals` are called on the worker's loop."""

    totals: Callable[[], tuple[int, int]]
    """(done, error) so far."""
    asked: Callable[[list[Request]], None]
    stop: Callable[[str], object]
    """Somebody asked the worker to stop; his name."""
    woken: Callable[[], None]
    """The table changed: there may be rows to take."""
    broken: Callable[[BaseException], None]
    """The service ended other than by `close`."""


class Service:
    """The thread that keeps one worker's lease.

    Args:
        connect: makes the thread's own connection.
        facts: further columns of the worker's row, which take time to find out; called in the thread.
    """

    def __init__(
        self,
        study: Study,
        connect: Callable[[], Database],
        worker: Worker,
        interval_seconds: float,
        lease_seconds: float,
        callbacks: Callbacks,
        facts: Callable[[], dict[str, Any]],
        logger: logging.Logger,
    ) -> None:
        self._main_study = study
        self._connect = connect
        self._worker = worker
        self._interval = interval_seconds
        self._lease = lease_seconds
        self._tell = callbacks
        self._facts = facts
        self._logger = logger
        self._user_loop = asyncio.get_running_loop()
        self._requests = 0
        self._waits = 0
        self._listens = False
        self._described = False
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="asyncexp service", daemon=True)

    @property
    def alive(self) -> bool:
        """False once it has ended, by `close` or because it broke."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, from any thread; the worker's row is marked stopped if the database can be reached."""
        self._closing.set()
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # it ended by itself between the two lines
                return

    async def closed(self) -> None:
        """Returns when the thread has ended, or has had its time."""
        for _ in range(int(CLOSE_LIMIT_SECONDS * 100)):
            if not self._thread.is_alive():
                return
            await asyncio.sleep(0.01)

    def join(self, limit_seconds: float) -> None:
        """Waits for the thread; for callers without a loop."""
        self._thread.join(limit_seconds)

    # ---------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as failure:
            self._logger.exception("The service thread of worker %s broke", self._worker.id)
            self._call(self._tell.broken, failure)

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        if not self._user_loop.is_closed():
            self._user_loop.call_soon_threadsafe(callback, *args)

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(_DaemonThreads())
        self._wake = asyncio.Event()
        study = self._main_study.sibling(self._connect())
        try:
            while not self._closing.is_set():
                await self._pause(await self._beat(study))
            await self._say_stopped(study)
        finally:
            await study.db.close()

    def _heard(self, payload: str) -> None:
        if payload == "":
            self._call(self._tell.woken)
        elif payload == str(self._worker.id) and self._wake is not None:
            self._wake.set()

    async def _pause(self, seconds: float) -> None:
        assert self._wake is not None
        if self._closing.is_set():
            return
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return
        self._wake.clear()

    async def _beat(self, study: Study) -> float:
        """One sign of life; how long to wait for the next."""
        try:
            await self._give_sign(study)
        except MissingTable:
            # The tables were dropped. Experiments that run learn it from their own statements; new tables may come.
            return self._interval
        except Outage as outage:
            self._waits += 1
            if self._waits == 1:
                self._logger.warning("No sign of life could be given: %s", outage)
            return min(self._interval, FIRST_WAIT_SECONDS * 2.0 ** min(self._waits, 20)) * random.uniform(0.5, 1.0)
        self._main_study.clock_like(study)
        self._waits = 0
        return self._interval

    async def _give_sign(self, study: Study) -> None:
        if not self._listens:
            await study.db.listen(study.schema.channel, self._heard)
            self._listens = True
        told = await workers.beat(study, self._worker.id, *self._tell.totals())
        if told is None:
            await workers.register(study, self._worker, self._lease, provenance.here())
            self._described = False
        else:
            await self._bring_back(study, told)
        if not self._described:
            await self._describe(study)
            self._described = True

    async def _bring_back(self, study: Study, told: workers.Beat) -> None:
        if told.requests != self._requests:
            if told.stop_requested:
                self._call(self._tell.stop, told.stop_requested)
            asked = await workers.requests(study, self._worker.id)
            self._requests = told.requests
            if asked:
                self._call(self._tell.asked, asked)

    async def _describe(self, study: Study) -> None:
        facts = await asyncio.to_thread(self._facts)
        if facts:
            await workers.describe(study, self._worker.id, facts)

    async def _say_stopped(self, study: Study) -> None:
        try:
            await asyncio.wait_for(
                workers.say_stopped(study, self._worker.id, *self._tell.totals()), CLOSE_LIMIT_SECONDS / 2
            )
        except MissingTable:
            return  # the tables were dropped, this worker's row with them
        except (Outage, TimeoutError) as away:
            self._logger.warning("The end of worker %s could not be noted: %s", self._worker.id, away)


class _DaemonThreads(ThreadPoolExecutor):
    """Resolves names and finds out facts also while the interpreter ends, when its own executors take no more work."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        threading.Thread(target=_answer, args=(future, lambda: fn(*args, **kwargs)), daemon=True).start()
        return future


def _answer(future: Future[T], job: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except BaseException as failure:  # noqa: BLE001  (raised to who waits for it)
            future.set_exception(failure)
