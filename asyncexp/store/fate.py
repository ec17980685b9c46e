"""What became of attempts that a worker lost, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncexp.store.claim import EXPERIMENT, ID
from asyncexp.store.flush import Key
from asyncexp.store.study import Study


async def fates(study: Study, keys: Sequence[Key]) -> dict[Key, str]:
    """Why each attempt is no longer its worker's, and who has the row now."""
    ids = study.integers(sorted({key[0] for key in keys}))
    text = f'SELECT "ID", "status", "_attempt", "_worker" FROM {study.main} WHERE {study.member(ID, ":ids")}'
    rows = {row[0]: row[1:] for row in await study.fetch(study.db, text, ids=ids)}
    text = (
        f'SELECT "experiment_id", "attempt", "outcome" FROM {study.attempts} WHERE {study.member(EXPERIMENT, ":ids")}'
    )
    outcomes = {(row[0], row[1]): str(row[2]) for row in await study.fetch(study.db, text, ids=ids)}
    names = await _names(study, [row[2] for row in rows.values() if row[2] is not None])
    return {key: _fate(key, rows.get(key[0]), outcomes.get(key), names) for key in keys}


async def _names(study: Study, workers: Sequence[int]) -> dict[int, str]:
    if not workers:
        return {}
    member = study.member('"id"', ":ids")
    text = f'SELECT "id", "name", "machine", "pid" FROM {study.workers} WHERE {member}'
    rows = await study.fetch(study.db, text, ids=study.integers(sorted(set(workers))))
    return {row[0]: f"worker {row[0]} ({row[1]!r} on {row[2]}, pid {row[3]})" for row in rows}


def _fate(key: Key, row: tuple[Any, ...] | None, outcome: str | None, names: dict[int, str]) -> str:
    if row is None:
        return "the row was reset or deleted"
    status, attempt, worker = row
    why = "this worker gave no sign of life for its lease and was taken for dead" if outcome == "lost" else ""
    if status == "running" and attempt != key[1]:
        now = f"{names.get(worker, 'another worker')} runs attempt {attempt}"
    elif status == "created":
        now = "it waits for its next attempt"
    else:
        now = f"it is {status} in attempt {attempt}"
    return "; ".join(filter(None, (why, now)))
