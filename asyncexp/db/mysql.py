"""MySQL and MariaDB through aiomysql."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any

import aiomysql
from pymysql import err
from pymysql.constants import CLIENT

from asyncexp.db import tls
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
)
from asyncexp.db.whole import (
    IDLE_SECONDS,
    LOCK_SHARE,
    SERVER_SHARE,
    Busy,
    Call,
    Catalogue,
    Declined,
    Link,
    WholeDatabase,
    bare,
    forget,
    not_text,
    unlike,
)
from asyncexp.errors import DatabaseConnectionError, DatabaseCreationError, DatabaseError, DatabaseQueryError

LIMIT_SECONDS = 30.0
"""The limit on a call for which a connection is set up; others cost a statement more."""
KILL_SECONDS = 5.0
LOCK = "SELECT GET_LOCK("
BIND_ROOM = 64 * 1024
"""Bytes of a packet left for the statement around a value."""
MAX_DIGITS, MAX_SCALE = 65, 30
"""What a DECIMAL may have, in all and behind the point."""

DIALECT = Dialect(
    name="mysql",
    placeholder="%s",
    quote="`",
    types={
        "VARCHAR": "VARCHAR({size})",
        "INT": "BIGINT",
        "BIGINT": "BIGINT",
        "NUMERIC": "DOUBLE",
        "NUMERIC_P": "NUMERIC({size},{scale})",
        "DOUBLE": "DOUBLE",
        "FLOAT": "DOUBLE",
        "BOOLEAN": "BOOLEAN",
        "DATETIME": "DATETIME(6)",
        "TEXT": "LONGTEXT",
        "LONGTEXT": "LONGTEXT",
        "JSON": "JSON",
        "HASH": "BINARY(16)",
    },
    kinds={
        "varchar": "text",
        "char": "text",
        "text": "text",
        "tinytext": "text",
        "mediumtext": "text",
        "longtext": "text",
        "bigint": "integer",
        "int": "integer",
        "integer": "integer",
        "mediumint": "integer",
        "smallint": "integer",
        "decimal": "number",
        "numeric": "number",
        "double": "number",
        "float": "number",
        "real": "number",
        "tinyint": "boolean",
        "boolean": "boolean",
        "bool": "boolean",
        "datetime": "datetime",
        "timestamp": "datetime",
        "json": "json",
        "binary": "bytes",
        "varbinary": "bytes",
        "blob": "bytes",
        "longblob": "bytes",
    },
    identity="BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
    table_options=" ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    now="UTC_TIMESTAMP(6)",
    later="(UTC_TIMESTAMP(6) + INTERVAL ROUND(1000000 * ({seconds})) MICROSECOND)",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    for_update=" FOR UPDATE",
    returning=False,
    batch="join",
    partial_indexes=False,
    member="{column} IN {values}",
    bind_list=tuple,
    # An index answers the first comparison, which ignores blanks at the end, and in tables made elsewhere case;
    # the second sees every byte.
    text_equal="({column} = {value} AND BINARY CONVERT({column} USING utf8mb4) = {value})",
    # the limit on statements ends the wait
    lock=LOCK + "SHA1(CONCAT(DATABASE(), '/', :key)), 86400)",
    max_name_bytes=64,
    transactional_ddl=False,
    by_index="{table} FORCE INDEX ({index})",
    version="SELECT CONCAT(IF(LOCATE('MariaDB', VERSION()), 'MariaDB ', 'MySQL '), SUBSTRING_INDEX(VERSION(), '-', 1))",
    tls_version="SHOW SESSION STATUS LIKE 'Ssl_version'",
    connections=("SHOW GLOBAL STATUS LIKE 'Threads_connected'", "SELECT @@max_connections"),
    schema_of_tables="SELECT DATABASE()",
    grants_by_table=False,
)


def _bytes(value: bytes) -> str:
    """As a hex literal: a statement goes out as UTF-8, which bytes as such are not."""
    return f"x'{value.hex()}'"


def _decimal(value: Decimal) -> str:
    """As an exact literal if it can be one; of more digits the server would make 0, so those are a float's."""
    behind, before = max(0, -int(value.as_tuple().exponent)), max(1, value.adjusted() + 1)
    return f"{value:f}" if behind <= MAX_SCALE and behind + before <= MAX_DIGITS else f"{value:E}"


