"""The worker rows: the sign of life, and the requests that travel through the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncexp.db.base import DuplicateKey, Row, Transaction
from asyncexp.schema import quote
from asyncexp.store.claim import ID, Worker
from asyncexp.store.fill import wake
from asyncexp.store.flush import Key
from asyncexp.store.study import Runner, Study, utc

WORKER_ID = '"id"'


@dataclass(frozen=True, slots=True)
class Beat:
    """What a sign of life brought back."""

    requests: int
    """Grows with every request to this worker."""
    stop_requested: str | None
    """Who asked the worker to stop."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asked of one running experiment."""

    key: Key
    kind: str
    """`cancel` or `release`."""
    by: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one experiment stands."""

    status: str
    attempt: int
    """Of the attempt under way, or the last one; 0 if there was none."""
    worker: int | None
    asked: bool
    """Somebody asked to cancel or release it."""


@dataclass(frozen=True, slots=True)
class AttachedBeat:
    """What the sign of life of an attached worker brought back."""

    known: bool
    """False if its row among the workers is gone."""
    standing: Standing | None
    """Where its experiment stands; None if the row is gone."""
    stop: bool
    """Somebody asked it, or the worker that runs the experiment, to stop."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the table knows it; times are naive UTC."""

    id: int
    role: str
    experiment_id: int | None
    name: str
    machine: str
    pid: int
    started: datetime
    heartbeat: datetime
    lease: float
    """Seconds without a sign of life after which it counts as lost."""
    stopped: datetime | None
    stop_requested: str | None
    """Who asked it to stop."""
    rescued: datetime | None
    """When others had taken over what it ran."""
    state: str
    """`live`, `lost` (its lease is over, or its rows were taken over) or `stopped`."""
    running: int
    """Experiments it runs."""
    ended_done: int
    ended_error: int
    git_commit: str | None
    git_dirty: bool | None
    python_version: str | None
    asyncexp_version: str | None
    command_line: str | None
    slurm_job_id: str | None
    slurm_array_job_id: str | None
    slurm_array_task_id: str | None


async def register(
    study: Study, worker: Worker, lease_seconds: float, facts: Mapping[str, Any], *, experiment_id: int | None = None
) -> None:
    """Writes the row of a worker unless it is there; `facts` are further columns of the workers' table.

    `experiment_id` is for one that is attached to that experiment.
    """
    columns = {
        "id": worker.id,
        "name": worker.name,
        "machine": worker.machine,
        "role": "worker" if experiment_id is None else "attached",
        "experiment_id": experiment_id,
        "lease": lease_seconds,
        **{name: study.bound(value) for name, value in facts.items()},
    }
    names = ", ".join(quote(name) for name in columns)
    marks = ", ".join(f":{name}" for name in columns)
    text = (
        f'INSERT INTO {study.workers} ({names}, "started", "heartbeat") '
        f"VALUES ({marks}, {study.dialect.now}, {study.dialect.now})"
    )
    with suppress(DuplicateKey):
        await study.execute(study.db, text, **columns)


async def describe(study: Study, worker: int, facts: Mapping[str, Any]) -> None:
    """Adds to a worker's row what took time to find out."""
    values = {name: study.bound(value) for name, value in facts.items()}
    sets = ", ".join(f"{quote(name)} = :{name}" for name in values)
    await study.execute(study.db, f'UPDATE {study.workers} SET {sets} WHERE "id" = :worker', worker=worker, **values)


async def beat(study: Study, worker: int, done: int, error: int) -> Beat | None:
    """The sign of life; None if the worker's row is gone."""

    text = (
        f'UPDATE {study.workers} SET "heartbeat" = {study.dialect.now}, "rescued" = NULL, "ended_done" = :done, '
        '"ended_error" = :error WHERE "id" = :worker'
    )
    what = f'{study.dialect.now}, "requests", "stop_requested"'
    values = {"worker": worker, "done": done, "error": error}

    async def work(tx: Transaction) -> list[Row]:
        if study.dialect.returning:
            return await study.fetch(tx, f"{text} RETURNING {what}", **values)
        await study.execute(tx, text, **values)
        return await study.fetch(tx, f'SELECT {what} FROM {study.workers} WHERE "id" = :worker', worker=worker)

    asked = utc()
    for now, requests, stop in await study.db.run(work):
        study.clock_is(now, asked)
        return Beat(requests, stop)
    return None


