"""A flush as one statement, where a WITH query may change rows: three round trips instead of up to ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncexp.db.base import Row, Transaction
from asyncexp.schema import quote
from asyncexp.store.claim import Wanted, Worker, changes, columns, experiments, filtered, parameters, passes
from asyncexp.store.flush import CLOSED, IS_DONE, Flushed, Unit, flush, unnested
from asyncexp.store.study import Study


async def flush_together(
    study: Study,
    tx: Transaction,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
) -> Flushed:
    """As `flush`; in one statement if the database can and nothing is to be written that needs several."""
    if not (study.dialect.changing_queries and _fits(units, claims)):
        return await flush(study, tx, worker, units, claims, number)
    query = _Query(study)
    names = sorted(next((unit.fields for unit in units if unit.fields), {}))
    _hold(query, worker, sorted(units, key=lambda unit: unit.key), names)
    if names:
        _write(query, names)
    if any(unit.end for unit in units):
        _close(query)
    if claims:
        _take(query, worker, claims[0])
    _tell(query, worker, number)
    return _flushed(study, worker, units, claims, await query.run(tx))


def _fits(units: Sequence[Unit], claims: Sequence[Wanted]) -> bool:
    """Whether no row is written twice, all values are for the same columns, and no step waits for another's answer."""
    if len(claims) > 1 or any(claim.add is not None for claim in claims):
        return False
    if len({frozenset(unit.fields) for unit in units if unit.fields}) > 1:
        return False
    return all(
        not unit.logs and (unit.end is None or (unit.end.outcome == "done" and not unit.fields)) for unit in units
    )


@dataclass(slots=True)
class _Query:
    """A WITH query under construction. Its names are none that a table or a column of the user's can have."""

    study: Study
    parts: list[str] = field(default_factory=list)
    selects: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def name(self, of: str) -> str:
        return quote(f"{self.study.schema.name}_{of}")

    def add(self, of: str, text: str, *, kept: bool = False) -> None:
        self.parts.append(f"{self.name(of)} AS {'MATERIALIZED ' if kept else ''}({text})")

    async def run(self, tx: Transaction) -> list[Row]:
        text = f"WITH {', '.join(self.parts)} {' UNION ALL '.join(self.selects)}"
        return await self.study.fetch(tx, text, **self.values)


def _hold(query: _Query, worker: Worker, units: Sequence[Unit], names: Sequence[str]) -> None:
    """Locks the rows of those attempts that still run here, in the order of their IDs; what is sent goes along.

    So each row is looked up by its ID from there: a join of two lists would compare each with each.
    """
    study, sent = query.study, query.name("sent")
    nothing = (None,) * len(names)
    rows = [
        (
            *unit.key,
            unit.end is not None,
            bool(unit.fields),
            *(map(unit.fields.__getitem__, names) if unit.fields else nothing),
        )
        for unit in units
    ]
    types = ("bigint", "bigint", "boolean", "boolean", *map(study.array_type, names))
    source, values = unnested(sent, "_sent", types, rows)
    sent_values = "".join(f', {sent}."_sent{position}"' for position in range(2, len(types)))
    text = (
        f'SELECT "ID" AS "_held", {sent}."_sent1" AS "_held_attempt"{sent_values} '
        f'FROM {study.main} JOIN {source} ON "ID" = {sent}."_sent0" WHERE {fence(sent)} '
        f'ORDER BY "ID"{study.dialect.for_update} OF {study.main}'
    )
    query.add("held", text, kept=True)
    query.values |= {**values, "runs_as": worker.runs_as}
    nulls = ", NULL" * (1 + len(study.schema.key_names))
    query.selects.append(f'SELECT FALSE, "_held", "_held_attempt"{nulls} FROM {query.name("held")}')


def fence(sent: str) -> str:
    """SQL for: the attempt `_sent1` of `sent` still runs here."""
    return f'"_attempt" = {sent}."_sent1" AND "_worker" = :runs_as AND "status" = \'running\''


def _write(query: _Query, names: Sequence[str]) -> None:
    study = query.study
    sets = ", ".join(f'{quote(name)} = "_sent{position}"' for position, name in enumerate(names, 4))
    query.add("written", f'UPDATE {study.main} SET {sets} FROM {query.name("held")} WHERE "ID" = "_held" AND "_sent3"')


def _close(query: _Query) -> None:
    study = query.study
    text = (
        f"UPDATE {study.main} SET \"status\" = 'done', {CLOSED.format(now=study.dialect.now)} "
        f'FROM {query.name("held")} WHERE "ID" = "_held" AND "_sent2"'
    )
    query.add("closed", text)


def _take(query: _Query, worker: Worker, wanted: Wanted) -> None:
    """Rows to run, by all passes; one that has nothing left to find does not even begin."""
    study = query.study
    left, found = ":count", []
    for place, (order, part) in enumerate(passes(wanted)):
        picked = f"picked{place}"
        text = (
            f'SELECT "ID" AS "_picked" FROM {study.main} WHERE {filtered(study, wanted, part)} ORDER BY {order} '
            f"LIMIT {left}{study.dialect.skip_locked}"
        )
        query.add(picked, text, kept=True)
        found.append(f'SELECT "_picked" FROM {query.name(picked)}')
        left += f" - (SELECT COUNT(*) FROM {query.name(picked)})"
    text = (
        f"UPDATE {study.main} SET {changes(study, wanted.status)} FROM ({' UNION ALL '.join(found)}) "
        f'AS {query.name("picked")} WHERE "ID" = "_picked" RETURNING {columns(study)}'
    )
    query.add("taken", text)
    query.values |= parameters(study, worker, wanted, wanted.count)
    query.selects.append(f"SELECT TRUE, {columns(study)} FROM {query.name('taken')}")


def _tell(query: _Query, worker: Worker, number: int) -> None:
    """The number of the flush; one who joined writes it only if the row was held."""
    text = f'UPDATE {query.study.workers} SET "last_flush" = :number, "rescued" = NULL WHERE "id" = :told'
    if worker.joins is not None:
        text += f" AND EXISTS (SELECT 1 FROM {query.name('held')})"
    query.add("told", text)
    query.values |= {"number": number, "told": worker.id}


def _flushed(
    study: Study, worker: Worker, units: Sequence[Unit], claims: Sequence[Wanted], rows: Sequence[Row]
) -> Flushed:
    held = {(row[1], row[2]) for row in rows if not row[0]}
    flushed = Flushed(refused={unit.key for unit in units if unit.key not in held})
    flushed.ended = {unit.key: IS_DONE for unit in units if unit.end and unit.key in held}
    for wanted in claims:
        flushed.claimed.append(experiments(study, worker, wanted, [row[1:] for row in rows if row[0]]))
    return flushed
