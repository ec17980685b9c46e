"""What the experiments of one worker used, from the meter into the table; `emissions` measures, this writes."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncexp.db.base import MissingTable, Transaction
from asyncexp.errors import DatabaseError
from asyncexp.store import energy
from asyncexp.store.energy import Columns
from asyncexp.store.study import Study
from asyncexp.writer import Writer

if TYPE_CHECKING:
    from asyncexp.emissions import Account, Use

SETTLE_SECONDS = 2.0
"""So long a call that ends waits for the last measurement; a tracker that takes longer is not waited for again."""
WRITE_SECONDS = 5.0
"""So long it waits for rows to be written."""
END_SECONDS = 1.0
"""So long closing waits for the measuring thread."""


class Energy:
    """Records the energy of one worker's experiments; belongs to its event loop. Nothing here raises."""

    def __init__(self, given: Mapping[str, Any], study: Study, writer: Writer, logger: logging.Logger) -> None:
        from asyncexp.emissions import Account, Settings  # when first used

        self._study = study
        self._writer = writer
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._writing: set[asyncio.Future[None]] = set()
        me = weakref.ref(self)

        def deliver(rows: Columns, facts: Mapping[str, Any]) -> None:
            _call(me, lambda energy: energy._store(rows, facts))

        self._account: Account = Account(Settings(given), logger, deliver, partial(_say, logger))
        self._leave = weakref.finalize(self, self._account.forget)
        self._account.join()

    @property
    def is_warm(self) -> bool:
        """Whether the tracker measures, or has failed."""
        return self._account.ready or self._account.off

    def use(self, key: tuple[int, int]) -> Use | None:
        """What an attempt reports its begin and end to; None when nothing is measured any more."""
        return self._account.use(key)

    def begin(self) -> None:
        """Experiments are about to run."""
        self._account.begin()

    async def settle(self) -> None:
        """They have ended: returns when their rows are written, or have had their time."""
        told = self._loop.create_future()
        try:
            if self._account.settle(partial(_tell, self._loop, told)):
                await asyncio.wait_for(told, SETTLE_SECONDS)
            elif (rows := self._account.unmeasured()) is not None and not self._account.off:
                self._store_unmeasured(rows)
        except TimeoutError:
            if not self._account.waited_for_another:
                self._account.give_up(TimeoutError(f"its measurement takes longer than {SETTLE_SECONDS:g} s"))
        finally:
            self._account.rest()
        if self._writing and self._writer.away is None:
            await asyncio.wait(self._writing, timeout=WRITE_SECONDS)

    async def close(self) -> None:
        """Measures no more. Attempts of which nothing could be measured get a row that says no more than that."""
        warm = self._account.ready and not self._account.off
        if (rows := self._account.leave()) is not None and self._account.failure is None:
            self._store_unmeasured(rows)
        self._leave.detach()
        for _ in range(int(END_SECONDS * 1_000)):
            if not warm or self._account.is_over:
                return
            await asyncio.sleep(0.001)

    def discard(self) -> None:
        """The same without a loop, and nothing is written."""
        self._leave()

    def _store_unmeasured(self, rows: Columns) -> None:
        self._store(rows, {"offline_mode": self._account.settings.offline})

    def _store(self, rows: Columns, facts: Mapping[str, Any]) -> None:
        for part in energy.chunks(self._study, rows):
            stored = self._writer.beside(_recording(self._study, part, facts))
            self._writing.add(stored)
            stored.add_done_callback(self._stored)

    def _stored(self, stored: asyncio.Future[None]) -> None:
        self._writing.discard(stored)
        failure = None if stored.cancelled() else stored.exception()
        if failure is not None and not isinstance(failure, MissingTable):  # they were dropped, and new ones may come
            self._account.give_up(failure)


def _recording(study: Study, rows: Columns, facts: Mapping[str, Any]) -> Callable[[Transaction], Any]:
    """A transaction that may be made again when it is not known what became of it."""
    tries = iter((False,))
    return lambda tx: energy.record(study, tx, rows, facts, again=next(tries, True))


def _call(me: weakref.ref[Energy], call: Callable[[Energy], None]) -> None:
    if (energy := me()) is not None and not energy._loop.is_closed():
        try:
            energy._loop.call_soon_threadsafe(call, energy)
        except RuntimeError:  # it was closed between the two lines
            return


def _tell(loop: asyncio.AbstractEventLoop, told: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_set, told)
    except RuntimeError:  # it was closed; nobody waits
        return


def _set(told: asyncio.Future[None]) -> None:
    if not told.done():
        told.set_result(None)


def _say(logger: logging.Logger, why: BaseException) -> None:
    if isinstance(why, ImportError):
        logger.warning("CodeCarbon cannot be imported (%s): the energy of experiments is not recorded", why)
    elif isinstance(why, DatabaseError):
        logger.warning("The energy of experiments can no longer be written: %s", why)
    else:
        logger.warning(
            "CodeCarbon failed, and the energy of experiments is no longer recorded; they go on: %s: %s",
            type(why).__name__,
            why,
        )
