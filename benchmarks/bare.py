"""The limits: what a driver does when used by hand, without asyncexp, on the very same table.

A loop of two transactions for all free slots: (1) the ends of the last rows and a claim of as many new
ones, (2) their results. It writes what our side writes that is worth keeping (status, attempt, worker, dates,
name, machine, result) and nothing that protects it: no fence, no lease, no record of flushes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiomysql
import aiosqlite
import asyncpg
from pymysql.constants import CLIENT

from asyncexp.db.base import Target

Taken = tuple[int, int, str]
"""ID, number, kind."""
Rows = Sequence[tuple[Any, ...]]

WORKER = 4711
NAME = "bare"
MACHINE = socket.gethostname()


class Bare(ABC):
    """One connection of a driver, and the statements that one would write for it."""

    @abstractmethod
    async def turn(self, ended: Sequence[int], count: int) -> list[Taken]:
        """Ends rows and takes up to `count` new ones; committed."""

    @abstractmethod
    async def results(self, values: Sequence[tuple[int, float]]) -> None:
        """Writes results, (ID, value) each; committed."""

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def insert(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        """Inserts by the fastest way that the driver has, in the transaction under way."""

    @abstractmethod
    async def close(self) -> None: ...

    def now(self) -> Any:
        """The time, as a column of dates takes it."""
        return datetime.now(UTC).replace(tzinfo=None)


async def work(bare: Bare, experiment: Callable[[int, str], Awaitable[float]], slots: int, most: int = -1) -> int:
    """Runs rows, `slots` at once, until there are none left or `most` were run; how many."""
    done = 0
    ended: list[int] = []
    while True:
        free = slots if most < 0 else min(slots, most - done)
        rows = await bare.turn(ended, free)
        if not rows:
            return done
        ended = [row[0] for row in rows]
        await bare.results(list(zip(ended, await _at_once(experiment, rows), strict=True)))
        done += len(rows)


async def _at_once(experiment: Callable[[int, str], Awaitable[float]], rows: Sequence[Taken]) -> list[float]:
    """Values of experiments that really run at once, a task each: one that waits holds up no other."""
    if len(rows) == 1:
        return [await experiment(*rows[0][1:])]
    return await asyncio.gather(*(experiment(number, kind) for _, number, kind in rows))


async def no_op(number: int, _: str) -> float:
    return float(number)


# --------------------------------------------------------------------------------------------- SQLite

_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"


class Sqlite(Bare):
    """aiosqlite. Every call is a trip to its thread, so what can be one statement is one."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, target: Target) -> Sqlite:
        connection = await aiosqlite.connect(target.database, timeout=30.0, isolation_level=None)
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = NORMAL")
        return cls(connection)

    async def turn(self, ended: Sequence[int], count: int) -> list[Taken]:
        if ended:
            await self._connection.execute(
                f"UPDATE experiments SET status = 'done', end_date = {_NOW} "
                "WHERE ID IN (SELECT value FROM json_each(?))",
                (json.dumps(ended),),
            )
        taken = await self._connection.execute_fetchall(
            "UPDATE experiments SET status = 'running', _attempt = _attempt + 1, _worker = ?, "
            f"start_date = {_NOW}, name = ?, machine = ? WHERE ID IN "
            "(SELECT ID FROM experiments WHERE status = 'created' ORDER BY ID LIMIT ?) RETURNING ID, number, kind",
            (WORKER, NAME, MACHINE, count),
        )
        return list(taken)  # type: ignore[arg-type]

    async def results(self, values: Sequence[tuple[int, float]]) -> None:
        update = "UPDATE experiments SET result = ?2 WHERE ID = ?1"
        if len(values) == 1:
            await self._connection.execute(update, values[0])
            return
        await self.begin()
        await self._connection.executemany(update, values)
        await self.commit()

    async def begin(self) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        await self._connection.execute("COMMIT")

    async def insert(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        marks = ", ".join("?" * len(columns))
        await self._connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def now(self) -> Any:
        return super().now().isoformat(" ", "microseconds")

    async def close(self) -> None:
        await self._connection.close()


# ----------------------------------------------------------------------------------------- PostgreSQL

_UTC = "timezone('utc', clock_timestamp())"
_TURN = f"""
    WITH ended AS (UPDATE experiments SET status = 'done', end_date = {_UTC} WHERE "ID" = ANY($1::bigint[])),
    picked AS MATERIALIZED (SELECT "ID" AS picked_id FROM experiments WHERE status = 'created'
                            ORDER BY "ID" LIMIT $2 FOR UPDATE SKIP LOCKED)
    UPDATE experiments SET status = 'running', _attempt = _attempt + 1, _worker = $3, start_date = {_UTC},
        name = $4, machine = $5
    FROM picked WHERE "ID" = picked_id RETURNING "ID", number, kind
"""
_RESULTS = """
    UPDATE experiments SET result = new.result
    FROM unnest($1::bigint[], $2::double precision[]) AS new(id, result) WHERE "ID" = new.id
"""


class Postgres(Bare):
    """asyncpg. Each transaction is one statement that commits by itself: one round trip."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, target: Target) -> Postgres:
        return cls(await cls.connect(target))

    @staticmethod
    async def connect(target: Target) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host=target.host,
            port=target.port,
            user=target.user,
            password=target.password,
            database=target.database,
        )

    async def turn(self, ended: Sequence[int], count: int) -> list[Taken]:
        rows = await self._connection.fetch(_TURN, ended, count, WORKER, NAME, MACHINE)
        return [(row[0], row[1], row[2]) for row in rows]

    async def results(self, values: Sequence[tuple[int, float]]) -> None:
        ids, results = zip(*values, strict=True)
        await self._connection.execute(_RESULTS, ids, results)

    async def begin(self) -> None:
        await self._connection.execute("BEGIN")

    async def commit(self) -> None:
        await self._connection.execute("COMMIT")

    async def insert(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        await self._connection.copy_records_to_table(table, records=rows, columns=list(columns))

    async def close(self) -> None:
        await self._connection.close()


# -------------------------------------------------------------------------------------- MySQL, MariaDB


class Mysql(Bare):
    """aiomysql. No autocommit, which saves the BEGIN: four round trips and two."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, target: Target) -> Mysql:
        connection = await aiomysql.connect(
            host=target.host,
            port=target.port,
            user=target.user,
            password=target.password,
            db=target.database,
            charset="utf8mb4",
            client_flag=CLIENT.FOUND_ROWS,
            autocommit=False,
            init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        )
        return cls(connection)

    async def turn(self, ended: Sequence[int], count: int) -> list[Taken]:
        cursor = await self._connection.cursor()
        if ended:
            await cursor.execute(
                "UPDATE experiments SET status = 'done', end_date = UTC_TIMESTAMP(6) WHERE ID IN %s", (ended,)
            )
        await cursor.execute(
            "SELECT ID, number, kind FROM experiments WHERE status = 'created' ORDER BY ID LIMIT %s "
            "FOR UPDATE SKIP LOCKED",
            (count,),
        )
        rows: list[Taken] = list(await cursor.fetchall())
        if rows:
            await cursor.execute(
                "UPDATE experiments SET status = 'running', _attempt = _attempt + 1, _worker = %s, "
                "start_date = UTC_TIMESTAMP(6), name = %s, machine = %s WHERE ID IN %s",
                (WORKER, NAME, MACHINE, [row[0] for row in rows]),
            )
        await self._connection.commit()
        return rows

    async def results(self, values: Sequence[tuple[int, float]]) -> None:
        cursor = await self._connection.cursor()
        first, *more = [f"SELECT {id_} AS id, {value!r} AS result" for id_, value in values]
        derived = " UNION ALL ".join(
            [first, *(select.replace(" AS id", "").replace(" AS result", "") for select in more)]
        )
        await cursor.execute(
            f"UPDATE experiments AS old JOIN ({derived}) AS new ON old.ID = new.id SET old.result = new.result"
        )
        await self._connection.commit()

    async def begin(self) -> None:
        """The first statement begins."""

    async def commit(self) -> None:
        await self._connection.commit()

    async def insert(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        cursor = await self._connection.cursor()
        marks = ", ".join(["%s"] * len(columns))
        # The space behind VALUES is what aiomysql's fast path looks for.
        await cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    async def close(self) -> None:
        await self._connection.ensure_closed()


_KINDS: dict[str, type[Sqlite] | type[Postgres] | type[Mysql]] = {
    "sqlite": Sqlite,
    "postgresql": Postgres,
    "mysql": Mysql,
}


@asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Bare]:
    """A bare connection to a database, closed at the end."""
    bare = await _KINDS[target.provider].open(target)
    try:
        yield bare
    finally:
        await bare.close()
