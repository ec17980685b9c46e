"""Reading: counts, tables, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncexp.db.base import Row
from asyncexp.schema import BIGINT, DATE, INT, TEXT, WORD, Column, Table, quote
from asyncexp.store.claim import ID
from asyncexp.store.study import STATUSES, Condition, Study
from asyncexp.values import ColumnType

LIMIT_SECONDS = 600.0
HIDDEN = ("lost", "released", "retried")
"""Outcomes of attempts whose logs are kept but not shown."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors that end in the same line."""

    last_line: str
    count: int
    ids: tuple[int, ...] = field(repr=False)
    example: str = field(repr=False)
    """The whole traceback of the first of them."""


async def counts(study: Study, which: Condition) -> dict[str, int]:
    """Status -> rows, every status named."""
    text = f'SELECT "status", COUNT(*) FROM {study.main} WHERE {which.sql} GROUP BY "status"'
    found: dict[str, int] = dict(await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS))
    return {status: int(found.pop(status, 0)) for status in STATUSES} | {k: int(v) for k, v in found.items()}


async def any_of(study: Study, which: Condition) -> bool:
    """Whether there is any such row."""
    text = f"SELECT 1 FROM {study.main} WHERE {which.sql} LIMIT 1"
    return bool(await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS))


async def status_of(study: Study, experiment_id: int) -> str | None:
    """The status of one row; None: no such row."""
    text = f'SELECT "status" FROM {study.main} WHERE "ID" = :id'
    found = await study.fetch(study.db, text, id=experiment_id)
    return str(found[0][0]) if found else None


async def rows(study: Study, table: Table, which: Condition) -> tuple[list[tuple[str, ColumnType]], list[Row]]:
    """The columns shown of a table, with their types, and its rows by ID."""
    columns = [(column.name, shown_type(column)) for column in table.columns if column.type != "HASH"]
    names = ", ".join(quote(name) for name, _ in columns)
    text = f'SELECT {names} FROM {quote(table.name)} WHERE {which.sql} ORDER BY "ID"'
    return columns, await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS)


def shown_type(column: Column) -> ColumnType:
    return column.type if isinstance(column.type, ColumnType) else BIGINT


def visible(study: Study, table: Table, which: Condition) -> Condition:
    """A log table's rows without those of attempts that were lost, released or tried again."""
    outcomes = ", ".join(f"'{outcome}'" for outcome in HIDDEN)
    name = quote(table.name)
    hidden = (
        f'SELECT 1 FROM {study.attempts} WHERE {study.attempts}."experiment_id" = {name}."experiment_id" '
        f'AND {study.attempts}."attempt" = {name}."_attempt" AND "outcome" IN ({outcomes})'
    )
    return Condition(f"({which.sql}) AND NOT EXISTS ({hidden})", which.params)


def log_columns(table: Table) -> list[Column]:
    """What a condition on a log table may name."""
    own = [column for column in table.columns if column.name not in ("ID", "_attempt")]
    return [Column("ID", BIGINT), *own, Column("_attempt", INT)]


async def errors(study: Study, chunk: int = 2_000) -> list[ErrorGroup]:
    """The rows in error by the last line of their traceback, the most frequent first."""
    groups: dict[str, tuple[list[int], str]] = {}
    last = 0
    while found := await _errors_after(study, last, chunk):
        for experiment_id, error in found:
            groups.setdefault(last_line(error), ([], error or ""))[0].append(int(experiment_id))
        last = int(found[-1][0])
    made = [ErrorGroup(line, len(ids), tuple(ids), example) for line, (ids, example) in groups.items()]
    return sorted(made, key=lambda group: -group.count)


async def _errors_after(study: Study, last: int, chunk: int) -> Sequence[Row]:
    text = (
        f'SELECT "ID", "error" FROM {study.main} WHERE "status" = \'error\' AND "ID" > :last ORDER BY "ID" LIMIT :chunk'
    )
    return await study.fetch(study.db, text, last=last, chunk=chunk)


def last_line(error: str | None) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "(no message)"


def _bound(study: Study, text: str, which: Condition) -> tuple[str, list[object]]:
    from asyncexp.schema import render

    sql, names = render(text, study.dialect.placeholder, study.dialect.quote)
    return sql, [which.params[name] for name in names]


__all__ = [
    "DATE",
    "ID",
    "TEXT",
    "WORD",
    "ErrorGroup",
    "counts",
    "errors",
    "last_line",
    "rows",
    "status_of",
    "visible",
]
