"""Every change of every row, kept by the database itself: triggers write in the transaction of the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from asyncexp.db import connect
from asyncexp.db.base import Target
from tests.contract.sql import execute, fetch

TABLE = "chaos_ledger"
SAMPLES = "chaos_samples"
_COLUMNS = ("status", "_attempt", "_worker", "text")


class State(NamedTuple):
    """What a row was or became."""

    status: str
    attempt: int
    worker: int | None
    token: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row; no state before it was made, none after it was deleted."""

    id: int
    number: int
    old: State | None
    new: State | None
    over: float | None
    """When the lease of the worker that held it was, or will be, over; seconds by the database's clock, as `at`."""
    at: float


@dataclass(frozen=True, slots=True)
class _Words:
    """How one database says it."""

    clock: str
    epoch: str
    """Of `{date}`."""
    text: str
    trigger: str
    order: str


_WORDS = {
    "sqlite": _Words(
        "((julianday('now') - 2440587.5) * 86400.0)",
        "((julianday({date}) - 2440587.5) * 86400.0)",
        "TEXT",
        'CREATE TRIGGER "chaos_{event}" AFTER {event} ON "experiments" BEGIN {insert}; END',
        "rowid",
    ),
    "postgresql": _Words(
        "extract(epoch FROM clock_timestamp())",
        "extract(epoch FROM {date})",
        "TEXT",
        'CREATE FUNCTION "chaos_{event}"() RETURNS trigger LANGUAGE plpgsql AS '
        "$$ BEGIN {insert}; RETURN NULL; END $$;\n"
        'CREATE TRIGGER "chaos_{event}" AFTER {event} ON "experiments" '
        'FOR EACH ROW EXECUTE FUNCTION "chaos_{event}"()',
        '"at"',
    ),
    "mysql": _Words(
        "UNIX_TIMESTAMP(SYSDATE(6))",
        "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {date}) / 1e6)",
        "VARCHAR(60)",
        'CREATE TRIGGER "chaos_{event}" AFTER {event} ON "experiments" FOR EACH ROW {insert}',
        '"at"',
    ),
}


async def keep(target: Target) -> None:
    """Makes the ledger, on a study whose tables are there."""
    words = _WORDS[target.provider]
    sides = ", ".join(
        f'"{side}_{name}" {words.text if name in ("status", "text") else "BIGINT"}'
        for side in ("old", "new")
        for name in _COLUMNS
    )
    statements = [
        f'CREATE TABLE "{TABLE}" ("id" BIGINT, "number" BIGINT, {sides}, "over" DOUBLE PRECISION, '
        '"at" DOUBLE PRECISION)',
        f'CREATE TABLE "{SAMPLES}" ("count" BIGINT)',
        *(words.trigger.format(event=event, insert=_insert(event, words)) for event in ("INSERT", "UPDATE", "DELETE")),
    ]
    db = connect(target)
    try:
        for text in statements:
            for statement in text.split(";\n"):
                await db.execute(statement if target.provider != "mysql" else statement.replace('"', "`"), [])
    finally:
        await db.close()


def _insert(event: str, words: _Words) -> str:
    here = "OLD" if event == "DELETE" else "NEW"
    sides = [
        f'{side}."{name}"' if event not in absent else "NULL"
        for side, absent in (("OLD", ("INSERT",)), ("NEW", ("DELETE",)))
        for name in _COLUMNS
    ]
    over = "NULL"
    if event == "UPDATE":
        heartbeat = words.epoch.format(date='"heartbeat"')
        lease = f'SELECT {heartbeat} + "lease" FROM "experiments_workers" WHERE "id" = OLD."_worker"'
        over = f"CASE WHEN OLD.\"status\" = 'running' THEN ({lease}) END"
    values = ", ".join([f'{here}."ID"', f'{here}."number"', *sides, over, words.clock])
    return f'INSERT INTO "{TABLE}" VALUES ({values})'


async def sample(target: Target) -> list[tuple[int, tuple[int, str, str | None]]]:
    """ID, and attempt, status and token, of every row: a state that no crash can undo.

    MariaDB shows what is committed before it is on disk. A commit of one's own that was answered comes behind it there.
    """
    rows = await fetch(target, 'SELECT "ID", "_attempt", "status", "text" FROM "experiments"')
    await execute(target, f'INSERT INTO "{SAMPLES}" VALUES ({len(rows)})')
    return [(row[0], (row[1], row[2], row[3])) for row in rows]


async def read(target: Target) -> list[Change]:
    """All changes, those of each row in their order."""
    rows = await fetch(target, f'SELECT * FROM "{TABLE}" ORDER BY {_WORDS[target.provider].order}')
    return [
        Change(int(row[0]), int(row[1]), _state(row[2:6]), _state(row[6:10]), _seconds(row[10]), float(row[11]))
        for row in rows
    ]


def _state(cells: tuple[Any, ...]) -> State | None:
    return None if cells[0] is None else State(*cells)


def _seconds(cell: Any) -> float | None:
    return None if cell is None else float(cell)
