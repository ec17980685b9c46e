"""Looking at the tables by SQL, past the library, and getting in its way: over a connection of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncexp.db import connect
from asyncexp.db.base import Database, Row, Target, Transaction
from asyncexp.schema import render

PATIENCE_SECONDS = 60.0


def rendered(db: Database, text: str, values: dict[str, Any]) -> tuple[str, list[Any]]:
    sql, names = render(text, db.dialect.placeholder, db.dialect.quote)
    return sql, [values[name] for name in names]


async def fetch(target: Target, text: str, **values: Any) -> list[Row]:
    """Rows of a statement in standard SQL, with `:name` for parameters."""
    db = connect(target)
    try:
        return await db.fetch(*rendered(db, text, values))
    finally:
        await db.close()


async def execute(target: Target, text: str, **values: Any) -> int:
    """Runs one statement and commits it; how many rows it matched."""
    db = connect(target)
    try:
        return await db.execute(*rendered(db, text, values))
    finally:
        await db.close()


async def columns(target: Target, table: str) -> list[str] | None:
    """Names of a table's columns in their order; None: no such table."""
    db = connect(target)
    try:
        found = await db.columns(table)
        return None if found is None else [name for name, _ in found]
    finally:
        await db.close()


async def tables(target: Target, prefix: str = "") -> set[str]:
    """Names of the tables that begin with `prefix`."""
    db = connect(target)
    try:
        return {name for name in await db.tables(prefix) if not name.startswith(("sqlite_", "pg_"))}
    finally:
        await db.close()


async def forbid(target: Target, table: str, column: str, value: int) -> None:
    """Makes the database refuse a value that asyncexp has nothing against."""
    text = f'ALTER TABLE "{table}" ADD CONSTRAINT "not_this" CHECK ("{column}" <> {value})'
    if target.provider == "sqlite":  # which adds no constraints to a table that is there
        refuse = f"SELECT RAISE(ABORT, 'not this') WHERE NEW.\"{column}\" = {value}"
        text = f'CREATE TRIGGER "not_this" BEFORE INSERT ON "{table}" BEGIN {refuse}; END'
    await execute(target, text)


@asynccontextmanager
async def locked(target: Target, experiment_id: int) -> AsyncIterator[None]:
    """Holds a row in a transaction under way, so that nobody else can write to it meanwhile."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        asyncio.run(_hold(target, experiment_id, held, release))

    holding = asyncio.ensure_future(asyncio.to_thread(hold))
    try:
        await asyncio.to_thread(held.wait, PATIENCE_SECONDS)
        yield
    finally:
        release.set()
        await holding


async def _hold(target: Target, experiment_id: int, held: threading.Event, release: threading.Event) -> None:
    db = connect(target)

    async def work(tx: Transaction) -> None:
        text = 'UPDATE "experiments" SET "_requested_by" = NULL WHERE "ID" = :id'
        await tx.execute(*rendered(db, text, {"id": experiment_id}))
        held.set()
        release.wait(PATIENCE_SECONDS)  # blocks this thread's loop, which has nothing else to do

    try:
        await db.run(work)
    finally:
        await db.close()
