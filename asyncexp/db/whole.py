"""Calls that are whole: shielded from cancellation, limited in time, told apart when they fail.

A driver offers a `Link` (one open connection) and a `Driver` (how to get one, and the facts about its
database). `WholeDatabase` makes a `Database` of them, the same for all three.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from asyncexp.db.base import Dialect, Outage, Params, Row, Transaction
from asyncexp.errors import DatabaseConnectionError, DatabaseQueryError

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
Work = Callable[[Transaction], Awaitable[T]]

SERVER_SHARE = 0.8
"""The server's own limit on a statement, as a share of the client's limit on the call."""
LOCK_SHARE = 0.4
"""Its limit on waiting for a lock: short enough for a second try within the call."""
IDLE_SECONDS = 120
"""How long a server lets one of our transactions sit idle, with its locks, before it ends it."""
CLOSE_SECONDS = 5.0
TRIES = 12
FRESH_SECONDS = 1.0
"""A connection used so lately is taken to be alive."""


class Busy(DatabaseQueryError):
    """A deadlock, a lock wait or a serialisation failure: nothing was done, run it anew."""


class Declined(Outage):
    """An outage of which the database itself said that the statement was not carried out."""


def unseen(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that nobody cancels but us: `asyncio.run` cancels every task it can see when it ends.

    Taking it from `asyncio.all_tasks()` is what the documentation of asyncio ("Extending") offers for that.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    asyncio._unregister_task(task)
    _unseen.add(task)
    return task


_unseen: WeakSet[asyncio.Task[Any]] = WeakSet()


async def over(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Waits until a task is done whatever happens to the caller; the caller's last cancellation, if any came."""
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # anyio would deliver its cancellation anew in every turn of the loop
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error
    return cancelled


async def shielded(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in a task of its own, whatever happens to the caller.

    A cancellation that arrives meanwhile, once or often, is raised when the coroutine is over.
    """
    if asyncio.current_task() in _unseen:
        return await coroutine
    task = unseen(coroutine)
    cancelled = await over(task)
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report it as lost
    if cancelled is not None:
        raise cancelled
    await checkpoint_if_cancelled()  # by a scope around the shielded one
    return task.result()


def immortal(*things: object) -> None:
    """Keeps objects from ever being finalised: their finaliser would touch what is not ours."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forget(transport: asyncio.BaseTransport | None, *things: object) -> None:
    """Closes this process's copy of a socket without a byte sent or a look at its event loop.

    After a fork the loop's selector is shared with the parent: unregistering there would deafen it.
    """
    immortal(transport, *things)
    socket = transport.get_extra_info("socket") if transport else None
    if socket is not None and socket.fileno() >= 0:
        os.close(socket.fileno())


def not_text(place: str) -> DatabaseConnectionError:
    """For a login that cannot be sent; what stands in the way is not told, it may be of the password."""
    return DatabaseConnectionError(f"{place}: user, password or database holds what is no UTF-8 text; check them")


def unlike(error: Exception, place: str) -> DatabaseConnectionError:
    """For an error that no server of the kind would cause while connecting."""
    words = f"{type(error).__name__}: {error}"
    return DatabaseConnectionError(f"{place} does not answer as such a server does ({words}); check `host` and `port`")


def bare(error: E) -> E:
    """An error without what it came from, and without the frames that it passed: those of drivers hold the password."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass(slots=True)
class Call:
    """One call under way."""

    limit_seconds: float
    expired: bool = False
    may_be_committed: bool = False
    """True from just before the commit is sent until the database has answered it."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Statements that read the database's catalogue; each takes the parameters that its comment names."""

    columns: str  # table -> name, declared type
    tables: str  # prefix -> name
    indexes: str  # table -> name


class Link(ABC):
    """One open connection as its driver has it."""

    max_value_bytes: int
    sent_at: float = 0.0
    """`time.monotonic()` when the latest statement was sent."""

    @property
    @abstractmethod
    def usable(self) -> bool:
        """False once the connection is known to be broken."""

    @abstractmethod
    def translate(self, error: Exception) -> Exception | None:
        """The driver's error as one of ours; None if it is none of the driver's."""

    @abstractmethod
    async def limit(self, seconds: float) -> None:
        """Makes the server give up single statements before a call of `seconds` would."""

    async def ready_alone(self, seconds: float) -> None:
        """As `limit`, and whatever else a statement needs that is a transaction by itself."""
        await self.limit(seconds)

    @abstractmethod
    async def begin(self, limit_seconds: float) -> None: ...

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def rollback(self) -> None: ...

    @abstractmethod
    async def fetch(self, sql: str, params: Params) -> list[Row]: ...

    @abstractmethod
    async def execute(self, sql: str, params: Params) -> int: ...

    @abstractmethod
    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None: ...

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Params]) -> None:
        raise NotImplementedError(f"no bulk protocol for {table!r}: Dialect.copies is false")

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:  # noqa: B027
        """Hears NOTIFY; there is none unless a driver says otherwise."""

    async def finish(self, work: Work[T], call: Call) -> T:
        """What follows `begin`: the work, then the commit or the rollback."""
        try:
            result = await work(Held(self))
            call.may_be_committed = True
            with self.said():
                await self.commit()
        except Outage:
            raise
        except Exception:
            call.may_be_committed = False
            await self._undo()
            raise
        call.may_be_committed = False
        return result

    async def _undo(self) -> None:
        try:
            with self.said():
                await self.rollback()
        except Outage:
            self.kill()

    def at_once(self, work: Work[T]) -> T | None:  # noqa: ARG002
        """A whole small transaction without waiting for anything; None if that cannot be, and nothing was done."""
        return None

    async def settled(self, call: Call) -> float:
        """When (`time.monotonic()`) the server no longer works on what this killed link had sent."""
        return self.sent_at + SERVER_SHARE * call.limit_seconds + 1.0

    @abstractmethod
    def kill(self) -> None:
        """Drops the connection at once, waiting for nothing; more than once is no error."""

    @abstractmethod
    def abandon(self) -> None:
        """Drops it without a byte sent: it belongs to another process or to a closed event loop."""

    @abstractmethod
    async def close(self) -> None: ...

    @contextmanager
    def said(self) -> Iterator[None]:
        """Translates the driver's errors."""
        try:
            yield
        except Exception as error:
            ours = self.translate(error)
            if ours is None:
                raise
            raise ours from error


