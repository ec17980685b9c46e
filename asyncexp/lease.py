"""The sign of life: one small transaction an interval, from a thread of its own.

The thread has its own event loop and its own connection, so that user code which blocks the main loop
does not make the worker look dead. Each beat brings back what others asked of this worker. The same thread
looks for workers that are dead, and for a main loop that does not come round.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asyncexp import provenance
from asyncexp.background import DaemonThreads
from asyncexp.db.base import Database, MissingTable, Outage
from asyncexp.rescue import Look, Rescuer
from asyncexp.store import workers
from asyncexp.store.claim import Worker
from asyncexp.store.flush import End, Ended, Key
from asyncexp.store.rescue import end_from_outside
from asyncexp.store.settle import release_unknown
from asyncexp.store.study import Study
from asyncexp.store.workers import Request
from asyncexp.watchdog import Watchdog

FIRST_WAIT_SECONDS = 0.1
CLOSE_LIMIT_SECONDS = 10.0
BLOCKED_SECONDS = 5.0
"""A main loop that has not come round for so long, or for an interval, is worth a line in the log."""
WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the service asks of its worker, in the service's thread, and what it tells it, on the worker's loop."""

    totals: Callable[[], tuple[int, int]]
    """Asked for (done, error) so far."""
    busy: Callable[[], bool]
    """Asked whether experiments run."""
    owes: Callable[[], bool]
    """Asked whether rows may still be in the worker's name when it ends."""
    stalled: Callable[[float, str], Mapping[Key, End | None]]
    """Asked which attempts run, and how each is to end, if it is, because that has blocked the loop for so long."""
    ended: Callable[[Mapping[Key, tuple[End, Ended]]], None]
    """Those were ended: how they were to, and what it came to."""
    robbed: Callable[[], None]
    """Rows may have been taken from this worker."""
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
        rescuer: Rescuer,
        logger: logging.Logger,
    ) -> None:
        self._main_study = study
        self._connect = connect
        self._worker = worker
        self._interval = interval_seconds
        self._lease = lease_seconds
        self._tell = callbacks
        self._facts = facts
        self._rescuer = rescuer
        self._logger = logger
        self._user_loop = asyncio.get_running_loop()
        patience = min(BLOCKED_SECONDS, interval_seconds)
        self._watchdog = Watchdog(self._user_loop, threading.get_ident(), patience, logger)
        self._requests = 0
        self._waits = 0
        self._listens = False
        self._described = False
        self._knowing: asyncio.Task[dict[str, Any]] | None = None
        """Finds out the further facts, beside the signs of life."""
        self._beat_at = 0.0
        self.beaten: float | None = None
        """`time.monotonic()` before the latest sign of life that the database answered."""
        self._look_at = 0.0
        self._silent = False
        """All its experiments were ended for it, and its loop is still blocked."""
        self._asked: deque[asyncio.Future[Look]] = deque()
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

    def look(self) -> asyncio.Future[Look]:
        """A look for dead workers, as soon as the database allows; to be called on the worker's loop."""
        asked: asyncio.Future[Look] = self._user_loop.create_future()
        self._asked.append(asked)
        self._stir()
        return asked

    def close(self) -> None:
        """Ends the thread, from any thread; the worker's row is marked stopped if the database can be reached."""
        self._closing.set()
        self._stir()

    def _stir(self) -> None:
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
        self._loop.set_default_executor(DaemonThreads())
        self._wake = asyncio.Event()
        study = self._main_study.sibling(self._connect())
        watching = asyncio.create_task(self._watch(study))
        try:
            while not self._closing.is_set():
                await self._pause(await self._turn(study))
                if watching.done():
                    watching.result()
            await _ended(watching)
            await self._describe_at_last(study)
            await self._say_stopped(study)
        finally:
            await _ended(watching)
            await study.db.close()

    def _heard(self, payload: str) -> None:
        if payload == "":
            self._call(self._tell.woken)
        elif payload == str(self._worker.id) and self._wake is not None:
            self._beat_at = 0.0
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

    async def _turn(self, study: Study) -> float:
        """The sign of life and the look for the dead, where they are due; how long to wait for the next."""
        try:
            if time.monotonic() >= self._beat_at:
                await self._beat(study)
            await self._describe(study)
            if self._asked or time.monotonic() >= self._look_at:
                await self._look(study)
        except MissingTable:
            # The tables were dropped. Experiments that run learn it from their own statements; new tables may come.
            self._answer(Look())
            self._beat_at = self._look_at = time.monotonic() + self._interval
        except Outage as outage:
            return self._away(outage)
        return max(0.0, min(self._beat_at, self._look_at) - time.monotonic())

    def _away(self, outage: Outage) -> float:
        self._rescuer.forget()
        self._beat_at = 0.0
        self._waits += 1
        if self._waits == 1:
            self._logger.warning("No sign of life could be given: %s", outage)
        return min(self._interval, FIRST_WAIT_SECONDS * 2.0 ** min(self._waits, 20)) * random.uniform(0.5, 1.0)

    async def _beat(self, study: Study) -> None:
        # Never later; a little earlier now and then, or else workers that began together would always beat together.
        due = time.monotonic() + self._interval * random.uniform(0.9, 1.0)
        if not self._silent:
            asked = time.monotonic()
            await self._give_sign(study)
            self.beaten = asked
            self._main_study.clock_like(study)
        self._beat_at = due
        self._waits = 0

    async def _look(self, study: Study) -> None:
        asked = len(self._asked)
        look = await self._rescuer.look(study)
        wait = self._lease if look.again_in is None else min(look.again_in, self._interval)
        self._look_at = time.monotonic() + wait
        if look.rescued:
            self._call(self._tell.woken)
        self._answer(look, asked)

    def _answer(self, look: Look, count: int | None = None) -> None:
        for _ in range(len(self._asked) if count is None else count):
            self._call(_hand_over, self._asked.popleft(), look)

    async def _watch(self, study: Study) -> None:
        """Looks whether the main loop comes round while experiments run; ends those that stall with it."""
        while True:
            await asyncio.sleep(min(WATCH_SECONDS, self._interval / 4))
            if not (self._silent or self._tell.busy()):
                continue
            seconds = self._watchdog.look()
            if not seconds:
                self._silent = False
            elif not self._silent:
                with suppress(Outage, MissingTable):
                    await self._end_stalled(study, self._tell.stalled(seconds, self._watchdog.culprit))

    async def _end_stalled(self, study: Study, running: Mapping[Key, End | None]) -> None:
        if not (ends := {key: end for key, end in running.items() if end is not None}):
            return
        ended = await end_from_outside(study, self._worker.id, ends)
        self._silent = ended.keys() == running.keys()
        if ended:
            self._logger.error("Ended because the event loop is blocked: %s", ", ".join(_ids(ended)))
            self._call(self._tell.ended, {key: (ends[key], how) for key, how in ended.items()})

    async def _give_sign(self, study: Study) -> None:
        if not self._listens:
            await study.db.listen(study.schema.channel, self._heard)
            self._listens = True
        told = await workers.beat(study, self._worker.id, *self._tell.totals())
        if told is None:
            await workers.register(study, self._worker, self._lease, provenance.here())
            self._described = False
            self._call(self._tell.robbed)
        else:
            await self._bring_back(study, told)
        if self._knowing is None:
            self._knowing = asyncio.create_task(asyncio.to_thread(self._facts))
            self._knowing.add_done_callback(lambda _: self._stir())

    async def _bring_back(self, study: Study, told: workers.Beat) -> None:
        if told.requests != self._requests:
            if told.stop_requested:
                self._call(self._tell.stop, told.stop_requested)
            asked = await workers.requests(study, self._worker.id)
            self._requests = told.requests
            self._call(self._tell.robbed)
            if asked:
                self._call(self._tell.asked, asked)

    async def _describe(self, study: Study) -> None:
        """Writes the further facts as soon as they are known, once."""
        if self._described or self._knowing is None or not self._knowing.done():
            return
        if facts := self._knowing.result():
            await workers.describe(study, self._worker.id, facts)
        self._described = True

    async def _describe_at_last(self, study: Study) -> None:
        if self._knowing is not None:
            await asyncio.wait([self._knowing], timeout=CLOSE_LIMIT_SECONDS / 2)
            with suppress(Outage, MissingTable):
                await self._describe(study)

    async def _say_stopped(self, study: Study) -> None:
        try:
            await asyncio.wait_for(self._take_leave(study), CLOSE_LIMIT_SECONDS / 2)
        except MissingTable:
            return  # the tables were dropped, this worker's row with them
        except (Outage, TimeoutError) as away:
            self._logger.warning("The end of worker %s could not be noted: %s", self._worker.id, away)

    async def _take_leave(self, study: Study) -> None:
        if self._tell.owes():  # nobody rescues rows of a worker that ended in good order
            await release_unknown(study, self._worker, ())
        await workers.say_stopped(study, self._worker.id, *self._tell.totals())


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _hand_over(asked: asyncio.Future[Look], look: Look) -> None:
    if not asked.done():
        asked.set_result(look)


def _ids(keys: Iterable[Key]) -> list[str]:
    return [str(key[0]) for key in keys]
