"""SQLite through aiosqlite: one thread a connection, one visit to it a transaction, none for a small one."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  (it has something to do at a fork, too: not first while we wait for one)
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from asyncexp.db.base import (
    Database,
    DataRefused,
    Dialect,
    DuplicateKey,
    MissingTable,
    Outage,
    Params,
    Row,
    Target,
    Transaction,
)
from asyncexp.db.whole import (
    SERVER_SHARE,
    Busy,
    Call,
    Catalogue,
    Declined,
    Link,
    WholeDatabase,
    Work,
    immortal,
)
from asyncexp.errors import DatabaseConnectionError, DatabaseError, DatabaseQueryError

T = TypeVar("T")

BUSY_SECONDS = 30.0
CHECKPOINT_PAGES = 1_000
"""SQLite's own default: a commit that finds so many in the write-ahead log moves them into the file."""
LONG_WAY_EVERY = 100
LONG_WAYS = 2
"""Of so many transactions, so many visit the thread: one moves the log, the next begins it anew, both on the disk."""
SLOW_SECONDS = 0.005
"""Transactions that hold the event loop up for longer, on a moving average, have the next ones visit the thread."""
REST_SECONDS = 0.25
LONGEST_REST_SECONDS = 60.0
FORK_WAIT_SECONDS = 2.0
"""A fork waits so long at most for what SQLite is about; a longer wait is for another process, without a lock."""
SHARED_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(nfs4?|cifs|smb3|smbfs|afs|ceph|lustre|gpfs|beegfs|pvfs2|ocfs2|gfs2|glusterfs|davfs|sshfs|rclone|s3fs)"
)


def _stamp(value: datetime) -> str:
    return value.isoformat(" ", "microseconds")


DIALECT = Dialect(
    name="sqlite",
    placeholder="?",
    quote='"',
    types={
        "VARCHAR": "VARCHAR({size})",
        "INT": "INTEGER",
        "BIGINT": "BIGINT",
        "NUMERIC": "DOUBLE",
        "NUMERIC_P": "NUMERIC({size},{scale})",
        "DOUBLE": "DOUBLE",
        "FLOAT": "FLOAT",
        "BOOLEAN": "BOOLEAN",
        "DATETIME": "DATETIME",
        "TEXT": "TEXT",
        "LONGTEXT": "LONGTEXT",
        "JSON": "JSON TEXT",  # JSON alone has numeric affinity, which would make the text "1.0" a 1
        "HASH": "BLOB",
    },
    kinds={
        "varchar": "text",
        "char": "text",
        "text": "text",
        "longtext": "text",
        "mediumtext": "text",
        "tinytext": "text",
        "int": "integer",
        "integer": "integer",
        "bigint": "integer",
        "smallint": "integer",
        "mediumint": "integer",
        "numeric": "number",
        "decimal": "number",
        "double": "number",
        "double precision": "number",
        "float": "number",
        "real": "number",
        "boolean": "boolean",
        "bool": "boolean",
        "tinyint": "boolean",
        "datetime": "datetime",
        "timestamp": "datetime",
        "json": "json",
        "json text": "json",
        "blob": "bytes",
    },
    identity="INTEGER PRIMARY KEY AUTOINCREMENT",
    table_options="",
    now="(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    later="(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds})) || '000')",
    skip_locked="",
    for_update="",
    returning=True,
    batch="many",
    partial_indexes=True,
    member="{column} IN (SELECT value FROM json_each({values}))",
    bind_list=lambda values: f"[{','.join(map(str, values))}]",
    text_equal="{column} = {value}",
    gather="json_group_array(json_array({values})) FILTER (WHERE {condition})",
    bind={bool: int, Decimal: float, datetime: _stamp},
    version="SELECT 'SQLite ' || sqlite_version()",
)


