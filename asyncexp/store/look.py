"""How a study stands: all of it from one scan of the table, and the rows of the workers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from heapq import nsmallest
from typing import NamedTuple

from asyncexp.db.base import Row
from asyncexp.experiment import Running
from asyncexp.schema import quote
from asyncexp.store import workers
from asyncexp.store.claim import ID
from asyncexp.store.read import LIMIT_SECONDS
from asyncexp.store.study import STATUSES, Condition, Study
from asyncexp.store.workers import WorkerInfo

SHOWN = 10
"""So many of the running experiments are looked at one by one: those that run longest."""


@dataclass(frozen=True, slots=True)
class Overview:
    """How a study stands at one moment."""

    counts: Mapping[str, int]
    """Status -> rows, every status named."""
    workers: tuple[WorkerInfo, ...]
    """The latest first, the stopped ones too."""
    oldest: tuple[Running, ...]
    """What runs longest, the oldest first."""
    at: datetime
    """When, by the database's clock; naive UTC."""
    scan_seconds: float
    """How long the look took."""
    rate: float = field(default=0.0)
    """Experiments that the live workers end in a second, since each of them began."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def eta_seconds(self) -> float | None:
        """Until no row is open at this rate; None while nothing ends."""
        still = self.counts["created"] + self.counts["running"]
        return still / self.rate if self.rate > 0 and still else (0.0 if not still else None)


class _Runs(NamedTuple):
    """One that runs."""

    id: int
    worker: int | None
    started: datetime | None


async def overview(study: Study, which: Condition, shown: int = SHOWN) -> Overview:
    """One scan of the main table, then its workers, and the rows that run longest by their IDs."""
    began = time.monotonic()
    counts, running = await _scan(study, which)
    found = await workers.listed(study, running=Counter(row.worker for row in running if row.worker is not None))
    [(now,)] = await study.fetch(study.db, f"SELECT {study.dialect.now}")
    at = study.date(now)
    oldest = nsmallest(shown, running, key=lambda row: (row.started or at, row.id))
    rows = await _rows(study, [row.id for row in oldest])
    made = Overview(counts, tuple(found), tuple(rows), at, time.monotonic() - began)
    return replace(made, rate=_rate(found, at))


async def _scan(study: Study, which: Condition) -> tuple[dict[str, int], list[_Runs]]:
    """Status -> rows, and those that run, by one statement.

    Where no index knows every row's status it is one scan, which makes no group of each row: that would mean to sort
    them all. Other columns of other rows are not touched: behind a long traceback they lie on pages of their own.
    """
    gather = study.dialect.gather
    text = _by_index(study, which) if gather is None else _by_scan(study, which, gather)
    found = await study.db.fetch(*study.statement(text, which.params), limit_seconds=LIMIT_SECONDS)
    if gather is None:
        rows = [row[2:] for row in found if row[2] is not None]
        counts = {row[0]: row[1] for row in found if row[2] is None}
    else:
        [(*numbers, listed)] = found
        rows = json.loads(listed or "[]")
        counts = dict(zip(STATUSES, numbers, strict=True))
    runs = [_Runs(int(id_), worker, None if began is None else study.date(began)) for id_, worker, began in rows]
    return {status: int(counts.get(status) or 0) for status in STATUSES}, runs


def _by_scan(study: Study, which: Condition, gather: str) -> str:
    sums = ", ".join(f"SUM(CASE WHEN \"status\" = '{status}' THEN 1 ELSE 0 END)" for status in STATUSES)
    running = gather.format(values='"ID", "_worker", "start_date"', condition="\"status\" = 'running'")
    return f"SELECT {sums}, {running} FROM {study.main} WHERE {which.sql}"


def _by_index(study: Study, which: Condition) -> str:
    return (
        f'SELECT "status", COUNT(*), NULL, NULL, NULL FROM {study.main} WHERE {which.sql} GROUP BY "status" '
        f'UNION ALL SELECT "status", 1, "ID", "_worker", "start_date" FROM {study.main} '
        f"WHERE \"status\" = 'running' AND {which.sql}"
    )


async def _rows(study: Study, ids: Sequence[int]) -> list[Running]:
    """Rows that still run, in the order of their IDs given."""
    if not ids:
        return []
    names = ["ID", "_attempt", "_worker", "start_date", "_heartbeat", "_progress", "_message", *study.schema.key_names]
    text = (
        f"SELECT {', '.join(map(quote, names))} FROM {study.main} "
        f"WHERE {study.member(ID, ':ids')} AND \"status\" = 'running'"
    )
    found = {int(row[0]): row for row in await study.fetch(study.db, text, ids=study.integers(ids))}
    return [_running(study, found[each]) for each in ids if each in found]


def _running(study: Study, row: Row) -> Running:
    experiment_id, attempt, worker, started, heartbeat, progress, message, *keys = row
    names = study.schema.key_names
    keyfields = {name: decode(raw) for name, decode, raw in zip(names, study.key_decoders, keys, strict=True)}
    dates = [None if raw is None else study.date(raw) for raw in (started, heartbeat)]
    return Running(int(experiment_id), keyfields, int(attempt), worker, dates[0], dates[1], progress, message)


def _rate(found: Sequence[WorkerInfo], now: datetime) -> float:
    """Each live worker's own pace, from its start to its last sign of life, together."""
    pace = 0.0
    for worker in found:
        lived = (worker.heartbeat - worker.started).total_seconds()
        if worker.state == "live" and worker.role == "worker" and lived > 0 and worker.heartbeat <= now:
            pace += (worker.ended_done + worker.ended_error) / lived
    return pace