async def attached_beat(study: Study, worker: Worker, experiment_id: int) -> AttachedBeat:
    """The sign of life of an attached worker, and a look at the experiment that it joined."""

    async def work(tx: Transaction) -> AttachedBeat:
        text = f'UPDATE {study.workers} SET "heartbeat" = {study.dialect.now} WHERE "id" = :worker'
        known = bool(await study.execute(tx, text, worker=worker.id))
        row = await standing(study, tx, experiment_id)
        text = (
            f'SELECT {study.dialect.now}, COUNT("stop_requested") FROM {study.workers} '
            f"WHERE {study.member(WORKER_ID, ':ids')}"
        )
        asked = utc()
        [(now, stops)] = await study.fetch(tx, text, ids=study.integers([worker.id, worker.runs_as]))
        study.clock_is(now, asked)
        return AttachedBeat(known, row, stops > 0)

    return await study.db.run(work)


async def standing(study: Study, runner: Runner, experiment_id: int) -> Standing | None:
    """Where an experiment stands; None if there is no such row."""
    text = f'SELECT "status", "_attempt", "_worker", "_request" FROM {study.main} WHERE "ID" = :id'
    rows = await study.fetch(runner, text, id=experiment_id)
    for status, attempt, worker, request in rows:
        return Standing(status, attempt, worker, request is not None)
    return None


async def requests(study: Study, worker: int) -> list[Request]:
    """What was asked of the rows that run in this worker's name.

    A look at all rows, for a worker learns of its latest rows later than others may: it is done when something
    was asked, which is rare.
    """
    text = (
        f'SELECT "ID", "_attempt", "_request", "_requested_by" FROM {study.main} '
        'WHERE "status" = \'running\' AND "_worker" = :worker AND "_request" IS NOT NULL'
    )
    rows = await study.fetch(study.db, text, worker=worker)
    return [Request((row[0], row[1]), row[2], row[3]) for row in rows]


async def say_stopped(study: Study, worker: int, done: int, error: int) -> None:
    """Notes that a worker ended in good order."""
    text = (
        f'UPDATE {study.workers} SET "stopped" = {study.dialect.now}, "heartbeat" = {study.dialect.now}, '
        '"ended_done" = :done, "ended_error" = :error WHERE "id" = :worker'
    )
    await study.execute(study.db, text, worker=worker, done=done, error=error)


async def forget_stop(study: Study, worker: int) -> None:
    """Drops a request to stop that came while nothing ran: it is not meant for what begins now."""
    text = f'UPDATE {study.workers} SET "stop_requested" = NULL WHERE "id" = :worker AND "stop_requested" IS NOT NULL'
    await study.execute(study.db, text, worker=worker)


async def ask(study: Study, ids: Sequence[int], kind: str, by: str) -> list[int]:
    """Asks the workers of running rows to cancel or release them; the IDs of the rows asked for."""
    if not ids:
        return []

    async def work(tx: Transaction) -> list[int]:
        text = (
            f'SELECT "ID", "_worker" FROM {study.main} WHERE {study.member(ID, ":ids")} AND "status" = \'running\' '
            f'AND "_worker" IS NOT NULL ORDER BY "ID"{study.dialect.for_update}'
        )
        rows = await study.fetch(tx, text, ids=study.integers(ids))
        if not rows:
            return []
        asked = [int(row[0]) for row in rows]
        text = f'UPDATE {study.main} SET "_request" = :kind, "_requested_by" = :by WHERE {study.member(ID, ":ids")}'
        await study.execute(tx, text, kind=kind, by=by, ids=study.integers(asked))
        await raise_counter(study, tx, sorted({row[1] for row in rows}))
        return asked

    return await study.db.run(work)


