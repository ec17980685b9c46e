"""Taking rows: one statement for all free slots, where the database can."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from asyncexp.db.base import Row, Transaction
from asyncexp.errors import DatabaseError
from asyncexp.experiment import Experiment, ExperimentId
from asyncexp.schema import RANDOM_INDEX, quote
from asyncexp.store.fill import KeyRow, ensure
from asyncexp.store.study import Condition, Study

ID = quote("ID")
EXPERIMENT = quote("experiment_id")


@dataclass(frozen=True, slots=True)
class Worker:
    """In whose name rows are taken and written."""

    id: int
    name: str
    machine: str
    joins: int | None = None
    """The worker that runs the experiment, for one attached to it: the row is in that one's name."""

    @property
    def runs_as(self) -> int:
        """The `_worker` of the rows that it may write to."""
        return self.id if self.joins is None else self.joins


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows, and how many at most."""

    count: int
    status: str = "created"
    where: Condition = field(default_factory=Condition)
    ids: tuple[int, ...] | None = None
    early: bool = False
    """Take rows whose `_not_before` lies ahead, too."""
    above: int = 0
    """Begin the search behind this ID, and come back to the start if that does not suffice."""
    random_from: bytes | None = None
    """Begin at this key hash and follow their order, wrapping around."""
    since: Any = None
    """Only rows whose `end_date` lies before (a bound date): what this very call paused is passed over."""
    add: KeyRow | None = None
    """Add this row first if it is missing, and take exactly it."""

    @property
    def shape(self) -> tuple[object, ...]:
        """All that the text of a claim depends on."""
        ids = None if self.ids is None else bool(self.ids)
        begins = (bool(self.above), self.random_from is not None)
        return (self.status, self.where.sql, ids, self.early, *begins, self.since is not None)


async def claim(study: Study, tx: Transaction, worker: Worker, wanted: Wanted) -> list[Experiment]:
    """Takes up to `wanted.count` rows, in the order of their IDs unless random.

    Raises:
        DatabaseError: the row to `add` exists and is not to be had.
    """
    added = wanted.add
    if added is not None:
        wanted = replace(wanted, ids=(await ensure(study, tx, added),), early=True, add=None)
    taken: list[Experiment] = []
    for order, part in passes(wanted):
        left = wanted.count - len(taken)
        if left > 0:
            taken += await _take(study, tx, worker, wanted, left, order, part)
    if added is not None and not taken:
        raise DatabaseError(
            "This experiment exists already, and another is about to take or change it. Nothing was run."
        )
    return taken


async def any_left(study: Study, wanted: Wanted) -> bool:
    """Whether there are rows that `claim` would take if nobody else had them locked."""
    text = f"SELECT 1 FROM {study.main} WHERE {filtered(study, wanted, '1 = 1')} LIMIT 1"
    return bool(await study.fetch(study.db, text, **_sought(study, wanted)))


def passes(wanted: Wanted) -> list[tuple[str, str]]:
    if wanted.random_from is not None:
        return [('"_key_hash"', '"_key_hash" >= :random_from'), ('"_key_hash"', '"_key_hash" < :random_from')]
    if wanted.above:
        return [('"ID"', '"ID" > :above'), ('"ID"', '"ID" <= :above')]
    return [('"ID"', "1 = 1")]


async def _take(
    study: Study, tx: Transaction, worker: Worker, wanted: Wanted, count: int, order: str, part: str
) -> list[Experiment]:
    values = parameters(study, worker, wanted, count)
    table = study.main
    if wanted.random_from is not None and not wanted.where.params:
        # Left to itself MariaDB reads all open rows from the lowest hash on.
        index = quote(RANDOM_INDEX.name(study.schema.main.name))
        table = study.dialect.by_index.format(table=table, index=index)
    candidates = f"FROM {table} WHERE {filtered(study, wanted, part)} ORDER BY {order} LIMIT :count"
    take = _take_returning if study.dialect.returning else _take_in_two
    return experiments(study, worker, wanted, await take(study, tx, candidates, values, changes(study, wanted.status)))


def parameters(study: Study, worker: Worker, wanted: Wanted, count: int) -> dict[str, Any]:
    """What the statements of a claim are given, for so many rows at most."""
    return dict(
        _sought(study, wanted),
        above=wanted.above,
        random_from=wanted.random_from,
        count=count,
        worker=worker.id,
        name=worker.name,
        machine=worker.machine,
    )


def _sought(study: Study, wanted: Wanted) -> dict[str, Any]:
    ids = study.integers(wanted.ids) if wanted.ids else None
    return dict(wanted.where.params, since=wanted.since, ids=ids)


def filtered(study: Study, wanted: Wanted, part: str) -> str:
    parts = [f"\"status\" = '{wanted.status}'", part, wanted.where.sql]
    if not wanted.early:
        parts.append(f'("_not_before" IS NULL OR "_not_before" <= {study.dialect.now})')
    if wanted.ids is not None:
        parts.append(study.member(ID, ":ids") if wanted.ids else "1 = 0")
    if wanted.since is not None:
        parts.append('("end_date" IS NULL OR "end_date" <= :since)')
    return " AND ".join(f"({part})" for part in parts if part != "1 = 1")


def changes(study: Study, status: str) -> str:
    now = study.dialect.now
    begun = f'"start_date" = {now}' if status == "created" else "\"_continues\" = 'paused'"
    return (
        f'"status" = \'running\', "_attempt" = "_attempt" + 1, "_worker" = :worker, {begun}, "end_date" = NULL, '
        '"error" = NULL, "name" = :name, "machine" = :machine, "_heartbeat" = NULL, "_progress" = NULL, '
        '"_message" = NULL, "_not_before" = NULL, "_request" = NULL, "_requested_by" = NULL'
    )


def columns(study: Study, attempt: str = '"_attempt"') -> str:
    return ", ".join(['"ID"', attempt, '"_continues"', *map(quote, study.schema.key_names)])


async def _take_returning(
    study: Study, tx: Transaction, candidates: str, values: dict[str, Any], changes: str
) -> list[Row]:
    # A sub-select with LIMIT inside IN may be run once a row by PostgreSQL's planner; a materialized one is not.
    # Its names are none that a table or a column of the user's can have.
    picked = quote(f"{study.schema.name}_picked")
    text = (
        f'WITH {picked} AS MATERIALIZED (SELECT "ID" AS "_picked" {candidates}{study.dialect.skip_locked}) '
        f'UPDATE {study.main} SET {changes} FROM {picked} WHERE "ID" = "_picked" RETURNING {columns(study)}'
    )
    return await study.fetch(tx, text, **values)


async def _take_in_two(
    study: Study, tx: Transaction, candidates: str, values: dict[str, Any], changes: str
) -> list[Row]:
    next_attempt = '"_attempt" + 1'
    select = f"SELECT {columns(study, next_attempt)} {candidates}{study.dialect.skip_locked}"
    rows = await study.fetch(tx, select, **values)
    if rows:
        taken = study.integers(row[0] for row in rows)
        update = f"UPDATE {study.main} SET {changes} WHERE {study.member(ID, ':taken')}"
        await study.execute(tx, update, **values, taken=taken)
    return rows


def experiments(study: Study, worker: Worker, wanted: Wanted, rows: list[Row]) -> list[Experiment]:
    """Rows as `columns` gives them, in the order of their IDs unless that is to be random."""
    ordered = rows if wanted.random_from is not None else sorted(rows, key=itemgetter(0))
    return [_experiment(study, worker, row) for row in ordered]


def _experiment(study: Study, worker: Worker, row: Row) -> Experiment:
    keys = {
        name: decode(raw) for name, decode, raw in zip(study.schema.key_names, study.key_decoders, row[3:], strict=True)
    }
    return Experiment(ExperimentId(row[0], row[1], worker.id), keys, row[2])