_ESCAPES: Mapping[type, Callable[[Any], str]] = {bytes: _bytes, Decimal: _decimal}


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    """A cursor that asks for no warnings and sends no packet that the server would cut the line for."""

    max_packet = 1_000_000

    async def _show_warnings(self, _: object) -> None:
        """In strict mode what is left of them is chatter; each would cost a round trip."""

    def _escape_args(self, args: Any, connection: Any) -> Any:
        return tuple(escape(arg) if (escape := _ESCAPES.get(type(arg))) else connection.escape(arg) for arg in args)

    async def execute(self, query: str | bytes, args: Params | None = None) -> int:
        text = self.mogrify(query, args)
        packet = text.encode() if isinstance(text, str) else bytes(text)
        if len(packet) >= self.max_packet:
            raise err.DataError(1153, f"{len(packet)} bytes, max_allowed_packet is {self.max_packet}")
        matched: int = await super().execute(packet)
        return matched


class _NoTlsError(err.OperationalError):
    """The server cannot encrypt."""


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    """A connection that tells no server its password in clear."""

    insists = False
    """Whether the server must encrypt: aiomysql alone would log in plainly to one that cannot."""

    async def _request_authentication(self) -> None:
        if self.insists and not self.server_capabilities & CLIENT.SSL:
            raise _NoTlsError(2026, "no TLS")
        if not self._encrypts() and self._server_auth_plugin in _CLEAR:
            raise _in_clear(self._server_auth_plugin)
        await super()._request_authentication()

    async def _process_auth(self, plugin_name: bytes, auth_packet: Any) -> Any:
        if not self._secure and plugin_name.decode("latin-1") in _CLEAR:
            raise _in_clear(plugin_name.decode("latin-1"))
        return await super()._process_auth(plugin_name, auth_packet)

    def _encrypts(self) -> bool:
        return self._secure or bool(self._ssl_context and self.server_capabilities & CLIENT.SSL)


_CLEAR = ("mysql_clear_password", "mysql_old_password")
"""Ways to log in that give the password away to whoever listens; the server may ask for any."""


def _in_clear(plugin: str) -> err.OperationalError:
    return err.OperationalError(2059, f"the server asks for the password by {plugin}, and there is no TLS")


