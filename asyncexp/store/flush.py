"""Writing what a worker sends, many experiments in one transaction, all of it under the fence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncexp.db.base import Transaction
from asyncexp.experiment import Experiment
from asyncexp.schema import quote
from asyncexp.store.claim import ID, Wanted, Worker, claim
from asyncexp.store.fill import bulk, wake
from asyncexp.store.study import Study

MAX_RETRY_DELAY_SECONDS = 300.0

Outcome = Literal["done", "error", "paused", "created", "released", "retried", "lost"]
LogLine = tuple[str, tuple[Any, ...]]
"""(short name of the log table, its columns' bound values behind the timestamp)."""
Key = tuple[int, int]
"""(ID, attempt): an attempt, and nothing else, is what may be written to."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ends."""

    outcome: Outcome
    error: str | None = None
    """Whole traceback, or what else there is to say."""
    delay_seconds: float | None = None
    """For rows that go back: not to be claimed before so many seconds."""
    retries: int = 0
    """For `error`: how many tries the row has beside its first one; then it is `retried` instead."""
    retry_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What an end came to: an `error` with tries left is `retried`."""

    outcome: Outcome
    delay_seconds: float = 0.0


CLOSED = {"end_date": "{now}", "_request": "NULL", "_requested_by": "NULL"}
"""What an end sets beside the status."""
DONE = End("done")
IS_DONE = Ended("done")


@dataclass(slots=True)
class Unit:
    """All that one flush writes for one attempt."""

    key: Key
    fields: dict[str, Any] | None = None
    """Column of the main table -> bound value."""
    logs: list[list[LogLine]] = field(default_factory=list)
    end: End | None = None


@dataclass(slots=True)
class Flushed:
    """What the database took."""

    refused: set[Key] = field(default_factory=set)
    """Attempts that no longer run in this worker's name: nothing of theirs was written."""
    ended: dict[Key, Ended] = field(default_factory=dict)
    claimed: list[list[Experiment]] = field(default_factory=list)
    """One list for each claim asked for, in order."""


async def flush(
    study: Study,
    tx: Transaction,
    worker: Worker,
    units: Sequence[Unit],
    claims: Sequence[Wanted],
    number: int,
) -> Flushed:
    """Writes units and takes rows, in one transaction.

    The fence is one statement: it locks those rows that still run here, in this attempt; only they
    are written to, and nobody can take them before the commit. Its number, written last, tells later
    whether a flush whose answer was lost came through; an attached worker writes it only if its row was held,
    for it cannot ask later in whose name the row ran then.
    """
    units = sorted(units, key=lambda unit: unit.key)
    held = await fence(study, tx, worker.runs_as, [unit.key for unit in units])
    kept = [unit for unit in units if unit.key in held]
    flushed = Flushed(refused={unit.key for unit in units if unit.key not in held})
    await _write_fields(study, tx, kept)
    await _write_logs(study, tx, kept)
    flushed.ended = await end_attempts(study, tx, worker.id, [unit for unit in kept if unit.end])
    for wanted in claims:
        flushed.claimed.append(await claim(study, tx, worker, wanted))
    if kept or worker.joins is None:
        await tell(study, tx, worker, number)
    return flushed


async def tell(study: Study, tx: Transaction, worker: Worker, number: int) -> None:
    """Notes that this flush came through; the last statement of its transaction.

    Who writes lives, and may have new rows: whoever took back his old ones has to look again.
    """
    text = f'UPDATE {study.workers} SET "last_flush" = :number, "rescued" = NULL WHERE "id" = :worker'
    await study.execute(tx, text, number=number, worker=worker.id)


async def fence(study: Study, tx: Transaction, worker: int, keys: Iterable[Key], *, wait: bool = True) -> set[Key]:
    """Those of the attempts that still run in the name of the worker with this id, their rows locked.

    Without `wait`, those that another transaction has locked are left out.
    """
    wanted = set(keys)
    if not wanted:
        return set()
    text = (
        f'SELECT "ID", "_attempt" FROM {study.main} WHERE {study.member(ID, ":ids")} '
        f'AND "_worker" = :worker AND "status" = \'running\' ORDER BY "ID"'
        f"{study.dialect.for_update if wait else study.dialect.skip_locked}"
    )
    ids = study.integers(sorted({key[0] for key in wanted}))
    rows = await study.fetch(tx, text, ids=ids, worker=worker)
    return {key for row in rows if (key := (row[0], row[1])) in wanted}


# ------------------------------------------------------------------------------------------ fields


async def _write_fields(study: Study, tx: Transaction, units: Iterable[Unit]) -> None:
    groups: defaultdict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for unit in units:
        if unit.fields:
            columns = tuple(sorted(unit.fields))
            groups[columns].append((unit.key[0], *(unit.fields[name] for name in columns)))
    for columns, rows in groups.items():
        await update(study, tx, columns, rows)


async def update(study: Study, tx: Transaction, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Sets `columns` of many rows of the main table, each to its own values; a row is (ID, *values)."""
    if len(rows) == 1 or study.dialect.batch == "many":
        await _update_each(study, tx, columns, rows)
    elif study.dialect.batch == "unnest":
        await _update_unnest(study, tx, columns, rows)
    else:
        await _update_join(study, tx, columns, rows)


async def _update_each(study: Study, tx: Transaction, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    sets = ", ".join(f"{quote(name)} = :v{position}" for position, name in enumerate(columns))
    sql = study.rendered(f'UPDATE {study.main} SET {sets} WHERE "ID" = :id')
    turned = [(*row[1:], row[0]) for row in rows]
    if len(turned) == 1:
        await tx.execute(sql, turned[0])
    else:
        await tx.execute_many(sql, turned)


async def _update_unnest(
    study: Study, tx: Transaction, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    new = _alias(study)
    source = unnested(new, "v", ("bigint", *map(study.array_type, columns)))
    sets = ", ".join(f'{quote(name)} = {new}."v{position}"' for position, name in enumerate(columns, 1))
    await study.execute(
        tx, f'UPDATE {study.main} SET {sets} FROM {source} WHERE "ID" = {new}."v0"', **arrays("v", rows)
    )


def unnested(alias: str, stem: str, types: Sequence[str]) -> str:
    """Rows as a source of a FROM clause, an array a column; columns are called by the stem and a number."""
    arrays = ", ".join(f"CAST(:{stem}{position} AS {kind}[])" for position, kind in enumerate(types))
    names = ", ".join(f'"{stem}{position}"' for position in range(len(types)))
    return f"unnest({arrays}) AS {alias}({names})"


def arrays(stem: str, rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """The parameters of `unnested`."""
    return {f"{stem}{position}": list(values) for position, values in enumerate(zip(*rows, strict=True))}


async def _update_join(study: Study, tx: Transaction, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    old, new = study.main, _alias(study)
    sets = ", ".join(f'{old}.{quote(name)} = {new}."v{position}"' for position, name in enumerate(columns, 1))
    text = f'UPDATE {old} JOIN {derived(new, "v", rows)} ON {old}."ID" = {new}."v0" SET {sets}'
    await tx.execute(study.rendered(text), [value for row in rows for value in row])


def derived(alias: str, stem: str, rows: Sequence[tuple[Any, ...]]) -> str:
    """Rows as a source of a FROM clause, a parameter each value; columns are called by the stem and a number."""
    width = len(rows[0])
    first = ", ".join(f':r{position} AS "{stem}{position}"' for position in range(width))
    more = "".join(
        f" UNION ALL SELECT {', '.join(f':r{row * width + p}' for p in range(width))}" for row in range(1, len(rows))
    )
    return f"(SELECT {first}{more}) AS {alias}"


def _alias(study: Study) -> str:
    """A name for new values that no table of this study can have."""
    return quote(f"{study.schema.name}_new")


# -------------------------------------------------------------------------------------------- logs


async def _write_logs(study: Study, tx: Transaction, units: Iterable[Unit]) -> None:
    tables: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for unit in units:
        for lines in unit.logs:
            for name, values in lines:
                tables[name].append((unit.key[0], *values, unit.key[1]))
    for name, rows in tables.items():
        own = [column.name for column in study.schema.logtables[name]]
        columns = ("experiment_id", "timestamp", *own, "_attempt")
        await bulk(study, tx, study.schema.logs[name].name, columns, rows)


# -------------------------------------------------------------------------------------------- ends


async def end_attempts(study: Study, tx: Transaction, worker: int, units: Sequence[Unit]) -> dict[Key, Ended]:
    """Ends attempts of the worker with this id, whose rows the transaction has locked."""
    if not units:
        return {}
    tried = [unit.key[0] for unit in units if unit.end and unit.end.retries]
    counts = await earlier(study, tx, tried, "retried")
    ended = {unit.key: _resolve(unit.end, counts.get(unit.key[0], 0)) for unit in units if unit.end}
    await _close(study, tx, [unit for unit in units if ended[unit.key].outcome in ("done", "error", "paused")], ended)
    back: defaultdict[tuple[bool, float], list[int]] = defaultdict(list)
    for unit in units:
        if (end := ended[unit.key]).outcome in ("created", "released", "retried", "lost"):
            back[(end.outcome == "created", end.delay_seconds)].append(unit.key[0])
    for (keeps, delay), ids in back.items():
        await put_back(study, tx, ids, delay_seconds=delay, keep_results=keeps)
    await _remember(study, tx, worker, units, ended)
    if back:
        await wake(study, tx)
    return ended


def _resolve(end: End, tries: int) -> Ended:
    if end is DONE:
        return IS_DONE
    if end.outcome == "error" and tries < end.retries:
        return Ended("retried", retry_delay(end, tries))
    return Ended(end.outcome, end.delay_seconds or 0.0)


def retry_delay(end: End, tries: int) -> float:
    """Seconds before the next try of a row that was tried again so often already."""
    return min(MAX_RETRY_DELAY_SECONDS, end.retry_delay_seconds * 2.0 ** min(tries, 64))


async def earlier(study: Study, tx: Transaction, ids: Sequence[int], outcome: Outcome) -> dict[int, int]:
    """How many attempts at each row ended so, since it was last retried by hand; rows without one are left out."""
    if not ids:
        return {}
    # The user's columns may have any name of these.
    attempts = study.attempts
    text = (
        f'SELECT "ID", COUNT(*) FROM {attempts} JOIN {study.main} ON "ID" = {attempts}."experiment_id" '
        f'WHERE {study.member(ID, ":ids")} AND {attempts}."outcome" = :outcome '
        f'AND {attempts}."attempt" > "_counted_from" GROUP BY "ID"'
    )
    rows = await study.fetch(tx, text, ids=study.integers(ids), outcome=outcome)
    return {row[0]: row[1] for row in rows}


async def _close(study: Study, tx: Transaction, units: Sequence[Unit], ended: dict[Key, Ended]) -> None:
    statuses: defaultdict[str, list[int]] = defaultdict(list)
    errors: list[tuple[Any, ...]] = []
    for unit in units:
        statuses[ended[unit.key].outcome].append(unit.key[0])
        if unit.end and unit.end.error:
            errors.append((unit.key[0], unit.end.error))
    if errors:
        await update(study, tx, ("error",), errors)
    closed = ", ".join(f"{quote(name)} = {value.format(now=study.dialect.now)}" for name, value in CLOSED.items())
    for status, ids in statuses.items():
        text = f'UPDATE {study.main} SET "status" = :status, {closed} WHERE {study.member(ID, ":ids")}'
        await study.execute(tx, text, status=status, ids=study.integers(ids))


async def put_back(
    study: Study,
    tx: Transaction,
    ids: Iterable[int],
    *,
    delay_seconds: float = 0.0,
    keep_results: bool = False,
) -> None:
    """Rows back to where their attempt began.

    `keep_results` is for a function that returned `CREATED`; else results go, except those of an
    attempt that continued an earlier one, and one begun from `paused` goes back there.
    """
    wait = study.dialect.later.format(seconds=":delay") if delay_seconds else "NULL"
    common = (
        '"_worker" = NULL, "end_date" = NULL, "error" = NULL, "_heartbeat" = NULL, "_progress" = NULL, '
        f'"_message" = NULL, "_request" = NULL, "_requested_by" = NULL, "_not_before" = {wait}'
    )
    if keep_results:
        sets = f"\"status\" = 'created', \"_continues\" = 'created', {common}"
    else:
        gone = [*(column.name for column in study.schema.result_columns), "start_date"]
        cleared = (f'{quote(n)} = CASE WHEN "_continues" IS NULL THEN NULL ELSE {quote(n)} END' for n in gone)
        status = "CASE WHEN \"_continues\" = 'paused' THEN 'paused' ELSE 'created' END"
        sets = ", ".join([f'"status" = {status}', *cleared, common])
    text = f"UPDATE {study.main} SET {sets} WHERE {study.member(ID, ':ids')}"
    await study.execute(tx, text, ids=study.integers(ids), delay=delay_seconds)


async def _remember(study: Study, tx: Transaction, worker: int, units: Sequence[Unit], ended: dict[Key, Ended]) -> None:
    """One row for each attempt that ended other than done."""
    told = [unit for unit in units if ended[unit.key].outcome != "done"]
    if not told:
        return
    [(now,)] = await study.fetch(tx, f"SELECT {study.dialect.now}")
    rows = [(*unit.key, worker, now, ended[unit.key].outcome, unit.end.error if unit.end else None) for unit in told]
    columns = ("experiment_id", "attempt", "worker", "ended", "outcome", "traceback")
    await bulk(study, tx, study.schema.attempts.name, columns, rows)