class ForkGate:
    """Lets no fork happen while SQLite works in this process.

    SQLite keeps note of its file locks in memory, for all connections of a process together. A child forked
    in the middle of a transaction inherits the note, and waits for ever for a lock that nobody holds.
    """

    def __init__(self) -> None:
        self.after_fork_in_child()
        os.register_at_fork(
            before=self.before_fork,
            after_in_parent=self.after_fork_in_parent,
            after_in_child=self.after_fork_in_child,
        )

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forks)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        self._forks += 1
        self._changed.wait_for(lambda: not self._inside, FORK_WAIT_SECONDS)

    def after_fork_in_parent(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forks = 0


fork_gate = ForkGate()


class Session(sqlite3.Connection):
    """A connection whose `commit` carries out what is due, so that a transaction is one visit.

    aiosqlite has no public way to run a function in its thread; it calls `commit` there.
    """

    due: Callable[[], Any] | None = None
    result: Any = None

    def __init__(self, path: str) -> None:
        # One thread at a time: its own, or that of the event loop while its own waits for the next visit.
        super().__init__(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self.gone = threading.Event()
        self._path = path
        self._file: tuple[int, int] | None = None
        self._gate = threading.Lock()
        self._killed = False
        self._committing = False
        self._busy_seconds = BUSY_SECONDS

    def commit(self) -> None:
        due, self.due = self.due, None
        if due is not None:
            with fork_gate:
                self.result = due()

    def statement(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        """Runs one statement, unless the connection was given up."""
        if self._killed:
            raise Outage("the connection was given up")
        return self.execute(sql, params)

    def changed_by(self, sql: str, params: Params) -> int:
        """Runs a statement; how many rows it changed. (A cursor's rowcount misses `WITH ... UPDATE`.)"""
        before = self.total_changes
        self.statement(sql, params).fetchall()
        return self.total_changes - before

    def statements(self, sql: str, rows: Sequence[Params]) -> None:
        """Runs one statement for each row."""
        if self._killed:
            raise Outage("the connection was given up")
        self.executemany(sql, rows)

    def wait_at_most(self, seconds: float) -> None:
        """How long to wait for another writer; who does not wait at all leaves the log for others to move."""
        if seconds != self._busy_seconds:
            self.statement(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self.statement(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES if seconds else 0}")
            self._busy_seconds = seconds

    def remember_file(self) -> None:
        """Which file this is, for `look_at_file`."""
        self._file = _identity(self._path)

    def look_at_file(self) -> None:
        """Refuses to write to a file that is no longer where it was: all of it would be lost without a word."""
        if self._file != _identity(self._path):
            raise DatabaseConnectionError(
                f"the SQLite file {self._path} was moved, deleted or replaced while it was open; put it back, or "
                "begin anew: what was not yet written is not in it"
            )

    def transaction(self, work: Callable[[], T]) -> T:
        self.statement("BEGIN IMMEDIATE")
        try:
            self.look_at_file()
            result = work()
            with self._gate:
                self._committing = not self._killed
            self.statement("COMMIT")
        except BaseException:
            self._committing = False
            if self.in_transaction:
                self.execute("ROLLBACK")
            raise
        self._committing = False
        return result

    def close(self) -> None:
        with fork_gate:
            super().close()
        self.gone.set()

    def kill(self) -> bool:
        """From another thread: nothing more is begun. Whether a commit is under way."""
        with self._gate:
            self._killed = True
            return self._committing


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (a fifth of the time of Path's, once a transaction)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class Visit:
    """The `Transaction` of a work that runs in the connection's thread: nothing in it waits."""

    def __init__(self, session: Session, place: str) -> None:
        self._session = session
        self._place = place

    async def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        with translating(self._place):
            return self._session.statement(sql, params).fetchall()

    async def execute(self, sql: str, params: Params = ()) -> int:
        with translating(self._place):
            return self._session.changed_by(sql, params)

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        with translating(self._place):
            self._session.statements(sql, rows)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Params]) -> None:
        raise NotImplementedError(f"SQLite has no bulk protocol for {table!r}: Dialect.copies is false")


class Pace:
    """Whether the disk is quick enough for the event loop's own thread to go there."""

    def __init__(self) -> None:
        self._turns = 0
        self._usual = 0.0
        self._rest_seconds = REST_SECONDS
        self._rests_until = 0.0

    def allows(self) -> bool:
        """Whether the next transaction may be done there."""
        self._turns += 1
        return self._turns % LONG_WAY_EVERY >= LONG_WAYS and time.monotonic() >= self._rests_until

    def took(self, seconds: float) -> None:
        """Notes how long one took."""
        self._usual += (seconds - self._usual) / 8
        if self._usual > SLOW_SECONDS:
            self._usual = 0.0
            self.rest()
            self._rest_seconds = min(LONGEST_REST_SECONDS, self._rest_seconds * 2)
        elif seconds < SLOW_SECONDS:
            self._rest_seconds = max(REST_SECONDS, self._rest_seconds * 0.9)

    def rest(self) -> None:
        """Sends the next ones to the thread."""
        self._rests_until = time.monotonic() + self._rest_seconds


class SqliteLink(Link):
    """One aiosqlite connection."""

    max_value_bytes = 999_000_000  # SQLite's own limit is 1,000,000,000 for a whole row

    def __init__(self, connection: aiosqlite.Connection, session: Session, place: str) -> None:
        self._connection = connection
        self._session = session
        self._place = place
        self._process = os.getpid()
        self._alive = True
        self._busy_seconds = BUSY_SECONDS
        self._cut_in_commit = False
        self._pace = Pace()

    @property
    def usable(self) -> bool:
        return self._alive

    def translate(self, error: Exception) -> Exception | None:
        return translated(error, self._place)

    async def limit(self, seconds: float) -> None:
        self._busy_seconds = min(BUSY_SECONDS, SERVER_SHARE * seconds)

    async def begin(self, limit_seconds: float) -> None:
        await self.limit(limit_seconds)

    async def finish(self, work: Work[T], call: Call) -> T:
        """The whole transaction in one visit to the connection's thread."""
        visit = Visit(self._session, self._place)
        self.sent_at = time.monotonic()
        try:
            with self.said():
                return await self._visit(lambda: self._session.transaction(lambda: straight(work, visit)))
        finally:
            call.may_be_committed = self._cut_in_commit

    def at_once(self, work: Work[T]) -> T | None:
        """On the event loop's own thread: to change threads twice takes longer than a small transaction."""
        if not self._pace.allows():
            return None
        began = time.monotonic()
        try:
            with fork_gate:
                self._session.wait_at_most(0)
                result = self._session.transaction(lambda: straight(work, Visit(self._session, self._place)))
        except Exception:  # noqa: BLE001  (whatever it is, the thread meets it again and tells)
            self._pace.rest()
            return None
        self._pace.took(time.monotonic() - began)
        return result

    async def commit(self) -> None:
        await self._visit(lambda: self._session.statement("COMMIT"))

    async def rollback(self) -> None:
        await self._visit(lambda: self._session.statement("ROLLBACK"))

    async def fetch(self, sql: str, params: Params) -> list[Row]:
        return await self._visit(lambda: self._session.statement(sql, params).fetchall())

    async def execute(self, sql: str, params: Params) -> int:
        return await self._visit(lambda: self._session.changed_by(sql, params))

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        await self._visit(lambda: self._session.statements(sql, rows))

    async def _visit(self, job: Callable[[], T]) -> T:
        session, seconds = self._session, self._busy_seconds

        def due() -> T:
            session.wait_at_most(seconds)
            return job()

        session.due = due
        try:
            await self._connection.commit()
            return cast("T", session.result)
        finally:
            session.result = None

    async def settled(self, call: Call) -> float:  # noqa: ARG002
        for _ in range(100):
            if self._session.gone.is_set():
                return time.monotonic()
            await asyncio.sleep(0.01)
        return self.sent_at + self._busy_seconds + 1.0

    def kill(self) -> None:
        if self._alive:
            self._alive = False
            self._cut_in_commit = self._session.kill()
            self._session.interrupt()
            _aside(self._connection.stop)

    def abandon(self) -> None:
        self._alive = False
        if os.getpid() == self._process:
            _aside(self._connection.stop)
        else:  # SQLite forbids even to close what was opened before a fork
            immortal(self._connection, self._session)

    async def close(self) -> None:
        if self._alive:
            self._alive = False
            await self._connection.close()


def straight(work: Work[T], tx: Transaction) -> T:
    """Runs a coroutine that never has to wait."""
    steps = work(tx).__await__()
    try:
        next(steps)
    except StopIteration as end:
        return cast("T", end.value)
    steps.close()
    raise RuntimeError("the work of a transaction awaited something else than its transaction")


def _aside(job: Callable[[], T]) -> T:
    """Runs a short job in a thread of its own, without an event loop.

    What aiosqlite makes there is of use without one: a thread that is a daemon like its maker, an end
    of that thread that reports to no loop.
    """
    box: list[T] = []
    helper = threading.Thread(target=lambda: box.append(job()), daemon=True)
    helper.start()
    helper.join()
    return box[0]


# ----------------------------------------------------------------------------------------- opening


class Opening:
    """The connector that aiosqlite calls in the connection's thread.

    It keeps an error to itself: aiosqlite would end that thread by way of an event loop which may be
    closed by then.
    """

    session: Session
    error: Exception | None = None

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make

    def __call__(self) -> Session:
        try:
            self.session = self._make()
        except Exception as error:  # noqa: BLE001
            self.error = error
            self.session = Session(":memory:")
        return self.session


class SqliteDriver:
    """Opens one file."""

    dialect = DIALECT
    only_transactions = False
    catalogue = Catalogue(
        columns="SELECT name, type FROM pragma_table_info(?)",
        tables="SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, length(?1)) = ?1",
        indexes="SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?",
    )

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.place = f"the SQLite file {path}"

    async def connect(self, *, create_database: bool) -> SqliteLink:  # noqa: ARG002
        """Opens the file; SQLite makes it if it is absent, asked or not."""
        opening = Opening(self._open)
        connection = _aside(lambda: aiosqlite.Connection(opening, iter_chunk_size=64))
        await connection
        link = SqliteLink(connection, opening.session, self.place)
        if opening.error is not None:
            await link.close()
            with translating(self.place):
                raise opening.error
        return link

    def _open(self) -> Session:
        refuse_old()
        look_at_the_place(self._path)
        with fork_gate:
            session = Session(str(self._path))
        try:
            with fork_gate:
                [mode] = session.execute("PRAGMA journal_mode = WAL").fetchone()
                session.execute("PRAGMA synchronous = NORMAL")
            if mode != "wal":
                raise DatabaseConnectionError(f"{self.place} cannot have a write-ahead log here (it has {mode!r})")
            session.remember_file()
        except BaseException:
            session.close()
            raise
        return session


def look_at_the_place(path: Path) -> None:
    """
    Raises:
        DatabaseConnectionError: a database there cannot be, or cannot be read and written; nothing was opened for that.
    """
    place, folder = f"the SQLite file {path}", path.parent
    if not folder.is_dir():
        raise DatabaseConnectionError(f"{place}: the folder {folder} does not exist; make it first")
    if path.is_dir():
        raise DatabaseConnectionError(f"{place} is a folder; give the name of a file in `database`")
    refuse_shared(path, file_system(folder.resolve()))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DatabaseConnectionError(f"{place}: the folder {folder} cannot be written to; SQLite needs that")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise DatabaseConnectionError(f"{place} cannot be read and written by this user; see `ls -l {path}`")


def refuse_old(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> None:
    """UPDATE ... RETURNING came with 3.35."""
    if version < (3, 35):
        found = ".".join(map(str, version))
        raise DatabaseConnectionError(f"SQLite {found} is too old: 3.35 or newer is needed (use a newer Python build)")


def refuse_shared(path: Path, kind: str) -> None:
    if SHARED_FILE_SYSTEM.fullmatch(kind):
        raise DatabaseConnectionError(
            f"the SQLite file {path} lies on a network file system ({kind}): its write-ahead log needs "
            "memory that all its users share, so it works on one machine only and would be damaged here. "
            "Put the file on a local disk, or use `provider: postgresql` or `mysql`"
        )


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on; empty if the system does not tell."""
    import psutil

    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    for place in (folder, *folder.parents):
        if str(place) in mounts:
            return mounts[str(place)].lower()
    return ""


# ------------------------------------------------------------------------------------------ errors


class translating:
    """Turns sqlite3's errors into ours."""

    __slots__ = ("_place",)

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and (ours := translated(error, self._place)) is not None:
            raise ours from error


_BY_CODE: Mapping[str, tuple[type[DatabaseError], str]] = {
    "SQLITE_BUSY": (Busy, "another process is writing"),
    "SQLITE_LOCKED": (Busy, "another connection is writing"),
    "SQLITE_PROTOCOL": (Busy, "its lock is contended"),
    "SQLITE_FULL": (Declined, "the disk is full; make room"),
    "SQLITE_IOERR": (Outage, "reading or writing failed; is the disk full or failing?"),
    "SQLITE_INTERRUPT": (Outage, "the statement was interrupted"),
    "SQLITE_NOMEM": (Outage, "out of memory"),
    "SQLITE_CANTOPEN": (DatabaseConnectionError, "it cannot be opened; check the path and its rights"),
    "SQLITE_NOTADB": (DatabaseConnectionError, "it is no SQLite database; give another name in `database`"),
    "SQLITE_CORRUPT": (DatabaseConnectionError, "it is damaged; restore it, or save what `.recover` finds"),
    "SQLITE_READONLY": (
        DatabaseQueryError,
        "it is read-only for this user; check the rights of file and folder",
    ),
    "SQLITE_PERM": (DatabaseConnectionError, "access is denied; check the rights of file and folder"),
    "SQLITE_TOOBIG": (DataRefused, "a value is too long"),
    "SQLITE_MISMATCH": (DataRefused, "a value is not of the column's type"),
    "SQLITE_CONSTRAINT_UNIQUE": (DuplicateKey, "a unique index refused a row"),
    "SQLITE_CONSTRAINT_PRIMARYKEY": (DuplicateKey, "the primary key refused a row"),
    "SQLITE_CONSTRAINT_ROWID": (DuplicateKey, "the primary key refused a row"),
    "SQLITE_CONSTRAINT": (DataRefused, "a constraint refused a value"),
}


def translated(error: Exception, place: str) -> Exception | None:
    """One of our errors for one of sqlite3's; None for all others."""
    if isinstance(error, OverflowError | UnicodeEncodeError):
        return DataRefused(f"{place}: a value cannot be stored: {error}")
    if not isinstance(error, sqlite3.Error):
        return None
    words = str(error)
    if words.startswith(("no such table", "no such column")) or "has no column named" in words:
        return MissingTable(f"{place}: {words}")
    kind, meaning = _by_code(getattr(error, "sqlite_errorname", ""))
    if kind is None:
        unbound = isinstance(error, sqlite3.InterfaceError | sqlite3.DataError) or "binding parameter" in words
        return (DataRefused if unbound else DatabaseQueryError)(f"{place}: {words}")
    return kind(f"{place}: {meaning} ({words})")


def _by_code(name: str) -> tuple[type[DatabaseError] | None, str]:
    """The most specific entry: `SQLITE_BUSY_SNAPSHOT` is a `SQLITE_BUSY`."""
    while name:
        if name in _BY_CODE:
            return _BY_CODE[name]
        name = name.rpartition("_")[0]
    return None, ""


def connect(target: Target) -> Database:
    """The database of one SQLite file."""
    return WholeDatabase(SqliteDriver(target.database))