class MysqlLink(Link):
    """One aiomysql connection."""

    def __init__(self, connection: Any, driver: MysqlDriver, max_packet: int) -> None:
        self._connection = connection
        self._transport = connection._writer.transport
        self._driver = driver
        self._max_packet = max_packet
        self._limit_seconds = LIMIT_SECONDS
        self._locked = False
        self._killed = False
        self.max_value_bytes = max(max_packet // 2 - BIND_ROOM, max_packet // 4)

    @property
    def usable(self) -> bool:
        reader = self._connection._reader
        return not (self._killed or reader is None or reader.at_eof() or reader.exception())

    def translate(self, error: Exception) -> Exception | None:
        return translated(error, self._driver.place)

    async def limit(self, seconds: float) -> None:
        if seconds != self._limit_seconds:
            await self.execute(f"SET SESSION {self._driver.limits(self._connection, seconds)}", ())
            self._limit_seconds = seconds

    async def begin(self, limit_seconds: float) -> None:
        await self.limit(limit_seconds)
        await self._connection.begin()

    async def commit(self) -> None:
        await self._connection.commit()
        await self._unlock()

    async def rollback(self) -> None:
        await self._connection.rollback()
        await self._unlock()

    async def _unlock(self) -> None:
        if self._locked:
            self._locked = False
            await self.fetch("SELECT RELEASE_ALL_LOCKS()", ())

    async def fetch(self, sql: str, params: Params) -> list[Row]:
        cursor = self._cursor()
        await cursor.execute(sql, params or None)
        rows = list(await cursor.fetchall())
        if sql.startswith(LOCK):
            if rows != [(1,)]:  # 0 or NULL: no error for the server, but no lock either
                raise Busy(f"{self._driver.place}: waited too long for a lock")
            self._locked = True
        return rows

    async def execute(self, sql: str, params: Params) -> int:
        return await self._cursor().execute(sql, params or None)

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        await self._cursor().executemany(sql, [tuple(row) for row in rows])

    def _cursor(self) -> _Cursor:
        cursor = _Cursor(self._connection)
        cursor.max_packet = self._max_packet
        cursor.max_stmt_length = min(cursor.max_stmt_length, self._max_packet - BIND_ROOM)
        return cursor

    async def settled(self, call: Call) -> float:
        """MySQL limits no writes: there the session is killed, and seen gone."""
        if self._driver.limits_writes(self._connection):
            return await super().settled(call)
        with suppress(TimeoutError, DatabaseError):
            async with asyncio.timeout(KILL_SECONDS):
                await self._driver.end_session(self._connection.thread_id())
                return time.monotonic()
        return await super().settled(call)

    def kill(self) -> None:
        self._killed = True
        if not self._transport.is_closing():
            self._transport.abort()
        self._connection.close()

    def abandon(self) -> None:
        self._killed = True
        forget(self._transport, self._connection)

    async def close(self) -> None:
        if not self._killed:
            self._killed = True
            writer = self._connection._writer
            await self._connection.ensure_closed()
            await writer.wait_closed()


# --------------------------------------------------------------------------------------- connecting


class MysqlDriver:
    """Connects to one database."""

    dialect = DIALECT
    only_transactions = False
    catalogue = Catalogue(
        columns="SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position",
        tables="SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() "
        "AND LOCATE(BINARY %s, BINARY table_name) = 1",
        indexes="SELECT DISTINCT index_name FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() AND table_name = %s",
    )

    def __init__(self, target: Target) -> None:
        self._target = target
        self._host = target.host or "localhost"
        self._port = target.port or 3306
        self.place = f"MySQL/MariaDB at {self._host}:{self._port} (user {target.user!r}, database {target.database!r})"

    async def connect(self, *, create_database: bool) -> MysqlLink:
        try:
            connection = await self._connect(self._target.database)
        except DatabaseCreationError:
            if not create_database:
                raise
            await self._create()
            connection = await self._connect(self._target.database)
        try:
            return await self._set_up(connection)
        except BaseException as error:
            connection.close()
            ours = translated(error, self.place) if isinstance(error, Exception) else None
            if ours is None:
                raise
            raise ours from error

    async def _set_up(self, connection: Any) -> MysqlLink:
        cursor = _Cursor(connection)
        await cursor.execute(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', "
            f"{self.limits(connection, LIMIT_SECONDS)}"
        )
        await cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await cursor.execute("SELECT @@max_allowed_packet")
        [(max_packet,)] = await cursor.fetchall()
        return MysqlLink(connection, self, max_packet)

    async def _create(self) -> None:
        connection = await self._connect(None)
        name = self._target.database.replace("`", "``")
        try:
            await _Cursor(connection).execute(
                f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
            )
        except err.MySQLError as error:
            raise DatabaseCreationError(f"{self.place}: the database could not be made: {error}") from error
        finally:
            await connection.ensure_closed()

    async def _connect(self, database: str | None) -> Any:
        try:
            return await self._dial(database)
        except DatabaseConnectionError as error:
            ours: Exception = error
        except Exception as error:  # noqa: BLE001  (every one is told, as one of ours)
            ours = (
                refused(error, self._target, self.place) or translated(error, self.place) or unlike(error, self.place)
            )
        raise bare(ours)

    async def _dial(self, database: str | None) -> Any:
        secret, dial = tls.context(self._target, self.place), partial(self._speak, database)
        try:
            return await tls.dialled(dial, secret)
        except Exception as error:
            if self._target.tls == "verify-full" or tls.failure(error) is None:
                raise
        return await dial(None)

    async def _speak(self, database: str | None, secret: ssl.SSLContext | None) -> Any:
        local = self._host.startswith("/")
        connection = _Connection(
            host="localhost" if local else self._host,
            unix_socket=self._host if local else None,
            port=self._port,
            user=self._target.user,
            password=(self._target.password or "").encode().decode("latin-1"),  # as which aiomysql sends it
            db=database,
            charset="utf8mb4",
            client_flag=CLIENT.FOUND_ROWS,
            autocommit=True,
            ssl=secret,
        )
        connection.insists = self._target.tls == "verify-full" and not local
        await connection._connect()
        return connection

    def limits_writes(self, connection: Any) -> bool:
        """Whether the server ends writes too that take too long; MySQL only ends reads."""
        return "MariaDB" in connection.get_server_info()

    def limits(self, connection: Any, seconds: float) -> str:
        """The server's own limits for calls of so many seconds, as assignments of SET SESSION."""
        lock = f"innodb_lock_wait_timeout = {max(1, int(LOCK_SHARE * seconds))}"
        if self.limits_writes(connection):
            statement = f"max_statement_time = {SERVER_SHARE * seconds:.3f}"
            return f"{lock}, {statement}, idle_write_transaction_timeout = {IDLE_SECONDS}"
        return f"{lock}, max_execution_time = {int(1000 * SERVER_SHARE * seconds)}"

    async def end_session(self, number: int) -> None:
        """Kills a session from a fresh connection, and returns when it is gone."""
        connection = await self._connect(None)
        cursor = _Cursor(connection)
        try:
            with suppress(err.OperationalError):  # 1094: it is gone already
                await cursor.execute(f"KILL CONNECTION {number}")
            for _ in range(int(KILL_SECONDS / 0.02)):
                if not await cursor.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", (number,)):
                    return
                await asyncio.sleep(0.02)
            raise Outage(f"{self.place}: session {number} does not end")
        finally:
            connection.close()


# ------------------------------------------------------------------------------------------- errors


def _table(
    *groups: tuple[type[DatabaseError], str, tuple[int, ...]],
) -> Mapping[int, tuple[type[DatabaseError], str]]:
    return {number: (kind, meaning) for kind, meaning, numbers in groups for number in numbers}


_BY_NUMBER = _table(
    (Busy, "deadlock, or waited too long for a lock", (1205, 1213, 1020, 3572, 1412)),
    (
        Outage,
        "the connection broke",
        (2006, 2013, 2055, 1158, 1159, 1160, 1161, 1927, 4031, 1080, 1152, 1184),
    ),
    (Outage, "the server's storage has trouble", (1030,)),
    (Outage, "the server is stopping or was told to end this session", (1053, 1317, 3169)),
    (Declined, "too many connections", (1040, 1203, 1226)),
    (Declined, "the server's disk is full", (1021, 1114, 1026, 1041, 3, 28)),
    (Declined, "the statement took longer than the server's limit", (1969, 3024)),
    (DataRefused, "a value was refused", (1048, 1264, 1265, 1292, 1364, 1366, 1367, 1406, 1411, 1690, 1441)),
    (DataRefused, "a value was refused", (3140, 3141, 3156, 3819, 4025, 1300, 1301, 1067, 3988, 1138, 1118)),
    (DataRefused, "a value is longer than the server's max_allowed_packet", (1153, 2020)),
    (DuplicateKey, "a unique index refused a row", (1062, 1586, 1022)),
    (MissingTable, "a table is missing", (1146, 1051, 1109)),
    (MissingTable, "a column is missing", (1054,)),
    (
        DatabaseQueryError,
        "this user may not do that; ask for the right with GRANT",
        (1142, 1143, 1227, 1044, 1370),
    ),
    (
        DatabaseCreationError,
        "the database does not exist; make it, or call create_table(create_database=True)",
        (1049,),
    ),
    (
        DatabaseConnectionError,
        "not let in; check user and password, and whether the account wants `tls` or a `tls_cert`",
        (1045, 1698),
    ),
    (
        DatabaseConnectionError,
        "the server lets nobody in from this host; check the user's host with GRANT",
        (1130,),
    ),
    (DatabaseConnectionError, "the server wants TLS; set `tls` to `prefer` or `verify-full`", (3159,)),
    (DatabaseConnectionError, "the way to log in is not known here", (1251, 2059, 1043)),
)


def translated(error: Exception, place: str) -> Exception | None:
    """One of our errors for one of PyMySQL's; None for all others."""
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return DataRefused(f"{place}: a value was refused: {error}")
    if isinstance(error, OSError):
        return Outage(f"{place}: the connection broke ({error or type(error).__name__})")
    if not isinstance(error, err.MySQLError):
        return None
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    words = f"{place}: {{}} ({number}: {error.args[-1] if error.args else ''})"
    if number in _BY_NUMBER:
        kind, meaning = _BY_NUMBER[number]
        return kind(words.format(meaning))
    return _by_class(error)(words.format("refused"))


def _by_class(error: err.MySQLError) -> type[DatabaseError]:
    if isinstance(error, err.InterfaceError):  # aiomysql says so of a closed connection, without a number
        return Outage
    if isinstance(error, err.DataError) or "can not be used with MySQL" in str(error):
        return DataRefused
    return DatabaseQueryError


def refused(error: Exception, target: Target, place: str) -> DatabaseError | None:
    """What a failure means while connecting, where it means something else than later."""
    cause = error.__cause__ if isinstance(error, err.OperationalError) and error.args[0] == 2003 else error
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return DatabaseConnectionError(f"{place}: no such host ({cause.strerror}); check `host`")
    if isinstance(error, _NoTlsError):
        return tls.missing(place)
    if (failure := tls.failure(error)) is not None:
        return tls.explained(failure, target, place)
    if isinstance(cause, UnicodeEncodeError):
        return not_text(place)
    if isinstance(cause, OSError):
        words = cause.strerror or str(cause) or type(cause).__name__
        return Declined(f"{place} does not answer ({words}); is it running, are `host` and `port` right?")
    if isinstance(error, err.MySQLError) and not isinstance(error.args[0], int):
        return unlike(error, place)
    if isinstance(error, err.MySQLError) and error.args[0] == 1044:
        return DatabaseConnectionError(f"{place}: this user may not use the database; ask for the right with GRANT")
    return None


def connect(target: Target) -> Database:
    """The MySQL or MariaDB database of a target."""
    return WholeDatabase(MysqlDriver(target))
