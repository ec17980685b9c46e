"""A flush as one statement, where a WITH query may change rows: one round trip instead of up to ten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncexp.db.base import Row
from asyncexp.schema import quote
from asyncexp.store.claim import Wanted, Worker, changes, columns, experiments, filtered, parameters, passes
from asyncexp.store.flush import CLOSED, IS_DONE, Flushed, Unit, arrays, flush, unnested
from asyncexp.store.study import Study


async def store(
    study: Study,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
    *,
    limit_seconds: float = 30.0,
) -> Flushed:
    """As `flush`, in a transaction of its own; one statement if the database can and nothing needs several.

    Raises:
        Outage, DataRefused, MissingTable, DuplicateKey, DatabaseQueryError: as `Database.run`.
    """
    if not (study.dialect.changing_queries and _fits(units, claims)):
        work = partial(flush, study, worker=worker, units=units, claims=claims, number=number)
        return await study.db.run(work, limit_seconds=limit_seconds)
    units = sorted(units, key=lambda unit: unit.key)
    wanted = claims[0] if claims else None
    shape = _shape(worker, units, wanted)
    values = {"number": number, "told": worker.id}
    if units:
        values |= {**_sent(shape.names, units), "runs_as": worker.runs_as}
    if wanted is not None:
        values |= parameters(study, worker, wanted, wanted.count)
    text = study.composed(shape, lambda: _text(study, shape, wanted))
    rows = await study.db.alone(*study.statement(text, values), limit_seconds=limit_seconds)
    return _flushed(study, worker, units, claims, rows)


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


def _shape(worker: Worker, units: Sequence[Unit], wanted: Wanted | None) -> Shape:
    return Shape(
        writes=bool(units),
        names=tuple(sorted(next((unit.fields for unit in units if unit.fields), ()))),
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
    sent = _name(study, "sent")
    closed = {"status": "'done'", **{name: value.format(now=study.dialect.now) for name, value in CLOSED.items()}}
    fields = {name: f'{sent}."_sent{position}"' for position, name in enumerate(shape.names, 4)}
    sets = [f"{quote(name)} = {value}" for name, value in closed.items()]
    if fields:
        sets = [*_sets(closed, f'{sent}."_sent2"'), *_sets(fields, f'{sent}."_sent3"')]
    source = unnested(sent, "_sent", ("bigint", "bigint", "boolean", "boolean", *map(study.array_type, shape.names)))
    return (
        f'UPDATE {study.main} SET {", ".join(sets)} FROM {source} WHERE "ID" = {sent}."_sent0" AND {fence(sent)} '
        f'RETURNING {sent}."_sent0", {sent}."_sent1"'
    )


def _sets(values: Mapping[str, str], flag: str) -> list[str]:
    """Sets columns of those rows that have the flag."""
    return [f"{quote(name)} = CASE WHEN {flag} THEN {value} ELSE {quote(name)} END" for name, value in values.items()]


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


def _sent(names: Sequence[str], units: Sequence[Unit]) -> dict[str, Any]:
    """An array for each: IDs, attempts, whether it ends, whether it sets fields, and their values."""
    nothing = (None,) * len(names)
    return arrays(
        "_sent",
        (
            (
                *unit.key,
                unit.end is not None,
                bool(unit.fields),
                *(map(unit.fields.__getitem__, names) if unit.fields else nothing),
            )
            for unit in units
        ),
    )


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
