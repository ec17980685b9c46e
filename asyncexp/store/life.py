"""What changes rows from outside a run: reset, delete, retry."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from asyncexp.db.base import Transaction
from asyncexp.schema import quote
from asyncexp.store.claim import EXPERIMENT, ID
from asyncexp.store.fill import KeyRow, count_anew, end_turn, insert, take_turn, wake
from asyncexp.store.flush import put_back
from asyncexp.store.study import Condition, Study
from asyncexp.store.workers import raise_counter

CHUNK = 5_000
LIMIT_SECONDS = 600.0


async def reset(study: Study, which: Condition) -> int:
    """Deletes rows with all that belongs to them and creates them anew under new IDs, in one transaction."""

    async def renew(tx: Transaction, ids: Sequence[int]) -> None:
        keys = ", ".join(map(quote, study.schema.key_names))
        text = f'SELECT "_key_hash", {keys} FROM {study.main} WHERE {study.member(ID, ":ids")} ORDER BY "ID"'
        rows = await study.fetch(tx, text, ids=study.integers(ids))
        await _delete(study, tx, ids)
        await insert(study, tx, [KeyRow(bytes(row[0]), tuple(row[1:])) for row in rows])

    return await _for_all(study, which, renew)


async def delete(study: Study, which: Condition) -> int:
    """Deletes rows with all that belongs to them, in one transaction."""
    return await _for_all(study, which, lambda tx, ids: _delete(study, tx, ids))


async def retry(study: Study, which: Condition) -> int:
    """Puts rows in error back under the same ID; their attempts so far no longer count."""

    async def back(tx: Transaction, ids: Sequence[int]) -> None:
        text = f'UPDATE {study.main} SET "_counted_from" = "_attempt" WHERE {study.member(ID, ":ids")}'
        await study.execute(tx, text, ids=study.integers(ids))
        await _hide_last_attempts(study, tx, ids)
        await put_back(study, tx, ids)

    return await _for_all(study, which, back)


async def _hide_last_attempts(study: Study, tx: Transaction, ids: Sequence[int]) -> None:
    current = f'SELECT "_attempt" FROM {study.main} WHERE {study.main}."ID" = {study.attempts}."experiment_id"'
    text = (
        f"UPDATE {study.attempts} SET \"outcome\" = 'retried' "
        f'WHERE {study.member(EXPERIMENT, ":ids")} AND "attempt" = ({current})'
    )
    await study.execute(tx, text, ids=study.integers(ids))


async def _for_all(
    study: Study, which: Condition, change: Callable[[Transaction, Sequence[int]], Coroutine[Any, Any, None]]
) -> int:
    """Locks the rows in the order of their IDs and changes them a chunk at a time, all or none."""

    async def work(tx: Transaction) -> int:
        await take_turn(study, tx)
        text = f'SELECT "ID" FROM {study.main} WHERE {which.sql} ORDER BY "ID"{study.dialect.for_update}'
        ids = [int(row[0]) for row in await study.fetch(tx, text, **which.params)]
        robbed: set[int] = set()
        for chunk in _chunks(ids):
            robbed |= await _runners(study, tx, chunk)
            await change(tx, chunk)
        await raise_counter(study, tx, sorted(robbed))
        if ids:
            await wake(study, tx)
        return len(ids)

    try:
        changed = await study.db.run(work, limit_seconds=LIMIT_SECONDS)
    finally:
        await end_turn(study)
    await count_anew(study, changed)
    return changed


async def _runners(study: Study, tx: Transaction, ids: Sequence[int]) -> set[int]:
    """The workers that run any of these rows."""
    text = f'SELECT DISTINCT "_worker" FROM {study.main} WHERE {study.member(ID, ":ids")} AND "status" = \'running\''
    rows = await study.fetch(tx, text, ids=study.integers(ids))
    return {row[0] for row in rows if row[0] is not None}


async def _delete(study: Study, tx: Transaction, ids: Sequence[int]) -> None:
    bound = study.integers(ids)
    for table in (*study.schema.logs.values(), study.schema.codecarbon, study.schema.attempts):
        text = f"DELETE FROM {quote(table.name)} WHERE {study.member(EXPERIMENT, ':ids')}"
        await study.execute(tx, text, ids=bound)
    await study.execute(tx, f"DELETE FROM {study.main} WHERE {study.member(ID, ':ids')}", ids=bound)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def selection(study: Study, names: Sequence[str], where: Condition, ids: Sequence[int] | None) -> Condition:
    """Rows of these statuses, with these values and IDs; without a status, all but the running ones."""
    params = dict(where.params)
    parts = [where.sql]
    if names:
        marks = []
        for position, name in enumerate(names):
            params[f"status{position}"] = name
            marks.append(f":status{position}")
        parts.append(f'"status" IN ({", ".join(marks)})')
    else:
        parts.append("\"status\" <> 'running'")
    if ids is not None:
        parts.append(study.member(ID, ":ids") if ids else "1 = 0")
        params["ids"] = study.integers(ids) if ids else None
    return Condition(" AND ".join(f"({part})" for part in parts), params)
