"""A flush in as few round trips as the database allows: one where a WITH query may change rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncexp.db.base import Row, Transaction
from asyncexp.schema import quote
from asyncexp.store.claim import Wanted, Worker, changes, claim, columns, experiments, filtered, parameters, passes
from asyncexp.store.flush import CLOSED, IS_DONE, Flushed, Unit, arrays, derived, flush, tell, unnested
from asyncexp.store.study import Study


class NotAllHeld(Exception):
    """Some of the attempts no longer run here: nothing was written."""


async def store(
    study: Study,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
    *,
    limit_seconds: float = 30.0,
) -> Flushed:
    """As `flush`, in a transaction of its own; in as few trips as the database allows if nothing needs more.

    Raises:
        Outage, DataRefused, MissingTable, DuplicateKey, DatabaseQueryError: as `Database.run`.
    """
    fits = _fits(units, claims)
    if fits and study.dialect.changing_queries:
        return await _store_alone(study, worker, units, claims, number, limit_seconds)
    what: dict[str, Any] = {"worker": worker, "units": units, "claims": claims, "number": number}
    if fits and units and study.dialect.batch == "join":
        with suppress(NotAllHeld):
            return await study.db.run(partial(_flush_counted, study, **what), limit_seconds=limit_seconds)
    return await study.db.run(partial(flush, study, **what), limit_seconds=limit_seconds)


async def _store_alone(
    study: Study,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
    limit_seconds: float,
) -> Flushed:
    """One statement, which commits by itself."""
    units = sorted(units, key=lambda unit: unit.key)
    wanted = claims[0] if claims else None
    shape = _shape(worker, units, wanted)
    values: dict[str, Any] = {"number": number, "told": worker.id}
    if units:
        values |= arrays("_sent", _rows(shape.names, units, flags=bool(shape.names)))
        values["runs_as"] = worker.runs_as
    if wanted is not None:
        values |= parameters(study, worker, wanted, wanted.count)
    text = study.composed(shape, lambda: _text(study, shape, wanted))
    rows = await study.db.alone(*study.statement(text, values), limit_seconds=limit_seconds)
    return _flushed(study, worker, units, claims, rows)


async def _flush_counted(
    study: Study,
    tx: Transaction,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
) -> Flushed:
    """Writes all units by one UPDATE that counts the rows; what it could not write was nobody's to write.

    Raises:
        NotAllHeld: which is to undo it, for only a look at the rows themselves can tell whose they are.
    """
    units = sorted(units, key=lambda unit: unit.key)
    names = _names(units)
    flags = bool(names) and any(unit.end for unit in units)
    rows = list(_rows(names, units, flags=flags))
    text = _join(study, worker, names, rows, flags=flags)
    matched = await tx.execute(study.rendered(text), [value for row in rows for value in row])
    if matched != len(units):
        raise NotAllHeld
    flushed = Flushed(ended={unit.key: IS_DONE for unit in units if unit.end})
    for wanted in claims:
        flushed.claimed.append(await claim(study, tx, worker, wanted))
    await tell(study, tx, worker, number)
    return flushed


def _fits(units: Sequence[Unit], claims: Sequence[Wanted]) -> bool:
    """Whether one UPDATE can write all units, and no step waits for another's answer."""
    if not (units or claims) or len(claims) > 1 or any(claim.add is not None for claim in claims):
        return False
    if len({frozenset(unit.fields) for unit in units if unit.fields}) > 1:
        return False
    return all(
        not unit.logs and (bool(unit.fields) if unit.end is None else unit.end.outcome == "done") for unit in units
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """All that the text of the statement depends on."""

    writes: bool
    names: tuple[str, ...]
    """Columns that some of the rows set; empty: all of them end and do nothing else."""
    claim: tuple[object, ...]
    joins: bool


def _names(units: Sequence[Unit]) -> tuple[str, ...]:
    return tuple(sorted(next((unit.fields for unit in units if unit.fields), ())))


def _shape(worker: Worker, units: Sequence[Unit], wanted: Wanted | None) -> Shape:
    return Shape(
        writes=bool(units),
        names=_names(units),
        claim=() if wanted is None else wanted.shape,
        joins=worker.joins is not None,
    )


# ------------------------------------------------------------------------------------------ the text


def _text(study: Study, shape: Shape, wanted: Wanted | None) -> str:
    """The WITH query. Its names are none that a table or a column of the user's can have."""
    parts, selects = [], []
    if shape.writes:
        nulls = ", NULL" * (3 + len(study.schema.key_names))
        parts.append(f"{_name(study, 'written')} AS ({_write(study, shape)})")
        selects.append(f'SELECT array_agg("_sent0"), array_agg("_sent1"){nulls} FROM {_name(study, "written")}')
    if wanted is not None:
        parts += _take(study, wanted)
        selects.append(f"SELECT NULL::bigint[], NULL::bigint[], {columns(study)} FROM {_name(study, 'taken')}")
    parts.append(f"{_name(study, 'told')} AS ({_tell(study, shape)})")
    return f"WITH {', '.join(parts)} {' UNION ALL '.join(selects)}"


def _name(study: Study, of: str) -> str:
    return quote(f"{study.schema.name}_{of}")


def _write(study: Study, shape: Shape) -> str:
    """One UPDATE of all rows, which is their fence as well: only those match that still run here, in this attempt.

    Each row is looked up by its ID, in the order that they are sent in, which is that of all other statements.
    A row is written once: a second UPDATE of the same statement would not see the first. Results, ends and both have
    one text, for it takes a server milliseconds to learn of another.
    """
    sent, flags = _name(study, "sent"), bool(shape.names)
    types = ["bigint", "bigint", *(["boolean", "boolean"] if flags else []), *map(study.array_type, shape.names)]
    return (
        f"UPDATE {study.main} SET {_sets(study, shape.names, sent, flags=flags)} FROM {unnested(sent, '_sent', types)} "
        f'WHERE "ID" = {sent}."_sent0" AND {fence(sent)} RETURNING {sent}."_sent0", {sent}."_sent1"'
    )


def _join(study: Study, worker: Worker, names: Sequence[str], rows: Sequence[tuple[Any, ...]], *, flags: bool) -> str:
    """The same UPDATE where a list of rows is a derived table; that comes first, or all running rows might be read."""
    sent = _name(study, "sent")
    holds = fence(sent).replace(":runs_as", str(worker.runs_as))
    table = f'{study.main} ON "ID" = {sent}."_sent0" AND {holds}'
    return f"UPDATE {derived(sent, '_sent', rows)} STRAIGHT_JOIN {table} SET {_sets(study, names, sent, flags=flags)}"


def _sets(study: Study, names: Sequence[str], sent: str, *, flags: bool) -> str:
    """The columns named; without names, how an attempt ends. With flags both, where `_sent3` and `_sent2` say so."""
    first = 4 if flags else 2
    fields = [(name, f'{sent}."_sent{place}"', "_sent3") for place, name in enumerate(names, first)]
    closed = [
        (name, value.format(now=study.dialect.now), "_sent2") for name, value in {"status": "'done'", **CLOSED}.items()
    ]
    if not flags:
        return ", ".join(f"{quote(name)} = {value}" for name, value, _ in fields or closed)
    return ", ".join(
        f'{quote(name)} = CASE WHEN {sent}."{flag}" THEN {value} ELSE {quote(name)} END'
        for name, value, flag in (*closed, *fields)
    )


def fence(sent: str) -> str:
    """SQL for: the attempt `_sent1` of `sent` still runs here."""
    return f'"_attempt" = {sent}."_sent1" AND "_worker" = :runs_as AND "status" = \'running\''


def _take(study: Study, wanted: Wanted) -> list[str]:
    """Rows to run, by all passes; one that has nothing left to find does not even begin."""
    left, parts, found = ":count", [], []
    for place, (order, part) in enumerate(passes(wanted)):
        picked = _name(study, f"picked{place}")
        parts.append(
            f'{picked} AS MATERIALIZED (SELECT "ID" AS "_picked" FROM {study.main} '
            f"WHERE {filtered(study, wanted, part)} ORDER BY {order} LIMIT {left}{study.dialect.skip_locked})"
        )
        found.append(f'SELECT "_picked" FROM {picked}')
        left += f" - (SELECT COUNT(*) FROM {picked})"
    parts.append(
        f"{_name(study, 'taken')} AS (UPDATE {study.main} SET {changes(study, wanted.status)} "
        f"FROM ({' UNION ALL '.join(found)}) AS {_name(study, 'picked')} "
        f'WHERE "ID" = "_picked" RETURNING {columns(study)})'
    )
    return parts


def _tell(study: Study, shape: Shape) -> str:
    """The number of the flush; one who joined writes it only if the row was still to be written to."""
    text = f'UPDATE {study.workers} SET "last_flush" = :number, "rescued" = NULL WHERE "id" = :told'
    return f"{text} AND EXISTS (SELECT 1 FROM {_name(study, 'written')})" if shape.joins else text


# ------------------------------------------------------------------------------- what goes in and out


def _rows(names: Sequence[str], units: Sequence[Unit], *, flags: bool) -> Iterator[tuple[Any, ...]]:
    """For each unit: ID, attempt, with flags whether it ends and whether it sets fields, and their values."""
    nothing = (None,) * len(names)
    for unit in units:
        values = map(unit.fields.__getitem__, names) if unit.fields else nothing
        yield (*unit.key, *((unit.end is not None, bool(unit.fields)) if flags else ()), *values)


def _flushed(
    study: Study, worker: Worker, units: Sequence[Unit], claims: Sequence[Wanted], rows: Sequence[Row]
) -> Flushed:
    """One row has IDs and attempts of what was written, in two arrays; the others are the rows taken."""
    held = {key for row in rows if row[0] for key in zip(row[0], row[1], strict=True)}
    flushed = Flushed(refused={unit.key for unit in units if unit.key not in held})
    flushed.ended = {unit.key: IS_DONE for unit in units if unit.end and unit.key in held}
    for wanted in claims:
        flushed.claimed.append(experiments(study, worker, wanted, [row[2:] for row in rows if row[2] is not None]))
    return flushed
