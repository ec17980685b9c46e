"""What a database must be able to do, and the facts in which databases differ.

A backend implements `Database`: one connection, opened again when it broke. Everything above it
reads `Dialect` for the differences, and never asks which database it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeVar

from asyncexp.errors import DatabaseConnectionError, DatabaseQueryError

T = TypeVar("T")
Row = tuple[Any, ...]
Params = Sequence[Any]


class Outage(DatabaseConnectionError):
    """The database went away, stalled, is full or does not answer: wait and try again.

    `unknown` is true when the transaction may have been committed all the same; its outcome must be
    looked up, not guessed, and not before `settled_after` (seconds of `time.monotonic()`), when the
    server's own limit on the statement has passed.
    """

    def __init__(self, message: str, *, unknown: bool = False, settled_after: float = 0.0) -> None:
        super().__init__(message)
        self.unknown = unknown
        self.settled_after = settled_after


class DataRefused(DatabaseQueryError):
    """The database refused a value: too long, out of range, not of the type. The transaction was rolled back."""


class MissingTable(DatabaseQueryError):
    """A table or column that the statement names does not exist."""


class DuplicateKey(DatabaseQueryError):
    """A unique index refused a row."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The facts in which one database differs from another; no behaviour."""

    name: Literal["sqlite", "postgresql", "mysql"]
    placeholder: Literal["?", "%s", "$"]
    quote: str
    """The quoting character of identifiers; it is doubled inside them."""
    types: Mapping[str, str]
    """Type of page "Configuration" -> its DDL, with `{size}` and `{scale}` where it has them.

    Keys: VARCHAR INT BIGINT NUMERIC (bare), NUMERIC_P (with precision and scale) DOUBLE FLOAT BOOLEAN
    DATETIME TEXT LONGTEXT JSON, and HASH (16 bytes).
    """
    kinds: Mapping[str, str]
    """Declared type as the catalogue names it (lower case, no size) -> kind.

    Kinds: text, integer, number, boolean, datetime, json, bytes.
    """
    identity: str
    """DDL of a 64-bit primary key that is never reused."""
    table_options: str
    """What follows the closing parenthesis of CREATE TABLE."""
    now: str
    """SQL for the current time, UTC, with sub-second digits, as this database stores a DATETIME."""
    later: str
    """SQL for `now` plus `{seconds}` seconds, a placeholder or a number, fractions included."""
    skip_locked: str
    """Clause that locks the rows of a SELECT and passes over those that others hold; may be empty."""
    for_update: str
    """Clause that locks the rows of a SELECT; may be empty where a transaction locks everything."""
    returning: bool
    """Whether UPDATE ... RETURNING exists."""
    batch: Literal["unnest", "join", "many"]
    """How many rows are updated with different values each in one go."""
    partial_indexes: bool
    member: str
    """SQL for "{column} is one of the integers in {values}", {values} being one parameter; see `bind_list`."""
    bind_list: Callable[[Iterable[int]], Any]
    """Integers as the parameter that `member` expects; never empty."""
    text_equal: str
    """SQL for "text {column} equals {value} to the byte", able to use an index; `{value}` may occur twice."""
    bind: Mapping[type, Callable[[Any], Any]] = field(default_factory=dict)
    """Python type of a canonical value (bool, Decimal, datetime) -> its form for the driver, if another."""
    lock: str | None = None
    """Statement that takes an exclusive lock on `:key` (a text); None where a transaction is exclusive."""
    unlock: str | None = None
    """Statement that gives the lock back after the transaction; None if the transaction's end does."""
    notify: str | None = None
    """Statement that wakes listeners of `:channel` with `:payload`, with the transaction; None without."""
    by_index: str = "{table}"
    """How a FROM clause names a table of which `{index}` is to be read in its order, if that needs saying."""
    changing_queries: bool = False
    """Whether parts of a WITH query may change rows."""
    copies: bool = False
    """Whether `Transaction.copy` exists."""
    gather: str | None = None
    """SQL that makes one JSON list of `{values}` of the rows with `{condition}`; None where an index finds those."""
    count_anew: str | None = None
    """Statement by which the planner learns of many new rows of `{table}`, where it does not notice in time."""
    max_name_bytes: int = 63
    transactional_ddl: bool = True
    """Whether CREATE is undone by a rollback, and can be told to pass over what exists."""
    json_text: str = "{column}"
    """A JSON column as text that can be compared."""
    connection_options: Mapping[str, Any] = field(default_factory=dict)
    version: str = "SELECT NULL"
    """Query whose last cell names product and version."""
    tls_version: str | None = None
    """Query whose last cell names the TLS of this connection, NULL or empty without; None: it needs none."""
    connections: tuple[str, str] | None = None
    """Queries whose last cells are how many connections the server has now, and how many it takes at most."""
    schema_of_tables: str | None = None
    """Query for the schema in which tables are made; None where there are no users and no rights."""
    grants_by_table: bool = True
    """Whether rights are best given for single tables, to `"user"`; else for the schema, to `'user'@'host'`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a database is and how to get in. The password shows in no `repr`, and goes into no pickle."""

    provider: Literal["sqlite", "postgresql", "mysql"]
    database: str
    """Name of the database, or the absolute path of an SQLite file."""
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Literal["disable", "prefer", "verify-full"] = "prefer"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_name: str | None = None
    """The server's name in its certificate, where `host` is another: the near end of a tunnel."""
    pgbouncer: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.password is not None:
            raise TypeError("a Target holds a password: another process reads the credentials for itself")
        return type(self), tuple(getattr(self, each.name) for each in fields(self))