async def ask_to_stop(study: Study, workers: Sequence[int], by: str) -> list[int]:
    """Asks workers to stop gracefully; the ids of those that had not stopped."""
    if not workers:
        return []

    async def work(tx: Transaction) -> list[int]:
        text = (
            f'SELECT "id" FROM {study.workers} WHERE {study.member(WORKER_ID, ":ids")} AND "stopped" IS NULL '
            f'ORDER BY "id"{study.dialect.for_update}'
        )
        asked = [int(row[0]) for row in await study.fetch(tx, text, ids=study.integers(workers))]
        if asked:
            await _request_stop(study, tx, asked, by)
        return asked

    return await study.db.run(work)


async def stop_all(study: Study, tx: Transaction, by: str) -> None:
    """Asks every worker of the table to stop gracefully, if there are tables of workers yet."""
    text = f'SELECT "id" FROM {study.workers} WHERE "stopped" IS NULL ORDER BY "id"{study.dialect.for_update}'
    asked = [int(row[0]) for row in await study.fetch(tx, text)]
    if asked:
        await _request_stop(study, tx, asked, by)


async def _request_stop(study: Study, tx: Transaction, asked: Sequence[int], by: str) -> None:
    text = f'UPDATE {study.workers} SET "stop_requested" = :by WHERE {study.member(WORKER_ID, ":ids")}'
    await study.execute(tx, text, by=by, ids=study.integers(asked))
    await raise_counter(study, tx, asked)


async def raise_counter(study: Study, tx: Transaction, workers: Sequence[int]) -> None:
    """Has these workers look at their rows: at their next sign of life, on PostgreSQL at once."""
    if not workers:
        return
    text = f'UPDATE {study.workers} SET "requests" = "requests" + 1 WHERE {study.member(WORKER_ID, ":ids")}'
    await study.execute(tx, text, ids=study.integers(workers))
    for worker in workers:
        await wake(study, tx, str(worker))


async def listed(
    study: Study, *, lost_only: bool = False, running: Mapping[int, int] | None = None
) -> list[WorkerInfo]:
    """All workers that have a row, or those that are lost, the latest first.

    `running` is how many experiments each runs; None: it is counted, by a scan of the table.
    """
    own = [name for name in WorkerInfo.__slots__ if name not in ("state", "running")]
    over = study.dialect.later.format(seconds='-"lease"')
    lost = f'("heartbeat" < {over} OR "rescued" IS NOT NULL)'
    chosen = f' WHERE "stopped" IS NULL AND {lost}' if lost_only else ""
    text = (
        f"SELECT {', '.join(map(quote, own))}, CASE WHEN \"stopped\" IS NOT NULL THEN 'stopped' "
        f"WHEN {lost} THEN 'lost' ELSE 'live' END FROM {study.workers}{chosen} ORDER BY \"started\" DESC"
    )
    rows = await study.fetch(study.db, text)
    if running is None:
        running = await _running(study) if rows else {}
    return [_info(study, dict(zip([*own, "state"], row, strict=True)), running) for row in rows]


async def _running(study: Study) -> dict[int, int]:
    text = f'SELECT "_worker", COUNT(*) FROM {study.main} WHERE "status" = \'running\' GROUP BY "_worker"'
    return {row[0]: row[1] for row in await study.fetch(study.db, text)}


def _info(study: Study, raw: dict[str, Any], running: Mapping[int, int]) -> WorkerInfo:
    for name in ("started", "heartbeat", "stopped", "rescued"):
        if raw[name] is not None:
            raw[name] = study.date(raw[name])
    if raw["git_dirty"] is not None:
        raw["git_dirty"] = bool(raw["git_dirty"])
    return WorkerInfo(**raw, running=running.get(raw["id"], 0))
