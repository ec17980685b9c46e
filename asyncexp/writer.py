"""Group commit: one flush in flight, and what arrives meanwhile is the next one.

Everything that a worker writes about its experiments, and every row that it takes, goes through one
`Writer`: results and logs of tasks, threads and children alike. It is the only one that claims in the
worker's name, so that after a lost answer it can tell which rows nobody here knows of.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncexp.db.base import DataRefused, DuplicateKey, Outage, T, Transaction
from asyncexp.db.whole import over, unseen
from asyncexp.errors import DatabaseConnectionError, DatabaseError, DatabaseQueryError, lost
from asyncexp.experiment import Experiment, ExperimentId
from asyncexp.store.claim import Wanted, Worker, any_left
from asyncexp.store.flush import End, Ended, Flushed, Key, LogLine, Unit, flush
from asyncexp.store.settle import release_unknown, settle
from asyncexp.store.study import Study
from asyncexp.store.together import store

LOG_DELAY_SECONDS = 0.2
"""Log lines wait so long at most for company."""
SOON_SECONDS = 0.005
"""What nobody waits for yet waits so long at most for something that somebody does."""
LOG_ROOM = 20_000
"""Log lines held before the function that sends more has to wait."""
FLUSH_CALLS = 2_000
FLUSH_BYTES = 4_000_000
FEW_CALLS = 256
FEW_BYTES = 100_000
"""A flush that is no larger is done at once where the database is a file: the event loop waits for it."""
FLUSH_LIMIT_SECONDS = 30.0
FIRST_WAIT_SECONDS = 0.05
MANY_CALLS = 64
"""Answers to so many calls are told in two parts, where a flush is one trip."""
REST_SECONDS = 0.002
"""The second part waits so long at most for what comes of the first."""

Claimed = list[Experiment] | None
"""None: the outcome was lost and has been undone; ask again."""


Then = Callable[[Ended | None, Exception | None], None]
Beside = Callable[[Transaction], Coroutine[Any, Any, None]]


@dataclass(slots=True, eq=False)
class Call:
    """One thing sent for one attempt."""

    key: Key
    fields: dict[str, Any] | None = None
    logs: list[LogLine] | None = None
    end: End | None = None
    told: asyncio.Future[None] | None = None
    """Who waits for it, if anybody does."""
    then: Then | None = None
    """What is called with what its end came to, or why it was not stored."""
    size: int = 0
    """Bytes, roughly."""


@dataclass(slots=True, eq=False)
class Claim:
    wanted: Wanted
    taken: asyncio.Future[Claimed]


class Writer:
    """The writing side of one worker; belongs to one event loop.

    Args:
        lost: called once for each attempt that turns out to run in this worker's name no more.
        away: called when the database goes away.
        longest_wait_seconds: cap of the back-off while the database is away.
    """

    def __init__(
        self,
        study: Study,
        worker: Worker,
        logger: logging.Logger,
        *,
        lost: Callable[[Key], None],
        away: Callable[[], None],
        longest_wait_seconds: float,
    ) -> None:
        self.known: set[Key] = set()
        """Attempts taken or joined here whose end is not yet settled."""
        self.away: Outage | None = None
        self.away_since: float | None = None
        """`time.monotonic()` when the database went away, if it has."""
        """Why the database cannot be reached at the moment."""
        self._study = study
        self._worker = worker
        self._logger = logger
        self._lost = lost
        self._tell_away = away
        self._longest_wait = longest_wait_seconds
        self._queue: deque[Call | Claim] = deque()
        self._held_claims: list[Claim] = []
        """Claims of a flush that waits for the database to come back."""
        self._checks: deque[tuple[Wanted, asyncio.Future[bool]]] = deque()
        self._untold: list[tuple[Sequence[Call], Sequence[Claim], Flushed]] = []
        """What is stored and not yet told."""
        self._overlaps = study.dialect.changing_queries
        """Whether the database works on a flush while this process does something else."""
        self._beside: deque[tuple[Beside, asyncio.Future[None]]] = deque()
        self._bad: dict[Key, DatabaseQueryError] = {}
        self._held_logs = 0
        self._room = asyncio.Event()
        self._room.set()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        """Ends when nothing is queued and no row is out."""
        self._no_more = False
        """Ends when nothing is queued."""
        self._given_up = False
        """Ends at the next failure to reach the database."""
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._work(), name="asyncexp writer")

    # -------------------------------------------------------------------------------------- sending

    def send(self, key: Key, fields: dict[str, Any], size: int = 0) -> asyncio.Future[None]:
        """Queues values of the row; the future is done when they are committed.

        It raises ExperimentLostError if the row is no longer ours, DatabaseQueryError if the database
        refused the values.
        """
        told: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(Call(key, fields=fields, told=told, size=size))
        self._wake.set()
        return told

    def end(self, key: Key, end: End, then: Then, *, now: bool = True) -> None:
        """Queues the end of an attempt; `then` is told what it came to.

        Args:
            now: begin a flush; else it may wait a moment for one.
        """
        size = 0 if end.error is None else len(end.error)
        self._queue.append(Call(key, end=end, then=then, size=size))
        self._flush_by(0.0 if now else SOON_SECONDS)

    def mention(self, key: Key, fields: dict[str, Any]) -> None:
        """Queues values that nobody waits for."""
        self._queue.append(Call(key, fields=fields))
        self._flush_by(LOG_DELAY_SECONDS)

    async def log(self, key: Key, logs: list[LogLine], size: int) -> None:
        """Queues log lines; waits only while too many are held."""
        await self.have_room()
        self.log_at_once(key, logs, size)

    def log_at_once(self, key: Key, logs: list[LogLine], size: int) -> None:
        """Queues log lines, however many are held."""
        self._held_logs += len(logs)
        self._queue.append(Call(key, logs=logs, size=size))
        self._flush_by(LOG_DELAY_SECONDS)

    @property
    def crowded(self) -> bool:
        """Whether so many log lines are held that who sends more should wait first, for `have_room`."""
        return self._held_logs >= LOG_ROOM

    async def have_room(self) -> None:
        while self.crowded:
            self._room.clear()
            self._wake.set()
            await self._room.wait()

    def claim(self, wanted: Wanted, *, now: bool = True) -> asyncio.Future[Claimed]:
        """Asks for rows, in the next flush; `now` as for `end`."""
        claim = Claim(wanted, self._loop.create_future())
        self._queue.append(claim)
        self._flush_by(0.0 if now else SOON_SECONDS)
        return claim.taken

    def withdraw(self, taken: asyncio.Future[Claimed]) -> None:
        """Takes a claim back that has not been sent, or that waits for the database; it is answered with None.

        One under way is answered as it turns out: only its answer tells which rows it took.
        """
        for claims in (self._queue, self._held_claims):
            for claim in claims:
                if isinstance(claim, Claim) and claim.taken is taken:
                    claims.remove(claim)
                    taken.set_result(None)
                    return

    def any_left(self, wanted: Wanted) -> asyncio.Future[bool]:
        """Whether there are rows to claim after all: an empty answer passes over those that others have locked.

        Rows that run in this worker's name and that it does not know are given back first. Done between two
        flushes, when no claim can be under way.
        """
        asked: asyncio.Future[bool] = self._loop.create_future()
        self._checks.append((wanted, asked))
        self._wake.set()
        return asked

    def beside(self, work: Beside) -> asyncio.Future[None]:
        """Queues a short transaction of its own: one is done after each flush. It is made anew after an outage."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._beside.append((work, done))
        self._flush_by(SOON_SECONDS if self.known else 0.0)
        return done

    def join(self, key: Key) -> None:
        """From now on writes for an attempt that was not taken here, and tells of its loss."""
        self.known.add(key)

    async def settled(self, key: Key) -> None:
        """Returns when everything sent so far is committed.

        Raises:
            ExperimentLostError, DatabaseQueryError: as for `send`.
        """
        await self.send(key, {})

    def take_error(self, key: Key) -> DatabaseQueryError | None:
        """The refusal of something that nobody waited for, once."""
        return self._bad.pop(key, None)

    def forget(self, key: Key) -> None:
        """The attempt is over for this worker, whatever the database says."""
        self.known.discard(key)
        self._bad.pop(key, None)

    def _flush_by(self, seconds: float) -> None:
        """Begins a flush after so many seconds, unless one begins before."""
        if not seconds:
            self._wake.set()
            return
        due = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._wake.set)

    async def close(self, limit_seconds: float) -> None:
        """Writes what is left and ends; gives up after `limit_seconds` if the database stays away."""
        self._no_more = True
        self._wake.set()
        done, _ = await asyncio.wait([self._task], timeout=limit_seconds)
        if not done:
            self._given_up = True
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._timer is not None:
            self._timer.cancel()
        self._tell_rest()
        self._fail_queue(DatabaseError("The experimenter was closed before this could be written."))
        if not self._task.cancelled() and (broken := self._task.exception()) is not None:
            raise broken

    # -------------------------------------------------------------------------------------- writing

    async def _work(self) -> None:
        while True:
            await self._woken()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            calls, claims = self._take()
            if calls or claims:
                await self._store(calls, claims)
            while self._checks:
                self._tell_rest()  # or else rows just taken would be none that are known
                await self._check(*self._checks.popleft())
            if self._no_more or self._closing:
                self._tell_rest()
            if self._beside:
                self._tell_rest()
                await self._do_beside(*self._beside.popleft())
            if self._queue or (self._beside and not self.known):
                self._wake.set()
            elif self._beside:  # what nobody waits for yet is not to go without company on this account
                self._flush_by(SOON_SECONDS)
            elif self._no_more or (self._closing and not self.known):
                return

    async def _woken(self) -> None:
        """Waits for something to do. A cancelled writer goes on while rows are out: they must be given back."""
        try:
            await self._wake.wait()
        except asyncio.CancelledError:
            if self._no_more or not (self.known or self._queue):
                raise
            self._closing = True
        self._wake.clear()

    async def _check(self, wanted: Wanted, asked: asyncio.Future[bool]) -> None:
        try:
            left = bool(await self._insist(self._release_unknown))
            left = left or await self._insist(partial(any_left, self._study, wanted))
        except DatabaseError as failure:
            if not asked.done():
                asked.set_exception(failure)
        else:
            if not asked.done():
                asked.set_result(left)

    async def _do_beside(self, work: Beside, done: asyncio.Future[None]) -> None:
        async def attempt() -> None:
            try:
                await self._study.db.run(work, limit_seconds=FLUSH_LIMIT_SECONDS)
            except Outage as outage:
                if outage.unknown:  # until then it may still be under way, and another would not see what it wrote
                    await asyncio.sleep(max(0.0, outage.settled_after - time.monotonic()))
                raise

        try:
            await self._insist(attempt)
        except DatabaseError as failure:
            if not done.done():
                done.set_exception(failure)
        else:
            if not done.done():
                done.set_result(None)

    def _take(self) -> tuple[list[Call], list[Claim]]:
        """The next flush: as much of the queue, in order, as fits. A claim that adds a row goes alone."""
        calls: list[Call] = []
        claims: list[Claim] = []
        size = 0
        while self._queue and len(calls) < FLUSH_CALLS and size < FLUSH_BYTES:
            first = self._queue[0]
            if isinstance(first, Claim):
                alone = first.wanted.add is not None
                if alone and (calls or claims):
                    break
                claims.append(first)
                self._queue.popleft()
                if alone:
                    break
            else:
                calls.append(first)
                self._queue.popleft()
                size += first.size
        return calls, claims

    async def _store(self, calls: Sequence[Call], claims: list[Claim]) -> None:
        units = self._merge(calls)
        try:
            flushed = await self._flush(units, claims, at_once=_are_few(calls, claims))
        except (DataRefused, DuplicateKey) as refused:
            await self._halve(calls, claims, refused)
        except asyncio.CancelledError:
            self._fail(calls, claims, DatabaseConnectionError(f"Closed before this was stored: {self.away}"))
            raise
        except Exception as failure:  # noqa: BLE001  (those who wait must hear of a bug, too)
            self._fail(calls, claims, failure)
        else:
            self._tell_rest()
            self._untold.append((calls, claims, flushed))
            if not (self._overlaps and self._queue):
                self._tell_first()

    async def _halve(self, calls: Sequence[Call], claims: list[Claim], refused: DatabaseQueryError) -> None:
        """Finds the one call that the database does not take; all others are written."""
        if len(calls) + bool(claims) <= 1:
            self._fail(calls, claims, refused)
            return
        middle = (len(calls) + 1) // 2
        await self._store(calls[:middle], [])
        await self._store(calls[middle:], claims)

    def _merge(self, calls: Iterable[Call]) -> list[Unit]:
        """One unit an attempt: the last value of each field, logs in order, the end last."""
        units: dict[Key, Unit] = {}
        for call in calls:
            unit = units.get(call.key)
            if unit is None:
                unit = units[call.key] = Unit(call.key, call.fields)
            elif call.fields:
                unit.fields = call.fields if unit.fields is None else unit.fields | call.fields
            if call.logs:
                unit.logs.append(call.logs)
            if call.end is not None:
                unit.end = self._honest(call.key, call.end)
        return list(units.values())

    def _honest(self, key: Key, end: End) -> End:
        """An attempt of which something was refused unseen ends as an error."""
        bad = self._bad.get(key)
        if bad is None or end.outcome not in ("done", "paused", "created"):
            return end
        return End("error", error=f"{type(bad).__name__}: {bad}")

    # ------------------------------------------------------------------------------------- flushing

    async def _flush(self, units: Sequence[Unit], claims: list[Claim], *, at_once: bool) -> Flushed:
        waits = 0
        while True:
            wanted = [claim.wanted for claim in claims]
            self._number += 1
            number = self._number
            work = partial(flush, self._study, worker=self._worker, units=units, claims=wanted, number=number)
            if at_once and self.away is None and (done := self._study.db.at_once(work)) is not None:
                return done
            sent = store(self._study, self._worker, units, wanted, number, limit_seconds=FLUSH_LIMIT_SECONDS)
            try:
                flushed = await self._whole(sent)
            except Outage as outage:
                self._notice(outage)
                if outage.unknown and (landed := await self._look_up(units, number, outage, wanted)) is not None:
                    return landed
            else:
                self._is_back()
                return flushed
            self._held_claims = claims
            await self._back_off(waits)
            self._held_claims = []
            waits += 1

    async def _look_up(
        self, units: Sequence[Unit], number: int, outage: Outage, wanted: Sequence[Wanted]
    ) -> Flushed | None:
        """What became of a flush whose answer never came; rows that it took are given back."""
        await asyncio.sleep(max(0.0, outage.settled_after - time.monotonic()))
        landed: Flushed | None = await self._insist(partial(settle, self._study, self._worker, units, number))
        if wanted:
            await self._insist(self._release_unknown)
        return landed

    async def _insist(self, ask: Callable[[], Any]) -> Any:
        waits = 0
        while True:
            try:
                answer = await self._whole(ask())
            except Outage as outage:
                self._notice(outage)
                await self._back_off(waits)
                waits += 1
            else:
                self._is_back()
                return answer

    async def _release_unknown(self) -> list[int]:
        given_back = await release_unknown(self._study, self._worker, self.known)
        if given_back:
            self._logger.warning("Gave back rows claimed by a statement whose answer was lost: %s", given_back)
        return given_back

    async def _whole(self, call: Coroutine[Any, Any, T]) -> T:
        """The answer of a call even if the event loop is being shut down around it: rows depend on it."""
        task = unseen(call)
        if self._untold:
            self._loop.call_soon(self._tell_rest)  # behind the first step of the task, which sends
        if await over(task) is not None:
            self._closing = True
        return task.result()

    async def _back_off(self, waits: int) -> None:
        longest = min(self._longest_wait, FIRST_WAIT_SECONDS * 2.0 ** min(waits, 20))
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    def _notice(self, outage: Outage) -> None:
        if self.away is None:
            self.away_since = time.monotonic()
            self._logger.warning("The database is away; results are held until it is back: %s", outage)
            self._tell_away()
        self.away = outage
        if self._given_up:  # a cancellation that came during a call was put off until it was over
            raise asyncio.CancelledError

    def _is_back(self) -> None:
        if self.away is not None:
            self._logger.warning("The database is back.")
        self.away = self.away_since = None

    # -------------------------------------------------------------------------------------- telling

    def _tell_first(self) -> None:
        """Tells what is stored; of much one part, and the rest once what comes of that is on its way.

        So experiments run here while the database stores what others had to say. It would wait for us, and we for it,
        if all went to and fro together.
        """
        [(calls, claims, flushed)] = self._untold
        if not self._overlaps or len(calls) < MANY_CALLS or flushed.refused:
            self._tell_rest()
            return
        others: Sequence[Call] = [call for call in calls if call.end is not None]
        results: Sequence[Call] = [call for call in calls if call.end is None]
        if not (claims and results):
            half = len(calls) // 2
            others, results = calls[:half], calls[half:]
        self._untold = [(results, (), flushed)]
        self._loop.call_later(REST_SECONDS, self._tell_rest)
        self._tell(others, claims, flushed)

    def _tell_rest(self) -> None:
        untold, self._untold = self._untold, []
        for told in untold:
            self._tell(*told)

    def _tell(self, calls: Sequence[Call], claims: Sequence[Claim], flushed: Flushed) -> None:
        for call in calls:
            if call.logs is not None:
                self._logs_gone(call.logs)
            self._answer(call, flushed)
        for key in flushed.refused:
            self._forget_lost(key)
        answers: Sequence[Claimed] = flushed.claimed if len(flushed.claimed) == len(claims) else [None] * len(claims)
        for claim, answer in zip(claims, answers, strict=True):
            self._hand_over(claim, answer)

    def _answer(self, call: Call, flushed: Flushed) -> None:
        failure = lost(ExperimentId(*call.key, self._worker.id)) if call.key in flushed.refused else None
        if call.then is not None:
            if failure is None:
                self.forget(call.key)
            call.then(flushed.ended.get(call.key), failure)
        elif call.told is not None and not call.told.done():
            if failure is None:
                call.told.set_result(None)
            else:
                call.told.set_exception(failure)

    def _hand_over(self, claim: Claim, answer: Claimed) -> None:
        """Rows go to whoever asked; if he has gone, they go back."""
        keys = [(int(row.id), row.id.attempt) for row in answer or ()]
        self.known.update(keys)
        if not claim.taken.done():
            claim.taken.set_result(answer)
            return
        for key in keys:
            self.end(key, End("released"), _no_matter)

    def _forget_lost(self, key: Key) -> None:
        if key in self.known:
            self.forget(key)
            self._lost(key)

    def _logs_gone(self, logs: Sequence[LogLine]) -> None:
        self._held_logs -= len(logs)
        if self._held_logs < LOG_ROOM:
            self._room.set()

    def _fail(self, calls: Iterable[Call], claims: Iterable[Claim], failure: Exception) -> None:
        for call in calls:
            if call.logs is not None:
                self._logs_gone(call.logs)
            if call.then is not None:
                call.then(None, failure)
            elif call.told is None and isinstance(failure, DatabaseQueryError):
                self._bad.setdefault(call.key, failure)
            elif call.told is not None and not call.told.done():
                call.told.set_exception(failure)
        for claim in claims:
            if not claim.taken.done():
                claim.taken.set_exception(failure)

    def _fail_queue(self, failure: DatabaseError) -> None:
        while self._beside:
            _, done = self._beside.popleft()
            if not done.done():
                done.set_exception(failure)
        left = list(self._queue)
        self._queue.clear()
        self._fail(
            [item for item in left if isinstance(item, Call)],
            [item for item in left if isinstance(item, Claim)],
            failure,
        )


def _are_few(calls: Sequence[Call], claims: Iterable[Claim]) -> bool:
    """Whether storing them takes a moment only; a search for rows by columns of the user's may take long."""
    if len(calls) > FEW_CALLS or sum(call.size for call in calls) > FEW_BYTES:
        return False
    return all(c.wanted.count <= FEW_CALLS and not c.wanted.where.params and c.wanted.since is None for c in claims)


def _no_matter(_: Ended | None, __: Exception | None) -> None:
    """Nobody waits for this end any more."""
