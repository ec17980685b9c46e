"""Log tables line by line: the last lines, a page after the other, and what is new; never a whole table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asyncexp.db.base import Row
from asyncexp.schema import Column, Table, quote
from asyncexp.store.claim import EXPERIMENT, ID
from asyncexp.store.read import LIMIT_SECONDS, shown_type, visible
from asyncexp.store.study import Condition, Study
from asyncexp.values import decoder

CHUNK = 5_000
LATE_SECONDS = 60.0
"""A line can be seen so much later than one of a higher ID: its transaction took its IDs, and then took its time."""
WINDOW = 10_000
"""Who begins to read looks for IDs that are still to come among so many of the last."""


@dataclass(frozen=True, slots=True)
class LogMark:
    """How far a log table was read. IDs that others have taken and not yet committed lie below, too."""

    top: int
    floor: int
    """All IDs up to here have been seen, or will never be."""
    seen: frozenset[int]
    """IDs above the floor."""
    holes: tuple[tuple[float, int], ...]
    """The first ID that was missing, and since when: for each look that missed any."""


def chosen(study: Study, table: Table, ids: Sequence[int] | None, *, all_attempts: bool) -> Condition:
    """Lines of these experiments, or of all, without those of attempts that do not count."""
    which = Condition()
    if ids is not None:
        which = Condition(study.member(EXPERIMENT, ":ids"), {"ids": study.integers(ids)}) if ids else Condition("1 = 0")
    return which if all_attempts else visible(study, table, which)


async def last_lines(study: Study, table: Table, which: Condition, most: int) -> list[dict[str, Any]]:
    """The lines with the highest IDs, in the order of their IDs."""
    found = await _lines(study, table, which, f"ORDER BY {_order(which)} DESC LIMIT :most", most=most)
    return found[::-1]


async def lines_after(study: Study, table: Table, which: Condition, after: int, most: int) -> list[dict[str, Any]]:
    """The lines that follow an ID."""
    rest = f"AND {ID} > :after ORDER BY {_order(which)} LIMIT :most"
    return await _lines(study, table, which, rest, after=after, most=most)


def _order(which: Condition) -> str:
    """Some experiments' lines are to be found by the index of experiments, not by going through all in their order."""
    return f"{ID} + 0" if "ids" in which.params else ID


async def begun(study: Study, table: Table) -> LogMark:
    """The mark of who begins to read: all that can be seen now has been."""
    text = f"SELECT {ID} FROM {quote(table.name)} ORDER BY {ID} DESC LIMIT :most"
    found = [int(row[0]) for row in await study.fetch(study.db, text, most=WINDOW)]
    below = found[-1] - 1 if len(found) == WINDOW else 0
    return _moved(LogMark(below, below, frozenset(), ()), found)


async def new_lines(
    study: Study, table: Table, which: Condition, mark: LogMark
) -> tuple[list[dict[str, Any]], LogMark]:
    """What was committed since a mark, by ID, and the mark of now."""
    text = f"SELECT {ID} FROM {quote(table.name)} WHERE {ID} > :floor"
    rows = await study.db.fetch(*study.statement(text, {"floor": mark.floor}), limit_seconds=LIMIT_SECONDS)
    fresh = sorted({int(row[0]) for row in rows} - mark.seen)
    found: list[dict[str, Any]] = []
    for start in range(0, len(fresh), CHUNK):
        part = study.integers(fresh[start : start + CHUNK])
        rest = f"AND {study.member(ID, ':fresh')} ORDER BY {ID}"
        found += await _lines(study, table, which, rest, fresh=part)
    return found, _moved(mark, fresh)


def _moved(mark: LogMark, fresh: Sequence[int]) -> LogMark:
    """The mark when these IDs have been seen, too."""
    now = time.monotonic()
    holes = [hole for hole in mark.holes if hole[0] > now - LATE_SECONDS]
    seen = mark.seen | set(fresh)
    top = max([mark.top, *fresh])
    missing = next(_missing(mark.top, top, seen), None)
    if missing is not None:
        holes.append((now, missing))
    floor = min([top, *(first - 1 for _, first in holes)])
    return LogMark(top, floor, frozenset(each for each in seen if each > floor), tuple(holes))


def _missing(below: int, top: int, seen: set[int] | frozenset[int]) -> Iterator[int]:
    return (each for each in range(below + 1, top + 1) if each not in seen)


async def _lines(study: Study, table: Table, which: Condition, rest: str, **values: Any) -> list[dict[str, Any]]:
    columns = [column for column in table.columns if column.type != "HASH"]
    names = ", ".join(quote(column.name) for column in columns)
    text = f"SELECT {names} FROM {quote(table.name)} WHERE {which.sql} {rest}"
    bound = study.statement(text, {**which.params, **values})
    return decoded(columns, await study.db.fetch(*bound, limit_seconds=LIMIT_SECONDS))


def decoded(columns: Sequence[Column], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as dicts, each value as Python has it."""
    decoders = [(column.name, decoder(shown_type(column))) for column in columns]
    return [{name: decode(raw) for (name, decode), raw in zip(decoders, row, strict=True)} for row in rows]