class Transaction(Protocol):
    """A transaction under way. It ends with the function given to `Database.run`.

    Statements come rendered: parameters marked by position as `Dialect.placeholder` says and, where that
    is `%s` and there are parameters, every other `%` doubled.
    """

    async def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a statement, in the driver's types."""
        ...

    async def execute(self, sql: str, params: Params = ()) -> int:
        """Runs a statement; how many rows it matched."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Runs a statement for each row, in as few round trips as the driver allows."""
        ...

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Params]) -> None:
        """Bulk insert by the database's own protocol, where `Dialect.copies`."""
        ...


class Database(Protocol):
    """One connection to one database. Calls queue; each is whole.

    Whole means: once begun, a call runs to its end whatever happens to the task that made it. A
    cancelled caller gets its `CancelledError` when the call is over. A call that exceeds its limit
    loses its connection and raises `Outage`; the next call opens a new one.
    """

    @property
    def dialect(self) -> Dialect: ...

    @property
    def max_value_bytes(self) -> int:
        """The longest single value the server accepts, in bytes; known once opened."""
        ...

    async def open(self, *, create_database: bool = False) -> None:
        """Connects now rather than at the first call.

        Raises:
            DatabaseConnectionError: not reachable, not let in (what to check is in the message).
            Outage: not reachable at the moment; worth another try.
            DatabaseCreationError: the database does not exist (and was not to be made or could not be).
        """
        ...

    async def close(self) -> None:
        """Waits for the call under way, then closes. A second time is no error."""
        ...

    def abandon(self) -> None:
        """Drops the connection without sending a byte: after a fork, or when its event loop is gone."""
        ...

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, limit_seconds: float = 30.0) -> T:
        """Runs `work` in one transaction: committed when it returns, rolled back when it raises.

        A deadlock, a lock wait or a serialisation failure rolls back and runs `work` anew, a bounded
        number of times: `work` must not change anything outside that it cannot repeat. It awaits nothing
        but its transaction, so that a backend may run it elsewhere in one go.

        Raises:
            Outage: the connection broke or the limit passed.
            DataRefused, MissingTable, DuplicateKey, DatabaseQueryError: the statement was refused.
        """
        ...

    def at_once(self, work: Callable[[Transaction], Awaitable[T]]) -> T | None:
        """The same for a small `work`, before this call returns, where nothing has to be waited for.

        None: nothing was done, for a reason that `run` sits out or tells.
        """
        ...

    async def fetch(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> list[Row]:
        """One reading statement without a transaction around it."""
        ...

    async def execute(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> int:
        """One statement that commits by itself; how many rows it matched. DDL too."""
        ...

    async def alone(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> list[Row]:
        """One statement that is a transaction by itself, and its rows; fails as `run` does."""
        ...

    async def columns(self, table: str) -> list[tuple[str, str]] | None:
        """Names and declared types (lower case, without size) of a table's columns; None: no such table."""
        ...

    async def tables(self, like: str) -> list[str]:
        """Names of the tables that begin with `like`, to the letter."""
        ...

    async def indexes(self, table: str) -> list[str]:
        """Names of a table's indexes."""
        ...

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Calls `heard(payload)` on each NOTIFY; does nothing where the database has none.

        Kept up across reconnections, which come with the next call: what is sent between a break and
        that call is not heard.
        """
        ...


class Connect(Protocol):
    """What each backend module offers as `connect`."""

    def __call__(self, target: Target) -> Database: ...
