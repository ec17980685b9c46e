"""All that the tables know of single experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asyncexp.schema import quote
from asyncexp.store.claim import ID
from asyncexp.store.lines import decoded
from asyncexp.store.study import Study
from asyncexp.store.workers import WORKER_ID


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that runs or ran an experiment, and where its code came from."""

    id: int
    name: str
    machine: str
    pid: int
    started: datetime
    """Naive UTC."""
    git_commit: str | None
    git_dirty: bool | None
    """Whether there were changes that no commit holds."""
    python_version: str | None
    asyncexp_version: str | None
    command_line: str | None
    slurm_job_id: str | None
    slurm_array_job_id: str | None
    slurm_array_task_id: str | None


@dataclass(frozen=True, slots=True)
class Detail:
    """One experiment; times are naive UTC, and of its latest attempt."""

    id: int
    status: str
    keyfields: Mapping[str, Any]
    results: Mapping[str, Any]
    """Their timestamps too, if the study keeps them."""
    attempt: int
    """0: it was never begun."""
    created: datetime | None
    started: datetime | None
    ended: datetime | None
    name: str | None
    machine: str | None
    heartbeat: datetime | None
    """What its function last told by `heartbeat`, and when."""
    progress: float | None
    message: str | None
    not_before: datetime | None
    """It is not begun before."""
    request: str | None
    """`cancel` or `release`, if somebody asked for it."""
    requested_by: str | None
    error: str | None = field(repr=False)
    """The traceback."""
    worker: Origin | None = field(repr=False)
    """None if no worker ran it, or none that is known."""


async def details(study: Study, ids: Sequence[int]) -> list[Detail]:
    """These experiments, in this order; those that do not exist are left out."""
    if not ids:
        return []
    columns = [column for column in study.schema.main.columns if column.type != "HASH"]
    names = ", ".join(quote(column.name) for column in columns)
    text = f"SELECT {names} FROM {study.main} WHERE {study.member(ID, ':ids')}"
    rows = decoded(columns, await study.fetch(study.db, text, ids=study.integers(ids)))
    workers = await _origins(study, {row["_worker"] for row in rows} - {None})
    found = {row["ID"]: _detail(study, row, workers.get(row["_worker"])) for row in rows}
    return [found[each] for each in dict.fromkeys(ids) if each in found]


def _detail(study: Study, row: Mapping[str, Any], worker: Origin | None) -> Detail:
    return Detail(
        id=row["ID"],
        status=row["status"],
        keyfields={name: row[name] for name in study.schema.key_names},
        results={column.name: row[column.name] for column in study.schema.result_columns},
        created=row["creation_date"],
        started=row["start_date"],
        ended=row["end_date"],
        worker=worker,
        **{name: row[name] for name in ("name", "machine", "error")},
        **{
            name: row[f"_{name}"]
            for name in ("attempt", "heartbeat", "progress", "message", "not_before", "request", "requested_by")
        },
    )


async def _origins(study: Study, ids: set[int]) -> dict[int, Origin]:
    if not ids:
        return {}
    columns = [column for column in study.schema.workers.columns if column.name in Origin.__slots__]
    names = ", ".join(quote(column.name) for column in columns)
    text = f"SELECT {names} FROM {study.workers} WHERE {study.member(WORKER_ID, ':ids')}"
    rows = decoded(columns, await study.fetch(study.db, text, ids=study.integers(ids)))
    return {row["id"]: Origin(**row) for row in rows}
