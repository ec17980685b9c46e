"""Reading: counts, tables, errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from asyncexp.db.base import Row
from asyncexp.errors import ParameterCombinationError, unknown
from asyncexp.schema import BIGINT, DATE, INT, TEXT, WORD, Column, Table, quote
from asyncexp.store.claim import ID
from asyncexp.store.study import STATUSES, Condition, Study
from asyncexp.values import ColumnType

LIMIT_SECONDS = 600.0
_BEGIN = "Traceback (most recent call last):"
_OWN = re.escape(str(Path(__file__).parents[1]))
_LIBRARY = re.compile(rf"^{_OWN}/|/(site-packages|dist-packages|lib/python3\.\d+)/|^<frozen")
"""Also of other machines."""
_FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)')
HIDDEN = ("lost", "released", "retried")
"""Outcomes of attempts whose logs are kept but not shown."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors that end in the same line, or are of the same exception and last frame."""

    last_line: str
    """Of the first of them."""
    count: int
    ids: tuple[int, ...] = field(repr=False)
    example: str = field(repr=False)
    """The whole traceback of the first of them."""
    exception: str | None = None
    """The exception's class, as a traceback names it; None where there was none."""
    frame: str | None = None
    """File, line and function in which it was raised."""


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """An attempt that ended other than done."""

    attempt: int
    ended: datetime
    """Naive UTC."""
    outcome: str
    """`error`, `paused`, `released`, `lost`, `retried`, …"""
    worker: int | None
    traceback: str | None


async def counts(study: Study, which: Condition) -> dict[str, int]:
    """Status -> rows, every status named."""
    text = f'SELECT "status", COUNT(*) FROM {study.main} WHERE {which.sql} GROUP BY "status"'
    found: dict[str, int] = dict(await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS))
    return {status: int(found.pop(status, 0)) for status in STATUSES} | {k: int(v) for k, v in found.items()}


async def ids(study: Study, which: Condition) -> list[int]:
    """The IDs of rows, in their order."""
    text = f'SELECT "ID" FROM {study.main} WHERE {which.sql} ORDER BY "ID"'
    return [int(row[0]) for row in await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS)]


async def any_of(study: Study, which: Condition) -> bool:
    """Whether there is any such row."""
    text = f"SELECT 1 FROM {study.main} WHERE {which.sql} LIMIT 1"
    return bool(await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS))


async def status_of(study: Study, experiment_id: int) -> str | None:
    """The status of one row; None: no such row."""
    text = f'SELECT "status" FROM {study.main} WHERE "ID" = :id'
    found = await study.fetch(study.db, text, id=experiment_id)
    return str(found[0][0]) if found else None


async def rows(
    study: Study, table: Table, which: Condition, only: Sequence[str] | None = None
) -> tuple[list[tuple[str, ColumnType]], list[Row]]:
    """The columns shown of a table, or `only` these, with their types, and its rows by ID.

    Raises:
        ParameterCombinationError: no such column; the nearest is named.
    """
    shown = {column.name: shown_type(column) for column in table.columns if column.type != "HASH"}
    columns = [(name, _known(name, shown)) for name in (shown if only is None else dict.fromkeys(only))]
    names = ", ".join(quote(name) for name, _ in columns)
    text = f'SELECT {names} FROM {quote(table.name)} WHERE {which.sql} ORDER BY "ID"'
    return columns, await study.db.fetch(*_bound(study, text, which), limit_seconds=LIMIT_SECONDS)


def _known(name: str, shown: Mapping[str, ColumnType]) -> ColumnType:
    if name not in shown:
        raise ParameterCombinationError(unknown("columns: no column", name, shown))
    return shown[name]


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


async def errors(
    study: Study, by: Callable[[str | None], Hashable], which: Condition, chunk: int = 2_000
) -> list[ErrorGroup]:
    """The rows in error by what `by` makes of their tracebacks, the most frequent first."""
    groups: dict[Hashable, tuple[list[int], str]] = {}
    last = 0
    while found := await _errors_after(study, which, last, chunk):
        for experiment_id, error in found:
            groups.setdefault(by(error), ([], error or ""))[0].append(int(experiment_id))
        last = int(found[-1][0])
    made = [
        ErrorGroup(last_line(example), len(ids), tuple(ids), example, *raised(example))
        for ids, example in groups.values()
    ]
    return sorted(made, key=lambda group: -group.count)


async def _errors_after(study: Study, which: Condition, last: int, chunk: int) -> Sequence[Row]:
    text = (
        f'SELECT "ID", "error" FROM {study.main} WHERE "status" = \'error\' AND {which.sql} AND "ID" > :last '
        'ORDER BY "ID" LIMIT :chunk'
    )
    return await study.fetch(study.db, text, last=last, chunk=chunk, **which.params)


async def attempts(study: Study, experiment_id: int) -> list[PastAttempt]:
    """What is noted of one row's attempts, in their order."""
    text = (
        f'SELECT "attempt", "ended", "outcome", "worker", "traceback" FROM {study.attempts} '
        'WHERE "experiment_id" = :id ORDER BY "attempt"'
    )
    rows = await study.fetch(study.db, text, id=experiment_id)
    return [PastAttempt(row[0], study.date(row[1]), *row[2:]) for row in rows]


def raised(error: str | None) -> tuple[str | None, str | None]:
    """The exception's class and the last frame of the user's code in a traceback; None and None of what is none.

    Where there is no such frame, it is the last of all.
    """
    lines = (error or "").splitlines()
    first = max((number for number, line in enumerate(lines) if line == _BEGIN), default=0)
    frames = [(number, match) for number in range(first, len(lines)) if (match := _FRAME.fullmatch(lines[number]))]
    if not frames:
        return None, None
    below = [line for line in lines[frames[-1][0] + 1 :] if line and not line.startswith(" ")]
    name = below[0].partition(":")[0] if below else None
    own = [match for _, match in frames if not _LIBRARY.search(match[1])]
    shown = own[-1] if own else frames[-1][1]
    return name, f"{shown[1]}:{shown[2]} in {shown[3]}"


def alike(error: str | None) -> Hashable:
    """What errors share that were raised at the same place: exception and frame, else the last line."""
    exception, frame = raised(error)
    return (exception, frame) if frame else last_line(error)


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
    "PastAttempt",
    "alike",
    "attempts",
    "counts",
    "errors",
    "ids",
    "last_line",
    "rows",
    "status_of",
    "visible",
]