class Driver(Protocol):
    """How to reach one database through one driver."""

    @property
    def dialect(self) -> Dialect: ...

    @property
    def place(self) -> str:
        """Where it is, for messages: host, port, user, database; never the password."""
        ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def only_transactions(self) -> bool:
        """Whether single statements need a transaction around them too."""
        ...

    async def connect(self, *, create_database: bool) -> Link:
        """A new connection; every error is one of ours."""
        ...


class Held:
    """The `Transaction` that the work of `Database.run` is given."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    async def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        self._link.sent_at = time.monotonic()
        with self._link.said():
            return await self._link.fetch(sql, params)

    async def execute(self, sql: str, params: Params = ()) -> int:
        self._link.sent_at = time.monotonic()
        with self._link.said():
            return await self._link.execute(sql, params)

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        if not rows:
            return
        self._link.sent_at = time.monotonic()
        with self._link.said():
            await self._link.execute_many(sql, rows)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Params]) -> None:
        self._link.sent_at = time.monotonic()
        with self._link.said():
            await self._link.copy(table, columns, rows)


class WholeDatabase:
    """A `Database` on top of a driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._link: Link | None = None
        self._turn = asyncio.Lock()
        self._heard: dict[str, Callable[[str], None]] = {}
        self._max_value_bytes = 1_000_000
        self._closed = False

    def __repr__(self) -> str:
        return f"<{self.dialect.name} {self._driver.place}>"

    @property
    def dialect(self) -> Dialect:
        return self._driver.dialect

    @property
    def max_value_bytes(self) -> int:
        return self._max_value_bytes

    async def open(self, *, create_database: bool = False) -> None:
        async def opening(_: Call) -> None:
            await self._ready(create_database=create_database)

        self._closed = False
        await self._call(opening, 30.0)

    async def close(self) -> None:
        async with self._turn:
            self._closed = True
            link, self._link = self._link, None
            if link is not None:
                await shielded(_closed(link))

    def abandon(self) -> None:
        link, self._link = self._link, None
        self._turn = asyncio.Lock()
        if link is not None:
            link.abandon()

    async def run(self, work: Work[T], *, limit_seconds: float = 30.0) -> T:
        async def begin(link: Link, call: Call) -> Link:
            with link.said():
                await link.begin(call.limit_seconds)
            return link

        async def transaction(call: Call) -> T:
            link = await self._on_live_link(begin, call)
            return await link.finish(work, call)

        return await self._call(transaction, limit_seconds)

    def at_once(self, work: Work[T]) -> T | None:
        link = self._link
        if self._closed or self._turn.locked() or link is None or not link.usable:
            return None
        return link.at_once(work)

    async def fetch(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> list[Row]:
        async def read(link: Link, call: Call) -> list[Row]:
            with link.said():
                await link.limit(call.limit_seconds)
            return await Held(link).fetch(sql, params)

        async def reading(call: Call) -> list[Row]:
            return await self._on_live_link(read, call)

        if self._driver.only_transactions:
            return await self.run(lambda tx: tx.fetch(sql, params), limit_seconds=limit_seconds)
        return await self._call(reading, limit_seconds)

    async def execute(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> int:
        async def limit(link: Link, call: Call) -> Link:
            with link.said():
                await link.limit(call.limit_seconds)
            return link

        async def executing(call: Call) -> int:
            link = await self._on_live_link(limit, call)
            call.may_be_committed = True
            matched = await Held(link).execute(sql, params)
            call.may_be_committed = False
            return matched

        if self._driver.only_transactions:
            return await self.run(lambda tx: tx.execute(sql, params), limit_seconds=limit_seconds)
        return await self._call(executing, limit_seconds)

    async def alone(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> list[Row]:
        async def ready(link: Link, call: Call) -> Link:
            with link.said():
                await link.ready_alone(call.limit_seconds)
            return link

        async def storing(call: Call) -> list[Row]:
            link = await self._on_live_link(ready, call)
            call.may_be_committed = True
            rows = await Held(link).fetch(sql, params)
            call.may_be_committed = False
            return rows

        if self._driver.only_transactions or not self._fresh():
            # A BEGIN shows whether the connection is alive while nothing can be in doubt yet.
            return await self.run(lambda tx: tx.fetch(sql, params), limit_seconds=limit_seconds)
        return await self._call(storing, limit_seconds)

    def _fresh(self) -> bool:
        return self._link is not None and time.monotonic() - self._link.sent_at < FRESH_SECONDS

    async def columns(self, table: str) -> list[tuple[str, str]] | None:
        rows = await self.fetch(self._driver.catalogue.columns, (table,))
        return [(name, _without_size(declared)) for name, declared in rows] or None

    async def tables(self, like: str) -> list[str]:
        return [name for (name,) in await self.fetch(self._driver.catalogue.tables, (like,))]

    async def indexes(self, table: str) -> list[str]:
        return [name for (name,) in await self.fetch(self._driver.catalogue.indexes, (table,))]

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        async def listening(_: Call) -> None:
            if (link := self._link) is None or not link.usable:
                await self._ready()  # listens to all that is in `_heard`
                return
            with link.said():
                await link.listen(channel, heard)

        self._heard[channel] = heard
        await self._call(listening, 30.0)

    # ------------------------------------------------------------------------------ the connection

    async def _ready(self, *, create_database: bool = False) -> Link:
        if self._link is not None and self._link.usable:
            return self._link
        self._drop()
        link = await self._driver.connect(create_database=create_database)
        self._link, self._max_value_bytes = link, link.max_value_bytes
        for channel, heard in self._heard.items():
            with link.said():
                await link.listen(channel, heard)
        return link

    async def _on_live_link(self, use: Callable[[Link, Call], Awaitable[T]], call: Call) -> T:
        """Does what changes nothing; once more if the connection turns out to have died while idle."""
        idle = self._link
        try:
            return await use(await self._ready(), call)
        except Outage as outage:
            if isinstance(outage, Declined) or self._link is None or self._link is not idle:
                raise
            self._drop()
            return await use(await self._ready(), call)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.kill()

    # ------------------------------------------------------------------------------------ the call

    async def _call(self, job: Callable[[Call], Awaitable[T]], limit_seconds: float) -> T:
        async with self._turn:
            if self._closed:
                raise DatabaseConnectionError(f"the connection to {self._driver.place} is closed: open() it again")
            return await shielded(self._limited(job, Call(limit_seconds)))

    async def _limited(self, job: Callable[[Call], Awaitable[T]], call: Call) -> T:
        watch = self._watch(call)
        link: Link | None = None
        try:
            return await self._repeated(job, call)
        except Outage as outage:
            link, failure = self._link, outage
        except asyncio.CancelledError:  # by `_expire`, or because the event loop shuts down
            link = self._link
            if not call.expired:
                self._drop()
                raise
            failure = Outage(f"no answer from {self._driver.place} within {call.limit_seconds:g} s")
        finally:
            watch.cancel()
        self._drop()
        raise await self._judged(failure, link, call) from failure.__cause__

    def _watch(self, call: Call) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(call.limit_seconds, self._expire, asyncio.current_task(), call)

    def _expire(self, task: asyncio.Task[Any] | None, call: Call) -> None:
        call.expired = True
        if self._link is not None:
            self._link.kill()
        if task is not None:
            task.cancel()

    async def _repeated(self, job: Callable[[Call], Awaitable[T]], call: Call) -> T:
        for pause in _pauses():
            try:
                return await job(call)
            except Busy as busy:
                call.may_be_committed = False
                last = busy
            await asyncio.sleep(pause)
        raise Declined(f"{self._driver.place} stays locked by others, after {TRIES} tries: {last}") from last

    async def _judged(self, failure: Outage, link: Link | None, call: Call) -> Outage:
        """The outage with what is known of the transaction's end."""
        if isinstance(failure, Declined):
            return failure
        settled = await link.settled(call) if link is not None else 0.0
        return Outage(str(failure), unknown=call.may_be_committed, settled_after=settled)


def _pauses() -> Iterator[float]:
    for n in range(TRIES):
        yield min(0.005 * 2**n, 1.0) * random.uniform(0.5, 1.5)


async def _closed(link: Link) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            with link.said():
                await link.close()
    except (TimeoutError, Outage, DatabaseQueryError):
        link.kill()


def _without_size(declared: str) -> str:
    return declared.partition("(")[0].strip().lower()
