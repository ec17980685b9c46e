"""Adding rows: in the order they come, once each, in batches that do not grow with the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from asyncexp.db.base import Transaction
from asyncexp.errors import DatabaseError
from asyncexp.schema import quote
from asyncexp.store.study import Runner, Study

BATCH = 10_000
MANY = 1_000
"""As many new rows as make a difference to the planner."""


class KeyRow(NamedTuple):
    """A row to be added: its key hash, and its keyfields as the driver takes them, in the table's order."""

    hash: bytes
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a fill would do."""

    rows: int
    existing: int
    """As many of them are there already."""
    first: tuple[Mapping[str, Any], ...]
    """The keyfields of the first few that would be added."""


@dataclass(frozen=True, slots=True)
class Filled:
    """How many rows a fill added, and how many were there already."""

    added: int = 0
    existed: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(self.added + other.added, self.existed + other.existed)


async def add(study: Study, rows: Sequence[KeyRow]) -> Filled:
    """Adds what is missing of one batch, in its order, in one transaction.

    Fills of the same table take turns (a lock of the database's), so none of them meets another's
    half-written batch, and rows that exist are left out before the insert, so that no ID is burnt.
    """
    unique = list({row.hash: row for row in rows}.values())

    async def work(tx: Transaction) -> int:
        await take_turn(study, tx)
        there = await known(study, tx, [row.hash for row in unique])
        missing = [row for row in unique if row.hash not in there]
        if missing:
            await insert(study, tx, missing)
            await wake(study, tx)
        return len(missing)

    try:
        added = await study.db.run(work, limit_seconds=120.0)
    finally:
        await end_turn(study)
    return Filled(added, len(rows) - added)


async def preview(study: Study, rows: Iterable[KeyRow], shown: int, *, exists: bool) -> Preview:
    """What `add` would make of these rows; whether the table is there yet is the caller's to know."""
    total = existing = 0
    first: list[Mapping[str, Any]] = []
    for batch in batches(rows):
        there = await known(study, study.db, [row.hash for row in batch]) if exists else set()
        existing += sum(row.hash in there for row in batch)
        total += len(batch)
        new = [row for row in batch if row.hash not in there]
        first += [_read(study, row) for row in new[: shown - len(first)]]
    return Preview(total, existing, tuple(first))


def _read(study: Study, row: KeyRow) -> Mapping[str, Any]:
    names = study.schema.key_names
    return {name: decode(raw) for name, decode, raw in zip(names, study.key_decoders, row.values, strict=True)}


async def take_turn(study: Study, tx: Transaction) -> None:
    """Waits until nobody else fills or resets this table."""
    if study.dialect.lock:
        await study.fetch(tx, study.dialect.lock, key=study.schema.channel)


async def end_turn(study: Study) -> None:
    """Gives the lock back where the end of the transaction does not."""
    if study.dialect.unlock:
        await study.fetch(study.db, study.dialect.unlock, key=study.schema.channel)


async def wake(study: Study, tx: Transaction, payload: str = "") -> None:
    """Tells listening workers that there is something to do; takes effect with the commit."""
    if study.dialect.notify:
        await study.fetch(tx, study.dialect.notify, channel=study.schema.channel, payload=payload)


async def count_anew(study: Study, changed: int) -> None:
    """Tells the planner of so many rows that can be claimed now. What fails here costs time only."""
    if study.dialect.count_anew and changed >= MANY:
        with suppress(DatabaseError):
            await study.execute(study.db, study.dialect.count_anew.format(table=study.main))


async def insert(study: Study, tx: Transaction, rows: Sequence[KeyRow]) -> None:
    """Inserts rows that do not exist, in their order."""
    [(now,)] = await study.fetch(tx, f"SELECT {study.dialect.now}")
    columns = (*study.schema.key_names, "creation_date", "status", "_attempt", "_counted_from", "_key_hash")
    full = [(*row.values, now, "created", 0, 0, row.hash) for row in rows]
    await bulk(study, tx, study.schema.main.name, columns, full)


async def bulk(
    study: Study, tx: Transaction, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Many rows into one table, by the fastest way the database has."""
    if study.dialect.copies:
        await tx.copy(table, columns, rows)
        return
    names = ", ".join(map(quote, columns))
    marks = ", ".join(f":c{position}" for position in range(len(columns)))
    # The space behind VALUES is what aiomysql's fast path looks for.
    sql = study.rendered(f"INSERT INTO {quote(table)} ({names}) VALUES ({marks})")
    await tx.execute_many(sql, rows)


async def ensure(study: Study, tx: Transaction, row: KeyRow) -> int:
    """The ID of the row, which is added if it is missing.

    Raises:
        DatabaseError: it exists and cannot be claimed; the message says its ID and status.
    """
    found = await _find(study, tx, row.hash)
    if not found:
        await take_turn(study, tx)
        found = await _find(study, tx, row.hash)
    if not found:
        await insert(study, tx, [row])
        found = await _find(study, tx, row.hash)
    [(experiment_id, status)] = found
    if status != "created":
        raise DatabaseError(f"This experiment exists already: ID {experiment_id}, status {status!r}. Nothing was run.")
    return int(experiment_id)


async def _find(study: Study, tx: Transaction, key_hash: bytes) -> list[tuple[Any, ...]]:
    return await study.fetch(tx, f'SELECT "ID", "status" FROM {study.main} WHERE "_key_hash" = :hash', hash=key_hash)


async def known(study: Study, tx: Runner, hashes: Sequence[bytes]) -> set[bytes]:
    """Those of these hashes that rows have."""
    if study.dialect.batch == "unnest":
        text = f'SELECT "_key_hash" FROM {study.main} WHERE "_key_hash" = ANY(CAST(:hashes AS bytea[]))'
        return {bytes(row[0]) for row in await study.fetch(tx, text, hashes=list(hashes))}
    found: set[bytes] = set()
    for start in range(0, len(hashes), 1000):
        part = hashes[start : start + 1000]
        values = {f"h{position}": key_hash for position, key_hash in enumerate(part)}
        marks = ", ".join(f":{name}" for name in values)
        text = f'SELECT "_key_hash" FROM {study.main} WHERE "_key_hash" IN ({marks})'
        found |= {bytes(row[0]) for row in await study.fetch(tx, text, **values)}
    return found


def batches(rows: Iterable[KeyRow], size: int = BATCH) -> Iterable[list[KeyRow]]:
    """Rows in lists of at most `size`, taken one list at a time."""
    batch: list[KeyRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
